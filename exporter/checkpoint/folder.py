"""A folder in diffusers layout: a folder for each component, with ``config.json`` and weights."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from exporter.checkpoint.component import COMPONENTS, Component, component_of
from exporter.checkpoint.stored import PICKLES, REMEDY, read_stored
from exporter.errors import InputError
from exporter.files.read import read_json

INDEX = "model_index.json"
PLAIN = ("diffusion_pytorch_model.safetensors", "model.safetensors")
SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")


def open_components(folder: Path, names: Sequence[str]) -> dict[str, Component]:
    """Those of the named components that are there; raises InputError for a folder that is none."""
    if not (folder / INDEX).is_file():
        raise InputError(
            f"checkpoint {folder}: model_index.json is missing; "
            "name a folder in diffusers layout (StableDiffusion3Pipeline.save_pretrained)"
        )
    index = read_json(folder / INDEX)
    if index.get("_class_name") != "StableDiffusion3Pipeline":
        raise InputError(
            f"{folder / INDEX}: pipeline class {index.get('_class_name')!r} is not "
            "supported; supported: 'StableDiffusion3Pipeline'"
        )
    return {
        name: _open_component(folder, name, index) for name in names if (folder / name).is_dir()
    }


def descriptions(folder: Path, components: Mapping[str, Component]) -> dict[str, Path]:
    """The files that say what the components are, by name.

    The index is none of them: its words are taken as they are meant, or refused.
    """
    return {f"{n}/config.json": folder / n / "config.json" for n in components}


def _open_component(checkpoint: Path, name: str, index: Mapping[str, Any]) -> Component:
    _check_class(checkpoint / INDEX, name, index.get(name))
    return open_part(checkpoint / name, name)


def open_part(folder: Path, name: str) -> Component:
    """A component from the folder of its own: ``config.json`` and weights; raises InputError."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such file or folder")
    described = folder / "config.json"
    config = read_json(described)
    _refuse_quantized(described, config)
    files = weight_files(folder)
    return component_of(name, folder, str(described), config, read_stored(files), files)


def _refuse_quantized(described: Path, config: Mapping[str, Any]) -> None:
    """Raise InputError for a configuration that says what its integers stand for."""
    how = config.get("quantization_config")
    if how is not None:
        method = how.get("quant_method") if isinstance(how, dict) else how
        raise InputError(f"{described}: quantization_config: {method} is not read; {REMEDY}")


def _check_class(file: Path, name: str, declared: object) -> None:
    """``model_index.json`` names a library and a class for each component, or null for none."""
    if declared is None or declared == [None, None]:
        return
    if not isinstance(declared, list) or len(declared) != 2:
        raise InputError(f"{file}: {name}: a list of library and class is expected")
    if declared[1] != COMPONENTS[name]:
        raise InputError(f"{file}: {name} is a {declared[1]}; supported: {COMPONENTS[name]}")


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors of a component: the shards of an index, or the one file.

    A plain name wins over one with a variant (``model.fp16.safetensors``).
    """
    indices = sorted(folder.glob("*.safetensors.index.json"))
    variants = sorted(folder.glob("*.safetensors.index.*.json"))
    singles = [f for f in sorted(folder.glob("*.safetensors")) if not SHARD.search(f.name)]
    plain = [f for f in singles if f.name in PLAIN]
    if indices:
        return _shards(indices[0])
    if len(plain) == 1:
        return (plain[0],)
    if len(singles) + len(variants) == 1:
        return (singles[0],) if singles else _shards(variants[0])
    if singles or variants:
        names = ", ".join(f.name for f in (*singles, *variants))
        raise InputError(f"{folder}: several sets of weights: {names}; keep one of them")
    shards = sorted(f.name for f in folder.glob("*.safetensors"))
    if shards:
        raise InputError(
            f"{folder}: {shards[0]} is one of several shards, and their index is missing; copy "
            "the file *.safetensors.index.json too"
        )
    pickles = sorted(f.name for f in folder.iterdir() if f.suffix in PICKLES)
    if pickles:
        raise InputError(
            f"{folder / pickles[0]}: pickled weights can run code and are never opened; "
            "save the checkpoint again with safe_serialization=True"
        )
    raise InputError(f"{folder}: no .safetensors file")


def _shards(index: Path) -> tuple[Path, ...]:
    """The files that an index lists, which lie beside it."""
    listed = read_json(index).get("weight_map")
    names = list(listed.values()) if isinstance(listed, dict) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise InputError(f"{index}: weight_map must be an object of tensors and files")
    shards = sorted(set(names))
    if any(Path(s).name != s for s in shards):
        raise InputError(f"{index}: a shard lies outside its folder")
    there = {f.name for f in index.parent.iterdir() if f.is_file()}
    missing = [s for s in shards if s not in there]
    if missing:
        raise InputError(f"{index}: shard {missing[0]} is missing")
    return tuple(index.parent / s for s in shards)

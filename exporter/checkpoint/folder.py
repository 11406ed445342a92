"""A folder in diffusers layout: a folder for each component, with ``config.json`` and weights.

Links are followed, as in the snapshots of a hub's cache, and one that leads nowhere is told from a
file that was never there.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from exporter.checkpoint.component import COMPONENTS, CheckpointRemark, Component, component_of
from exporter.checkpoint.stored import REMEDY, read_stored
from exporter.checkpoint.weights import PLAIN, choose, weight_sets
from exporter.errors import InputError
from exporter.files.read import begins_with, read_json

INDEX = "model_index.json"
PIPELINE = "StableDiffusion3Pipeline"
# Img2Img, Inpaint, ControlNet, PAG and those that people write themselves: the same components.
PIPELINES = re.compile(r"(StableDiffusion(3|35)|SD3|SD35)(?![a-z0-9])\w*")
# Of each component, other classes whose tensors hold the same network.
ALIKE = {
    "text_encoder": ("CLIPTextModel", "CLIPModel"),
    "text_encoder_2": ("CLIPTextModel", "CLIPModel"),
    "text_encoder_3": ("T5ForConditionalGeneration", "T5Model", "MT5EncoderModel"),
}
# A snapshot in a hub's cache; its files are links to ../../blobs.
SNAPSHOT = re.compile(
    r"models--(?P<owner>[^/\\]+?)--(?P<name>[^/\\]+)[/\\]snapshots[/\\](?P<commit>\w+)"
)
POINTER = b"version https://git-lfs.github.com/spec/"  # what git writes for a file of LFS


def open_components(
    folder: Path, names: Sequence[str], variant: str | None = None
) -> dict[str, Component]:
    """Those of the named components that are there; raises InputError for a folder that is none.

    Args:
        variant: of the weights (``weights.choose``).
    """
    index = read_index(folder)
    there = [name for name in names if (folder / name).is_dir()]
    if variant:
        _check_variant(folder, there, variant)
    return {name: _open_component(folder, name, index, variant) for name in there}


def read_index(folder: Path) -> dict[str, Any]:
    """``model_index.json`` of a pipeline that is made of our components; raises InputError."""
    file = folder / INDEX
    if not file.is_file():
        raise InputError(
            f"checkpoint {folder}: model_index.json is missing{_fetch_hint(folder)}; "
            "name a folder in diffusers layout (StableDiffusion3Pipeline.save_pretrained)"
        )
    index = read_json(file)
    declared = index.get("_class_name")
    # A pipeline of the user's own names its module before its class.
    name = declared[-1] if isinstance(declared, list) and declared else declared
    if not isinstance(name, str) or not PIPELINES.fullmatch(name):
        raise InputError(
            f"{file}: pipeline class {name!r} is not supported; supported: {PIPELINE!r} and those "
            "made of its components, such as 'StableDiffusion3Img2ImgPipeline'"
        )
    return index


def descriptions(folder: Path, components: Mapping[str, Component]) -> dict[str, Path]:
    """The files that say what the components are, by name.

    The index is none of them: its words are taken as they are meant, or refused.
    """
    return {f"{n}/config.json": folder / n / "config.json" for n in components}


def hub_id_of(folder: Path) -> tuple[str, str] | None:
    """The hub id and the commit of a folder inside a snapshot of a hub's cache."""
    found = SNAPSHOT.search(str(folder.absolute()))
    return (f"{found['owner']}/{found['name']}", found["commit"]) if found else None


def fetch_command(folder: Path) -> str:
    """What to type where a file of a snapshot is missing; empty outside a hub's cache."""
    place = hub_id_of(folder)
    return f"fourstep fetch {place[0]} --revision {place[1]}" if place else ""


def _fetch_hint(folder: Path) -> str:
    command = fetch_command(folder)
    return f" in the hub's cache: {command}" if command else ""


def _check_variant(folder: Path, there: Sequence[str], variant: str) -> None:
    """Warn CheckpointRemark of components without a variant, whose plain weights are read then.

    Raises InputError for a variant that none has.
    """
    have = {name: {s.variant for s in weight_sets(_names(folder / name))} for name in there}
    if have and not any(variant in variants for variants in have.values()):
        listed = ", ".join(sorted(set().union(*have.values()) - {PLAIN})) or "none"
        raise InputError(
            f"checkpoint {folder}: no component has weights of variant {variant!r}; "
            f"variants here: {listed}{_fetch_hint(folder)}"
        )
    lacking = [name for name, found in have.items() if variant not in found and PLAIN in found]
    if lacking:
        said = f"{', '.join(lacking)}: no weights of variant {variant!r}; the plain ones are read"
        warnings.warn(f"checkpoint {folder}: {said}", CheckpointRemark, stacklevel=2)


def _open_component(
    checkpoint: Path, name: str, index: Mapping[str, Any], variant: str | None
) -> Component:
    _check_class(checkpoint / INDEX, name, index.get(name))
    return open_part(checkpoint / name, name, variant)


def open_part(folder: Path, name: str, variant: str | None = None) -> Component:
    """A component from the folder of its own: ``config.json`` and weights; raises InputError."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such file or folder")
    described = folder / "config.json"
    _require_file(described)
    config = read_json(described)
    _check_config(described, name, config)
    files = weight_files(folder, variant)
    return component_of(name, folder, str(described), config, read_stored(files), files)


def _names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def _require_file(file: Path) -> None:
    """Raise InputError for a link that leads nowhere, and for what git leaves in its place."""
    if file.is_symlink() and not file.exists():
        command = fetch_command(file.parent)
        remedy = f"the hub's cache is not whole: {command}" if command else "copy it again"
        raise InputError(f"{file}: is a link to a file that is not there; {remedy}")
    if file.is_file() and begins_with(file, POINTER):
        raise InputError(
            f"{file}: is a pointer of Git LFS and not the file itself: git lfs pull, in its folder"
        )


def _check_class(file: Path, name: str, declared: object) -> None:
    """``model_index.json`` names a library and a class for each component, or null for none.

    Modular pipelines name where it is from besides.
    """
    if declared is None or (isinstance(declared, list) and declared[:2] == [None, None]):
        return
    is_modular = isinstance(declared, list) and len(declared) == 3 and isinstance(declared[2], dict)
    if not isinstance(declared, list) or not (len(declared) == 2 or is_modular):
        raise InputError(f"{file}: {name}: a list of library and class is expected")
    if declared[1] not in (COMPONENTS[name], *ALIKE.get(name, ())):
        raise InputError(f"{file}: {name} is a {declared[1]}; supported: {COMPONENTS[name]}")


def _check_config(file: Path, name: str, config: Mapping[str, Any]) -> None:
    """Raise InputError for a configuration of another network, or of weights that are quantized."""
    allowed = (COMPONENTS[name], *ALIKE.get(name, ()))
    declared = config.get("_class_name")
    if isinstance(declared, str) and declared not in allowed:
        raise InputError(f"{file}: {name} is a {declared}; supported: {COMPONENTS[name]}")
    model_type = config.get("model_type")
    if name == "text_encoder_3" and model_type not in (None, "t5", "mt5"):
        raise InputError(
            f"{file}: model_type = {model_type!r}: a T5 encoder is expected ('t5'): another network"
        )
    how = config.get("quantization_config")
    if how is not None:
        method = how.get("quant_method") if isinstance(how, dict) else how
        raise InputError(f"{file}: quantization_config: {method} is not read; {REMEDY}")


def weight_files(folder: Path, variant: str | None = None) -> tuple[Path, ...]:
    """The safetensors of a component, in order: the one file, or the shards that an index lists.

    Raises InputError where none are there, or it cannot be told which are meant.
    """
    chosen = choose(_names(folder), variant, folder)
    first = folder / chosen.first
    _require_file(first)
    files = _shards(first) if chosen.is_sharded else (first,)
    for file in files:
        _require_file(file)
    return files


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
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        command = fetch_command(index.parent)
        remedy = f"the hub's cache is not whole: {command}" if command else "copy it here too"
        raise InputError(f"{index}: shard {missing[0]} is missing{more}; {remedy}")
    return tuple(index.parent / s for s in shards)

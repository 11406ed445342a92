"""Files as Stability, ComfyUI and llama.cpp write them: everything in one, or a component each.

Nothing is converted: a tensor of diffusers is rows of what the file holds, or its halves exchanged.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from exporter.checkpoint.component import (
    COMPONENTS,
    HARMLESS,
    PARTS,
    CheckpointRemark,
    Component,
    component_of,
)
from exporter.checkpoint.configs import decisive
from exporter.checkpoint.infer import (
    CLIP_WIDTHS,
    FAMILY,
    GUESSED,
    inferred,
    not_told,
    only_guessed,
)
from exporter.checkpoint.names import (
    Names,
    autoencoder_names,
    flat_clip_names,
    gguf_t5_names,
    mmdit_names,
)
from exporter.checkpoint.sources import DTYPES, Exchanged, LeftOut, Reshaped, Sliced, TensorSource
from exporter.checkpoint.stored import read_stored
from exporter.checkpoint.weights import PICKLES
from exporter.errors import InputError
from exporter.files.read import read_json

SUFFIXES = (".safetensors", ".gguf")
# What a file's names begin with that holds several components; the longest first.
PREFIXES = {
    "model.diffusion_model.": "transformer",
    "diffusion_model.": "transformer",
    "first_stage_model.": "vae",
    "vae.": "vae",
    "text_encoders.clip_l.transformer.": "text_encoder",
    "text_encoders.clip_l.": "text_encoder",
    "text_encoders.clip_g.transformer.": "text_encoder_2",
    "text_encoders.clip_g.": "text_encoder_2",
    "text_encoders.t5xxl.transformer.": "text_encoder_3",
    "text_encoders.t5xxl.": "text_encoder_3",
}
# What names begin with in a file of one component; either CLIP is called the same.
SIGNS = {
    "transformer": ("joint_blocks.", "transformer_blocks."),
    "text_encoder": ("text_model.", "embeddings.token_embedding."),
    "text_encoder_3": ("encoder.block.", "shared.", "enc.blk."),
    "vae": ("decoder.mid", "decoder.up"),
}
CLIPS = ("text_encoder", "text_encoder_2")
# The schedule that a model was trained with: a recipe says which one it draws with.
SCHEDULES = ("model_sampling.*", "model.model_sampling.*", "denoiser.*", "model.denoiser.*")
NOT_SD3 = {
    "double_blocks.": "FLUX",
    "double_layers.": "AuraFlow",
    "input_blocks.": "Stable Diffusion 1, 2 or XL",
    "down_blocks.": "Stable Diffusion 1, 2 or XL",
}
LORA = re.compile(r"(^|[._])lora[._]")


@dataclass(frozen=True)
class Held:
    """The tensors of one component in a file, by their names there without what all begin with."""

    prefixes: Mapping[str, str]
    tensors: Mapping[str, Sliced]


@dataclass(frozen=True)
class Described:
    """Where the configurations may be that shapes do not tell.

    Attributes:
        config: a folder that is given for it, and must fit; a component each has a folder in it.
        base: the folder of the checkpoint that a part is put into, which counts if it fits.
    """

    config: Path | None = None
    base: Path | None = None

    def places(self, file: Path, name: str) -> list[Path]:
        """The configurations to try for a component of a file, in order."""
        folders = [folder / name for folder in (self.config, self.base) if folder is not None]
        folders += [file.parent, file.parent / name]
        return [f / "config.json" for f in folders if (f / "config.json").is_file()]


def is_file(place: Path) -> bool:
    """Whether a path is that of a weights file; raises InputError for a file of another kind."""
    if not place.is_file():
        return False
    if place.suffix.lower() in PICKLES:
        raise InputError(
            f"{place}: pickled weights can run code and are never opened; save them as .safetensors"
        )
    if place.suffix.lower() not in SUFFIXES:
        raise InputError(f"{place}: not a checkpoint: a .safetensors or .gguf file is expected")
    return True


def open_components(file: Path, names: Sequence[str], near: Described) -> dict[str, Component]:
    """Those of the named components that a file holds.

    Raises InputError that names a tensor that belongs to no component, or to none of its shape.
    """
    held = _held(file)
    return {name: _component(file, name, held[name], near) for name in names if name in held}


def open_part(file: Path, name: str, near: Described) -> Component:
    """One component from a file of its own, or from one that holds it among others."""
    held = _held(file)
    if name in CLIPS:
        bare = held.get("text_encoder")
        if bare is not None and "" in bare.prefixes.values():
            held[name] = bare
    if name not in held:
        key = next(key for key, part in PARTS.items() if part == name)
        others = [key for key, part in PARTS.items() if part in held]
        raise InputError(f"{file}: given as {key} in [model], and holds {' and '.join(others)}")
    return _component(file, name, held[name], near)


def _held(file: Path) -> dict[str, Held]:
    """What a file holds of each component."""
    found: dict[str, dict[str, Sliced]] = {}
    prefixes: dict[str, dict[str, str]] = {}
    bare: dict[str, Sliced] = {}
    for key, source in read_stored((file,)).items():
        prefix = next((p for p in PREFIXES if key.startswith(p)), None)
        if prefix is not None:
            name, rest = PREFIXES[prefix], key.removeprefix(prefix)
            if rest in found.setdefault(name, {}):
                raise InputError(f"{file}: tensor '{key}' is there under another name too")
            found[name][rest] = source
            prefixes.setdefault(name, {})[rest] = prefix
        elif not any(fnmatchcase(key, pattern) for pattern in SCHEDULES):
            bare[key] = source
    if bare:
        name = _sign(file, bare)
        if name in found:
            raise InputError(f"{file}: tensor '{min(bare)}' belongs to no component of SD3")
        found[name], prefixes[name] = bare, dict.fromkeys(bare, "")
    return {name: Held(prefixes[name], tensors) for name, tensors in found.items()}


def _sign(file: Path, bare: Mapping[str, Sliced]) -> str:
    """The component of names that begin with no prefix; raises InputError when there is none."""
    for name, signs in SIGNS.items():
        if any(key.startswith(signs) and not LORA.search(key) for key in bare):
            return name
    for key in bare:
        if LORA.search(key):
            raise InputError(f"{file}: tensor '{key}': a LoRA's; name its file in [[lora]]")
        for sign, what in NOT_SD3.items():
            if key.startswith(sign):
                raise InputError(f"{file}: tensor '{key}': not of SD3, but of {what}")
    raise InputError(f"{file}: tensor '{min(bare)}' belongs to no component of SD3")


def _component(file: Path, name: str, held: Held, near: Described) -> Component:
    usual = max(held.prefixes.values(), key=len)
    try:
        names = _names(name, held.tensors)
        in_file = names.in_file() if names else {}

        def called(tensor: str) -> str:
            key = in_file.get(tensor, tensor)
            return held.prefixes.get(key, usual) + key

        tensors = _renamed(held, names, name) if names else dict(held.tensors)
        if name in CLIPS:
            tensors = _whole_clip(file, name, tensors)
        known = inferred(name, tensors, called)
        config, place = _configured(file, name, known, near)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    return component_of(name, file, str(place or file), config, tensors, (file,), called)


def _names(name: str, tensors: Mapping[str, Sliced]) -> Names | None:
    """How the file calls the component's tensors; None: as diffusers and transformers do."""
    if name == "transformer" and any(key.startswith("joint_blocks.") for key in tensors):
        return mmdit_names(tensors)
    if name == "vae" and any(key.startswith(("decoder.up.", "decoder.mid.")) for key in tensors):
        return autoencoder_names(tensors)
    if name == "text_encoder_3" and any(key.startswith("enc.blk.") for key in tensors):
        return gguf_t5_names(tensors)
    if name in CLIPS and not any(key.startswith("text_model.") for key in tensors):
        return flat_clip_names(tensors)
    return None


def _renamed(held: Held, names: Names, component: str) -> dict[str, TensorSource]:
    """The tensors by diffusers' names: rows of what is fused, halves in diffusers' order."""
    found: dict[str, TensorSource] = {}
    for key, source in held.tensors.items():
        whole = held.prefixes[key] + key
        if key not in names.table:
            if any(fnmatchcase(key, pattern) for pattern in HARMLESS.get(component, ())):
                continue
            raise InputError(f"tensor '{whole}' is none of {COMPONENTS[component]}'s")
        parts = names.table[key]
        rows = source.shape[0] if source.shape else 0
        if rows % len(parts) or (key in names.exchanged and rows % 2):
            raise InputError(f"tensor '{whole}' has shape {list(source.shape)}")
        each = rows // len(parts)
        for i, name in enumerate(parts):
            part = source if len(parts) == 1 else source.between(i * each, (i + 1) * each)
            found[name] = _as_diffusers(key, part, names)
    return found


def _as_diffusers(key: str, source: TensorSource, names: Names) -> TensorSource:
    shape = source.shape
    if key in names.exchanged:
        return Exchanged(source)
    if key in names.matrices and len(shape) == 4 and shape[2:] == (1, 1):
        return Reshaped(source, shape[:2])
    # llama.cpp drops leading axes of length one.
    if key == "pos_embed" and len(shape) == 2 and source.file.suffix.lower() == ".gguf":
        return Reshaped(source, (1, *shape))
    return source


def _whole_clip(
    file: Path, name: str, tensors: Mapping[str, TensorSource]
) -> dict[str, TensorSource]:
    """A text encoder's tensors, with the projection that files of SD3's CLIP-L leave out."""
    found = dict(tensors)
    embedding = found.get("text_model.embeddings.token_embedding.weight")
    if embedding is None or len(embedding.shape) != 2:
        return found
    width = embedding.shape[1]
    if CLIP_WIDTHS.get(width, name) != name:
        given, right = (next(k for k, part in PARTS.items() if part == n)
                        for n in (name, CLIP_WIDTHS[width]))  # fmt: skip
        raise InputError(f"given as {given}, and is {width} wide, as {right} is")
    if name == "text_encoder" and "text_projection.weight" not in found:
        dtype = embedding.dtype if embedding.dtype in DTYPES else "F32"
        found["text_projection.weight"] = LeftOut(file, width, dtype)
    return found


def _configured(
    file: Path, name: str, shaped: Mapping[str, Any], near: Described
) -> tuple[Mapping[str, Any], Path | None]:
    """A component's configuration, and the file that says what its shapes do not, if one does.

    Warns CheckpointRemark where neither shapes nor a file tell, and the family's value is taken.
    """
    for place in near.places(file, name):
        said = decisive(COMPONENTS[name], read_json(place))
        sure = [key for key in shaped if key not in GUESSED.get(name, ())]
        other = [key for key in sure if said.get(key) != shaped[key]]
        if not other:
            return said, place
        if near.config is not None and place.is_relative_to(near.config):
            raise InputError(
                f"its shapes say {other[0]} = {shaped[other[0]]!r}, and {place} says "
                f"{said.get(other[0])!r}"
            )
    config = {**FAMILY[name], **shaped}
    remedy = f"name a folder with {name}/config.json as config in [model]"
    if key := not_told(name, config):
        raise InputError(
            f"{key} is not told by its shapes, and no model of SD3 has these; {remedy}"
        )
    if key := only_guessed(name, config):
        remark = (
            f"{file}: {name}: {key} = {config[key]} is guessed: no shape tells it, and no model of "
            f"SD3 is as wide; if it is not so, {remedy}"
        )
        warnings.warn(remark, CheckpointRemark, stacklevel=2)
    return config, None

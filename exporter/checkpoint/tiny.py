"""A tiny autoencoder as people have it: TAESD3's own files, or a folder of diffusers.

    decoder.layers.0.weight          diffusers' AutoencoderTiny, both ends in a file
    taesd_decoder.1.weight           both ends in a file, as ComfyUI keeps them
    1.weight (0.weight)              TAESD's own files, an end each

Layers are numbered as diffusers numbers them; TAESD counts the clamp ahead of a decoder too. What
the network is follows from shapes, and every tensor is compared with what it has to be then.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.checkpoint.component import Component
from exporter.checkpoint.folder import weight_files
from exporter.checkpoint.sources import FLOATS, TensorSource
from exporter.checkpoint.stored import read_stored
from exporter.checkpoint.weights import PICKLES
from exporter.errors import InputError, known
from exporter.files.read import read_json

NAME = "vae_tiny"  # the component, and its folder in a checkpoint
ENDS = ("decoder", "encoder")
STAGES = 4  # of resolutions, each twice the next
NUMBERED = re.compile(r"(\d{1,4})\.(.+)", re.DOTALL)
BLOCK = re.compile(r"(\d{1,4})\.conv\.")
PREFIXES = {end: (f"{end}.layers.", f"taesd_{end}.") for end in ENDS}
# Between what ComfyUI's loop has and what a tiny autoencoder takes: ours has the latter already.
COMFY_SCALES = ("vae_scale", "vae_shift")
# Of ``config.json``: the one value that graphs can express, which is diffusers' default.
FIXED: Mapping[str, Any] = {
    "_class_name": "AutoencoderTiny",
    "act_fn": "relu",
    "upsample_fn": "nearest",
    "upsampling_scaling_factor": 2,
    "in_channels": 3,
    "out_channels": 3,
}


@dataclass(frozen=True)
class StoredEnd:
    """An end of an autoencoder as its file has it.

    Attributes:
        end: ``decoder`` or ``encoder``.
        file: for errors.
        described_in: its ``config.json``, or None.
        prefix, first: the name of layer k is ``prefix`` and k + ``first``.
        tensors: by what follows the prefix, with diffusers' number: ``2.conv.0.weight``.
    """

    end: str
    file: Path
    described_in: Path | None
    prefix: str
    first: int
    tensors: Mapping[str, TensorSource]

    def stored(self, key: str) -> str:
        """A tensor's name in the file."""
        number, _, rest = key.partition(".")
        return f"{self.prefix}{int(number) + self.first}.{rest}"


@dataclass(frozen=True)
class Measured:
    """What shapes say of an end: its width, and its residual blocks from input to output."""

    width: int
    blocks: tuple[int, ...]


def open_tiny(ends: Sequence[str], decoder: Path, encoder: Path | None, channels: int) -> Component:
    """The ends that are used, as one component under diffusers' names.

    Args:
        ends: of ``ENDS``; others are not looked at.
        decoder: a file, or a folder of diffusers' or of TAESD's files.
        encoder: the same of the encoder; None: where the decoder is.
        channels: of the latent.

    Raises InputError naming the tensor that is not what it has to be.
    """
    places = {"decoder": decoder, "encoder": encoder or decoder}
    parts = [_part(end, places[end]) for end in ends]
    config: dict[str, Any] = {"latent_channels": channels}
    for part in parts:
        found = _measured(part)
        _compare(part, found, channels)
        scales = _described(part, found, channels)
        for key, value in scales.items():
            if config.setdefault(key, value) != value:
                raise InputError(
                    f"{part.file}: its {key} is {value:g}, and the decoder's is {config[key]:g}; "
                    "name two ends of one autoencoder"
                )
        config |= {f"{part.end}_width": found.width, f"{part.end}_blocks": list(found.blocks)}
    tensors = {f"{p.end}.layers.{key}": source for p in parts for key, source in p.tensors.items()}
    files = tuple(dict.fromkeys(part.file for part in parts))
    return Component(NAME, files[0], str(files[0]), config, tensors, files)


def _part(end: str, place: Path) -> StoredEnd:
    """The tensors of an end, wherever a place keeps them; raises InputError."""
    file = _file(end, place)
    stored = read_stored((file,))
    prefix, others = _prefix(end, file, stored)
    ours = {k: s for k, s in stored.items() if not k.startswith(others)}
    # Without a clamp of its own, or counted by diffusers, the first layer is number 0.
    counted = end == "decoder" and not prefix.startswith("decoder")
    first = int(counted and not any(k.startswith(f"{prefix}0.") for k in ours))
    tensors: dict[str, TensorSource] = {}
    for key, source in ours.items():
        if source.dtype not in FLOATS:
            raise InputError(f"{file}: tensor '{key}': {known('dtype', source.dtype, FLOATS)}")
        found = NUMBERED.fullmatch(key.removeprefix(prefix)) if key.startswith(prefix) else None
        if found is None:
            raise InputError(f"{file}: tensor '{key}' is none of a tiny {end}'s")
        tensors[f"{int(found[1]) - first}.{found[2]}"] = source
    described_in = place / "config.json"
    return StoredEnd(
        end, file, described_in if described_in.is_file() else None, prefix, first, tensors
    )


def _file(end: str, place: Path) -> Path:
    """The file that an end lies in; raises InputError."""
    if place.suffix in PICKLES and not place.is_dir():
        raise InputError(
            f"{place}: pickled weights can run code and are never opened; take the .safetensors "
            f"file of this {end}, or save it as one"
        )
    if place.is_file():
        return place
    if not place.is_dir():
        raise InputError(f"{place}: no such file or folder; name the tiny {end} in [model]")
    if (place / "config.json").is_file():
        files = weight_files(place)
        if len(files) > 1:
            raise InputError(f"{place}: a tiny autoencoder in {len(files)} shards is not supported")
        return files[0]
    named = sorted(f for f in place.glob("*.safetensors") if end in f.name)
    if len(named) != 1:
        listed = f"several: {', '.join(f.name for f in named)}" if named else "none"
        raise InputError(
            f"{place}: one file *{end}*.safetensors is expected in a folder without config.json, "
            f"and there are {listed}; name the file"
        )
    return named[0]


def _prefix(
    end: str, file: Path, stored: Mapping[str, TensorSource]
) -> tuple[str, tuple[str, ...]]:
    """What the names of an end begin with in a file, and what those do that are not looked at."""
    there = {p for ps in PREFIXES.values() for p in ps if any(k.startswith(p) for k in stored)}
    own = [p for p in PREFIXES[end] if p in there]
    if there and not own:
        raise InputError(f"{file}: holds no {end}; name the file of the {end}")
    (other,) = (e for e in ENDS if e != end)
    scales = COMFY_SCALES if own and own[0].startswith("taesd") else ()
    return (own[0] if own else ""), ((*PREFIXES[other], *scales) if own else ())


def _measured(part: StoredEnd) -> Measured:
    """What the shapes and numbers of an end say; raises InputError for another end."""
    tensors = part.tensors
    shapes = [source.shape for source in tensors.values()]
    widths = Counter(shape[0] for shape in shapes if len(shape) == 4)
    first = tensors.get("0.weight")
    reads = first.shape[1:2] if first else (3,) if part.end == "encoder" else ()
    another = part.end == "encoder" and first is None and "1.weight" in tensors
    if not widths or another or (reads == (3,)) != (part.end == "encoder"):
        raise InputError(f"{part.file}: is no tiny {part.end}; name the file of the {part.end}")
    inside = {int(found[1]) for key in tensors if (found := BLOCK.match(key))}
    blocks, number = list[int](), 2 if part.end == "decoder" else 1
    for _ in range(STAGES):
        count = next(i for i in range(len(inside) + 1) if number + i not in inside)
        blocks.append(count)
        # Behind a stage of a decoder stands a doubling, which has a number too.
        number += count + (2 if part.end == "decoder" else 1)
    return Measured(widths.most_common(1)[0][0], tuple(blocks))


def _expected(end: str, found: Measured, channels: int) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of an end, by name."""
    width = found.width
    inner = (width, width, 3, 3)
    shapes = dict[str, tuple[int, ...]]()

    def add(name: object, shape: tuple[int, ...], bias: bool = True) -> None:
        shapes[f"{name}.weight"] = shape
        if bias:
            shapes[f"{name}.bias"] = shape[:1]

    decodes = end == "decoder"
    add(0, (width, channels if decodes else 3, 3, 3))
    number = 2 if decodes else 1
    for stage, count in enumerate(found.blocks):
        if stage:
            add(number + 1 if decodes else number, inner, bias=False)
            number += 2 if decodes else 1
        for i in range(count):
            for place in (0, 2, 4):
                add(f"{number + i}.conv.{place}", inner)
        number += count
    add(number, (3 if decodes else channels, width, 3, 3))
    return shapes


def _compare(part: StoredEnd, found: Measured, channels: int) -> None:
    """Raise InputError naming a tensor that is missing, too many or of another shape."""
    expected = _expected(part.end, found, channels)
    about = f"a tiny {part.end} {found.width} wide, with {list(found.blocks)} blocks"
    for key, shape in expected.items():
        if key not in part.tensors:
            raise InputError(f"{part.file}: tensor '{part.stored(key)}' is missing: {about} has it")
        own = part.tensors[key].shape
        if own != shape:
            raise InputError(
                f"{part.file}: tensor '{part.stored(key)}' has shape {list(own)}; {about}, for "
                f"latents of {channels} channels, has {list(shape)}"
            )
    left = sorted(part.stored(key) for key in part.tensors.keys() - expected.keys())
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise InputError(f"{part.file}: tensor '{left[0]}'{more}: {about} has no such")


def _described(part: StoredEnd, found: Measured, channels: int) -> dict[str, float]:
    """Scale and shift, and a ``config.json`` compared with what the tensors say.

    TAESD's own files take and give latents as the loop has them.
    """
    config = {} if part.described_in is None else read_json(part.described_in)
    own = {
        "latent_channels": channels,
        f"{part.end}_block_out_channels": [found.width] * STAGES,
        f"num_{part.end}_blocks": list(found.blocks),
    }
    for key, value in {**FIXED, **own}.items():
        if config.get(key, value) != value:
            meant = "is supported" if key in FIXED else "is what the weights are"
            raise InputError(f"{part.described_in}: {key} = {config[key]!r}: {value!r} {meant}")
    return {key: _scale(part, config, key) for key in ("scaling_factor", "shift_factor")}


def _scale(part: StoredEnd, config: Mapping[str, Any], key: str) -> float:
    default, least = (1.0, 1e-6) if key == "scaling_factor" else (0.0, -1e6)
    value = config.get(key)
    if value is None:
        return default
    if type(value) not in (int, float) or not least <= value <= 1e6:
        raise InputError(f"{part.described_in}: {key} = {value!r}: a number is expected")
    return float(value)

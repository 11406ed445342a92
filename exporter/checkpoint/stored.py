"""What a weights file holds, by its own names: scales applied, what cannot be read refused."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from exporter.checkpoint.gguf import read_gguf
from exporter.checkpoint.sources import FLOATS, Kept, Scaled, Sliced
from exporter.checkpoint.weights import PICKLES
from exporter.errors import InputError, known
from exporter.files.read import parse_json
from exporter.files.tensors import read_header

# Names that only quantized files have, the first that matches, and what wrote them.
QUANTIZED = (
    ("*.quant_state.bitsandbytes__*", "4-bit weights of bitsandbytes (nf4 or fp4)"),
    ("*.absmax", "4-bit weights of bitsandbytes (nf4 or fp4)"),
    ("*.quant_map", "4-bit weights of bitsandbytes (nf4 or fp4)"),
    ("*.SCB", "8-bit integers of bitsandbytes"),
    ("*.wscales", "4-bit weights of Nunchaku (SVDQuant)"),
    ("*.qweight", "packed integers of GPTQ, AWQ or Nunchaku"),
    ("*.qzeros", "packed integers of GPTQ or AWQ"),
    ("*.weight._data", "integers of optimum-quanto"),
    ("*.weight_qdata", "integers of torchao"),
    ("*.weight_scale_2", "4-bit floats of ModelOpt or ComfyUI (nvfp4)"),
    ("*.pre_quant_scale", "smoothed weights of ModelOpt"),
    ("*.weight_scale_inv", "8-bit floats with a scale for each block"),
)
REMEDY = (
    "name the 16-bit checkpoint that it was made from, or load it with diffusers or transformers "
    "and save what dequantize() gives"
)
# ComfyUI's 8-bit floats: a weight's factor; that of the inputs of a layer, which changes no weight.
WEIGHT_SCALES = (".scale_weight", ".weight_scale")
INPUT_SCALES = (".scale_input", ".input_scale")
MARK, ABOUT = "scaled_fp8", ".comfy_quant"
COMFY_FORMATS = ("float8_e4m3fn", "float8_e5m2")
TABLES = ("position_ids",)  # whole numbers that no graph reads


def read_stored(files: Sequence[Path]) -> dict[str, Sliced]:
    """The tensors of one file, or of the shards of one set of weights.

    Reads headers only, and ComfyUI's notes on formats. Raises InputError for what is quantized in a
    way that is not read, and names the tensor.
    """
    found: dict[str, Sliced] = {}
    kept: dict[str, Kept] = {}
    for file in files:
        if file.suffix.lower() == ".gguf":
            found |= read_gguf(file)
        elif file.suffix.lower() in PICKLES:
            raise InputError(
                f"{file}: pickled weights can run code and are never opened; "
                "save the checkpoint again with safe_serialization=True"
            )
        else:
            header = read_header(file)
            twice = min(header.keys() & kept.keys(), default=None)
            if twice is not None:
                raise InputError(
                    f"{file}: tensor '{twice}' is also in {kept[twice].file.name}; the shards are "
                    "not of one set: copy them again"
                )
            kept |= {key: Kept(key, info) for key, info in header.items()}
    return found | _scaled(kept)


def _scaled(kept: Mapping[str, Kept]) -> dict[str, Sliced]:
    """The tensors of safetensors files with their scales applied."""
    left = dict(kept)
    for key in kept:
        if key.rpartition(".")[2] == MARK:
            del left[key]
        elif key.endswith(ABOUT):
            _check_format(left.pop(key))
    refuse_quantized(left)
    found: dict[str, Sliced] = {}
    for key in [key for key in left if key.endswith(INPUT_SCALES)]:
        _weight_of(left, key)
        del left[key]
    for key in [key for key in left if key.endswith(WEIGHT_SCALES)]:
        weight = _weight_of(left, key)
        found[weight] = _with_scale(left[weight], left.pop(key))
    return {**left, **found}


def _weight_of(tensors: Mapping[str, Kept], scale: str) -> str:
    weight = f"{scale.rpartition('.')[0]}.weight"
    if weight not in tensors:
        raise InputError(
            f"{tensors[scale].file}: tensor '{scale}' is the scale of '{weight}', which is missing"
        )
    return weight


def _with_scale(weight: Kept, scale: Kept) -> Scaled:
    rows = weight.shape[0] if weight.shape else 1
    if math.prod(scale.shape) not in (1, rows) or max((1, *scale.shape)) != math.prod(scale.shape):
        raise InputError(
            f"{scale.file}: tensor '{scale.key}' has shape {list(scale.shape)}; one factor, or one "
            f"for each of the {rows} rows of '{weight.key}', can be read"
        )
    return Scaled(weight, scale)


def _check_format(note: Kept) -> None:
    """ComfyUI's note on how a layer is stored: JSON as bytes; raises InputError."""
    where = f"{note.file}: tensor '{note.key}'"
    about = parse_json(bytes(note.read().tolist()).decode("utf-8", "replace"), where)
    form = about.get("format") if isinstance(about, dict) else None
    if form not in COMFY_FORMATS:
        layer = note.key.removesuffix(ABOUT)
        said = known("format", form, COMFY_FORMATS)
        raise InputError(f"{note.file}: tensor '{layer}.weight': {said}; {REMEDY}")


def refuse_quantized(tensors: Mapping[str, Kept]) -> None:
    """Raise InputError for weights that are stored as integers, and say what wrote them."""
    for pattern, what in QUANTIZED:
        for key, tensor in tensors.items():
            if fnmatchcase(key, pattern):
                raise InputError(f"{tensor.file}: tensor '{key}': {what} are not read; {REMEDY}")
    for key, tensor in tensors.items():
        if tensor.dtype not in FLOATS and not key.endswith(TABLES):
            raise InputError(
                f"{tensor.file}: tensor '{key}': {known('dtype', tensor.dtype, FLOATS)}; quantized "
                f"weights are not read: {REMEDY}"
            )

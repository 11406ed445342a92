"""The MMDiT as GGUF, for stable-diffusion.cpp and what else reads Stability's names from one.

A weight keeps its codes where a type of GGUF stands for the same numbers: int4 in groups of 32 or
more is Q4_0, whose blocks of 32 have a scale in fp16 and codes from -8 to 7. Our 8-bit codes have
a scale in float32 for an output channel, and Q8_0 one in fp16 for 32 values: no type has the same
numbers, so what few of them a scheme of 4 bits has become float32, without loss.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from exporter.calibrate.weights import Weights
from exporter.checkpoint.names import mmdit_names
from exporter.errors import CheckFailed, InputError
from exporter.network.denoiser import TransformerConfig
from exporter.program.program import Stored
from exporter.quantize.formats import Format
from exporter.quantize.nearest import HALF_NORMALS, Encoded, decode
from exporter.quantize.program import Part, QuantizedProgram, Unrounded

BLOCK = 32  # values of Q4_0 that share a scale
BLOCKS = "transformer_blocks."  # what nearly all weights' names begin with
MOST_WIDENED = 0.1  # of the values in them, that have no type of the same numbers
TABLE = "pos_embed.pos_embed"
PLAIN = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
TAKEN = "build int4 with symmetric groups of 32 and more, fp16 or fp32"


@dataclass(frozen=True)
class FileTensor:
    """A tensor as it is in a file.

    Attributes:
        name: that Stability gives it.
        kind: of GGUF (``Q4_0``).
        shape: of its values.
        sha256: of the values in float32.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    sha256: str


def refuse_narrow(config: TransformerConfig) -> None:
    """Raise InputError for a transformer of other widths than stable-diffusion.cpp has."""
    found = (config.width, config.head_width, config.context_width, config.pooled_width)
    if found != (64 * config.layers, 64, 4096, 2048):
        raise InputError(
            f"[build] layout = 'gguf': stable-diffusion.cpp has 64 channels for each layer, text "
            f"states of 4096 and 2048 channels, and this transformer has {config.width} channels "
            f"in {config.layers} layers, and {config.context_width} and {config.pooled_width}; "
            "leave the layout out"
        )


def refuse_formats(scheme: str, programs: Mapping[str, QuantizedProgram]) -> None:
    """Raise InputError for a scheme that GGUF has no types for.

    Args:
        programs: of the MMDiT, by graph.
    """
    sources = [source for program in programs.values() for source in program.tensors.values()]
    if any(isinstance(source, Unrounded) and source.rows > 1 for source in sources):
        raise InputError(
            "[calibration] methods: 'bias' gives adaLN a bias for each step, and [build] layout = "
            "'gguf' has a place for one; leave 'bias' out"
        )
    values, widened, example = 0, 0, None
    for program in programs.values():
        for name, stored in program.stored().items():
            count, form = int(np.prod(stored.shape)), program.formats[name]
            values += count if name.startswith(BLOCKS) else 0
            if name.startswith(BLOCKS) and form.storage.kind != "float" and not _fits(form):
                widened, example = widened + count, form
    if widened > MOST_WIDENED * values:
        raise InputError(
            f"{scheme}: in the blocks {widened:,} of {values:,} values are {example}, and GGUF has "
            f"no type of the same numbers; for [build] layout = 'gguf' {TAKEN}"
        )


def _fits(form: Format) -> bool:
    """Whether a format of integers is Q4_0, given scales that fp16 holds."""
    group = form.group_size or 0
    return form.name == "int4" and form.symmetric and group >= BLOCK and group % BLOCK == 0


def write_gguf(
    file: Path, programs: Mapping[str, QuantizedProgram], weights: Weights
) -> tuple[FileTensor, ...]:
    """Write the MMDiT, one tensor at a time; returns what is in the file.

    Args:
        programs: of the MMDiT, by graph.
    """
    from gguf import GGMLQuantizationType, GGUFWriter

    plan = list(_plan(programs, weights))
    writer = GGUFWriter(file, "sd3")
    writer.add_quantization_version(2)
    for name, pieces in plan:
        kind, shape = _kind(pieces), _shape(pieces)
        number = GGMLQuantizationType[kind]
        width = shape[-1] // BLOCK * 18 if kind == "Q4_0" else shape[-1]
        given = (*shape[:-1], width) if kind == "Q4_0" else shape
        dtype = _dtype(kind)
        size = int(np.prod(given)) * dtype.itemsize
        writer.add_tensor_info(name, given, dtype, size, number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    kept = []
    for name, pieces in plan:
        kind = _kind(pieces)
        parts = [piece.read(weights, kind) for piece in pieces]
        writer.write_tensor_data(np.concatenate([stored for stored, _ in parts]))
        digest = hashlib.sha256()
        for _, values in parts:
            digest.update(values.tobytes())
        kept.append(FileTensor(name, kind, _shape(pieces), digest.hexdigest()))
    writer.close()
    return tuple(kept)


@dataclass(frozen=True)
class _Piece:
    """Rows of a tensor: a tensor of diffusers.

    Attributes:
        source: of the checkpoint.
        value: what is read for it where it has no codes.
        parts: what is read for its codes, by name.
        form: that it has.
        kind: of GGUF, that it fits.
        turned: its halves stand in the other order.
    """

    source: Stored
    value: object
    parts: Mapping[str, Part]
    form: Format
    kind: str
    turned: bool

    def read(self, weights: Weights, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """What is stored, and the values in float32."""
        if self.source.name == TABLE:
            return _plain(weights.checkpoint.component(self.source.component).read(TABLE), kind)
        if not self.parts:
            return _plain(self._turn(weights.read(self.value)), kind)
        read = {name: self._turn(weights.read(part)) for name, part in self.parts.items()}
        encoded = Encoded(
            read["values"], read.get("scale"), read.get("zero_point"), read.get("palette")
        )
        if kind == "Q4_0":
            return q4_0(encoded), decode(encoded).numpy()
        return _plain(decode(encoded), kind)

    def _turn(self, value: Tensor) -> Tensor:
        if not self.turned:
            return value
        first, second = value.chunk(2)
        return torch.cat([second, first])


def _plan(
    programs: Mapping[str, QuantizedProgram], weights: Weights
) -> Iterator[tuple[str, Sequence[_Piece]]]:
    """Each tensor of the file, and what its rows are; raises InputError for one that is missing."""
    found: dict[str, _Piece] = {}
    for program in programs.values():
        for name, source in program.stored().items():
            found[name] = _piece(program, name, source, weights)
    component = weights.checkpoint.component(next(iter(found.values())).source.component)
    layers = {f"joint_blocks.{name.split('.')[1]}." for name in found if "_blocks." in name}
    names = mmdit_names(layers)
    for key, parts in names.table.items():
        if all(part in component.tensors for part in parts):
            pieces = [found[part] for part in parts if part in found]
            if len(pieces) != len(parts):
                raise InputError(f"{component.place}: tensor '{parts[0]}' is in no graph")
            if key in names.exchanged:
                pieces = [_Piece(**vars(piece) | {"turned": True}) for piece in pieces]
            yield key, pieces


def _piece(program: QuantizedProgram, name: str, source: Stored, weights: Weights) -> _Piece:
    form, parts, value = program.formats[name], dict[str, Part](), None
    for tensor in program.tensors.values():
        if isinstance(tensor, Part) and tensor.of == source:
            parts[tensor.part] = tensor
        elif tensor == source or (isinstance(tensor, Unrounded) and tensor.of == source):
            value = tensor
    kind = "F32"
    if name == TABLE:
        kind = PLAIN[weights.checkpoint.component(source.component).read(name, slice(0, 1)).dtype]
    elif form.name == "fp16" and len(source.shape) > 1:
        kind = "F16"
    elif _fits(form) and len(source.shape) == 2 and _in_half(weights.read(parts["scale"])):
        kind = "Q4_0"
    return _Piece(source, value, parts, form, kind, False)


def _in_half(scale: Tensor) -> bool:
    """Whether fp16 holds every scale as a normal number, or as 0."""
    sizes, (least, most) = scale[scale != 0].abs(), HALF_NORMALS
    exact = bool((scale.half().float() == scale).all())
    return exact and (not sizes.numel() or bool(sizes.min() >= least and sizes.max() <= most))


def _kind(pieces: Sequence[_Piece]) -> str:
    """Of rows of several kinds float32 alone has the same numbers."""
    kinds = {piece.kind for piece in pieces}
    return kinds.pop() if len(kinds) == 1 else "F32"


def _shape(pieces: Sequence[_Piece]) -> tuple[int, ...]:
    first = pieces[0].source
    if first.name == TABLE:
        assert first.derivation is not None
        return first.derivation.stored_shape(first.shape)
    return (sum(piece.source.shape[0] for piece in pieces), *first.shape[1:])


def _dtype(kind: str) -> np.dtype:
    of = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "Q4_0": np.uint8}
    return np.dtype(of[kind])


def _plain(value: Tensor, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Values as they are stored in a type of one value each."""
    values = value.float().contiguous().numpy()
    if kind == "BF16":
        return (values.view(np.uint32) >> 16).astype(np.uint16), values
    return values.astype(_dtype(kind)), values


def q4_0(encoded: Encoded) -> np.ndarray:
    """A weight (N, K) in groups as blocks of Q4_0: (N, K / 32 * 18) bytes.

    A block is its scale in fp16 and 16 bytes: value i in the low bits of byte i, value i + 16 in
    the high ones, 8 added to each.
    """
    assert encoded.scale is not None
    rows, columns = encoded.values.shape
    codes = (encoded.values.numpy().astype(np.int8) + 8).astype(np.uint8)
    blocks = codes.reshape(rows, columns // BLOCK, 2, BLOCK // 2)
    packed = blocks[:, :, 0] | blocks[:, :, 1] << 4
    group = columns // encoded.scale.shape[1]
    scale = np.repeat(encoded.scale.numpy().astype("<f2"), group // BLOCK, 1)
    stored = np.concatenate([scale[..., None].view(np.uint8), packed], 2)
    return stored.reshape(rows, -1)


def check_gguf(file: Path, kept: Sequence[FileTensor]) -> None:
    """Read a file back with the ``gguf`` library; raises CheckFailed for other numbers."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    tensors = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    if set(tensors) != {one.name for one in kept}:
        raise CheckFailed(f"{file}: has not the tensors that were written; build it again")
    for one in kept:
        found = tensors[one.name]
        shape = tuple(int(size) for size in reversed(found.shape))
        values = dequantize(found.data, found.tensor_type).astype(np.float32)
        digest = hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
        if (shape, found.tensor_type.name, digest) != (one.shape, one.kind, one.sha256):
            raise CheckFailed(
                f"{file}: tensor '{one.name}' is read back as other numbers; build it again"
            )

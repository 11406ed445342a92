"""Rounds a weight to the nearest values of its format, and back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from exporter.network.operators import dequantize, look_up
from exporter.quantize.formats import Format
from exporter.quantize.palettes import palettize

SLAB_VALUES = 1 << 19  # 2 MB of float32: what a core's cache holds
HALF_NORMALS = (2.0**-14, 65504.0)  # the smallest and the largest of fp16's normal numbers
ALMOST_HALF = 0.49999997  # the float32 before 0.5


@dataclass(frozen=True, eq=False)
class Encoded:
    """A weight (N, K, ...) in a format.

    Attributes:
        values: floats as they are stored, or int8 codes (symmetric), or uint8 codes (asymmetric and
            palettes); (N, K, ...).
        scale: (N, K / block) float32, of groups rounded to fp16's values unless one is outside
            them; or None for floats and palettes.
        zero_point: (N, K / block) uint8, or None.
        palette: (P, 2^bits) float32, or None.
        mean_change: (R, N) float32, what rounding adds to the layer's output on average, or None
            when its inputs are not known.
    """

    values: Tensor
    scale: Tensor | None = None
    zero_point: Tensor | None = None
    palette: Tensor | None = None
    mean_change: Tensor | None = None


def encode(weight: Tensor, form: Format) -> Encoded:
    """Round a weight (N, K, ...) to nearest in ``form``, in float32, slab by slab.

    int8: scale = max |w| / 127 over an output channel, code = w / scale rounded half to even
    (onnxruntime's per-channel symmetric quantizer). w8a8: instead of max |w| the largest sum of two
    neighbours of one sign along the input axis, the first and second, third and fourth and so on.
    So no two codes that a processor without 8-bit dot products multiplies by levels of 0 to 255 and
    adds in 16 bits add up to more than 128: 128 x 255 is within 16 bits, and nothing is clipped.
    int4, by groups: the extreme value w* of a group maps to -8, so scale = w* / -8 may be
    negative and all 16 codes are in use; asymmetric: scale = (max - min) / 15 with 0 inside the
    range. Codes round half away from zero (onnxruntime's block quantizers). int2 alike: w* maps
    to -2, the range has 3 steps. Before codes are computed the scales are rounded to fp16, in
    which they are stored; those of a weight with one outside fp16's normal numbers stay float32.
    w4a16: the smallest of the row's 15 multiples at which codes of -8 to 7 hold a group. Palettes:
    ``exporter.quantize.palettes``. fp32 is left as it is.

    Raises ValueError when a value is not finite, or too large for fp16.
    """
    if form.is_integer:
        return _encode_groups(weight, form) if form.is_grouped else _encode_channels(weight, form)
    refuse_infinite(*torch.aminmax(weight))
    if form.name == "fp32":
        return Encoded(weight.float())
    if form.name == "fp16":
        half = weight.to(torch.float16)
        if not torch.isfinite(half).all():
            raise ValueError("has a value beyond fp16's 65504")
        return Encoded(half)
    values, table = palettize(weight.float(), form.bits, form.group_size or len(weight))
    return Encoded(values, palette=table)


def refuse_infinite(*ends: Tensor) -> None:
    """Raise ValueError if one of the least or of the largest values of a weight is not finite."""
    if not all(end.isfinite().all() for end in ends):
        raise ValueError("has a value that is not finite")


def _slabs(weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows of a weight in float32, and which: they do not depend on each other, and so a table of
    130 M values needs little more than its codes. All slabs are the same memory, to be changed."""
    count = max(1, SLAB_VALUES * len(weight) // weight.numel())
    memory = torch.empty(min(count, len(weight)), *weight.shape[1:])
    for first in range(0, len(weight), count):
        part = weight[first : first + count]
        yield slice(first, first + len(part)), memory[: len(part)].copy_(part)


def _extremes(values: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest along the last axis (``torch.aminmax`` takes ten times as long).

    Raises ValueError when one is not finite.
    """
    low, high = values.amin(-1), values.amax(-1)
    refuse_infinite(low, high)
    return low, high


def _encode_channels(weight: Tensor, form: Format) -> Encoded:
    codes = torch.empty(weight.shape, dtype=torch.int8)
    scale = torch.empty(len(weight))
    for rows, slab in _slabs(weight):
        low, high = _extremes(_pairs(slab) if form.rounds_inputs else slab.flatten(1))
        largest = torch.maximum(high, -low)
        scale[rows] = torch.where(largest > 0, largest / 127, torch.ones_like(largest))
        spread = scale[rows].reshape(-1, *(1,) * (slab.ndim - 1))
        codes[rows] = slab.div_(spread).round_().clamp_(-127, 127)
    return Encoded(codes, scale[:, None])


def _pairs(rows: Tensor) -> Tensor:
    """Sums of what is above 0, and of what is below it, of two neighbours along axis 1, (N, ...).

    Where neighbours are not the same in all layouts, since K is odd: twice the values.
    """
    if rows.shape[1] % 2:
        return rows.flatten(1) * 2
    one, other = rows[:, ::2].flatten(1), rows[:, 1::2].flatten(1)
    above, below = (one.clamp(**e) + other.clamp(**e) for e in ({"min": 0}, {"max": 0}))
    return torch.cat([above, below], 1)


def _encode_groups(weight: Tensor, form: Format) -> Encoded:
    assert form.group_size is not None
    groups = weight.reshape(len(weight), -1, form.group_size)
    low, high = torch.empty(2, *groups.shape[:2])
    for rows, slab in _slabs(groups):
        low[rows], high[rows] = _extremes(slab)
    steps = 2**form.bits - 1
    if form.storage.multiples:
        least, half = -(2 ** (form.bits - 1)), 2 ** (form.bits - 1)
        scale = whole_multiples(torch.maximum(high / (half - 1), -low / half), form)
        zero_point = None
    elif form.symmetric:
        least, extreme = -(2 ** (form.bits - 1)), torch.where(high.abs() > low.abs(), high, low)
        scale = stored_scale(extreme / least, form)
        zero_point = None
    else:
        least, low, high = 0, low.clamp(max=0), high.clamp(min=0)
        scale = stored_scale((high - low) / steps, form)
        ratio = torch.where(scale > 0, -low / scale, torch.zeros_like(scale))
        zero_point = _round_half_away(ratio).clamp(0, steps)
    inverse = torch.where(scale != 0, 1 / scale, torch.zeros_like(scale))
    codes = torch.empty(groups.shape, dtype=torch.int8 if form.symmetric else torch.uint8)
    for rows, slab in _slabs(groups):
        rounded = _round_half_away(slab.mul_(inverse[rows, :, None]))
        if zero_point is not None:
            rounded.add_(zero_point[rows, :, None])
        codes[rows] = rounded.clamp_(least, least + steps)
    zeros = None if zero_point is None else zero_point.to(torch.uint8)
    return Encoded(codes.reshape(weight.shape), scale, zeros)


def stored_scale(scale: Tensor, form: Format) -> Tensor:
    """A weight's scales, float32, as they will be stored."""
    return scale.half().float() if in_half(scale, form) else scale


def whole_multiples(scale: Tensor, form: Format) -> Tensor:
    """Scales (N, G) above 0 as whole multiples of one for each row, the largest as the most.

    The row's is a bfloat16, so that its multiples are exact in float32 and give it away.
    """
    most = form.storage.multiples
    assert most is not None
    unit = row_unit(scale.amax(1, keepdim=True), most)
    count = torch.where(unit > 0, scale / unit, torch.zeros_like(scale)).ceil().clamp(1, most)
    return count * unit


def row_unit(largest: Tensor, most: int) -> Tensor:
    """What the largest scale of a row is ``most`` times."""
    return (largest / most).bfloat16().to(largest.dtype)


def in_half(scale: Tensor, form: Format) -> bool:
    """Whether a weight's scales are rounded to fp16: those of groups.

    Unless one of them is outside its normal numbers: many devices take smaller ones for 0.
    """
    if not form.is_grouped or form.storage.multiples:
        return False
    sizes, (least, most) = scale[scale != 0].abs(), HALF_NORMALS
    return not sizes.numel() or bool(sizes.min() >= least and sizes.max() <= most)


def _round_half_away(x: Tensor) -> Tensor:
    """Nearest integer, ties away from zero (C's roundf), of float32 below 2^22.

    Adding 0.5 itself would carry the float32 before 0.5 up to 1.
    """
    return x.abs().add_(ALMOST_HALF).floor_().copysign_(x)


def decode(encoded: Encoded) -> Tensor:
    """The weight that is stored, float32."""
    weight = encoded.values.float()
    if encoded.palette is not None:
        weight = look_up(encoded.values, encoded.palette)
    if encoded.scale is not None:
        block = encoded.values.shape[1] // encoded.scale.shape[1]
        weight = dequantize(encoded.values, encoded.scale, encoded.zero_point, block)
    return weight

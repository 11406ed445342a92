"""What the evaluator knows of each MIL operator: its inputs, the type of its result, its formula.

An operator's inputs are of two sorts. *Tensors* are computed with; *parameters* (axes, strides,
modes) are decoded once, when a program is opened. The formulas follow Apple's documentation of the
iOS16, iOS17 and iOS18 operator sets. A parameter that coremltools always writes must be there: on
a device nothing fills it in.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

TORCH = {
    "bool": torch.bool,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp64": torch.float64,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint8": torch.uint8,
    "uint16": torch.uint16,
    "uint32": torch.uint32,
    "uint64": torch.uint64,
    "int4": torch.int8,
    "uint1": torch.uint8,
    "uint2": torch.uint8,
    "uint3": torch.uint8,
    "uint4": torch.uint8,
    "uint6": torch.uint8,
}
FLOATS = ("fp16", "fp32")
INTEGERS = ("int32", "int16", "uint16", "int8", "uint8")

Compute = Callable[..., Any]  # tensors -> one tensor, or a sequence of them
Rule = Callable[[Sequence[str], "Parameters"], str]


@dataclass(frozen=True)
class Parameters:
    """The parameters of one operator in a program.

    Attributes:
        values: the value of each parameter that is given and known.
        kinds: the element type of each parameter that is given.
    """

    values: Mapping[str, Tensor | str]
    kinds: Mapping[str, str]

    def given(self, name: str) -> bool:
        """Whether the program has this optional parameter."""
        return name in self.kinds

    def _value(self, name: str) -> Tensor | str:
        if name not in self.values:
            raise ValueError(f"its '{name}' is not a constant")
        return self.values[name]

    def tensor(self, name: str) -> Tensor:
        """A parameter as a tensor."""
        value = self._value(name)
        if isinstance(value, str):
            raise ValueError(f"its '{name}' is a string")
        return value

    def ints(self, name: str) -> list[int]:
        """A vector of integers or flags."""
        found: list[int] = self.tensor(name).reshape(-1).tolist()
        return found

    def number(self, name: str) -> Any:
        """A single number or flag."""
        value = self.tensor(name)
        if value.numel() != 1:
            raise ValueError(f"its '{name}' is not a single value")
        return value.item()

    def text(self, name: str, choices: Iterable[str] = ()) -> str:
        """A string; raises ValueError when there are choices and it is none of them."""
        value = self._value(name)
        if not isinstance(value, str):
            raise ValueError(f"its '{name}' is not a string")
        if choices and value not in choices:
            raise ValueError(f"its '{name}' is '{value}'")
        return value


@dataclass(frozen=True)
class Operator:
    """One row of the table.

    Attributes:
        tensors: names of the tensors, in the order in which the formula takes them; ``name?`` may
            be absent, ``name*`` is a list.
        parameters: names of the parameters; ``name?`` may be absent.
        result: element type of the result from those of the tensors; raises ValueError when the
            operator does not take them.
        bind: parameters -> formula.
        computes: whether values are computed, in float32, rather than moved or looked up.
    """

    tensors: str
    parameters: str
    result: Rule
    bind: Callable[[Parameters], Compute]
    computes: bool = True


# Types of results.


def _same(kinds: Sequence[str], _: Parameters) -> str:
    if len(set(kinds)) != 1:
        raise ValueError(f"it mixes {' and '.join(sorted(set(kinds)))}")
    return kinds[0]


def _number(kinds: Sequence[str], p: Parameters) -> str:
    if kinds[0] not in (*FLOATS, *INTEGERS):
        raise ValueError(f"it does not take {kinds[0]}")
    return _same(kinds, p)


def _float(kinds: Sequence[str], p: Parameters) -> str:
    if kinds[0] not in FLOATS:
        raise ValueError(f"it does not take {kinds[0]}")
    return _same(kinds, p)


def _float_first(kinds: Sequence[str], p: Parameters) -> str:
    """The type of the first tensor; the others (weights) may be of the other float type."""
    for kind in kinds:
        _float([kind], p)
    return kinds[0]


def _comparison(kinds: Sequence[str], p: Parameters) -> str:
    _same(kinds, p)
    return "bool"


def _truth(kinds: Sequence[str], p: Parameters) -> str:
    if set(kinds) != {"bool"}:
        raise ValueError("it takes bool only")
    return "bool"


def _selected(kinds: Sequence[str], p: Parameters) -> str:
    _truth(kinds[:1], p)
    return _same(kinds[1:], p)


def _gathered(kinds: Sequence[str], _: Parameters) -> str:
    if kinds[1] not in INTEGERS:
        raise ValueError(f"its indices are {kinds[1]}")
    return kinds[0]


def _attended(kinds: Sequence[str], p: Parameters) -> str:
    if len(kinds) == 4 and kinds[3] not in ("bool", *FLOATS):
        raise ValueError(f"its mask is {kinds[3]}")
    return _float(kinds[:3], p)


def _named(parameter: str, default: str = "") -> Rule:
    """The type that a parameter spells out."""

    def rule(_: Sequence[str], p: Parameters) -> str:
        kind = p.text(parameter) if p.given(parameter) else default
        if kind not in TORCH:
            raise ValueError(f"its '{parameter}' is '{kind}'")
        return kind

    return rule


def _as_parameter(parameter: str) -> Rule:
    return lambda _, p: p.kinds[parameter]


def _as_tensor(position: int) -> Rule:
    return lambda kinds, _: kinds[position]


def _always(kind: str) -> Rule:
    return lambda *_: kind


# Elementwise.


def _just(compute: Compute) -> Callable[[Parameters], Compute]:
    return lambda _: compute


def _elementwise(tensors: str, compute: Compute, result: Rule = _float) -> Operator:
    return Operator(tensors, "", result, _just(compute))


def _log(p: Parameters) -> Compute:
    epsilon = p.number("epsilon")
    return lambda x: torch.log(x + epsilon)


def _rsqrt(p: Parameters) -> Compute:
    epsilon = p.number("epsilon")
    return lambda x: torch.rsqrt(x + epsilon)


def _clip(p: Parameters) -> Compute:
    low, high = p.number("alpha"), p.number("beta")
    return lambda x: x.clamp(low, high)


def _gelu(p: Parameters) -> Compute:
    modes: dict[str, Compute] = {
        "EXACT": F.gelu,
        "TANH_APPROXIMATION": lambda x: F.gelu(x, approximate="tanh"),
        "SIGMOID_APPROXIMATION": lambda x: x * torch.sigmoid(1.702 * x),
    }
    return modes[p.text("mode", modes)]


def _softmax(p: Parameters) -> Compute:
    axis = p.number("axis")
    return lambda x: torch.softmax(x, axis)


# Normalizations and reductions.


def _layer_norm(p: Parameters) -> Compute:
    axes = p.ints("axes")
    epsilon = p.number("epsilon")

    def compute(x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None) -> Tensor:
        own = {a % x.ndim for a in axes}
        shape = [n if i in own else 1 for i, n in enumerate(x.shape)]
        return _normalize(x, sorted(own), epsilon, shape, gamma, beta)

    return compute


def _instance_norm(p: Parameters) -> Compute:
    epsilon = p.number("epsilon")

    def compute(x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None) -> Tensor:
        shape = [-1, *(1,) * (x.ndim - 2)]
        return _normalize(x, list(range(2, x.ndim)), epsilon, shape, gamma, beta)

    return compute


def _normalize(
    x: Tensor,
    axes: list[int],
    epsilon: float,
    shape: list[int],
    gamma: Tensor | None,
    beta: Tensor | None,
) -> Tensor:
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    return _scale_shift((x - mean) * torch.rsqrt(variance + epsilon), shape, gamma, beta)


def _scale_shift(x: Tensor, shape: list[int], gamma: Tensor | None, beta: Tensor | None) -> Tensor:
    if gamma is not None:
        x = x * gamma.reshape(shape)
    return x if beta is None else x + beta.reshape(shape)


def _batch_norm(p: Parameters) -> Compute:
    epsilon = p.number("epsilon")

    def compute(
        x: Tensor,
        mean: Tensor,
        variance: Tensor,
        gamma: Tensor | None = None,
        beta: Tensor | None = None,
    ) -> Tensor:
        shape = [-1, *(1,) * (x.ndim - 2)]
        unit = (x - mean.reshape(shape)) * torch.rsqrt(variance.reshape(shape) + epsilon)
        return _scale_shift(unit, shape, gamma, beta)

    return compute


def _reduction(reduce: Compute, result: Rule = _number) -> Operator:
    def bind(p: Parameters) -> Compute:
        axes = p.ints("axes") if p.given("axes") else None
        keep = p.number("keep_dims")

        def compute(x: Tensor) -> Any:
            return reduce(x, list(range(x.ndim)) if axes is None else axes, keepdim=keep)

        return compute

    return Operator("x", "axes? keep_dims", result, bind)


def _argmax(p: Parameters) -> Compute:
    axis, keep = p.number("axis"), p.number("keep_dims")
    return lambda x: torch.argmax(x, axis, keepdim=keep)


# Products.


def _matmul(p: Parameters) -> Compute:
    flip_x, flip_y = p.number("transpose_x"), p.number("transpose_y")

    def compute(x: Tensor, y: Tensor) -> Tensor:
        x = x.transpose(-1, -2) if flip_x else x
        return torch.matmul(x, y.transpose(-1, -2) if flip_y else y)

    return compute


def _einsum(p: Parameters) -> Compute:
    equation = p.text("equation")
    return lambda *values: torch.einsum(equation, *values)


def _conv(p: Parameters) -> Compute:
    strides, dilations, groups = p.ints("strides"), p.ints("dilations"), p.number("groups")
    pad_type = p.text("pad_type", ("valid", "custom", "same", "same_lower"))
    pad = p.ints("pad")
    if len(strides) not in (1, 2, 3) or len(pad) != 2 * len(strides):
        raise ValueError(f"it has {len(strides)} strides and {len(pad)} pads")
    convolve = (F.conv1d, F.conv2d, F.conv3d)[len(strides) - 1]

    def compute(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        pads = [0] * len(pad)
        if pad_type == "custom":
            pads = pad
        elif pad_type != "valid":
            spans = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
            pads = _same_pads(x.shape[2:], spans, strides, pad_type == "same_lower")
        before, after = pads[::2], pads[1::2]
        if before != after:
            x, before = _pad_constant(x, pads, 0.0), [0] * len(before)
        return convolve(x, weight, bias, strides, before, dilations, groups)

    return compute


def _same_pads(
    sizes: Sequence[int], spans: Sequence[int], strides: Sequence[int], lower: bool
) -> list[int]:
    """Pads (before, after) per axis that make ceil(size / stride) positions."""
    pads = []
    for size, span, stride in zip(sizes, spans, strides, strict=True):
        total = max((math.ceil(size / stride) - 1) * stride + span - size, 0)
        less, more = total // 2, total - total // 2
        pads += [more, less] if lower else [less, more]
    return pads


def _attention(p: Parameters) -> Compute:
    def compute(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    return compute


# Shapes.


def _reshape(p: Parameters) -> Compute:
    wanted = p.ints("shape")

    def compute(x: Tensor) -> Tensor:
        if 0 in wanted and len(wanted) != x.ndim:
            raise ValueError(f"0 in {wanted} needs an input with {len(wanted)} axes")
        return x.reshape([n or x.shape[i] for i, n in enumerate(wanted)])

    return compute


def _expand_dims(p: Parameters) -> Compute:
    axes = p.ints("axes")

    def compute(x: Tensor) -> Tensor:
        rank = x.ndim + len(axes)
        for axis in sorted(a % rank for a in axes):
            x = x.unsqueeze(axis)
        return x

    return compute


def _squeeze(p: Parameters) -> Compute:
    if not p.given("axes"):
        return torch.squeeze
    axes = p.ints("axes")
    return lambda x: x.squeeze(axes)


def _transpose(p: Parameters) -> Compute:
    order = p.ints("perm")
    return lambda x: x.permute(order)


def _concat(p: Parameters) -> Compute:
    axis = p.number("axis")
    if not p.number("interleave"):
        return lambda *values: torch.cat(values, axis)

    def compute(*values: Tensor) -> Tensor:
        place = axis % values[0].ndim
        return torch.stack(values, place + 1).flatten(place, place + 1)

    return compute


def _stack(p: Parameters) -> Compute:
    axis = p.number("axis")
    return lambda *values: torch.stack(values, axis)


def _split(p: Parameters) -> Compute:
    axis = p.number("axis")
    if p.given("split_sizes"):
        sizes = p.ints("split_sizes")
        return lambda x: x.split(sizes, axis)
    parts = p.number("num_splits")
    return lambda x: x.split(x.shape[axis] // parts, axis)


def _slice_by_index(p: Parameters) -> Compute:
    begin, end = p.ints("begin"), p.ints("end")

    def vector(name: str, default: int) -> list[int]:
        return p.ints(name) if p.given(name) else [default] * len(begin)

    stride, squeeze = vector("stride", 1), vector("squeeze_mask", 0)
    from_start, to_end = vector("begin_mask", 0), vector("end_mask", 0)

    def compute(x: Tensor) -> Tensor:
        cuts, flips = [], []
        for i, size in enumerate(x.shape):
            first = None if from_start[i] else begin[i]
            if squeeze[i]:
                start = range(size)[first or 0]
                taken = range(start, start + 1)
            else:
                taken = range(size)[slice(first, None if to_end[i] else end[i], stride[i])]
            if taken.step < 0:
                flips.append(i)
                taken = taken[::-1]
            cuts.append(slice(taken.start, max(taken.stop, taken.start), taken.step))
        x = x[tuple(cuts)]
        x = x.flip(flips) if flips else x
        return x.squeeze([i for i, drop in enumerate(squeeze) if drop])

    return compute


def _slice_by_size(p: Parameters) -> Compute:
    begin, size = p.ints("begin"), p.ints("size")

    def compute(x: Tensor) -> Tensor:
        for axis, (start, count) in enumerate(zip(begin, size, strict=True)):
            x = x.narrow(axis, start, x.shape[axis] - start if count == -1 else count)
        return x

    return compute


def _pad(p: Parameters) -> Compute:
    """``pad`` holds (before, after) for each of the last axes, first of them first."""
    pads = p.ints("pad")
    if p.text("mode", ("constant", "reflect", "replicate")) == "constant":
        value = p.number("constant_val")
        return lambda x: _pad_constant(x, pads, value)
    reflect = p.text("mode") == "reflect"

    def compute(x: Tensor) -> Tensor:
        for axis, (before, after) in enumerate(_pairs(pads), -len(pads) // 2):
            last = x.shape[axis] - 1
            index = torch.arange(-before, last + after + 1)
            index = last - (last - index.abs()).abs() if reflect else index.clamp(0, last)
            x = x.index_select(axis, index)
        return x

    return compute


def _pad_constant(x: Tensor, pads: Sequence[int], value: float) -> Tensor:
    """torch wants the last axis first."""
    return F.pad(x, [n for pair in reversed(_pairs(pads)) for n in pair], value=value)


def _pairs(pads: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(pads[::2], pads[1::2], strict=True))


def _tile(p: Parameters) -> Compute:
    times = p.ints("reps")
    return lambda x: x.repeat(times)


def _pixel_shuffle(p: Parameters) -> Compute:
    factor = p.ints("upscale_factor")[0]
    return lambda x: F.pixel_shuffle(x, factor)


def _fill(p: Parameters) -> Compute:
    shape, value = p.ints("shape"), p.number("value")
    return lambda: torch.full(shape, value)


def _range(p: Parameters) -> Compute:
    start, end, step = (p.number(name) for name in ("start", "end", "step"))
    return lambda: torch.arange(start, end, step)


# Lookups.


def _wrapped(indices: Tensor, size: int) -> Tensor:
    """Indices as int64, negative ones counted from the end; raises IndexError outside."""
    indices = indices.long()
    if indices.numel() and not (-size <= int(indices.min()) and int(indices.max()) < size):
        raise IndexError(f"an index is outside of {size} entries")
    return torch.where(indices < 0, indices + size, indices)


def _gather(p: Parameters) -> Compute:
    given = p.number("axis")
    batch = p.number("batch_dims") if p.given("batch_dims") else 0

    def compute(x: Tensor, indices: Tensor) -> Tensor:
        axis = given % x.ndim
        shape = [*x.shape[:axis], *indices.shape[batch:], *x.shape[axis + 1 :]]
        index = _wrapped(indices, x.shape[axis])
        if not batch:
            return x.index_select(axis, index.reshape(-1)).reshape(shape)
        rows = math.prod(x.shape[:batch])
        x = x.reshape(rows, math.prod(x.shape[batch:axis]), x.shape[axis], -1)
        index = index.reshape(rows, 1, -1, 1)
        return x.gather(2, index.expand(-1, x.shape[1], -1, x.shape[3])).reshape(shape)

    return compute


def _gather_nd(p: Parameters) -> Compute:
    batch = p.number("batch_dims") if p.given("batch_dims") else 0

    def compute(x: Tensor, indices: Tensor) -> Tensor:
        depth = indices.shape[-1]
        shape = [*indices.shape[:-1], *x.shape[batch + depth :]]
        rows, sizes = math.prod(x.shape[:batch]), x.shape[batch : batch + depth]
        flat = torch.arange(rows).reshape(rows, 1)
        for axis, size in enumerate(sizes):
            flat = flat * size + _wrapped(indices[..., axis], size).reshape(rows, -1)
        table = x.reshape(rows * math.prod(sizes), -1)
        return table.index_select(0, flat.reshape(-1)).reshape(shape)

    return compute


def _gather_along_axis(p: Parameters) -> Compute:
    axis = p.number("axis")
    return lambda x, indices: x.gather(axis, _wrapped(indices, x.shape[axis]))


# Compressed constants.


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Unsigned values of ``bits`` bits each from bytes, lowest bits first.

    Args:
        packed: (ceil(count * bits / 8),) uint8.

    Returns:
        (count,) uint8.
    """
    bytes_, values = bits // math.gcd(bits, 8), 8 // math.gcd(bits, 8)
    packed = F.pad(packed, (0, -len(packed) % bytes_)).reshape(-1, bytes_)
    word = torch.zeros(len(packed), dtype=torch.int32)
    for i in range(bytes_):
        word |= packed[:, i].to(torch.int32) << (8 * i)
    parts = [((word >> (bits * i)) & ((1 << bits) - 1)).to(torch.uint8) for i in range(values)]
    return torch.stack(parts, 1).reshape(-1)[:count]


def _affine_dequantize(p: Parameters) -> Compute:
    axis = p.number("axis")

    def compute(data: Tensor, zero_point: Tensor, scale: Tensor) -> Tensor:
        shape = [1] * data.ndim
        shape[axis] = -1
        return _shift_scale(data, zero_point.reshape(shape), scale.reshape(shape))

    return compute


def _blockwise_shift_scale(p: Parameters) -> Compute:
    def compute(data: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
        blocks = _blocks(data.shape, scale.shape)
        inside = [n for pair in zip(scale.shape, blocks, strict=True) for n in pair]
        spread = [n for size in scale.shape for n in (size, 1)]
        if offset is not None:
            offset = offset.reshape(spread)
        values = _shift_scale(data.reshape(inside), offset, scale.reshape(spread))
        return values.reshape(data.shape)

    return compute


def _blocks(shape: Sequence[int], counts: Sequence[int]) -> list[int]:
    if len(shape) != len(counts) or any(n % c for n, c in zip(shape, counts, strict=True)):
        raise ValueError(f"{tuple(counts)} blocks do not divide {tuple(shape)}")
    return [n // c for n, c in zip(shape, counts, strict=True)]


def _shift_scale(data: Tensor, offset: Tensor | None, scale: Tensor) -> Tensor:
    """(data - offset) * scale in one float32 buffer: a weight may be a gigabyte."""
    values = data.to(torch.float32, copy=True)
    if offset is not None:
        values -= offset.float()
    return values.mul_(scale.float())


def _lut_to_dense(p: Parameters) -> Compute:
    if p.given("shape"):
        shape = p.ints("shape")

        def packed(indices: Tensor, lut: Tensor) -> Tensor:
            bits = len(lut).bit_length() - 1
            return lut[unpack(indices, bits, math.prod(shape)).int()].reshape(shape)

        return packed
    axis = p.number("vector_axis") if p.given("vector_axis") else -1

    def compute(indices: Tensor, lut: Tensor) -> Tensor:
        tables, size = lut.shape[:-2], lut.shape[-1]
        blocks = _blocks(indices.shape, tables)
        dense = torch.empty(*indices.shape, size, dtype=lut.dtype)
        for place in itertools.product(*(range(n) for n in tables)):
            block = tuple(slice(i * b, (i + 1) * b) for i, b in zip(place, blocks, strict=True))
            dense[block] = lut[place][indices[block].int()]
        at = axis % indices.ndim
        return dense.movedim(-1, at + 1).flatten(at, at + 1)

    return compute


def _sparse_to_dense(p: Parameters) -> Compute:
    shape = p.ints("shape") if p.given("shape") else None

    def compute(nonzero: Tensor, mask: Tensor) -> Tensor:
        if shape is not None:
            mask = unpack(mask, 1, math.prod(shape)).reshape(shape)
        dense = torch.zeros(mask.shape, dtype=nonzero.dtype)
        dense[mask.bool()] = nonzero
        return dense

    return compute


def _arithmetic(compute: Compute, result: Rule = _number) -> Operator:
    return _elementwise("x y", compute, result)


def _moving(tensors: str, parameters: str, bind: Callable[[Parameters], Compute]) -> Operator:
    return Operator(tensors, parameters, _same, bind, computes=False)


def _looking_up(parameters: str, bind: Callable[[Parameters], Compute]) -> Operator:
    return Operator("x indices", parameters, _gathered, bind, computes=False)


# A const has no formula; the evaluator reads it.
TABLE: dict[str, Operator] = {
    "identity": _moving("x", "", _just(lambda x: x)),
    "cast": Operator("x", "dtype", _named("dtype"), _just(lambda x: x), computes=False),
    "add": _arithmetic(operator.add),
    "sub": _arithmetic(operator.sub),
    "mul": _arithmetic(operator.mul),
    "real_div": _arithmetic(operator.truediv, _float),
    "floor_div": _arithmetic(torch.floor_divide),
    "pow": _arithmetic(torch.pow),
    "maximum": _arithmetic(torch.maximum),
    "minimum": _arithmetic(torch.minimum),
    "abs": _elementwise("x", torch.abs, _number),
    "exp": _elementwise("x", torch.exp),
    "exp2": _elementwise("x", torch.exp2),
    "log": Operator("x", "epsilon", _float, _log),
    "sqrt": _elementwise("x", torch.sqrt),
    "rsqrt": Operator("x", "epsilon", _float, _rsqrt),
    "square": _elementwise("x", torch.square, _number),
    "sin": _elementwise("x", torch.sin),
    "cos": _elementwise("x", torch.cos),
    "tanh": _elementwise("x", torch.tanh),
    "erf": _elementwise("x", torch.erf),
    "sigmoid": _elementwise("x", torch.sigmoid),
    "silu": _elementwise("x", F.silu),
    "relu": _elementwise("x", F.relu),
    "gelu": Operator("x", "mode", _float, _gelu),
    "clip": Operator("x", "alpha beta", _float, _clip),
    "softmax": Operator("x", "axis", _float, _softmax),
    "layer_norm": Operator("x gamma? beta?", "axes epsilon", _float_first, _layer_norm),
    "instance_norm": Operator("x gamma? beta?", "epsilon", _float_first, _instance_norm),
    "batch_norm": Operator("x mean variance gamma? beta?", "epsilon", _float_first, _batch_norm),
    "reduce_mean": _reduction(torch.mean, _float),
    "reduce_sum": _reduction(torch.sum),
    "reduce_max": _reduction(torch.amax),
    "reduce_min": _reduction(torch.amin),
    "reduce_argmax": Operator(
        "x", "axis keep_dims output_dtype?", _named("output_dtype", "int32"), _argmax
    ),
    "linear": _elementwise("x weight bias?", F.linear, _float_first),
    "matmul": Operator("x y", "transpose_x transpose_y", _number, _matmul),
    "einsum": Operator("values*", "equation", _float, _einsum),
    "conv": Operator(
        "x weight bias?", "strides pad_type pad dilations groups", _float_first, _conv
    ),
    "scaled_dot_product_attention": Operator(
        "query key value attn_mask?", "", _attended, _attention
    ),
    "pixel_shuffle": _moving("x", "upscale_factor", _pixel_shuffle),
    "reshape": _moving("x", "shape", _reshape),
    "expand_dims": _moving("x", "axes", _expand_dims),
    "squeeze": _moving("x", "axes?", _squeeze),
    "transpose": _moving("x", "perm", _transpose),
    "concat": _moving("values*", "axis interleave", _concat),
    "stack": _moving("values*", "axis", _stack),
    "split": _moving("x", "num_splits? split_sizes? axis", _split),
    "slice_by_index": _moving(
        "x", "begin end stride? begin_mask? end_mask? squeeze_mask?", _slice_by_index
    ),
    "slice_by_size": _moving("x", "begin size", _slice_by_size),
    "pad": _moving("x", "pad mode constant_val", _pad),
    "tile": _moving("x", "reps", _tile),
    "gather": _looking_up("axis batch_dims? validate_indices?", _gather),
    "gather_nd": _looking_up("batch_dims? validate_indices?", _gather_nd),
    "gather_along_axis": _looking_up("axis validate_indices?", _gather_along_axis),
    "equal": _arithmetic(operator.eq, _comparison),
    "not_equal": _arithmetic(operator.ne, _comparison),
    "greater": _arithmetic(operator.gt, _comparison),
    "greater_equal": _arithmetic(operator.ge, _comparison),
    "less": _arithmetic(operator.lt, _comparison),
    "less_equal": _arithmetic(operator.le, _comparison),
    "logical_and": _arithmetic(operator.and_, _truth),
    "logical_or": _arithmetic(operator.or_, _truth),
    "logical_not": _elementwise("x", operator.invert, _truth),
    "select": Operator("cond a b", "", _selected, _just(torch.where), computes=False),
    "fill": Operator("", "shape value", _as_parameter("value"), _fill, computes=False),
    "range_1d": Operator("", "start end step", _as_parameter("start"), _range, computes=False),
    "shape": Operator(
        "x", "", _always("int32"), _just(lambda x: torch.tensor(x.shape)), computes=False
    ),
    "constexpr_affine_dequantize": Operator(
        "quantized_data zero_point scale", "axis", _as_tensor(2), _affine_dequantize
    ),
    "constexpr_blockwise_shift_scale": Operator(
        "data scale offset?", "", _as_tensor(1), _blockwise_shift_scale
    ),
    "constexpr_lut_to_dense": Operator(
        "indices lut", "shape? vector_axis?", _as_tensor(1), _lut_to_dense, computes=False
    ),
    "constexpr_sparse_to_dense": Operator(
        "nonzero_data mask", "shape?", _as_tensor(0), _sparse_to_dense, computes=False
    ),
    "constexpr_cast": Operator(
        "source_val", "output_dtype", _named("output_dtype"), _just(lambda x: x), computes=False
    ),
}

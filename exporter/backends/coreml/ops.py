"""The translation table: one function per operator of a program."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx

from exporter.network import operators as _registers_operators  # noqa: F401
from exporter.program import aten
from exporter.program.program import Constant

if TYPE_CHECKING:
    from exporter.backends.coreml.emitter import Emitter

ATEN = torch.ops.aten
OURS = torch.ops.fourstep
Translate = Callable[["Emitter", fx.Node], "str | list[str] | None"]
MASKED = -4e4  # of an additive mask: inside fp16's range, and its exponential is 0


def _type(e: Emitter, node: fx.Node) -> str:
    dtype = node.meta["val"].dtype
    return {torch.int32: "int32", torch.int64: "int32", torch.bool: "bool"}.get(dtype, e.kind)


def _binary(kind: str) -> Translate:
    def translate(e: Emitter, n: fx.Node) -> str:
        given = {"x": e.value(n.args[0]), "y": e.value(n.args[1])}
        return e.add(kind, given, aten.shape(n), _type(e, n), n.name)

    return translate


def _unary(kind: str) -> Translate:
    def translate(e: Emitter, n: fx.Node) -> str:
        return e.add(kind, {"x": e.value(n.args[0])}, aten.shape(n), _type(e, n), n.name)

    return translate


def _reshape(e: Emitter, n: fx.Node) -> str:
    given = {"x": e.value(n.args[0]), "shape": e.ints(aten.shape(n))}
    return e.add("reshape", given, aten.shape(n), _type(e, n), n.name)


def _permute(e: Emitter, n: fx.Node) -> str:
    given = {"x": e.value(n.args[0]), "perm": e.ints(aten.argument(n, 1))}
    return e.add("transpose", given, aten.shape(n), _type(e, n), n.name)


def _cat(e: Emitter, n: fx.Node) -> str:
    parts: Any = n.args[0]
    given = {
        "values": [e.value(p) for p in parts],
        "axis": e.ints(aten.argument(n, 1, 0)),
        "interleave": e.flag(False),
    }
    return e.add("concat", given, aten.shape(n), _type(e, n), n.name)


def _cut_out(e: Emitter, n: fx.Node, axis: int, start: int, end: int, squeeze: bool) -> str:
    source = aten.shape(n.args[0])
    begins, ends = [0] * len(source), list(source)
    begins[axis], ends[axis] = start, end
    given = {"x": e.value(n.args[0]), "begin": e.ints(begins), "end": e.ints(ends)}
    if squeeze:
        mask = np.arange(len(source)) == axis % len(source)
        given["squeeze_mask"] = e.const(mask, "bool")
    return e.add("slice_by_index", given, aten.shape(n), _type(e, n), n.name)


def _slice(e: Emitter, n: fx.Node) -> str:
    axis, start, end = (aten.argument(n, i) for i in (1, 2, 3))
    return _cut_out(e, n, axis, start, end, squeeze=False)


def _select(e: Emitter, n: fx.Node) -> str:
    axis, index = aten.argument(n, 1), aten.argument(n, 2)
    index %= aten.shape(n.args[0])[axis]
    return _cut_out(e, n, axis, index, index + 1, squeeze=True)


def _split(e: Emitter, n: fx.Node) -> list[str]:
    axis, sizes = aten.split_sizes(n)
    given = {
        "x": e.value(n.args[0]),
        "split_sizes": e.ints(sizes),
        "axis": e.ints(axis),
    }
    outputs = [(f"{n.name}_{i}", tuple(part.shape)) for i, part in enumerate(n.meta["val"])]
    return e.add_many("split", given, outputs, e.kind)


def _getitem(e: Emitter, n: fx.Node) -> str:
    source, index = n.args
    assert isinstance(source, fx.Node) and isinstance(index, int)
    return e.parts(source)[index]


def _pad(e: Emitter, n: fx.Node) -> str:
    around = [amount for pair in zip(*aten.padding(n), strict=True) for amount in pair]
    edges = aten.repeats_edges(n)
    given = {
        "x": e.value(n.args[0]),
        "pad": e.ints(around[-4:] if edges else around),  # no other axes than the last two
        "mode": e.text("replicate" if edges else "constant"),
        "constant_val": e.value(0.0),
    }
    return e.add("pad", given, aten.shape(n), _type(e, n), n.name)


def _gather(e: Emitter, x: str, indices: str, axis: int, n: fx.Node, kind: str) -> str:
    given = {
        "x": x,
        "indices": indices,
        "axis": e.ints(axis),
        "batch_dims": e.ints(0),
        "validate_indices": e.flag(False),
    }
    return e.add("gather", given, aten.shape(n), kind, n.name)


def _index_select(e: Emitter, n: fx.Node) -> str:
    x, axis, indices = n.args
    assert isinstance(axis, int)
    return _gather(e, e.value(x), e.value(indices), axis, n, e.kind)


def _embedding(e: Emitter, n: fx.Node) -> str:
    table, ids = n.args[:2]
    assert isinstance(table, fx.Node)
    rows, kind = e.weight(table)
    return _gather(e, rows, e.value(ids), 0, n, kind)


def _argmax(e: Emitter, n: fx.Node) -> str:
    given = {
        "x": e.value(n.args[0]),
        "axis": e.ints(aten.argument(n, 1)),
        "keep_dims": e.flag(False),
        "output_dtype": e.text("int32"),
    }
    return e.add("reduce_argmax", given, aten.shape(n), "int32", n.name)


def _equal(e: Emitter, n: fx.Node) -> str:
    given = {"x": e.value(n.args[0]), "y": e.ints(aten.argument(n, 1))}
    return e.add("equal", given, aten.shape(n), "bool", n.name)


def _cast(e: Emitter, n: fx.Node) -> str | None:
    source = n.args[0]
    if e.is_tensor(source):
        return None  # a stored weight: written where it is used
    kind = _type(e, n)
    # Ids that come as floats are whole numbers beyond what fp16 holds.
    is_id = kind == "int32" and isinstance(source, fx.Node) and source.op == "placeholder"
    given = {"x": e.value(source, "fp32" if is_id else None), "dtype": e.text(kind)}
    return e.add("cast", given, aten.shape(n), kind, n.name)


def _gelu(e: Emitter, n: fx.Node) -> str:
    tanh = n.kwargs.get("approximate") == "tanh"
    given = {
        "x": e.value(n.args[0]),
        "mode": e.text("TANH_APPROXIMATION" if tanh else "EXACT"),
    }
    return e.add("gelu", given, aten.shape(n), e.kind, n.name)


def _layer_norm(e: Emitter, n: fx.Node) -> str:
    """Core ML wants a constant weight and bias; adaLN's are vectors of the modulation row."""
    weight, bias, eps = (aten.argument(n, i) for i in (2, 3, 4))
    shape = aten.shape(n)
    given = {
        "x": e.value(n.args[0]),
        "axes": e.ints([len(shape) - 1]),
        "epsilon": e.value(float(eps)),
    }
    if e.is_tensor(weight) and e.is_tensor(bias):
        given |= {"gamma": e.value(weight), "beta": e.value(bias)}
        return e.add("layer_norm", given, shape, e.kind, n.name)
    x = e.add("layer_norm", given, shape, e.kind, f"{n.name}_unit")
    x = e.add("mul", {"x": x, "y": e.value(weight)}, shape, e.kind, f"{n.name}_scaled")
    return e.add("add", {"x": x, "y": e.value(bias)}, shape, e.kind, n.name)


def _rms_norm(e: Emitter, n: fx.Node) -> str:
    """In float32: the square of anything beyond 256 is more than fp16 holds."""
    x, shape = e.value(n.args[0], "fp32"), aten.shape(n)
    last = e.ints([len(shape) - 1])
    square = e.add("square", {"x": x}, shape, "fp32", f"{n.name}_square")
    given = {"x": square, "axes": last, "keep_dims": e.flag(True)}
    mean = e.add("reduce_mean", given, (*shape[:-1], 1), "fp32", f"{n.name}_mean")
    given = {"x": mean, "epsilon": e.value(float(aten.argument(n, 3)), "fp32")}
    root = e.add("rsqrt", given, (*shape[:-1], 1), "fp32", f"{n.name}_root")
    unit = e.add("mul", {"x": x, "y": root}, shape, "fp32", f"{n.name}_unit")
    weight = e.value(n.args[2], "fp32")
    return e.add("mul", {"x": unit, "y": weight}, shape, "fp32", n.name)


def _group_norm(e: Emitter, n: fx.Node) -> str:
    x, groups, weight, bias = n.args[:4]
    assert isinstance(groups, int)
    shape, kind = aten.shape(n), e.kind
    flat, one = (1, groups, int(np.prod(shape)) // groups), (1, groups, 1)
    given = {"x": e.value(x), "shape": e.ints(flat)}
    y = e.add("reshape", given, flat, kind, f"{n.name}_groups")
    along = {"axes": e.ints([2]), "keep_dims": e.flag(True)}
    mean = e.add("reduce_mean", {"x": y, **along}, one, kind, f"{n.name}_mean")
    y = e.add("sub", {"x": y, "y": mean}, flat, kind, f"{n.name}_centred")
    square = e.add("square", {"x": y}, flat, kind, f"{n.name}_square")
    variance = e.add("reduce_mean", {"x": square, **along}, one, kind, f"{n.name}_variance")
    given = {"x": variance, "epsilon": e.value(float(aten.argument(n, 4, 1e-5)))}
    root = e.add("rsqrt", given, one, kind, f"{n.name}_root")
    y = e.add("mul", {"x": y, "y": root}, flat, kind, f"{n.name}_unit")
    y = e.add("reshape", {"x": y, "shape": e.ints(shape)}, shape, kind, f"{n.name}_back")
    y = e.add("mul", {"x": y, "y": _channels(e, weight, shape)}, shape, kind, f"{n.name}_scaled")
    return e.add("add", {"x": y, "y": _channels(e, bias, shape)}, shape, kind, n.name)


def _mean(e: Emitter, n: fx.Node) -> str:
    keep, axes = e.flag(aten.argument(n, 2, False)), e.ints(aten.argument(n, 1))
    given = {"x": e.value(n.args[0]), "axes": axes, "keep_dims": keep}
    return e.add("reduce_mean", given, aten.shape(n), e.kind, n.name)


def _rsqrt(e: Emitter, n: fx.Node) -> str:
    given = {"x": e.value(n.args[0]), "epsilon": e.value(0.0)}
    return e.add("rsqrt", given, aten.shape(n), e.kind, n.name)


def _channels(e: Emitter, vector: Any, shape: tuple[int, ...]) -> str:
    """A vector (C,) as (1, C, 1, 1), to broadcast over a feature map."""
    value = e.array(vector).reshape(1, -1, *(1,) * (len(shape) - 2))
    return e.const(value, e.kind, key=("channels", vector.name))


def _linear(e: Emitter, n: fx.Node) -> str:
    weight, bias = n.args[1], aten.argument(n, 2)
    assert isinstance(weight, fx.Node)
    name, kind = e.weight(weight)
    zeros = np.zeros(aten.shape(n)[-1], dtype=np.float32)  # Apple's converter always writes a bias
    given = {
        "x": e.value(n.args[0], kind),
        "weight": name,
        "bias": e.const(zeros, kind) if bias is None else e.value(bias, kind),
    }
    return e.add("linear", given, aten.shape(n), kind, n.name)


def _conv2d(e: Emitter, n: fx.Node) -> str:
    weight = n.args[1]
    bias, strides, (height, width) = aten.convolution(n)
    assert isinstance(weight, fx.Node)
    name, kind = e.weight(weight)
    given = {
        "x": e.value(n.args[0], kind),
        "weight": name,
        "strides": e.ints(strides),
        "pad_type": e.text("custom"),
        "pad": e.ints([height, height, width, width]),
        "dilations": e.ints([1, 1]),
        "groups": e.ints(1),
    }
    if bias is not None:
        given["bias"] = e.value(bias, kind)
    return e.add("conv", given, aten.shape(n), kind, n.name)


def _pixel_shuffle(e: Emitter, n: fx.Node) -> str:
    given = {"x": e.value(n.args[0]), "upscale_factor": e.ints(aten.argument(n, 1))}
    return e.add("pixel_shuffle", given, aten.shape(n), e.kind, n.name)


def _heads(e: Emitter, x: Any, heads: int, scale: float | None, name: str) -> tuple[str, int, int]:
    """(1, tokens, heads * e) -> (1, heads, tokens, e), times a factor."""
    batch, tokens, width = aten.shape(x)
    split, apart = (batch, tokens, heads, width // heads), (batch, heads, tokens, width // heads)
    given = {"x": e.value(x), "shape": e.ints(split)}
    y = e.add("reshape", given, split, e.kind, f"{name}_split")
    y = e.add("transpose", {"x": y, "perm": e.ints([0, 2, 1, 3])}, apart, e.kind, f"{name}_heads")
    if scale is not None and scale != 1:
        y = e.add("mul", {"x": y, "y": e.value(scale)}, apart, e.kind, f"{name}_by_scale")
    return y, tokens, width // heads


def _attention(e: Emitter, n: fx.Node) -> str:
    """iOS 18: one operator, whose own factor is 1 / sqrt(e). iOS 17: products around a softmax.

    The factor goes to q before the product, so that logits stay small in fp16.
    """
    heads, scale, bias = aten.argument(n, 3), float(aten.argument(n, 4)), aten.argument(n, 5)
    width = aten.shape(n.args[0])[2] // heads
    own = scale * width**0.5 if e.modern else scale
    own = 1.0 if abs(own - 1) < 1e-9 else own
    q, queries, _ = _heads(e, n.args[0], heads, own, f"{n.name}_q")
    k, keys, _ = _heads(e, n.args[1], heads, None, f"{n.name}_k")
    v, _, out = _heads(e, n.args[2], heads, None, f"{n.name}_v")
    mixed_shape = (1, heads, queries, out)
    mask = None if bias is None else _mask(e, bias)
    if e.modern:
        given = {"query": q, "key": k, "value": v} | ({} if mask is None else {"attn_mask": mask})
        kind = "scaled_dot_product_attention"
        mixed = e.add(kind, given, mixed_shape, e.kind, f"{n.name}_mixed")
    else:
        square = (1, heads, queries, keys)
        no, yes = e.flag(False), e.flag(True)
        given = {"x": q, "y": k, "transpose_x": no, "transpose_y": yes}
        logits = e.add("matmul", given, square, e.kind, f"{n.name}_logits")
        if mask is not None:
            given = {"x": logits, "y": mask}
            logits = e.add("add", given, square, e.kind, f"{n.name}_masked")
        given = {"x": e.cast(logits, "fp32"), "axis": e.ints(-1)}
        shares = e.add("softmax", given, square, "fp32", f"{n.name}_shares")
        given = {"x": e.cast(shares, e.kind), "y": v, "transpose_x": no, "transpose_y": no}
        mixed = e.add("matmul", given, mixed_shape, e.kind, f"{n.name}_mixed")
    together = (1, queries, heads, out)
    given = {"x": mixed, "perm": e.ints([0, 2, 1, 3])}
    mixed = e.add("transpose", given, together, e.kind, f"{n.name}_together")
    given = {"x": mixed, "shape": e.ints(aten.shape(n))}
    return e.add("reshape", given, aten.shape(n), e.kind, n.name)


def _mask(e: Emitter, bias: fx.Node) -> str:
    source = e.program.tensors.get(bias.name)
    if not isinstance(source, Constant):
        return e.value(bias)
    return e.const(np.maximum(source.value, MASKED), e.kind, key=("mask", bias.name))


def _later(e: Emitter, n: fx.Node) -> None:
    """A stored weight: written where it is used."""


TABLE: dict[Any, Translate] = {
    ATEN.add.Tensor: _binary("add"),
    ATEN.sub.Tensor: _binary("sub"),
    ATEN.mul.Tensor: _binary("mul"),
    ATEN.div.Tensor: _binary("real_div"),
    ATEN.relu.default: _unary("relu"),
    ATEN.sigmoid.default: _unary("sigmoid"),
    ATEN.silu.default: _unary("silu"),
    ATEN.tanh.default: _unary("tanh"),
    ATEN.gelu.default: _gelu,
    ATEN.layer_norm.default: _layer_norm,
    ATEN.rms_norm.default: _rms_norm,
    ATEN.group_norm.default: _group_norm,
    ATEN.mean.dim: _mean,
    ATEN.rsqrt.default: _rsqrt,
    ATEN.sqrt.default: _unary("sqrt"),
    ATEN.linear.default: _linear,
    ATEN.conv2d.default: _conv2d,
    ATEN.embedding.default: _embedding,
    ATEN.pixel_shuffle.default: _pixel_shuffle,
    ATEN.reshape.default: _reshape,
    ATEN.permute.default: _permute,
    ATEN.cat.default: _cat,
    ATEN.slice.Tensor: _slice,
    ATEN.split.Tensor: _split,
    operator.getitem: _getitem,
    ATEN.pad.default: _pad,
    ATEN.select.int: _select,
    ATEN.index_select.default: _index_select,
    ATEN.argmax.default: _argmax,
    ATEN.eq.Scalar: _equal,
    ATEN.to.dtype: _cast,
    OURS.attention.default: _attention,
    OURS.dequantize.default: _later,
    OURS.look_up.default: _later,
}

"""The translation table: one function per operator of a program."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from openvino import opset15 as op
from torch import fx

from exporter.backends.openvino.emitter import ints
from exporter.network import operators as _registers_operators  # noqa: F401
from exporter.program import aten

if TYPE_CHECKING:
    from exporter.backends.openvino.emitter import Emitter

ATEN = torch.ops.aten
OURS = torch.ops.fourstep
Translate = Callable[["Emitter", fx.Node], Any]


def _binary(make: Callable[[Any, Any], Any]) -> Translate:
    return lambda e, n: make(e.value(n.args[0]), e.value(n.args[1]))


def _reshape(e: Emitter, n: fx.Node) -> Any:
    return op.reshape(e.value(n.args[0]), ints(aten.shape(n)), False)


def _cat(e: Emitter, n: fx.Node) -> Any:
    parts: Any = n.args[0]
    return op.concat([e.value(p) for p in parts], aten.argument(n, 1, 0))


def _slice(e: Emitter, n: fx.Node) -> Any:
    source, axis, start, end = n.args
    bounds = (ints([start]), ints([end]), ints([1]), ints([axis]))
    return op.slice(e.value(source), *bounds)


def _split(e: Emitter, n: fx.Node) -> Any:
    axis, sizes = aten.split_sizes(n)
    return op.variadic_split(e.value(n.args[0]), ints(axis), ints(sizes)).outputs()


def _pad(e: Emitter, n: fx.Node) -> Any:
    before, after = aten.padding(n)
    if aten.repeats_edges(n):
        return op.pad(e.value(n.args[0]), ints(before), ints(after), "edge")
    zero = op.constant(np.float32(0))
    return op.pad(e.value(n.args[0]), ints(before), ints(after), "constant", zero)


def _argmax(e: Emitter, n: fx.Node) -> Any:
    """The first of equal maxima, as torch's: a stable sort by value."""
    axis = aten.argument(n, 1)
    top = op.topk(e.value(n.args[0]), ints(1), axis, "max", "value", "i32", True)
    return op.squeeze(top.output(1), ints([axis]))


def _group_norm(e: Emitter, n: fx.Node) -> Any:
    x, groups, weight, bias = n.args[:4]
    eps = float(aten.argument(n, 4, 1e-5))
    return op.group_normalization(e.value(x), e.value(weight), e.value(bias), groups, eps)


def _mean(e: Emitter, n: fx.Node) -> Any:
    return op.reduce_mean(e.value(n.args[0]), ints(n.args[1]), aten.argument(n, 2, False))


def _layer_norm(e: Emitter, n: fx.Node) -> Any:
    weight, bias, eps = (aten.argument(n, i) for i in (2, 3, 4))
    normed = op.mvn(e.value(n.args[0]), ints([-1]), True, float(eps), "inside_sqrt")
    return op.add(op.multiply(normed, e.value(weight)), e.value(bias))


def _rms_norm(e: Emitter, n: fx.Node) -> Any:
    x, weight, eps = e.value(n.args[0]), e.value(n.args[2]), float(aten.argument(n, 3))
    mean = op.reduce_mean(op.power(x, op.constant(np.float32(2))), ints([-1]), True)
    root = op.sqrt(op.add(mean, op.constant(np.float32(eps))))
    return op.multiply(op.divide(x, root), weight)


def _linear(e: Emitter, n: fx.Node) -> Any:
    return e.linear(n)


def _conv2d(e: Emitter, n: fx.Node) -> Any:
    bias, strides, padding = aten.convolution(n)
    x, weight = e.convolved(n)
    value = op.convolution(x, weight, strides, padding, padding, [1, 1])
    if bias is None:
        return value
    return op.add(value, op.reshape(e.value(bias), ints([1, -1, 1, 1]), False))


def _embedding(e: Emitter, n: fx.Node) -> Any:
    """Rows of a table; of a table of codes, only the rows that are looked up are dequantized."""
    table: Any = n.args[0]
    ids = e.value(n.args[1])
    if table.target is not OURS.dequantize.default:
        return op.gather(e.value(table), ids, ints(0))
    codes, scale = (e.value(a) for a in table.args[:2])
    row = op.convert(op.gather(codes, ids, ints(0)), "f32")
    return op.multiply(row, op.gather(scale, ids, ints(0)))


def _attention(e: Emitter, n: fx.Node) -> Any:
    q, k, v, heads = n.args[:4]
    bias = aten.argument(n, 5)
    parts = []
    for part in (q, k, v):
        batch, tokens, width = aten.shape(part)
        split = op.reshape(e.value(part), ints([batch, tokens, heads, width // heads]), False)  # type: ignore[operator]
        parts.append(op.transpose(split, ints([0, 2, 1, 3])))
    factor = op.constant(np.float32(aten.argument(n, 4)))
    mask = op.constant(np.float32(0)) if bias is None else e.value(bias)
    mixed = op.scaled_dot_product_attention(*parts, mask, factor, causal=False)
    return op.reshape(op.transpose(mixed, ints([0, 2, 1, 3])), ints(aten.shape(n)), False)


def _pixel_shuffle(e: Emitter, n: fx.Node) -> Any:
    return op.depth_to_space(e.value(n.args[0]), "depth_first", aten.argument(n, 1))


def _gelu(e: Emitter, n: fx.Node) -> Any:
    mode = "tanh" if n.kwargs.get("approximate") == "tanh" else "erf"
    return op.gelu(e.value(n.args[0]), mode)


def _cast(e: Emitter, n: fx.Node) -> Any:
    source: Any = n.args[0]
    if source.op == "placeholder":
        return None  # a stored weight: written where it is used
    return op.convert(
        e.value(source), {torch.int32: "i32", torch.float32: "f32"}[n.meta["val"].dtype]
    )


TABLE: dict[Any, Translate] = {
    ATEN.add.Tensor: _binary(op.add),
    ATEN.sub.Tensor: _binary(op.subtract),
    ATEN.mul.Tensor: _binary(op.multiply),
    ATEN.div.Tensor: _binary(op.divide),
    ATEN.relu.default: lambda e, n: op.relu(e.value(n.args[0])),
    ATEN.sigmoid.default: lambda e, n: op.sigmoid(e.value(n.args[0])),
    ATEN.silu.default: lambda e, n: op.swish(e.value(n.args[0])),
    ATEN.tanh.default: lambda e, n: op.tanh(e.value(n.args[0])),
    ATEN.gelu.default: _gelu,
    ATEN.layer_norm.default: _layer_norm,
    ATEN.rms_norm.default: _rms_norm,
    ATEN.group_norm.default: _group_norm,
    ATEN.mean.dim: _mean,
    ATEN.rsqrt.default: lambda e, n: op.divide(
        op.constant(np.float32(1)), op.sqrt(e.value(n.args[0]))
    ),
    ATEN.sqrt.default: lambda e, n: op.sqrt(e.value(n.args[0])),
    ATEN.linear.default: _linear,
    ATEN.conv2d.default: _conv2d,
    ATEN.embedding.default: _embedding,
    ATEN.pixel_shuffle.default: _pixel_shuffle,
    ATEN.reshape.default: _reshape,
    ATEN.permute.default: lambda e, n: op.transpose(e.value(n.args[0]), ints(n.args[1])),
    ATEN.cat.default: _cat,
    ATEN.slice.Tensor: _slice,
    ATEN.split.Tensor: _split,
    operator.getitem: lambda e, n: e.value(n.args[0])[n.args[1]],
    ATEN.pad.default: _pad,
    ATEN.select.int: lambda e, n: op.gather(e.value(n.args[0]), ints(n.args[2]), ints(n.args[1])),
    ATEN.index_select.default: lambda e, n: op.gather(
        e.value(n.args[0]), e.value(n.args[2]), ints(n.args[1])
    ),
    ATEN.argmax.default: _argmax,
    ATEN.eq.Scalar: lambda e, n: op.equal(
        e.value(n.args[0]),
        op.constant(np.int32(n.args[1])),  # type: ignore[arg-type]
    ),
    ATEN.to.dtype: _cast,
    OURS.attention.default: _attention,
    OURS.dequantize.default: lambda e, n: None,
    OURS.round_input.default: lambda e, n: e.round_input(n),
}

"""The translation table: one function per operator of a program.

Forms were chosen by measuring memory and time on onnxruntime's CPU provider
(``benchmarks/onnx_forms.py``):
- attention: ``com.microsoft:MultiHeadAttention`` runs in tiles; Attention-23 and a decomposed
  softmax hold the whole score matrix;
- GroupNorm: reshape, InstanceNormalization, scale and shift; GroupNormalization has no kernel and
  is inlined into 29 nodes;
- RMSNorm: the Pow, ReduceMean, Sqrt, Div, Mul form, which onnxruntime fuses into one node;
- for the web: Split and Concat of at most 7 (WebGPU), attention in runs of queries (wasm);
- a linear layer: MatMul with a (K, N) weight and Add, never Gemm, which keeps 2-, 4- and 8-bit
  weights out of their kernels;
- scales of groups: fp16 behind a Cast, which onnxruntime folds when it loads the graph, so that
  the weight still becomes a MatMulNBits; a Cast behind DequantizeLinear keeps it from that.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from onnx import TensorProto
from torch import fx

from exporter.backends.onnx import rounded
from exporter.backends.onnx.emitter import is_weight, weight
from exporter.program import aten
from exporter.quantize.rounded import rounded_layer

if TYPE_CHECKING:
    from exporter.backends.onnx.emitter import Emitter

ATEN = torch.ops.aten
OURS = torch.ops.fourstep
WASM_SIZES = 1 << 31
LONGEST_RUN = 256  # of queries: as fast as all at once, and the same numbers
Translate = Callable[["Emitter", fx.Node], None]


def _binary(kind: str) -> Translate:
    def translate(e: Emitter, node: fx.Node) -> None:
        e.add(kind, [e.value(node.args[0]), e.value(node.args[1])], e.name(node))

    return translate


def _unary(kind: str) -> Translate:
    def translate(e: Emitter, node: fx.Node) -> None:
        e.add(kind, [e.value(node.args[0])], e.name(node))

    return translate


def _reshape(e: Emitter, node: fx.Node) -> None:
    e.add("Reshape", [e.value(node.args[0]), e.ints(aten.shape(node))], e.name(node))


def _permute(e: Emitter, node: fx.Node) -> None:
    e.add("Transpose", [e.value(node.args[0])], e.name(node), perm=node.args[1])


def _cat(e: Emitter, node: fx.Node) -> None:
    parts: Any = node.args[0]
    axis = aten.argument(node, 1, 0)
    e.join([e.value(p) for p in parts], e.name(node), axis)


def _slice(e: Emitter, node: fx.Node) -> None:
    source, axis, start, end = node.args
    names = [e.ints([bound]) for bound in (start, end, axis)]  # type: ignore[list-item]
    e.add("Slice", [e.value(source), *names], e.name(node))


def _split(e: Emitter, node: fx.Node) -> None:
    axis, sizes = aten.split_sizes(node)
    names = [f"{node.name}_{i}" for i in range(len(sizes))]
    e.split(e.value(node.args[0]), sizes, names, axis)


def _getitem(e: Emitter, node: fx.Node) -> None:
    source, index = node.args
    assert isinstance(source, fx.Node) and isinstance(index, int)
    e.rename(node, f"{source.name}_{index}")


def _pad(e: Emitter, node: fx.Node) -> None:
    before, after = aten.padding(node)
    mode = {"mode": "edge"} if aten.repeats_edges(node) else {}
    e.add("Pad", [e.value(node.args[0]), e.ints(before + after)], e.name(node), **mode)


def _select(e: Emitter, node: fx.Node) -> None:
    index = e.tensor(f"index_{node.args[2]}", torch.tensor(node.args[2], dtype=torch.int64))
    e.add("Gather", [e.value(node.args[0]), index], e.name(node), axis=node.args[1])


def _index_select(e: Emitter, node: fx.Node) -> None:
    e.add("Gather", [e.value(node.args[0]), e.value(node.args[2])], e.name(node), axis=node.args[1])


def _argmax(e: Emitter, node: fx.Node) -> None:
    e.add("ArgMax", [e.value(node.args[0])], e.name(node), axis=node.args[1], keepdims=0)


def _equal(e: Emitter, node: fx.Node) -> None:
    number = node.args[1]
    assert isinstance(number, int)
    other = e.tensor(f"id_{number}", torch.tensor(number, dtype=torch.int32))
    e.add("Equal", [e.value(node.args[0]), other], e.name(node))


def _cast(e: Emitter, node: fx.Node) -> None:
    if is_weight(node):
        return _later(e, node)
    kinds = {torch.int32: TensorProto.INT32, torch.float32: TensorProto.FLOAT}
    e.add("Cast", [e.value(node.args[0])], e.name(node), to=kinds[node.meta["val"].dtype])


def _silu(e: Emitter, node: fx.Node) -> None:
    x = e.value(node.args[0])
    gate = e.add("Sigmoid", [x], f"{node.name}_gate")
    e.add("Mul", [x, gate], e.name(node))


def _gelu(e: Emitter, node: fx.Node) -> None:
    approximate = node.kwargs.get("approximate", "none")
    e.add("Gelu", [e.value(node.args[0])], e.name(node), approximate=approximate)


def _layer_norm(e: Emitter, node: fx.Node) -> None:
    weight, bias, eps = (aten.argument(node, i) for i in (2, 3, 4))
    inputs = [e.value(a) for a in (node.args[0], weight, bias)]
    e.add("LayerNormalization", inputs, e.name(node), axis=-1, epsilon=float(eps))


def _rms_norm(e: Emitter, node: fx.Node) -> None:
    x, weight, eps = e.value(node.args[0]), e.value(node.args[2]), float(aten.argument(node, 3))
    square = e.add("Pow", [x, e.scalar(2.0)], f"{node.name}_square")
    mean = e.add("ReduceMean", [square, e.ints([-1])], f"{node.name}_mean", keepdims=1)
    shifted = e.add("Add", [mean, e.scalar(eps)], f"{node.name}_shifted")
    root = e.add("Sqrt", [shifted], f"{node.name}_root")
    unit = e.add("Div", [x, root], f"{node.name}_unit")
    e.add("Mul", [unit, weight], e.name(node))


def _group_norm(e: Emitter, node: fx.Node) -> None:
    groups, shape = node.args[1], aten.shape(node)
    assert isinstance(groups, int)
    ones = e.tensor(f"ones_{groups}", torch.ones(groups))
    zeros = e.tensor(f"zeros_{groups}", torch.zeros(groups))
    flat = e.add("Reshape", [e.value(node.args[0]), e.ints([1, groups, -1])], f"{node.name}_groups")
    normed = e.add(
        "InstanceNormalization",
        [flat, ones, zeros],
        f"{node.name}_normed",
        epsilon=float(aten.argument(node, 4, 1e-5)),
    )
    back = e.add("Reshape", [normed, e.ints(shape)], f"{node.name}_back")
    weight, bias = (_per_channel(e, node.args[i], len(shape)) for i in (2, 3))
    scaled = e.add("Mul", [back, weight], f"{node.name}_scaled")
    e.add("Add", [scaled, bias], e.name(node))


def _per_channel(e: Emitter, vector: object, rank: int) -> str:
    """A vector (C,) stored as (C, 1, ...), to broadcast over a feature map."""
    assert isinstance(vector, fx.Node)
    value = e.read(e.program.tensors[vector.name])
    return e.tensor(f"{vector.name}_channels", value.reshape(-1, *(1,) * (rank - 2)))


def _mean(e: Emitter, node: fx.Node) -> None:
    axes, keep = e.ints(aten.argument(node, 1)), int(aten.argument(node, 2, False))
    e.add("ReduceMean", [e.value(node.args[0]), axes], e.name(node), keepdims=keep)


def _rsqrt(e: Emitter, node: fx.Node) -> None:
    root = e.add("Sqrt", [e.value(node.args[0])], f"{node.name}_root")
    e.add("Reciprocal", [root], e.name(node))


def _attention(e: Emitter, node: fx.Node) -> None:
    q, k, v, heads, scale = node.args[:5]
    bias = aten.argument(node, 5)
    query, rest = e.value(q), [e.value(k), e.value(v)]
    over = "" if bias is None else e.value(bias)

    def attended(queries: str, added: str, output: str) -> str:
        inputs = [queries, *rest, *(("", "", added) if added else ())]
        kind = "com.microsoft:MultiHeadAttention"
        return e.add(kind, inputs, output, num_heads=heads, scale=float(scale))  # type: ignore[arg-type]

    (_, queries, width), keys = aten.shape(q), aten.shape(k)[1]
    assert isinstance(heads, int)
    most = run_of_queries(width // heads, queries, keys)
    if not e.for_web or most == queries:
        attended(query, over, e.name(node))
        return
    sizes = [min(most, queries - start) for start in range(0, queries, most)]
    runs = [f"{node.name}_queries_{i}" for i in range(len(sizes))]
    e.split(query, sizes, runs, 1)
    biases = [over] * len(runs)
    if bias is not None and aten.shape(bias)[2] > 1:
        biases = [f"{node.name}_bias_{i}" for i in range(len(sizes))]
        e.split(over, sizes, biases, 2)
    parts = [
        attended(run, added, f"{run}_attended") for run, added in zip(runs, biases, strict=True)
    ]
    e.join(parts, e.name(node), 1)


def run_of_queries(head_width: int, queries: int, keys: int) -> int:
    """How many queries wasm attends with at a time: its sizes are of 32 bits, and overflow."""
    if 2 * head_width * queries * keys < WASM_SIZES:
        return queries
    run = LONGEST_RUN
    while run > 1 and 2 * head_width * run * keys >= WASM_SIZES:
        run //= 2
    return run


def _pixel_shuffle(e: Emitter, node: fx.Node) -> None:
    factor = aten.argument(node, 1)
    e.add("DepthToSpace", [e.value(node.args[0])], e.name(node), blocksize=factor, mode="CRD")


def _conv2d(e: Emitter, node: fx.Node) -> None:
    rounding = rounded_layer(e.program, node)
    if rounding is not None:
        return rounded.conv2d(e, node, rounding)
    bias, strides, padding = aten.convolution(node)
    inputs = [e.value(node.args[0]), weight(e, node.args[1])]
    if bias is not None:
        inputs.append(e.value(bias))
    kernel = aten.shape(node.args[1])[2:]
    e.add(
        "Conv",
        inputs,
        e.name(node),
        kernel_shape=kernel,
        strides=strides,
        pads=[*padding, *padding],
    )


def _linear(e: Emitter, node: fx.Node) -> None:
    rounding = rounded_layer(e.program, node)
    if rounding is not None:
        return rounded.linear(e, node, rounding)
    bias = aten.argument(node, 2)
    inputs = [e.value(node.args[0]), weight(e, node.args[1], transpose=True)]
    if bias is None:
        e.add("MatMul", inputs, e.name(node))
        return
    product = e.add("MatMul", inputs, f"{node.name}_product")
    e.add("Add", [product, e.value(bias)], e.name(node))


def _embedding(e: Emitter, node: fx.Node) -> None:
    """Rows of a table; of a table of codes, only the rows that are looked up are dequantized."""
    table, ids = node.args[0], e.value(node.args[1])
    assert isinstance(table, fx.Node)
    if table.target is not OURS.dequantize.default:
        e.add("Gather", [weight(e, table), ids], e.name(node), axis=0)
        return
    codes, scale = (e.value(a) for a in table.args[:2])
    row = e.add("Gather", [codes, ids], f"{node.name}_codes", axis=0)
    row = e.add("Cast", [row], f"{node.name}_values", to=TensorProto.FLOAT)
    factor = e.add("Gather", [scale, ids], f"{node.name}_scale", axis=0)
    e.add("Mul", [row, factor], e.name(node))


def _later(e: Emitter, node: fx.Node) -> None:
    """A weight is written where it is used, in the layout that its user wants."""


TABLE: dict[Any, Translate] = {
    ATEN.add.Tensor: _binary("Add"),
    ATEN.sub.Tensor: _binary("Sub"),
    ATEN.mul.Tensor: _binary("Mul"),
    ATEN.div.Tensor: _binary("Div"),
    ATEN.relu.default: _unary("Relu"),
    ATEN.sigmoid.default: _unary("Sigmoid"),
    ATEN.tanh.default: _unary("Tanh"),
    ATEN.sqrt.default: _unary("Sqrt"),
    ATEN.silu.default: _silu,
    ATEN.gelu.default: _gelu,
    ATEN.layer_norm.default: _layer_norm,
    ATEN.rms_norm.default: _rms_norm,
    ATEN.group_norm.default: _group_norm,
    ATEN.mean.dim: _mean,
    ATEN.rsqrt.default: _rsqrt,
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
    OURS.round_input.default: rounded.round_input,
}

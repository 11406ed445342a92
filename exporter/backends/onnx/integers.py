"""Graphs that round every value to 16 bits: QuantizeLinear and DequantizeLinear around each node.

The form that Qualcomm's NPU takes whole (``target = "qnn"``, ``docs/npu.md``), found by compiling:
- what goes into an operator comes from a DequantizeLinear, what comes out goes into a
  QuantizeLinear, also where values only move: an operator without them is a float island, or falls
  back to the CPU;
- a linear layer is Reshape, Gemm, Reshape with a bias in 32 bits; one of blocks is a MatMul, whose
  block scales are themselves codes, times a scale of each channel;
- the second factor of a product of two values is int16, symmetric: of a uint16 one the compiler
  keeps 8 bits;
- LayerNormalization and InstanceNormalization have weights of 8 bits, all ones, and no bias or one
  of 32 bits; RMSNormalization (opset 23) has a weight of 16 bits;
- shapes have at most 5 axes, all of them known;
- groups of channels are an axis of four: with three the compiler gives wrong numbers for pictures
  of 160 x 96 px, and says nothing;
- a sigmoid reads its value at levels of its own: of a value times its sigmoid the compiler makes
  one operator, which gives a constant where a picture is at most 8 high, and says nothing.

onnxruntime's CPU runs the same file: there each operator computes in float32 between its roundings.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from exporter.errors import InputError
from exporter.program import aten
from exporter.program.run import constant_value
from exporter.quantize.everywhere import KERNEL_BITS, MIDDLE, MOVES
from exporter.quantize.nearest import row_unit
from exporter.quantize.program import Part
from exporter.quantize.rounded import RoundingNode, rounding_node

if TYPE_CHECKING:
    from exporter.backends.onnx.emitter import Emitter

ATEN = torch.ops.aten
OURS = torch.ops.fourstep
MOST_BIAS = 2**31 - 1
APART = 1.0001  # of a step: other levels for the compiler, the same for what computes with them
Translate = Callable[["Emitter", fx.Node], None]


def _zero(e: Emitter, levels: RoundingNode) -> str:
    """The level of 0."""
    return e.tensor(f"zero_{levels.zero_point}", torch.tensor(levels.zero_point).to(torch.uint16))


def _rounded(e: Emitter, source: str, levels: RoundingNode, output: str) -> str:
    """Quantize and dequantize a value."""
    given = [e.scalar(levels.step), _zero(e, levels)]
    codes = e.add("QuantizeLinear", [source, *given], f"{output}_codes")
    return e.add("DequantizeLinear", [codes, *given], output)


def _signed(e: Emitter, source: str, levels: RoundingNode) -> str:
    """A value of symmetric levels as a second factor: in int16, which changes none of them.

    Here, and not where the value is made: a layer of uint16 gives no int16.
    """
    assert levels.zero_point == MIDDLE
    given = [e.scalar(levels.step), e.tensor("middle", torch.tensor(0, dtype=torch.int16))]

    def written() -> str:
        codes = e.add("QuantizeLinear", [source, *given], f"{source}_signed_codes")
        return e.add("DequantizeLinear", [codes, *given], f"{source}_signed")

    return e.once((source, "signed"), written)


def _levels(node: object) -> RoundingNode:
    """The levels that a value has: its own, or those of what it is moved from."""
    while isinstance(node, fx.Node):
        found = rounding_node(node)
        if found is not None:
            return found
        table = node.target is ATEN.embedding.default
        node = node.args[0] if table or node.target in MOVES else None
    raise AssertionError("a value without levels")


def _levels_behind(node: fx.Node) -> RoundingNode:
    """The levels that a node's value is rounded to."""
    found = next((r for user in node.users if (r := rounding_node(user))), None)
    assert found is not None, node.name
    return found


def round_input(e: Emitter, node: fx.Node) -> None:
    """A value's levels; of a constant, its codes."""
    levels = rounding_node(node)
    assert levels is not None
    if levels.bits == KERNEL_BITS:
        return  # written where it is used
    if levels.x in e.varying:
        _rounded(e, e.value(levels.x), levels, e.name(node))
        return
    value = constant_value(e.program, e.read, levels.x)
    codes = torch.round(value / torch.tensor(levels.step)) + levels.zero_point
    codes = codes.clamp(0, 2**levels.bits - 1)
    stored = codes.to(torch.int32).to(torch.uint16)
    given = [e.tensor(f"{levels.x.name}_codes", stored), e.scalar(levels.step), _zero(e, levels)]
    e.add("DequantizeLinear", given, e.name(node))


def _operand(e: Emitter, argument: object) -> str:
    """A value, or a number that becomes a constant of 16 bits."""
    if isinstance(argument, fx.Node):
        return e.name(argument)
    assert isinstance(argument, int | float)
    number, most, name = float(argument), 2**16 - 1, f"number_{argument!r}"
    zero, level = most * (number < 0), most * (number > 0)

    def written() -> str:  # codes of its own: the provider knows a tensor by its name
        code = e.tensor(f"{name}_code", torch.tensor(level).to(torch.uint16))
        step = e.scalar(float(torch.tensor(abs(number) / most)) or 1.0)
        ends = e.tensor(f"zero_{zero}", torch.tensor(zero).to(torch.uint16))
        return e.add("DequantizeLinear", [code, step, ends], name)

    return e.once((name,), written)


def _computes(kind: str, **attributes: object) -> Translate:
    """An operator of the values that a node reads."""

    def translate(e: Emitter, node: fx.Node) -> None:
        operands = [a for a in node.args if isinstance(a, fx.Node | int | float)]
        e.add(kind, [_operand(e, a) for a in operands], e.name(node), **attributes)

    return translate


def _matmul(e: Emitter, node: fx.Node) -> None:
    left, right = node.args
    assert isinstance(right, fx.Node)
    e.add("MatMul", [e.value(left), _signed(e, e.value(right), _levels(right))], e.name(node))


def _gelu(e: Emitter, node: fx.Node) -> None:
    approximate = node.kwargs.get("approximate", "none")
    e.add("Gelu", [e.value(node.args[0])], e.name(node), approximate=approximate)


def _sigmoid(e: Emitter, node: fx.Node) -> None:
    """Of a value at steps that are a little larger: so the compiler leaves it alone."""
    (x,) = node.args
    levels = _levels(x)
    own = replace(levels, step=float(torch.tensor(levels.step * APART)))
    name = f"{node.name}_apart"
    e.add("Sigmoid", [_rounded(e, e.value(x), own, name)], e.name(node))


def _softmax(e: Emitter, node: fx.Node) -> None:
    e.add("Softmax", [e.value(node.args[0])], e.name(node), axis=node.args[1])


def _cat(e: Emitter, node: fx.Node) -> None:
    parts: Any = node.args[0]
    e.add("Concat", [e.value(p) for p in parts], e.name(node), axis=aten.argument(node, 1, 0))


def _mean(e: Emitter, node: fx.Node) -> None:
    axes, keep = e.ints(aten.argument(node, 1)), int(aten.argument(node, 2, False))
    e.add("ReduceMean", [e.value(node.args[0]), axes], e.name(node), keepdims=keep)


def _layer_norm(e: Emitter, node: fx.Node) -> None:
    width, eps = aten.shape(node)[-1], float(aten.argument(node, 4))
    inputs = [e.value(node.args[0]), _ones(e, width)]
    e.add("LayerNormalization", inputs, e.name(node), axis=-1, epsilon=eps)


def _rms_norm(e: Emitter, node: fx.Node) -> None:
    inputs, eps = [e.value(node.args[0]), e.value(node.args[2])], float(aten.argument(node, 3))
    e.add("RMSNormalization", inputs, e.name(node), axis=-1, epsilon=eps)


def _group_norm(e: Emitter, node: fx.Node) -> None:
    groups, levels, behind = node.args[1], _levels(node.args[0]), _levels_behind(node)
    assert isinstance(groups, int)
    cut = e.ints([1, groups, aten.shape(node)[1] // groups, -1])
    flat = _moved(e, "Reshape", e.value(node.args[0]), cut, node, levels, "in")
    zeros = torch.zeros(groups, dtype=torch.int32)
    name = f"{node.name}_zeros"
    given = [e.tensor(f"{name}_codes", zeros), e.scalar(levels.step), _whole_zero(e)]
    inputs = [flat, _ones(e, groups), e.add("DequantizeLinear", given, name)]
    eps = float(aten.argument(node, 4))
    normed = e.add("InstanceNormalization", inputs, f"{node.name}_normed", epsilon=eps)
    rounded = _rounded(e, normed, behind, f"{node.name}_normed_rounded")
    e.add("Reshape", [rounded, e.ints(aten.shape(node))], e.name(node))


def _moved(
    e: Emitter, kind: str, source: str, how: str, node: fx.Node, levels: RoundingNode, part: str
) -> str:
    """A value in another shape, at the same levels."""
    moved = e.add(kind, [source, how], f"{node.name}_{part}")
    return _rounded(e, moved, levels, f"{node.name}_{part}_rounded")


def _ones(e: Emitter, count: int) -> str:
    """A vector of ones, in 8 bits."""
    name = f"ones_of_{count}"
    codes = e.tensor(f"ones_{count}", torch.ones(count, dtype=torch.uint8))
    zero = e.tensor("zero_of_8_bits", torch.tensor(0, dtype=torch.uint8))
    given = [codes, e.scalar(1.0), zero]
    return e.once((name,), lambda: e.add("DequantizeLinear", given, name))


def _whole_zero(e: Emitter) -> str:
    return e.tensor("zero_of_32_bits", torch.tensor(0, dtype=torch.int32))


def _linear(e: Emitter, node: fx.Node) -> None:
    x, weight = node.args[:2]
    assert isinstance(x, fx.Node) and isinstance(weight, fx.Node)
    part = e.program.part(weight)
    if part is None:
        columns = e.once((weight, "columns"), lambda: _columns(e, weight))
        e.add("MatMul", [e.value(x), columns], e.name(node))
        return
    if part.format.is_grouped:
        e.add("MatMul", [e.value(x), _blocks(e, weight, part)], e.name(node))
        return
    _product(e, node, x, weight)


def _columns(e: Emitter, weight: fx.Node) -> str:
    """A weight (N, K) in 16 bits as (K, N)."""
    levels = _levels(weight)
    moved = e.add("Transpose", [e.name(weight)], f"{weight.name}_turned", perm=[1, 0])
    return _signed(e, _rounded(e, moved, levels, f"{weight.name}_columns"), levels)


def _product(e: Emitter, node: fx.Node, x: fx.Node, weight: fx.Node) -> None:
    """Reshape, Gemm, Reshape."""
    levels, shape, source = _levels(x), aten.shape(x), e.value(x)
    if len(shape) != 2:
        rows = e.ints([-1, shape[-1]])
        source = _moved(e, "Reshape", source, rows, node, levels, "rows")
    codes, scale = _channels(e, weight)
    inputs = [source, codes, *_bias(e, node, levels, scale)]
    if len(shape) == 2:
        e.add("Gemm", inputs, e.name(node), transB=1)
        return
    product = e.add("Gemm", inputs, f"{node.name}_product", transB=1)
    rounded = _rounded(e, product, _levels_behind(node), f"{node.name}_product_rounded")
    e.add("Reshape", [rounded, e.ints(aten.shape(node))], e.name(node))


def _channels(e: Emitter, weight: fx.Node) -> tuple[str, Tensor]:
    """A weight (N, K, ...) with a scale for each output channel, and those scales."""
    codes, scale = weight.args[:2]
    assert isinstance(codes, fx.Node) and isinstance(scale, fx.Node)
    scales = e.read(e.program.tensors[scale.name]).flatten()

    def written() -> str:
        values = e.tensor(codes.name, e.read(e.program.tensors[codes.name]))
        zero = e.tensor(
            f"zeros_{len(scales)}_of_8_bits", torch.zeros(len(scales), dtype=torch.int8)
        )
        given = [values, e.tensor(scale.name, scales), zero]
        return e.add("DequantizeLinear", given, f"{weight.name}_channels", axis=0)

    return e.once((weight, "channels"), written), scales


def _blocks(e: Emitter, weight: fx.Node, part: Part) -> str:
    """A weight (K, N) in 4 bits, whose blocks' scales are multiples of their channel's."""
    codes, scale, _, block = weight.args
    assert isinstance(codes, fx.Node) and isinstance(scale, fx.Node)
    most = part.format.storage.multiples
    assert most is not None

    def written() -> str:
        scales = e.read(e.program.tensors[scale.name])
        unit = row_unit(scales.amax(1), most)
        counts = (scales / unit[:, None]).round().to(torch.uint8).T
        none = torch.zeros(len(unit), dtype=torch.uint8)
        steps = e.add(
            "DequantizeLinear",
            [
                e.tensor(f"{scale.name}_counts", counts),
                e.tensor(f"{scale.name}_units", unit),
                e.tensor(f"zeros_{len(unit)}_of_counts", none),
            ],
            f"{scale.name}_steps",
            axis=1,
        )
        values = e.tensor(codes.name, e.read(e.program.tensors[codes.name]).T, 4)
        zeros = e.tensor(
            f"zeros_{counts.shape[0]}_{counts.shape[1]}_of_4_bits",
            torch.zeros(counts.shape, dtype=torch.int8), 4,
        )  # fmt: skip
        given = [values, steps, zeros]
        name = f"{weight.name}_blocks"
        return e.add("DequantizeLinear", given, name, axis=0, block_size=block)

    return e.once((weight, "blocks"), written)


def _bias(e: Emitter, node: fx.Node, levels: RoundingNode, scale: Tensor) -> list[str]:
    """A layer's bias in 32 bits, in the units of its sums; nothing where it has none."""
    bias = aten.argument(node, 2)
    if bias is None:
        return []
    value = e.read(e.program.tensors[bias.name])
    units = (scale.double() * levels.step).float()
    codes = torch.round(value.double() / units.double())
    if codes.abs().max() > MOST_BIAS:
        raise InputError(
            f"{e.program.name}: the bias '{bias.name}' is beyond 32 bits of its layer's units; "
            "the NPU cannot have it"
        )
    name = f"{node.name}_bias"
    stored = e.tensor(f"{name}_codes", codes.to(torch.int32))
    zero = e.tensor(f"zeros_{len(units)}_of_32_bits", torch.zeros(len(units), dtype=torch.int32))
    given = [stored, e.tensor(f"{name}_units", units), zero]
    return [e.add("DequantizeLinear", given, name, axis=0)]


def _conv2d(e: Emitter, node: fx.Node) -> None:
    _, strides, padding = aten.convolution(node)
    x, weight = node.args[:2]
    assert isinstance(x, fx.Node) and isinstance(weight, fx.Node)
    before, after = [*padding], [*padding]
    if _is_of_convolutions(x):
        more = aten.padding(x)
        before, after = ([a + b for a, b in zip(padding, m[2:], strict=True)] for m in more)
        assert isinstance(x.args[0], fx.Node)
        x = x.args[0]
    if e.program.part(weight) is None:
        given = [_kernel(e, weight)]
    else:
        codes, scale = _channels(e, weight)
        given = [codes, *_bias(e, node, _levels(x), scale)]
    e.add(
        "Conv",
        [e.value(x), *given],
        e.name(node),
        kernel_shape=aten.shape(weight)[2:],
        strides=strides,
        pads=[*before, *after],
    )


def _kernel(e: Emitter, weight: fx.Node) -> str:
    """A convolution's weight that no scheme encodes, in 8 bits: its levels are kept."""
    levels = rounding_node(weight)
    assert levels is not None and levels.bits == KERNEL_BITS

    def written() -> str:
        value = constant_value(e.program, e.read, levels.x)
        codes = torch.round(value / torch.tensor(levels.step)).to(torch.int8)
        zero = e.tensor("zero_of_int8", torch.tensor(0, dtype=torch.int8))
        given = [e.tensor(f"{levels.x.name}_codes", codes), e.scalar(levels.step), zero]
        return e.add("DequantizeLinear", given, f"{levels.x.name}_kernel")

    return e.once((weight, "kernel"), written)


def _is_of_convolutions(node: fx.Node) -> bool:
    """Whether a node is zeros around a value that convolutions alone read: they have their own."""
    if node.target is not ATEN.pad.default or aten.repeats_edges(node):
        return False
    before, after = aten.padding(node)
    around = not any((*before[:2], *after[:2])) and len(before) == 4
    return around and all(user.target is ATEN.conv2d.default for user in node.users)


def _padding(native: Translate) -> Translate:
    def translated(e: Emitter, node: fx.Node) -> None:
        if not _is_of_convolutions(node):
            moving(native)(e, node)

    return translated


def moving(translate: Translate) -> Translate:
    """An operator that only moves values: what comes out has the levels of what goes in."""

    def translated(e: Emitter, node: fx.Node) -> None:
        if not _is_float(node):
            return translate(e, node)
        final = e.name(node)
        e.rename(node, f"{node.name}_moved")
        translate(e, node)
        moved = e.name(node)
        e.rename(node, final)
        _rounded(e, moved, _levels(node), final)

    return translated


def _is_read_whole(split: fx.Node) -> bool:
    """Whether every piece is read: one that is not would be a float."""
    return len({user.args[1] for user in split.users}) == len(aten.split_sizes(split)[1])


def _split(native: Translate) -> Translate:
    def translated(e: Emitter, node: fx.Node) -> None:
        if _is_read_whole(node):
            native(e, node)

    return translated


def _piece(native: Translate) -> Translate:
    """A piece; where others are not read, cut out by itself."""

    def translated(e: Emitter, node: fx.Node) -> None:
        source, index = node.args
        assert isinstance(source, fx.Node) and isinstance(index, int)
        if _is_read_whole(source):
            return native(e, node)
        axis, sizes = aten.split_sizes(source)
        start = sum(sizes[:index])
        bounds = [e.ints([bound]) for bound in (start, start + sizes[index], axis)]
        e.add("Slice", [e.value(source.args[0]), *bounds], e.name(node))

    return translated


def _is_float(node: fx.Node) -> bool:
    value: Any = node.meta["val"]
    return isinstance(value, Tensor) and value.dtype == torch.float32


def _embedding(e: Emitter, node: fx.Node) -> None:
    e.add("Gather", [e.value(node.args[0]), e.value(node.args[1])], e.name(node), axis=0)


def _later(e: Emitter, node: fx.Node) -> None:
    """A weight or a constant is written where it is used."""


def table(native: dict[Any, Translate]) -> dict[Any, Translate]:
    """The translations of this form, those of integers and places out of the ordinary one."""
    same = (ATEN.argmax.default, ATEN.eq.Scalar)
    moves = [t for t in MOVES if t not in (operator.getitem, ATEN.embedding.default)]
    written: dict[Any, Translate] = {
        **{target: native[target] for target in same},
        **{target: moving(native[target]) for target in moves},
        ATEN.split.Tensor: _split(native[ATEN.split.Tensor]),
        operator.getitem: moving(_piece(native[operator.getitem])),
        ATEN.embedding.default: moving(_embedding),
        ATEN.pad.default: _padding(native[ATEN.pad.default]),
        ATEN.add.Tensor: _computes("Add"),
        ATEN.sub.Tensor: _computes("Sub"),
        ATEN.mul.Tensor: _computes("Mul"),
        ATEN.div.Tensor: _computes("Div"),
        ATEN.relu.default: _computes("Relu"),
        ATEN.sigmoid.default: _sigmoid,
        ATEN.tanh.default: _computes("Tanh"),
        ATEN.sqrt.default: _computes("Sqrt"),
        ATEN.matmul.default: _matmul,
        ATEN.softmax.int: _softmax,
        ATEN.gelu.default: _gelu,
        ATEN.cat.default: _cat,
        ATEN.mean.dim: _mean,
        ATEN.layer_norm.default: _layer_norm,
        ATEN.rms_norm.default: _rms_norm,
        ATEN.group_norm.default: _group_norm,
        ATEN.linear.default: _linear,
        ATEN.conv2d.default: _conv2d,
        OURS.dequantize.default: _later,
        OURS.round_input.default: round_input,
    }
    return {target: _of_values(translate) for target, translate in written.items()}


def _of_values(translate: Translate) -> Translate:
    """Nothing for an operator whose value depends on no input."""

    def translated(e: Emitter, node: fx.Node) -> None:
        if node.target is OURS.round_input.default or node in e.varying:
            translate(e, node)

    return translated

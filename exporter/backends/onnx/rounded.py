"""Layers whose input is rounded to 8 bits: onnxruntime's ``MatMulIntegerToFloat``.

One operator multiplies codes and scales the sums, 2.3 times as fast as MatMulNBits with 1024 rows
of 1536 and 6144 outputs. DequantizeLinear on both sides is not fused unless the output is rounded
too, and multiplies in float32. A convolution is such a product of its patches, 1.4 to 1.8 times as
fast as in float32; ConvInteger is slower than that. What is rounded to 16 bits, or feeds a layer
whose weight has no codes for this, is quantized and dequantized by operators of their own.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from exporter.program import aten
from exporter.quantize.rounded import RoundingNode, along, rounded_layer, rounding_node

if TYPE_CHECKING:
    from exporter.backends.onnx.emitter import Emitter

LEVEL_TYPES = {8: torch.uint8, 16: torch.uint16}


def round_input(e: Emitter, node: fx.Node) -> None:
    """An input that is rounded; for layers that multiply its codes nothing is written here."""
    rounding = rounding_node(node)
    assert rounding is not None
    if all(rounded_layer(e.program, user) for user in node.users):
        return
    codes = _codes(e, rounding)
    e.add("DequantizeLinear", [codes, e.scalar(rounding.step), _zero(e, rounding)], e.name(node))


def linear(e: Emitter, layer: fx.Node, rounding: RoundingNode) -> None:
    """A linear layer."""
    _product(e, _codes(e, rounding), layer, rounding, aten.argument(layer, 2), e.name(layer))


def conv2d(e: Emitter, layer: fx.Node, rounding: RoundingNode) -> None:
    """A convolution: channels last, what each output reads times the kernels' columns."""
    bias, strides, (above, left) = aten.convolution(layer)
    kernel, size = aten.shape(layer.args[1])[2:], aten.shape(layer)[2:]
    codes = _codes(e, rounding)
    last = f"{codes}_last"
    e.once((last,), lambda: e.add("Transpose", [codes], last, perm=[0, 2, 3, 1]))
    source, padded = last, f"{last}_{above}_{left}"
    if above or left:
        inputs = [last, e.ints([0, above, left, 0] * 2), _zero(e, rounding)]
        source = e.once((padded,), lambda: e.add("Pad", inputs, padded))

    def read_at(place: tuple[int, ...]) -> str:
        """What all outputs read at one place of the kernel."""
        ends = [p + s * (n - 1) + 1 for p, s, n in zip(place, strides, size, strict=True)]
        bounds = [e.ints(values) for values in (place, ends, (1, 2), strides)]
        return e.add("Slice", [source, *bounds], f"{layer.name}_{'_'.join(map(str, place))}")

    patches = source
    if max(*kernel, *strides) > 1:
        read = [read_at(place) for place in itertools.product(*map(range, kernel))]
        patches = e.join(read, f"{layer.name}_patches", 3)
    product = _product(e, patches, layer, rounding, bias, f"{layer.name}_product")
    e.add("Transpose", [product], e.name(layer), perm=[0, 3, 1, 2])


def _codes(e: Emitter, rounding: RoundingNode) -> str:
    """An input's codes; once for all that read it."""
    name, place = f"{rounding.x.name}_codes", rounding.inverse_factor

    def written() -> str:
        value = e.value(rounding.x)
        if place is not None:
            inverse = e.read(e.program.tensors[place.name])
            inverse = along(inverse, len(aten.shape(rounding.x)), rounding.axis)
            factor = e.tensor(f"{rounding.x.name}_inverse_factor", inverse)
            value = e.add("Mul", [value, factor], f"{rounding.x.name}_even")
        return e.add("QuantizeLinear", [value, e.scalar(rounding.step), _zero(e, rounding)], name)

    return e.once((name,), written)


def _product(
    e: Emitter, codes: str, layer: fx.Node, rounding: RoundingNode, bias: object, output: str
) -> str:
    """Codes (..., taps K) times a layer's weight, in float32."""
    weight = layer.args[1]
    assert isinstance(weight, fx.Node)
    name = f"{weight.name}_rounded"

    def written() -> str:
        places: Any = weight.args[:2]
        values, scale = (e.read(e.program.tensors[place.name]) for place in places)
        e.tensor(f"{name}_scale", scale.flatten())
        taps_first = values.reshape(*values.shape[:2], -1).permute(2, 1, 0)
        return e.tensor(name, taps_first.flatten(0, 1))

    columns = e.once((name,), written)
    inputs = [codes, columns, e.scalar(rounding.step), f"{name}_scale", _zero(e, rounding)]
    if bias is not None:
        inputs += ["", e.value(bias)]
    return e.add("com.microsoft:MatMulIntegerToFloat", inputs, output)


def _zero(e: Emitter, rounding: RoundingNode) -> str:
    """The level of 0, of the levels' type."""
    code = torch.tensor(rounding.zero_point, dtype=LEVEL_TYPES[rounding.bits])
    fine = "" if rounding.bits == 8 else f"_of_{rounding.bits}_bits"
    return e.tensor(f"code_{rounding.zero_point}{fine}", code)

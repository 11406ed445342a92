"""Layers whose input is rounded to 8 bits: onnxruntime's ``MatMulIntegerToFloat``.

One operator multiplies codes and scales the sums, 2.3 times as fast as MatMulNBits with 1024 rows
of 1536 and 6144 outputs. DequantizeLinear on both sides is not fused unless the output is rounded
too, and multiplies in float32. A convolution is such a product of its patches, 1.4 to 1.8 times as
fast as in float32; ConvInteger is slower than that.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch
from torch import fx

from exporter.calibrate.activations import Rounding, along, rounded_weight
from exporter.program import aten

if TYPE_CHECKING:
    from exporter.backends.onnx.emitter import Emitter


def linear(e: Emitter, layer: fx.Node, rounding: Rounding) -> None:
    """A linear layer."""
    codes = _codes(e, layer, rounding, -1)
    _product(e, codes, layer, rounding, aten.argument(layer, 2), e.name(layer))


def conv2d(e: Emitter, layer: fx.Node, rounding: Rounding) -> None:
    """A convolution: channels last, what each output reads times the kernels' columns."""
    bias, strides, (above, left) = aten.convolution(layer)
    kernel, size = aten.shape(layer.args[1])[2:], aten.shape(layer)[2:]
    codes = _codes(e, layer, rounding, 1)
    last = f"{codes}_last"
    e.once((last,), lambda: e.add("Transpose", [codes], last, perm=[0, 2, 3, 1]))
    source, padded = last, f"{last}_{above}_{left}"
    if above or left:
        inputs = [last, e.ints([0, above, left, 0] * 2), _zero_point(e, rounding)]
        source = e.once((padded,), lambda: e.add("Pad", inputs, padded))

    def read_at(place: tuple[int, ...]) -> str:
        """What all outputs read at one place of the kernel."""
        ends = [p + s * (n - 1) + 1 for p, s, n in zip(place, strides, size, strict=True)]
        bounds = [e.ints(values) for values in (place, ends, (1, 2), strides)]
        return e.add("Slice", [source, *bounds], f"{layer.name}_{'_'.join(map(str, place))}")

    patches = source
    if max(*kernel, *strides) > 1:
        read = [read_at(place) for place in itertools.product(*map(range, kernel))]
        patches = e.add("Concat", read, f"{layer.name}_patches", axis=3)
    product = _product(e, patches, layer, rounding, bias, f"{layer.name}_product")
    e.add("Transpose", [product], e.name(layer), perm=[0, 3, 1, 2])


def _codes(e: Emitter, layer: fx.Node, rounding: Rounding, axis: int) -> str:
    """A layer's input, whose channels lie along ``axis``, in 8 bits; once for all that read it."""
    x = layer.args[0]
    assert isinstance(x, fx.Node)
    name = f"{x.name}_codes"

    def written() -> str:
        value = e.value(x)
        if rounding.has_factors:
            inverse = along(1 / rounding.factor, len(aten.shape(x)), axis)
            factor = e.tensor(f"{x.name}_inverse_factor", inverse)
            value = e.add("Mul", [value, factor], f"{x.name}_even")
        inputs = [value, e.scalar(rounding.step), _zero_point(e, rounding)]
        return e.add("QuantizeLinear", inputs, name)

    return e.once((name,), written)


def _product(
    e: Emitter, codes: str, layer: fx.Node, rounding: Rounding, bias: object, output: str
) -> str:
    """Codes (..., taps K) times a layer's weight, in float32."""
    weight = layer.args[1]
    assert isinstance(weight, fx.Node)
    name = f"{weight.name}_rounded"

    def written() -> str:
        values, scale = rounded_weight(e.program, e.read, weight, rounding)
        e.tensor(f"{name}_scale", scale)
        taps_first = values.reshape(*values.shape[:2], -1).permute(2, 1, 0)
        return e.tensor(name, taps_first.flatten(0, 1))

    columns = e.once((name,), written)
    inputs = [
        codes, columns, e.scalar(rounding.step), f"{name}_scale", _zero_point(e, rounding)
    ]  # fmt: skip
    if bias is not None:
        inputs += ["", e.value(bias)]
    return e.add("com.microsoft:MatMulIntegerToFloat", inputs, output)


def _zero_point(e: Emitter, rounding: Rounding) -> str:
    code = torch.tensor(rounding.zero_point, dtype=torch.uint8)
    return e.tensor(f"code_{rounding.zero_point}", code)

"""Builds one OpenVINO model, its constants streamed to a file of ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import IO, Any

import numpy as np
import openvino as ov
import torch
from openvino import opset15 as op
from torch import Tensor, fx

from exporter.backends.contract import PortForm
from exporter.backends.shared import Shared
from exporter.program import aten
from exporter.quantize.formats import Format
from exporter.quantize.packing import narrowed, pack
from exporter.quantize.program import QuantizedProgram
from exporter.quantize.rounded import RoundingNode, along, rounded_layer, rounding_node

ALIGNMENT_BYTES = 64
LARGE_BYTES = 1 << 16
HALVED_BYTES = 1 << 12  # below which the operator that widens it takes more than is saved
LINEAR = torch.ops.aten.linear.default
ZERO_OF_2_BITS = np.array([2], np.int8)


class Constants:
    """Writes the values of constants into a file, and makes what stands for them in a model.

    Args:
        shared: where models before this one have written values into the same file.
    """

    def __init__(self, stream: IO[bytes], shared: Shared[int]) -> None:
        self._stream, self._shared = stream, shared
        self._small: dict[bytes | None, int] = {}
        self._zeros = np.zeros(0, np.uint8)  # never written to, and so never in memory
        self._placed: list[tuple[Any, int, np.ndarray]] = []  # a Constant shares its zeros' memory

    def make(self, array: np.ndarray, shape: tuple[int, ...], kind: ov.Type | None = None) -> Any:
        """A Constant with an array's bytes; of its own type unless another is given."""
        offset = self._write(array)
        if array.nbytes > self._zeros.nbytes:
            self._zeros = np.zeros(array.nbytes, np.uint8)
        zeros = self._zeros[: array.nbytes].view(array.dtype)
        tensor = ov.Tensor(zeros, ov.Shape(list(shape)), kind or ov.Type(array.dtype))
        self._placed.append((op.constant(tensor), offset, zeros))
        return self._placed[-1][0]

    def places(self, model: ov.Model) -> dict[str, int]:
        """Where each constant of the model lies in the file, by name; the rest are written now."""
        found = {constant.get_friendly_name(): offset for constant, offset, _ in self._placed}
        operators: Any = model.get_ordered_ops()
        for operator in operators:
            name = operator.get_friendly_name()
            if operator.get_type_name() == "Constant" and name not in found:
                found[name] = self._write(operator.data)
        return found

    def _write(self, array: np.ndarray) -> int:
        """Where it lies in the file; a small one that is there already is not written again."""
        small = array.tobytes() if array.nbytes < LARGE_BYTES else None
        if small in self._small:
            return self._small[small]
        known = self._shared.place("", array)
        if known is not None:
            return known
        offset = -(-self._stream.tell() // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        self._stream.seek(offset)
        self._stream.write(small or np.ascontiguousarray(array).data)
        if small is not None:
            self._small[small] = offset
        return self._shared.note("", array, offset)


class Emitter:
    """Builds one ov.Model.

    Args:
        constants: where they go.
        forms: of inputs that are not as the program has them, by name.
        halves: a large tensor that fp16 holds to the last bit is stored so.
    """

    def __init__(
        self,
        program: QuantizedProgram,
        read: Callable[[object], Tensor],
        constants: Constants,
        forms: Mapping[str, PortForm],
        halves: bool = False,
    ) -> None:
        self.program, self.read, self.constants = program, read, constants
        self._halves = halves
        self._constant = constants.make
        self._rounded: dict[tuple[fx.Node, float], Any] = {}
        self._weights: dict[fx.Node, tuple[Any, np.ndarray]] = {}
        self._values: dict[fx.Node, Any] = {}
        self._parameters = []
        for node, port in zip(program.feeds(), program.inputs, strict=True):
            form = forms.get(port.name, PortForm())
            kind = {"float32": ov.Type.f32, "int32": ov.Type.i32}[port.dtype]
            shape = [-1 if i in form.free_axes else size for i, size in enumerate(port.shape)]
            parameter = op.parameter(shape, ov.Type.i64 if form.is_wide else kind, name=port.name)
            parameter.output(0).set_names({port.name})
            self._parameters.append(parameter)
            taken = op.convert(parameter, "i32") if form.is_wide else parameter
            self._values[node] = taken.output(0)

    def settle(self, node: fx.Node, value: Any) -> None:
        """Say what a node's value is: an output, a list of them, or None for a weight, which is
        written where it is used."""
        if value is not None:
            self._values[node] = value if isinstance(value, list) else _output(value)

    def value(self, argument: object) -> Any:
        """The OpenVINO output of an argument: a node, or a number that becomes a constant."""
        if not isinstance(argument, fx.Node):
            return op.constant(np.float32(argument)).output(0)  # type: ignore[arg-type]
        if argument not in self._values:
            if argument.op == "placeholder":
                self._values[argument] = self._stored(self._read(argument)).output(0)
            else:
                self._values[argument] = _output(self._weight(argument))
        return self._values[argument]

    def _stored(self, array: np.ndarray) -> Any:
        """A tensor as float32, or int32; stored as fp16 where that is asked for and the same."""
        if self._halves and array.dtype == np.float32 and array.nbytes >= HALVED_BYTES:
            with np.errstate(over="ignore"):
                half = array.astype(np.float16)
            if np.array_equal(half.astype(np.float32), array):
                return op.convert(self._constant(half, half.shape), "f32")
        return self._constant(array, array.shape)

    def linear(self, layer: fx.Node) -> Any:
        """x times a stored weight (N, K), transposed, plus a bias (N,)."""
        x, bias = layer.args[0], aten.argument(layer, 2)
        weight: Any = layer.args[1]
        rounding = rounded_layer(self.program, layer)
        if isinstance(x, fx.Node) and x.name in self.program.tensors:
            # OpenVINO 2026.4.1 fails to fold a constant times a compressed weight on its right.
            product = op.matmul(self.value(weight), self.value(x), False, True)
            product = op.transpose(product, ints([1, 0]))
        elif rounding is not None:
            return self._rounded_linear(rounding, weight, bias)
        else:
            product = op.matmul(self.value(x), self.value(weight), False, True)
        return product if bias is None else op.add(product, self.value(bias))

    def convolved(self, layer: fx.Node) -> tuple[Any, Any]:
        """A convolution's input and weight; both in 8 bits if its input is rounded."""
        weight: Any = layer.args[1]
        if rounded_layer(self.program, layer) is None:
            return self.value(layer.args[0]), self.value(weight)
        return self.value(layer.args[0]), self._scaled(weight)[0]

    def _rounded_linear(self, rounding: RoundingNode, weight: fx.Node, bias: fx.Node | None) -> Any:
        """The levels are counted from 0, and what that adds to the outputs is taken off the bias.

        Levels around a zero point OpenVINO takes apart in the same way when it opens the graph, by
        a product of its own that takes longer than all else (a layer's weights in 8 bits, at full
        width: 2.8 ms for each million values, and 0.8).
        """
        scaled, sums = self._scaled(weight)
        product = op.matmul(self._levels(rounding, 0.0), scaled, False, True)
        low = -rounding.zero_point * rounding.step
        added = op.constant((low * sums).astype(np.float32))
        return op.add(product, added if bias is None else op.add(self.value(bias), added))

    def round_input(self, node: fx.Node) -> Any:
        """An input that is rounded; for linear layers that count levels from 0, nothing."""
        rounding = rounding_node(node)
        assert rounding is not None
        if all(rounded_layer(self.program, user) and user.target is LINEAR for user in node.users):
            return None
        return self._levels(rounding, -rounding.zero_point * rounding.step)

    def _levels(self, rounding: RoundingNode, least: float) -> Any:
        """x over the factors to so many levels, the lowest of which becomes ``least``; one operator
        for all layers that read x."""
        key = rounding.x, least
        if key not in self._rounded:
            ends = rounding.step * (np.array([0, rounding.levels - 1]) - rounding.zero_point)
            factor: Any = np.float32(1)
            if rounding.inverse_factor is not None:
                inverse = self.read(self.program.tensors[rounding.inverse_factor.name])
                factor = 1 / along(inverse, len(aten.shape(rounding.x)), rounding.axis).numpy()
            given = [op.constant((end * factor).astype(np.float32)) for end in ends]
            made = [op.constant(np.float32(end - ends[0] + least)) for end in ends]
            value = op.fake_quantize(self.value(rounding.x), *given, *made, rounding.levels)
            self._rounded[key] = value.output(0)
        return self._rounded[key]

    def _scaled(self, node: fx.Node) -> tuple[Any, np.ndarray]:
        """A weight (N, K, ...) as int8, and its rows' sums, (N,) float64; written once for all
        strips of a feature map."""
        if node not in self._weights:
            codes, scale = (self._read(place) for place in node.args[:2])  # type: ignore[arg-type]
            sums = codes.reshape(len(codes), -1).sum(1, dtype=np.int64) * scale[:, 0].astype(float)
            made = self._by_channel(codes, scale.astype(np.float32)).output(0)
            self._weights[node] = made, sums
        return self._weights[node]

    def _weight(self, node: fx.Node) -> Any:
        """A stored weight as float32, in the checkpoint's layout (N, K, ...)."""
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if node.target is torch.ops.aten.to.dtype:
            return op.convert(self.value(source), "f32")
        codes, scale, zero_point, block = node.args
        assert isinstance(codes, fx.Node) and isinstance(scale, fx.Node) and isinstance(block, int)
        part = self.program.part(node)
        assert part is not None
        shape, factor = part.of.shape, self._float(scale)
        if part.format.is_grouped:
            value = self._groups(codes, zero_point, narrowed(factor[..., None]), block, part.format)
            return op.reshape(value, ints(shape), False)
        return self._by_channel(self._read(codes), factor)

    def _by_channel(self, codes: np.ndarray, scale: np.ndarray) -> Any:
        """int8 codes (N, K, ...) times a scale for each output channel."""
        factor = scale.reshape(-1, *(1,) * (codes.ndim - 1))
        value = op.convert(self._constant(codes, codes.shape), "f32")
        return op.multiply(value, self._constant(factor, factor.shape))

    def _groups(
        self, codes: fx.Node, zero_point: object, factor: np.ndarray, block: int, form: Format
    ) -> Any:
        """A weight as (N, K / block, block); factor: (N, K / block, 1), fp16 or float32."""
        four = ov.Type.i4 if form.symmetric else ov.Type.u4
        kind = ov.Type.u2 if form.bits == 2 else four

        def packed(values: np.ndarray, *shape: int) -> Any:
            return op.convert(self._constant(pack(values, form.bits), shape, kind), "f32")

        zero: Any = None
        values = self._read(codes)
        if form.bits == 2 and form.symmetric:
            values, zero = values + ZERO_OF_2_BITS, packed(ZERO_OF_2_BITS, 1, 1, 1)
        elif isinstance(zero_point, fx.Node):
            zero = packed(self._read(zero_point), *factor.shape)
        value = packed(values, *factor.shape[:2], block)
        if zero is not None:
            value = op.subtract(value, zero)
        step = self._constant(factor, factor.shape)
        return op.multiply(value, step if factor.dtype == np.float32 else op.convert(step, "f32"))

    def _read(self, node: fx.Node) -> np.ndarray:
        value: np.ndarray = self.read(self.program.tensors[node.name]).contiguous().numpy()
        return value

    def _float(self, node: fx.Node) -> np.ndarray:
        return self._read(node).astype(np.float32, copy=False)

    def model(self) -> ov.Model:
        """The finished model, every operator named by its place so that builds are identical."""
        results = []
        for node, port in zip(self.program.results(), self.program.outputs, strict=True):
            output = self.value(node)
            output.get_tensor().set_names({port.name})
            results.append(op.result(output))
        model = ov.Model(results, self._parameters, self.program.name)
        operators: Any = model.get_ordered_ops()
        for i, operator in enumerate(operators):
            if operator.get_type_name() != "Parameter":
                operator.set_friendly_name(f"{operator.get_type_name().lower()}_{i}")
        return model


def _output(value: Any) -> Any:
    return value.output(0) if hasattr(value, "output") else value


def ints(values: Any) -> Any:
    """An int64 constant, for shapes and axes."""
    return op.constant(np.array(values, dtype=np.int64))

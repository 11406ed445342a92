"""Collects the nodes and weights of one ONNX graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from io import BufferedWriter

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, fx

from exporter.backends.contract import PortForm
from exporter.backends.onnx.operators import OPERATORS
from exporter.backends.shared import Shared
from exporter.package.manifest import Port
from exporter.program.program import Stored
from exporter.quantize.everywhere import rounds_everything
from exporter.quantize.packing import narrowed, pack
from exporter.quantize.program import Part, QuantizedProgram

ATEN = torch.ops.aten

OURS = torch.ops.fourstep

OPSET, IR_VERSION = 21, 10
OPSET_OF_2_BITS, IR_VERSION_OF_2_BITS = 25, 13
OPSET_OF_INTEGERS, IR_VERSION_OF_INTEGERS = 23, 11  # RMSNormalization
INLINE_BYTES = 1024  # small vectors stay in the graph; shapes always do: inference reads them
MOST_OUTPUTS = 7  # of a node in WebGPU, whose shaders take 10 buffers
ALIGN_BYTES = 4096  # a page, so that every weight can be mapped by itself

TYPES = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.int32: TensorProto.INT32,
    torch.int64: TensorProto.INT64,
    torch.int8: TensorProto.INT8,
    torch.uint8: TensorProto.UINT8,
    torch.int16: TensorProto.INT16,
    torch.uint16: TensorProto.UINT16,
    torch.bool: TensorProto.BOOL,
}
PACKED_TYPES = {
    (torch.int8, 2): TensorProto.INT2,
    (torch.uint8, 2): TensorProto.UINT2,
    (torch.int8, 4): TensorProto.INT4,
    (torch.uint8, 4): TensorProto.UINT4,
}


class Values:
    """The file beside graphs, which holds their larger initializers.

    Args:
        location: its name, as the graphs know it.
        sizes: how many graphs there will be, of the same weights.
    """

    def __init__(self, stream: BufferedWriter, location: str, sizes: int = 1) -> None:
        self._stream, self._location = stream, location
        self._shared: Shared[int] = Shared(sizes)

    def store(self, proto: onnx.TensorProto, data: bytes) -> None:
        """Put the values of an initializer there; where an earlier graph has them, no more."""
        offset = self._shared.place("", data)
        if offset is None:
            offset = self._shared.note("", data, self._write(data))
        proto.data_location = TensorProto.EXTERNAL
        for key, value in (("location", self._location), ("offset", offset), ("length", len(data))):
            proto.external_data.add(key=key, value=str(value))

    def _write(self, data: bytes) -> int:
        position = self._stream.tell()
        offset = -(-position // ALIGN_BYTES) * ALIGN_BYTES
        self._stream.write(b"\0" * (offset - position))
        self._stream.write(data)
        return offset

    def next_graph(self) -> None:
        """From now on graphs share what was written so far."""
        self._shared.next_size()


class Emitter:
    """Collects the nodes and initializers of one graph.

    Weights keep torch's (N, K) layout in the program; onnxruntime fuses a dequantized weight into
    ``MatMulNBits`` only when it is stored (K, N), so a linear layer's weight is transposed here.
    """

    def __init__(
        self,
        program: QuantizedProgram,
        read: Callable[[object], Tensor],
        values: Values,
        for_web: bool = False,
        forms: Mapping[str, PortForm] | None = None,
    ) -> None:
        self.program, self.read, self.for_web = program, read, for_web
        self.varying = program.varying()
        self._values, self._forms = values, forms or {}
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._names: dict[fx.Node, str] = {}
        self._made: dict[tuple[object, ...], str] = {}
        for node, port in zip(program.feeds(), program.inputs, strict=True):
            self._names[node] = port.name
            if self._form(port.name).is_wide:
                narrow = f"{port.name}_narrow"
                self._names[node] = self.add("Cast", [port.name], narrow, to=TensorProto.INT32)
        for node, port in zip(program.results(), program.outputs, strict=True):
            self._names[node] = port.name

    def _form(self, port: str) -> PortForm:
        return self._forms.get(port, PortForm())

    def _described(self, port: Port) -> onnx.ValueInfoProto:
        """An input or output as the model declares it; a free axis has a name for its size."""
        form, kinds = self._form(port.name), {"float32": TensorProto.FLOAT}
        kind = kinds.get(port.dtype, TensorProto.INT64 if form.is_wide else TensorProto.INT32)
        shape = [f"{port.name}_{i}" if i in form.free_axes else n for i, n in enumerate(port.shape)]
        return helper.make_tensor_value_info(port.name, kind, shape)

    def name(self, node: fx.Node) -> str:
        """The ONNX name of a node's value, writing it out first if it is a tensor."""
        if node not in self._names:
            if node.op == "placeholder":
                self._names[node] = self.tensor(
                    node.name, self.read(self.program.tensors[node.name])
                )
            elif is_weight(node):
                self._names[node] = weight(self, node)
            else:
                self._names[node] = node.name
        return self._names[node]

    def rename(self, node: fx.Node, name: str) -> None:
        """Let a node's value be known by a name that exists already."""
        self._names[node] = name

    def value(self, argument: object) -> str:
        """The ONNX name of an argument: a node, or a number that becomes a float constant."""
        if isinstance(argument, fx.Node):
            return self.name(argument)
        assert isinstance(argument, int | float)
        return self.scalar(float(argument))

    def scalar(self, number: float) -> str:
        """A float32 constant without axes."""
        return self.tensor(f"scalar_{number!r}", torch.tensor(number, dtype=torch.float32))

    def ints(self, values: Sequence[int]) -> str:
        """An int64 vector, for shapes and axes."""
        key = ("ints", *values)
        vector = torch.tensor(list(values), dtype=torch.int64)
        return self.once(key, lambda: self.tensor(f"ints_{len(self._initializers)}", vector))

    def add(self, kind: str, inputs: Sequence[str], output: str, **attributes: object) -> str:
        """Append a node with one output; ``kind`` may carry a domain: ``com.microsoft:Name``."""
        self.add_many(kind, inputs, [output], **attributes)
        return output

    def add_many(
        self, kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: object
    ) -> None:
        """Append a node of an operator in ``OPERATORS``: packages with another are refused."""
        assert kind in OPERATORS, kind
        domain, _, name = kind.rpartition(":")
        self._nodes.append(
            helper.make_node(name, inputs, outputs, name=outputs[0], domain=domain, **attributes)  # type: ignore[arg-type]
        )

    def split(self, source: str, sizes: Sequence[int], outputs: Sequence[str], axis: int) -> None:
        """Cut a value along an axis; for the web into at most ``MOST_OUTPUTS`` at a time."""
        if not self.for_web or len(sizes) <= MOST_OUTPUTS:
            self.add_many("Split", [source, self.ints(sizes)], outputs, axis=axis)
            return
        most = MOST_OUTPUTS
        while most * MOST_OUTPUTS < len(sizes):
            most *= MOST_OUTPUTS
        starts = range(0, len(sizes), most)
        groups = [f"{outputs[start]}_and_{len(sizes[start : start + most])}" for start in starts]
        whole = [sum(sizes[start : start + most]) for start in starts]
        self.split(source, whole, groups, axis)
        for start, group in zip(starts, groups, strict=True):
            self.split(group, sizes[start : start + most], outputs[start : start + most], axis)

    def join(self, parts: Sequence[str], output: str, axis: int) -> str:
        """Values one behind the other; for the web at most ``MOST_OUTPUTS`` at a time."""
        left, level = list(parts), 0
        while self.for_web and len(left) > MOST_OUTPUTS:
            groups = [left[i : i + MOST_OUTPUTS] for i in range(0, len(left), MOST_OUTPUTS)]
            left = [
                self.add("Concat", group, f"{output}_{level}_{i}", axis=axis)
                for i, group in enumerate(groups)
            ]
            level += 1
        return self.add("Concat", left, output, axis=axis)

    def once(self, key: tuple[object, ...], make: Callable[[], str]) -> str:
        """A value that is made the first time it is asked for."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def tensor(self, name: str, value: Tensor, bits: int = 8) -> str:
        """An initializer; int8 or uint8 codes of 2 or 4 ``bits`` are packed, the first lowest."""
        if name in self._initializers:
            return name
        kind = TYPES[value.dtype] if bits == 8 else PACKED_TYPES[value.dtype, bits]
        array: np.ndarray = value.contiguous().numpy()
        data = (array if bits == 8 else pack(array, bits)).tobytes()
        proto = onnx.TensorProto(name=name, data_type=kind, dims=list(value.shape))
        if len(data) <= INLINE_BYTES or kind == TensorProto.INT64:
            proto.raw_data = data
        else:
            self._values.store(proto, data)
        self._initializers[name] = proto
        return name

    def model(self) -> onnx.ModelProto:
        """The finished model."""
        inputs, outputs = (
            [self._described(port) for port in ports]
            for ports in (self.program.inputs, self.program.outputs)
        )
        graph = helper.make_graph(
            self._nodes, self.program.name, inputs, outputs, list(self._initializers.values())
        )
        opset, ir_version = OPSET, IR_VERSION
        if any(form.bits == 2 for form in self.program.formats.values()):
            opset, ir_version = OPSET_OF_2_BITS, IR_VERSION_OF_2_BITS
        elif rounds_everything(self.program):
            opset, ir_version = OPSET_OF_INTEGERS, IR_VERSION_OF_INTEGERS
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(
            graph, ir_version=ir_version, opset_imports=opsets, producer_name="fourstep"
        )


def is_weight(node: fx.Node) -> bool:
    """Whether a node turns a stored weight into float32."""
    source = node.args[0] if node.target in (OURS.dequantize.default, ATEN.to.dtype) else None
    return isinstance(source, fx.Node) and source.op == "placeholder"


def weight(e: Emitter, node: object, transpose: bool = False) -> str:
    """The ONNX name of a weight: as stored (N, K, ...), or transposed to (K, N)."""
    assert isinstance(node, fx.Node)
    return e.once((node, transpose), lambda: _write_weight(e, node, transpose))


def _write_weight(e: Emitter, node: fx.Node, transpose: bool) -> str:
    def laid_out(source: fx.Node) -> Tensor:
        value: Tensor = e.read(e.program.tensors[source.name])
        return value.T if transpose and value.ndim == 2 else value

    def part(source: object, bits: int = 8) -> str:
        assert isinstance(source, fx.Node)
        return e.tensor(source.name, laid_out(source), bits)

    if node.op == "placeholder":
        return part(node)
    if node.target is ATEN.to.dtype:
        return e.add("Cast", [part(node.args[0])], node.name, to=TensorProto.FLOAT)
    codes, scale, zero_point, block = node.args
    assert isinstance(codes, fx.Node) and isinstance(scale, fx.Node) and isinstance(block, int)
    source = e.program.tensors[codes.name]
    assert isinstance(source, Part) and isinstance(source.of, Stored)
    if not source.format.is_grouped:
        factor = e.read(e.program.tensors[scale.name]).flatten()
        inputs = [part(codes), e.tensor(scale.name, factor)]
        return e.add("DequantizeLinear", inputs, node.name, axis=1 if transpose else 0)
    bits, steps = source.format.bits, torch.from_numpy(narrowed(laid_out(scale).numpy()))
    inputs = [part(codes, bits), e.tensor(scale.name, steps)]
    if steps.dtype == torch.float16:
        inputs[1] = e.add("Cast", inputs[1:], f"{scale.name}_wide", to=TensorProto.FLOAT)
    if zero_point is not None:
        inputs.append(part(zero_point, bits))
    axis = 0 if transpose else 1
    return e.add("DequantizeLinear", inputs, node.name, axis=axis, block_size=block)

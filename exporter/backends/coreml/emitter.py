"""Builds one Core ML ML Program, weights compressed from the start.

What computes in float32, and why. Everything else is rounded to fp16 at every operator, because
that is the only floating type of the Neural Engine.

- ``t5``: its residual stream and its gated products leave fp16's range (65504) in the larger T5s.
- ``vae_decoder``, ``vae_encoder``: group norm squares activations of several hundred, and the
  decoder's error goes straight into the picture.
- RMSNorm, in every graph: the squares of values beyond 256 overflow; it is widened to float32 from
  the squares to the division.
- softmax where it is an operator of its own (iOS 17): the sum of a thousand exponentials loses
  small ones in fp16. iOS 18 has attention as one operator, which widens inside.
- a linear layer, convolution or embedding whose weight's format is fp32, or whose codes or palettes
  stand for values outside fp16's normal range, as far as they matter.
- a graph whose weights are all fp32 (scheme fp32), entirely.

Core ML dequantizes no integers of 2 bits. Such codes index a palette of four numbers, and a second
operator scales what it gives, group by group: the chain that coremltools writes for palettes with
scales. Their zero points are floats there, as the numbers are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, fx

from exporter.backends.coreml import library
from exporter.backends.coreml.library import ELEMENTS
from exporter.backends.coreml.operators import OPERATORS
from exporter.backends.shared import Shared
from exporter.errors import InputError
from exporter.package.names import graph_of
from exporter.program.program import Constant
from exporter.quantize.formats import Format
from exporter.quantize.program import Part, QuantizedProgram

Stored = tuple[np.ndarray, str]  # a value and the type to store it as
Parts = Mapping[str, Stored | str]  # of a compressed constant: values, or names of such constants
OPSETS = {"iOS17": ("CoreML7", 8), "iOS18": ("CoreML8", 9)}
WEIGHTS_FILE = "@model_path/weights/weight.bin"
FLOAT32_GRAPHS = ("t5", "vae_decoder", "vae_encoder")
INLINE_VALUES = 16  # longer tensors go to the weight file, unless they are of
INLINE_TYPES = ("string", "bool", "int32", "uint32")
LARGEST_FP16, SMALLEST_FP16 = 65504.0, 2.0**-14


class Blobs:
    """The weight file, which the graphs of several sizes share.

    Args:
        sizes: how many graphs there will be, of the same weights.
    """

    def __init__(self, weights: Path, sizes: int = 1) -> None:
        self._writer = library.blob_writer(weights)
        self._shared: Shared[int] = Shared(sizes)

    def write(self, flat: np.ndarray, verb: str) -> int:
        """Where values lie; those that an earlier graph has written are not written again."""
        known = self._shared.place(verb, flat)
        if known is not None:
            return known
        offset: int = getattr(self._writer, f"write_{verb}_data")(flat)
        return self._shared.note(verb, flat, offset)

    def next_graph(self) -> None:
        """From now on graphs share what was written so far."""
        self._shared.next_size()

    def close(self) -> None:
        """Complete the file."""
        del self._writer


class Emitter:
    """Collects the operations of one graph; tensors go to the weight file as they are met.

    Attributes:
        kind: the type that floats have unless an operator asks otherwise: ``fp16`` or ``fp32``.
        modern: whether iOS 18's operators may be used.
    """

    def __init__(
        self,
        program: QuantizedProgram,
        read: Callable[[object], Tensor],
        blobs: Blobs,
        target: str,
    ) -> None:
        self.program = program
        whole = all(form.name == "fp32" for form in program.formats.values())
        self.kind = "fp32" if whole or graph_of(program.name) in FLOAT32_GRAPHS else "fp16"
        self.modern = target == "iOS18"
        self._read, self._target = read, target
        self._messages, self._types = library.program_messages(), library.data_types()
        self._blobs = blobs
        self._operations: list[Any] = []
        self._made: dict[object, str] = {}
        self._values: dict[fx.Node, str | list[str]] = {}
        self._known: dict[str, tuple[tuple[int, ...], str]] = {}
        for node, port in zip(program.feeds(), program.inputs, strict=True):
            self._known[port.name] = (port.shape, {"float32": "fp32"}.get(port.dtype, port.dtype))
            self._values[node] = port.name

    def settle(self, node: fx.Node, value: str | list[str] | None) -> None:
        """Say what a node's value is called; None for a weight, written where it is used."""
        if value is not None:
            self._values[node] = value

    def value(self, argument: object, kind: str | None = None) -> str:
        """The name of an argument as a float of ``kind`` (the graph's own unless given).

        Integers and truth values keep their type. Numbers and vectors of the checkpoint become
        constants.
        """
        kind = kind or self.kind
        if not isinstance(argument, fx.Node):
            assert isinstance(argument, int | float)
            return self.const(np.float32(argument), kind)
        if argument not in self._values:
            if argument.op != "placeholder":
                return self.cast(self.weight(argument)[0], kind)
            source = self.program.tensors[argument.name]
            array = self.array(argument)
            return self.const(array, kind if array.dtype.kind == "f" else "int32", key=source)
        name = self._values[argument]
        assert isinstance(name, str)
        return self.cast(name, kind)

    def parts(self, node: fx.Node) -> list[str]:
        """The names of the results of an operator with several."""
        names = self._values[node]
        assert isinstance(names, list)
        return names

    def array(self, node: fx.Node) -> np.ndarray:
        """The value of a tensor placeholder."""
        value: np.ndarray = self._read(self.program.tensors[node.name]).contiguous().numpy()
        return value

    def is_tensor(self, argument: object) -> bool:
        """Whether an argument is a tensor of the package."""
        return isinstance(argument, fx.Node) and argument.name in self.program.tensors

    def cast(self, name: str, kind: str) -> str:
        """A float value in another type; anything else as it is."""
        shape, found = self._known[name]
        if found == kind or not found.startswith("fp"):
            return name
        return self.once(
            ("cast", name, kind),
            lambda: self.add(
                "cast", {"x": name, "dtype": self.text(kind)}, shape, kind, f"{name}_{kind}"
            ),
        )

    def once(self, key: object, make: Callable[[], str]) -> str:
        """A value that is made the first time it is asked for."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def add(
        self,
        kind: str,
        inputs: Mapping[str, str | Sequence[str]],
        shape: Sequence[int],
        dtype: str,
        name: str,
    ) -> str:
        """Append an operator with one result of a shape and type; returns its name."""
        return self.add_many(kind, inputs, [(name, shape)], dtype)[0]

    def add_many(
        self,
        kind: str,
        inputs: Mapping[str, str | Sequence[str]],
        outputs: Sequence[tuple[str, Sequence[int]]],
        dtype: str,
    ) -> list[str]:
        """Append an operator."""
        operation = self._operation(kind, outputs, dtype)
        for key, names in inputs.items():
            for name in [names] if isinstance(names, str) else names:
                operation.inputs[key].arguments.add().name = name
        return [name for name, _ in outputs]

    def _operation(
        self, kind: str, outputs: Sequence[tuple[str, Sequence[int]]], dtype: str
    ) -> Any:
        assert kind in OPERATORS, kind  # packages with another are refused
        operation = self._messages.Operation(type=kind)
        for name, shape in outputs:
            assert name not in self._known, name
            self._known[name] = (tuple(shape), dtype)
            operation.outputs.append(
                self._messages.NamedValueType(name=name, type=self._type(shape, dtype))
            )
        operation.attributes["name"].CopyFrom(self._immediate(np.array(outputs[0][0]), "string"))
        self._operations.append(operation)
        return operation

    def _type(self, shape: Sequence[int], dtype: str) -> Any:
        found = self._messages.ValueType()
        found.tensorType.dataType = self._types[dtype]
        found.tensorType.rank = len(shape)
        for size in shape:
            found.tensorType.dimensions.add().constant.size = size
        return found

    def text(self, value: str) -> str:
        """A string constant."""
        return self.const(np.array(value), "string")

    def flag(self, value: bool) -> str:
        """A truth value."""
        return self.const(np.array(value), "bool")

    def ints(self, values: Sequence[int] | int) -> str:
        """An int32 constant: a vector, or a scalar for a single number."""
        return self.const(np.array(values, dtype=np.int32), "int32")

    def const(self, value: np.ndarray | np.generic, dtype: str, key: object = None) -> str:
        """A constant of a type; equal ones, and those of one ``key``, are made once."""
        array = np.asarray(value)
        if key is None:
            key = (array.shape, array.tobytes(), str(array.dtype))
        return self.once(("const", dtype, key), lambda: self._const(array, dtype))

    def _const(self, array: np.ndarray, dtype: str) -> str:
        name = f"constant_{len(self._made)}"
        operation = self._operation("const", [(name, array.shape)], dtype)
        operation.attributes["val"].CopyFrom(self._stored(array, dtype))
        return name

    def constexpr(
        self, kind: str, shape: Sequence[int], dtype: str, name: str, given: Parts
    ) -> str:
        """Append an operator that unpacks a compressed constant.

        Its parameters stand inline: as attributes up to iOS 17, as inputs since iOS 18.
        """
        operation = self._operation(kind, [(name, shape)], dtype)
        for key, value in given.items():
            if isinstance(value, str):
                operation.inputs[key].arguments.add().name = value
            elif self.modern:
                operation.inputs[key].arguments.add().value.CopyFrom(self._stored(*value))
            else:
                operation.attributes[key].CopyFrom(self._stored(*value))
        return name

    def _stored(self, array: np.ndarray, dtype: str) -> Any:
        """A value in the message, or in the weight file when it is long."""
        if dtype == "fp16":
            array = self._half(array)
        if dtype in INLINE_TYPES:
            return self._immediate(array, dtype)
        element = ELEMENTS[dtype]
        if array.size <= INLINE_VALUES and element.bits >= 8:
            return self._immediate(array, dtype)
        flat = np.ascontiguousarray(array.reshape(-1), dtype=element.array)
        flat = flat.view(np.uint16) if dtype == "fp16" else flat
        value = self._messages.Value(type=self._type(array.shape, dtype))
        value.blobFileValue.fileName = WEIGHTS_FILE
        value.blobFileValue.offset = self._blobs.write(flat, element.verb)
        return value

    def _half(self, array: np.ndarray) -> np.ndarray:
        largest = float(np.abs(array).max(initial=0))
        if not largest <= LARGEST_FP16:  # nor is NaN
            raise InputError(
                f"{self.program.name}: a value of {largest:.0f} is beyond fp16's 65504; build "
                "scheme fp32 for Core ML"
            )
        return array.astype(np.float16)

    def _immediate(self, array: np.ndarray, dtype: str) -> Any:
        value = self._messages.Value(type=self._type(array.shape, dtype))
        tensor = value.immediateValue.tensor
        flat = array.reshape(-1)
        if dtype == "string":
            tensor.strings.values.extend(str(v) for v in flat)
        elif dtype == "bool":
            tensor.bools.values.extend(bool(v) for v in flat)
        elif dtype == "int32":
            tensor.ints.values.extend(int(v) for v in flat)
        elif dtype == "fp32":
            tensor.floats.values.extend(float(v) for v in flat)
        else:
            tensor.bytes.values = flat.astype(ELEMENTS[dtype].array).tobytes()
        return value

    def weight(self, node: fx.Node) -> tuple[str, str]:
        """A stored weight of a linear layer, a convolution or an embedding, and its float type."""
        source = self.program.tensors.get(node.name)
        if source is not None:  # fp32, or a constant
            wide = not isinstance(source, Constant)
            kind = "fp32" if wide else self.kind
            return self.const(self.array(node), kind, key=source), kind
        part = self.program.part(node)
        assert part is not None
        kind = self.kind
        if part.format.name != "fp16" and not self._fits_half(node, part.format):
            kind = "fp32"
        return self.once(
            ("weight", part.of, kind), lambda: self._compressed(node, part, kind)
        ), kind

    def _fits_half(self, node: fx.Node, form: Format) -> bool:
        """Whether fp16 holds the steps between codes as normal numbers, and the largest value.

        Smaller steps may vanish on a device: they may make up a thousandth of the weight. The step
        of a palette is that of int codes of as many bits.
        """
        scale = node.args[1]
        assert isinstance(scale, fx.Node)
        steps = np.abs(self.array(scale))
        if form.is_palette:
            steps = steps.max(axis=1) / 2 ** (form.bits - 1)
        vanishing = np.linalg.norm(steps[steps < SMALLEST_FP16])
        largest = steps.max(initial=0) * 2**form.bits
        return bool(vanishing <= 1e-3 * np.linalg.norm(steps) and largest <= LARGEST_FP16)

    def _compressed(self, node: fx.Node, part: Part, kind: str) -> str:
        given: dict[str, Stored | str]
        form, shape = part.format, part.of.shape
        codes = self.array(node.args[0])  # type: ignore[arg-type]
        if form.name == "fp16":
            if kind == "fp16":
                return self.const(codes, "fp16", key=part)
            given = {"source_val": (codes, "fp16"), "output_dtype": (np.array("fp32"), "string")}
            return self.constexpr("constexpr_cast", shape, kind, node.name, given)
        if form.is_palette:
            palette = self.array(node.args[1])  # type: ignore[arg-type]
            return self._palette(node.name, codes, palette, form.bits, kind)
        scale, zero_point = node.args[1:3]
        scales = self.array(scale)  # type: ignore[arg-type]
        if not self.modern:
            given = {
                "quantized_data": (codes, "int8"),
                "zero_point": (np.zeros(len(codes)), "int8"),
                "scale": (scales.reshape(-1), kind),
                "axis": (np.array(0), "int32"),
            }
            return self.constexpr("constexpr_affine_dequantize", shape, kind, node.name, given)
        blocks = (*scales.shape, *(1,) * (len(shape) - 2))
        signed = "" if form.symmetric else "u"
        stored = f"{signed}int{form.bits}"
        given = {"data": (codes, stored), "scale": (scales.reshape(blocks), kind)}
        if form.bits == 2:
            stored, least = kind, -2 if form.symmetric else 0
            values = np.arange(least, least + 4)[None]
            given["data"] = self._palette(f"{node.name}_codes", codes - least, values, 2, kind)
        if isinstance(zero_point, fx.Node):
            given["offset"] = (self.array(zero_point).reshape(blocks), stored)
        return self.constexpr("constexpr_blockwise_shift_scale", shape, kind, node.name, given)

    def _palette(
        self, name: str, codes: np.ndarray, palette: np.ndarray, bits: int, kind: str
    ) -> str:
        given: dict[str, Stored | str]
        if self.modern:
            table = palette.reshape(len(palette), *(1,) * (codes.ndim - 1), -1, 1)
            given = {"indices": (codes, f"uint{bits}"), "lut": (table, kind)}
        else:
            low_first = np.unpackbits(codes.reshape(-1, 1), axis=1, count=bits, bitorder="little")
            given = {
                "indices": (np.packbits(low_first.reshape(-1), bitorder="little"), "uint8"),
                "lut": (palette.reshape(-1), kind),
                "shape": (np.array(codes.shape), "uint32"),
            }
        return self.constexpr("constexpr_lut_to_dense", codes.shape, kind, name, given)

    def add_to(self, model: Any, name: str = "main") -> Any:
        """Make the graph a function of a model; returns the function's description.

        Outputs are float32 under their ports' names.
        """
        for node, port in zip(self.program.results(), self.program.outputs, strict=True):
            raw = self._values.get(node)  # not rounded to fp16 on its way to a float32 output
            value = raw if isinstance(raw, str) else self.value(node)
            if self._known[value][1] == "fp32":
                self.add("identity", {"x": value}, port.shape, "fp32", port.name)
            else:
                given = {"x": value, "dtype": self.text("fp32")}
                self.add("cast", given, port.shape, "fp32", port.name)
        opset, _ = OPSETS[self._target]
        function = model.mlProgram.functions[name]
        function.opset = opset
        block = function.block_specializations[opset]
        block.operations.extend(self._operations)
        block.outputs.extend(port.name for port in self.program.outputs)
        described = library.model_messages().FunctionDescription(name=name)
        for port in self.program.inputs:
            shape, dtype = self._known[port.name]
            function.inputs.add(name=port.name, type=self._type(shape, dtype))
            _describe(described.input.add(), port.name, shape, dtype)
        for port in self.program.outputs:
            _describe(described.output.add(), port.name, port.shape, "fp32")
        return described


def empty_model(target: str) -> Any:
    """A model specification without functions."""
    _, version = OPSETS[target]
    model = library.model_messages().Model(specificationVersion=version)
    model.mlProgram.version = 1
    return model


def _describe(feature: Any, name: str, shape: Sequence[int], dtype: str) -> None:
    feature.name = name
    array = feature.type.multiArrayType
    array.shape.extend(shape)
    array.dataType = {"fp32": array.FLOAT32, "int32": array.INT32}[dtype]

"""Runs a ``.mlpackage`` from disk where Core ML is missing.

The program is followed as it is written: each value has the type that its operator declares.
Sums are taken in float32 and every operator's result is rounded once to its declared type, so
fp16 overflows to infinity as on a device. A run therefore proves graph, weights, types and
contract. It does not prove what a particular GPU or Neural Engine accumulates in.

Weights are read when they are first used and kept up to a budget; activations are dropped after
their last use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from struct import Struct
from typing import Any

import numpy as np
import torch
from torch import Tensor

from exporter.backends.coreml import library
from exporter.backends.coreml.evaluator import operators
from exporter.backends.coreml.evaluator.operators import TORCH, Parameters
from exporter.backends.coreml.library import BLOB_ALIGN_BYTES, BLOB_SENTINEL, ELEMENTS
from exporter.errors import CheckFailed, InputError, tell_memory
from exporter.files.read import parse_json, read_text
from exporter.package.paths import is_relative

BLOB_HEADER = Struct("<IIQQQ")  # sentinel, element type, bytes, offset of the data, padding bits
PORTS = {65568: "fp32", 65552: "fp16", 131104: "int32"}  # ArrayFeatureType.ArrayDataType
MODEL_PATH = "@model_path/"

Run = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


class _Damaged(Exception):
    """Why a package cannot be opened."""


@dataclass(frozen=True)
class _Type:
    """A tensor's element type, and its shape with None for a size that is free."""

    element: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        sizes = ", ".join("?" if n is None else str(n) for n in self.shape)
        return f"{self.element} ({sizes})"

    def fixed(self) -> tuple[int, ...]:
        """The shape, of a constant; raises _Damaged when a size is free."""
        if None in self.shape:
            raise _Damaged(f"a constant is declared as {self}")
        return tuple(n for n in self.shape if n is not None)

    def count(self) -> int:
        """How many values a constant has."""
        return math.prod(self.fixed())

    def packed_bytes(self) -> int:
        """Bytes of a constant's values in a file."""
        return math.ceil(self.count() * ELEMENTS[self.element].bits / 8)

    def admits(self, shape: Sequence[int]) -> bool:
        return len(shape) == len(self.shape) and all(
            want is None or want == size for want, size in zip(self.shape, shape, strict=True)
        )


@dataclass(frozen=True, eq=False)
class _Immediate:
    """A constant inside the specification."""

    value: Tensor | str


@dataclass(frozen=True, eq=False)
class _Blob:
    """A constant in the weight file; its header was checked."""

    type: _Type
    file: Path
    offset: int


@dataclass(frozen=True, eq=False)
class _Derived:
    """A compressed constant: its parts and the formula that joins them."""

    compute: Callable[..., Tensor]
    parts: tuple[_Source | None, ...]


_Source = _Immediate | _Blob | _Derived


@dataclass(frozen=True, eq=False)
class _Value:
    """An argument: a constant, which has a source, or a value that a run computes, by name."""

    type: _Type
    source: _Source | None = None
    name: str = ""

    def at_run(self) -> str | _Source:
        """What a step keeps of it."""
        return self.source or self.name


@dataclass(frozen=True, eq=False)
class _Step:
    """One operator: the values it takes by name, constants by source.

    Attributes:
        done: values that nothing needs after this step.
    """

    kind: str
    arguments: tuple[str | _Source | None, ...]
    outputs: tuple[tuple[str, _Type], ...]
    compute: Callable[..., Sequence[Tensor]]
    done: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _Program:
    inputs: dict[str, _Type]
    outputs: dict[str, _Source | None]
    steps: tuple[_Step, ...]


def open_program(
    package: Path,
    keep_bytes: int = 1 << 30,
    *,
    function: str | None = None,
    model: bytes | None = None,
    name: Path | None = None,
) -> Run:
    """Open an ML Program; the result maps arrays by input name to arrays by output name.

    Args:
        package: an ``.mlpackage`` folder.
        keep_bytes: how many bytes of weights, as decompressed, are kept between uses.
        function: of a package that has several; None: its default.
        model: what stands in for the package's own, over the same weights.
        name: what errors call the package, if not by its path.

    Raises CheckFailed, in one line that starts with the path, when the package is damaged, breaks
    its own types or uses an operator that is not in ``operators.TABLE``. A run raises CheckFailed
    when inputs are missing, unknown or of another shape or type, and when a result does not have
    the shape that the program declares.
    """
    name = name or package
    try:
        model_file, folders = _root(package)
        content = _read(model_file) if model is None else model
        program = _read_program(name, content, (model_file, folders), function)
    except _Damaged as reason:
        raise CheckFailed(f"{name}: the evaluator cannot open it: {reason}") from None
    constants = _Constants(keep_bytes)

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            with torch.inference_mode():
                return _run(program, constants, inputs)
        except _Damaged as reason:
            raise CheckFailed(f"{name}: {reason}") from None

    return run


# Running.


def _run(
    program: _Program, constants: _Constants, inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    values = _feed(program.inputs, inputs)
    for step in program.steps:
        arguments = [
            values[a] if type(a) is str else constants.read(a)  # type: ignore[arg-type]
            for a in step.arguments
        ]
        with _naming(step.kind, step.outputs):
            results = step.compute(*arguments)
            _check_shapes(step.outputs, results)
        for (name, _), result in zip(step.outputs, results, strict=True):
            values[name] = result
        for name in step.done:
            del values[name]
    return {
        name: (values[name] if source is None else constants.read(source)).numpy().copy()  # type: ignore[union-attr]
        for name, source in program.outputs.items()
    }


def _check_shapes(outputs: Sequence[tuple[str, _Type]], results: Sequence[Tensor]) -> None:
    if len(results) != len(outputs):
        raise ValueError(f"{len(results)} results, declared are {len(outputs)}")
    for (name, declared), result in zip(outputs, results, strict=True):
        if result.shape != declared.shape and not declared.admits(result.shape):
            raise ValueError(f"'{name}' has shape {tuple(result.shape)}, declared as {declared}")


def _feed(ports: Mapping[str, _Type], inputs: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    for name in inputs:
        if name not in ports:
            raise _Damaged(f"no input is named '{name}'; known: {', '.join(sorted(ports))}")
    values = {}
    for name, declared in ports.items():
        if name not in inputs:
            raise _Damaged(f"input '{name}' is missing")
        array = inputs[name]
        if not declared.admits(array.shape):
            raise _Damaged(f"input '{name}' has shape {array.shape}, declared as {declared}")
        if not np.can_cast(array.dtype, ELEMENTS[declared.element].array, "same_kind"):
            raise _Damaged(f"input '{name}' is {array.dtype}, declared as {declared}")
        values[name] = torch.tensor(array).to(TORCH[declared.element])
    return values


class _Constants:
    """Reads constants. What steps use is kept up to a budget, in the order of first use."""

    def __init__(self, keep_bytes: int) -> None:
        self._free_bytes = keep_bytes
        self._kept: dict[_Source, Tensor] = {}
        self._readers: dict[Path, Any] = {}

    def read(self, source: _Source | None) -> Tensor | str | None:
        """The value of a constant; of an argument that is absent, None."""
        if source is None:
            return None
        if isinstance(source, _Immediate):
            return source.value
        value = self._kept.get(source)
        if value is None:
            value = self._make(source)
            size = value.numel() * value.element_size()
            if size <= self._free_bytes:
                self._free_bytes -= size
                self._kept[source] = value
        return value

    def _make(self, source: _Blob | _Derived) -> Tensor:
        if isinstance(source, _Blob):
            return self._blob(source)
        parts = [
            self._make(p) if isinstance(p, _Blob | _Derived) else self.read(p) for p in source.parts
        ]
        return source.compute(*parts)

    def _blob(self, blob: _Blob) -> Tensor:
        if blob.file not in self._readers:
            self._readers[blob.file] = library.blob_reader(blob.file)
        element = ELEMENTS[blob.type.element]
        read = getattr(self._readers[blob.file], f"read_{element.verb}_data")
        try:
            values: np.ndarray = read(blob.offset)
        except (RuntimeError, ValueError) as error:
            raise _Damaged(f"{blob.file.name} at {blob.offset}: {_first_line(error)}") from None
        return torch.from_numpy(values.view(element.array)).reshape(blob.type.fixed())


def _label(kind: str, outputs: Sequence[tuple[str, _Type]]) -> str:
    return f"{kind} '{outputs[0][0]}'" if outputs else kind


@contextmanager
def _naming(kind: str, outputs: Sequence[tuple[str, _Type]]) -> Iterator[None]:
    """Name the operator in what a formula or a check refuses, unless it is for want of memory."""
    try:
        yield
    except (RuntimeError, ValueError, IndexError, TypeError, _Damaged) as error:
        tell_memory(error)
        raise _Damaged(f"{_label(kind, outputs)}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


# The package.


def model_file_of(package: Path) -> Path:
    """The specification in an ``.mlpackage``; raises CheckFailed where there is none."""
    try:
        return _root(package)[0]
    except _Damaged as reason:
        raise CheckFailed(f"{package}: {reason}") from None


def _root(package: Path) -> tuple[Path, list[Path]]:
    """The model file that the manifest names as root, and all that the manifest lists."""
    file = package / "Manifest.json"
    if not file.exists():
        raise _Damaged("no Manifest.json (No such file or directory)")
    try:
        manifest = parse_json(read_text(file), file)
    except InputError:
        raise _Damaged("Manifest.json is not JSON") from None
    try:
        items = manifest["itemInfoEntries"]
        root = str(items[manifest["rootModelIdentifier"]]["path"])
        paths = [package / "Data" / str(item["path"]) for item in items.values()]
    except (KeyError, TypeError, AttributeError):
        raise _Damaged("Manifest.json does not name a root model") from None
    for item in items.values():
        _refuse_outside(str(item["path"]))
    for path in paths:
        if not path.exists():
            raise _Damaged(f"{path.relative_to(package)} is missing")
    return package / "Data" / root, paths


def _refuse_outside(path: str) -> None:
    if not is_relative(path):
        raise _Damaged(f"'{path}' lies outside the package")


def _read(model_file: Path) -> bytes:
    try:
        return model_file.read_bytes()
    except OSError as error:
        raise _Damaged(f"{model_file.name}: {error.strerror}") from None


def _read_program(
    package: Path, content: bytes, holder: tuple[Path, list[Path]], asked: str | None
) -> _Program:
    """A function of a model.

    Args:
        holder: the model file and all that is listed of the package.
        asked: the function's name; None: the default.
    """
    model, (model_file, _) = library.model_messages().Model(), holder
    try:
        model.ParseFromString(content)
    except Exception:  # protobuf's own type
        raise _Damaged(f"{model_file.name} is not a model specification") from None
    if model.WhichOneof("Type") != "mlProgram":
        raise _Damaged(f"{model_file.name} holds no ML Program")
    function_name = asked or model.description.defaultFunctionName or "main"
    if function_name not in model.mlProgram.functions:
        raise _Damaged(f"the program has no function '{function_name}'")
    function = model.mlProgram.functions[function_name]
    if function.opset not in function.block_specializations:
        raise _Damaged(f"function '{function_name}' has no block for opset '{function.opset}'")
    block = function.block_specializations[function.opset]
    unknown = sorted({op.type for op in block.operations} - set(operators.TABLE) - {"const"})
    if unknown:
        names = ", ".join(f"'{name}'" for name in unknown)
        verb = "operator {} is" if len(unknown) == 1 else "operators {} are"
        raise CheckFailed(f"{package}: {verb.format(names)} not known to the evaluator")
    opening = _Opening(*holder)
    described = _described(model, function_name)
    inputs = opening.inputs(function.inputs, described.input)
    for operation in block.operations:
        opening.operation(operation)
    return _Program(inputs, opening.outputs(block.outputs, described.output), opening.plan())


def _described(model: Any, function: str) -> Any:
    """What a model says of a function's inputs and outputs: of its only one, of itself."""
    if not model.description.functions:
        return model.description
    found = [entry for entry in model.description.functions if entry.name == function]
    if len(found) != 1:
        raise _Damaged(f"function '{function}' is described {len(found)} times")
    return found[0]


class _Opening:
    """Turns the operations of a block into steps, checking each against what precedes it."""

    def __init__(self, model_file: Path, listed: list[Path]) -> None:
        self._folder, self._listed = model_file.parent, listed
        self._values: dict[str, _Value] = {}
        self._steps: list[_Step] = []
        self._results: dict[str, _Source | None] = {}
        self._elements = {
            number: name.lower().replace("float", "fp")
            for name, number in library.program_messages().DataType.items()
        }

    def inputs(self, declared: Any, ports: Any) -> dict[str, _Type]:
        """The function's inputs, which must be the model's."""
        found = {port.name: self._type(port.type) for port in declared}
        for name, type_ in found.items():
            self._define(_Value(type_, name=name))
        self._agree("input", {p.name: p for p in ports}, found)
        return found

    def outputs(self, names: Sequence[str], ports: Any) -> dict[str, _Source | None]:
        """Sources of the block's outputs, None for computed ones; they must be the model's."""
        found = {name: self._known(name) for name in names}
        self._agree("output", {p.name: p for p in ports}, {n: v.type for n, v in found.items()})
        self._results = {port.name: found[port.name].source for port in ports}
        return self._results

    def _agree(self, sort: str, ports: Mapping[str, Any], found: Mapping[str, _Type]) -> None:
        for name in sorted(ports.keys() ^ found.keys()):
            where = "description" if name in ports else "program"
            raise _Damaged(f"{sort} '{name}' is in the {where} only")
        for name, port in ports.items():
            array = port.type.multiArrayType
            element, shape = PORTS.get(array.dataType), tuple(array.shape)
            if element != found[name].element or (shape and not found[name].admits(shape)):
                described = _Type(element or "of another type", shape)
                raise _Damaged(f"{sort} '{name}' is described as {described}, but is {found[name]}")

    def operation(self, operation: Any) -> None:
        """Take in one operation: a constant becomes a value, anything else a step."""
        outputs = tuple((o.name, self._type(o.type)) for o in operation.outputs)
        with _naming(operation.type, outputs):
            if operation.type == "const":
                self._constant(operation, outputs)
            elif operation.type.startswith("constexpr_"):
                self._compressed(operation, outputs)
            else:
                self._step(operation, outputs)

    def _constant(self, operation: Any, outputs: Sequence[tuple[str, _Type]]) -> None:
        ((name, declared),) = outputs
        if "val" not in operation.attributes:
            raise _Damaged("it has no 'val'")
        value = self._literal(operation.attributes["val"])
        if value.type != declared:
            raise _Damaged(f"its value is {value.type}, declared as {declared}")
        self._define(replace(value, name=name))

    def _compressed(self, operation: Any, outputs: Sequence[tuple[str, _Type]]) -> None:
        """constexpr operators: parts are attributes before iOS18, and inputs since."""
        ((name, declared),) = outputs
        arguments = {
            n: (self._literal(v),) for n, v in operation.attributes.items() if n != "name"
        } | self._arguments(operation)
        tensors, compute, late = self._bind(operation.type, arguments, outputs)
        parts = []
        for tensor in tensors:
            if late or (tensor is not None and tensor.source is None):
                raise _Damaged("its inputs are not all constants")
            parts.append(tensor.source if tensor else None)

        def derive(*values: Tensor) -> Tensor:
            with _naming(operation.type, outputs):
                results = compute(*values)
                _check_shapes(outputs, results)
            return results[0]

        self._define(_Value(declared, _Derived(derive, tuple(parts)), name))

    def _step(self, operation: Any, outputs: tuple[tuple[str, _Type], ...]) -> None:
        tensors, compute, late = self._bind(operation.type, self._arguments(operation), outputs)
        arguments = tuple(value.at_run() if value else None for value in (*tensors, *late))
        for name, declared in outputs:
            self._define(_Value(declared, name=name))
        self._steps.append(_Step(operation.type, arguments, outputs, compute))

    def _bind(
        self,
        kind: str,
        arguments: Mapping[str, tuple[_Value, ...]],
        outputs: Sequence[tuple[str, _Type]],
    ) -> tuple[list[_Value | None], Callable[..., Sequence[Tensor]], list[_Value]]:
        """Sort arguments into tensors and parameters and bind the formula to the parameters.

        Returns the tensors; the formula; and the parameters that are computed by the program, with
        which the formula is to be called behind the tensors.
        """
        row = operators.TABLE[kind]
        tensors = list(_pick(row.tensors, arguments))
        named = {n.strip("?"): v for n in row.parameters.split() for v in _pick(n, arguments) if v}
        expected = {n.strip("?*") for n in f"{row.tensors} {row.parameters}".split()}
        for name in sorted(set(arguments) - expected):
            raise _Damaged(f"it has no input '{name}'")
        read = _Constants(0).read
        known: dict[str, Any] = {n: read(v.source) for n, v in named.items() if v.source}
        kinds = {n: v.type.element for n, v in named.items()}
        parameters = Parameters(known, kinds)
        element = row.result([t.type.element for t in tensors if t], parameters)
        for name, declared in outputs:
            if declared.element != element:
                raise _Damaged(f"'{name}' is {element}, declared as {declared}")
        late = {n: v for n, v in named.items() if not v.source}
        widen = row.computes and any(t and t.type.element == "fp16" for t in tensors)
        if not late:
            return tensors, _rounded(row.bind(parameters), TORCH[element], widen), []

        def bind_late(*values: Any) -> Sequence[Tensor]:
            found = dict(zip(late, values[len(tensors) :], strict=True))
            compute = row.bind(Parameters(known | found, kinds))
            return _rounded(compute, TORCH[element], widen)(*values[: len(tensors)])

        return tensors, bind_late, list(late.values())

    def _arguments(self, operation: Any) -> dict[str, tuple[_Value, ...]]:
        return {
            name: tuple(
                self._known(b.name) if b.WhichOneof("binding") == "name" else self._literal(b.value)
                for b in argument.arguments
            )
            for name, argument in operation.inputs.items()
        }

    def _define(self, value: _Value) -> None:
        if value.name in self._values:
            raise _Damaged(f"value '{value.name}' is defined twice")
        self._values[value.name] = value

    def _known(self, name: str) -> _Value:
        if name not in self._values:
            raise _Damaged(f"value '{name}' is used before it is defined")
        return self._values[name]

    def plan(self) -> tuple[_Step, ...]:
        """The steps, each knowing which values end with it."""
        needed, steps = set(self._results), []
        for step in reversed(self._steps):
            used = {a for a in step.arguments if isinstance(a, str)}
            made = {name for name, _ in step.outputs}
            steps.append(replace(step, done=tuple(sorted((used | made) - needed))))
            needed |= used
        return tuple(reversed(steps))

    # Types and constants.

    def _type(self, message: Any) -> _Type:
        if message.WhichOneof("type") != "tensorType":
            raise _Damaged(f"a value is of {message.WhichOneof('type') or 'no type'}")
        tensor = message.tensorType
        element = self._elements.get(tensor.dataType, "")
        if element not in ELEMENTS and element != "string":
            raise _Damaged(f"a value is of element type '{element}'")
        if tensor.rank != len(tensor.dimensions):
            raise _Damaged(f"rank {tensor.rank} with {len(tensor.dimensions)} dimensions")
        return _Type(
            element,
            tuple(
                d.constant.size if d.WhichOneof("dimension") == "constant" else None
                for d in tensor.dimensions
            ),
        )

    def _literal(self, message: Any) -> _Value:
        declared = self._type(message.type)
        declared.fixed()
        if message.WhichOneof("value") == "blobFileValue":
            return _Value(declared, self._blob(message.blobFileValue, declared))
        if message.immediateValue.WhichOneof("value") != "tensor":
            raise _Damaged("a constant has no tensor value")
        return _Value(declared, _Immediate(_immediate(message.immediateValue.tensor, declared)))

    def _blob(self, message: Any, declared: _Type) -> _Blob:
        if not message.fileName.startswith(MODEL_PATH):
            raise _Damaged(f"weight file '{message.fileName}' is not below {MODEL_PATH}")
        _refuse_outside(message.fileName.removeprefix(MODEL_PATH))
        file = self._folder / message.fileName.removeprefix(MODEL_PATH)
        if not any(path == file or path in file.parents for path in self._listed):
            raise _Damaged(f"Manifest.json does not list weight file '{message.fileName}'")
        _check_header(file, message.offset, declared)
        return _Blob(declared, file, message.offset)


def _pick(names: str, arguments: Mapping[str, tuple[_Value, ...]]) -> Iterator[_Value | None]:
    """The arguments of these names, None for an optional one that is absent."""
    for name in names.split():
        found = arguments.get(name.strip("?*"), ())
        if not found and not name.endswith("?"):
            raise _Damaged(f"its input '{name.strip('*')}' is missing")
        if len(found) > 1 and not name.endswith("*"):
            raise _Damaged(f"its input '{name.strip('?')}' has {len(found)} values")
        yield from found or (None,)


def _rounded(
    compute: Callable[..., Any], dtype: torch.dtype, widen: bool
) -> Callable[..., Sequence[Tensor]]:
    """A formula in float32 whose results, in a sequence, are rounded to ``dtype``."""

    def rounded(*values: Tensor | None) -> Sequence[Tensor]:
        if widen:
            values = tuple(
                v.float() if v is not None and v.dtype == torch.float16 else v for v in values
            )
        result = compute(*values)
        if isinstance(result, Tensor):
            return (result.to(dtype),)
        return [r.to(dtype) for r in result]

    return rounded


def _immediate(message: Any, declared: _Type) -> Tensor | str:
    """A value inside the specification, whichever field of ``TensorValue`` holds it."""
    field = message.WhichOneof("value")
    values: Any = getattr(message, field).values if field else ()
    if declared.element == "string":
        if field != "strings" or len(values) != 1:
            raise _Damaged("a constant is not a single string")
        return str(values[0])
    element = ELEMENTS[declared.element]
    if field == "bytes":
        if len(values) != declared.packed_bytes():
            raise _Damaged(f"a constant of {len(values)} bytes is declared as {declared}")
        array = np.frombuffer(values, np.uint8).copy()
        if element.bits < 8:
            return _unpacked(torch.from_numpy(array), declared)
        array = array.view(element.array)
    else:
        array = np.array(values, element.array)
    if array.size != declared.count():
        raise _Damaged(f"a constant of {array.size} values is declared as {declared}")
    return torch.from_numpy(array).reshape(declared.fixed())


def _unpacked(packed: Tensor, declared: _Type) -> Tensor:
    codes = operators.unpack(packed, ELEMENTS[declared.element].bits, declared.count())
    if declared.element == "int4":
        codes = (codes.to(torch.int8) ^ 8) - 8
    return codes.reshape(declared.fixed())


def _check_header(file: Path, offset: int, declared: _Type) -> None:
    """Raise _Damaged unless ``offset`` holds a blob of this type that ends inside the file."""
    where = f"{file.name} at {offset}"
    try:
        end = file.stat().st_size
        if offset + BLOB_HEADER.size > end:
            raise _Damaged(f"{where}: the file ends at {end}")
        with file.open("rb") as stream:
            stream.seek(offset)
            header = stream.read(BLOB_HEADER.size)
    except OSError as error:
        raise _Damaged(f"{file.name}: {error.strerror}") from None
    sentinel, kind, size, start, _ = BLOB_HEADER.unpack(header)
    if sentinel != BLOB_SENTINEL or offset % BLOB_ALIGN_BYTES:
        raise _Damaged(f"{where}: no blob begins there")
    element = ELEMENTS.get(declared.element)
    if element is None or not element.blob or kind != element.blob:
        raise _Damaged(f"{where}: the blob is not {declared.element}")
    wanted = declared.packed_bytes()
    if size != wanted:
        raise _Damaged(f"{where}: the blob has {size} bytes, {declared} needs {wanted}")
    if start + size > end:
        raise _Damaged(f"{where}: the blob ends at {start + size}, the file at {end}")

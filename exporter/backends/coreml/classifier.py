"""A classifier of the user's in an ML Program: its inputs, and the files of its folder."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from exporter.backends.contract import Classifier, Operator
from exporter.backends.coreml import library
from exporter.backends.coreml.evaluator.program import PORTS, model_file_of
from exporter.errors import InputError
from exporter.files.read import panics_as, read_bytes

FLOATS = ("fp32", "fp16")  # the engine casts what it is fed


def read_classifier(entry: Path) -> Classifier:
    """The inputs of an ``.mlpackage``.

    Raises InputError for what is none, and for inputs that are no tensors of floats.
    """
    with panics_as(lambda said: InputError(f"{entry}: cannot be read as an ML Program: {said}")):
        model = library.model_messages().Model()
        model.ParseFromString(read_bytes(model_file_of(entry)))
    inputs: dict[str, tuple[int | None, ...]] = {}
    for port in model.description.input:
        kind = port.type.WhichOneof("Type")
        array = port.type.multiArrayType
        if kind != "multiArrayType" or PORTS.get(array.dataType) not in FLOATS:
            raise InputError(
                f"{entry}: input '{port.name}' is no tensor of float32 or float16; convert it with "
                "ct.TensorType"
            )
        inputs[port.name] = tuple(array.shape)
    files = tuple(sorted(f for f in entry.rglob("*") if f.is_file()))
    return Classifier(entry, files, inputs)


def operators_of(entry: Path, shape: tuple[int, ...]) -> list[Operator]:
    """What a program computes; the size of its picture is its own."""
    model = library.model_messages().Model()
    model.ParseFromString(read_bytes(model_file_of(entry)))
    function = model.mlProgram.functions[model.description.defaultFunctionName or "main"]
    block = function.block_specializations[function.opset]
    return [
        Operator(
            tuple(a.name for given in operation.inputs.values() for a in given.arguments if a.name),
            {output.name: _bytes(output.type.tensorType) for output in operation.outputs},
        )
        for operation in block.operations
        if operation.type != "const"
    ]


def _bytes(kind: Any) -> int | None:
    """Of a tensor, at four bytes a value at most."""
    sizes = [axis.constant.size for axis in kind.dimensions if axis.HasField("constant")]
    return 4 * math.prod(sizes) if len(sizes) == len(kind.dimensions) else None

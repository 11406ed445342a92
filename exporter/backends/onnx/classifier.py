"""A classifier of the user's in an ONNX file: its inputs, and the files it is in."""

from __future__ import annotations

import math
from pathlib import Path

from exporter.backends.contract import Classifier, Operator
from exporter.errors import InputError
from exporter.files.read import panics_as

FLOAT = "tensor(float)"  # onnxruntime's name of float32


def read_classifier(entry: Path) -> Classifier:
    """The inputs of an ONNX graph; weights in files of their own have to lie beside it.

    Raises InputError for what onnxruntime cannot open, and for inputs of another type.
    """
    import onnxruntime as ort

    config = ort.SessionOptions()
    config.log_severity_level = 4
    with panics_as(lambda said: InputError(f"{entry}: onnxruntime cannot open it: {said}")):
        opened = ort.InferenceSession(
            str(entry), config, providers=["CPUExecutionProvider"], enable_fallback=0
        )
        files = (entry, *_external(entry))
    for port in opened.get_inputs():
        if port.type != FLOAT:
            raise InputError(f"{entry}: input '{port.name}' is {port.type}, and {FLOAT} is fed")
    inputs = {
        port.name: tuple(
            size if isinstance(size, int) and size > 0 else None for size in port.shape
        )
        for port in opened.get_inputs()
    }
    return Classifier(entry, files, inputs)


def operators_of(entry: Path, shape: tuple[int, ...]) -> list[Operator]:
    """What a graph computes of a picture of this shape."""
    import onnx
    from onnx import helper

    model = onnx.load(str(entry), load_external_data=False)
    stored = {tensor.name for tensor in model.graph.initializer}
    (fed,) = (port for port in model.graph.input if port.name not in stored)
    for axis, size in zip(fed.type.tensor_type.shape.dim, shape, strict=True):
        axis.dim_value = size
    graph = onnx.shape_inference.infer_shapes(model).graph
    known: dict[str, int] = {}
    for value in (*graph.value_info, *graph.output):
        kind = value.type.tensor_type
        sizes = [axis.dim_value for axis in kind.shape.dim]
        if kind.HasField("shape") and all(sizes):
            item = helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize
            known[value.name] = item * math.prod(sizes)
    return [
        Operator(tuple(node.input), {name: known.get(name) for name in node.output if name})
        for node in graph.node
    ]


def _external(entry: Path) -> list[Path]:
    """The files of weights that a graph names; raises InputError for one that is not beside it."""
    import onnx
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    model = onnx.load(str(entry), load_external_data=False)
    tensors = [t for t in model.graph.initializer if uses_external_data(t)]
    names = sorted({ExternalDataInfo(tensor).location for tensor in tensors})
    for name in names:
        if Path(name).name != name:
            raise InputError(f"{entry}: its weights are in '{name}'; save them beside the graph")
    return [entry.parent / name for name in names]

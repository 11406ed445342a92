"""A classifier of the user's in an ONNX file: its inputs, and the files it is in."""

from __future__ import annotations

from pathlib import Path

from exporter.backends.contract import Classifier
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
        opened = ort.InferenceSession(str(entry), config, providers=["CPUExecutionProvider"])
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

"""A classifier of the user's in OpenVINO's IR: its inputs, and the two files it is in."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from exporter.backends.contract import Classifier, Operator
from exporter.errors import InputError
from exporter.files.read import panics_as

FLOAT = "f32"  # OpenVINO's name of float32


def read_classifier(entry: Path) -> Classifier:
    """The inputs of a graph in IR.

    Raises InputError for what OpenVINO cannot read, and for inputs of another type.
    """
    import openvino as ov

    with panics_as(lambda said: InputError(f"{entry}: OpenVINO cannot read it: {said}")):
        model = ov.Core().read_model(str(entry))
        ports = {
            port.any_name: (port.element_type.get_type_name(), port.partial_shape)
            for port in model.inputs
        }
    for name, (kind, _) in ports.items():
        if kind != FLOAT:
            raise InputError(f"{entry}: input '{name}' is {kind}, and {FLOAT} is fed")
    inputs = {
        name: tuple(size.get_length() if size.is_static else None for size in shape)
        for name, (_, shape) in ports.items()
    }
    weights = entry.with_suffix(".bin")
    files = (entry, weights) if weights.is_file() else (entry,)
    return Classifier(entry, files, inputs, {"INFERENCE_PRECISION_HINT": "f32"})


def operators_of(entry: Path, shape: tuple[int, ...]) -> list[Operator]:
    """What a graph computes of a picture of this shape."""
    import openvino as ov

    model: Any = ov.Core().read_model(str(entry))
    model.reshape(list(shape))
    found = []
    for node in model.get_ordered_ops():
        if node.get_type_name() in ("Constant", "Parameter", "Result"):
            continue
        reads = (port.get_source_output() for port in node.inputs())
        found.append(
            Operator(tuple(map(_name, reads)), {_name(o): _bytes(o) for o in node.outputs()})
        )
    return found


def _name(output: Any) -> str:
    return f"{output.get_node().get_friendly_name()}:{output.get_index()}"


def _bytes(output: Any) -> int | None:
    if not output.get_partial_shape().is_static:
        return None
    return int(-(-math.prod(output.get_shape()) * output.get_element_type().bitwidth // 8))

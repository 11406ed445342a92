"""Where a graph goes off on the NPU: every value of it, beside what the processor computes."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from exporter.backends.contract import SessionOptions
from exporter.backends.onnx import session
from exporter.backends.onnx.qnn.log import QUANTIZING
from exporter.backends.onnx.qnn.process import Order, opened
from exporter.backends.onnx.qnn.socs import soc_to_run
from exporter.errors import CheckFailed
from exporter.package.measures import relative_error

if TYPE_CHECKING:
    import onnx

AT_ONCE = 200  # values that a graph is asked for besides its own: each is copied out


@dataclass(frozen=True)
class Layer:
    """An operator of a graph, and how far its value on the NPU is from the processor's.

    Attributes:
        error: relative L2 error of what it gives.
        before: the largest of what it reads.
    """

    name: str
    kind: str
    error: float
    before: float

    @property
    def own(self) -> float:
        """What it adds."""
        return self.error - self.before


def where_off(entry: Path, device: str, inputs: Mapping[str, np.ndarray], allowed: float) -> str:
    """The operator that adds most to what is off, among those that were exact enough before.

    Empty without the ``onnx`` library, or where no operator is off by itself.
    """
    if importlib.util.find_spec("onnx") is None:
        return ""
    try:
        layers = compare(Order(str(entry.absolute()), soc_to_run(device)), inputs)
    except CheckFailed:  # with more outputs it is another graph, which the provider may not take
        return ""
    found = [layer for layer in layers if layer.before <= allowed < layer.error]
    if not found:
        return ""
    first = max(found, key=lambda layer: layer.own)
    return (
        f"off from {first.kind} '{first.name}' on: {first.error:.1e}, and {first.before:.1e} in "
        "what it reads"
    )


def compare(order: Order, inputs: Mapping[str, np.ndarray]) -> list[Layer]:
    """Every operator of a graph that gives rounded values, in order; needs the ``onnx`` library.

    Raises CheckFailed for a graph that the provider does not take.
    """
    import onnx

    entry = Path(order.entry)
    model = onnx.load(str(entry), load_external_data=False)
    made = {output: node for node in model.graph.node for output in node.output}
    rounded = {}  # what each value of a DequantizeLinear is rounded from
    for node in model.graph.node:
        codes = made.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if codes is not None and codes.op_type == "QuantizeLinear":
            rounded[node.output[0]] = codes.input[0]
    errors = dict(_errors(order, entry, model, [*rounded], inputs))
    found = []
    for name, source in rounded.items():
        maker = made.get(source)
        if maker is not None and maker.op_type not in QUANTIZING:
            before = max((errors.get(read, 0.0) for read in maker.input), default=0.0)
            found.append(Layer(maker.name, maker.op_type, errors[name], before))
    return found


def _errors(
    order: Order,
    entry: Path,
    model: onnx.ModelProto,
    names: Sequence[str],
    inputs: Mapping[str, np.ndarray],
) -> Iterator[tuple[str, float]]:
    """The relative error of each value, some of them at a time."""
    import onnx

    known = {v.name: v for v in onnx.shape_inference.infer_shapes(model).graph.value_info}
    known |= {port.name: port for port in model.graph.output}
    own = [*model.graph.output]
    with tempfile.TemporaryDirectory(prefix="fourstep-npu-") as folder:
        place = Path(folder, entry.name)
        for file in entry.parent.glob("*.data"):
            shutil.copyfile(file, place.parent / file.name)
        for start in range(0, len(names), AT_ONCE):
            asked = [known[name] for name in names[start : start + AT_ONCE]]
            ports = {port.name: port for port in (*own, *asked)}
            del model.graph.output[:]
            model.graph.output.extend(ports.values())
            place.write_bytes(model.SerializeToString())
            expected = session.open_graph(place, {}, SessionOptions())(inputs)
            worker = opened(replace(order, entry=str(place)))
            found = worker(inputs)
            worker.close()
            for port in asked:
                yield port.name, relative_error(found[port.name], expected[port.name])

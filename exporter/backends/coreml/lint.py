"""What Apple's Neural Engine cannot take, found in a written package.

Rules (Apple's notes on authoring for the engine and on model size): tensors of rank over 5,
constants that are not finite, a last axis of one value (it is padded to 64 bytes), over 1 GB of
weights in a graph on an iPhone, sizes that are not fixed, sines and cosines in fp16, and any
operator that computes in float32. A graph with findings still runs: what the engine refuses falls
to the GPU or the processor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exporter.backends.coreml import library
from exporter.backends.coreml.emitter import FLOAT32_GRAPHS
from exporter.backends.coreml.library import data_types
from exporter.package.names import graph_of

LARGEST_RANK = 5
LARGEST_GRAPH_BYTES = 1_000_000_000
FREE = ("const", "identity", "cast")  # take no time of their own, or sit between types


@dataclass(frozen=True)
class Finding:
    """One thing that keeps a graph, or an operator of it, off the Neural Engine."""

    graph: str
    operator: str
    output: str
    reason: str

    def __str__(self) -> str:
        where = f"{self.operator} {self.output}" if self.output else self.operator
        return f"Neural Engine: {self.graph}: {where}: {self.reason}"


def lint(
    package: Path, graph: str, function_name: str = "main", content: bytes | None = None
) -> list[Finding]:
    """The findings of one ``.mlpackage``, in order; operators in float32 are one finding.

    Args:
        function_name: of its functions, the graph's.
        content: of a model over the package's weights, in place of its own.
    """
    inside = package / "Data" / "com.apple.CoreML"
    model = library.model_messages().Model()
    model.ParseFromString(content or (inside / "model.mlmodel").read_bytes())
    function = model.mlProgram.functions[function_name]
    block = function.block_specializations[function.opset]
    weights = inside / "weights" / "weight.bin"
    found = [
        Finding(graph, operation.type, output.name, reason)
        for operation in block.operations
        for output in operation.outputs
        for reason in _reasons(operation, output.type.tensorType, weights)
    ]
    size = weights.stat().st_size if weights.exists() else 0
    if size > LARGEST_GRAPH_BYTES:
        found.append(Finding(graph, "graph", "", f"{size / 1e9:.1f} GB of weights; at most 1 GB"))
    return [*found, *_wide(graph, block.operations)]


def _reasons(operation: Any, kind: Any, weights: Path) -> Iterator[str]:
    dynamic = any(not d.HasField("constant") for d in kind.dimensions)
    shape = [d.constant.size for d in kind.dimensions]
    half = kind.dataType == data_types()["fp16"]
    if dynamic:
        yield "its size is not fixed"
    if len(shape) > LARGEST_RANK:
        yield f"rank {len(shape)}; at most {LARGEST_RANK}"
    if half and operation.type != "const" and len(shape) > 1 and shape[-1] == 1 and max(shape) > 1:
        yield "its last axis has one value, padded to 64 bytes"
    if half and operation.type in ("sin", "cos"):
        yield "a sinusoid in fp16"
    if operation.type == "const" and half and not np.isfinite(_halves(operation, weights)).all():
        yield "a constant that is not finite"


def _halves(operation: Any, weights: Path) -> np.ndarray:
    """The values of an fp16 constant, which stand in the message or in the weight file."""
    value = operation.attributes["val"]
    if value.WhichOneof("value") == "blobFileValue":
        stored: np.ndarray = library.blob_reader(weights).read_fp16_data(value.blobFileValue.offset)
        return stored.view(np.float16)
    return np.frombuffer(value.immediateValue.tensor.bytes.values, dtype=np.float16)


def _wide(graph: str, operations: Any) -> Iterator[Finding]:
    """One finding for all operators that compute in float32."""
    wide = data_types()["fp32"]
    count = Counter(
        operation.type
        for operation in operations
        if operation.type not in FREE
        and not operation.type.startswith("constexpr")
        and any(o.type.tensorType.dataType == wide for o in operation.outputs)
    )
    half = any(
        o.type.tensorType.dataType == data_types()["fp16"] for p in operations for o in p.outputs
    )
    asked = not half and graph_of(graph) not in FLOAT32_GRAPHS
    why = "as its weights' format asks" if asked else "where fp16 would overflow or lose too much"
    if count:
        listed = ", ".join(f"{n} {kind}" for kind, n in sorted(count.items()))
        reason = f"{count.total()} operators compute in float32, {why}, on the GPU or CPU: {listed}"
        yield Finding(graph, "graph", "", reason)

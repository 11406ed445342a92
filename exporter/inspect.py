"""What a checkpoint would become: parameters, bytes per scheme and memory, before building."""

from __future__ import annotations

from dataclasses import dataclass

from exporter.checkpoint import Checkpoint
from exporter.cut import Cut
from exporter.formats import load_scheme, scheme_names
from exporter.graphs import cut_graphs
from exporter.quantize import Weights, quantize
from exporter.runtime.manifest import GraphEntry
from exporter.trace import activation_bytes, bind, trace

PROCESS_BYTES = 80_000_000  # Python, numpy and a runtime before any graph is opened


@dataclass(frozen=True)
class GraphSize:
    """One graph of a checkpoint: weight values, bytes per scheme, largest live activations."""

    graph: str
    parameters: int
    bytes: dict[str, int]
    activation_bytes: int


def inspect_checkpoint(checkpoint: Checkpoint, cut: Cut) -> list[GraphSize]:
    """Trace every graph without reading a weight, and add up what each scheme would store."""
    weights, sizes = Weights(checkpoint), []
    for graph in cut_graphs(checkpoint, cut):
        program = trace(graph)
        bind(program, weights.shape)
        quantized = {n: quantize(program, load_scheme(n).format_of) for n in scheme_names()}
        sizes.append(
            GraphSize(
                graph.name,
                sum(quantized["fp32"].values_by_format().values()),
                {name: found.stored_bytes() for name, found in quantized.items()},
                activation_bytes(program),
            )
        )
    return sizes


def default_cut(checkpoint: Checkpoint) -> Cut:
    """The resolution that the transformer was trained at, four steps, T5 if there is one."""
    size = int(checkpoint.component("transformer").setting("sample_size")) * 8
    return Cut((1.0, 0.9, 0.75, 0.5, 0.0), size, size, t5=checkpoint.has_t5)


def predicted_peak_bytes(weight_bytes: int, activations: int) -> int:
    """Predicted resident memory while a graph runs: the process, the weights once and half again
    (a runtime packs copies of them), and the activations."""
    return PROCESS_BYTES + weight_bytes * 3 // 2 + activations


def most_weight_bytes(memory_bytes: int, activations: int) -> int:
    """The most bytes of weights with which a graph is predicted to run in so much memory."""
    return (memory_bytes - PROCESS_BYTES - activations) * 2 // 3


def package_peak_bytes(graphs: tuple[GraphEntry, ...]) -> int:
    """Graphs are opened in turn, so the peak is the largest, not the sum."""
    return max(predicted_peak_bytes(g.bytes, g.activation_bytes) for g in graphs)

"""What a checkpoint would become, before building: bytes of files, memory to build and to run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from exporter import backends
from exporter.checkpoint import Checkpoint
from exporter.cut import Cut
from exporter.errors import InputError
from exporter.formats import Format, Scheme
from exporter.graphs import cut_graphs
from exporter.parts import emitted, split
from exporter.predict import build_bytes, file_bytes, run_bytes
from exporter.quantize import QuantizedProgram, Weights, quantize_all
from exporter.trace import Program, bind, trace

MOST_PARTS = 16  # of T5, that a refusal proposes


@dataclass(frozen=True)
class GraphSize:
    """One graph in a scheme on a backend.

    Attributes:
        parameters: weight values.
        bytes: of its files.
        build_bytes, run_bytes: peak anonymous memory.
    """

    backend: str
    scheme: str
    graph: str
    parameters: int
    bytes: int
    build_bytes: int
    run_bytes: int


def traced(checkpoint: Checkpoint, cut: Cut) -> dict[str, Program]:
    """Every graph, without reading a weight; raises InputError."""
    weights, programs = Weights(checkpoint), {}
    for graph in cut_graphs(checkpoint, cut):
        programs[graph.name] = trace(graph)
        bind(programs[graph.name], weights.shape)
    return programs


def sizes(
    programs: Mapping[str, Program],
    options: Mapping[str, Mapping[str, str]],
    schemes: Mapping[str, Scheme],
    t5_parts: int,
    calls: Mapping[str, int],
) -> list[GraphSize]:
    """Predictions for all graphs in all schemes that a backend can express.

    Args:
        options: what a recipe chooses of each backend (``backends.default_options`` without one).
        calls: of a graph on the calibration prompts, by graph (``exporter.calibrate.call_counts``).
    """
    found = []
    for scheme_name, scheme in schemes.items():
        quantized = quantize_all(programs, scheme)
        parts = emitted(quantized, t5_parts)
        for name, chosen in options.items():
            backend = backends.load(name)
            if any(backend.refuse(form, chosen) for form in _formats(quantized)):
                continue
            found += [_size(part, name, scheme_name, calls.get(part.name, 0)) for part in parts]
    return found


def _formats(programs: Mapping[str, QuantizedProgram]) -> set[Format]:
    return {form for program in programs.values() for form in program.formats.values()}


def _size(program: QuantizedProgram, backend: str, scheme: str, calls: int) -> GraphSize:
    memory = backends.load(backend).MEMORY
    return GraphSize(
        backend,
        scheme,
        program.name,
        sum(program.values_by_format().values()),
        file_bytes(program, memory),
        build_bytes(program, memory, calls),
        run_bytes(program, memory),
    )


def default_cut(checkpoint: Checkpoint) -> Cut:
    """The resolution that the transformer was trained at, four steps, T5 if there is one."""
    size = int(checkpoint.component("transformer").setting("sample_size")) * 8
    return Cut((1.0, 0.9, 0.75, 0.5, 0.0), size, size, t5=checkpoint.has_t5)


def refuse_too_large(
    limit_bytes: int,
    backend: str,
    scheme: str,
    parts: Sequence[QuantizedProgram],
    others: Callable[[], Mapping[str, Mapping[str, QuantizedProgram]]],
) -> None:
    """Raise InputError if a graph would not run in a device's memory, naming what would.

    Args:
        parts: what would be emitted.
        others: the programs of each scheme that the backend can express; asked for at need.
    """
    memory = backends.load(backend).MEMORY
    needed = {part.name: run_bytes(part, memory) for part in parts}
    worst = max(needed, key=lambda name: needed[name])
    if needed[worst] <= limit_bytes:
        return
    raise InputError(
        f"{backend}-{scheme} is predicted to take {needed[worst]:,} bytes ({worst}), more than "
        f"device_memory_bytes = {limit_bytes:,}; {_remedy(limit_bytes, backend, others())}"
    )


def _remedy(
    limit_bytes: int, backend: str, others: Mapping[str, Mapping[str, QuantizedProgram]]
) -> str:
    memory = backends.load(backend).MEMORY
    peaks: dict[str, int] = {}
    for scheme, programs in others.items():
        count = _parts_that_fit(programs, memory, limit_bytes)
        name = f"{scheme} with t5_parts = {count}" if count > 1 else scheme
        peaks[name] = max(run_bytes(part, memory) for part in emitted(programs, count))
    able = [f"{name} ({peak:,})" for name, peak in peaks.items() if peak <= limit_bytes]
    if able:
        return f"what would fit: {', '.join(able)}"
    least = min(peaks, key=lambda name: peaks[name])
    return f"nothing fits; the least is {least} ({peaks[least]:,}); make the picture smaller"


def _parts_that_fit(
    programs: Mapping[str, QuantizedProgram], memory: backends.Memory, limit_bytes: int
) -> int:
    """The fewest parts of T5 that each fit, or 1 when there is no T5 or no number is enough."""
    for count in range(1, MOST_PARTS + 1 if "t5" in programs else 1):
        try:
            parts = split(programs["t5"], count)
        except InputError:
            break
        if max(run_bytes(part, memory) for part in parts) <= limit_bytes:
            return count
    return 1

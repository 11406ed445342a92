"""Compiles a package's graphs ahead of time, for the chips that its recipe names.

Each graph for each chip is compiled once: what an interrupted build has compiled is listed with its
graph, and stays.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from exporter.backends.contract import Compiled, ForNpu
from exporter.build.write import WholeGraph, describe
from exporter.errors import InputError
from exporter.files.heap import available_bytes
from exporter.package.manifest import ContextEntry, GraphEntry, NpuEntry, SizedGraph

G = TypeVar("G", GraphEntry, SizedGraph)


@dataclass(frozen=True)
class Took:
    """What compiling a graph for a chip took; another thing from time to time, so in the log.

    Attributes:
        graph: its name; with its size where that is not the first.
        bytes: of the binary and what names it.
    """

    graph: str
    soc: str
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    predicted_peak_bytes: int
    bytes: int


def missing(whole: WholeGraph, chips: tuple[str, ...]) -> list[tuple[str, str]]:
    """What is left to compile of a graph: a size, empty for the first, and a chip."""
    sized = {size: graph.npu for size, graph in whole.sized.items()}
    return [
        (size, chip)
        for size, npu in ({"": whole.graph.npu} | sized).items()
        for chip in chips
        if npu is not None and chip not in {context.soc for context in npu.contexts}
    ]


def compiled(
    backend: ForNpu, folder: Path, whole: WholeGraph, size: str, chip: str
) -> tuple[WholeGraph, Took]:
    """A graph with what is compiled of it, at a size, for a chip.

    Raises InputError for a graph that takes more memory than there is, or that the chip lacks
    something for.
    """
    graph: GraphEntry | SizedGraph = whole.sized[size] if size else whole.graph
    said = f"{graph.name} at {size}" if size else graph.name
    stored_bytes = sum(f.bytes for f in whole.files if f.path in _weights(whole))
    most_bytes = backend.compile_bytes(stored_bytes, graph.activation_bytes)
    _refuse_too_large(said, chip, most_bytes)
    done = backend.compile(folder / graph.entry, chip, most_bytes)
    files = describe(folder, done.files)
    bytes_ = sum(file.bytes for file in files)
    seconds = round(done.seconds, 1), round(done.cpu_seconds, 1)
    took = Took(said, chip, *seconds, done.peak_bytes, most_bytes, bytes_)
    entry = _entry(folder, chip, done)
    beside = tuple(sorted((*whole.beside, *files), key=lambda file: file.path))
    if not size:
        return replace(whole, graph=_with(whole.graph, entry), beside=beside), took
    sized = whole.sized | {size: _with(whole.sized[size], entry)}
    return replace(whole, sized=sized, beside=beside), took


def _weights(whole: WholeGraph) -> set[str]:
    return {file.path for file in whole.graph.files}


def _refuse_too_large(said: str, chip: str, most_bytes: int) -> None:
    there = available_bytes()
    if there is not None and most_bytes > there:
        raise InputError(
            f"compiling {said} for {chip} is predicted to take {most_bytes:,} bytes of memory, and "
            f"{there:,} are free; cut it: denoiser_parts in [build]"
        )


def _entry(folder: Path, chip: str, done: Compiled) -> ContextEntry:
    return ContextEntry(
        chip, done.soc_model, done.htp_arch, done.qairt,
        done.entry.relative_to(folder).as_posix(),
        tuple(sorted(file.relative_to(folder).as_posix() for file in done.files)),
    )  # fmt: skip


def _with(graph: G, context: ContextEntry) -> G:
    return replace(graph, npu=_grown(graph.npu, context))


def _grown(npu: NpuEntry | None, context: ContextEntry) -> NpuEntry:
    assert npu is not None
    return replace(npu, contexts=(*npu.contexts, context))

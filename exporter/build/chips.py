"""Compiles a package's graphs ahead of time, for the chips that its recipe names.

Each graph for each chip is compiled once: what an interrupted build has compiled is listed with its
graph, and stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from exporter.backends.contract import Compiled, CompiledGraph, ForNpu, Traffic
from exporter.build.write import WholeGraph, describe
from exporter.errors import InputError
from exporter.files.heap import available_bytes
from exporter.files.staging import remove
from exporter.package.manifest import (
    ContextEntry,
    FileEntry,
    GraphEntry,
    Manifest,
    NpuEntry,
    SizedGraph,
)
from exporter.package.names import graph_of
from exporter.package.sizes import context_files

G = TypeVar("G", GraphEntry, SizedGraph)
LESS = {"denoiser": "cut it: denoiser_parts in [build]", "t5": "cut it: t5_parts in [text]"}
MORE = "build where more are, or with fewer sizes at once"


@dataclass(frozen=True)
class Took:
    """What compiling a graph for a chip took; another thing from time to time, so in the log.

    Attributes:
        sizes: how many of it were compiled together.
        bytes: of the binary and what names it.
        traffic: of each size when it runs once, as the compiler predicts; None: it does not say.
    """

    graph: str
    sizes: int
    soc: str
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    predicted_peak_bytes: int
    bytes: int
    traffic: tuple[Traffic | None, ...]


def missing(whole: WholeGraph, chips: tuple[str, ...]) -> list[str]:
    """The chips that a graph has still to be compiled for."""
    npu = whole.graph.npu
    done = {context.soc for context in npu.contexts} if npu else {*chips}
    return [chip for chip in chips if chip not in done]


def compiled(
    backend: ForNpu, folder: Path, whole: WholeGraph, chip: str, value_bytes: int
) -> tuple[WholeGraph, Took]:
    """A graph with what is compiled of it for a chip: all its sizes at once, which share weights.

    Args:
        value_bytes: of all values that it computes, at all its sizes, before inputs are rounded.

    Raises InputError for a graph that takes more memory than there is, or that the chip lacks
    something for.
    """
    graphs: list[GraphEntry | SizedGraph] = [whole.graph, *whole.sized.values()]
    stored_bytes = sum(f.bytes for f in whole.files if f.path in _weights(whole))
    activations = sum(graph.activation_bytes for graph in graphs)
    most_bytes = backend.compile_bytes(len(graphs) * stored_bytes, value_bytes, activations)
    _refuse_too_large(whole.name, chip, most_bytes)
    done = backend.compile([folder / graph.entry for graph in graphs], chip, most_bytes)
    paths = dict.fromkeys(path for graph in done.graphs for path in graph.files)
    files = describe(folder, list(paths))
    took = Took(
        whole.name, len(graphs), chip, round(done.seconds, 1), round(done.cpu_seconds, 1),
        done.peak_bytes, most_bytes, sum(file.bytes for file in files),
        tuple(graph.traffic for graph in done.graphs),
    )  # fmt: skip
    first, *others = (_entry(folder, chip, done, graph) for graph in done.graphs)
    sized = {
        size: _with(graph, entry)
        for (size, graph), entry in zip(whole.sized.items(), others, strict=True)
    }
    beside = tuple(sorted((*whole.beside, *files), key=lambda file: file.path))
    return replace(whole, graph=_with(whole.graph, first), sized=sized, beside=beside), took


def in_place(folder: Path, manifest: Manifest) -> Manifest:
    """A package's manifest with contexts in place of the graphs that have any.

    The files of those graphs are removed from its folder.
    """
    known = {file.path: file for file in manifest.all_files}
    graphs = tuple(_alone(graph, known) for graph in manifest.graphs)
    sizes = tuple(
        replace(entry, graphs=tuple(_alone_there(graph) for graph in entry.graphs))
        for entry in manifest.sizes
    )
    left = replace(manifest, graphs=graphs, sizes=sizes)
    dropped = _of_graphs(manifest) - _of_graphs(left) - context_files(left)
    for path in dropped:
        remove(folder / path)
    moved = {file.path for graph in graphs for file in graph.files}
    return replace(left, files=tuple(f for f in left.files if f.path not in dropped | moved))


def _of_graphs(manifest: Manifest) -> set[str]:
    """The paths of the files that graphs of any size are opened from."""
    sized = {path for size in manifest.sizes for graph in size.graphs for path in graph.files}
    return sized | {file.path for graph in manifest.graphs for file in graph.files}


def _alone(graph: GraphEntry, known: Mapping[str, FileEntry]) -> GraphEntry:
    if graph.npu is None or not graph.npu.contexts:
        return graph
    first = graph.npu.contexts[0]
    files = tuple(known[path] for path in first.files)
    npu = replace(graph.npu, alone=True)
    return replace(graph, entry=first.entry, files=files, session={}, npu=npu)


def _alone_there(graph: SizedGraph) -> SizedGraph:
    if graph.npu is None or not graph.npu.contexts:
        return graph
    first, npu = graph.npu.contexts[0], replace(graph.npu, alone=True)
    return replace(graph, entry=first.entry, files=first.files, session={}, npu=npu)


def _weights(whole: WholeGraph) -> set[str]:
    return {file.path for file in whole.graph.files}


def _refuse_too_large(said: str, chip: str, most_bytes: int) -> None:
    there = available_bytes()
    if there is not None and most_bytes > there:
        raise InputError(
            f"compiling {said} for {chip} is predicted to take {most_bytes:,} bytes of memory, and "
            f"{there:,} are free; {LESS.get(graph_of(said), MORE)}"
        )


def _entry(folder: Path, chip: str, done: Compiled, graph: CompiledGraph) -> ContextEntry:
    return ContextEntry(
        chip, done.soc_model, done.htp_arch, done.qairt,
        graph.entry.relative_to(folder).as_posix(),
        tuple(sorted(file.relative_to(folder).as_posix() for file in graph.files)),
        shared=len(done.graphs) > 1,
    )  # fmt: skip


def _with(graph: G, context: ContextEntry) -> G:
    return replace(graph, npu=_grown(graph.npu, context))


def _grown(npu: NpuEntry | None, context: ContextEntry) -> NpuEntry:
    assert npu is not None
    return replace(npu, contexts=(*npu.contexts, context))

"""The sizes of pictures that a package draws, and its manifest as that of one of them alone.

A manifest is that of its first size; what further sizes have of their own stands beside it
(``SizeEntry``). So a reader that knows no sizes draws the first, and one that does draws any by the
manifest that ``manifest_at`` gives, in which nothing tells that there are others.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from exporter.errors import InputError
from exporter.package.manifest import (
    ContextEntry,
    DeviceEntry,
    FileEntry,
    GoldenEntry,
    GraphEntry,
    Manifest,
    SizedGraph,
    SizeEntry,
)

WRITTEN = re.compile(r"([0-9]{1,5}) ?[xX\N{MULTIPLICATION SIGN}] ?([0-9]{1,5})")
EXAMPLE = "'768x512', width x height in pixels"


@dataclass(frozen=True, order=True)
class PictureSize:
    """Of a picture, in pixels; written as ``768x512``."""

    width_px: int
    height_px: int

    def __str__(self) -> str:
        return f"{self.width_px}x{self.height_px}"


Sized = str | tuple[int, int] | PictureSize  # how whoever draws may name a size


def parse_size(given: object) -> PictureSize:
    """A size from ``768x512``, (768, 512) or a size; raises InputError for what is none."""
    if isinstance(given, PictureSize):
        return given
    found = WRITTEN.fullmatch(given.strip()) if isinstance(given, str) else None
    sides = tuple(map(int, found.groups())) if found else given
    sides = tuple(sides) if isinstance(sides, list) else sides
    if not isinstance(sides, tuple) or len(sides) != 2 or {*map(type, sides)} != {int}:
        raise InputError(f"{given!r:.60} is no size; write one such as {EXAMPLE}", field="size")
    return PictureSize(*sides)


def first_size(manifest: Manifest) -> PictureSize:
    """The size that is drawn unless another is asked for."""
    return PictureSize(manifest.picture.width_px, manifest.picture.height_px)


def size_of(entry: SizeEntry) -> PictureSize:
    """Of a further size."""
    return PictureSize(entry.width_px, entry.height_px)


def sizes_of(manifest: Manifest) -> tuple[PictureSize, ...]:
    """Every size of a package, the first one first."""
    return (first_size(manifest), *map(size_of, manifest.sizes))


def known_size(given: Sized, sizes: tuple[PictureSize, ...]) -> PictureSize:
    """A size that is among those of a package; raises InputError that lists them."""
    size = parse_size(given)
    if size not in sizes:
        listed = ", ".join(map(str, sizes))
        raise InputError(f"this package does not draw {size}; its sizes: {listed}", field="size")
    return size


def sized_files(manifest: Manifest) -> set[str]:
    """The paths of files that only graphs of further sizes have."""
    beside = {file.path for file in manifest.files}
    named = (path for size in manifest.sizes for graph in size.graphs for path in graph.files)
    return beside.intersection(named)


def context_files(manifest: Manifest) -> set[str]:
    """The paths of files that were compiled for chips, of every size: read on such a chip alone."""
    sized = (graph.npu for size in manifest.sizes for graph in size.graphs)
    found = [*(graph.npu for graph in manifest.graphs), *sized]
    contexts = (context for npu in found if npu for context in npu.contexts)
    return {path for context in contexts for path in context.files}


def compiled_graph(manifest: Manifest, graph: GraphEntry, context: ContextEntry) -> GraphEntry:
    """A graph as it was compiled for a chip."""
    known = {file.path: file for file in manifest.all_files}
    files = tuple(known[path] for path in context.files)
    return replace(graph, entry=context.entry, files=files, session={})


def manifest_at(manifest: Manifest, size: PictureSize) -> Manifest:
    """The manifest of one size alone; of the first, the same without the others.

    Raises KeyError for a size or a file that is not there.
    """
    left = sized_files(manifest)
    files = tuple(file for file in manifest.files if file.path not in left)
    alone = replace(manifest, sizes=(), files=files)
    if size == first_size(manifest):
        return alone
    entry = {size_of(entry): entry for entry in manifest.sizes}[size]
    own = {graph.name: graph for graph in entry.graphs}
    known = {file.path: file for file in manifest.all_files}
    return replace(
        alone,
        picture=replace(manifest.picture, width_px=size.width_px, height_px=size.height_px),
        graphs=tuple(
            _standing_in(graph, own[graph.name], known) if graph.name in own else graph
            for graph in manifest.graphs
        ),
        golden=GoldenEntry(entry.pictures),
        device=DeviceEntry(entry.predicted_peak_bytes),
    )


def _standing_in(graph: GraphEntry, own: SizedGraph, known: dict[str, FileEntry]) -> GraphEntry:
    """A graph of the first size with everything that another size has of its own."""
    return replace(
        graph,
        entry=own.entry,
        inputs=own.inputs,
        outputs=own.outputs,
        files=tuple(known[path] for path in own.files),
        activation_bytes=own.activation_bytes,
        run_bytes=own.run_bytes,
        tolerance=own.tolerance,
        session=own.session,
        remarks=own.remarks,
        npu=own.npu,
    )

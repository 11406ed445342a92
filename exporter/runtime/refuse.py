"""Graphs that no emitter of ours could have written are refused before an engine sees them."""

from __future__ import annotations

import mmap
import posixpath
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from exporter import backends
from exporter.backends.contract import BASE, Checking, Classifier, GraphFiles
from exporter.errors import CheckFailed, InputError
from exporter.files.differences import applied
from exporter.files.read import open_regular, reason_of
from exporter.package.check import check_file, check_size
from exporter.package.manifest import FileEntry, GraphEntry, Manifest
from exporter.package.paths import confined
from exporter.package.sizes import compiled_graph, manifest_at, sizes_of

WEIGHTS = (".bin", ".data")  # suffixes of files that hold nothing but weights
MOST_TEXT_BYTES = 64 << 20  # of a file that describes a graph; 2.24 billion weights take 1 MB
# Weights lie close together: what no graph uses would be read for its digest for nothing.
USED_AT_MOST, GAPS_BYTES = 1.5, 4 << 20
MOST_FOREIGN_BYTES = 2 << 30  # of a classifier's of the user, which may hold its weights


def refuse_foreign(folder: Path, manifest: Manifest) -> None:
    """Raise CheckFailed for a graph that is not one of the package's backend, before it is opened.

    Every graph is looked at; weights are not read. Of a backend that is not installed here, or that
    looks at none, nothing is asked.
    """
    try:
        backend = backends.load(manifest.backend)
    except InputError:  # who opens a graph is told
        return
    if not isinstance(backend, Checking):
        return
    foreign = {s.graph for s in manifest.stages if s.runs == "for the filter"}
    sizes = {file.path: file.bytes for file in manifest.all_files}
    sized = (manifest_at(manifest, size) for size in sizes_of(manifest))
    graphs = {graph.entry + str(graph.session): graph for one in sized for graph in one.graphs}
    used = Counter[str]()
    for graph in graphs.values():
        is_own, npu = graph.name not in foreign, graph.npu
        is_compiled = npu is not None and npu.alone
        used.update(_refuse(folder, graph, sizes, is_own, backend, is_compiled))
        for context in npu.contexts if npu else ():
            compiled = compiled_graph(manifest, graph, context)
            _refuse(folder, compiled, sizes, True, backend, is_compiled=True)
    own = [graph for graph in graphs.values() if graph.name not in foreign]
    for file in (file for graph in own for file in graph.files if is_weights(file)):
        if file.bytes > USED_AT_MOST * used[file.path] + GAPS_BYTES:
            raise CheckFailed(
                f"{confined(folder, file.path)}: refused: {file.bytes:,} bytes, of which its graph "
                f"uses {used[file.path]:,}; build the package again, and do not use this one"
            )


def refuse_classifier(backend: object, classifier: Classifier) -> None:
    """Raise InputError for a classifier that would be refused in a package, before it is put there.

    It may have operators of its own, but no loops, branches or functions.
    """
    if not isinstance(backend, Checking):
        return
    home = classifier.entry.parent
    sizes = {file.relative_to(home).as_posix(): file.stat().st_size for file in classifier.files}
    described = [path for path in sizes if Path(path).suffix not in WEIGHTS]
    texts = {path: _mapped_file(home / path, sizes[path]) for path in described}
    try:
        backend.check_graph(GraphFiles(classifier.entry.name, (), (), {}, sizes, texts, False))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"[filter] graph: {classifier.entry}: {reason_of(error)}; such a graph is refused when "
            "a package is opened"
        ) from None


def _refuse(
    folder: Path, graph: GraphEntry, sizes: dict[str, int], is_own: bool, backend: Checking,
    is_compiled: bool = False,
) -> Mapping[str, int]:  # fmt: skip
    for file in graph.files:
        check_size(folder, file)
    described = [file for file in graph.files if not is_weights(file)]
    texts = {file.path: _mapped(folder, file, is_own) for file in described}
    try:
        if BASE in graph.session:
            texts = _made_of_base(graph, texts)
        files = GraphFiles(
            graph.entry, graph.inputs, graph.outputs, graph.session, sizes, texts, is_own,
            is_compiled,
        )  # fmt: skip
        return backend.check_graph(files)
    except (ValueError, RecursionError) as error:
        for file in described:
            check_file(folder, file)  # damage explains it
        raise CheckFailed(
            f"{folder / graph.entry}: refused: {reason_of(error)}; build the package again, and do "
            "not use this one"
        ) from None


def _made_of_base(graph: GraphEntry, texts: dict[str, memoryview]) -> dict[str, memoryview]:
    """The texts of a graph whose entry says differences: with what they make in place of both."""
    base = posixpath.join(posixpath.dirname(graph.entry), graph.session[BASE])
    if graph.entry == base or not {graph.entry, base} <= texts.keys():
        raise ValueError(f"it has no {base!r:.80} that it could differ from")
    made = applied(texts[graph.entry], texts[base])
    if len(made) > MOST_TEXT_BYTES:
        raise ValueError(f"{len(made):,} bytes describe no graph of fourstep's")
    left = {path: text for path, text in texts.items() if path != base}
    return left | {graph.entry: memoryview(made)}


def is_weights(file: FileEntry) -> bool:
    """Whether a file of a graph holds nothing but numbers."""
    return Path(file.path).suffix in WEIGHTS


def _mapped(folder: Path, entry: FileEntry, is_own: bool) -> memoryview:
    """What is in a file that describes a graph; raises CheckFailed for one that is too large."""
    limit = MOST_TEXT_BYTES if is_own else MOST_FOREIGN_BYTES
    file = confined(folder, entry.path)
    if entry.bytes > limit:
        raise CheckFailed(f"{file}: refused: {entry.bytes:,} bytes describe no graph of fourstep's")
    return _mapped_file(file, entry.bytes)


def _mapped_file(file: Path, size: int) -> memoryview:
    if not size:
        return memoryview(b"")
    try:
        with open_regular(file) as stream:
            return memoryview(mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:
        raise CheckFailed(f"{file}: cannot be read: {reason_of(error)}") from None

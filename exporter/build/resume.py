"""What earlier builds have finished: whole packages, and the whole graphs of one that was stopped.

A package's bytes are decided by its ``basis``: the recipe, the scheme, the checkpoint, the versions
of all tools. The journal beside an unfinished package lists the graphs that are whole, with their
basis; the log beside a finished one names it too.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from exporter.backends.contract import Backend
from exporter.build.licence import licence_of
from exporter.build.write import Origin, WholeGraph, log_of, tools_of
from exporter.checkpoint.open import Checkpoint
from exporter.errors import CheckFailed, FourstepError, InputError
from exporter.files.read import file_digest, read_json
from exporter.files.staging import (
    beside,
    part_of,
    partial_of,
    remove,
    settle,
    staging,
    write_whole,
)
from exporter.layouts import NATIVE
from exporter.package.check import check_file
from exporter.package.decode import parse
from exporter.package.layout import LAYOUT_FILE, LayoutManifest, check_layout
from exporter.package.manifest import GraphEntry, Manifest
from exporter.package.names import DECODERS, FILTER, graph_of
from exporter.package.read import read_manifest
from exporter.package.sizes import size_of
from exporter.recipe.recipe import Recipe
from exporter.runtime.package import Package, open_package
from exporter.runtime.verify import Report, check_files


def basis_of(
    recipe: Recipe,
    checkpoint: Checkpoint,
    backend: Backend,
    origin: Origin,
    layout: str = NATIVE,
) -> str:
    """SHA-256 of everything that decides a package's bytes."""
    facts = basis_facts(recipe, checkpoint, backend, origin, layout)
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def basis_facts(
    recipe: Recipe,
    checkpoint: Checkpoint,
    backend: Backend,
    origin: Origin,
    layout: str = NATIVE,
) -> dict[str, Any]:
    """Everything that decides a package's bytes, as JSON data."""
    licence = licence_of(recipe, checkpoint)
    return {
        "recipe": recipe.digest(backend.name, layout),
        "backend": backend.name,
        "scheme": asdict(origin.scheme),
        "checkpoint": checkpoint.digest,
        "descriptions": {n: file_digest(f) for n, f in checkpoint.descriptions.items()},
        "statistics": origin.statistics_sha256,
        "plan": origin.plan_sha256,
        "sensitivities": origin.plan.details if origin.plan else None,
        "licence": licence.id,
        "licences": {n: file_digest(f) for n, f in licence.files.items()},
        "filter": origin.filter.sha256 if origin.filter else None,
        "tools": tools_of(backend, recipe.backend(backend.name).choices),
        "code": code_of(backend),
    }


def code_of(backend: Backend) -> list[str]:
    """Digests of this project's own code, and of the distribution that a backend is from."""
    return [code_of_own(), _code_digest(_package_of(type(backend).__module__))]


def code_of_own() -> str:
    """A digest of this project's own code."""
    return _code_digest(_package_of(__name__))


def _package_of(module: str) -> str:
    return module.partition(".")[0]


@functools.cache
def _code_digest(name: str) -> str:
    """Of a package as it was imported: working copies change between versions."""
    file = Path(inspect.getfile(sys.modules[name]))
    files = sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]
    lines = [f"{f.relative_to(file.parent).as_posix()} {file_digest(f)}" for f in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def unmarked_basis_of(
    recipe: Recipe, checkpoint: Checkpoint, backend: Backend, origin: Origin
) -> str:
    """The same of everything but the mark: what decides every graph that draws no picture."""
    return basis_of(replace(recipe, mark=None), checkpoint, backend, origin)


def journal_of(target: Path) -> Path:
    """The file that lists the whole graphs of an unfinished package."""
    return beside(target, ".journal.json")


def unfinished_bytes(target: Path) -> int:
    """What an interrupted build of a package has written."""
    return sum(f.stat().st_size for f in partial_of(target).rglob("*") if f.is_file())


def write_journal(target: Path, basis: str, graphs: Iterable[WholeGraph]) -> None:
    """Note which graphs of an unfinished package are whole."""
    listed = [asdict(graph) for graph in graphs]
    write_whole(journal_of(target), json.dumps({"basis": basis, "graphs": listed}))


@contextmanager
def resuming(
    target: Path, basis: str, progress: Callable[[str], None]
) -> Iterator[tuple[Path, dict[str, WholeGraph]]]:
    """``staging`` of a package, and the graphs that an interrupted build of it has finished."""
    try:
        with staging(target, journal=journal_of(target)) as folder:
            yield folder, _whole_graphs(target, folder, basis)
    except (KeyboardInterrupt, SystemExit):
        if journal_of(target).exists():
            progress(f"{target.name}: stopped; the same command goes on from here")
        raise


def _whole_graphs(target: Path, folder: Path, basis: str) -> dict[str, WholeGraph]:
    """The graphs of the journal, if it has this basis; all else is removed from the folder."""
    try:
        raw = read_json(journal_of(target))
        listed = [parse(WholeGraph, g) for g in raw["graphs"]] if raw["basis"] == basis else []
    except (ValueError, KeyError, TypeError, InputError):
        listed = []
    whole = {graph.name: graph for graph in listed if _is_whole(folder, graph)}
    for place in [*folder.glob("*"), *folder.glob("graphs/*")]:
        if place != folder / "graphs" and (place.parent == folder or place.name not in whole):
            shutil.rmtree(place) if place.is_dir() else place.unlink()
    return whole


def _is_whole(folder: Path, graph: WholeGraph) -> bool:
    try:
        for file in graph.files:
            check_file(folder, file)
    except CheckFailed:
        return False
    return True


def unmarked_graphs(
    target: Path, folder: Path, unmarked_basis: str, whole: Mapping[str, WholeGraph]
) -> dict[str, WholeGraph]:
    """Graphs of the package at ``target`` that a build of another mark would make alike, copied.

    All but the decoders, if nothing but the mark is another. What is damaged is left out.

    Args:
        folder: of the package that is being built.
        whole: graphs that are there already.
    """
    try:
        log = read_json(log_of(target))
        known = (log["unmarked_basis"], log["manifest_sha256"])
        if known != (unmarked_basis, file_digest(target / "manifest.json")):
            return {}
        manifest = read_manifest(target)  # opening would ask for every graph to be whole
    except (OSError, ValueError, KeyError, TypeError, FourstepError):
        return {}
    others = (*DECODERS, FILTER)  # a classifier is copied from where it lies
    left = [g for g in manifest.graphs if graph_of(g.name) not in others and g.name not in whole]
    found = [_of_all_sizes(manifest, graph) for graph in left]
    return {graph.name: graph for graph in found if _copied(target, folder, graph)}


def _of_all_sizes(manifest: Manifest, graph: GraphEntry) -> WholeGraph:
    """A package's graph with what stands in for it at further sizes."""
    sized = {
        str(size_of(entry)): own
        for entry in manifest.sizes
        for own in entry.graphs
        if own.name == graph.name
    }
    paths = {path for own in sized.values() for path in own.files}
    for npu in (graph.npu, *(own.npu for own in sized.values())):
        paths |= {path for context in (npu.contexts if npu else ()) for path in context.files}
    return WholeGraph(graph, sized, tuple(f for f in manifest.files if f.path in paths))


def _copied(target: Path, folder: Path, graph: WholeGraph) -> bool:
    """Copy a graph's files; False, with nothing left, for what is not as its manifest says."""
    place = Path("graphs", graph.name)
    if _is_whole(target, graph):
        shutil.copytree(target / place, folder / place)
        if _is_whole(folder, graph):
            return True
        remove(folder / place)
    return False


def whole_package(target: Path, basis: str) -> tuple[Package, Report] | None:
    """The package at ``target`` and what was verified of it, if it has this basis and is whole."""
    clear(target)
    try:
        log = read_json(log_of(target))
        manifest_sha256 = file_digest(target / "manifest.json")
        if (log["basis"], log["manifest_sha256"]) != (basis, manifest_sha256):
            return None
        package = open_package(target)
        check_files(package)
        found = package, report_of(log)
    except (OSError, ValueError, KeyError, TypeError, FourstepError):
        return None
    if _basis_of_journal(target) == basis:  # stopped after the package was put in its place
        journal_of(target).unlink()
        remove(partial_of(target))
    return found


def whole_layout(target: Path, basis: str) -> tuple[LayoutManifest, Report] | None:
    """The same of a folder in a layout for clients of others."""
    settle(target)
    try:
        log = read_json(log_of(target))
        if (log["basis"], log["manifest_sha256"]) != (basis, file_digest(target / LAYOUT_FILE)):
            return None
        return check_layout(target), report_of(log)
    except (OSError, ValueError, KeyError, TypeError, FourstepError):
        return None


def clear(target: Path) -> None:
    """Mend and remove what a kill has left that no build will go on from."""
    settle(target)
    for file in (log_of(target), journal_of(target)):
        part_of(file).unlink(missing_ok=True)
    if not journal_of(target).exists():
        remove(partial_of(target))
    elif not partial_of(target).exists():
        journal_of(target).unlink()


def _basis_of_journal(target: Path) -> str | None:
    try:
        return str(read_json(journal_of(target)).get("basis"))
    except InputError:
        return None


def report_of(log: Mapping[str, Any]) -> Report:
    """What a package's log says of verifying it; an infinite PSNR is null in JSON.

    Raises KeyError, TypeError, ValueError or CheckFailed for a log that has no such report.
    """
    kept = {key: value for key, value in log["verify"].items() if key != "ok"}
    images = [{k: math.inf if v is None else v for k, v in i.items()} for i in kept["images"]]
    return parse(Report, kept | {"images": images})

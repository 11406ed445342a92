"""What a shared cache holds for builds: emitted graphs, whole packages, statistics.

A graph is found by everything that decides it (``keys.graph_key``), a package by its ``basis``. A
request is what can be known before anything is traced; it leads to the basis. What is found is
copied into the folder that is being built, each file compared with its digest, and compared with
what this build would write: an entry that is not that is a miss.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from exporter.backends.contract import Backend
from exporter.build.keys import digest_of, libraries
from exporter.build.resume import basis_facts, clear, code_of_own, report_of
from exporter.build.write import Origin, WholeGraph, log_of
from exporter.cache.shared import Cache
from exporter.calibrate.store import INDEX, Calibration, Provenance, obtain, open_statistics
from exporter.checkpoint.open import Checkpoint
from exporter.errors import CheckFailed, FourstepError
from exporter.files.read import file_digest, parse_json, read_text
from exporter.files.staging import remove, staging, write_whole
from exporter.package.decode import parse
from exporter.package.manifest import FileEntry
from exporter.package.read import OWN_FILES
from exporter.package.sizes import PictureSize
from exporter.quantize.formats import Scheme
from exporter.quantize.program import QuantizedProgram
from exporter.recipe.recipe import Recipe
from exporter.runtime.package import Package, open_package
from exporter.runtime.verify import Report


def take_graph(
    cache: Cache, key: str, programs: Mapping[PictureSize, QuantizedProgram], folder: Path
) -> WholeGraph | None:
    """The graph of a key, copied into ``folder``/graphs; None for none that these programs give.

    Args:
        programs: by size, the first one first.
    """
    first, *others = programs
    program = programs[first]
    record = cache.find("graph", key)
    if record is None:
        return None
    try:
        whole = parse(WholeGraph, record.value)
        _compare(whole, program, record.files)
        if {*whole.sized} != {str(size) for size in others}:
            raise ValueError("it is of other sizes")
    except ValueError as error:
        cache.refuse("graph", key, str(error))
        return None
    place = folder / "graphs" / program.name
    if not cache.take(record, folder):
        remove(place)
        return None
    return whole


def _compare(whole: WholeGraph, program: QuantizedProgram, files: Sequence[FileEntry]) -> None:
    """Raise ValueError for a record that no backend gives for a program."""
    graph, place = whole.graph, f"graphs/{program.name}/"
    same = (graph.name, graph.inputs, graph.outputs, graph.formats)
    if same != (program.name, program.inputs, program.outputs, program.values_by_format()):
        raise ValueError("it is another graph")
    if whole.files != tuple(files) or not files:
        raise ValueError("its files are not those that its graph names")
    entries = [graph.entry, *(sized.entry for sized in whole.sized.values())]
    paths = [file.path for file in files]
    if not all(path.startswith(place) for path in (*entries, *paths)):
        raise ValueError("it has files outside its folder")
    if not all(any(p == e or p.startswith(f"{e}/") for p in paths) for e in entries):
        raise ValueError("its entry is none of its files")


def keep_graph(cache: Cache, key: str, whole: WholeGraph, folder: Path) -> None:
    """Put a graph that was emitted into the cache."""
    cache.keep("graph", key, asdict(whole), whole.files, folder)


def keep_package(cache: Cache, basis: str, target: Path) -> None:
    """Put a whole package with its log into the cache."""
    manifest = open_package(target).manifest
    listed = [*manifest.files, *(file for graph in manifest.graphs for file in graph.files)]
    own = [target / name for name in OWN_FILES if (target / name).is_file()]
    listed += [FileEntry(f.name, f.stat().st_size, file_digest(f)) for f in own]
    files = tuple(sorted(dict.fromkeys(listed), key=lambda file: file.path))
    log = parse_json(read_text(log_of(target)), log_of(target))
    cache.keep("package", basis, {"log": log}, files, target)


@dataclass(frozen=True)
class Awaited:
    """A package that a build would write.

    Attributes:
        basis: of its bytes.
        recipe_sha256, checkpoint_sha256: as its manifest has them.
    """

    target: Path
    basis: str
    backend: str
    scheme: str
    recipe_sha256: str
    checkpoint_sha256: str


def take_package(cache: Cache, wanted: Awaited) -> tuple[Package, Report] | None:
    """The whole package of a basis, put in its place; None for none that this build would write."""
    record = cache.find("package", wanted.basis)
    if record is None:
        return None
    try:
        log = record.value["log"]
        if (log["basis"], log["package"]) != (wanted.basis, wanted.target.name):
            raise ValueError("its log is of another package")
        with staging(wanted.target) as folder:
            if not cache.take(record, folder):
                raise _Missed
            package, report = _wanted_one(folder, wanted, log, record.files), report_of(log)
        write_whole(log_of(wanted.target), json.dumps(log, indent=1) + "\n")
    except _Missed:
        return None
    except (ValueError, KeyError, TypeError, FourstepError) as error:
        cache.refuse("package", wanted.basis, str(error) or type(error).__name__)
        return None
    clear(wanted.target)  # a build that was stopped has nothing to go on with
    return replace(package, folder=wanted.target), report


class _Missed(Exception):
    """The cache has said why."""


def _wanted_one(
    folder: Path, wanted: Awaited, log: Mapping[str, Any], files: Sequence[FileEntry]
) -> Package:
    """The package in a folder; raises for one that is not whole, or not the one that is wanted.

    Args:
        files: that were copied there, each compared with its digest meanwhile.
    """
    package = open_package(folder)
    manifest, whole = package.manifest, set(files)
    other = next((file for file in manifest.all_files if file not in whole), None)
    if other is not None:
        raise ValueError(f"{other.path} is not what its manifest says")
    found = (manifest.backend, manifest.scheme, manifest.origin.recipe_sha256)
    expected = (wanted.backend, wanted.scheme, wanted.recipe_sha256)
    if found != expected or manifest.origin.checkpoint_sha256 != wanted.checkpoint_sha256:
        raise ValueError("it is another package")
    if log["manifest_sha256"] != file_digest(folder / "manifest.json"):
        raise ValueError("its log is of another manifest")
    return package


def request_of(
    recipe: Recipe,
    checkpoint: Checkpoint,
    backend: Backend,
    origin: Origin,
    beside: Sequence[Scheme],
    calibrated: Sequence[str],
    statistics: Sequence[str],
) -> str:
    """SHA-256 of what decides a package, as far as it is known before anything is traced.

    Args:
        origin: without programs and statistics.
        beside: the schemes that are built together: which graphs are measured is theirs.
        calibrated: graphs that are measured besides.
        statistics: ``digests_of`` those that a build would find.
    """
    facts = basis_facts(recipe, checkpoint, backend, origin) | {
        "libraries": libraries(),
        "most_file_bytes": recipe.most_file_bytes,
    }
    if origin.scheme.used_methods:
        facts |= {
            "beside": sorted({digest_of(asdict(s)) for s in beside if s.used_methods}),
            "calibrated": sorted(calibrated),
            "kept": list(statistics),
        }
    return digest_of(facts)


def digests_of(statistics: Path) -> tuple[str, ...]:
    """Of the indices of the statistics in a folder, in order."""
    return tuple(sorted(file_digest(f) for f in statistics.glob(f"**/{INDEX}")))


def take_statistics(
    cache: Cache, provenance: Provenance, statistics: Path, say: Callable[[str], None]
) -> Calibration | None:
    """Statistics of a provenance, put into their folder; None where the cache has none.

    They depend on the last digits of a processor: those of the cache are the same for all.
    """
    key = _statistics_key(provenance)
    record = cache.find("statistics", key)
    if record is None:
        return None

    def fill(folder: Path) -> None:
        if not cache.take(record, folder):
            raise _Missed
        if open_statistics(folder).provenance != provenance:
            raise ValueError("they are of another model")

    try:
        found = obtain(statistics, provenance, fill, say)
    except _Missed:
        return None
    except (ValueError, CheckFailed) as error:
        cache.refuse("statistics", key, str(error))
        return None
    say("statistics are taken from the cache")
    return found


def keep_statistics(cache: Cache, calibration: Calibration) -> None:
    """Put statistics into the cache."""
    folder = calibration.folder
    files = [FileEntry(f.name, f.stat().st_size, file_digest(f)) for f in sorted(folder.iterdir())]
    cache.keep("statistics", _statistics_key(calibration.provenance), {}, files, folder)


def _statistics_key(provenance: Provenance) -> str:
    return digest_of([asdict(provenance), libraries(), code_of_own()])

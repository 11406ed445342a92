"""The whole road: checkpoint -> graphs -> trace -> calibrate -> quantize -> emit -> verify."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from exporter.bom.licence import require_library
from exporter.build import resume, reuse, write
from exporter.build.asked import (
    AskedPackage,
    PreparedPackage,
    asked_of,
    prepared_packages,
    refuse_unbuildable,
    schemes_of,
)
from exporter.build.draw import unpainted_work, work_of
from exporter.build.emit import build_layout, build_package, emit_apart
from exporter.build.gather import LINES as LINES_TO_GATHER
from exporter.build.gather import gather
from exporter.build.licence import licence_of, warn_of_missing
from exporter.build.model import Model, calibrate, lines_to_calibrate, open_asked
from exporter.build.shared import STATISTICS as STATISTICS
from exporter.build.shared import Built as Built
from exporter.build.shared import Models, Places, Source, TracedRecipe, traced
from exporter.cache.shared import Cache
from exporter.calibrate.store import Calibration, kept
from exporter.checkpoint.open import Checkpoint
from exporter.files.lock import alone, locked
from exporter.files.staging import refuse_place, scratch
from exporter.layouts import NATIVE, load_layout
from exporter.program.threads import fixed_threads
from exporter.progress import Progress
from exporter.quantize.formats import Scheme
from exporter.quantize.program import quantize_all
from exporter.recipe.recipe import Recipe
from exporter.runtime.package import Package
from exporter.runtime.verify import Report

A = TypeVar("A", bound="AskedPackage")


@fixed_threads()
def build(
    recipe: Recipe,
    out: Path,
    backend_names: Sequence[str] = (),
    scheme_names: Sequence[str] = (),
    progress: Progress | None = None,
    statistics: Path | None = None,
    calibrated: Sequence[str] = (),
    cache: Cache | None = None,
) -> list[Built]:
    """Build one package per backend, scheme and layout into ``out``/<backend>-<scheme>.

    A layout's name follows in the folder's, except ``native``.

    Args:
        scheme_names: schemes, or files of plans; without any, those of the recipe.
        statistics: folder of calibration statistics, used again if they fit; ``out``/statistics.
        calibrated: graphs to measure besides those that a scheme asks for.
        cache: where machines share graphs, statistics and whole packages (``build.reuse``).

    Packages that are there and whole, of the same recipe, checkpoint and tools, are kept. A build
    that was interrupted goes on with the graphs that it has finished.

    Two builds into one folder take turns: the second waits, and says for whom.

    Raises InputError for what a user can mend, CheckFailed when a package does not verify; either
    way nothing half-written stays.
    """
    progress = progress or Progress()
    require_library("build")
    wanted = {
        name: tuple(scheme_names) or recipe.backend(name).schemes
        for name in backend_names or recipe.backends
    }
    pairs = asked_of(recipe, wanted, out)
    refuse_place(out, 0)
    places = Places(out, statistics or out / STATISTICS, tuple(calibrated), cache)
    gathered = [layout for layout in recipe.layouts if load_layout(layout).gathers]
    with locked(out, progress):
        checkpoint = open_asked(recipe) if cache else None
        found = requested(recipe, pairs, places, progress, checkpoint) if checkpoint else []
        progress.expect(LINES_TO_GATHER * len(gathered))
        shared = None if found else traced(recipe, progress, checkpoint)
        built = build_asked(shared, pairs, places, progress) if shared else found
        return built + [_gathered(recipe, layout, built, out, progress) for layout in gathered]


def _requests(
    recipe: Recipe,
    asked: Sequence[A],
    checkpoint: Checkpoint,
    places: Places,
    statistics: Sequence[str],
) -> dict[A, str]:
    """What each package is asked for by, before anything is traced; none where more is needed.

    A classifier has to be tried first, and layouts are not shared.

    Args:
        statistics: digests of the indices of those that are there.
    """
    if recipe.filter is not None or any(one.layout != NATIVE for one in asked):
        return {}
    beside = [one.scheme for one in asked] + _beside(recipe, places)
    return {
        one: reuse.request_of(
            recipe, checkpoint, one.backend, write.Origin(one.scheme, one.plan, {}, None),
            beside, places.calibrated, statistics,
        )
        for one in asked
    }  # fmt: skip


def _beside(recipe: Recipe, places: Places) -> list[Scheme]:
    return [scheme for scheme, _ in schemes_of(recipe, places.beside).values()]


def requested(
    recipe: Recipe,
    asked: Sequence[AskedPackage],
    places: Places,
    progress: Progress,
    checkpoint: Checkpoint,
) -> list[Built]:
    """All packages from the cache, or as they lie there, without tracing; else none."""
    if places.cache is None:
        return []
    found = []
    there = reuse.digests_of(places.statistics)
    for one, key in _requests(recipe, asked, checkpoint, places, there).items():
        record = places.cache.find("request", key)
        basis = record.value.get("basis") if record else None
        if not isinstance(basis, str):
            return []
        wanted = _wanted(one, recipe, checkpoint, basis)
        kept = resume.whole_package(one.target, basis)
        taken = kept or reuse.take_package(places.cache, wanted)
        if taken is None:
            return []
        progress(f"{one.target.name} is whole already")
        found.append(as_built(one, taken, "kept" if kept else "cache"))
    if found:
        warn_of_missing(licence_of(recipe, checkpoint), checkpoint)
    return found


def _wanted(one: AskedPackage, recipe: Recipe, checkpoint: Checkpoint, basis: str) -> reuse.Awaited:
    return reuse.Awaited(
        one.target, basis, one.backend.name, one.scheme.name,
        recipe.digest(one.backend.name, one.layout), checkpoint.digest,
    )  # fmt: skip


def as_built(one: AskedPackage, taken: tuple[Package, Report], source: Source) -> Built:
    package, report = taken
    manifest = package.manifest
    return Built(
        one.target, one.backend.name, one.scheme.name, manifest.bytes, report,
        manifest.origin.licence_id, source=source,
    )  # fmt: skip


def _gathered(
    recipe: Recipe, layout: str, built: Sequence[Built], out: Path, progress: Progress
) -> Built:
    """The native packages of a build in one folder."""
    takes = load_layout(layout).takes
    made_of = [b for b in built if b.layout == NATIVE and takes(b.backend)]
    target, manifest, report = gather(recipe, [b.path for b in made_of], out, progress)
    licence = manifest.origin.licence_id
    return Built(target, manifest.backend, manifest.scheme, manifest.bytes, report, licence, layout)


def build_asked(
    shared: TracedRecipe, asked: Sequence[AskedPackage], places: Places, progress: Progress
) -> list[Built]:
    """``build`` where nobody else writes to its packages."""
    recipe, models, cache = shared.recipe, shared.models, places.cache
    model = models[recipe.sizes[0]]
    warn_of_missing(model.licence, model.checkpoint)

    # Quantize: in the program. What cannot be built is refused here, before anything is computed.
    jobs = prepared_packages(models, asked)
    for job in jobs:
        refuse_unbuildable(job, models)

    # Resume: packages that are whole, and just what this build would make, are kept.
    there = reuse.digests_of(places.statistics) if cache else ()
    graphs = measured_graphs(shared, jobs, places)
    calibration = found_calibration(models, jobs, graphs, places, progress)
    built = {job: _kept_or_taken(job, model, calibration, cache) for job in jobs}
    left = [job for job in jobs if built[job] is None]
    measures = calibration is None and any(job.scheme.used_methods for job in left)
    progress.expect(_lines(jobs, left, recipe))
    progress.expect(lines_to_calibrate(graphs) if measures else 0)
    for job in jobs:
        if job not in left:
            progress(f"{job.target.name} is whole already")
    refuse_place(places.out, sum(job.missing_bytes() for job in left))

    # Calibrate: the inputs that layers meet on the model's own trajectories, if a scheme asks.
    if measures:
        calibration = _calibrated(models, graphs, places, progress)

    # Emit and verify, the packages of a scheme one after the other.
    for _, same in itertools.groupby(left, key=lambda job: job.given):
        together = list(same)
        work = work_of(together[0], shared, calibration, progress)
        for job in together:
            if job.layout == NATIVE:
                built[job] = build_package(job, work, progress, cache)
            else:
                built[job] = build_layout(job, work, progress)
    if cache:
        _keep(shared, (jobs, left), calibration, graphs, there, places)
    return [found for found in built.values() if found is not None]


def _calibrated(
    models: Models, graphs: Sequence[str], places: Places, progress: Progress
) -> Calibration:
    """Measure graphs, for this build and for others by the cache."""
    measured = models[next(iter(models.values())).recipe.calibrated_size]
    found = calibrate(measured, graphs, places.statistics, progress)
    if places.cache:
        reuse.keep_statistics(places.cache, found)
    return found


def make_part(
    shared: TracedRecipe, asked: AskedPackage, part: str, places: Places, progress: Progress
) -> bool:
    """Put a part of a package, which others assemble, into the cache; False: it is there.

    Args:
        part: a graph, or ``STATISTICS``.
    """
    assert places.cache is not None
    models = shared.models
    (job,) = prepared_packages(models, [asked])
    refuse_unbuildable(job, models)
    graphs = measured_graphs(shared, [job], places)
    calibration = found_calibration(models, [job], graphs, places, progress)
    if calibration is None and job.scheme.used_methods:
        calibration = _calibrated(models, graphs, places, progress)
    if part == STATISTICS:
        return False
    target = job.target.with_name(f"{job.target.name}-{part}")
    with alone(target, progress), scratch(target) as folder:
        work = unpainted_work(job, shared, calibration)
        return emit_apart(job, part, work, folder, progress, places.cache)


def measured_graphs(
    shared: TracedRecipe, jobs: Sequence[PreparedPackage], places: Places
) -> list[str]:
    """The graphs that are measured, if any are: those that a scheme needs, or that were named."""
    programs = shared.models[shared.recipe.sizes[0]].programs
    used = {g for job in jobs for g in programs if job.programs[g].methods}

    def of_others() -> set[str]:
        schemes = _beside(shared.recipe, places)
        quantized = [quantize_all(programs, scheme) for scheme in schemes if scheme.used_methods]
        return {g for found in quantized for g in programs if found[g].methods}

    used |= shared.once("measured", places.beside, of_others)
    return [g for g in programs if g in used or g in places.calibrated]


def found_calibration(
    models: Models,
    jobs: Sequence[PreparedPackage],
    graphs: Sequence[str],
    places: Places,
    progress: Progress,
) -> Calibration | None:
    """What was measured of these graphs before: in its folder, else in the cache."""
    if not graphs:
        return None
    recipe = next(iter(models.values())).recipe
    provenance = models[recipe.calibrated_size].provenance(graphs)
    found = kept(places.statistics, provenance)
    if found is None and places.cache and any(job.scheme.used_methods for job in jobs):
        return reuse.take_statistics(places.cache, provenance, places.statistics, progress)
    return found


def _kept_or_taken(
    job: PreparedPackage, model: Model, calibration: Calibration | None, cache: Cache | None
) -> Built | None:
    """A package as it lies there, or from the cache; None for one that has to be built."""
    basis = job.basis(model, calibration)
    kept_one = _kept_package(job, basis)
    if kept_one is not None or cache is None or job.layout != NATIVE:
        return kept_one
    taken = reuse.take_package(cache, _wanted(job, model.recipe, model.checkpoint, basis))
    return as_built(job, taken, "cache") if taken else None


def _keep(
    shared: TracedRecipe,
    asked: tuple[Sequence[PreparedPackage], Sequence[PreparedPackage]],
    calibration: Calibration | None,
    graphs: Sequence[str],
    there: Sequence[str],
    places: Places,
) -> None:
    """Put packages that were built into the cache, and what all are asked for by.

    That is another request with the statistics that were there before, with those that are there
    now, and where there are none, if a build there would measure just these.

    Args:
        asked: all jobs, and those that were built.
        there: digests of the indices of the statistics that were there before.
    """
    assert places.cache is not None
    recipe, (jobs, left) = shared.recipe, asked
    model, measured = shared.models[recipe.sizes[0]], shared.models[recipe.calibrated_size]
    for job in (job for job in left if job.layout == NATIVE):
        reuse.keep_package(places.cache, job.basis(model, calibration), job.target)
    indices = {tuple(there), reuse.digests_of(places.statistics)}
    if calibration is None or calibration.provenance == measured.provenance(graphs):
        indices.add(())
    for statistics in sorted(indices):
        requests = _requests(recipe, jobs, model.checkpoint, places, statistics)
        for job, key in requests.items():
            places.cache.keep("request", key, {"basis": job.basis(model, calibration)})


def _kept_package(job: PreparedPackage, basis: str) -> Built | None:
    if job.layout != NATIVE:
        kept = resume.whole_layout(job.target, basis)
        if kept is None:
            return None
        manifest, report = kept
        return Built(
            job.target, job.backend.name, job.scheme.name, manifest.bytes, report,
            manifest.origin.licence_id, job.layout, "kept",
        )  # fmt: skip
    found = resume.whole_package(job.target, basis)
    if found is None:
        return None
    return as_built(job, found, "kept")


def _lines(jobs: Sequence[PreparedPackage], left: Sequence[PreparedPackage], recipe: Recipe) -> int:
    """How many lines of progress are to come: one for each package that is kept, and the work."""
    drawn = 1 + len({job.given for job in left}) if left and recipe.prompts else 0
    return len(jobs) - len(left) + drawn + sum(job.lines(recipe) for job in left)

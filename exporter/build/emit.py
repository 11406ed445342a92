"""One package: its graphs emitted or taken from a cache, what stands beside them, verified."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from exporter.backends.contract import EmitOptions, ForNpu
from exporter.build import golden, resume, reuse, write
from exporter.build.asked import PreparedPackage
from exporter.build.chips import compiled, in_place, missing
from exporter.build.draw import SchemeWork
from exporter.build.gguf import build_gguf
from exporter.build.keys import Sources, graph_key
from exporter.build.layout import LayoutWork, verify_layout, write_layout
from exporter.build.shared import Built
from exporter.cache.shared import Cache
from exporter.errors import CheckFailed
from exporter.files.staging import staging
from exporter.layouts import load_layout
from exporter.package.layout import LAYOUT_FILE, check_layout
from exporter.package.names import graph_of
from exporter.package.read import MANIFEST
from exporter.package.sizes import PictureSize
from exporter.program.sizes import value_bytes
from exporter.progress import Progress
from exporter.quantize.program import QuantizedProgram
from exporter.quantize.split import split
from exporter.recipe.recipe import Recipe
from exporter.runtime.package import open_package
from exporter.runtime.verify import Report, check_files, verify


def build_package(
    job: PreparedPackage, work: SchemeWork, progress: Progress, cache: Cache | None
) -> Built:
    """A package with graphs of a cache, or with none of them where those do not verify."""
    taken: list[str] = []
    try:
        return _build_package(job, work, progress, cache, taken)
    except CheckFailed as error:
        if cache is None or not taken:
            raise
        progress(f"{job.target.name}: {len(taken)} graphs of the cache are made anew: {error}")
        return _build_package(job, work, progress, replace(cache, reads=False), [])


def _build_package(
    job: PreparedPackage,
    work: SchemeWork,
    progress: Progress,
    cache: Cache | None,
    taken: list[str],
) -> Built:
    """Emit what is not whole yet, write what stands beside it, verify.

    Args:
        taken: gets the names of the graphs that come from the cache.
    """
    model, basis = work.model, job.basis(work.model, work.calibration)
    emitted_now: list[str] = []
    with resume.resuming(job.target, basis, progress) as (folder, whole):
        bases = {"basis": basis, "unmarked_basis": job.unmarked_basis(model, work.calibration)}
        whole |= resume.unmarked_graphs(job.target, folder, bases["unmarked_basis"], whole)
        # Emit: each backend translates the same programs, reading weights one at a time.
        for part in job.parts:
            if part.name in whole:
                progress(f"{part.name} is whole already")
                continue
            whole[part.name] = _emit(job, part, work, folder, progress, cache, taken)
            if part.name not in taken:
                emitted_now.append(part.name)
            resume.write_journal(job.target, basis, whole.values())
        took = _compile(job, model.recipe, folder, whole, basis, progress)
        graphs = [whole[part.name] for part in job.parts]
        origin = job.origin(work.calibration)
        first, *others = model.recipe.sizes
        sized = {size: work.pictures[size] for size in others} if model.recipe.prompts else None
        manifest = write.fill(
            folder, model, job.backend, graphs, origin, work.pictures[first], sized
        )
        # Verify: the files, every graph against torch, whole pictures. Without golden outputs no
        # graph is opened: a runtime may need more memory than the build.
        progress(f"verify {job.target.name}")
        written = open_package(folder)
        if model.recipe.prompts:
            report = verify(written, progress)
        else:
            report = Report(job.target.name, check_files(written, progress), (), (), ())
        if not report.ok:
            raise CheckFailed(f"{job.target.name}: {'; '.join(report.failures)}")
        if not job.keeps_graphs(model.recipe):
            progress("contexts in place of graphs")
            manifest = write.rewrite(folder, in_place(folder, manifest))
            check_files(open_package(folder), progress)
        sizes = {"bytes": manifest.bytes, "graphs": {g.name: g.bytes for g in manifest.graphs}}
        facts = {**bases, **sizes, **({"compiled": took} if took else {})}
        write.write_log(job.target, folder / MANIFEST, facts, report.to_json())
    name = manifest.origin.licence_id
    return Built(
        job.target, job.backend.name, job.scheme.name, manifest.bytes, report, name,
        emitted=tuple(emitted_now), taken=tuple(taken),
    )  # fmt: skip


def _compile(
    job: PreparedPackage,
    recipe: Recipe,
    folder: Path,
    whole: dict[str, write.WholeGraph],
    basis: str,
    progress: Progress,
) -> list[dict[str, object]]:
    """Compile for chips what is not compiled yet; returns what that took."""
    took = []
    for part in job.parts:
        for chip in missing(whole[part.name], job.chips(recipe)):
            progress(f"compile {part.name} for {chip}")
            assert isinstance(job.backend, ForNpu)
            sizes = (part, *job.further.get(part.name, {}).values())
            values = sum(map(value_bytes, sizes))
            graph = whole[part.name]
            whole[part.name], found = compiled(job.backend, folder, graph, chip, values)
            resume.write_journal(job.target, basis, whole.values())
            took.append(asdict(found))
    return took


def build_layout(job: PreparedPackage, work: SchemeWork, progress: Progress) -> Built:
    """Write a folder for clients of others, of the same programs, and verify it."""
    model, size = work.model, work.model.recipe.sizes[0]
    programs = {name: work.rounded[size](name) for name in job.programs}
    made = LayoutWork(
        model, job.backend, load_layout(job.layout), programs, work.weights,
        work.pictures[size], work.allowed[size],
    )  # fmt: skip
    basis, origin = job.basis(model, work.calibration), job.origin(work.calibration)
    with staging(job.target) as folder:
        progress(f"write {job.target.name}")
        if made.layout.own:
            report = build_gguf(made, folder, origin)
            progress(f"read {job.target.name} back")
        else:
            written = write_layout(made, folder, origin)
            progress(f"verify {job.target.name}")
            report = verify_layout(made, folder, written)
        report = replace(report, package=job.target.name)
        if not report.ok:
            raise CheckFailed(f"{job.target.name}: {'; '.join(report.failures)}")
        manifest = check_layout(folder)
        write.write_log(job.target, folder / LAYOUT_FILE, {"basis": basis}, report.to_json())
    return Built(
        job.target, job.backend.name, job.scheme.name, manifest.bytes, report,
        manifest.origin.licence_id, job.layout,
    )  # fmt: skip


def emit_apart(
    job: PreparedPackage,
    name: str,
    work: SchemeWork,
    folder: Path,
    progress: Progress,
    cache: Cache,
) -> bool:
    """Put one graph of a package, which others assemble, into a cache; False: it is there.

    Args:
        folder: empty; what is written there is of no further use.
    """
    part = next(part for part in job.parts if part.name == name)
    if is_cached(job, part, work, cache):
        progress(f"{name} is in the cache")
        return False
    progress(f"emit {name}")
    programs = _sized(job, part, work)
    key = _key(job, programs, work)
    reuse.keep_graph(cache, key, _written(job, programs, work, folder), folder)
    return True


def is_cached(job: PreparedPackage, part: QuantizedProgram, work: SchemeWork, cache: Cache) -> bool:
    """Whether a cache says that it has a part; its files are checked when they are taken."""
    return cache.find("graph", _key(job, _sized(job, part, work), work)) is not None


def _emit(
    job: PreparedPackage,
    part: QuantizedProgram,
    work: SchemeWork,
    folder: Path,
    progress: Progress,
    cache: Cache | None,
    taken: list[str],
) -> write.WholeGraph:
    """Write a part, at every size if it has more than one, or take it from the cache."""
    programs, graph = _sized(job, part, work), graph_of(part.name)
    allowed = {size: work.allowed[size].get(graph, golden.USUAL) for size in programs}
    key = _key(job, programs, work) if cache else ""
    whole = reuse.take_graph(cache, key, programs, folder) if cache else None
    if whole is not None:
        progress(f"{part.name} is taken from the cache")
        taken.append(part.name)
        return whole.widened(allowed)
    progress(f"emit {part.name}")
    whole = _written(job, programs, work, folder)
    if cache:
        reuse.keep_graph(cache, key, whole, folder)
    return whole.widened(allowed)


Sized = Mapping[PictureSize, QuantizedProgram]  # the first one first


def _sized(job: PreparedPackage, part: QuantizedProgram, work: SchemeWork) -> Sized:
    """A part at every size that has one of its own, its inputs rounded."""
    recipe, graph = work.model.recipe, graph_of(part.name)
    sizes = (recipe.sizes[0], *job.further.get(part.name, ()))
    return {size: _rounded_part(work.rounded[size](graph), part.name, recipe) for size in sizes}


def _choices(job: PreparedPackage, work: SchemeWork) -> dict[str, str]:
    """The recipe's for emitting: what graphs are compiled for comes later, and is none of it."""
    chosen = work.model.recipe.backend(job.backend.name).choices
    later = job.backend.lists if isinstance(job.backend, ForNpu) else {}
    return {key: value for key, value in chosen.items() if key not in later}


def _options(job: PreparedPackage, programs: Sized, work: SchemeWork) -> EmitOptions:
    widened = job.is_widened(programs.values(), work.model.recipe.device_memory_bytes)
    return EmitOptions(_choices(job, work), is_widened=widened)


def _key(job: PreparedPackage, programs: Sized, work: SchemeWork) -> str:
    sources = Sources(work.model.checkpoint, work.calibration)
    return graph_key(job.backend, _options(job, programs, work), programs, sources)


def _written(
    job: PreparedPackage, programs: Sized, work: SchemeWork, folder: Path
) -> write.WholeGraph:
    options = _options(job, programs, work)
    if len(programs) > 1:
        return write.emit_sizes(job.backend, programs, work.weights.read, folder, options)
    (program,) = programs.values()
    return write.WholeGraph(
        write.emit_graph(job.backend, program, work.weights.read, folder, options)
    )


def _rounded_part(program: QuantizedProgram, name: str, recipe: Recipe) -> QuantizedProgram:
    """The part of that name of a program whose inputs are rounded."""
    cut = split(program, recipe.graph_parts.get(program.name, 1))
    return next(part for part in cut if part.name == name)

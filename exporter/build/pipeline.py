"""The whole road: checkpoint -> graphs -> trace -> calibrate -> quantize -> emit -> verify."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from exporter import backends
from exporter.backends.contract import Backend, EmitOptions
from exporter.build import golden, resume, write
from exporter.build.model import Model, calibrate, trace_model
from exporter.calibrate.activations import rounder
from exporter.calibrate.store import Calibration, kept
from exporter.calibrate.weights import Weights
from exporter.errors import CheckFailed, InputError
from exporter.files.lock import locked
from exporter.files.staging import refuse_place
from exporter.predict.fit import refuse_too_large
from exporter.progress import Progress
from exporter.quantize.formats import Scheme
from exporter.quantize.program import QuantizedProgram, quantize_all
from exporter.quantize.split import emitted
from exporter.recipe.plan import Plan, is_plan, read_plan
from exporter.recipe.recipe import Recipe
from exporter.runtime.package import open_package
from exporter.runtime.verify import Report, check_files, verify

STATISTICS = "statistics"  # the folder beside packages
KEEP_BYTES = 1 << 30  # of codes, when pictures are drawn with them before they are emitted


@dataclass(frozen=True)
class Built:
    """A finished package."""

    path: Path
    backend: str
    scheme: str
    bytes: int
    report: Report


def build(
    recipe: Recipe,
    out: Path,
    backend_names: Sequence[str] = (),
    scheme_names: Sequence[str] = (),
    progress: Progress | None = None,
    statistics: Path | None = None,
) -> list[Built]:
    """Build one package per backend and scheme into ``out``/<backend>-<scheme>.

    Args:
        scheme_names: schemes, or files of plans; without any, those of the recipe.
        statistics: folder of calibration statistics, used again if they fit; ``out``/statistics.

    Packages that are there and whole, of the same recipe, checkpoint and tools, are kept. A build
    that was interrupted goes on with the graphs that it has finished.

    Two builds into one folder take turns: the second waits, and says for whom.

    Raises InputError for what a user can mend, CheckFailed when a package does not verify; either
    way nothing half-written stays.
    """
    progress = progress or Progress()
    wanted = {
        name: tuple(scheme_names) or recipe.backend(name).schemes
        for name in backend_names or recipe.backends
    }
    loaded = {name: backends.load_to_build(name) for name in wanted}
    chosen = _schemes(recipe, dict.fromkeys(n for names in wanted.values() for n in names))
    refuse_place(out, 0)
    with locked(out, progress):
        return _build_into(out, recipe, wanted, loaded, chosen, progress, statistics)


def _build_into(
    out: Path,
    recipe: Recipe,
    wanted: Mapping[str, Sequence[str]],
    loaded: Mapping[str, Backend],
    chosen: Mapping[str, tuple[Scheme, Plan | None]],
    progress: Progress,
    statistics: Path | None,
) -> list[Built]:
    """``build`` in a folder that nobody else writes to.

    Args:
        wanted: names of schemes by backend.
        chosen: each scheme by the name that it was asked for, and the plan that it is from.
    """
    keep_bytes = KEEP_BYTES if recipe.prompts else 0
    model = trace_model(recipe, keep_bytes, progress)

    # Quantize: in the program. What cannot be built is refused here, before anything is computed.
    jobs = []
    for given, (scheme, plan) in chosen.items():
        programs = quantize_all(model.programs, scheme)
        parts = emitted(programs, recipe.t5_parts)
        for name in (name for name, names in wanted.items() if given in names):
            target = out / f"{name}-{scheme.name}"
            jobs.append(_Job(given, loaded[name], target, scheme, plan, programs, parts))
    for job in jobs:
        _refuse_unfit(job, model)

    # Resume: packages that are whole, and just what this build would make, are kept.
    graphs = [g for g in model.programs if any(job.programs[g].methods for job in jobs)]
    place = statistics or out / STATISTICS
    calibration = kept(place, model.provenance(graphs)) if graphs else None
    built = {job: _kept_package(job, job.basis(model, calibration)) for job in jobs}
    left = [job for job in jobs if built[job] is None]
    progress.expect(_lines(model, jobs, left))
    for job in jobs:
        if job not in left:
            progress(f"{job.target.name} is whole already")
    refuse_place(out, sum(job.missing_bytes() for job in left))

    # Calibrate: the inputs that layers meet on the model's own trajectories, if a scheme asks.
    if calibration is None and any(job.scheme.used_methods for job in left):
        calibration = calibrate(model, graphs, place, progress)
    weights = Weights(model.checkpoint, keep_bytes=keep_bytes, calibration=calibration)

    # Golden pictures: the unquantized program in torch once, then each scheme's.
    painter = golden.Painter(weights, model.schedule, model.tokenizers, recipe)
    if left and recipe.prompts:
        progress("golden pictures, unquantized, in torch")
    plain = painter.draw(model.unrounded) if left else []

    # Emit and verify, the packages of a scheme one after the other.
    for _, same in itertools.groupby(left, key=lambda job: job.given):
        first, *others = same
        # What layers read is rounded in the program too, in ranges chosen on the trajectories.
        rounded = rounder(first.programs, weights.read, model.calls_as(first.programs, weights))
        work = _Work(model, weights, calibration, rounded, plain=plain)
        if recipe.prompts:
            progress(f"{first.scheme.name}: golden pictures in torch")
            programs = {name: rounded(name) for name in first.programs}
            drawings = painter.draw(programs)
            allowed = golden.allowances(programs, weights, drawings[0])
            work = replace(work, drawings=drawings, allowed=allowed)
        for job in (first, *others):
            options = EmitOptions(recipe.backend(job.backend.name).choices)
            built[job] = _build_package(job, options, work, progress)
    return [found for found in built.values() if found is not None]


@dataclass(frozen=True, eq=False)
class _Job:
    """A package to build, in the folder ``target``.

    Attributes:
        given: the scheme as it was asked for: its name, or the file of a plan.
        programs, parts: the quantized graphs, and those that are emitted for them.
    """

    given: str
    backend: Backend
    target: Path
    scheme: Scheme
    plan: Plan | None
    programs: dict[str, QuantizedProgram]
    parts: Sequence[QuantizedProgram]

    def origin(self, calibration: Calibration | None) -> write.Origin:
        return write.Origin(self.scheme, self.plan, self.programs, calibration)

    def basis(self, model: Model, calibration: Calibration | None) -> str:
        origin = self.origin(calibration)
        return resume.basis_of(model.recipe, model.checkpoint, self.backend, origin)

    def missing_bytes(self) -> int:
        """Of its graphs, what an interrupted build has not written."""
        whole = sum(program.stored_bytes() for program in self.programs.values())
        return whole - resume.unfinished_bytes(self.target)


def _schemes(recipe: Recipe, given: Iterable[str]) -> dict[str, tuple[Scheme, Plan | None]]:
    """Each scheme, and the plan that it was read from; raises InputError."""
    found: dict[str, tuple[Scheme, Plan | None]] = {}
    for name in given:
        plan = read_plan(Path(name)) if is_plan(name) else None
        found[name] = (plan.scheme if plan else recipe.scheme(name), plan)
    for one, other in itertools.combinations(found, 2):
        if found[one][0].name == found[other][0].name:
            raise InputError(f"{one} and {other} would be built into the same folder; rename one")
    return found


def _refuse_unfit(job: _Job, model: Model) -> None:
    """Raise InputError for what a backend cannot express or the recipe's device cannot hold."""
    choices = model.recipe.backend(job.backend.name).choices
    backends.refuse_inexpressible(job.backend, choices, job.given, job.programs)
    if model.recipe.device_memory_bytes is not None:
        refuse_too_large(
            model.recipe.device_memory_bytes, job.backend, job.scheme.name, job.parts,
            functools.partial(_expressible, model, job.backend),
        )  # fmt: skip


@dataclass(frozen=True)
class _Work:
    """What the packages of a scheme share.

    Attributes:
        rounded: gives a graph's program with its rounded inputs.
        drawings, plain: the golden pictures, by the quantized and by the unquantized program.
        allowed: relative errors that graphs may have; of others, what the backend says.
    """

    model: Model
    weights: Weights
    calibration: Calibration | None
    rounded: Callable[[str], QuantizedProgram]
    drawings: Sequence[golden.Drawing] = ()
    plain: Sequence[golden.Drawing] = ()
    allowed: Mapping[str, float] = field(default_factory=dict)


def _build_package(job: _Job, options: EmitOptions, work: _Work, progress: Progress) -> Built:
    """Emit what is not whole yet, write what stands beside it, verify."""
    model, calibration = work.model, work.calibration
    recipe, basis = model.recipe, job.basis(model, calibration)
    with resume.resuming(job.target, basis, progress) as (folder, whole):
        # Emit: each backend translates the same programs, reading weights one at a time.
        for part in job.parts:
            if part.name in whole:
                progress(f"{part.name} is whole already")
                continue
            program = work.rounded(part.name) if part.name in job.programs else part
            progress(f"emit {program.name}")
            whole[program.name] = write.emit_graph(
                job.backend,
                program,
                work.weights.read,
                folder,
                options,
                work.allowed.get(program.name, 0.0),
            )
            resume.write_journal(job.target, basis, whole.values())
        manifest = write.fill(
            folder, recipe, model.checkpoint, job.backend,
            [whole[part.name] for part in job.parts], job.origin(calibration), model.tokenizers,
            work.drawings, work.plain,
        )  # fmt: skip
        # Verify: the files, every graph against torch, whole pictures. Without golden outputs no
        # graph is opened: a runtime may need more memory than the build.
        progress(f"verify {job.target.name}")
        written = open_package(folder)
        if recipe.prompts:
            report = verify(written, progress)
        else:
            report = Report(job.target.name, check_files(written, progress), (), (), ())
        if not report.ok:
            raise CheckFailed(f"{job.target.name}: {'; '.join(report.failures)}")
        write.write_log(job.target, folder, manifest, basis, report.to_json())
    return Built(job.target, job.backend.name, job.scheme.name, manifest.bytes, report)


def _kept_package(job: _Job, basis: str) -> Built | None:
    found = resume.whole_package(job.target, basis)
    if found is None:
        return None
    whole, report = found
    return Built(job.target, job.backend.name, job.scheme.name, whole.manifest.bytes, report)


def _expressible(model: Model, backend: Backend) -> dict[str, dict[str, QuantizedProgram]]:
    """The programs in every shipped scheme that a backend can express."""
    choices = model.recipe.backend(backend.name).choices
    able = backends.expressible_schemes(backend, choices)
    return {name: quantize_all(model.programs, model.recipe.scheme(name)) for name in able}


def _lines(model: Model, jobs: Sequence[_Job], left: Sequence[_Job]) -> int:
    """How many progress lines a build shows, a line for each package that it keeps among them."""
    graphs, pictures = len(model.programs), len(model.recipe.prompts)
    verified = 1 + (graphs + pictures if pictures else 0)
    drawings = 1 + len({job.given for job in left}) if pictures and left else 0
    written = sum(len(job.parts) + 1 + verified for job in left)
    return graphs + len(jobs) - len(left) + drawings + written

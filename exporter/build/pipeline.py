"""The whole road: checkpoint -> graphs -> trace -> calibrate -> quantize -> emit -> verify."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from exporter import backends
from exporter.backends.contract import Backend, EmitOptions
from exporter.bom.licence import require_library
from exporter.build import golden, resume, write
from exporter.build.filter import PreparedFilter, prepared
from exporter.build.licence import warn_of_missing
from exporter.build.model import Model, calibrate, lines_to_calibrate, trace_model
from exporter.calibrate.activations import rounder
from exporter.calibrate.store import Calibration, kept
from exporter.calibrate.weights import Weights
from exporter.errors import CheckFailed, InputError
from exporter.files.lock import locked
from exporter.files.staging import refuse_place
from exporter.package.manifest import GraphEntry
from exporter.package.names import graph_of
from exporter.predict.fit import limits_of, refuse_too_large
from exporter.program.threads import fixed_threads
from exporter.progress import Progress
from exporter.quantize.formats import Scheme
from exporter.quantize.program import QuantizedProgram, quantize_all
from exporter.quantize.split import emitted, split
from exporter.recipe.plan import Plan, is_plan, read_plan
from exporter.recipe.recipe import Recipe
from exporter.runtime.package import open_package
from exporter.runtime.verify import Report, check_files, lines_to_verify, verify

STATISTICS = "statistics"  # the folder beside packages
KEEP_BYTES = 1 << 30  # of codes, when pictures are drawn with them before they are emitted


@dataclass(frozen=True)
class Built:
    """A finished package.

    Attributes:
        licence_id: of the weights, in SPDX's words; empty where it is not known.
    """

    path: Path
    backend: str
    scheme: str
    bytes: int
    report: Report
    licence_id: str = ""


@fixed_threads()
def build(
    recipe: Recipe,
    out: Path,
    backend_names: Sequence[str] = (),
    scheme_names: Sequence[str] = (),
    progress: Progress | None = None,
    statistics: Path | None = None,
    calibrated: Sequence[str] = (),
) -> list[Built]:
    """Build one package per backend and scheme into ``out``/<backend>-<scheme>.

    Args:
        scheme_names: schemes, or files of plans; without any, those of the recipe.
        statistics: folder of calibration statistics, used again if they fit; ``out``/statistics.
        calibrated: graphs to measure besides those that a scheme asks for.

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
    loaded = {name: backends.load_to_build(name) for name in wanted}
    chosen = _schemes(recipe, dict.fromkeys(n for names in wanted.values() for n in names))
    pairs = [
        _Asked(given, *found, loaded[name], out)
        for given, found in chosen.items()
        for name, names in wanted.items()
        if given in names
    ]
    refuse_place(out, 0)
    with locked(out, progress):
        return _build(recipe, pairs, out, statistics or out / STATISTICS, progress, calibrated)


def _build(
    recipe: Recipe,
    asked: Sequence[_Asked],
    out: Path,
    statistics: Path,
    progress: Progress,
    calibrated: Sequence[str],
) -> list[Built]:
    """``build`` in a folder that nobody else writes to."""
    keep_bytes = KEEP_BYTES if recipe.prompts else 0
    model = trace_model(recipe, keep_bytes, progress)
    warn_of_missing(model.licence, model.checkpoint)

    # Quantize: in the program. What cannot be built is refused here, before anything is computed.
    jobs = _jobs(model, asked)
    for job in jobs:
        _refuse_unfit(job, model)

    # Resume: packages that are whole, and just what this build would make, are kept.
    used = {g for job in jobs for g in model.programs if job.programs[g].methods}
    graphs = [g for g in model.programs if g in used or g in calibrated]
    calibration = kept(statistics, model.provenance(graphs)) if graphs else None
    built = {job: _kept_package(job, job.basis(model, calibration)) for job in jobs}
    left = [job for job in jobs if built[job] is None]
    measures = calibration is None and any(job.scheme.used_methods for job in left)
    progress.expect(_lines(jobs, left, len(recipe.prompts)))
    progress.expect(lines_to_calibrate(graphs) if measures else 0)
    for job in jobs:
        if job not in left:
            progress(f"{job.target.name} is whole already")
    refuse_place(out, sum(job.missing_bytes() for job in left))

    # Calibrate: the inputs that layers meet on the model's own trajectories, if a scheme asks.
    if measures:
        calibration = calibrate(model, graphs, statistics, progress)
    weights = Weights(model.checkpoint, keep_bytes=keep_bytes, calibration=calibration)

    # Golden pictures: the unquantized program in torch once, then each scheme's.
    painter = golden.Painter(weights, model.schedule, model.tokenizers, recipe)
    if left and recipe.prompts:
        progress("golden pictures, unquantized, in torch")
    plain = painter.draw(model.unrounded) if left else []

    # Emit and verify, the packages of a scheme one after the other.
    for _, same in itertools.groupby(left, key=lambda job: job.given):
        together = list(same)
        work = _work(together[0], model, painter, plain, calibration, progress)
        for job in together:
            built[job] = _build_package(job, work, progress)
    return [found for found in built.values() if found is not None]


@dataclass(frozen=True, eq=False)
class _Asked:
    """A package that was asked for.

    Attributes:
        given: the scheme as it was asked for: its name, or the file of a plan.
        plan: what the scheme was read from, or None.
        out: the folder of the packages.
    """

    given: str
    scheme: Scheme
    plan: Plan | None
    backend: Backend
    out: Path

    @property
    def target(self) -> Path:
        """The package's folder."""
        return self.out / f"{self.backend.name}-{self.scheme.name}"


@dataclass(frozen=True, eq=False)
class _Job(_Asked):
    """The same with its programs: the quantized graphs, and the parts that are emitted for them.

    ``filter``: the classifier that pictures have to pass, or None.
    """

    programs: dict[str, QuantizedProgram]
    parts: Sequence[QuantizedProgram]
    filter: PreparedFilter | None

    def origin(self, calibration: Calibration | None) -> write.Origin:
        return write.Origin(self.scheme, self.plan, self.programs, calibration, self.filter)

    def basis(self, model: Model, calibration: Calibration | None) -> str:
        origin = self.origin(calibration)
        return resume.basis_of(model.recipe, model.checkpoint, self.backend, origin)

    def unmarked_basis(self, model: Model, calibration: Calibration | None) -> str:
        origin = self.origin(calibration)
        return resume.unmarked_basis_of(model.recipe, model.checkpoint, self.backend, origin)

    def missing_bytes(self) -> int:
        """Of its graphs, what an interrupted build has not written."""
        whole = sum(program.stored_bytes() for program in self.programs.values())
        return whole - resume.unfinished_bytes(self.target)

    def lines(self, pictures: int) -> int:
        """Of progress: each part, and what ``verify`` shows after its name."""
        graphs = len(self.programs) + (self.filter is not None)
        checks = lines_to_verify(graphs, pictures) if pictures else 1
        return len(self.parts) + 1 + checks


def _jobs(model: Model, asked: Sequence[_Asked]) -> list[_Job]:
    """The jobs in the order asked for; those of one scheme share its programs."""
    schemes = {one.given: one.scheme for one in asked}
    programs = {given: quantize_all(model.programs, s) for given, s in schemes.items()}
    parts = {given: emitted(found, model.recipe.graph_parts) for given, found in programs.items()}
    choice = model.recipe.filter
    filters = {
        one.backend.name: prepared(choice, one.backend, model.recipe.most_file_bytes)
        for one in asked
        if choice is not None
    }
    return [
        _Job(
            **vars(one),
            programs=programs[one.given],
            parts=parts[one.given],
            filter=filters.get(one.backend.name),
        )
        for one in asked
    ]


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
    refuse_too_large(
        limits_of(model.recipe), job.backend, job.scheme.name, job.parts,
        functools.partial(_expressible, model, job.backend),
    )  # fmt: skip


@dataclass(frozen=True)
class _Work:
    """What the packages of a scheme share.

    Attributes:
        rounded: gives a graph's program with its rounded inputs.
        pictures: the golden pictures; none where the recipe has no prompts.
        allowed: what graphs may differ by besides what the backend says.
    """

    model: Model
    weights: Weights
    calibration: Calibration | None
    rounded: Callable[[str], QuantizedProgram]
    pictures: golden.Pictures
    allowed: Mapping[str, golden.Allowance]


def _work(
    job: _Job,
    model: Model,
    painter: golden.Painter,
    plain: Sequence[golden.Drawing],
    calibration: Calibration | None,
    progress: Progress,
) -> _Work:
    """The work of a job's scheme, with its pictures drawn."""
    weights = painter.weights
    # What layers read is rounded in the program too, in ranges chosen on the trajectories.
    rounded = rounder(job.programs, weights.read, model.calls_as(job.programs, weights))
    if not model.recipe.prompts:
        return _Work(model, weights, calibration, rounded, golden.Pictures((), ()), {})
    progress(f"{job.scheme.name}: golden pictures in torch")
    programs = {name: rounded(name) for name in job.programs}
    drawings = painter.draw(programs)
    allowed = golden.allowances(programs, weights, drawings[0], painter.schedule.guidance)
    return _Work(model, weights, calibration, rounded, golden.Pictures(drawings, plain), allowed)


def _build_package(job: _Job, work: _Work, progress: Progress) -> Built:
    """Emit what is not whole yet, write what stands beside it, verify."""
    model, basis = work.model, job.basis(work.model, work.calibration)
    with resume.resuming(job.target, basis, progress) as (folder, whole):
        bases = {"basis": basis, "unmarked_basis": job.unmarked_basis(model, work.calibration)}
        whole |= resume.unmarked_graphs(job.target, folder, bases["unmarked_basis"], whole)
        # Emit: each backend translates the same programs, reading weights one at a time.
        for part in job.parts:
            if part.name in whole:
                progress(f"{part.name} is whole already")
                continue
            progress(f"emit {part.name}")
            whole[part.name] = _emit(job, part, work, folder)
            resume.write_journal(job.target, basis, whole.values())
        graphs = [whole[part.name] for part in job.parts]
        origin = job.origin(work.calibration)
        manifest = write.fill(folder, model, job.backend, graphs, origin, work.pictures)
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
        write.write_log(job.target, folder, manifest, bases, report.to_json())
    name = manifest.origin.licence_id
    return Built(job.target, job.backend.name, job.scheme.name, manifest.bytes, report, name)


def _emit(job: _Job, part: QuantizedProgram, work: _Work, folder: Path) -> GraphEntry:
    graph = graph_of(part.name)
    cut = split(work.rounded(graph), work.model.recipe.graph_parts.get(graph, 1))
    program = next(p for p in cut if p.name == part.name)
    options = EmitOptions(work.model.recipe.backend(job.backend.name).choices)
    allowed = work.allowed.get(graph, golden.USUAL)
    return write.emit_graph(job.backend, program, work.weights.read, folder, options, allowed)


def _kept_package(job: _Job, basis: str) -> Built | None:
    found = resume.whole_package(job.target, basis)
    if found is None:
        return None
    whole, report = found
    name = whole.manifest.origin.licence_id
    return Built(job.target, job.backend.name, job.scheme.name, whole.manifest.bytes, report, name)


def _expressible(model: Model, backend: Backend) -> dict[str, dict[str, QuantizedProgram]]:
    """The programs in every shipped scheme that a backend can express."""
    choices = model.recipe.backend(backend.name).choices
    able = backends.expressible_schemes(backend, choices)
    return {name: quantize_all(model.programs, model.recipe.scheme(name)) for name in able}


def _lines(jobs: Sequence[_Job], left: Sequence[_Job], pictures: int) -> int:
    """How many lines of progress are to come: one for each package that is kept, and the work."""
    drawn = 1 + len({job.given for job in left}) if left and pictures else 0
    return len(jobs) - len(left) + drawn + sum(job.lines(pictures) for job in left)

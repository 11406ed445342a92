"""The whole road: checkpoint -> graphs -> trace -> calibrate -> quantize -> emit -> verify."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeVar

from exporter import backends
from exporter.backends.contract import Backend, EmitOptions, ForNpu, Sizing
from exporter.bom.licence import require_library
from exporter.build import golden, resume, reuse, write
from exporter.build.chips import compiled, missing
from exporter.build.filter import PreparedFilter, prepared
from exporter.build.gather import LINES as LINES_TO_GATHER
from exporter.build.gather import gather
from exporter.build.gguf import build_gguf, refuse_foreign_numbers
from exporter.build.keys import Sources, digest_of, graph_key
from exporter.build.layout import LayoutWork, refuse_unfit, verify_layout, write_layout
from exporter.build.licence import licence_of, warn_of_missing
from exporter.build.model import (
    Model,
    calibrate,
    lines_to_calibrate,
    open_asked,
    trace_model,
    trace_sizes,
)
from exporter.cache.shared import Cache
from exporter.calibrate.activations import ranges_of, rounded_by
from exporter.calibrate.store import Calibration, kept
from exporter.calibrate.weights import Weights
from exporter.checkpoint.open import Checkpoint
from exporter.errors import CheckFailed, InputError
from exporter.files.lock import alone, locked
from exporter.files.staging import refuse_place, staging
from exporter.layouts import NATIVE, load_layout
from exporter.package.layout import LAYOUT_FILE, check_layout
from exporter.package.names import graph_of
from exporter.package.read import MANIFEST
from exporter.package.sizes import PictureSize
from exporter.predict.fit import limits_of, refuse_too_large
from exporter.predict.graph import build_bytes, run_bytes
from exporter.program.program import Program
from exporter.program.sizes import activation_bytes
from exporter.program.threads import fixed_threads
from exporter.progress import Progress
from exporter.quantize.formats import Scheme
from exporter.quantize.program import QuantizedProgram, quantize_all
from exporter.quantize.split import emitted, split
from exporter.recipe.plan import Plan, is_plan, read_plan
from exporter.recipe.recipe import Recipe
from exporter.runtime.package import Package, open_package
from exporter.runtime.verify import Report, check_files, lines_to_verify, verify

STATISTICS = "statistics"  # the folder beside packages
KEEP_BYTES = 1 << 30  # of codes, when pictures are drawn with them, or sizes or layouts share
Schemes = tuple[str, ...]
LINES_OF_LAYOUT = 2  # of progress
SIZED_PICTURES = 1  # golden ones of each further size
DRAWN_ACTIVATIONS = 3  # of a graph's, that torch holds at once while it draws
LIBRARY_BYTES = 250_000_000  # of backends' libraries, and of what torch keeps for later
HEADROOM = 1.25  # of predictions, for what is rounded up and freed late
NODE_BYTES = 1000  # of a graph's files, for each operator; more than any backend takes
Models = Mapping[PictureSize, Model]  # the first of pictures' sizes first
# Of a package: made by this build, there already, or copied from a cache.
Source = Literal["built", "kept", "cache"]
T = TypeVar("T")
A = TypeVar("A", bound="_Asked")


@dataclass(frozen=True)
class Built:
    """A finished package.

    Attributes:
        licence_id: of the weights, in SPDX's words; empty where it is not known.
        layout: that it is in.
        source: where it comes from.
        emitted, taken: of one that was built, the graphs that a backend wrote, and those that came
            from a cache.
    """

    path: Path
    backend: str
    scheme: str
    bytes: int
    report: Report
    licence_id: str = ""
    layout: str = NATIVE
    source: Source = field(default="built", compare=False)
    emitted: tuple[str, ...] = field(default=(), compare=False)
    taken: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class TracedRecipe:
    """What builds of one recipe share that a process makes one after the other.

    Attributes:
        models: of the recipe, traced.
        keep_bytes: of codes.
    """

    recipe: Recipe
    models: Models
    keep_bytes: int
    _last: dict[str, tuple[object, object]] = field(default_factory=dict)

    def once(self, what: str, key: object, make: Callable[[], T]) -> T:
        """What was made last, if it was for this key; else it is let go of, and made."""
        known = self._last.get(what)
        if known is None or known[0] != key:
            self._last.pop(what, None)
            self._last[what] = (key, make())
        return self._last[what][1]  # type: ignore[return-value]  # what ``make`` gave


@fixed_threads()
def traced(recipe: Recipe, progress: Progress | None = None) -> TracedRecipe:
    """A recipe's models at all its sizes; raises InputError."""
    progress = progress or Progress()
    several = recipe.further_sizes or len(recipe.layouts) > 1
    keep_bytes = KEEP_BYTES if recipe.prompts or several else 0
    return TracedRecipe(
        recipe, trace_sizes(trace_model(recipe, keep_bytes, progress), progress), keep_bytes
    )


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
    pairs = _asked(recipe, wanted, out)
    refuse_place(out, 0)
    places = Places(out, statistics or out / STATISTICS, tuple(calibrated), cache)
    gathered = [layout for layout in recipe.layouts if load_layout(layout).gathers]
    with locked(out, progress):
        found = _requested(recipe, pairs, places, progress)
        progress.expect(LINES_TO_GATHER * len(gathered))
        built = found or _build(traced(recipe, progress), pairs, places, progress)
        return built + [_gathered(recipe, layout, built, out, progress) for layout in gathered]


def _asked(recipe: Recipe, wanted: Mapping[str, Schemes], out: Path) -> list[_Asked]:
    """What is asked for, schemes by backend, in order; raises InputError."""
    for layout in recipe.layouts:
        refuse_unfit(recipe, layout, tuple(wanted))
    asked, wanted = tuple(wanted), _with_own(recipe, wanted)
    loaded = {name: backends.load_to_build(name) for name in wanted}
    for backend in loaded.values() if recipe.further_sizes else ():
        _refuse_unsized(backend)
    chosen = _schemes(recipe, dict.fromkeys(n for names in wanted.values() for n in names))
    return [
        _Asked(given, *found, loaded[name], layout, out)
        for given, found in chosen.items()
        for name, names in wanted.items()
        for layout in _written(recipe, name, name in asked)
        if given in names
    ]


@dataclass(frozen=True)
class Places:
    """Where a build reads and writes besides its checkpoint.

    Attributes:
        out: the folder of the packages.
        statistics: that of calibration statistics.
        calibrated: graphs to measure besides those that a scheme asks for.
        cache: shared with other machines, or None.
        beside: schemes that others build of the same recipe: layers are measured for them too, so
            that all share the same statistics.
    """

    out: Path
    statistics: Path
    calibrated: tuple[str, ...]
    cache: Cache | None
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class One:
    """Packages of one backend in one scheme, out of many that are built apart, anywhere.

    They are the same, byte for byte, as those of ``build`` with all the schemes of
    ``places.beside``.
    """

    recipe: Recipe
    backend: str
    scheme: str
    places: Places

    @property
    def _asked(self) -> list[_Asked]:
        return _asked(self.recipe, {self.backend: (self.scheme,)}, self.places.out)

    def look_up(self, progress: Progress) -> list[Built]:
        """Them as they lie there, or from the cache, without tracing; else none."""
        asked = self._asked
        with self._alone(asked, progress):
            return _requested(self.recipe, asked, self.places, progress)

    @fixed_threads()
    def build(self, shared: TracedRecipe, progress: Progress) -> list[Built]:
        """Build them, as ``build`` does, with what is shared with other builds of the recipe."""
        asked = self._asked
        with self._alone(asked, progress):
            return _build(shared, asked, self.places, progress)

    def needs(self, shared: TracedRecipe) -> Needs:
        """What building them is predicted to take; raises InputError for what cannot be built."""
        jobs = _jobs(shared.models, self._asked)
        for job in jobs:
            _refuse_unfit(job, shared.models)
        return Needs(
            max(_more_bytes(job, shared) for job in jobs), sum(job.missing_bytes() for job in jobs)
        )

    @contextmanager
    def _alone(self, asked: Sequence[_Asked], progress: Progress) -> Iterator[None]:
        """One process at a time for a package, and many in the folder around it."""
        with ExitStack() as stack:
            for one in asked:
                stack.enter_context(alone(one.target, progress))
            yield


@dataclass(frozen=True)
class Needs:
    """What a build is predicted to take.

    Attributes:
        more_bytes: of memory, besides what the process has taken before.
        disk_bytes: of files that are not there yet.
    """

    more_bytes: int
    disk_bytes: int


def _more_bytes(job: _Job, shared: TracedRecipe) -> int:
    """Memory for measuring, drawing, emitting or running a graph, whichever takes the most."""
    recipe, costs = shared.recipe, job.backend.costs
    programs = [p for sized in job.sized.values() for p in sized.values()]
    parts = [*job.parts, *(part for sized in job.further.values() for part in sized.values())]
    written = run = 0
    if costs is not None:
        written = max(build_bytes(part, costs, 0) - costs.build_process_bytes for part in parts)
        run = max(run_bytes(part, costs) - costs.process_bytes for part in parts)
    drawn = max(4 * _values(p) + DRAWN_ACTIVATIONS * activation_bytes(p) for p in programs)
    measured = max(_covariance_bytes(p) for p in programs) if job.scheme.used_methods else 0
    codes = sum(program.stored_bytes() for program in job.programs.values())
    held = min(shared.keep_bytes, 4 * codes)
    most = max(written, run, measured, drawn if recipe.prompts else 0)
    return LIBRARY_BYTES + int(HEADROOM * (held + most))


def _covariance_bytes(program: QuantizedProgram) -> int:
    """Of what a layer meets, while it is measured: a sum in float64, and a factor of it."""
    widths = [source.shape[-1] for source in program.stored().values() if len(source.shape) == 2]
    return 2 * 8 * max(widths, default=0) ** 2


def _values(program: QuantizedProgram) -> int:
    return sum(program.values_by_format().values())


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
    return [scheme for scheme, _ in _schemes(recipe, places.beside).values()]


def _requested(
    recipe: Recipe, asked: Sequence[_Asked], places: Places, progress: Progress
) -> list[Built]:
    """All packages from the cache, or as they lie there, without tracing; else none."""
    if places.cache is None:
        return []
    checkpoint = open_asked(recipe)
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
        found.append(_as_built(one, taken, "kept" if kept else "cache"))
    if found:
        warn_of_missing(licence_of(recipe, checkpoint), checkpoint)
    return found


def _wanted(one: _Asked, recipe: Recipe, checkpoint: Checkpoint, basis: str) -> reuse.Awaited:
    return reuse.Awaited(
        one.target, basis, one.backend.name, one.scheme.name,
        recipe.digest(one.backend.name, one.layout), checkpoint.digest,
    )  # fmt: skip


def _as_built(one: _Asked, taken: tuple[Package, Report], source: Source) -> Built:
    package, report = taken
    manifest = package.manifest
    return Built(
        one.target, one.backend.name, one.scheme.name, manifest.bytes, report,
        manifest.origin.licence_id, source=source,
    )  # fmt: skip


def _with_own(recipe: Recipe, wanted: Mapping[str, Schemes]) -> dict[str, Schemes]:
    """The schemes of each backend, with those of backends that layouts bring along."""
    found = dict(wanted)
    for own in filter(None, (load_layout(name).own for name in recipe.layouts)):
        found.setdefault(own, tuple(dict.fromkeys(n for names in wanted.values() for n in names)))
    return found


def _written(recipe: Recipe, backend: str, is_asked: bool) -> Sequence[str]:
    """The layouts in which a scheme's folder is written, those that another is made of included.

    Args:
        is_asked: whether the backend was asked for, and no layout brought it along.
    """
    layouts = [load_layout(name) for name in recipe.layouts]
    asked = [one for one in layouts if one.takes(backend) and (is_asked or one.own == backend)]
    return list(dict.fromkeys(NATIVE if one.gathers else one.name for one in asked))


def _gathered(
    recipe: Recipe, layout: str, built: Sequence[Built], out: Path, progress: Progress
) -> Built:
    """The native packages of a build in one folder."""
    takes = load_layout(layout).takes
    made_of = [b for b in built if b.layout == NATIVE and takes(b.backend)]
    target, manifest, report = gather(recipe, [b.path for b in made_of], out, progress)
    licence = manifest.origin.licence_id
    return Built(target, manifest.backend, manifest.scheme, manifest.bytes, report, licence, layout)


def _build(
    shared: TracedRecipe, asked: Sequence[_Asked], places: Places, progress: Progress
) -> list[Built]:
    """``build`` where nobody else writes to its packages."""
    recipe, models, cache = shared.recipe, shared.models, places.cache
    model = models[recipe.sizes[0]]
    warn_of_missing(model.licence, model.checkpoint)

    # Quantize: in the program. What cannot be built is refused here, before anything is computed.
    jobs = _jobs(models, asked)
    for job in jobs:
        _refuse_unfit(job, models)

    # Resume: packages that are whole, and just what this build would make, are kept.
    there = reuse.digests_of(places.statistics) if cache else ()
    graphs = _measured(shared, jobs, places)
    calibration = _calibration(models, jobs, graphs, places, progress)
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
        measured = models[recipe.calibrated_size]
        calibration = calibrate(measured, graphs, places.statistics, progress)
        if cache:
            reuse.keep_statistics(cache, calibration)

    # Emit and verify, the packages of a scheme one after the other.
    for _, same in itertools.groupby(left, key=lambda job: job.given):
        together = list(same)
        work = _work(together[0], shared, calibration, progress)
        for job in together:
            if job.layout == NATIVE:
                built[job] = _build_shared(job, work, progress, cache)
            else:
                built[job] = _build_layout(job, work, progress)
    if cache:
        _keep(shared, (jobs, left), calibration, graphs, there, places)
    return [found for found in built.values() if found is not None]


def _measured(shared: TracedRecipe, jobs: Sequence[_Job], places: Places) -> list[str]:
    """The graphs that are measured, if any are: those that a scheme needs, or that were named."""
    programs = shared.models[shared.recipe.sizes[0]].programs
    used = {g for job in jobs for g in programs if job.programs[g].methods}

    def of_others() -> set[str]:
        schemes = _beside(shared.recipe, places)
        quantized = [quantize_all(programs, scheme) for scheme in schemes if scheme.used_methods]
        return {g for found in quantized for g in programs if found[g].methods}

    used |= shared.once("measured", places.beside, of_others)
    return [g for g in programs if g in used or g in places.calibrated]


def _calibration(
    models: Models,
    jobs: Sequence[_Job],
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
    job: _Job, model: Model, calibration: Calibration | None, cache: Cache | None
) -> Built | None:
    """A package as it lies there, or from the cache; None for one that has to be built."""
    basis = job.basis(model, calibration)
    kept_one = _kept_package(job, basis)
    if kept_one is not None or cache is None or job.layout != NATIVE:
        return kept_one
    taken = reuse.take_package(cache, _wanted(job, model.recipe, model.checkpoint, basis))
    return _as_built(job, taken, "cache") if taken else None


@dataclass(frozen=True, eq=False)
class _Asked:
    """A package that was asked for.

    Attributes:
        given: the scheme as it was asked for: its name, or the file of a plan.
        plan: what the scheme was read from, or None.
        layout: in which it is written.
        out: the folder of the packages.
    """

    given: str
    scheme: Scheme
    plan: Plan | None
    backend: Backend
    layout: str
    out: Path

    @property
    def target(self) -> Path:
        """The package's folder."""
        return self.out / load_layout(self.layout).folder(self.backend.name, self.scheme.name)


@dataclass(frozen=True, eq=False)
class _Job(_Asked):
    """The same with its programs: the quantized graphs, and the parts that are emitted for them.

    Attributes:
        programs: by graph, of the first size.
        sized: of each size that is drawn or measured at, the first among them.
        parts: what is emitted of the first size.
        further: of a part what is emitted at each further size; nothing of one that serves all.
        filter: the classifier that pictures have to pass, or None.
    """

    programs: dict[str, QuantizedProgram]
    sized: Mapping[PictureSize, dict[str, QuantizedProgram]]
    parts: Sequence[QuantizedProgram]
    further: Mapping[str, Mapping[PictureSize, QuantizedProgram]]
    filter: PreparedFilter | None

    def origin(self, calibration: Calibration | None) -> write.Origin:
        return write.Origin(self.scheme, self.plan, self.programs, calibration, self.filter)

    def basis(self, model: Model, calibration: Calibration | None) -> str:
        origin = self.origin(calibration)
        return resume.basis_of(model.recipe, model.checkpoint, self.backend, origin, self.layout)

    def unmarked_basis(self, model: Model, calibration: Calibration | None) -> str:
        origin = self.origin(calibration)
        return resume.unmarked_basis_of(model.recipe, model.checkpoint, self.backend, origin)

    def missing_bytes(self) -> int:
        """Of its graphs, what an interrupted build has not written."""
        whole = sum(program.stored_bytes() for program in self.programs.values())
        operators = [len(p.nodes()) for sized in self.further.values() for p in sized.values()]
        whole += NODE_BYTES * sum(operators)
        return whole - resume.unfinished_bytes(self.target)

    def chips(self, recipe: Recipe) -> tuple[str, ...]:
        """What its graphs are compiled for."""
        choices = recipe.backend(self.backend.name).choices
        return self.backend.chips(choices) if isinstance(self.backend, ForNpu) else ()

    def lines(self, recipe: Recipe) -> int:
        """Of progress: each part, and what ``verify`` shows after its name."""
        if self.layout != NATIVE:
            return LINES_OF_LAYOUT
        graphs = len(self.programs) + (self.filter is not None)
        pictures = len(recipe.prompts)
        checks = lines_to_verify(graphs, pictures) if pictures else 1
        own = {graph_of(name) for name in self.further}
        more = len(recipe.further_sizes) * (len(own) + SIZED_PICTURES) if pictures else 0
        further = sum(map(len, self.further.values()))
        compiled = len(self.chips(recipe)) * (len(self.parts) + further)
        return len(self.parts) + compiled + 1 + checks + more


def _jobs(models: Models, asked: Sequence[_Asked]) -> list[_Job]:
    """The jobs in the order asked for; those of one scheme share its programs."""
    recipe = next(iter(models.values())).recipe
    schemes = {one.given: one.scheme for one in asked}
    sized = {given: _quantized(models, scheme) for given, scheme in schemes.items()}
    first = recipe.sizes[0]
    parts = {given: emitted(found[first], recipe.graph_parts) for given, found in sized.items()}
    choice = recipe.filter
    filters = {
        one.backend.name: prepared(choice, one.backend, recipe.most_file_bytes)
        for one in asked
        if choice is not None
    }
    return [
        _Job(
            **vars(one),
            programs=sized[one.given][first],
            sized=sized[one.given],
            parts=parts[one.given],
            further=_further(sized[one.given], recipe),
            filter=filters.get(one.backend.name),
        )
        for one in asked
    ]


def _refuse_unsized(backend: Backend) -> None:
    if not isinstance(backend, Sizing):
        raise InputError(
            f"[image] sizes: {backend.name} writes graphs of one size alone; give width_px and "
            "height_px, and build a recipe for each size"
        )


def _quantized(models: Models, scheme: Scheme) -> dict[PictureSize, dict[str, QuantizedProgram]]:
    """The quantized programs of every size; those that serve all are the first one's."""
    found: dict[PictureSize, dict[str, QuantizedProgram]] = {}
    first: Mapping[str, Program] = {}
    for size, model in models.items():
        programs = quantize_all(model.programs, scheme)
        first = first or model.programs
        shared = {name for name, program in model.programs.items() if program is first[name]}
        known = next(iter(found.values()), programs)
        found[size] = {name: (known if name in shared else programs)[name] for name in programs}
    return found


def _further(
    sized: Mapping[PictureSize, Mapping[str, QuantizedProgram]], recipe: Recipe
) -> dict[str, dict[PictureSize, QuantizedProgram]]:
    """The parts of graphs that further sizes have of their own, by their names and sizes."""
    first, *others = recipe.sizes
    found: dict[str, dict[PictureSize, QuantizedProgram]] = {}
    for size in others:
        for name, program in sized[size].items():
            if program is not sized[first][name]:
                for part in split(program, recipe.graph_parts.get(name, 1)):
                    found.setdefault(part.name, {})[size] = part
    return found


def _painters(models: Models, weights: Weights) -> dict[PictureSize, golden.Painter]:
    """What draws the golden pictures of each size: of a further one, the first prompt alone."""
    model = next(iter(models.values()))
    recipe = model.recipe
    first, *others = recipe.sizes
    fewer = replace(recipe, prompts=recipe.prompts[:SIZED_PICTURES])
    return {
        size: golden.Painter(
            weights, model.schedule, model.tokenizers, recipe if size == first else fewer
        )
        for size in (first, *others)
    }


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


def _refuse_unfit(job: _Job, models: Models) -> None:
    """Raise InputError for what a backend cannot express or the recipe's device cannot hold."""
    recipe = next(iter(models.values())).recipe
    if load_layout(job.layout).own:
        refuse_foreign_numbers(next(iter(models.values())), job.scheme.name, job.programs)
        return
    choices = recipe.backend(job.backend.name).choices
    backends.refuse_inexpressible(job.backend, choices, job.given, job.programs)
    write.tools_of(job.backend, choices)  # says what is not installed
    largest = max(recipe.sizes, key=lambda size: size.width_px * size.height_px)
    parts = [*job.parts, *(part for sized in job.further.values() for part in sized.values())]
    refuse_too_large(
        limits_of(recipe), job.backend, job.scheme.name, parts,
        functools.partial(_expressible, models[largest], job.backend),
    )  # fmt: skip


@dataclass(frozen=True)
class _Work:
    """What the packages of a scheme share.

    Attributes:
        rounded: of each size, gives a graph's program with its rounded inputs.
        pictures: the golden pictures of each size; none where the recipe has no prompts.
        allowed: of each size, what graphs may differ by besides what the backend says.
    """

    model: Model
    weights: Weights
    calibration: Calibration | None
    rounded: Mapping[PictureSize, Callable[[str], QuantizedProgram]]
    pictures: Mapping[PictureSize, golden.Pictures]
    allowed: Mapping[PictureSize, Mapping[str, golden.Allowance]]


def _work(
    job: _Job, shared: TracedRecipe, calibration: Calibration | None, progress: Progress
) -> _Work:
    """The work of a job's scheme, with its pictures drawn."""
    measured = calibration.sha256 if calibration else ""
    scheme = digest_of(asdict(job.scheme))
    canvas = shared.once("canvas", measured, lambda: _canvas(shared, calibration, progress))
    return shared.once(
        "work", (measured, scheme), lambda: _drawn(job, shared.models, canvas, progress)
    )


@dataclass(frozen=True)
class _Canvas:
    """What draws the golden pictures, and those of the unquantized program, of each size."""

    calibration: Calibration | None
    weights: Weights
    painters: Mapping[PictureSize, golden.Painter]
    plain: Mapping[PictureSize, Sequence[golden.Drawing]]


def _canvas(shared: TracedRecipe, calibration: Calibration | None, progress: Progress) -> _Canvas:
    models = shared.models
    model = models[shared.recipe.sizes[0]]
    weights = Weights(model.checkpoint, keep_bytes=shared.keep_bytes, calibration=calibration)
    painters = _painters(models, weights)
    if shared.recipe.prompts:
        progress("golden pictures, unquantized, in torch")
    plain = {size: p.draw(models[size].unrounded) for size, p in painters.items()}
    return _Canvas(calibration, weights, painters, plain)


def _drawn(job: _Job, models: Models, canvas: _Canvas, progress: Progress) -> _Work:
    model = next(iter(models.values()))
    weights, painters, calibration = canvas.weights, canvas.painters, canvas.calibration
    # What layers read is rounded in the program too, in ranges chosen on the trajectories, which
    # are of one size: the ranges serve all.
    at = model.recipe.calibrated_size
    ranges = ranges_of(job.sized[at], weights.read, models[at].calls_as(job.sized[at], weights))
    rounded = {size: rounded_by(job.sized[size], ranges) for size in painters}
    if not model.recipe.prompts:
        none = dict.fromkeys(painters, golden.Pictures((), ()))
        return _Work(model, weights, calibration, rounded, none, {size: {} for size in painters})
    progress(f"{job.scheme.name}: golden pictures in torch")
    pictures, allowed = {}, {}
    for size, painter in painters.items():
        programs = {name: rounded[size](name) for name in job.programs}
        drawings = painter.draw(programs)
        pictures[size] = golden.Pictures(drawings, canvas.plain[size])
        allowed[size] = golden.allowances(programs, weights, drawings[0], painter.schedule.guidance)
    return _Work(model, weights, calibration, rounded, pictures, allowed)


def _keep(
    shared: TracedRecipe,
    asked: tuple[Sequence[_Job], Sequence[_Job]],
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


def _build_shared(job: _Job, work: _Work, progress: Progress, cache: Cache | None) -> Built:
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
    job: _Job, work: _Work, progress: Progress, cache: Cache | None, taken: list[str]
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
        sizes = {"bytes": manifest.bytes, "graphs": {g.name: g.bytes for g in manifest.graphs}}
        facts = {**bases, **sizes, **({"compiled": took} if took else {})}
        write.write_log(job.target, folder / MANIFEST, facts, report.to_json())
    name = manifest.origin.licence_id
    return Built(
        job.target, job.backend.name, job.scheme.name, manifest.bytes, report, name,
        emitted=tuple(emitted_now), taken=tuple(taken),
    )  # fmt: skip


def _compile(
    job: _Job,
    recipe: Recipe,
    folder: Path,
    whole: dict[str, write.WholeGraph],
    basis: str,
    progress: Progress,
) -> list[dict[str, object]]:
    """Compile for chips what is not compiled yet; returns what that took."""
    took = []
    for part in job.parts:
        for size, chip in missing(whole[part.name], job.chips(recipe)):
            at = f" at {size}" if size else ""
            progress(f"compile {part.name}{at} for {chip}")
            assert isinstance(job.backend, ForNpu)
            whole[part.name], found = compiled(job.backend, folder, whole[part.name], size, chip)
            resume.write_journal(job.target, basis, whole.values())
            took.append(asdict(found))
    return took


def _build_layout(job: _Job, work: _Work, progress: Progress) -> Built:
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


def _emit(
    job: _Job,
    part: QuantizedProgram,
    work: _Work,
    folder: Path,
    progress: Progress,
    cache: Cache | None,
    taken: list[str],
) -> write.WholeGraph:
    """Write a part, at every size if it has more than one, or take it from the cache."""
    recipe, graph = work.model.recipe, graph_of(part.name)
    sizes = (recipe.sizes[0], *job.further.get(part.name, ()))
    programs = {size: _rounded_part(work.rounded[size](graph), part.name, recipe) for size in sizes}
    allowed = {size: work.allowed[size].get(graph, golden.USUAL) for size in sizes}
    choices = recipe.backend(job.backend.name).choices
    sources = Sources(work.model.checkpoint, work.calibration)
    key = graph_key(job.backend, choices, programs, sources) if cache else ""
    whole = reuse.take_graph(cache, key, programs, folder) if cache else None
    if whole is not None:
        progress(f"{part.name} is taken from the cache")
        taken.append(part.name)
        return whole.widened(allowed)
    progress(f"emit {part.name}")
    options, read = EmitOptions(choices), work.weights.read
    if len(sizes) > 1:
        whole = write.emit_sizes(job.backend, programs, read, folder, options)
    else:
        (program,) = programs.values()
        whole = write.WholeGraph(write.emit_graph(job.backend, program, read, folder, options))
    if cache:
        reuse.keep_graph(cache, key, whole, folder)
    return whole.widened(allowed)


def _rounded_part(program: QuantizedProgram, name: str, recipe: Recipe) -> QuantizedProgram:
    """The part of that name of a program whose inputs are rounded."""
    cut = split(program, recipe.graph_parts.get(program.name, 1))
    return next(part for part in cut if part.name == name)


def _kept_package(job: _Job, basis: str) -> Built | None:
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
    return _as_built(job, found, "kept")


def _expressible(model: Model, backend: Backend) -> dict[str, dict[str, QuantizedProgram]]:
    """The programs in every shipped scheme that a backend can express."""
    choices = model.recipe.backend(backend.name).choices
    able = backends.expressible_schemes(backend, choices)
    return {name: quantize_all(model.programs, model.recipe.scheme(name)) for name in able}


def _lines(jobs: Sequence[_Job], left: Sequence[_Job], recipe: Recipe) -> int:
    """How many lines of progress are to come: one for each package that is kept, and the work."""
    drawn = 1 + len({job.given for job in left}) if left and recipe.prompts else 0
    return len(jobs) - len(left) + drawn + sum(job.lines(recipe) for job in left)

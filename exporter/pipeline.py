"""The whole road: checkpoint -> graphs -> trace -> calibrate -> quantize -> emit -> verify."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from exporter import backends, golden, package, resume
from exporter.activations import chooser
from exporter.calibrate import Inputs, Trajectories, travel
from exporter.checkpoint import Checkpoint, open_checkpoint
from exporter.errors import CheckFailed, InputError
from exporter.formats import FORMATS
from exporter.graphs import cut_graphs
from exporter.inspect import refuse_too_large
from exporter.parts import emitted
from exporter.plan import is_plan, read_plan
from exporter.progress import Progress
from exporter.quantize import (
    Methods,
    QuantizedProgram,
    Weights,
    quantize,
    quantize_all,
    unquantized,
)
from exporter.recipe import Recipe
from exporter.runtime.manifest import Schedule
from exporter.runtime.package import open_package
from exporter.staging import refuse_place
from exporter.statistics import (
    Calibration,
    Provenance,
    kept,
    obtain,
    provenance_of,
    write_statistics,
)
from exporter.tokenizers import TokenizerFile, tokenizer_files
from exporter.trace import Program, bind, trace
from exporter.verify import Report, check_files, verify

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


@dataclass(frozen=True)
class Model:
    """A checkpoint cut into traced programs, without weights in memory."""

    recipe: Recipe
    checkpoint: Checkpoint
    programs: Mapping[str, Program]
    tokenizers: Mapping[str, TokenizerFile]
    weights: Weights

    @property
    def schedule(self) -> Schedule:
        return Schedule(self.recipe.mode, self.recipe.cut.sigmas)

    @functools.cached_property
    def unrounded(self) -> dict[str, QuantizedProgram]:
        """The programs with every weight in float32."""
        return {name: unquantized(program) for name, program in self.programs.items()}

    def provenance(self, graphs: Sequence[str]) -> Provenance:
        """What statistics of these graphs are measured on."""
        given = self.recipe.calibration
        return provenance_of(
            self.checkpoint, self.recipe.cut, self.recipe.mode, given.prompts, given.seed, graphs
        )

    def travel(self, programs: Mapping[str, QuantizedProgram], weights: Weights) -> Trajectories:
        """Draw the recipe's calibration prompts in torch, up to their final latents."""
        encoders = {name: file.encoder(name) for name, file in self.tokenizers.items()}
        player = golden.reference_player(programs, weights, self.schedule, encoders)
        return travel(player, self.recipe.calibration.prompts, self.recipe.calibration.seed)

    @functools.cached_property
    def trajectories(self) -> Trajectories:
        """Those of the unquantized model; drawn when first asked for."""
        return self.travel(self.unrounded, self.weights)

    def trajectories_as(
        self, programs: Mapping[str, QuantizedProgram], weights: Weights
    ) -> Trajectories:
        """Those of the unquantized model in the units that the programs' methods give channels.

        What graphs hand on to each other is in these units: equalization moves factors from the
        ``denoiser`` to the ``conditioner``.
        """
        methods = {name: program.methods for name, program in programs.items()}
        if not any("equalize" in asked for asked in methods.values()):
            return self.trajectories
        return self.travel(self.adapted(methods), weights)

    def calls_as(
        self, programs: Mapping[str, QuantizedProgram], weights: Weights
    ) -> Callable[[str], Sequence[Inputs]]:
        """Gives a graph's calls on ``trajectories_as``, which are drawn once, when first needed."""
        drawn = functools.cache(lambda: self.trajectories_as(programs, weights))
        return lambda graph: drawn().calls[graph]

    def adapted(self, methods: Mapping[str, Methods]) -> dict[str, QuantizedProgram]:
        """The programs with every weight in float32, as some methods (by graph) leave them."""
        return {
            name: quantize(program, lambda *_: FORMATS["fp32"], methods[name])
            for name, program in self.programs.items()
        }


def trace_model(recipe: Recipe, keep_bytes: int, progress: Progress) -> Model:
    """The first stops: checkpoint, graphs, trace. Raises InputError."""
    # Checkpoint: headers only; a weight is read when a stage below asks for it. What identifies the
    # files is computed beside the stages.
    checkpoint = open_checkpoint(recipe.checkpoint)
    checkpoint.begin_digest()
    weights = Weights(checkpoint, keep_bytes=keep_bytes)

    # Graphs and trace: operators and shapes, no weights in memory.
    programs = {}
    for graph in cut_graphs(checkpoint, recipe.cut):
        progress(f"trace {graph.name}")
        programs[graph.name] = trace(graph)
        bind(programs[graph.name], weights.shape)
    return Model(recipe, checkpoint, programs, tokenizer_files(checkpoint, programs), weights)


def calibrate(
    model: Model, graphs: Sequence[str], statistics: Path, progress: Progress
) -> Calibration:
    """What layers meet on the calibration prompts: as kept in ``statistics``, or measured into it.

    The trajectories are drawn, and each graph is run on all of them, layer by layer.
    """
    provenance = model.provenance(graphs)

    def measure(folder: Path) -> None:
        progress("draw the calibration prompts, unquantized, in torch")
        trajectories = model.trajectories
        write_statistics(
            folder, provenance, model.programs, model.weights.read, trajectories.calls, progress
        )

    return obtain(statistics, provenance, measure)


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

    Raises InputError for what a user can mend, CheckFailed when a package does not verify; either
    way nothing half-written stays.
    """
    progress = progress or Progress()
    wanted = {
        name: tuple(scheme_names) or recipe.backend(name).schemes
        for name in backend_names or recipe.backends
    }
    modules = {name: backends.load_to_build(name) for name in wanted}
    given_names = dict.fromkeys(n for names in wanted.values() for n in names)
    plans = {n: read_plan(Path(n)) if is_plan(n) else None for n in given_names}
    schemes = {n: p.scheme if p else recipe.scheme(n) for n, p in plans.items()}
    for one, other in itertools.combinations(schemes, 2):
        if schemes[one].name == schemes[other].name:
            raise InputError(f"{one} and {other} would be built into the same folder; rename one")
    model = trace_model(recipe, KEEP_BYTES if recipe.prompts else 0, progress)

    # Quantize: in the program. What cannot be built is refused here, before anything is computed.
    quantized = {name: quantize_all(model.programs, scheme) for name, scheme in schemes.items()}
    parts = {name: emitted(programs, recipe.t5_parts) for name, programs in quantized.items()}
    for name, names in wanted.items():
        options = recipe.backend(name).options
        for given in names:
            backends.refuse_inexpressible(name, modules[name], options, given, quantized[given])

    if recipe.device_memory_bytes is not None:
        for name, given in ((name, given) for name, names in wanted.items() for given in names):
            refuse_too_large(
                recipe.device_memory_bytes, name, schemes[given].name, parts[given],
                functools.partial(_expressible, model, name),
            )  # fmt: skip

    # Resume: packages that are whole, and just what this build would make, are kept.
    graphs = [g for g in model.programs if any(q[g].methods for q in quantized.values())]
    place = statistics or out / STATISTICS
    calibration = kept(place, model.provenance(graphs)) if graphs else None
    jobs = [
        _Job(given, name, modules[name], out / f"{name}-{scheme.name}")
        for given, scheme in schemes.items()
        for name, names in wanted.items()
        if given in names
    ]

    def origin(job: _Job) -> package.Origin:
        given = job.scheme
        return package.Origin(schemes[given], plans[given], quantized[given], calibration)

    def basis(job: _Job) -> str:
        return resume.basis_of(recipe, model.checkpoint, (job.backend, job.module), origin(job))

    built = {job: _kept_package(job, schemes[job.scheme].name, basis(job)) for job in jobs}
    left = [job for job in jobs if built[job] is None]
    graphs_left = sum(len(parts[job.scheme]) for job in left)
    progress.expect(_lines(len(model.programs), len(jobs), left, len(recipe.prompts)) + graphs_left)
    for job in jobs:
        if job not in left:
            progress(f"{job.target.name} is whole already")
    needed_bytes = sum(_bytes(quantized[job.scheme]) for job in left)
    refuse_place(out, needed_bytes - sum(resume.unfinished_bytes(job.target) for job in left))

    # Calibrate: the inputs that layers meet on the model's own trajectories, if a scheme asks.
    if calibration is None and any(schemes[job.scheme].used_methods for job in left):
        calibration = calibrate(model, graphs, place, progress)
    weights = Weights(
        model.checkpoint, keep_bytes=KEEP_BYTES if recipe.prompts else 0, calibration=calibration
    )

    # Golden pictures: the unquantized program in torch once, then each scheme's.
    painter = golden.Painter(weights, model.schedule, model.tokenizers, recipe)
    if left and recipe.prompts:
        progress("golden pictures, unquantized, in torch")
    plain = painter.draw(model.unrounded) if left else []

    for given, same in itertools.groupby(left, key=lambda job: job.scheme):
        scheme, programs = schemes[given], quantized[given]
        if recipe.prompts:
            progress(f"{scheme.name}: golden pictures in torch")
        drawings = painter.draw(programs)
        roundings = chooser(weights.read, model.calls_as(programs, weights))
        for job in same:
            name, target = job.backend, job.target
            order = backends.Order(recipe.backend(name).options, roundings)
            with resume.resuming(target, basis(job), progress) as (folder, whole):
                # Emit: each backend translates the same programs, reading weights one at a time.
                for program in parts[given]:
                    if program.name in whole:
                        progress(f"{program.name} is whole already")
                        continue
                    progress(f"emit {program.name}")
                    whole[program.name] = package.emit_graph(
                        job.module, program, weights.read, folder, order
                    )
                    resume.write_journal(target, basis(job), whole.values())
                entries = [whole[part.name] for part in parts[given]]
                manifest = package.fill(
                    folder, recipe, model.checkpoint, (name, job.module), entries, origin(job),
                    model.tokenizers, drawings, plain,
                )  # fmt: skip
                # Verify: the files, every graph against torch, whole pictures. Without golden
                # outputs no graph is opened: a runtime may need more memory than the build.
                progress(f"verify {target.name}")
                written = open_package(folder)
                if recipe.prompts:
                    report = verify(written, progress)
                else:
                    report = Report(target.name, check_files(written, progress), (), (), ())
                if not report.ok:
                    raise CheckFailed(f"{target.name}: {'; '.join(report.failures)}")
                package.write_log(target, folder, manifest, basis(job), report.to_json())
            built[job] = Built(target, name, scheme.name, manifest.bytes, report)
    return [found for found in built.values() if found is not None]


@dataclass(frozen=True)
class _Job:
    """A package to build: the scheme as it was given, the backend, the folder."""

    scheme: str
    backend: str
    module: ModuleType
    target: Path


def _kept_package(job: _Job, scheme: str, basis: str) -> Built | None:
    found = resume.whole_package(job.target, basis)
    if found is None:
        return None
    whole, report = found
    return Built(job.target, job.backend, scheme, whole.manifest.bytes, report)


def _expressible(model: Model, backend: str) -> dict[str, dict[str, QuantizedProgram]]:
    """The programs in every shipped scheme that a backend can express."""
    options = model.recipe.backend(backend).options
    able = backends.expressible_schemes(backends.load(backend), options)
    return {name: quantize_all(model.programs, model.recipe.scheme(name)) for name in able}


def _bytes(programs: dict[str, QuantizedProgram]) -> int:
    return sum(p.stored_bytes() for p in programs.values())


def _lines(graphs: int, packages: int, left: Sequence[_Job], pictures: int) -> int:
    """How many progress lines a build shows beside those of the graphs that it emits: one for each
    package that it keeps."""
    per_package = 1 + 1 + (graphs + pictures if pictures else 0)
    drawings = 1 + len({job.scheme for job in left}) if pictures and left else 0
    return graphs + packages - len(left) + drawings + len(left) * per_package

"""What was asked for, package by package, and the programs of each."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from exporter import backends
from exporter.backends.contract import Backend, ForNpu, Sizing
from exporter.build import resume, write
from exporter.build.filter import PreparedFilter, prepared
from exporter.build.gguf import refuse_foreign_numbers
from exporter.build.layout import refuse_unfit
from exporter.build.model import Model
from exporter.build.shared import Models
from exporter.calibrate.store import Calibration
from exporter.errors import InputError
from exporter.layouts import NATIVE, load_layout
from exporter.package.names import graph_of
from exporter.package.sizes import PictureSize
from exporter.predict.fit import limits_of, refuse_too_large
from exporter.predict.graph import is_widened
from exporter.program.program import Program
from exporter.quantize.formats import Scheme
from exporter.quantize.program import QuantizedProgram, quantize_all
from exporter.quantize.split import emitted, split
from exporter.recipe.plan import Plan, is_plan, read_plan
from exporter.recipe.recipe import Recipe
from exporter.runtime.verify import lines_to_verify

Schemes = tuple[str, ...]
LINES_OF_LAYOUT = 2  # of progress
SIZED_PICTURES = 1  # golden ones of each further size
NODE_BYTES = 1000  # of a graph's files, for each operator; more than any backend takes


def asked_of(recipe: Recipe, wanted: Mapping[str, Schemes], out: Path) -> list[AskedPackage]:
    """What is asked for, schemes by backend, in order; raises InputError."""
    for layout in recipe.layouts:
        refuse_unfit(recipe, layout, tuple(wanted))
    asked, wanted = tuple(wanted), _with_own(recipe, wanted)
    loaded = {name: backends.load_to_build(name) for name in wanted}
    for backend in loaded.values() if recipe.further_sizes else ():
        _refuse_unsized(backend)
    chosen = schemes_of(recipe, dict.fromkeys(n for names in wanted.values() for n in names))
    return [
        AskedPackage(given, *found, loaded[name], layout, out)
        for given, found in chosen.items()
        for name, names in wanted.items()
        for layout in _written(recipe, name, name in asked)
        if given in names
    ]


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


def _refuse_unsized(backend: Backend) -> None:
    if not isinstance(backend, Sizing):
        raise InputError(
            f"[image] sizes: {backend.name} writes graphs of one size alone; give width_px and "
            "height_px, and build a recipe for each size"
        )


def schemes_of(recipe: Recipe, given: Iterable[str]) -> dict[str, tuple[Scheme, Plan | None]]:
    """Each scheme, and the plan that it was read from; raises InputError."""
    found: dict[str, tuple[Scheme, Plan | None]] = {}
    for name in given:
        plan = read_plan(Path(name)) if is_plan(name) else None
        found[name] = (plan.scheme if plan else recipe.scheme(name), plan)
    for one, other in itertools.combinations(found, 2):
        if found[one][0].name == found[other][0].name:
            raise InputError(f"{one} and {other} would be built into the same folder; rename one")
    return found


@dataclass(frozen=True, eq=False)
class AskedPackage:
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
class PreparedPackage(AskedPackage):
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

    def is_widened(
        self, programs: Iterable[QuantizedProgram], device_memory_bytes: int | None
    ) -> bool:
        """Whether sessions decode the weights of a graph, given at every size, when they open it.

        Where a plan was made for so much memory, that is all there is.
        """
        planned = self.plan.facts.get("memory_bytes") if self.plan else None
        limits = (limit for limit in (device_memory_bytes, planned) if limit is not None)
        most_bytes = min(limits, default=None)
        return all(is_widened(one, self.backend.costs, most_bytes) for one in programs)

    def chips(self, recipe: Recipe) -> tuple[str, ...]:
        """What its graphs are compiled for."""
        choices = recipe.backend(self.backend.name).choices
        return self.backend.chips(choices) if isinstance(self.backend, ForNpu) else ()

    def keeps_graphs(self, recipe: Recipe) -> bool:
        """Whether what is compiled stands beside its graphs, and not in their place."""
        choices = recipe.backend(self.backend.name).choices
        return not isinstance(self.backend, ForNpu) or self.backend.keeps_graphs(choices)

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


def prepared_packages(models: Models, asked: Sequence[AskedPackage]) -> list[PreparedPackage]:
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
        PreparedPackage(
            **vars(one),
            programs=sized[one.given][first],
            sized=sized[one.given],
            parts=parts[one.given],
            further=_further(sized[one.given], recipe),
            filter=filters.get(one.backend.name),
        )
        for one in asked
    ]


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


def refuse_unbuildable(job: PreparedPackage, models: Models) -> None:
    """Raise InputError for what a backend cannot express or the recipe's device cannot hold."""
    recipe = next(iter(models.values())).recipe
    if load_layout(job.layout).own:
        refuse_foreign_numbers(job.scheme.name, job.programs)
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


def _expressible(model: Model, backend: Backend) -> dict[str, dict[str, QuantizedProgram]]:
    """The programs in every shipped scheme that a backend can express."""
    choices = model.recipe.backend(backend.name).choices
    able = backends.expressible_schemes(backend, choices)
    return {name: quantize_all(model.programs, model.recipe.scheme(name)) for name in able}

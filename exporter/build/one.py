"""Packages of one backend in one scheme, out of many that are built apart, and what they take."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from exporter.build.asked import (
    AskedPackage,
    PreparedPackage,
    asked_of,
    prepared_packages,
    refuse_unbuildable,
)
from exporter.build.draw import unpainted_work
from exporter.build.emit import is_cached
from exporter.build.pipeline import (
    build_asked,
    found_calibration,
    make_part,
    measured_graphs,
    requested,
)
from exporter.build.resume import unfinished_bytes
from exporter.build.shared import STATISTICS, Built, Places, TracedRecipe
from exporter.checkpoint.open import Checkpoint
from exporter.files.lock import alone
from exporter.predict.graph import build_bytes, run_bytes
from exporter.program.sizes import activation_bytes
from exporter.program.threads import fixed_threads
from exporter.progress import Progress
from exporter.quantize.everywhere import has_levels
from exporter.quantize.program import QuantizedProgram
from exporter.recipe.recipe import Recipe

COPIES = 4  # of the largest weight, while it is decoded and multiplied with
DRAWN_ACTIVATIONS = 3  # of a graph's, that torch holds at once while it draws
LIBRARY_BYTES = 250_000_000  # of backends' libraries, and of what torch keeps for later
HEADROOM = 1.25  # of predictions, for what is rounded up and freed late


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
    def _asked(self) -> list[AskedPackage]:
        return asked_of(self.recipe, {self.backend: (self.scheme,)}, self.places.out)

    def look_up(self, checkpoint: Checkpoint, progress: Progress) -> list[Built]:
        """Them as they lie there, or from the cache, without tracing; else none.

        Args:
            checkpoint: the recipe's.
        """
        asked = self._asked
        with self._alone(asked, progress):
            return requested(self.recipe, asked, self.places, progress, checkpoint)

    @fixed_threads()
    def build(self, shared: TracedRecipe, progress: Progress) -> list[Built]:
        """Build them, as ``build`` does, with what is shared with other builds of the recipe."""
        asked = self._asked
        with self._alone(asked, progress):
            return build_asked(shared, asked, self.places, progress)

    @fixed_threads()
    def make(self, part: str, shared: TracedRecipe, progress: Progress) -> bool:
        """Put a part of ``Needs.parts`` into the cache; False: it is there, or no graph."""
        (asked,) = self._asked
        return make_part(shared, asked, part, self.places, progress)

    def needs(self, shared: TracedRecipe, split_bytes: int | None = None) -> Needs:
        """What building them is predicted to take; raises InputError for what cannot be built.

        Args:
            split_bytes: of files, from which on a package's parts are named; None: never.
        """
        jobs = prepared_packages(shared.models, self._asked)
        for job in jobs:
            refuse_unbuildable(job, shared.models)
        disk_bytes = sum(job.missing_bytes() for job in jobs)
        splits = split_bytes is not None and disk_bytes >= split_bytes and self.places.cache
        parts = _parts(jobs[0], shared, self.places) if splits and len(jobs) == 1 else ()
        return Needs(max(_more_bytes(job, shared) for job in jobs), disk_bytes, parts)

    @contextmanager
    def _alone(self, asked: Sequence[AskedPackage], progress: Progress) -> Iterator[None]:
        """One process at a time for a package, and many in the folder around it."""
        with ExitStack() as stack:
            for one in asked:
                stack.enter_context(alone(one.target, progress))
            yield


@dataclass(frozen=True)
class PartNeeds:
    """What a part of a package is predicted to take, where it is made apart; as ``Needs``.

    Attributes:
        name: of a graph; ``STATISTICS`` for what is to be measured before any graph is made.
    """

    name: str
    more_bytes: int
    disk_bytes: int


@dataclass(frozen=True)
class Needs:
    """What a build is predicted to take.

    Attributes:
        more_bytes: of memory, besides what the process has taken before.
        disk_bytes: of files that are not there yet.
        parts: what can be made apart, anywhere, before the rest; none where that does not pay.
    """

    more_bytes: int
    disk_bytes: int
    parts: tuple[PartNeeds, ...] = ()


def _parts(job: PreparedPackage, shared: TracedRecipe, places: Places) -> tuple[PartNeeds, ...]:
    """The statistics, if they have to be measured, and every graph that the cache lacks.

    None where that is one alone, and where inputs are rounded: each worker would find the ranges of
    each graph anew. None where an interrupted build is gone on with.
    """
    assert places.cache is not None
    if any(map(has_levels, job.programs.values())) or unfinished_bytes(job.target):
        return ()
    calibration = None
    if job.scheme.used_methods:
        graphs = measured_graphs(shared, [job], places)
        calibration = found_calibration(shared.models, [job], graphs, places, Progress())
        if calibration is None:
            first = PartNeeds(STATISTICS, _headroom(_measuring_bytes(job, shared)), 0)
            return (first, *(_part(job, part, shared) for part in job.parts))
    work = unpainted_work(job, shared, calibration)
    lacking = [part for part in job.parts if not is_cached(job, part, work, places.cache)]
    return tuple(_part(job, part, shared) for part in lacking) if len(lacking) > 1 else ()


def _part(job: PreparedPackage, part: QuantizedProgram, shared: TracedRecipe) -> PartNeeds:
    sized = [part, *job.further.get(part.name, {}).values()]
    disk_bytes = sum(one.stored_bytes() for one in sized)
    return PartNeeds(part.name, _headroom(_writing_bytes(job, sized, shared)), disk_bytes)


def _more_bytes(job: PreparedPackage, shared: TracedRecipe) -> int:
    """Memory for measuring, drawing, emitting or running a graph, whichever takes the most."""
    recipe, costs = shared.recipe, job.backend.costs
    parts = [*job.parts, *(part for sized in job.further.values() for part in sized.values())]
    most = [_writing_bytes(job, parts, shared)]
    if job.scheme.used_methods:
        most.append(_measuring_bytes(job, shared))
    if recipe.prompts or any(map(has_levels, job.programs.values())):
        most.append(_drawing_bytes(job, shared))
    if recipe.prompts and costs is not None:  # without any, no graph is opened
        most.append(_held_bytes(job, shared) + max(_opened_bytes(job, p, shared) for p in parts))
    return _headroom(max(most))


def _opened_bytes(job: PreparedPackage, part: QuantizedProgram, shared: TracedRecipe) -> int:
    """For opening a part and running it, in a process that has the runtime."""
    costs = job.backend.costs
    assert costs is not None
    widened = job.is_widened([part], shared.recipe.device_memory_bytes)
    return run_bytes(part, costs, widened) - costs.process_bytes


def _headroom(taken_bytes: int) -> int:
    return LIBRARY_BYTES + int(HEADROOM * taken_bytes)


def _writing_bytes(
    job: PreparedPackage, parts: Sequence[QuantizedProgram], shared: TracedRecipe
) -> int:
    """For emitting parts, the largest weight of which decides."""
    costs, held = job.backend.costs, _held_bytes(job, shared)
    if costs is None:
        return held + COPIES * max(map(_largest_bytes, parts))
    return held + max(build_bytes(part, costs, 0) - costs.build_process_bytes for part in parts)


def _measuring_bytes(job: PreparedPackage, shared: TracedRecipe) -> int:
    """For what layers meet: of the widest a sum in float64, and a factor of it; and for drawing."""
    weights = [s for p in job.programs.values() for s in p.stored().values() if len(s.shape) == 2]
    widest = max((source.shape[-1] for source in weights), default=0)
    return _drawing_bytes(job, shared) + 2 * 8 * widest**2


def _drawing_bytes(job: PreparedPackage, shared: TracedRecipe) -> int:
    """For running programs in torch, where each tensor is read when it is needed and dropped."""
    programs = [p for sized in job.sized.values() for p in sized.values()]
    most = max(
        COPIES * _largest_bytes(p) + DRAWN_ACTIVATIONS * activation_bytes(p) for p in programs
    )
    return _held_bytes(job, shared) + most


def _held_bytes(job: PreparedPackage, shared: TracedRecipe) -> int:
    """Values of weights that are kept, those of unquantized pictures among them."""
    values = sum(sum(p.values_by_format().values()) for p in job.programs.values())
    return min(shared.keep_bytes, 2 * 4 * values)


def _largest_bytes(program: QuantizedProgram) -> int:
    """Of a weight, in float32."""
    return 4 * max((math.prod(source.shape) for source in program.stored().values()), default=0)

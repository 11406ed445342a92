"""Packages of one backend in one scheme, out of many that are built apart, and what they take."""

from __future__ import annotations

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
from exporter.build.pipeline import build_asked, requested
from exporter.build.shared import Built, Places, TracedRecipe
from exporter.files.lock import alone
from exporter.predict.graph import build_bytes, run_bytes
from exporter.program.sizes import activation_bytes
from exporter.program.threads import fixed_threads
from exporter.progress import Progress
from exporter.quantize.program import QuantizedProgram
from exporter.recipe.recipe import Recipe

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

    def look_up(self, progress: Progress) -> list[Built]:
        """Them as they lie there, or from the cache, without tracing; else none."""
        asked = self._asked
        with self._alone(asked, progress):
            return requested(self.recipe, asked, self.places, progress)

    @fixed_threads()
    def build(self, shared: TracedRecipe, progress: Progress) -> list[Built]:
        """Build them, as ``build`` does, with what is shared with other builds of the recipe."""
        asked = self._asked
        with self._alone(asked, progress):
            return build_asked(shared, asked, self.places, progress)

    def needs(self, shared: TracedRecipe) -> Needs:
        """What building them is predicted to take; raises InputError for what cannot be built."""
        jobs = prepared_packages(shared.models, self._asked)
        for job in jobs:
            refuse_unbuildable(job, shared.models)
        return Needs(
            max(_more_bytes(job, shared) for job in jobs), sum(job.missing_bytes() for job in jobs)
        )

    @contextmanager
    def _alone(self, asked: Sequence[AskedPackage], progress: Progress) -> Iterator[None]:
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


def _more_bytes(job: PreparedPackage, shared: TracedRecipe) -> int:
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

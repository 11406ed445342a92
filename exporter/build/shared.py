"""What builds of one recipe share: traced models, places they read and write, what comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from exporter.build.gguf import refuse_foreign_widths
from exporter.build.model import Model, trace_model, trace_sizes
from exporter.cache.shared import Cache
from exporter.checkpoint.open import Checkpoint
from exporter.layouts import NATIVE
from exporter.package.sizes import PictureSize
from exporter.program.threads import fixed_threads
from exporter.progress import Progress
from exporter.recipe.recipe import Recipe
from exporter.runtime.verify import Report

STATISTICS = "statistics"  # the folder beside packages
KEEP_BYTES = 1 << 30  # of codes, when pictures are drawn with them, or sizes or layouts share
Models = Mapping[PictureSize, Model]  # the first of pictures' sizes first
# Of a package: made by this build, there already, or copied from a cache.
Source = Literal["built", "kept", "cache"]
T = TypeVar("T")


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
def traced(
    recipe: Recipe, progress: Progress | None = None, checkpoint: Checkpoint | None = None
) -> TracedRecipe:
    """A recipe's models at all its sizes; raises InputError.

    Args:
        checkpoint: the recipe's, where it was opened before.
    """
    refuse_foreign_widths(recipe)
    progress = progress or Progress()
    several = recipe.further_sizes or len(recipe.layouts) > 1
    keep_bytes = KEEP_BYTES if recipe.prompts or several else 0
    model = trace_model(recipe, keep_bytes, progress, checkpoint)
    return TracedRecipe(recipe, trace_sizes(model, progress), keep_bytes)


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

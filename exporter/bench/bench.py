"""How fast packages draw, and in how much memory: two pictures, in a process for each package."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from exporter.backends.contract import SessionOptions
from exporter.bench.process import Asked, Drawn, draw_apart
from exporter.drawing.noise import MOST_SEED
from exporter.files.staging import refuse_place
from exporter.runtime.package import DEFAULT, Package

FILLING, FILLED = "filling the cache", "from the cache"


@dataclass(frozen=True)
class Row:
    """A package's figures.

    Attributes:
        name: the package's folder, and what is special about this drawing.
        bytes: of all its files.
    """

    name: str
    bytes: int
    drawn: Drawn

    def to_json(self) -> dict[str, Any]:
        memory = asdict(self.drawn.memory) if self.drawn.memory else {}
        return {"package": self.name, "bytes": self.bytes, **asdict(self.drawn.times), **memory}


def bench(
    packages: Sequence[Package],
    asked: Asked,
    progress: Callable[[str], None],
    options: SessionOptions = DEFAULT,
    keep: bool = False,
) -> Iterator[Row]:
    """Draw two pictures with each package, the second with the next seed.

    With a cache each package draws twice: into a folder of its own there, and from it. The folder
    is removed in the end. ``keep``: as of ``Package.player``.

    Raises CheckFailed with what stopped a package, InputError for a cache without room for one.
    """
    for package in packages:
        name, size = package.folder.name, package.manifest.bytes
        if options.cache is None:
            yield Row(name, size, _draw(package, asked, progress, options, keep))
            continue
        # A runtime that cannot write its cache says nothing and does without.
        refuse_place(options.cache, size, "choose another cache")
        with tempfile.TemporaryDirectory(dir=options.cache) as own:
            for what in (FILLING, FILLED):
                within = replace(options, cache=Path(own))
                drawn = _draw(package, asked, progress, within, keep)
                yield Row(f"{name}, {what}", size, drawn)


def _draw(
    package: Package,
    asked: Asked,
    progress: Callable[[str], None],
    options: SessionOptions,
    keep: bool,
) -> Drawn:
    pictures = (asked, replace(asked, seed=asked.seed + 1 & MOST_SEED))
    with tempfile.TemporaryDirectory() as place:
        return draw_apart(package.folder, pictures, Path(place), progress, options, keep)


def table(rows: Sequence[Row]) -> str:
    """All rows for a terminal, in seconds and MB."""
    heads = (
        "first s", "next s", "opening", "text", "a step", "VAE", "peak RSS", "anonymous", "package",
    )  # fmt: skip
    width = max(len(row.name) for row in rows)
    lines = [f"{'':<{width}}" + "".join(f"{head:>10}" for head in heads)]
    for row in rows:
        times, memory = row.drawn.times, row.drawn.memory
        seconds = (
            times.first_s, times.next_s or 0.0, sum(times.loads_s.values()), times.encode_s,
            times.step_s, times.decode_s,
        )  # fmt: skip
        peaks = (memory.peak_rss_bytes, memory.peak_anonymous_bytes) if memory else (None, None)
        sizes = ["-" if size is None else f"{size / 1e6:,.0f} MB" for size in (*peaks, row.bytes)]
        cells = [*(f"{value:.3f}" for value in seconds), *sizes]
        lines.append(f"{row.name:<{width}}" + "".join(f"{cell:>10}" for cell in cells))
    return "\n".join(lines)

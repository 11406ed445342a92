"""What the page shows, as frozen data; ``report.json`` is this."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from exporter.bench.process import Asked, Memory, Times
from exporter.package.manifest import Manifest, Schedule
from exporter.package.measures import finite, mean_db
from exporter.package.names import MMDIT
from exporter.report.chips import Chip
from exporter.report.sensitivities import Sensitivities

FORMAT_VERSION = 2
UNQUANTIZED = "the unquantized program"


@dataclass(frozen=True)
class Figures:
    """A picture against the yardstick's.

    Attributes:
        ssim: None where scikit-image is not installed.
        latent_snr_db: of the final latent.
        steps_db: the same after each step that the yardstick has a latent of, by step from 1.
    """

    asked: Asked
    psnr_db: float
    ssim: float | None
    latent_snr_db: float
    steps_db: dict[int, float]


@dataclass(frozen=True)
class Entry:
    """A package.

    Attributes:
        drawn: whether it ran here; else figures are those stored when it was built, if any.
        remarks: why it did not run, and what else to know.
        figures: one per picture that could be compared.
        metrics: what the user's metric returned.
        plan_text: ``plan.toml``, or empty.
        previews_db: PSNR of each final latent by the graph that is there for previews alone,
            against the picture; empty without one.
        chips: what was compiled of it, for chips.
    """

    name: str
    manifest: Manifest
    drawn: bool
    remarks: tuple[str, ...] = ()
    figures: tuple[Figures, ...] = ()
    metrics: Mapping[str, float] | None = None
    times: Times | None = None
    memory: Memory | None = None
    plan: Sensitivities | None = None
    plan_text: str = ""
    previews_db: tuple[float, ...] = ()
    chips: tuple[Chip, ...] = ()

    @property
    def backend(self) -> str:
        return self.manifest.backend

    @property
    def scheme(self) -> str:
        """The folder's name without the backend: two plans of one scheme keep apart."""
        return self.name.removeprefix(f"{self.backend}-")

    @property
    def mmdit_bytes(self) -> int:
        """Files of the graphs that the MMDiT is cut into."""
        return sum(g.bytes for g in self.manifest.graphs if g.name in MMDIT)

    @property
    def bits_per_weight(self) -> float:
        """Bits of those files for each weight value in them: scales and operators included."""
        graphs = [g for g in self.manifest.graphs if g.name in MMDIT]
        values = sum(sum(g.formats.values()) for g in graphs)
        return 8 * self.mmdit_bytes / values if values else 0.0

    @property
    def psnr_db(self) -> float | None:
        """Mean over prompts."""
        return mean_db([f.psnr_db for f in self.figures]) if self.figures else None

    @property
    def latent_snr_db(self) -> float | None:
        """Mean over prompts, of the final latent."""
        return mean_db([f.latent_snr_db for f in self.figures]) if self.figures else None

    @property
    def ssim(self) -> float | None:
        """Mean over prompts; None without scikit-image."""
        values = [f.ssim for f in self.figures if f.ssim is not None]
        return sum(values) / len(values) if values else None

    @property
    def steps_db(self) -> dict[int, float]:
        """Latent SNR after each step: means over the prompts."""
        steps = sorted({step for f in self.figures for step in f.steps_db})
        return {s: mean_db([f.steps_db[s] for f in self.figures if s in f.steps_db]) for s in steps}

    @property
    def picture_s(self) -> float | None:
        """Seconds of the first picture."""
        return self.times.first_s if self.times else None


@dataclass(frozen=True)
class Machine:
    """Where it was measured."""

    system: str
    processor: str
    cores: int


@dataclass(frozen=True)
class Comparison:
    """Everything on the page but its pictures.

    Attributes:
        yardstick: what pictures are compared with: ``UNQUANTIZED`` or a package's name.
        baseline: what the user's metric returned for the yardstick's own pictures.
        ssim: whether scikit-image was there.
        metric: name of the user's file, or empty.
    """

    name: str
    checkpoint_sha256: str
    width_px: int
    height_px: int
    schedule: Schedule
    t5: bool
    fourstep: str
    machine: Machine
    yardstick: str
    asked: tuple[Asked, ...]
    ssim: bool
    metric: str
    baseline: Mapping[str, float]
    packages: tuple[Entry, ...]

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The columns of the user's metric, in the order in which they came up."""
        rows = [self.baseline, *(e.metrics or {} for e in self.packages)]
        return tuple(dict.fromkeys(name for row in rows for name in row))

    def to_json(self) -> str:
        """JSON text; an infinite ratio (no difference) becomes null."""
        data = asdict(self)
        for raw, entry in zip(data["packages"], self.packages, strict=True):
            raw["summary"] = summary(entry)
        whole = {"format_version": FORMAT_VERSION, **data}
        return json.dumps(finite(whole), indent=1, ensure_ascii=False) + "\n"


def summary(entry: Entry) -> dict[str, object]:
    """The figures of a package in one row: bytes, decibels, seconds; None where not measured."""
    return {
        "package": entry.name,
        "drawn": entry.drawn,
        "bytes": entry.manifest.bytes,
        "mmdit_bytes": entry.mmdit_bytes,
        "bits_per_weight": entry.bits_per_weight,
        "psnr_db": entry.psnr_db,
        "ssim": entry.ssim,
        "latent_snr_db": entry.latent_snr_db,
        "seconds_per_picture": entry.picture_s,
        "peak_rss_bytes": entry.memory.peak_rss_bytes if entry.memory else None,
        **(entry.metrics or {}),
    }

"""What a plan measured of each layer: ``plan.json`` of a package, as frozen data.

``plan.toml`` beside it is the same choice for a person to read and edit.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from exporter.errors import CheckFailed
from exporter.files.read import convert, read_json

FORMAT_VERSION = 1
BLOCK = re.compile(r"(?:^|\.)transformer_blocks\.(\d+)\.(.+)$")


@dataclass(frozen=True)
class MeasuredFormat:
    """A format that a weight could get.

    ``noise`` is the power that rounding this weight alone adds to the final latent, as a share of
    the latent's power.
    """

    format: str
    bytes: int
    noise: float


@dataclass(frozen=True)
class Sensitivity:
    """A weight of a graph, its number of values, the chosen format and the measured ones."""

    graph: str
    weight: str
    values: int
    chosen: str
    candidates: tuple[MeasuredFormat, ...]

    @property
    def choice(self) -> MeasuredFormat | None:
        """The chosen one; None when someone chose a format that was not measured."""
        return next((c for c in self.candidates if c.format == self.chosen), None)

    @property
    def coarsest(self) -> MeasuredFormat:
        """The candidate of the fewest bytes."""
        return min(self.candidates, key=lambda c: (c.bytes, -c.noise))

    @property
    def block(self) -> int | None:
        """The number of its transformer block, or None outside of them."""
        found = BLOCK.search(self.weight)
        return int(found[1]) if found else None

    @property
    def layer(self) -> str:
        """Its name inside the block, without ``.weight``."""
        found = BLOCK.search(self.weight)
        return (found[2] if found else self.weight).removesuffix(".weight")


@dataclass(frozen=True)
class Sensitivities:
    """What a plan says of itself; ``None`` where it was not asked for or not measured.

    Attributes:
        budget_bytes, memory_bytes, floor_db: what was asked for: bytes of weights or of memory at
            most, or signal-to-noise at least.
        weight_bytes: of all graphs' weights.
        bits_per_weight: of the MMDiT's.
        predicted_snr_db, measured_snr_db: of the final latent, every weight in its chosen format.
        statistics_sha256: of the calibration that the noise was measured with.
        prompts, seed: of that calibration.
    """

    scheme: str
    budget_bytes: int | None
    memory_bytes: int | None
    floor_db: float | None
    weight_bytes: int
    bits_per_weight: float
    predicted_snr_db: float
    measured_snr_db: float | None
    checkpoint_sha256: str
    statistics_sha256: str
    prompts: int
    seed: int
    methods: tuple[str, ...]
    weights: tuple[Sensitivity, ...]


def read_sensitivities(folder: Path) -> Sensitivities | None:
    """The plan of a package, or None when it has none; raises CheckFailed when it is damaged."""
    file = folder / "plan.json"
    if not file.is_file():
        return None
    raw = read_json(file, CheckFailed)
    if raw.get("format_version") != FORMAT_VERSION:
        raise CheckFailed(f"{file}: this fourstep reads format version {FORMAT_VERSION}")
    missing = dict.fromkeys(("budget_bytes", "memory_bytes", "floor_db"))  # not asked for
    found = convert(missing | raw, Sensitivities, file, CheckFailed)
    for weight in found.weights:
        if not weight.candidates:
            raise CheckFailed(f"{file}: {weight.weight} has no candidates")
    return found


def snr_db(noise: float) -> float:
    """A share of noise power as a signal-to-noise ratio in dB; infinite without noise."""
    return math.inf if noise <= 0 else -10 * math.log10(noise)

"""Finding a mark: every shift of a few scales is tried, and the best payload at each.

At a hypothesis (a scale, a shift, a mixture of the maps) every chip of the tile has a value v,
summed over all tiles that the picture shows. The statistic of a payload is the sum of v times its
signs, over the root of the sum of v squared. For a picture that knows nothing of the key the signs
are independent fair coins, whatever the picture: Chernoff's bound over exactly these v gives the
probability that one payload's sum is as large, and the number of payloads and hypotheses multiplies
it. So ``false_positive_log10`` bounds the chance of a wrong alarm over everything that is tried.

What is allowed is shared out: half of it is kept for pictures that were not cropped, whose only
shift is none. They are read first, and need less.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from exporter.marking.key import MarkKey
from exporter.marking.pattern import (
    CHIP_PX,
    LEAST_PX,
    PAYLOAD_BITS,
    SYMBOL_OF_CHIP,
    SYMBOLS,
    TILE_CHIPS,
    VALUES,
    signs,
)
from exporter.marking.raster import halved, luma_of, maps

# A picture's size over the size that it was drawn at.
COMMON_SCALES = (1.0, 0.5)
OTHER_SCALES = (0.75, 2 / 3, 0.6, 0.8, 0.9, 0.7, 0.4, 1 / 3, 0.25, 1.25, 1.5, 2.0)
# Of the allowed chance of a wrong alarm: whole pictures of either scales, and cropped ones.
COMMON_SHARE, OTHER_SHARE, CROPPED_SHARE = 0.4, 0.1, 0.5
MAPS = 3
MIXTURES = ((1.0, 0.0, 0.0), (1.0, 1.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))  # shares of maps
FIRST_LOOK = MIXTURES[1]
MOST_FALSE_LOG10 = -6.0  # of a mark that counts as found
SURE_LOG10 = -12.0  # of one behind which nothing else is tried
CANDIDATES = 4  # shifts of a phase that are looked at closely
HALF_TILE = TILE_CHIPS * CHIP_PX // 2
STRIDE = CHIP_PX // 2  # half-size pixels from chip to chip
PHASES = ((0, 0), (0, 1), (1, 0), (1, 1))
XOR = np.arange(VALUES)[:, None] ^ np.arange(VALUES)[None]
RATES = np.geomspace(0.05, 40, 60)  # at which Chernoff's bound is tried, over the values' RMS


@dataclass(frozen=True)
class Reading:
    """The best mark of a picture.

    Attributes:
        payload: that it stands for.
        statistic: of the payload's signs; a normal deviate for whoever has no key.
        false_positive_log10: of the chance that an unmarked picture reads as well as this,
            whatever its payload, over everything that was tried; at most 0.
        scale: the picture's size over the size that it was drawn at.
        offset_px: where in its tile the picture begins, in pixels as drawn: down, right. Within a
            pixel or two; (0, 0) for a whole picture.
    """

    payload: int
    statistic: float
    false_positive_log10: float
    scale: float
    offset_px: tuple[int, int]

    @property
    def found(self) -> bool:
        """Whether this is a mark and no chance."""
        return self.false_positive_log10 < MOST_FALSE_LOG10


@dataclass(frozen=True)
class _Tried:
    """Chips' values (3, 1024) by each map, at one shift."""

    values: np.ndarray
    scale: float
    offset_px: tuple[int, int]


def read_mark(
    picture: np.ndarray, key: MarkKey, drawn_size_px: tuple[int, int] | None = None
) -> Reading | None:
    """The best mark in (H, W, 3) levels; None where the picture is too small for any.

    Args:
        drawn_size_px: height and width that the picture had when it was drawn, if that is known
            and it was not cropped: it may then have been resized in any way.
    """
    luma = luma_of(picture)
    if drawn_size_px is not None:
        return _best(_whole(luma, [drawn_size_px]), key, log10_of(1, 1.0))
    stages = [
        (_whole(luma, _sizes(luma.shape, scales)), log10_of(len(scales), share))
        for scales, share in ((COMMON_SCALES, COMMON_SHARE), (OTHER_SCALES, OTHER_SHARE))
    ]
    shifts = len(COMMON_SCALES) * len(PHASES) * HALF_TILE**2
    for size in _sizes(luma.shape, COMMON_SCALES):
        stages.append((_cropped(luma, size, key), log10_of(shifts, CROPPED_SHARE)))
    found: Reading | None = None
    for tried, multiplier_log10 in stages:
        found = _likelier(found, _best(tried, key, multiplier_log10))
        if found and found.false_positive_log10 < SURE_LOG10:
            break
    return found


def _likelier(one: Reading | None, other: Reading | None) -> Reading | None:
    """The reading that is the less likely by chance."""
    found = [reading for reading in (one, other) if reading is not None]
    return min(found, key=lambda reading: reading.false_positive_log10, default=None)


def _sizes(shape: Sequence[int], scales: Sequence[float]) -> list[tuple[int, int]]:
    """Sizes that a picture may have been drawn at, none too small for a mark."""
    sizes = [(round(shape[0] / s), round(shape[1] / s)) for s in scales]
    return [size for size in sizes if min(size) >= LEAST_PX // 2]


def log10_of(shifts: int, share: float) -> float:
    """What the number of hypotheses and payloads adds to a probability's logarithm."""
    return math.log10(2) * PAYLOAD_BITS + math.log10(shifts * len(MIXTURES) / share)


def _half(luma: np.ndarray, size: tuple[int, int], phase: tuple[int, int]) -> np.ndarray:
    return halved(luma, max(1, round(size[0] / 2)), max(1, round(size[1] / 2)), phase)


def _whole(luma: np.ndarray, sizes: Sequence[tuple[int, int]]) -> Iterator[_Tried]:
    """At no shift."""
    for size in sizes:
        folded = fold(maps(_half(luma, size, (0, 0))))
        values = folded[:, ::STRIDE, ::STRIDE].reshape(MAPS, -1)
        yield _Tried(values, luma.shape[0] / size[0], (0, 0))


def _cropped(luma: np.ndarray, size: tuple[int, int], key: MarkKey) -> Iterator[_Tried]:
    """At the shifts of each phase that look best."""
    for phase in PHASES:
        folded = fold(maps(_half(luma, size, phase)))
        lattices = [folded[:, y::STRIDE, x::STRIDE].reshape(MAPS, -1) for y, x in PHASES]
        scores = np.concatenate([_scores(_mixed(v, FIRST_LOOK), key) for v in lattices])
        for place in np.argsort(-scores)[:CANDIDATES]:
            lattice, shift = divmod(int(place), TILE_CHIPS**2)
            offset = [
                -(2 * (PHASES[lattice][a] + STRIDE * step) + phase[a]) % (2 * HALF_TILE)
                for a, step in enumerate(divmod(shift, TILE_CHIPS))
            ]
            values = lattices[lattice][:, _moves()[shift]]
            yield _Tried(values, luma.shape[0] / size[0], (offset[0], offset[1]))


def fold(found: np.ndarray) -> np.ndarray:
    """(3, 64, 64): maps (3, h, w) summed over all tiles."""
    _, height, width = found.shape
    down, across = (-(-side // HALF_TILE) for side in (height, width))
    padded = np.zeros((MAPS, down * HALF_TILE, across * HALF_TILE))
    padded[:, :height, :width] = found
    return np.asarray(padded.reshape(MAPS, down, HALF_TILE, across, HALF_TILE).sum((1, 3)))


@functools.cache
def _moves() -> np.ndarray:
    """(1024, 1024): for each shift, the place that each chip is found at."""
    at = np.arange(TILE_CHIPS)
    moved = (at[:, None] + at) % TILE_CHIPS
    rows = moved[:, None, :, None] * TILE_CHIPS
    return (rows + moved[None, :, None, :]).reshape(TILE_CHIPS**2, -1)


def _mixed(values: np.ndarray, shares: tuple[float, ...]) -> np.ndarray:
    """(1024,) of (3, 1024): shares of each map, of unit norm."""
    used = [share * _unit(part) for share, part in zip(shares, values, strict=True) if share]
    return _unit(sum(used[1:], used[0]))


def _unit(values: np.ndarray) -> np.ndarray:
    return np.asarray(values / (np.linalg.norm(values) + 1e-9))


@functools.lru_cache(maxsize=4)
def _symbol_signs(key: MarkKey) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Of each symbol the places of its chips, and (256, chips) float32 signs."""
    table, owner = signs(key).reshape(VALUES, -1), SYMBOL_OF_CHIP.ravel()
    places = [np.flatnonzero(owner == symbol) for symbol in range(SYMBOLS)]
    return tuple((place, table[:, place].astype(np.float32)) for place in places)


def _scores(values: np.ndarray, key: MarkKey) -> np.ndarray:
    """(1024,): at each shift of a lattice the most that five free symbols could have."""
    chips, total = values.astype(np.float32), np.zeros(TILE_CHIPS**2)
    for moved, (_, table) in zip(_symbol_moves(), _symbol_signs(key), strict=True):
        total += (table @ chips[moved]).max(0)
    return total


@functools.cache
def _symbol_moves() -> tuple[np.ndarray, ...]:
    """Of each symbol (chips, 1024): where each of its chips is found at each shift."""
    owner = SYMBOL_OF_CHIP.ravel()
    return tuple(_moves()[:, owner == symbol].T.copy() for symbol in range(SYMBOLS))


def correlations(values: np.ndarray, key: MarkKey) -> np.ndarray:
    """(5, 256): of (1024,) chips with the signs that each value of each symbol gives them."""
    return np.stack([table @ values[place] for place, table in _symbol_signs(key)])


def decode(correlation: np.ndarray) -> tuple[float, int]:
    """The largest sum over the symbols of any payload, and that payload, from (5, 256).

    Exact, over all 2^32: two symbols are joined into what their exclusive or can be at best, then
    two more, then both pairs; the last symbol is the exclusive or of all four.
    """
    left, left_from = _joined(correlation[0], correlation[1])
    right, right_from = _joined(correlation[2], correlation[3])
    both, both_from = _joined(left, right)
    total = both + correlation[4]
    value = int(total.argmax())
    first = int(both_from[value])
    second = first ^ value
    parts = (int(left_from[first]), int(right_from[second]))
    payload = bytes([parts[0], parts[0] ^ first, parts[1], parts[1] ^ second])
    return float(total[value]), int.from_bytes(payload, "big")


def _joined(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each exclusive or of two symbols the largest sum, and the first symbol of it."""
    sums = one[:, None] + other[XOR]
    return sums.max(0), sums.argmax(0)


def _best(tried: Iterator[_Tried], key: MarkKey, multiplier_log10: float) -> Reading | None:
    """The hypothesis that is the least likely by chance."""
    best: Reading | None = None
    for one in tried:
        for shares in MIXTURES:
            values = _mixed(one.values, shares)
            statistic, payload = decode(correlations(values, key))
            chance = min(0.0, chance_log10(values, statistic) + multiplier_log10)
            if best is None or chance < best.false_positive_log10:
                best = Reading(payload, statistic, chance, one.scale, one.offset_px)
    return best


def chance_log10(values: np.ndarray, total: float) -> float:
    """Chernoff's bound on the chance that fair coins times values sum to so much."""
    if total <= 0:
        return 0.0
    scale = math.sqrt(float((values**2).mean())) + 1e-12
    rates = RATES / scale
    sizes = np.abs(rates[:, None] * values)
    logs = (sizes + np.log1p(np.exp(-2 * sizes)) - math.log(2)).sum(1) - rates * total
    return float(min(0.0, logs.min())) / math.log(10)

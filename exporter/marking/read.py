"""Finding a mark: every shift of a few scales is tried, and the best payload at each.

At a hypothesis (a scale, a shift) every chip of the tile has a value v, the odds of its sign
(``learned``) summed over all tiles that the picture shows. The statistic of a payload is the sum of
v times its signs, over the root of the sum of v squared. For a picture that knows nothing of the
key the signs are independent fair coins, whatever the picture: the probability that one payload's
sum is as large is that of coins times exactly these v, and the number of payloads and hypotheses
multiplies it. So ``false_positive_log10`` bounds the chance of a wrong alarm over everything that
is tried.

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
from exporter.marking.learned import STRIDE, odds
from exporter.marking.pattern import (
    LEAST_PX,
    PAYLOAD_BITS,
    SYMBOL_OF_CHIP,
    SYMBOLS,
    TILE_CHIPS,
    TILE_PX,
    VALUES,
    signs,
)
from exporter.marking.raster import halved, luma_of, planes

# A picture's size over the size that it was drawn at.
COMMON_SCALES = (1.0, 0.5)
OTHER_SCALES = (0.75, 2 / 3, 0.6, 0.8, 0.9, 0.7, 0.4, 1 / 3, 0.25, 1.25, 1.5, 2.0)
# Of the allowed chance of a wrong alarm: whole pictures of either scales, and cropped ones.
COMMON_SHARE, OTHER_SHARE, CROPPED_SHARE = 0.4, 0.1, 0.5
HALF_TILE = TILE_PX // 2
MOST_FALSE_LOG10 = -6.0  # of a mark that counts as found
SURE_LOG10 = -12.0  # of one behind which nothing else is tried
CANDIDATES = 4  # shifts of a phase that are looked at closely
PHASES = ((0, 0), (0, 1), (1, 0), (1, 1))
XOR = np.arange(VALUES)[:, None] ^ np.arange(VALUES)[None]
STEPS = 128  # of values of unit norm: whole ones, so that chances can be computed
HIGHEST = 63  # of a value, in steps
RATES = np.geomspace(0.25, 1024, 120)  # at which Chernoff's bound is tried
TERMS = 1024  # of a sum's distribution: sixteen standard deviations
TINIEST = 1e-30
MOST_TAIL_LOG10 = 3.0  # what Chernoff's bound is never too large by: it is by about 1.3


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
    """Chips' values (1024,), of unit norm in whole steps, at one shift."""

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
    shifts = len(COMMON_SCALES) * len(PHASES) * HALF_TILE**2
    common = _sizes(luma.shape, COMMON_SCALES)
    stages = [
        *((_whole(luma, [size]), len(COMMON_SCALES), COMMON_SHARE) for size in common),
        *((_cropped(luma, size, key), shifts, CROPPED_SHARE) for size in common),
        (_whole(luma, _sizes(luma.shape, OTHER_SCALES)), len(OTHER_SCALES), OTHER_SHARE),
    ]
    found: Reading | None = None
    for tried, hypotheses, share in stages:
        found = _likelier(found, _best(tried, key, log10_of(hypotheses, share)))
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
    return math.log10(2) * PAYLOAD_BITS + math.log10(shifts / share)


def _half(luma: np.ndarray, size: tuple[int, int], phase: tuple[int, int]) -> np.ndarray:
    return halved(luma, max(1, round(size[0] / 2)), max(1, round(size[1] / 2)), phase)


def _whole(luma: np.ndarray, sizes: Sequence[tuple[int, int]]) -> Iterator[_Tried]:
    """At no shift."""
    for size in sizes:
        yield _Tried(chips(_half(luma, size, (0, 0)), (0, 0)), luma.shape[0] / size[0], (0, 0))


def _cropped(luma: np.ndarray, size: tuple[int, int], key: MarkKey) -> Iterator[_Tried]:
    """At the shifts of each phase that look best."""
    for phase in PHASES:
        seen = planes(_half(luma, size, phase))
        lattices = [in_steps(fold(odds(seen, *first))) for first in PHASES]
        scores = np.concatenate([_scores(values, key) for values in lattices])
        for place in np.argsort(-scores)[:CANDIDATES]:
            lattice, shift = divmod(int(place), TILE_CHIPS**2)
            offset = [
                -(2 * (PHASES[lattice][a] + STRIDE * step) + phase[a]) % TILE_PX
                for a, step in enumerate(divmod(shift, TILE_CHIPS))
            ]
            values = lattices[lattice][_moves()[shift]]
            yield _Tried(values, luma.shape[0] / size[0], (offset[0], offset[1]))


def chips(half: np.ndarray, first: tuple[int, int]) -> np.ndarray:
    """(1024,): the values of a tile's chips in a picture of half the size.

    Args:
        first: where the first chip begins, down and right.
    """
    return in_steps(fold(odds(planes(half), *first)))


def fold(found: np.ndarray) -> np.ndarray:
    """(1024,): chips (rows, columns) summed over all tiles."""
    down, across = (-(-side // TILE_CHIPS) for side in found.shape)
    padded = np.zeros((down * TILE_CHIPS, across * TILE_CHIPS))
    padded[: found.shape[0], : found.shape[1]] = found
    return np.asarray(padded.reshape(down, TILE_CHIPS, across, TILE_CHIPS).sum((0, 2)).ravel())


def in_steps(values: np.ndarray) -> np.ndarray:
    """Scaled to unit norm and rounded to whole ``STEPS``, at most ``HIGHEST`` of them."""
    steps = np.rint(values / (np.linalg.norm(values) + 1e-9) * STEPS)
    return np.asarray(np.clip(steps, -HIGHEST, HIGHEST) / STEPS)


@functools.cache
def _moves() -> np.ndarray:
    """(1024, 1024): for each shift, the place that each chip is found at."""
    at = np.arange(TILE_CHIPS)
    moved = (at[:, None] + at) % TILE_CHIPS
    rows = moved[:, None, :, None] * TILE_CHIPS
    return (rows + moved[None, :, None, :]).reshape(TILE_CHIPS**2, -1)


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
        statistic, payload = decode(correlations(one.values, key))
        chance = chance_log10(one.values, statistic, -multiplier_log10) + multiplier_log10
        if best is None or chance < best.false_positive_log10:
            best = Reading(payload, statistic, min(0.0, chance), one.scale, one.offset_px)
    return best


def chance_log10(values: np.ndarray, total: float, wanted_log10: float = 0.0) -> float:
    """The chance that fair coins times whole ``STEPS`` sum to so much or more.

    Chernoff's bound, times what it is too large by: the sum's distribution under coins that are
    tilted so that this total is usual, whose characteristic function is a product over coins. The
    bound alone where that is far above a chance that is wanted.
    """
    if total <= 0:
        return 0.0
    heights = np.minimum(np.rint(np.abs(values) * STEPS), HIGHEST).astype(np.int64)
    counts, aim = np.bincount(heights, minlength=HIGHEST + 1), round(total * STEPS)
    rates = RATES / STEPS
    sizes = rates[:, None] * np.arange(HIGHEST + 1)
    logs = (sizes + np.log1p(np.exp(-2 * sizes)) - math.log(2)) @ counts - rates * aim
    best = int(logs.argmin())
    bound = float(logs[best]) / math.log(10)
    if bound > wanted_log10 + MOST_TAIL_LOG10:
        return min(0.0, bound)
    return min(0.0, bound + math.log10(_tail(counts, aim, float(rates[best]))))


def _tail(counts: np.ndarray, aim: int, rate: float) -> float:
    """Of tilted coins: the mean of exp(-rate (sum - aim)) where the sum is not less than the aim.

    The sum is the aim and twice a whole number m. Its distribution is a Fourier series of as many
    terms as there are m to tell apart; summed over m it is a geometric series.
    """
    turns = 2 * math.pi * np.arange(TERMS // 2 + 1) / TERMS
    halves = turns[:, None] / 2 * np.arange(HIGHEST + 1)
    tilt = np.tanh(rate * np.arange(HIGHEST + 1))
    sines, cosines = tilt * np.sin(halves), np.cos(halves)
    sizes = np.log(np.maximum(cosines**2 + sines**2, TINIEST)) @ counts / 2
    angles = np.arctan2(sines, cosines) @ counts - turns * aim / 2
    terms = np.exp(sizes + 1j * angles) / (1 - np.exp(-2 * rate - 1j * turns))
    twice = np.where(np.arange(len(turns)) % (TERMS // 2) == 0, 1, 2)
    return max(TINIEST, float((terms.real * twice).sum()) / TERMS)

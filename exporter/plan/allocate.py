"""Choose a format for every weight under a budget of bytes, or for a floor of quality.

Rounding errors of different weights are independent, so their noise powers add up: what is left is
a knapsack with one choice per weight. It is solved greedily along each weight's convex hull, which
misses the optimum by less than one weight's step, and what is left of the budget is then filled.
The same input gives the same choice on any machine.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from exporter.errors import InputError
from exporter.quantize.formats import Format


@dataclass(frozen=True)
class Candidate:
    """A format that a weight may get: its bytes, and its noise as a share of the latent's power."""

    format: Format
    bytes: int
    noise: float


Options = Sequence[Sequence[Candidate]]
Choice = tuple[int, ...]  # index of the candidate of each weight


def allocate(options: Options, budget_bytes: int) -> Choice:
    """The candidates of least total noise whose bytes stay within ``budget_bytes``.

    Raises InputError when even the smallest candidates do not fit.
    """
    hulls = [_hull(candidates) for candidates in options]
    chosen = [hull[0] for hull in hulls]
    left = budget_bytes - total_bytes(options, chosen)
    if left < 0:
        raise InputError(
            f"a budget of {budget_bytes:,} bytes cannot be met: with every weight at its smallest "
            f"format {budget_bytes - left:,} bytes are needed"
        )
    steps = sorted(
        (_gain(options[w], a, b), w, a, b)
        for w, hull in enumerate(hulls)
        for a, b in itertools.pairwise(hull)
    )
    for _, w, before, after in steps:
        cost = options[w][after].bytes - options[w][before].bytes
        if chosen[w] == before and cost <= left:
            chosen[w], left = after, left - cost
    return _filled(options, chosen, left)


def smallest(options: Options, most_noise: float) -> Choice:
    """The fewest bytes whose total noise is at most ``most_noise``.

    Raises InputError when even the best candidates leave more.
    """
    best = [min(range(len(c)), key=lambda i: (c[i].noise, c[i].bytes)) for c in options]
    if total_noise(options, best) > most_noise:
        raise InputError("the floor cannot be met: even the best formats leave more noise")
    low, high = sum(min(c.bytes for c in o) for o in options), total_bytes(options, best)
    while high - low > max(1, high // 2000):
        middle = (low + high) // 2
        if total_noise(options, allocate(options, middle)) <= most_noise:
            high = middle
        else:
            low = middle
    return allocate(options, high)


def total_bytes(options: Options, chosen: Sequence[int]) -> int:
    """Bytes of a choice."""
    return sum(candidates[i].bytes for candidates, i in zip(options, chosen, strict=True))


def total_noise(options: Options, chosen: Sequence[int]) -> float:
    """Noise power of a choice, as a share of the latent's power."""
    return sum(candidates[i].noise for candidates, i in zip(options, chosen, strict=True))


def _hull(candidates: Sequence[Candidate]) -> list[int]:
    """The candidates on the lower convex hull of (bytes, noise), by growing bytes."""
    found: list[int] = []
    for i in sorted(
        range(len(candidates)), key=lambda i: (candidates[i].bytes, candidates[i].noise)
    ):
        if found and candidates[i].noise >= candidates[found[-1]].noise:
            continue
        while len(found) > 1 and _gain(candidates, found[-2], found[-1]) >= _gain(
            candidates, found[-1], i
        ):
            found.pop()
        found.append(i)
    return found


def _gain(candidates: Sequence[Candidate], before: int, after: int) -> float:
    """Noise per byte that a step adds: negative, and the more so the better."""
    a, b = candidates[before], candidates[after]
    return (b.noise - a.noise) / max(1, b.bytes - a.bytes)


def _filled(options: Options, chosen: list[int], left: int) -> Choice:
    """Spend what is left on the steps, of any size, that take away the most noise."""
    while True:
        best: tuple[float, int, int] | None = None
        for w, candidates in enumerate(options):
            now = candidates[chosen[w]]
            for i, other in enumerate(candidates):
                fits = other.bytes - now.bytes <= left
                if fits and other.noise < now.noise:
                    found = (other.noise - now.noise, w, i)
                    best = found if best is None else min(best, found)
        if best is None:
            return tuple(chosen)
        _, w, i = best
        left -= options[w][i].bytes - options[w][chosen[w]].bytes
        chosen[w] = i

"""Formats under a budget: as good as every other choice, as far as bytes and steps allow."""

from __future__ import annotations

import itertools
import random

import pytest

from exporter.errors import InputError
from exporter.plan.allocate import Candidate, Choice, allocate, smallest, total_bytes, total_noise
from exporter.quantize.formats import FORMATS

Rows = list[list[Candidate]]
BITS = (2.25, 2.5, 4.125, 4.25, 4.5, 5, 8, 16)


def problem(seed: int, weights: int, formats: int = len(BITS)) -> Rows:
    """Weights of unequal size and sensitivity; a bit more lowers a noise by some 6 dB, or less."""
    draw = random.Random(seed)
    rows = []
    for _ in range(weights):
        values = draw.choice([64, 128, 256, 1024]) * draw.choice([32, 64, 96])
        power = 10 ** draw.uniform(-6, -1)
        candidates = [
            Candidate(FORMATS["int8"], int(values * b / 8), power * 4**-b * draw.uniform(0.3, 3))
            for b in BITS
        ]
        rows.append(draw.sample(candidates, formats))
    return rows


def ends(rows: Rows) -> tuple[int, int]:
    """Bytes of the smallest choice and of the largest."""
    least, most = ([end(c.bytes for c in row) for row in rows] for end in (min, max))
    return sum(least), sum(most)


def largest_step(rows: Rows) -> float:
    """The most noise that one weight can lose."""
    return max(max(c.noise for c in row) - min(c.noise for c in row) for row in rows)


def every(rows: Rows) -> list[Choice]:
    return list(itertools.product(*(range(len(row)) for row in rows)))


def test_close_to_the_best_choice() -> None:
    """Within one weight's step, the best itself in half of small problems, 10 % off in a tenth."""
    ratios = []
    for seed in range(100):
        rows = problem(seed, weights=5, formats=4)
        low, high = ends(rows)
        budget = low + (high - low) * (seed % 10) // 10
        found = allocate(rows, budget)
        assert total_bytes(rows, found) <= budget
        best = min(total_noise(rows, c) for c in every(rows) if total_bytes(rows, c) <= budget)
        assert total_noise(rows, found) <= best + largest_step(rows)
        ratios.append(total_noise(rows, found) / best)
    ratios.sort()
    assert ratios[50] == pytest.approx(1) and ratios[90] < 1.1 and ratios[-1] < 5


@pytest.mark.parametrize("seed", range(5))
def test_a_budget_is_used(seed: int) -> None:
    rows = problem(seed, weights=60)
    low, high = ends(rows)
    for share in (0.1, 0.3, 0.6, 0.9):
        budget = int(low + share * (high - low))
        assert 0.98 * budget < total_bytes(rows, allocate(rows, budget)) <= budget


@pytest.mark.parametrize("seed", range(5))
def test_more_bytes_leave_no_more_noise(seed: int) -> None:
    """But for what filling the rest of a budget may cost: under a thousandth."""
    rows = problem(seed, weights=40)
    low, high = ends(rows)
    noises = [total_noise(rows, allocate(rows, low + (high - low) * i // 100)) for i in range(101)]
    assert all(b <= 1.001 * a for a, b in itertools.pairwise(noises))
    assert noises[-1] == pytest.approx(sum(min(c.noise for c in row) for row in rows))
    assert noises[0] > 100 * noises[-1]


def test_the_same_choice_whatever_the_order_of_candidates() -> None:
    rows = problem(0, weights=30)
    budget = sum(ends(rows)) // 2
    found = [row[i] for row, i in zip(rows, allocate(rows, budget), strict=True)]
    turned = [row[::-1] for row in rows]
    again = [row[i] for row, i in zip(turned, allocate(turned, budget), strict=True)]
    assert found == again


def test_a_format_that_is_larger_and_no_better_is_not_taken() -> None:
    rows = [[Candidate(FORMATS["int8"], size, noise) for size, noise in ((10, 1.0), (20, 1.5))]]
    assert allocate(rows, 1000) == (0,)
    unused = [[Candidate(FORMATS["int8"], size, 0.0) for size in (30, 10, 20)]]
    assert allocate(unused, 1000) == (1,)


def test_a_large_step_that_does_not_fit_gives_way_to_small_ones() -> None:
    large = [Candidate(FORMATS["int8"], 10, 100.0), Candidate(FORMATS["int8"], 1000, 0.0)]
    small = [Candidate(FORMATS["int8"], 10, 1.0), Candidate(FORMATS["int8"], 100, 0.1)]
    assert allocate([large, small], 120) == (0, 1)
    assert allocate([large, small], 1010) == (1, 0)


def test_what_is_left_goes_to_formats_beside_the_hull() -> None:
    sizes = ((10, 10.0), (20, 9.5), (30, 0.0))
    row = [Candidate(FORMATS["int8"], size, noise) for size, noise in sizes]
    assert [allocate([row], budget) for budget in (19, 25, 30)] == [(0,), (1,), (2,)]


def test_a_budget_below_the_smallest_formats() -> None:
    rows = problem(1, weights=10)
    low, _ = ends(rows)
    assert total_bytes(rows, allocate(rows, low)) == low
    with pytest.raises(InputError, match=f"{low - 1:,} bytes cannot be met: .* {low:,} bytes are"):
        allocate(rows, low - 1)


@pytest.mark.parametrize("seed", range(5))
def test_the_fewest_bytes_for_a_noise(seed: int) -> None:
    rows = problem(seed, weights=6, formats=4)
    low, high = ends(rows)
    for share in (0.05, 0.3, 0.6, 0.95):
        most = total_noise(rows, allocate(rows, int(low + share * (high - low))))
        found = smallest(rows, most)
        assert total_noise(rows, found) <= most
        fewest = min(total_bytes(rows, c) for c in every(rows) if total_noise(rows, c) <= most)
        assert fewest <= total_bytes(rows, found) <= 1.1 * fewest


def test_a_noise_that_no_format_reaches() -> None:
    rows = problem(2, weights=10)
    least = sum(min(c.noise for c in row) for row in rows)
    assert total_noise(rows, smallest(rows, 1.0001 * least)) <= 1.0001 * least
    with pytest.raises(InputError, match="the floor cannot be met: even the best formats"):
        smallest(rows, 0.99 * least)
    low, _ = ends(rows)
    assert total_bytes(rows, smallest(rows, 1e9)) <= 1.001 * low

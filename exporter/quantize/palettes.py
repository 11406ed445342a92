"""Palettes: k-means in one dimension, close to its optimum.

In one dimension clusters are intervals, so the best split of a few hundred points is found exactly
by dynamic programming. A weight's values are first gathered into so many points; Lloyd's algorithm
on all values then settles the centres (sorted, with prefix sums, a step costs a search per centre
and no pass over the values). Nothing is drawn at random: no seed is needed.
"""

from __future__ import annotations

import torch
from torch import Tensor

POINTS = 16  # for each value of the palette, what dynamic programming sees
ITERATIONS = 100


def palettize(weight: Tensor, bits: int, channels: int) -> tuple[Tensor, Tensor]:
    """Choose palettes that minimise the squared error of a weight.

    Args:
        weight: (N, K, ...) float32.
        bits: 2^bits values in a palette.
        channels: output channels that share one; divides N.

    Returns:
        codes (N, K, ...) uint8, and palettes (N / channels, 2^bits) float32, ascending.
    """
    groups = weight.reshape(len(weight) // channels, -1)
    found = [_palettize_group(group, 2**bits) for group in groups]
    codes = torch.stack([codes for codes, _ in found])
    return codes.reshape(weight.shape), torch.stack([palette for _, palette in found])


def _palettize_group(values: Tensor, size: int) -> tuple[Tensor, Tensor]:
    ordered = values.sort().values.double()
    sums = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])
    palette = _lloyd(ordered, sums, _best_split(ordered, sums, size)).float()
    codes = torch.bucketize(values, (palette[1:] + palette[:-1]) / 2)
    return codes.to(torch.uint8), palette


def _best_split(ordered: Tensor, sums: Tensor, size: int) -> Tensor:
    """Centres (size,) of the best split of at most ``POINTS * size`` points.

    A point is the mean of a run of values; runs end at quantiles, which follow the bulk, and on an
    even grid, which follows outliers.
    """
    half = POINTS * size // 2
    quantiles = torch.linspace(0, len(ordered), half + 1).round().long()
    grid = torch.linspace(float(ordered[0]), float(ordered[-1]), half + 1, dtype=torch.float64)
    ends = torch.cat([quantiles, torch.searchsorted(ordered, grid)]).unique()  # type: ignore[no-untyped-call]
    # Up to a constant, the error of points i to j in one cluster is -(their sum)^2 / their count.
    count, total = ends.double(), sums[ends]
    width = count[None, :] - count[:, None]
    cost = -((total[None, :] - total[:, None]) ** 2) / width.clamp(min=1)
    cost.masked_fill_(width < 0, torch.inf)
    best, cuts = cost[0], []
    for _ in range(size - 1):
        best, cut = (best[:, None] + cost).min(0)
        cuts.append(cut)
    edges = [len(ends) - 1]
    for cut in reversed(cuts):
        edges.append(int(cut[edges[-1]]))
    edges = [0, *reversed(edges)]
    spans = zip(ends[edges[:-1]].tolist(), ends[edges[1:]].tolist(), strict=True)
    means = [(sums[b] - sums[a]) / (b - a) if b > a else ordered[min(a, len(ordered) - 1)]
             for a, b in spans]  # fmt: skip
    return torch.stack(means)


def _lloyd(ordered: Tensor, sums: Tensor, centres: Tensor) -> Tensor:
    for _ in range(ITERATIONS):
        inner = torch.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2)
        edges = torch.cat([inner.new_zeros(1), inner, inner.new_full((1,), len(ordered))])
        count = edges.diff()
        means = sums[edges].diff() / count.clamp(min=1)
        moved = torch.where(count > 0, means, centres)  # an empty cluster stays where it is
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres.sort().values

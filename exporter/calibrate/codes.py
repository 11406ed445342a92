"""Better codes at the same bytes: scales and codes chosen for what a layer puts out.

A weight W (N, K) that is stored as Q changes its layer's output by (Q - W) x. With the inputs'
covariance C around their mean m, the mean square of that change is tr((Q - W) C (Q - W)^T), once
the mean change (Q - W) m is taken out of the bias. Each method lowers it, and can be left out:

``equalize``  channels are scaled against their neighbours' (``exporter.calibrate.equalize``);
``scales``    a group's scale is searched, in place of the one that its largest value asks for;
``feedback``  a column's rounding error is made good in the columns after it (Frantar et al. 2023,
              GPTQ);
``bias``      the mean change goes into the bias: a row for each step where a layer meets few rows.

All is computed in float64, so that codes do not hang on how a processor rounds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from exporter.calibrate.layer_inputs import LayerInputs
from exporter.quantize.formats import Format
from exporter.quantize.nearest import HALF_NORMALS, in_half, whole_multiples

CONSTANT = 1e-12  # mean variance, below which inputs do not change
DAMPING = 0.01  # of the mean variance, as in GPTQ
SHRINK = torch.linspace(0.45, 1.1, 27, dtype=torch.float64)  # of the extreme value


@dataclass(frozen=True, eq=False)
class Grid:
    """The values that a weight can take: (code - zero_point) * scale, low <= code <= high.

    Attributes:
        scale, zero_point: (N, G) float64, of G groups along the input axis.
        low, high: smallest and largest code.
    """

    scale: Tensor
    zero_point: Tensor
    low: int
    high: int

    def codes(self, values: Tensor, group: int | slice) -> Tensor:
        """The nearest codes, float64, of values (N, g) of one group or (N, G, g) of all."""
        scale, zero = self.scale[:, group, None], self.zero_point[:, group, None]
        steps = torch.where(scale != 0, values / scale, torch.zeros_like(values))
        return (steps.round_() + zero).clamp_(self.low, self.high)

    def values(self, codes: Tensor, group: int | slice) -> Tensor:
        """What codes stand for; shapes as in ``codes``."""
        return (codes - self.zero_point[:, group, None]) * self.scale[:, group, None]


def best_codes(
    weight: Tensor, form: Format, inputs: LayerInputs, methods: frozenset[str]
) -> tuple[Tensor, Grid]:
    """Codes (N, K) float64 and their grid for a layer's inputs.

    Args:
        weight: (N, K) float.
        form: ``int8``, ``int4`` or ``int2``.
        methods: of ``formats.METHODS``; ``bias`` says that mean changes will be taken out.
    """
    values = weight.double()
    moment = (inputs.covariance if "bias" in methods else inputs.second_moment()).double()
    moment = damped(moment)
    groups = values.shape[1] // form.group_size if form.group_size else 1
    split = values.reshape(len(values), groups, -1)
    importance = torch.diagonal(moment, dim1=1, dim2=2).reshape(1, groups, -1)
    grid = plain_grid(split, form)
    if "scales" in methods:
        grid = searched_grid(split, form, importance)
    if "feedback" not in methods:
        return grid.codes(split, slice(None)).flatten(1), grid
    return with_feedback(values, grid, moment), grid


def damped(moment: Tensor) -> Tensor:
    """Second moments (B, k, k) with a little white noise, so that they can be inverted.

    Of inputs that never change nothing is known: white noise alone.
    """
    variance = torch.diagonal(moment, dim1=1, dim2=2).clamp(min=0).mean()
    white = torch.eye(moment.shape[1], dtype=moment.dtype)
    return moment + DAMPING * variance * white if variance > CONSTANT else white.expand_as(moment)


def plain_grid(groups: Tensor, form: Format) -> Grid:
    """The grid of rounding to nearest (``quantize.nearest.encode``) for groups (N, G, g)."""
    return grids(groups, form, torch.ones(1, dtype=torch.float64))[0]


def searched_grid(groups: Tensor, form: Format, importance: Tensor) -> Grid:
    """For every group, the grid of least error when each channel counts by its ``importance``.

    Args:
        groups: (N, G, g).
        importance: (1, G, g): mean square of each input channel.
    """
    best: Grid | None = None
    least = torch.zeros(())
    for grid in grids(groups, form, SHRINK):
        error = grid.values(grid.codes(groups, slice(None)), slice(None)) - groups
        loss = (error.square_() * importance).sum(2)
        if best is None:
            best, least = grid, loss
            continue
        better = loss < least
        least = torch.where(better, loss, least)
        best = Grid(
            torch.where(better, grid.scale, best.scale),
            torch.where(better, grid.zero_point, best.zero_point),
            grid.low,
            grid.high,
        )
    assert best is not None
    return best


def grids(groups: Tensor, form: Format, shrink: Tensor) -> list[Grid]:
    """The grids worth trying: the extreme values times each factor of ``shrink``.

    One where scales are multiples of their row's: that is the largest one's, which has to stay.
    """
    steps = 2**form.bits - 1
    low, high = torch.aminmax(groups, dim=2)
    if not form.symmetric:
        low, high = low.clamp(max=0), high.clamp(min=0)
        found = []
        for factor, scale in zip(shrink, stored((high - low) / steps, shrink, form), strict=True):
            ratio = torch.where(scale > 0, -low * factor / scale, torch.zeros_like(scale))
            found.append(Grid(scale, ratio.round().clamp(0, steps), 0, steps))
        return found
    zero = torch.zeros_like(low)
    half = 2 ** (form.bits - 1)
    if form.storage.multiples:
        largest = torch.maximum(high / (half - 1), -low / half)
        return [Grid(whole_multiples(largest, form), zero, -half, half - 1)]
    if not form.is_grouped:
        scales = stored(torch.maximum(high, -low) / (half - 1), shrink, form)
        return [Grid(scale, zero, 1 - half, half - 1) for scale in scales]
    extreme = torch.where(high.abs() > low.abs(), high, low)
    signs = (-1, 1) if len(shrink) > 1 else (-1,)
    scales = stored(extreme / half, shrink, form)
    return [Grid(sign * scale, zero, -half, half - 1) for scale in scales for sign in signs]


def stored(scale: Tensor, shrink: Tensor, form: Format) -> list[Tensor]:
    """Scales times each factor of ``shrink`` as they will be stored.

    Of those that are rounded to fp16, what would leave its normal numbers by shrinking stays at
    their end.
    """
    least, most = HALF_NORMALS
    if not in_half(scale, form):
        return [(scale * factor).float().double() for factor in shrink]
    found = [(scale * factor).half().double() for factor in shrink]
    return [torch.where(s != 0, s.abs().clamp(least, most).copysign(s), s) for s in found]


def with_feedback(weight: Tensor, grid: Grid, moment: Tensor) -> Tensor:
    """Codes (N, K) of a weight (N, K), column by column with error feedback.

    Args:
        moment: (B, k, k) positive definite; the blocks' columns do not hear of each other.
    """
    width = weight.shape[1] // grid.scale.shape[1]
    codes = torch.empty_like(weight)
    start = 0
    for block in moment:
        end = start + len(block)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(block))
        factor = torch.linalg.cholesky(inverse, upper=True)
        left = weight[:, start:end].clone()
        span = min(width, 128)
        for first in range(0, len(block), span):
            last = min(first + span, len(block))
            errors = torch.empty(len(weight), last - first, dtype=weight.dtype)
            for column in range(first, last):
                group = (start + column) // width
                value = left[:, column : column + 1]
                code = grid.codes(value, group)
                codes[:, start + column] = code[:, 0]
                error = (value - grid.values(code, group)) / factor[column, column]
                left[:, column + 1 : last] -= error * factor[column, column + 1 : last]
                errors[:, column - first] = error[:, 0]
            left[:, last:] -= errors @ factor[first:last, last:]
        start = end
    return codes

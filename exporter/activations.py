"""8-bit activations: a fixed range for each layer's input, chosen on the model's own trajectories.

An input x that is rounded to 8 bits needs one range for all of its values. Where a few channels are
far louder than the rest, the range is theirs and the others lose their bits. Dividing x by a factor
for each channel and multiplying the weight's columns by it changes nothing before rounding; with
factor_j = max |x_j|^a / max |w_j|^(1 - a) the two share what is hard to round (SmoothQuant, Xiao et
al. 2023). Which a, and how much of the range's ends to give up so that its steps are finer, is
found by trying: the choice with the least squared error of the outputs for inputs that were met.

The program runs once on all samples, layer by layer, so the memory needed is one layer's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from exporter.errors import InputError
from exporter.formats import FORMATS
from exporter.quantize import Adapted, Part, QuantizedProgram, decode, encode
from exporter.trace import run_all

LINEAR = torch.ops.aten.linear.default
LEVELS = 256
TRIED_ROWS = 512  # of all inputs that a layer meets
EXPONENTS = (None, 0.25, 0.5, 0.65, 0.8)  # a; None: no factors
SHRINKS = (0.9, 0.8, 0.65, 0.5)


@dataclass(frozen=True, eq=False)
class Rounding:
    """How a layer's input x is rounded: x / ``factor``, to 256 levels from ``low`` to ``high``.

    Attributes:
        low, high: zero is one of the levels.
        factor: (K,) float32, above 0. The weight's columns are multiplied by it.
    """

    low: float
    high: float
    factor: Tensor

    @property
    def step(self) -> float:
        return (self.high - self.low) / (LEVELS - 1)

    def rounded(self, x: Tensor) -> Tensor:
        """What the layer gets for x (..., K), float32, in the units of x / ``factor``."""
        zero = round(-self.low / self.step)
        codes = torch.round(x / self.factor / self.step) + zero
        return (codes.clamp(0, LEVELS - 1) - zero) * self.step


def choose(
    program: QuantizedProgram,
    read: Callable[[object], Tensor],
    calls: Sequence[Mapping[str, np.ndarray]],
) -> dict[str, Rounding]:
    """Roundings for the linear layers whose weight has the format w8a8, by the weight's name.

    Layers with the same input share one. A layer whose input is stored in the package has none.

    Args:
        read: gives the value of a tensor source (``exporter.quantize.Weights.read``).
        calls: inputs of the program by port name, of at least one call.

    Raises InputError naming the first layer that meets a value that is not finite.
    """
    layers = _layers(program)
    first = {nodes[0]: source for source, nodes in layers.items()}
    seen: dict[fx.Node, _Seen] = {}
    found: dict[str, Rounding] = {}

    def observe(node: fx.Node, arguments: Sequence[Any]) -> None:
        if node not in first:
            return
        source = first[node]
        met = seen.setdefault(source, _Seen(-(-TRIED_ROWS // len(calls))))
        met.add(arguments[0])
        if met.calls == len(calls):
            parts = [_part(program, layer) for layer in layers[source]]
            if not met.loudest.isfinite().all():
                raise InputError(
                    f"{parts[0].of.component}: on the calibration prompts the layer of "
                    f"'{parts[0].of.name}' meets values that are not finite"
                )
            weights = [Adapted(part.of, part.methods) for part in parts]
            best = _best(seen.pop(source), lambda: map(read, weights))
            found.update({part.of.name: best for part in parts})

    samples = [{k: torch.from_numpy(np.asarray(v)) for k, v in call.items()} for call in calls]
    run_all(program, read, samples, observe)
    return found


def _layers(program: QuantizedProgram) -> dict[fx.Node, list[fx.Node]]:
    """The layers whose input is to be rounded, by the node that is their input."""
    found: dict[fx.Node, list[fx.Node]] = {}
    for node in program.nodes():
        if node.target != LINEAR:
            continue
        source, weight = node.args[:2]
        assert isinstance(source, fx.Node) and isinstance(weight, fx.Node)
        if weight.args and source.name not in program.tensors:
            part = _part(program, node)
            if part.format.name == "w8a8":
                found.setdefault(source, []).append(node)
    return found


def _part(program: QuantizedProgram, layer: fx.Node) -> Part:
    weight = layer.args[1]
    assert isinstance(weight, fx.Node)
    codes = weight.args[0]
    assert isinstance(codes, fx.Node)
    part = program.tensors[codes.name]
    assert isinstance(part, Part)
    return part


class _Seen:
    """What a layer has met: each channel's ends, and some of its inputs."""

    def __init__(self, rows_per_call: int) -> None:
        self.calls, self._rows_per_call = 0, rows_per_call
        self._places = torch.Generator().manual_seed(0)
        self._low = self._high = torch.zeros(())
        self._rows: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        rows = x.reshape(-1, x.shape[-1])
        low, high = torch.aminmax(rows, dim=0)
        self._low, self._high = torch.minimum(self._low, low), torch.maximum(self._high, high)
        order = torch.randperm(len(rows), generator=self._places)
        self._rows.append(rows[order[: self._rows_per_call]])
        self.calls += 1

    @property
    def rows(self) -> Tensor:
        return torch.cat(self._rows)

    @property
    def loudest(self) -> Tensor:
        return torch.maximum(-self._low, self._high)

    def rounding(self, factor: Tensor, shrink: float = 1.0) -> Rounding:
        """For the range of all channels over ``factor``, its ends shrunk."""
        low = float((self._low / factor).min()) * shrink
        high = float((self._high / factor).max()) * shrink
        step = (high - low) / (LEVELS - 1) or 1.0
        zero = round(-low / step)
        return Rounding(-zero * step, (LEVELS - 1 - zero) * step, factor)


def _best(met: _Seen, weights: Callable[[], Iterator[Tensor]]) -> Rounding:
    """Of the exponents the best one, then of the shrunk ranges."""
    x = met.rows
    columns = torch.stack([w.abs().amax(0) for w in weights()]).amax(0)
    factors = [_factor(met.loudest, columns, exponent) for exponent in EXPONENTS]
    best = _least([met.rounding(factor) for factor in factors], x, weights)
    shrunk = [met.rounding(best.factor, shrink) for shrink in SHRINKS]
    return _least([best, *shrunk], x, weights)


def _factor(loudest: Tensor, columns: Tensor, exponent: float | None) -> Tensor:
    """(K,): 1 for a channel, or a column, that is all zeros."""
    if exponent is None:
        return torch.ones_like(loudest)
    factor = loudest**exponent / columns ** (1 - exponent)
    return torch.where((loudest > 0) & (columns > 0), factor, 1.0)


def _least(
    candidates: Sequence[Rounding], x: Tensor, weights: Callable[[], Iterator[Tensor]]
) -> Rounding:
    """The candidate with the least squared error over the outputs of all layers for x."""
    errors = [0.0] * len(candidates)
    for weight in weights():
        exact = x @ weight.T
        for i, candidate in enumerate(candidates):
            stored = decode(encode(weight * candidate.factor, FORMATS["w8a8"]))
            errors[i] += float((candidate.rounded(x) @ stored.T - exact).square().sum())
    return candidates[min(range(len(errors)), key=errors.__getitem__)]

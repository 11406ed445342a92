"""8-bit activations: a fixed range for each layer's input, chosen on the model's own trajectories.

What is chosen becomes a part of the program (``exporter.quantize.rounded``).

An input x that is rounded to 8 bits needs one range for all of its values. Where a few channels are
far louder than the rest, the range is theirs and the others lose their bits. Dividing x by a factor
for each channel and multiplying the weight's columns by it changes nothing before rounding; with
factor_j = max |x_j|^a / max |w_j|^(1 - a) the two share what is hard to round (SmoothQuant, Xiao et
al. 2023). Which a, and how much of the range's ends to give up so that its steps are finer, is
found by trying: the choice with the least squared error of the outputs for inputs that were met.

The program runs once on all samples, layer by layer, so the memory needed is one layer's.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.nn import functional as F

from exporter.calibrate.ranges import choose_all
from exporter.errors import InputError
from exporter.program import aten
from exporter.program.run import run_all
from exporter.program.sizes import activation_bytes
from exporter.quantize.everywhere import round_everything, rounds_everything
from exporter.quantize.nearest import decode
from exporter.quantize.primitives import expanded
from exporter.quantize.program import Part, QuantizedProgram, Unrounded
from exporter.quantize.rounded import CHANNELS, RoundedInput, asked, ranging, round_inputs

ATEN = torch.ops.aten
TRIED_INPUTS = 512  # of all that a layer meets
TRIED_OUTPUTS = 512  # of all that it has, at most
EXPONENTS = (None, 0.25, 0.5, 0.65, 0.8)  # a; None: no factors
SHRINKS = (0.9, 0.8, 0.65, 0.5)
MOST_BYTES = 2 << 30  # of activations that are alive at once
WEIGHT_COPIES = 8  # that trying a rounding makes of a weight and of what it is tried on
RUNNING = 1.4  # what torch takes for each byte of activations (``benchmarks.memory``)


def choose(
    program: QuantizedProgram,
    read: Callable[[object], Tensor],
    calls: Sequence[Mapping[str, np.ndarray]],
) -> dict[str, RoundedInput]:
    """RoundedInputs for the layers whose weight has the format w8a8, by the weight's name.

    Layers with the same input share one, and so do those with the same weight: the strips of a
    feature map. A layer whose input is stored in the package has none.

    Args:
        read: gives the value of a tensor source (``exporter.calibrate.weights.Weights.read``).
        calls: inputs of the program by port name, of at least one call. Of more than fit into
            ``MOST_BYTES`` side by side, some are drawn.

    Raises InputError naming the first layer that meets a value that is not finite.
    """
    calls = _some(calls, _side_by_side(program))
    group_of: dict[fx.Node, _Group] = {}
    for layers in _sharing(program):
        group = _Group(layers, len(calls))
        group_of |= dict.fromkeys(group.readers, group)
    found: dict[str, RoundedInput] = {}

    def observe(node: fx.Node, arguments: Sequence[Any]) -> None:
        if node not in group_of:
            return
        group = group_of[node]
        group.add(node, arguments[0])
        if not group.is_whole:
            return
        for reader in group.readers:
            del group_of[reader]  # and with it, what the layers met: 1 GB of the full-size denoiser
        parts = list(dict.fromkeys(group.layers.values()))
        if not group.loudest.isfinite().all():
            raise InputError(
                f"{parts[0].of.component}: on the calibration prompts the layer of "
                f"'{parts[0].of.name}' meets values that are not finite"
            )
        weights = [Unrounded(part.of, part.methods) for part in parts]
        best = _best(group, (read(weight) for weight in weights))
        found.update({part.of.name: best for part in parts})

    samples = [{k: torch.from_numpy(np.asarray(v)) for k, v in call.items()} for call in calls]
    run_all(program, read, samples, observe)
    return found


Ranges = Callable[[str], Mapping[str, RoundedInput]]


def ranges_of(
    programs: Mapping[str, QuantizedProgram],
    read: Callable[[object], Tensor],
    calls: Callable[[str], Sequence[Mapping[str, np.ndarray]]],
) -> Ranges:
    """Gives what ``choose`` finds for a scheme's programs by graph: when first asked for, once.

    Args:
        calls: gives a graph's; asked for only if its inputs are to be rounded.
    """

    @functools.cache
    def chosen(name: str) -> Mapping[str, RoundedInput]:
        program, given = programs[name], calls(name)
        if rounds_everything(program):
            return choose_all(program, read, _some(given, _side_by_side(expanded(program))))
        return choose(program, read, given)

    return chosen


def rounded_by(
    programs: Mapping[str, QuantizedProgram], ranges: Ranges
) -> Callable[[str], QuantizedProgram]:
    """Gives a scheme's programs by graph, every input rounded that their formats ask for.

    Args:
        ranges: gives those of a graph's layers, whatever size its pictures have.
    """

    @functools.cache
    def rounded(name: str) -> QuantizedProgram:
        program = programs[name]
        if rounds_everything(program):
            return round_everything(program, ranges(name))
        return round_inputs(program, ranges(name)) if asked(program) else program

    return rounded


def rounder(
    programs: Mapping[str, QuantizedProgram],
    read: Callable[[object], Tensor],
    calls: Callable[[str], Sequence[Mapping[str, np.ndarray]]],
) -> Callable[[str], QuantizedProgram]:
    """``rounded_by`` the ranges that these programs' own calls ask for."""
    return rounded_by(programs, ranges_of(programs, read, calls))


def bytes_to_choose(program: QuantizedProgram, calls: int) -> int:
    """Most bytes of tensors that choosing ranges holds at once: 0 where nothing is rounded.

    The calls themselves, the activations of those that run side by side, and the largest weight in
    float32 with what is made of it while it is tried.
    """
    names = asked(program)
    if rounds_everything(program):
        program, names = expanded(program), set[str]()  # no weight is tried
    elif not names:
        return 0
    one, inputs = activation_bytes(program), sum(4 * math.prod(p.shape) for p in program.inputs)
    weight = max((4 * math.prod(program.stored()[name].shape) for name in names), default=0)
    alive = RUNNING * one * min(calls, _side_by_side(program))
    return int(calls * inputs + alive + WEIGHT_COPIES * weight)


def _side_by_side(program: QuantizedProgram) -> int:
    return max(1, MOST_BYTES // activation_bytes(program))


def _some(
    calls: Sequence[Mapping[str, np.ndarray]], most: int
) -> Sequence[Mapping[str, np.ndarray]]:
    if len(calls) <= most:
        return calls
    order = torch.randperm(len(calls), generator=torch.Generator().manual_seed(0))
    return [calls[i] for i in sorted(order[:most].tolist())]


def _sharing(program: QuantizedProgram) -> list[dict[fx.Node, Part]]:
    """The layers whose input is to be rounded, and their weights; those that are to share a
    rounding together."""
    found: list[tuple[set[object], dict[fx.Node, Part]]] = []
    for node in program.nodes():
        if node.target not in CHANNELS:
            continue
        source, weight = node.args[:2]
        assert isinstance(source, fx.Node) and isinstance(weight, fx.Node)
        part = program.part(weight)
        if part is None or not part.format.rounds_inputs or source.name in program.tensors:
            continue
        keys, layers = {source, part.of}, {node: part}
        for other in [one for one in found if one[0] & keys]:
            found.remove(other)
            keys, layers = other[0] | keys, other[1] | layers
        found.append((keys, layers))
    return [layers for _, layers in found]


class _Group:
    """Layers that share a rounding, and what they met: each channel's ends, and some inputs.

    Attributes:
        layers: each with its weight.
        readers: one layer for each distinct input and size of kernel.
    """

    def __init__(self, layers: Mapping[fx.Node, Part], calls: int) -> None:
        self.layers = layers
        distinct = {(layer.args[0], part.of.shape[2:]): layer for layer, part in layers.items()}
        self.readers = list(distinct.values())
        self._left = calls * len(self.readers)
        self._each = -(-TRIED_INPUTS // self._left)
        self._places = torch.Generator().manual_seed(0)
        self._low = self._high = torch.zeros(())
        self._tried: dict[int, list[Tensor]] = {}

    def add(self, layer: fx.Node, x: Tensor) -> None:
        """Another input of a layer, (1, ..., K) of a linear one, (1, K, h, w) of a convolution."""
        others = _all_but(CHANNELS[layer.target], x.ndim)
        low, high = x.amin(others), x.amax(others)
        self._low, self._high = torch.minimum(self._low, low), torch.maximum(self._high, high)
        if x.ndim == 4:
            tried = _patches(layer, x, self._each, self._places)
        else:
            rows = x.reshape(-1, x.shape[-1], 1)
            tried = rows[torch.randperm(len(rows), generator=self._places)[: self._each]]
        self._tried.setdefault(tried.shape[2], []).append(tried)
        self._left -= 1

    @property
    def is_whole(self) -> bool:
        return self._left == 0

    def tried(self, taps: int) -> Tensor:
        """(n, K, taps): what single outputs of kernels of so many values are made of."""
        return torch.cat(self._tried[taps])

    @property
    def loudest(self) -> Tensor:
        """(K,): each channel's largest magnitude."""
        return torch.maximum(-self._low, self._high)

    def rounding(self, factor: Tensor, shrink: float = 1.0) -> RoundedInput:
        """For the range of all channels over ``factor``, its ends shrunk."""
        low = float((self._low / factor).min()) * shrink
        high = float((self._high / factor).max()) * shrink
        return ranging(low, high, factor)


def _patches(layer: fx.Node, x: Tensor, count: int, places: torch.Generator) -> Tensor:
    """(count, K, taps): what a convolution reads for outputs at random places."""
    _, strides, (above, left) = aten.convolution(layer)
    kernel, outputs = aten.shape(layer.args[1])[2:], aten.shape(layer)[2:]
    padded = F.pad(x, (left, left, above, above))[0]
    found = []
    for _ in range(count):
        top, first = (
            stride * int(torch.randint(size, (1,), generator=places))
            for stride, size in zip(strides, outputs, strict=True)
        )
        patch = padded[:, top : top + kernel[0], first : first + kernel[1]]
        found.append(patch.flatten(1))
    return torch.stack(found)


def _all_but(axis: int, rank: int) -> tuple[int, ...]:
    return tuple(i for i in range(rank) if i != axis % rank)


def _best(group: _Group, weights: Iterator[Tensor]) -> RoundedInput:
    """Of the exponents the best one, then of the shrunk ranges."""
    columns, tried = torch.zeros(()), []
    for weight in weights:
        columns = torch.maximum(columns, weight.abs().amax(_all_but(1, weight.ndim)))
        tried.append(weight[:: -(-len(weight) // TRIED_OUTPUTS)].clone())
    factors = [_factor(group.loudest, columns, exponent) for exponent in EXPONENTS]
    best = _least(group, [group.rounding(factor) for factor in factors], tried)
    shrunk = [group.rounding(best.factor, shrink) for shrink in SHRINKS]
    return _least(group, [best, *shrunk], tried)


def _factor(loudest: Tensor, columns: Tensor, exponent: float | None) -> Tensor:
    """(K,): 1 for a channel, or a column, that is all zeros."""
    if exponent is None:
        return torch.ones_like(loudest)
    factor = loudest**exponent / columns ** (1 - exponent)
    return torch.where((loudest > 0) & (columns > 0), factor, 1.0)


def _least(
    group: _Group, candidates: Sequence[RoundedInput], weights: Sequence[Tensor]
) -> RoundedInput:
    """The candidate with the least squared error over the outputs of all layers."""
    errors = [0.0] * len(candidates)
    for weight in weights:
        tried = group.tried(weight[0, 0].numel())
        exact = tried.flatten(1) @ weight.flatten(1).T
        for i, candidate in enumerate(candidates):
            stored = decode(candidate.stored(weight)).flatten(1)
            rounded = candidate.rounded(tried, 1).flatten(1)
            errors[i] += float((rounded @ stored.T - exact).square().sum())
    return candidates[min(range(len(errors)), key=errors.__getitem__)]

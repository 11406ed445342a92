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

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.nn import functional as F

from exporter.errors import InputError
from exporter.package.manifest import Adjusted, Tolerance
from exporter.program import aten
from exporter.program.run import run_all
from exporter.program.sizes import activation_bytes
from exporter.quantize.formats import FORMATS
from exporter.quantize.nearest import Encoded, decode, encode
from exporter.quantize.program import Adapted, Part, QuantizedProgram

# A loss that the torch program does not have; it is reported, not hidden.
TOLERANCE = Tolerance(graph_relative=0.25, image_psnr_db=20.0)
ATEN = torch.ops.aten
CHANNELS: dict[Any, int] = {ATEN.linear.default: -1, ATEN.conv2d.default: 1}  # their axis of x
LEVELS = 256
TRIED_INPUTS = 512  # of all that a layer meets
TRIED_OUTPUTS = 512  # of all that it has, at most
EXPONENTS = (None, 0.25, 0.5, 0.65, 0.8)  # a; None: no factors
SHRINKS = (0.9, 0.8, 0.65, 0.5)
MOST_BYTES = 2 << 30  # of activations that are alive at once
WEIGHT_COPIES = 8  # that trying a rounding makes of a weight and of what it is tried on
RUNNING = 1.4  # what torch takes for each byte of activations (``benchmarks.memory``)


@dataclass(frozen=True, eq=False)
class Rounding:
    """How a layer's input x is rounded: x / ``factor``, to 256 levels from ``low`` to ``high``.

    Attributes:
        low, high: zero is one of the levels.
        factor: (K,) float32, above 0, for each channel. The weight's columns are multiplied by it.
    """

    low: float
    high: float
    factor: Tensor

    @property
    def step(self) -> float:
        return (self.high - self.low) / (LEVELS - 1)

    @property
    def zero_point(self) -> int:
        """The level that stands for 0."""
        return round(-self.low / self.step)

    @property
    def has_factors(self) -> bool:
        return bool((self.factor != 1).any())

    def rounded(self, x: Tensor, axis: int = -1) -> Tensor:
        """What the layer gets for x, with K channels along ``axis``: in the units of x / factor."""
        codes = torch.round(x / along(self.factor, x.ndim, axis) / self.step) + self.zero_point
        return (codes.clamp(0, LEVELS - 1) - self.zero_point) * self.step

    def stored(self, weight: Tensor) -> Encoded:
        """A weight (N, K, ...) in int8, its columns multiplied by the factors."""
        return encode(weight * along(self.factor, weight.ndim, 1), FORMATS["w8a8"])


def along(factor: Tensor, rank: int, axis: int) -> Tensor:
    """(K,) -> (1, ..., K, ..., 1), with K in the place of ``axis``."""
    shape = [1] * rank
    shape[axis] = -1
    return factor.reshape(shape)


def choose(
    program: QuantizedProgram,
    read: Callable[[object], Tensor],
    calls: Sequence[Mapping[str, np.ndarray]],
) -> dict[str, Rounding]:
    """Roundings for the layers whose weight has the format w8a8, by the weight's name.

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
    found: dict[str, Rounding] = {}

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
        weights = [Adapted(part.of, part.methods) for part in parts]
        best = _best(group, (read(weight) for weight in weights))
        found.update({part.of.name: best for part in parts})

    samples = [{k: torch.from_numpy(np.asarray(v)) for k, v in call.items()} for call in calls]
    run_all(program, read, samples, observe)
    return found


def chooser(
    read: Callable[[object], Tensor],
    calls: Callable[[str], Sequence[Mapping[str, np.ndarray]]],
) -> Callable[[QuantizedProgram], Mapping[str, Rounding]]:
    """``choose`` once for each graph of a scheme, for all backends; none without w8a8.

    Args:
        calls: gives a graph's; asked for only if its inputs are to be rounded.
    """
    found: dict[str, Mapping[str, Rounding]] = {}

    def roundings(program: QuantizedProgram) -> Mapping[str, Rounding]:
        name = program.name
        if name not in found:
            found[name] = choose(program, read, calls(name)) if asked(program) else {}
        return found[name]

    return roundings


def rounding_of(
    program: QuantizedProgram, roundings: Mapping[str, Rounding], weight: object
) -> Rounding | None:
    """How the layer of a weight's node rounds its input, or None."""
    part = program.part(weight) if isinstance(weight, fx.Node) else None
    return roundings.get(part.of.name) if part is not None else None


def rounded_weight(
    program: QuantizedProgram, read: Callable[[object], Tensor], weight: object, rounding: Rounding
) -> tuple[Tensor, Tensor]:
    """The codes (N, K, ...) int8 and scales (N,) float32 of a weight's node."""
    part = program.part(weight) if isinstance(weight, fx.Node) else None
    assert part is not None
    stored = rounding.stored(read(Adapted(part.of, part.methods)).float())
    assert stored.scale is not None
    return stored.values, stored.scale.flatten()


def asked(program: QuantizedProgram) -> set[str]:
    """The weights whose layers' inputs are to be rounded: those of the format w8a8."""
    return {name for name, form in program.formats.items() if form.rounds_inputs}


def not_rounded(
    program: QuantizedProgram, roundings: Mapping[str, Rounding]
) -> tuple[Adjusted, ...]:
    """Weights of the format w8a8 whose layer's input is not rounded: they are int8 alone."""
    left = asked(program) - {*roundings}
    return tuple(Adjusted(name, "w8a8", "int8") for name in sorted(left))


def spared(program: QuantizedProgram, roundings: Mapping[str, Rounding]) -> tuple[str, ...]:
    """What to remark of a graph with rounded inputs: which layers keep theirs."""
    weights = (name for name, source in program.stored().items() if len(source.shape) in (2, 4))
    names = [name for name in weights if roundings and name not in asked(program)]
    return (f"inputs not rounded to 8 bits: {', '.join(names)}",) if names else ()


def bytes_to_choose(program: QuantizedProgram, calls: int) -> int:
    """Most bytes of tensors that ``choose`` holds at once: 0 without layers of w8a8.

    The calls themselves, the activations of those that run side by side, and the largest weight in
    float32 with what is made of it while it is tried.
    """
    names = asked(program)
    if not names:
        return 0
    one, inputs = activation_bytes(program), sum(4 * math.prod(p.shape) for p in program.inputs)
    weight = max(4 * math.prod(program.stored()[name].shape) for name in names)
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

    def rounding(self, factor: Tensor, shrink: float = 1.0) -> Rounding:
        """For the range of all channels over ``factor``, its ends shrunk."""
        low = float((self._low / factor).min()) * shrink
        high = float((self._high / factor).max()) * shrink
        step = (high - low) / (LEVELS - 1) or 1.0
        zero = round(-low / step)
        return Rounding(-zero * step, (LEVELS - 1 - zero) * step, factor)


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


def _best(group: _Group, weights: Iterator[Tensor]) -> Rounding:
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


def _least(group: _Group, candidates: Sequence[Rounding], weights: Sequence[Tensor]) -> Rounding:
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

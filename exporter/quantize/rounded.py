"""Layers that round their input: the rounding as a node of the program.

A layer of the format w8a8 reads its input in 8 bits. The range is chosen on the model's own
trajectories (``exporter.calibrate.activations``); from then on it is part of the program, so that
golden outputs, plans and every backend compute with it. Dividing an input's channels by factors and
multiplying the weight's columns by them changes nothing before rounding, and shares what is hard
to round between the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from exporter.errors import InputError
from exporter.network.operators import round_input
from exporter.package.manifest import Adjusted
from exporter.program.program import Constant
from exporter.quantize.formats import FORMATS
from exporter.quantize.nearest import Encoded, encode
from exporter.quantize.program import Part, QuantizedProgram

ATEN = torch.ops.aten
ROUND_INPUT = torch.ops.fourstep.round_input.default
CHANNELS: dict[Any, int] = {ATEN.linear.default: -1, ATEN.conv2d.default: 1}  # their axis of x


@dataclass(frozen=True, eq=False)
class RoundedInput:
    """How a layer's input x is rounded: x / ``factor``, to 2^bits levels.

    Attributes:
        step: between two levels; a float32.
        zero_point: the level that stands for 0.
        factor: (K,) float32, above 0, for each channel. The weight's columns are multiplied by it.
    """

    step: float
    zero_point: int
    factor: Tensor
    bits: int = 8

    @property
    def low(self) -> float:
        return -self.zero_point * self.step

    @property
    def high(self) -> float:
        most: int = 2**self.bits - 1
        return (most - self.zero_point) * self.step

    @property
    def inverse_factor(self) -> Tensor | None:
        """(K,) float32, or None where all factors are 1."""
        return 1 / self.factor if bool((self.factor != 1).any()) else None

    def rounded(self, x: Tensor, axis: int = -1) -> Tensor:
        """What the layer gets for x, with K channels along ``axis``: in the units of x / factor."""
        inverse, zero = self.inverse_factor, self.zero_point
        found: Tensor = round_input(x, inverse, self.step, zero, self.bits, axis)
        return found

    def stored(self, weight: Tensor) -> Encoded:
        """A weight (N, K, ...) in int8, its columns multiplied by the factors."""
        return encode(weight * along(self.factor, weight.ndim, 1), FORMATS["w8a8"])


def ranging(low: float, high: float, factor: Tensor, bits: int = 8) -> RoundedInput:
    """Levels that reach from ``low`` to ``high``, one of them 0."""
    step = float(np.float32((high - low) / (2**bits - 1))) or 1.0
    return RoundedInput(step, round(-low / step), factor, bits)


def along(factor: Tensor, rank: int, axis: int) -> Tensor:
    """(K,) -> (1, ..., K, ..., 1), with K in the place of ``axis``."""
    shape = [1] * rank
    shape[axis] = -1
    return factor.reshape(shape)


def asked(program: QuantizedProgram) -> set[str]:
    """The weights whose layers' inputs are to be rounded: those of the format w8a8."""
    return {name for name, form in program.formats.items() if form.rounds_inputs}


def round_inputs(program: QuantizedProgram, chosen: Mapping[str, RoundedInput]) -> QuantizedProgram:
    """The program with a node in front of each layer whose input is rounded.

    Layers that read the same input share a node if they share a rounding. A weight of the format
    w8a8 that ``chosen`` lacks becomes int8, and is listed among ``adjusted``.

    Args:
        chosen: by the weight's name.
    """
    left = asked(program) - {*chosen}
    columns = {r: Constant(r.factor.numpy()) for r in dict.fromkeys(chosen.values())}
    graph, env = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in program.graph.nodes:
        if node.op == "placeholder":
            env[node] = _copied(graph, node, env)
    tensors = {
        name: _unrounded(source, chosen, columns, left) for name, source in program.tensors.items()
    }
    factors: dict[RoundedInput, fx.Node | None] = {}
    for number, rounding in enumerate(columns):
        inverse = rounding.inverse_factor
        factors[rounding] = None
        if inverse is not None:
            name = f"inverse_factor_{number}"
            place = graph.placeholder(name)
            place.name, place.meta["val"] = name, inverse.to("meta")
            tensors[name], factors[rounding] = Constant(inverse.numpy()), place
    made: dict[tuple[fx.Node, RoundedInput], fx.Node] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            continue
        env[node] = _copied(graph, node, env)
        part = program.part(node.args[1]) if node.target in CHANNELS else None
        if part is None or not part.format.rounds_inputs or part.of.name in left:
            continue
        x, wanted = node.args[0], chosen[part.of.name]
        if (x, wanted) not in made:
            with graph.inserting_before(env[node]):
                made[x, wanted] = _rounded(graph, env[x], wanted, factors[wanted], node)
        env[node].update_arg(0, made[x, wanted])
    return replace(
        program,
        graph=graph,
        tensors=tensors,
        formats={n: FORMATS["int8"] if n in left else f for n, f in program.formats.items()},
        adjusted=(*program.adjusted, *(Adjusted(n, "w8a8", "int8") for n in sorted(left))),
    )


def _copied(graph: fx.Graph, node: fx.Node, env: Mapping[fx.Node, fx.Node]) -> fx.Node:
    return graph.node_copy(node, lambda n: env[n])


def _unrounded(
    source: object,
    chosen: Mapping[str, RoundedInput],
    columns: Mapping[RoundedInput, Constant],
    left: set[str],
) -> object:
    """A tensor's source once its layer rounds its input, or does not after all."""
    if not isinstance(source, Part) or not source.format.rounds_inputs:
        return source
    if source.of.name in left:
        return replace(source, format=FORMATS["int8"])
    rounding = chosen[source.of.name]
    return replace(source, columns=columns[rounding])


def _rounded(
    graph: fx.Graph, x: fx.Node, rounding: RoundedInput, inverse: fx.Node | None, layer: fx.Node
) -> fx.Node:
    given = (x, inverse, rounding.step, rounding.zero_point, rounding.bits, CHANNELS[layer.target])
    node = graph.call_function(ROUND_INPUT, given)
    node.meta["val"] = x.meta["val"]
    return node


@dataclass(frozen=True)
class RoundingNode:
    """The arguments of a ``fourstep::round_input`` node, by name."""

    x: fx.Node
    inverse_factor: fx.Node | None
    step: float
    zero_point: int
    bits: int
    axis: int

    @property
    def levels(self) -> int:
        return int(2**self.bits)


def rounding_node(node: object) -> RoundingNode | None:
    """A node's arguments if it rounds the input of a layer, else None."""
    if not isinstance(node, fx.Node) or node.target is not ROUND_INPUT:
        return None
    return RoundingNode(*node.args)  # type: ignore[arg-type]


def rounded_layer(program: QuantizedProgram, layer: fx.Node) -> RoundingNode | None:
    """How a layer whose weight is int8 rounds its input to 8 bits; None for any other layer.

    Raises InputError for a weight of the format w8a8 for whose layer no range was chosen.
    """
    if layer.target not in CHANNELS:
        return None
    weight = layer.args[1]
    part = program.part(weight) if isinstance(weight, fx.Node) else None
    if part is None or not part.format.rounds_inputs:
        return None
    found = rounding_node(layer.args[0])
    if found is None:
        raise InputError(
            f"{program.name}: no range was chosen for the input of '{part.of.name}' (w8a8); "
            "round the program's inputs before it is emitted"
        )
    return found if found.bits == 8 else None


def spared(program: QuantizedProgram) -> tuple[str, ...]:
    """What to remark of a graph with rounded inputs: which layers keep theirs."""
    rounds = asked(program)
    weights = (name for name, source in program.stored().items() if len(source.shape) in (2, 4))
    names = [name for name in weights if rounds and name not in rounds]
    return (f"inputs not rounded to 8 bits: {', '.join(names)}",) if names else ()

"""A traced graph: operators, and for every tensor the place that its value comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import fx

from exporter.network.graph import Derivation
from exporter.package.manifest import Port

ATEN = torch.ops.aten


@dataclass(frozen=True)
class Stored:
    """A tensor of the checkpoint, read as float32, or what is derived from it."""

    component: str
    name: str
    shape: tuple[int, ...]
    derivation: Derivation | None = None


@dataclass(frozen=True, eq=False)
class Constant:
    """A value that the schedule or the shapes decide."""

    value: np.ndarray


@dataclass(frozen=True, eq=False)
class Folded:
    """A value that text encoders give for a text that is fixed; computed when it is read.

    Attributes:
        compute: gives it, float32; the same array every time.
    """

    shape: tuple[int, ...]
    compute: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Program:
    """A traced graph.

    Attributes:
        graph: operators; its placeholders are the inputs in order, then the tensors.
        tensors: where the value of each tensor placeholder comes from, by placeholder name.
    """

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    graph: fx.Graph = field(repr=False)
    tensors: Mapping[str, object] = field(repr=False)

    def nodes(self) -> list[fx.Node]:
        """The operator nodes, in order."""
        return [n for n in self.graph.nodes if n.op == "call_function"]

    def feeds(self) -> tuple[fx.Node, ...]:
        """The nodes whose values are the inputs, in order."""
        placeholders = (n for n in self.graph.nodes if n.op == "placeholder")
        return tuple(n for n in placeholders if n.name not in self.tensors)

    def varying(self) -> set[fx.Node]:
        """The nodes whose values depend on the inputs, and the inputs."""
        found = set(self.feeds())
        for node in self.nodes():
            if any(argument in found for argument in node.all_input_nodes):
                found.add(node)
        return found

    def fold(self, values: Mapping[str, Callable[[], np.ndarray]]) -> Program:
        """The same with inputs of these names known: what gives them is asked when it is read."""
        folded = {
            node.name: Folded(port.shape, values[port.name])
            for node, port in zip(self.feeds(), self.inputs, strict=True)
            if port.name in values
        }
        left = tuple(port for port in self.inputs if port.name not in values)
        return replace(self, inputs=left, tensors={**self.tensors, **folded})

    def results(self) -> tuple[fx.Node, ...]:
        """The nodes whose values are the outputs, in order."""
        (output,) = (n for n in self.graph.nodes if n.op == "output")
        return tuple(output.args[0])


MOST_ROWS = 8  # a layer that meets at most so many rows has a mean for each of them


def linears(program: Program) -> dict[fx.Node, Stored]:
    """The linear layers whose weight the checkpoint holds, and that weight."""
    found = {}
    for node in program.nodes():
        if node.target == ATEN.linear.default:
            weight = node.args[1]
            assert isinstance(weight, fx.Node)
            source = program.tensors.get(weight.name)
            if isinstance(source, Stored):
                found[node] = source
    return found

"""Stop 3, trace: a graph on the meta device becomes a program, still without weights.

``torch.export`` gives the operators; a ``Program`` names, for every tensor that is not an input,
the place its value will come from. It is the one source for every backend, and it runs in torch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from exporter.errors import InputError
from exporter.graphs import Derivation, Graph, Port

ITEM_BYTES = {torch.float32: 4, torch.int32: 4, torch.int64: 8, torch.bool: 1}


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

    def results(self) -> tuple[fx.Node, ...]:
        """The nodes whose values are the outputs, in order."""
        (output,) = (n for n in self.graph.nodes if n.op == "output")
        return tuple(output.args[0])


def trace(graph: Graph) -> Program:
    """Trace a graph; takes no memory for weights. Same graph in, same program out."""
    inputs = tuple(
        torch.empty(p.shape, dtype=getattr(torch, p.dtype), device="meta") for p in graph.inputs
    )
    logging.getLogger("torch.export").setLevel(logging.ERROR)
    with torch.no_grad():
        exported = torch.export.export(graph.module.eval(), inputs, strict=False)
    signature = exported.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    shapes = {n.name: tuple(n.meta["val"].shape) for n in exported.graph.nodes if n.name in names}
    tensors: dict[str, object] = {
        place: Constant(graph.constants[name])
        if name in graph.constants
        else Stored(graph.component, name, shapes[place], graph.derived.get(name))
        for place, name in names.items()
    }
    return Program(
        graph.name, graph.inputs, graph.outputs, _inputs_first(exported.graph, names), tensors
    )


def _inputs_first(graph: fx.Graph, tensors: Mapping[str, str]) -> fx.Graph:
    """A copy with the inputs ahead of the tensors and without unused or empty operators."""
    copy, env = fx.Graph(), dict[fx.Node, fx.Node]()
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    for node in sorted(placeholders, key=lambda n: n.name in tensors):
        env[node] = copy.node_copy(node, lambda n: env[n])
    for node in graph.nodes:
        if node.op == "placeholder":
            continue
        if node.op == "get_attr":
            raise InputError(f"internal: {node.target} was traced as an attribute")
        if node.target is torch.ops.aten.alias.default:  # a slice of everything
            env[node] = env[node.args[0]]
            continue
        env[node] = copy.node_copy(node, lambda n: env[n])
    copy.eliminate_dead_code()
    for node in copy.nodes:
        for key in set(node.meta) - {"val"}:  # stack traces name this machine's files
            del node.meta[key]
    return copy


def bind(program: Program, shape_of: Callable[[Stored], tuple[int, ...]]) -> None:
    """Check every stored tensor's shape against the checkpoint; raises InputError."""
    for source in program.tensors.values():
        if not isinstance(source, Stored):
            continue
        found, expected = shape_of(source), source.shape
        if source.derivation is not None:
            expected = source.derivation.stored_shape(source.shape)
        if found != expected:
            raise InputError(
                f"{source.component}: tensor '{source.name}' has shape {list(found)}; "
                f"config.json implies {list(expected)}"
            )


Observe = Callable[[fx.Node, Sequence[Any]], None]


def run(
    program: Program, read: Callable[[object], Tensor], inputs: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Run a program in torch, reading each tensor when it is first needed and dropping it after.

    Args:
        read: gives the value of a tensor source (``exporter.quantize.Weights.read``).
        inputs: by port name.

    Returns:
        The outputs by port name.
    """
    return run_all(program, read, [inputs])[0]


def run_all(
    program: Program,
    read: Callable[[object], Tensor],
    samples: Sequence[Mapping[str, Tensor]],
    observe: Observe = lambda node, arguments: None,
) -> list[dict[str, Tensor]]:
    """Run a program on several samples side by side, operator by operator.

    Each tensor is read once, whatever the number of samples, and all samples have passed an
    operator before the next one runs: what is measured at one layer is complete there.

    Args:
        samples: inputs by port name.
        observe: called before each operator of each sample with its node and its arguments.

    Returns:
        The outputs of each sample by port name.
    """
    order = last_uses(program.graph)
    feeds = list(zip(program.feeds(), program.inputs, strict=True))
    shared: dict[fx.Node, Any] = {}
    alive: list[dict[fx.Node, Any]] = [{n: s[port.name] for n, port in feeds} for s in samples]

    with torch.no_grad():
        for node in program.nodes():
            for argument in node.all_input_nodes:
                if argument.name in program.tensors and argument not in shared:
                    shared[argument] = read(program.tensors[argument.name])
            for env in alive:
                env[node] = apply(node, env, shared, observe)
            for argument in node.all_input_nodes:
                if order[argument] is node:
                    for env in (shared, *alive):
                        env.pop(argument, None)
    names = [p.name for p in program.outputs]
    return [dict(zip(names, (env[n] for n in program.results()), strict=True)) for env in alive]


def apply(
    node: fx.Node,
    env: Mapping[fx.Node, Any],
    shared: Mapping[fx.Node, Any],
    observe: Observe = lambda node, arguments: None,
) -> Any:
    """The value of an operator node; its arguments' values are in ``env`` or in ``shared``."""

    def value(argument: fx.Node) -> Any:
        return env[argument] if argument in env else shared[argument]

    args, kwargs = fx.map_arg((node.args, node.kwargs), value)
    observe(node, args)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def last_uses(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """For every node that is used, the last node that uses it."""
    return {argument: node for node in graph.nodes for argument in node.all_input_nodes}


def activation_bytes(program: Program) -> int:
    """Most bytes of activations alive at once when the operators run in order.

    Views count nothing; tensors of the package count nothing. An upper bound that a backend's
    planner, which reuses and fuses, should stay under.
    """
    last_use: dict[fx.Node, int] = {}
    order = {node: i for i, node in enumerate(program.graph.nodes)}
    for node in program.graph.nodes:
        for argument in node.all_input_nodes:
            last_use[argument] = order[node]
    sizes = {n: _bytes(n) for n in program.nodes()}
    alive = peak = sum(int(np.prod(p.shape)) * 4 for p in program.inputs)
    ends: dict[int, int] = {}
    for node in program.nodes():
        alive += sizes[node]
        peak = max(peak, alive)
        end = last_use.get(node, len(order))
        ends[end] = ends.get(end, 0) + sizes[node]
        alive -= ends.pop(order[node], 0)
    return peak


VIEWS = ("view", "reshape", "unflatten", "flatten", "unsqueeze", "select", "split", "getitem")


def _bytes(node: fx.Node) -> int:
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or any(v in str(node.target) for v in VIEWS):
        return 0
    if "dequantize" in str(node.target):
        return 0
    return value.numel() * ITEM_BYTES.get(value.dtype, 4)

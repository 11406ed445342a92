"""Runs programs in torch, operator by operator, each tensor read when it is first needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from exporter.program.program import Program

Observe = Callable[[fx.Node, Sequence[Any]], None]


def run(
    program: Program, read: Callable[[object], Tensor], inputs: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Run a program in torch, reading each tensor when it is first needed and dropping it after.

    Args:
        read: gives the value of a tensor source (``exporter.calibrate.weights.Weights.read``).
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
    found: Callable[[fx.Node, Any], None] = lambda node, value: None,
) -> list[dict[str, Tensor]]:
    """Run a program on several samples side by side, operator by operator.

    Each tensor is read once, whatever the number of samples, and all samples have passed an
    operator before the next one runs: what is measured at one layer is complete there.

    Args:
        samples: inputs by port name.
        observe: called before each operator of each sample with its node and its arguments.
        found: called behind it with its node and its value.

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
                found(node, env[node])
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


def constant_value(program: Program, read: Callable[[object], Tensor], node: fx.Node) -> Tensor:
    """The value of a node that depends on no input."""
    if node.op == "placeholder":
        return read(program.tensors[node.name])
    values = {n: constant_value(program, read, n) for n in node.all_input_nodes}
    value: Tensor = apply(node, values, {})
    return value

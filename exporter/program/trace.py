"""Stop 3, trace: a graph on the meta device becomes a program, still without weights.

``torch.export`` gives the operators; a ``Program`` names, for every tensor that is not an input,
the place its value will come from. It is the one source for every backend, and it runs in torch.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import fx

from exporter.errors import InputError
from exporter.network.graph import Graph
from exporter.program.normalise import normalise
from exporter.program.program import Constant, Program, Stored


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
    """A normalised copy with the inputs ahead of the tensors."""
    copy, env = fx.Graph(), dict[fx.Node, fx.Node]()
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    for node in sorted(placeholders, key=lambda n: n.name in tensors):
        env[node] = copy.node_copy(node, lambda n: env[n])
    for node in graph.nodes:
        if node.op == "placeholder":
            continue
        if node.op == "get_attr":
            raise InputError(f"internal: {node.target} was traced as an attribute")
        env[node] = copy.node_copy(node, lambda n: env[n])
    normalise(copy)
    for node in copy.nodes:
        for key in set(node.meta) - {"val"}:  # stack traces name this machine's files
            del node.meta[key]
    return copy

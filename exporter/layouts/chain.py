"""Programs run one behind the other, as one program: a layout's graph made of native ones.

Nothing is quantized again. The parts keep their codes, their formats and their rounded inputs, so
whatever layout a weight is written in, it has the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from exporter.package.manifest import Port
from exporter.quantize.program import QuantizedProgram


@dataclass(frozen=True)
class Link:
    """A program of a chain.

    Attributes:
        program: what runs.
        inputs: for each of its ports the name of the value that it gets.
        outputs: for each of its ports what its value is called from then on.
    """

    program: QuantizedProgram
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


def chain(
    name: str, inputs: Sequence[Port], links: Sequence[Link], outputs: Mapping[str, str]
) -> QuantizedProgram:
    """One program of several.

    Args:
        inputs: of the whole; their values go by their names.
        outputs: of the whole, the name of a value by the name of a port.
    """
    graph, tensors = fx.Graph(), dict[str, object]()
    values: dict[str, fx.Node] = {}
    ports: dict[str, Port] = {}
    for port in inputs:
        values[port.name] = _input(graph, port)
        ports[port.name] = port
    placed = [_place_tensors(graph, i, link.program, tensors) for i, link in enumerate(links)]
    for i, (link, env) in enumerate(zip(links, placed, strict=True)):
        program = link.program
        for node, port in zip(program.feeds(), program.inputs, strict=True):
            env[node] = values[link.inputs[port.name]]
        for node in program.nodes():
            env[node] = graph.node_copy(node, lambda n, env=env: env[n])  # type: ignore[misc]
            env[node].name = f"{node.name}_of_{i}"
        for node, port in zip(program.results(), program.outputs, strict=True):
            values[link.outputs[port.name]] = env[node]
            ports[link.outputs[port.name]] = port
    graph.output(tuple(values[value] for value in outputs.values()))
    programs = [link.program for link in links]
    return QuantizedProgram(
        name,
        tuple(inputs),
        tuple(
            Port(port, ports[value].shape, ports[value].dtype) for port, value in outputs.items()
        ),
        graph,
        tensors,
        {key: form for program in programs for key, form in program.formats.items()},
        tuple(entry for program in programs for entry in program.adjusted),
        frozenset().union(*(program.methods for program in programs)),
    )


def _input(graph: fx.Graph, port: Port) -> fx.Node:
    node = graph.placeholder(port.name)
    dtype = getattr(torch, port.dtype)
    node.meta["val"] = torch.empty(port.shape, dtype=dtype, device="meta")
    return node


def _place_tensors(
    graph: fx.Graph, number: int, program: QuantizedProgram, tensors: dict[str, object]
) -> dict[fx.Node, fx.Node]:
    """Placeholders for the tensors of a link, under names that no other link has."""
    env: dict[fx.Node, fx.Node] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in program.tensors:
            name = f"{node.name}_of_{number}"
            env[node] = graph.placeholder(name)
            env[node].name, env[node].meta["val"] = name, node.meta["val"]
            tensors[name] = program.tensors[node.name]
    return env

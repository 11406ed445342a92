"""A program cut in front of every rounding: each stretch of it meets what the program met there.

A value between two levels falls to either by the last digit of a float, and all that comes behind
is computed from the level, so a whole graph differs between engines by more than its operators do
(``exporter.build.golden.allowances``). Stretch by stretch nothing of that is left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, fx

from exporter.package.manifest import Port
from exporter.program.run import run_all
from exporter.quantize.program import QuantizedProgram
from exporter.quantize.rounded import rounding_node


def layer_by_layer(
    program: QuantizedProgram, read: Callable[[object], Tensor], inputs: Mapping[str, Tensor]
) -> tuple[QuantizedProgram, dict[str, Tensor]]:
    """The program with an input in place of every value that is rounded and that value as an
    output; and the inputs for it: those given, and what the program computes."""
    met: dict[fx.Node, Tensor] = {}

    def observe(node: fx.Node, arguments: Sequence[Any]) -> None:
        rounding = rounding_node(node)
        if rounding is not None and rounding.x not in program.feeds():
            met[rounding.x] = arguments[0]

    run_all(program, read, [inputs], observe)
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    places: dict[fx.Node, fx.Node] = {}
    for i, x in enumerate(met):
        places[x] = graph.placeholder(f"met_{i}")
        places[x].meta["val"] = x.meta["val"]
    ports = [Port(place.name, tuple(met[x].shape)) for x, place in places.items()]
    for node in program.graph.nodes:
        if node.op == "output":
            break
        rounds = rounding_node(node) is not None
        taken = copies | places if rounds else copies
        copies[node] = graph.node_copy(node, lambda n, taken=taken: taken[n])  # type: ignore[misc]
    graph.output((*(copies[n] for n in program.results()), *(copies[x] for x in met)))
    made = [Port(f"made_{i}", port.shape) for i, port in enumerate(ports)]
    cut = replace(
        program,
        graph=graph,
        inputs=(*ports, *program.inputs),
        outputs=(*program.outputs, *made),
    )
    values = {port.name: met[x].clone() for x, port in zip(met, ports, strict=True)}
    return cut, {**values, **inputs}

"""A graph that is too large for a device, cut into consecutive parts that are not.

A cut is made where a single value that depends on the inputs is alive, as behind a layer's sum with
what went around it. The ``denoiser`` has no such place: its image and text tokens go on side by
side, and every block takes its own vectors of the modulation, which each part hands on whole. What
depends on no input, such as a table of position biases, is computed in every part that needs it.
Of a program that rounds everything only what has levels goes on; each part rounds to them again.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, fx

from exporter.errors import InputError
from exporter.package.manifest import Port
from exporter.package.names import part_name
from exporter.quantize.everywhere import levels_of
from exporter.quantize.program import QuantizedProgram, stored_behind
from exporter.quantize.rounded import ROUND_INPUT

ATEN = torch.ops.aten
LEAST_SHARE = 0.1  # of an even share of the weights, for a part to be worth a graph of its own
MOST_ALIVE = {"denoiser": 3}  # values that a cut may lead through; one in any other graph
Values = tuple[fx.Node, ...]


def emitted(
    programs: Mapping[str, QuantizedProgram], parts: Mapping[str, int]
) -> list[QuantizedProgram]:
    """What becomes a graph of its own: every program, some in so many parts; raises InputError."""
    return [part for p in programs.values() for part in split(p, parts.get(p.name, 1))]


def split(program: QuantizedProgram, count: int) -> tuple[QuantizedProgram, ...]:
    """Cut a program into ``count`` programs of about as many bytes of weights each.

    Run in turn, each on the outputs of the one before, they compute what the program computes.
    Raises InputError when the program has too few places to cut it at, or when a part would hold
    next to nothing.
    """
    if count == 1:
        return (program,)
    varying = program.varying()
    steps = [n for n in program.nodes() if n in varying and not _is_piece(n)]
    waists = _waists(program, steps, varying)
    sizes = _sizes(program, steps, varying)
    able = [n for n in range(1, count + 1) if _is_useful(sizes, sorted(waists), n)]
    if count not in able:
        reason = f"in {count}, one would hold under {LEAST_SHARE:.0%} of its share of the weights"
        if len(waists) < count - 1:
            reason = f"there are {len(waists)} places where {_goes_on(program)}"
        raise InputError(f"{program.name} can be cut into at most {able[-1]} parts: {reason}")
    cuts = _even(sizes, sorted(waists), count)
    bounds = [0, *(cut + 1 for cut in cuts), len(steps)]
    between: list[Values] = [(), *(waists[cut] for cut in cuts), ()]
    return tuple(
        _part(program, varying, i + 1, steps[bounds[i] : bounds[i + 1]], between[i], between[i + 1])
        for i in range(count)
    )


def _goes_on(program: QuantizedProgram) -> str:
    most = MOST_ALIVE.get(program.name, 1)
    return "a single value goes on" if most == 1 else f"at most {most} values go on"


def _is_piece(node: fx.Node) -> bool:
    """Whether a value is a piece of another, taken anew in every part that needs it."""
    return node.target in (ATEN.split.Tensor, operator.getitem)


def _whole(node: fx.Node) -> fx.Node:
    """The value that a piece is of; any other is itself."""
    while _is_piece(node):
        (node, *_) = node.all_input_nodes
    return node


def _waists(
    program: QuantizedProgram, steps: list[fx.Node], varying: set[fx.Node]
) -> dict[int, Values]:
    """Steps behind which few varying values, all floats, are alive; and those values, in order.

    Steps are counted among the operators that vary.
    """
    last = {_whole(node): len(steps) for node in program.results()}
    for i, step in reversed(list(enumerate(steps))):
        for argument in step.all_input_nodes:
            if argument in varying:
                last.setdefault(_whole(argument), i)
    most, waists = MOST_ALIVE.get(program.name, 1), {}
    of_levels = any(levels_of(node) for node in program.graph.nodes)  # else they come later
    alive = list(program.feeds())
    for i, step in enumerate(steps[:-1]):
        alive = [value for value in (*alive, step) if last.get(value, -1) > i]
        able = all(_can_go_on(v) and (levels_of(v) or not of_levels) for v in alive)
        if 0 < len(alive) <= most and able:
            waists[i] = tuple(alive)
    return waists


def _can_go_on(value: fx.Node) -> bool:
    kept = value.meta["val"]
    floats = isinstance(kept, Tensor) and kept.dtype == torch.float32
    return floats and value.op != "placeholder"


def _needed(steps: Iterable[fx.Node], varying: set[fx.Node]) -> set[fx.Node]:
    """Steps, and what they need that depends on no input, or is a piece of what does."""
    found, left = set[fx.Node](), list(steps)
    while left:
        node = left.pop()
        if node not in found:
            found.add(node)
            left += [a for a in node.all_input_nodes if a not in varying or _is_piece(a)]
    return found


def _sizes(program: QuantizedProgram, steps: list[fx.Node], varying: set[fx.Node]) -> list[int]:
    """Bytes of weights that are needed up to each step."""
    seen, total, sizes = set[str](), 0, []
    for step in steps:
        for node in _needed([step], varying):
            source = stored_behind(program.tensors.get(node.name))
            if source is not None and source.name not in seen:
                seen.add(source.name)
                total += program.formats[source.name].stored_bytes(source.shape)
        sizes.append(total)
    return sizes


def _even(sizes: list[int], places: list[int], count: int) -> list[int]:
    """Of the places, ascending, ``count`` - 1 that divide the last size most evenly."""
    chosen: list[int] = []
    for i in range(1, count):
        first = places.index(chosen[-1]) + 1 if chosen else 0
        able = places[first : len(places) - (count - 1 - i)]
        chosen.append(min(able, key=lambda place: abs(sizes[place] - sizes[-1] * i / count)))
    return chosen


def _is_useful(sizes: list[int], places: list[int], count: int) -> bool:
    """Whether there are places for so many parts, and each of them makes the others smaller."""
    if len(places) < count - 1:
        return False
    ends = [0, *(sizes[cut] for cut in _even(sizes, places, count)), sizes[-1]]
    least_bytes = LEAST_SHARE * sizes[-1] / count
    return all(end - start >= least_bytes for start, end in itertools.pairwise(ends))


def _part(
    program: QuantizedProgram,
    varying: set[fx.Node],
    number: int,
    steps: list[fx.Node],
    entering: Values,
    leaving: Values,
) -> QuantizedProgram:
    results = leaving or program.results()
    needed = _needed([*steps, *(node for node in results if _is_piece(node))], varying)
    inputs = _ports(entering, number - 1) if entering else program.inputs
    needed |= set() if entering else set(program.feeds())
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node, port in zip(entering, inputs, strict=False):
        copies[node] = _entered(graph, port, node)
    handed = {*copies.values()}
    for node in program.graph.nodes:
        if node in needed and node.op != "output":
            copies[node] = graph.node_copy(node, lambda n: copies[n])
    graph.output(tuple(_handed_on(graph, copies[node], handed) for node in results))
    names = {node.name for node in needed}
    tensors = {name: source for name, source in program.tensors.items() if name in names}
    part = replace(
        program,
        name=part_name(program.name, number),
        inputs=inputs,
        outputs=_ports(leaving, number) if leaving else program.outputs,
        graph=graph,
        tensors=tensors,
    )
    held = part.stored()
    return replace(
        part,
        formats={name: form for name, form in program.formats.items() if name in held},
        adjusted=tuple(a for a in program.adjusted if a.weight in held),
    )


def _entered(graph: fx.Graph, port: Port, node: fx.Node) -> fx.Node:
    """What a part reads of the one before; at the levels that it has, if any."""
    place = graph.placeholder(port.name)
    place.meta["val"] = node.meta["val"]
    levels = levels_of(node)
    if levels is None:
        return place
    found = graph.call_function(ROUND_INPUT, (place, *levels.args[1:]))
    found.name, found.meta["val"] = f"{port.name}_rounded", node.meta["val"]
    return found


def _handed_on(graph: fx.Graph, value: fx.Node, handed: Collection[fx.Node]) -> fx.Node:
    """A result; what a part only hands on goes through an operator, as engines want it."""
    if value not in handed:
        return value
    shape = list(value.meta["val"].shape)
    passed = graph.call_function(ATEN.reshape.default, (value, shape))
    passed.meta["val"] = value.meta["val"]
    return passed


def _ports(values: Values, number: int) -> tuple[Port, ...]:
    """The ports behind a part."""
    names = [f"part_{number}"]
    if len(values) > 1:
        names = [f"part_{number}_{i}" for i in range(1, len(values) + 1)]
    shapes = [tuple(value.meta["val"].shape) for value in values]
    return tuple(Port(name, shape) for name, shape in zip(names, shapes, strict=True))

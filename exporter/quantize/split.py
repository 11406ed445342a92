"""A graph that is too large for a device, cut into consecutive parts that are not.

A cut is made where a single value that depends on the inputs is alive, as behind a layer's sum with
what went around it. What depends on no input, such as a table of position biases, is computed in
every part that needs it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, fx

from exporter.errors import InputError
from exporter.package.manifest import Port
from exporter.package.names import part_name
from exporter.quantize.program import QuantizedProgram, stored_behind

LEAST_SHARE = 0.1  # of an even share of the weights, for a part to be worth a graph of its own


def emitted(programs: Mapping[str, QuantizedProgram], t5_parts: int) -> list[QuantizedProgram]:
    """What becomes a graph of its own: every program, T5 in so many parts; raises InputError."""
    counts = {"t5": t5_parts}
    return [part for p in programs.values() for part in split(p, counts.get(p.name, 1))]


def split(program: QuantizedProgram, count: int) -> tuple[QuantizedProgram, ...]:
    """Cut a program into ``count`` programs of about as many bytes of weights each.

    Run in turn, each on the outputs of the one before, they compute what the program computes.
    Raises InputError when the program has too few places to cut it at, or when a part would hold
    next to nothing.
    """
    if count == 1:
        return (program,)
    varying = _varying(program)
    waists = _waists(program, varying)
    steps = [n for n in program.nodes() if n in varying]
    sizes = _sizes(program, steps, varying)
    able = [n for n in range(1, count + 1) if _is_useful(sizes, sorted(waists), n)]
    if count not in able:
        reason = f"in {count}, one would hold under {LEAST_SHARE:.0%} of its share of the weights"
        if len(waists) < count - 1:
            reason = f"there are {len(waists)} places where a single value goes on"
        raise InputError(f"{program.name} can be cut into at most {able[-1]} parts: {reason}")
    cuts = _even(sizes, sorted(waists), count)
    bounds = [0, *(cut + 1 for cut in cuts), len(steps)]
    between = [None, *(waists[cut] for cut in cuts), None]
    return tuple(
        _part(program, varying, i + 1, steps[bounds[i] : bounds[i + 1]], between[i], between[i + 1])
        for i in range(count)
    )


def _varying(program: QuantizedProgram) -> set[fx.Node]:
    """The nodes whose values depend on the inputs, and the inputs."""
    found = set(program.feeds())
    for node in program.nodes():
        if any(argument in found for argument in node.all_input_nodes):
            found.add(node)
    return found


def _waists(program: QuantizedProgram, varying: set[fx.Node]) -> dict[int, fx.Node]:
    """Steps behind which a single varying value, a float, is alive; and that value.

    Steps are counted among the operators that vary.
    """
    results = set(program.results())
    uses = {node: sum(user in varying for user in node.users) for node in varying}
    alive = {node for node in program.feeds() if uses[node]}
    waists = {}
    steps = [n for n in program.nodes() if n in varying]
    for i, node in enumerate(steps[:-1]):
        for argument in node.all_input_nodes:
            if argument in alive:
                uses[argument] -= 1
                if not uses[argument] and argument not in results:
                    alive.remove(argument)
        if uses[node] or node in results:
            alive.add(node)
        if len(alive) == 1:
            (value,) = alive
            kept = value.meta["val"]
            if (
                isinstance(kept, Tensor)
                and kept.dtype == torch.float32
                and value.op != "placeholder"
            ):
                waists[i] = value
    return waists


def _needed(steps: Iterable[fx.Node], varying: set[fx.Node]) -> set[fx.Node]:
    """Steps, and what they need that depends on no input."""
    found, left = set[fx.Node](), list(steps)
    while left:
        node = left.pop()
        if node not in found:
            found.add(node)
            left += [a for a in node.all_input_nodes if a not in varying]
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
    entering: fx.Node | None,
    leaving: fx.Node | None,
) -> QuantizedProgram:
    needed = _needed(steps, varying)
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    if entering is None:
        inputs = program.inputs
        needed |= set(program.feeds())
    else:
        inputs = (_port(entering, number - 1),)
        copies[entering] = graph.placeholder(inputs[0].name)
        copies[entering].meta["val"] = entering.meta["val"]
    for node in program.graph.nodes:
        if node in needed and node.op != "output":
            copies[node] = graph.node_copy(node, lambda n: copies[n])
    results = program.results() if leaving is None else (leaving,)
    graph.output(tuple(copies[node] for node in results))
    names = {node.name for node in needed}
    tensors = {name: source for name, source in program.tensors.items() if name in names}
    part = replace(
        program,
        name=part_name(program.name, number),
        inputs=inputs,
        outputs=program.outputs if leaving is None else (_port(leaving, number),),
        graph=graph,
        tensors=tensors,
    )
    held = part.stored()
    return replace(
        part,
        formats={name: form for name, form in program.formats.items() if name in held},
        adjusted=tuple(a for a in program.adjusted if a.weight in held),
    )


def _port(node: fx.Node, number: int) -> Port:
    """The port behind a part."""
    return Port(f"part_{number}", tuple(node.meta["val"].shape))

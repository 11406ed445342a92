"""Vector-Jacobian products of a program, segment by segment."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from exporter.files.heap import release
from exporter.program.program import Program
from exporter.program.run import apply, last_uses

SEGMENT_BYTES = 256 << 20  # of values that a segment may make, tensors and their gradients
Read = Callable[[object], Tensor]
Visit = Callable[[object, Sequence[Tensor | None]], None]
Meet = Callable[[int, fx.Node, Sequence[Any], Tensor], None]


@dataclass(frozen=True)
class Segment:
    """Consecutive operators that are differentiated together."""

    nodes: tuple[fx.Node, ...]


def segments(program: Program, most_bytes: int = SEGMENT_BYTES) -> list[Segment]:
    """Cut a program where the least is alive, so that no segment holds more than ``most_bytes``.

    A segment holds the values that it makes, the tensors that it uses and their gradients. A single
    operator may hold more; a cut never falls where a list of tensors is alive.
    """
    nodes, order = program.nodes(), last_uses(program.graph)
    alive: dict[fx.Node, int] = {}
    sizes: list[int | None] = []
    for node in nodes:
        alive[node] = _bytes(node)
        for argument in node.all_input_nodes:
            if order[argument] is node:
                alive.pop(argument, None)
        listed = any(not isinstance(n.meta["val"], Tensor) for n in alive)
        sizes.append(sum(alive.values()) if not listed else None)
    found: list[Segment] = []
    start = 0
    while start < len(nodes):
        held, end, used = 0, start, set[fx.Node]()
        while end < len(nodes):
            read = {n for n in nodes[end].all_input_nodes if n.name in program.tensors} - used
            held += _bytes(nodes[end]) + 2 * sum(_bytes(n) for n in read)
            if held > most_bytes and end > start:
                break
            used |= read
            end += 1
        if end < len(nodes):
            # The cheapest cut of the second half, so that segments do not get short.
            able = [i for i in range(start, end) if sizes[i] is not None]
            late = [i for i in able if i >= (start + end) // 2] or able
            end = min(late, key=lambda i: sizes[i] or 0) + 1 if late else end
            while sizes[end - 1] is None:
                end += 1
        found.append(Segment(tuple(nodes[start:end])))
        start = end
    return found


def kept_bytes(program: Program, most_bytes: int = SEGMENT_BYTES) -> int:
    """Bytes between the segments of a program, for one sample."""
    return sum(_bytes(n) for part in segments(program, most_bytes) for n in _taken(part, program))


def _bytes(node: fx.Node) -> int:
    value = node.meta["val"]
    return value.numel() * 4 if isinstance(value, Tensor) else 0


def pull_back(
    program: Program,
    read: Read,
    samples: Sequence[Mapping[str, Tensor]],
    cotangents: Sequence[Mapping[str, Tensor]],
    wanted: Callable[[object], bool],
    visit: Visit,
    most_bytes: int = SEGMENT_BYTES,
    layers: Collection[fx.Node] = (),
    meet: Meet = lambda index, layer, arguments, gradient: None,
) -> list[dict[str, Tensor]]:
    """Vector-Jacobian products of a program on several samples.

    Args:
        samples: inputs by port name.
        cotangents: gradient of a scalar by each output, by port name; one mapping per sample.
        wanted: which tensors' gradients are asked for, by their source.
        visit: called once for each of them, with its source and its gradient on every sample,
            None where the sample does not hang on it.
        layers: operators whose results' gradients are asked for.
        meet: called for each of them and each sample that hangs on it, with the sample's index, the
            operator, its arguments and the gradient by what it puts out.

    Returns:
        For each sample the gradient by every float input, by port name.
    """
    parts = segments(program, most_bytes)
    kept = _forward(program, parts, read, samples)
    ends = list(zip(program.results(), program.outputs, strict=True))
    found: list[dict[fx.Node, Tensor]] = [
        {node: given[port.name] for node, port in ends if port.name in given}
        for given in cotangents
    ]
    for part, before in zip(reversed(parts), reversed(kept), strict=True):
        tensors = _tensors(part, program, read)
        stored = {
            node: program.tensors[node.name]
            for node in tensors
            if wanted(program.tensors[node.name])
        }
        for node in stored:
            tensors[node] = tensors[node].detach().requires_grad_()
        own = tuple(node for node in part.nodes if node in layers)
        gradients = [
            _segment(part, values, tensors, tuple(stored), given, own, functools.partial(meet, i))
            for i, (values, given) in enumerate(zip(before, found, strict=True))
        ]
        before.clear()
        for node, source in stored.items():
            visit(source, [g.pop(node, None) for g in gradients])
        release()
    feeds = list(zip(program.feeds(), program.inputs, strict=True))
    return [
        {port.name: gradients[node] for node, port in feeds if node in gradients}
        for gradients in found
    ]


def _forward(
    program: Program,
    parts: Sequence[Segment],
    read: Read,
    samples: Sequence[Mapping[str, Tensor]],
) -> list[list[dict[fx.Node, Any]]]:
    """Of each segment and sample, the values from before it that it uses."""
    feeds = list(zip(program.feeds(), program.inputs, strict=True))
    env: list[dict[fx.Node, Any]] = [{node: s[port.name] for node, port in feeds} for s in samples]
    kept, order = [], last_uses(program.graph)
    for part in parts:
        kept.append([{n: values[n] for n in _taken(part, program)} for values in env])
        tensors = _tensors(part, program, read)
        with torch.no_grad():
            for values in env:
                for node in part.nodes:
                    values[node] = apply(node, values, tensors)
                    for argument in node.all_input_nodes:
                        if order[argument] is node:
                            values.pop(argument, None)
    return kept


def _taken(part: Segment, program: Program) -> list[fx.Node]:
    """The values from before a segment that it uses; not the program's tensors."""
    own = set(part.nodes)
    used = dict.fromkeys(a for node in part.nodes for a in node.all_input_nodes)
    return [n for n in used if n not in own and n.name not in program.tensors]


def _tensors(part: Segment, program: Program, read: Read) -> dict[fx.Node, Tensor]:
    used = dict.fromkeys(a for node in part.nodes for a in node.all_input_nodes)
    return {n: read(program.tensors[n.name]) for n in used if n.name in program.tensors}


def _segment(
    part: Segment,
    before: Mapping[fx.Node, Any],
    tensors: Mapping[fx.Node, Tensor],
    stored: Sequence[fx.Node],
    cotangents: dict[fx.Node, Tensor],
    layers: Sequence[fx.Node],
    meet: Callable[[fx.Node, Sequence[Any], Tensor], None],
) -> dict[fx.Node, Tensor]:
    """Differentiate one segment on one sample.

    Turns ``cotangents`` of its results into those of what it took, in place; returns the gradients
    of the ``stored`` tensors, and tells ``meet`` those of what the ``layers`` put out.
    """
    leaves = {
        n: v.detach().requires_grad_() if v.is_floating_point() else v for n, v in before.items()
    }
    values: dict[fx.Node, Any] = dict(leaves)
    with torch.enable_grad():
        for node in part.nodes:
            values[node] = apply(node, values, tensors)
    given = {n: cotangents.pop(n) for n in part.nodes if n in cotangents}
    results = [n for n in given if values[n].requires_grad]  # not what constants alone make

    def known(node: fx.Node) -> Tensor:
        value: Tensor = tensors[node] if node in tensors else values[node]
        return value.detach()

    met = [n for n in layers if values[n].requires_grad]
    asked = [*(n for n, v in leaves.items() if v.requires_grad), *stored]
    if not results:
        return {}
    found = torch.autograd.grad(
        [values[n] for n in results],
        [*(leaves[n] if n in leaves else tensors[n] for n in asked), *(values[n] for n in met)],
        [given[n] for n in results],
        allow_unused=True,
    )
    for node, gradient in zip(met, found[len(asked) :], strict=True):
        if gradient is not None:
            meet(node, fx.map_arg(node.args, known), gradient)
    gradients = {n: g for n, g in zip(asked, found, strict=False) if g is not None}
    for node in leaves:
        if node in gradients:
            gradient = gradients.pop(node)
            cotangents[node] = cotangents[node] + gradient if node in cotangents else gradient
    return gradients

"""The formats that a plan may give a weight, and what each would change."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from exporter.calibrate.activations import choose
from exporter.calibrate.trajectories import Inputs
from exporter.calibrate.weights import Weights
from exporter.program.program import Program, Stored
from exporter.quantize.formats import (
    FORMATS,
    ROUNDED_GRAPHS,
    Format,
    fitting_format,
    parse_format,
    roles_for,
)
from exporter.quantize.nearest import decode
from exporter.quantize.program import NEAREST, Methods, Unrounded, quantize, roles
from exporter.quantize.rounded import CHANNELS, RoundedInput

DEFAULT_FORMATS = (
    "int2-g64", "int2-g32", "int4-g128", "int4-g64", "int4-g32", "int4-g16", "int8", "fp16",
)  # fmt: skip
KEEP_BYTES = 256 << 20  # of changes, so that a small model's are computed once for all steps


@dataclass(frozen=True)
class PlannedWeight:
    """A weight that a plan decides about, and the formats it may get, by growing bytes."""

    graph: str
    source: Stored
    formats: tuple[Format, ...]


def candidates(
    programs: Mapping[str, Program], graphs: Sequence[str], formats: Sequence[Format]
) -> dict[tuple[str, str], PlannedWeight]:
    """Every weight of some graphs with the formats that its role and shape allow.

    Groups are for linear layers; convolutions and embeddings get int8 or fp16, tables fp16.
    """
    found = {}
    for graph in graphs:
        program, kinds = programs[graph], roles(programs[graph])
        for place, source in program.tensors.items():
            if not isinstance(source, Stored) or kinds[place] == "vector":
                continue
            able = {
                fitting_format(f, source.shape) for f in formats if _allowed(f, graph, kinds[place])
            }
            if able:
                order = sorted(able, key=lambda f: (f.stored_bytes(source.shape), str(f)))
                found[graph, source.name] = PlannedWeight(graph, source, tuple(order))
    return found


def _allowed(form: Format, graph: str, role: str) -> bool:
    """Whether a weight of a role may get a format; inputs of linear layers alone are rounded."""
    if form.rounds_inputs:
        return graph in ROUNDED_GRAPHS and role == "linear"
    return role in roles_for(form)


def chosen_ranges(
    asked: Mapping[tuple[str, str], PlannedWeight],
    programs: Mapping[str, Program],
    methods: Mapping[str, Methods],
    read: Callable[[object], Tensor],
    calls: Mapping[str, Sequence[Inputs]],
) -> dict[tuple[str, str], RoundedInput]:
    """A range for the input of every layer whose weight has a candidate that rounds it.

    Args:
        programs: as traced, by graph; ``methods`` by graph.
        calls: inputs of every call of each graph on the trajectories.
    """
    wanted = {key: f for key, a in asked.items() for f in a.formats if f.rounds_inputs}
    found = {}
    for graph in dict.fromkeys(graph for graph, _ in wanted):

        def format_of(name: str, weight: str, role: str, graph: str = graph) -> Format:
            return wanted.get((graph, weight), FORMATS["fp32"])

        program = quantize(programs[graph], format_of, methods[graph])
        chosen = choose(program, read, calls[graph])
        found.update({(graph, weight): rounding for weight, rounding in chosen.items()})
    return found


class CandidateChanges:
    """The change that each candidate makes: of a weight, of the bias that makes up for it, and of
    what a layer puts out whose input is rounded."""

    def __init__(
        self,
        asked: Mapping[tuple[str, str], PlannedWeight],
        weights: Weights,
        ranges: Mapping[tuple[str, str], RoundedInput] | None = None,
    ) -> None:
        self._asked, self._weights, self._ranges = asked, weights, ranges or {}
        self._kept: OrderedDict[tuple[str, str], _Change] = OrderedDict()

    def asks(self, graph: str, source: object) -> bool:
        """Whether rounding some asked weight changes a tensor."""
        return (graph, _weight(source)) in self._asked

    def of(self, graph: str, source: object) -> tuple[str, Mapping[str, Tensor]]:
        """The weight whose rounding changes a tensor, and the change for each candidate."""
        name = _weight(source)
        methods = source.methods if isinstance(source, Unrounded) else NEAREST
        change = self._change((graph, name), methods)
        is_bias = isinstance(source, Unrounded) and source.weight is not None
        return name, change.bias if is_bias else change.weight

    def rounds(self, graph: str, source: object) -> bool:
        """Whether some candidate of a weight rounds its layer's input, too."""
        return (graph, _weight(source)) in self._ranges

    def output(
        self, graph: str, source: object, layer: fx.Node, arguments: Sequence[Any]
    ) -> tuple[str, Mapping[str, Tensor]]:
        """The weight whose layer it is, and what rounding both adds to what it puts out."""
        name = _weight(source)
        methods = source.methods if isinstance(source, Unrounded) else NEAREST
        rounding, (x, weight, *rest) = self._ranges[graph, name], arguments
        stored = self._change((graph, name), methods).rounded
        assert stored is not None and callable(layer.target)
        exact = layer.target(x, weight, *rest)
        rounded = layer.target(rounding.rounded(x, CHANNELS[layer.target]), stored, *rest)
        return name, dict.fromkeys(self._rounding_formats(graph, name), rounded - exact)

    def _rounding_formats(self, graph: str, name: str) -> list[str]:
        return [str(form) for form in self._asked[graph, name].formats if form.rounds_inputs]

    def _change(self, key: tuple[str, str], methods: Methods) -> _Change:
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        asked = self._asked[key]
        weight, bias = {}, {}
        for form in (f for f in asked.formats if not f.rounds_inputs):
            change = self._weights.change(asked.source, form, methods)
            weight[str(form)] = change.weight
            if change.mean is not None and "bias" in methods:
                bias[str(form)] = -change.mean
        rounding = self._ranges.get(key)
        rounded = None
        if rounding is not None:
            rounded = decode(rounding.stored(self._weights.read(Unrounded(asked.source, methods))))
        self._kept[key] = _Change(weight, bias, rounded)
        while len(self._kept) > 1 and sum(c.bytes for c in self._kept.values()) > KEEP_BYTES:
            self._kept.popitem(last=False)
        return self._kept[key]


@dataclass(frozen=True, eq=False)
class _Change:
    """By candidate, the change of a weight and of its bias; and the weight as it is stored where
    its layer's input is rounded, in the units of that input."""

    weight: Mapping[str, Tensor]
    bias: Mapping[str, Tensor]
    rounded: Tensor | None

    @property
    def bytes(self) -> int:
        held = [*self.weight.values(), *self.bias.values()]
        held += [] if self.rounded is None else [self.rounded]
        return sum(4 * tensor.numel() for tensor in held)


def _weight(source: object) -> str:
    """The weight that a tensor is, or that its value makes up for."""
    if isinstance(source, Unrounded):
        return (source.weight or source.of).name
    return source.name if isinstance(source, Stored) else ""


def parse_formats(names: Sequence[str]) -> tuple[Format, ...]:
    """Formats by name; raises InputError."""
    return tuple(dict.fromkeys(parse_format(name) for name in names))

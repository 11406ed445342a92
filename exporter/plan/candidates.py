"""The formats that a plan may give a weight, and what each would change."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from exporter.calibrate.weights import Weights
from exporter.errors import InputError
from exporter.program.program import Program, Stored
from exporter.quantize.formats import Format, fitting_format, parse_format, roles_for
from exporter.quantize.program import NEAREST, Methods, Unrounded, roles

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
                fitting_format(f, source.shape) for f in formats if kinds[place] in roles_for(f)
            }
            if able:
                order = sorted(able, key=lambda f: (f.stored_bytes(source.shape), str(f)))
                found[graph, source.name] = PlannedWeight(graph, source, tuple(order))
    return found


class Rounding:
    """The change that each candidate makes: of a weight, and of the bias that makes up for it."""

    def __init__(self, asked: Mapping[tuple[str, str], PlannedWeight], weights: Weights) -> None:
        self._asked, self._weights = asked, weights
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

    def _change(self, key: tuple[str, str], methods: Methods) -> _Change:
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        asked = self._asked[key]
        weight, bias = {}, {}
        for form in asked.formats:
            change = self._weights.change(asked.source, form, methods)
            weight[str(form)] = change.weight
            if change.mean is not None and "bias" in methods:
                bias[str(form)] = -change.mean
        self._kept[key] = _Change(weight, bias)
        while len(self._kept) > 1 and sum(c.bytes for c in self._kept.values()) > KEEP_BYTES:
            self._kept.popitem(last=False)
        return self._kept[key]


@dataclass(frozen=True, eq=False)
class _Change:
    weight: Mapping[str, Tensor]
    bias: Mapping[str, Tensor]

    @property
    def bytes(self) -> int:
        return sum(4 * t.numel() for t in (*self.weight.values(), *self.bias.values()))


def _weight(source: object) -> str:
    """The weight that a tensor is, or that its value makes up for."""
    if isinstance(source, Unrounded):
        return (source.weight or source.of).name
    return source.name if isinstance(source, Stored) else ""


def parse_formats(names: Sequence[str]) -> tuple[Format, ...]:
    """Formats by name; raises InputError."""
    found = tuple(dict.fromkeys(parse_format(name) for name in names))
    if any(form.rounds_inputs for form in found):
        raise InputError(
            "format 'w8a8': what 8-bit activations lose is not measured; plan without it, and put "
            "it into the plan's file by hand"
        )
    return found

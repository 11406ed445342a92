"""Programs that round every value to 16 bits, as an NPU computes: ``w8a16`` and ``w4a16``.

A program with a weight of such a format is written in an integer machine's operators
(``exporter.quantize.primitives``), and behind each stands a ``fourstep::round_input``: what goes
in, what is computed, and constants that are no weights of layers. What only moves values keeps
their levels. So torch, onnxruntime's CPU and an NPU compute with the same levels.

Second factors of a product of two values have levels that are symmetric around 0: so an NPU can
multiply them in 16 bits.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from exporter.errors import InputError
from exporter.quantize.primitives import expanded
from exporter.quantize.program import QuantizedProgram, stored_behind
from exporter.quantize.rounded import ROUND_INPUT, RoundedInput, asked, ranging

ATEN = torch.ops.aten
BITS = 16
KERNEL_BITS = 8  # of a convolution's constant weight: the NPU multiplies none of 16
MIDDLE = 1 << (BITS - 1)  # the level of 0 where levels are symmetric
MOVES = (  # the same values elsewhere, or zeros beside them: levels stay as they are
    ATEN.reshape.default,
    ATEN.permute.default,
    ATEN.slice.Tensor,
    ATEN.split.Tensor,
    operator.getitem,
    ATEN.select.int,
    ATEN.index_select.default,
    ATEN.pixel_shuffle.default,
    ATEN.pad.default,
    ATEN.embedding.default,
)
FIXED: Mapping[Any, tuple[float, int]] = {  # steps and levels of 0 that Qualcomm's NPU insists on
    ATEN.sigmoid.default: (2.0**-BITS, 0),
    ATEN.tanh.default: (2.0 ** (1 - BITS), MIDDLE),
}
BESIDE = ("w8a16", "int8", "w4a16", "fp32")  # formats that layers of one graph can have
LAYERS = (ATEN.linear.default, ATEN.conv2d.default)


def rounds_everything(program: QuantizedProgram) -> bool:
    """Whether a weight's format asks that all values are rounded to 16 bits."""
    return any(form.storage.inputs == BITS for form in program.formats.values())


def has_levels(program: QuantizedProgram) -> bool:
    """Whether anything that a program computes is rounded."""
    return rounds_everything(program) or bool(asked(program))


def refuse_mixture(program: QuantizedProgram) -> None:
    """Raise InputError for a layer whose weight an integer machine cannot multiply by 16 bits."""
    if not rounds_everything(program):
        return
    for node in program.nodes():
        weight = node.args[1] if node.target in LAYERS else None
        if not isinstance(weight, fx.Node):
            continue
        codes = weight.args[0] if weight.args else weight
        assert isinstance(codes, fx.Node)
        stored = stored_behind(program.tensors.get(codes.name))
        if stored is None:
            continue  # a constant
        form = program.formats[stored.name]
        able = BESIDE if node.target is ATEN.linear.default else BESIDE[:2]
        if form.name not in able:
            raise InputError(
                f"{program.name}: '{stored.name}' is {form}, and other weights ask for 16-bit "
                f"values: then it can be {', '.join(able[:-1])} or {able[-1]}"
            )


@dataclass(frozen=True, eq=False)
class Rounding:
    """What of a program is to be rounded.

    Attributes:
        program: in an integer machine's operators.
        values: the nodes whose values depend on the inputs, and the inputs.
        constants: the nodes that others read in the same way, whose values do not.
        symmetric: those of both whose levels are symmetric around 0.
        kernels: the constants that are weights of convolutions.
    """

    program: QuantizedProgram
    values: tuple[fx.Node, ...]
    constants: tuple[fx.Node, ...]
    symmetric: frozenset[fx.Node]
    kernels: frozenset[fx.Node] = frozenset()

    def source_of(self, node: object) -> fx.Node:
        """The value that is only moved on its way to a node."""
        found = _source(node, self.program.varying())
        assert isinstance(found, fx.Node)
        return found

    def range_of(self, node: fx.Node, low: float, high: float) -> RoundedInput:
        """Levels for values from ``low`` to ``high``."""
        ones = torch.ones(1)
        if node.target in FIXED:
            return RoundedInput(*FIXED[node.target], ones, BITS)
        if node in self.symmetric:
            step = float(np.float32(max(high, -low) / (MIDDLE - 1))) or 1.0
            return RoundedInput(step, MIDDLE, ones, BITS)
        return ranging(min(low, 0.0), max(high, 0.0), ones, BITS)


def levels_of(node: object) -> fx.Node | None:
    """The rounding to 16 bits whose levels a value has: its own, or of what it is moved from."""
    while isinstance(node, fx.Node):
        if node.target is ROUND_INPUT:
            return node if node.args[4] == BITS else None
        node = node.args[0] if node.target in MOVES else None
    return None


def is_zeros(node: fx.Node) -> bool:
    """Whether a node is zeros in the shape of a value: a product with 0."""
    factor = node.args[1] if node.target is ATEN.mul.Tensor else None
    return isinstance(factor, float) and factor == 0.0


def to_round(program: QuantizedProgram) -> Rounding:
    """What of a program is to be rounded."""
    program = expanded(program)
    varying = program.varying()
    values = [node for node in program.graph.nodes if node in varying and _is_made(node)]
    constants = {
        operand: None
        for node in program.nodes()
        if node in varying
        for operand in _operands(program, node)
        if operand not in varying and _is_float(operand)
    }
    sources = {
        _source(node.args[1], varying)
        for node in program.nodes()
        if node.target is ATEN.matmul.default
    }
    weights = {n.args[1]: n.target for n in program.nodes() if n.target in LAYERS}
    symmetric = frozenset(n for n in (*values, *constants) if n in sources or n in weights)
    kernels = frozenset(n for n in constants if weights.get(n) is ATEN.conv2d.default)
    return Rounding(program, tuple(values), tuple(constants), symmetric, kernels)


def kernel_levels(kernel: Tensor) -> RoundedInput:
    """Levels of 8 bits for a convolution's weight, symmetric around 0.

    Codes of a kernel whose values sum to 0 do so too: what is even has to stay without an answer.
    Steps from the finest on are tried for that.
    """
    values, middle = kernel.double(), 1 << (KERNEL_BITS - 1)
    least = float(values.abs().max()) / (middle - 1)
    balanced = abs(float(values.sum())) < 1e-6 * float(values.abs().sum())
    tried = (float(np.float32(least * (1 + i / 1000))) for i in range(1000 if balanced else 1))
    steps = [step or 1.0 for step in tried]
    step = next((s for s in steps if not int(torch.round(values / s).sum())), steps[0])
    return RoundedInput(step, middle, torch.ones(1), KERNEL_BITS)


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype == torch.float32


def _is_made(node: fx.Node) -> bool:
    """Whether a node's value is none that has levels already."""
    return _is_float(node) and node.target not in MOVES


def _operands(program: QuantizedProgram, node: fx.Node) -> list[fx.Node]:
    """What a node reads, without the codes and the bias of a layer."""
    if node.target not in LAYERS:
        return list(node.all_input_nodes)
    x, weight = node.args[:2]
    assert isinstance(x, fx.Node) and isinstance(weight, fx.Node)
    return [x] if program.part(weight) else [x, weight]


def _source(node: object, varying: set[fx.Node]) -> object:
    """The value that is only moved on its way to a node."""
    while isinstance(node, fx.Node) and node.target in MOVES and node in varying:
        node = node.args[1] if node.args[0] not in varying else node.args[0]
    return node


def round_everything(
    program: QuantizedProgram, chosen: Mapping[str, RoundedInput]
) -> QuantizedProgram:
    """The program in an integer machine's operators with a rounding behind each.

    Args:
        chosen: by the name of what is rounded (``calibrate.ranges.choose``).

    Raises InputError when they are another program's: one of a size whose graph has other nodes.
    """
    found = to_round(program)
    rounded = {*found.values, *found.constants}
    if {node.name for node in rounded} != {*chosen}:
        raise InputError(
            f"{program.name}: its ranges were chosen at a size where its graph has other "
            "operators; build this size alone"
        )
    return replace(found.program, graph=_Rounder(found, chosen).graph)


class _Rounder:
    """Writes a program's graph anew, what it computes rounded.

    Attributes:
        graph: the new one.
    """

    def __init__(self, found: Rounding, chosen: Mapping[str, RoundedInput]) -> None:
        self.graph = fx.Graph()
        self._chosen, self._asked = chosen, {*found.values, *found.constants}
        self._plain, self._level = dict[fx.Node, fx.Node](), dict[fx.Node, fx.Node]()
        nodes, varying = list(found.program.graph.nodes), found.program.varying()
        for node in (n for n in nodes if n.op == "placeholder"):
            self._copy(node, set())
        for node in (n for n in nodes if n.op == "placeholder" and n in self._asked):
            self._level[node] = self._rounded(node)
        for node in (n for n in nodes if n.op != "placeholder"):
            takes = node in varying or node.op == "output"
            self._copy(node, {*_operands(found.program, node)} if takes else set())
            if node in self._asked:
                self._level[node] = self._rounded(node)

    def _copy(self, node: fx.Node, reads: set[fx.Node]) -> None:
        def given(n: fx.Node) -> fx.Node:
            return self._level.get(n, self._plain[n]) if n in reads else self._plain[n]

        found = self.graph.node_copy(node, given)
        found.name = node.name
        self._plain[node] = found

    def _rounded(self, node: fx.Node) -> fx.Node:
        rounding = self._chosen[node.name]
        given = (self._plain[node], None, rounding.step, rounding.zero_point, rounding.bits, -1)
        found = self.graph.call_function(ROUND_INPUT, given)
        found.name, found.meta["val"] = f"{node.name}_rounded", node.meta["val"]
        return found

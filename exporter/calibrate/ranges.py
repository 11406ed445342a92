"""16-bit activations: a fixed range for every value of a graph, and a quarter beyond what was met.

65,536 levels leave so many for each value that nothing is gained by giving up the ends; a third of
a bit is given for room. Without it golden pictures of shapes-flash left the ranges of six values by
up to 10 %, one key of attention lost 1 % of its sum of squares, and an NPU, which may leave out the
rounding between two operators and so cut nothing off there, was 5.6e-3 from the program.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from exporter.errors import InputError
from exporter.program.run import constant_value, run_all
from exporter.quantize.everywhere import is_zeros, kernel_levels, to_round
from exporter.quantize.program import QuantizedProgram
from exporter.quantize.rounded import RoundedInput

ROOM = 1.25  # of what was met
SHARES = torch.ops.aten.softmax.int  # none is above 1


def choose_all(
    program: QuantizedProgram,
    read: Callable[[object], Tensor],
    calls: Sequence[Mapping[str, np.ndarray]],
) -> dict[str, RoundedInput]:
    """How each value of a program is rounded, by the name of its node in ``everywhere.to_round``.

    Args:
        read, calls: as ``activations.choose`` takes them.

    Raises InputError naming the first operator that gives a value that is not finite.
    """
    asked = to_round(program)
    program = asked.program
    ends: dict[fx.Node, tuple[float, float]] = {}

    def met(node: fx.Node, value: Tensor) -> None:
        low, high = (float(end) for end in torch.aminmax(value))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise InputError(
                f"{program.name}: on the calibration prompts {node.name} has values that are not "
                "finite"
            )
        before = ends.get(node, (low, high))
        ends[node] = min(low, before[0]), max(high, before[1])

    wanted = {*asked.values}

    def found(node: fx.Node, value: Any) -> None:
        if node in wanted:
            met(node, value)

    samples = [{k: torch.from_numpy(np.asarray(v)) for k, v in call.items()} for call in calls]
    for node, port in zip(program.feeds(), program.inputs, strict=True):
        for sample in samples if node in wanted else ():
            met(node, sample[port.name])
    run_all(program, read, samples, found=found)
    for node in (n for n in asked.constants if n not in asked.kernels):
        met(node, constant_value(program, read, node))
    for node in asked.values:
        if is_zeros(node):  # its levels are those of what it stands beside
            source = asked.source_of(node.args[0])
            ends[node] = ends[source]
    varying = {
        node.name: asked.range_of(node, *_with_room(node, ends[node])) for node in asked.values
    }
    return varying | {
        node.name: kernel_levels(constant_value(program, read, node))
        if node in asked.kernels
        else asked.range_of(node, *ends[node])
        for node in asked.constants
    }


def _with_room(node: fx.Node, ends: tuple[float, float]) -> tuple[float, float]:
    """The ends of a range for what was met between these."""
    low, high = ROOM * ends[0], ROOM * ends[1]
    return (low, min(high, 1.0)) if node.target is SHARES else (low, high)

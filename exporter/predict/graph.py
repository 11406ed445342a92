"""What a graph will take before it is built: bytes of files, memory to write it and to run it.

Memory is anonymous memory, which a kernel cannot drop: mapped files count nothing. A backend's
``costs`` hold what was measured of its runtime (``benchmarks.memory``); what a graph holds comes
from its program. Predictions are for one graph in a process of its own, as the loop runs them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import fx

from exporter.backends.contract import MeasuredCosts
from exporter.calibrate.activations import bytes_to_choose
from exporter.package.names import graph_of
from exporter.program import aten
from exporter.program.program import Stored
from exporter.program.sizes import activation_bytes
from exporter.quantize.program import QuantizedProgram, stored_behind
from exporter.quantize.widened import widened_bytes

ATEN = torch.ops.aten
DERIVED = 5.0  # copies of a weight while it is computed
WEIGHTS = {  # which argument of an operator is a weight, and of which kind
    ATEN.linear.default: (1, "linear"),
    ATEN.conv2d.default: (1, "conv"),
    ATEN.embedding.default: (0, "embedding"),
}


def file_bytes(program: QuantizedProgram, costs: MeasuredCosts) -> int:
    """Bytes of the files of a graph: constants and weights in their formats, and its operators."""
    return program.stored_bytes() + costs.node_file_bytes * len(program.nodes())


def build_bytes(program: QuantizedProgram, costs: MeasuredCosts, calls: int) -> int:
    """Peak of a build while it writes a graph, codes to nearest, no golden pictures.

    Weights are read and written one at a time, so the largest one decides; or what is held to
    choose how activations are rounded.

    Args:
        calls: of the graph, on the calibration prompts.
    """
    factors = costs.build_weight

    def taken_by(name: str, source: Stored) -> float:
        """In copies of the weight in float32."""
        written = factors.get(program.formats[name].name, factors[""])
        return (written + (DERIVED if _is_computed(source) else 0)) * 4 * math.prod(source.shape)

    taken = (taken_by(*item) for item in program.stored().items())
    nodes = costs.build_node_bytes * len(program.nodes())
    held = max(max(taken, default=0) + nodes, bytes_to_choose(program, calls))
    return int(costs.build_process_bytes + held)


def _is_computed(source: Stored) -> bool:
    """Whether a weight is made of a smaller one, and not read or cut out."""
    derivation = source.derivation
    if derivation is None:
        return False
    return math.prod(source.shape) > math.prod(derivation.stored_shape(source.shape))


def run_bytes(program: QuantizedProgram, costs: MeasuredCosts, is_widened: bool = False) -> int:
    """Peak of a process that opens a graph and runs it.

    Args:
        is_widened: whether its weights are decoded when it is opened.
    """
    held = sum(costs.held.get(kind, 1.0) * size for kind, size in _weight_bytes(program).items())
    more = costs.widened * widened_bytes(program) if is_widened else 0
    return int(held + more + fixed_bytes(program, costs))


def is_widened(
    program: QuantizedProgram, costs: MeasuredCosts | None, most_bytes: int | None
) -> bool:
    """Whether a graph's weights are decoded when it is opened: it is small, and that much fits.

    Args:
        most_bytes: of memory that the graph may take; None: any.
    """
    if costs is None or not costs.widened or not widened_bytes(program):
        return False
    return most_bytes is None or run_bytes(program, costs, is_widened=True) <= most_bytes


def fixed_bytes(program: QuantizedProgram, costs: MeasuredCosts) -> float:
    """Of ``run_bytes``, what does not depend on formats."""
    factor = costs.activations.get(graph_of(program.name), costs.activations[""])
    nodes = costs.node_bytes * len(program.nodes())
    patches = costs.patches * patch_bytes(program)
    return costs.process_bytes + nodes + factor * activation_bytes(program) + patches


def patch_bytes(program: QuantizedProgram) -> int:
    """Of the convolution with rounded inputs that reads the most: all that its outputs read, each
    as often as it is read, in 8 bits."""
    sizes = [0]
    for node in program.nodes():
        weight = node.args[1] if node.target is ATEN.conv2d.default else None
        part = program.part(weight) if isinstance(weight, fx.Node) else None
        if part is not None and part.format.rounds_inputs:
            sizes.append(math.prod(part.of.shape[1:]) * math.prod(aten.shape(node)[2:]))
    return max(sizes)


def _weight_bytes(program: QuantizedProgram) -> Mapping[str, int]:
    """Bytes of weights as stored, by kind and format: ``linear int4``; all else: ``other``."""
    kinds: dict[str, str] = {}
    for node in program.nodes():
        if node.target in WEIGHTS:
            place, kind = WEIGHTS[node.target]
            name = _stored_name(program, node.args[place])
            if name is not None:
                kinds[name] = kind
    sizes: defaultdict[str, int] = defaultdict(int)
    for name, source in program.stored().items():
        form = program.formats[name]
        kind = f"{kinds[name]} {form.name}" if name in kinds else "other"
        sizes[kind] += form.stored_bytes(source.shape)
    return sizes


def _stored_name(program: QuantizedProgram, node: object) -> str | None:
    """The stored tensor behind an argument: itself, or what is decoded there."""
    while isinstance(node, fx.Node) and node.op != "placeholder":
        node = node.args[0]
    source = stored_behind(program.tensors.get(node.name)) if isinstance(node, fx.Node) else None
    return source.name if source else None

"""What running a program takes: bytes of activations, alive at once and in all."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from exporter.program.program import Program

ITEM_BYTES = {torch.float32: 4, torch.int32: 4, torch.int64: 8, torch.bool: 1}


def activation_bytes(program: Program) -> int:
    """Most bytes of activations alive at once when the operators run in order.

    Views count nothing; tensors of the package count nothing. An upper bound that a backend's
    planner, which reuses and fuses, should stay under.
    """
    last_use: dict[fx.Node, int] = {}
    order = {node: i for i, node in enumerate(program.graph.nodes)}
    for node in program.graph.nodes:
        for argument in node.all_input_nodes:
            last_use[argument] = order[node]
    sizes = {n: _bytes(n) for n in program.nodes()}
    alive = peak = sum(int(np.prod(p.shape)) * 4 for p in program.inputs)
    ends: dict[int, int] = {}
    for node in program.nodes():
        alive += sizes[node]
        peak = max(peak, alive)
        end = last_use.get(node, len(order))
        ends[end] = ends.get(end, 0) + sizes[node]
        alive -= ends.pop(order[node], 0)
    return peak


def value_bytes(program: Program) -> int:
    """Bytes of all values that a program computes, each once; views count nothing."""
    return sum(_bytes(node) for node in program.nodes())


VIEWS = ("reshape", "select", "split", "getitem")


def _bytes(node: fx.Node) -> int:
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or any(v in str(node.target) for v in VIEWS):
        return 0
    if "dequantize" in str(node.target):
        return 0
    if "round_input" in str(node.target):  # runtimes keep codes
        bits: Any = node.args[4]
        return int(value.numel() * bits // 8)
    return value.numel() * ITEM_BYTES.get(value.dtype, 4)

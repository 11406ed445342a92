"""Arguments of a program's operators, read as every backend wants them: defaults filled in, amounts
for each axis of the tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from torch import fx

from exporter.errors import InputError

Translate = TypeVar("Translate")


def translation(
    table: Mapping[Any, Translate], node: fx.Node, graph: str, backend: str
) -> Translate:
    """A backend's translation of an operator; raises InputError naming one that it lacks."""
    if node.target not in table:
        raise InputError(f"{graph}: operator {node.target} has no {backend} translation")
    return table[node.target]


def shape(node: object) -> tuple[int, ...]:
    """Shape of a node's value."""
    assert isinstance(node, fx.Node)
    return tuple(node.meta["val"].shape)


def argument(node: fx.Node, position: int, default: Any = None) -> Any:
    """A positional argument, or what it is when left out."""
    return node.args[position] if len(node.args) > position else default


def split_sizes(node: fx.Node) -> tuple[int, list[int]]:
    """Axis of ``split``, and the size of each part along it."""
    axis = argument(node, 2, 0)
    return axis, [int(part.shape[axis]) for part in node.meta["val"]]


def padding(node: fx.Node) -> tuple[list[int], list[int]]:
    """Values before and after along each axis of ``pad``, which lists pairs from the last axis."""
    amounts, rank = argument(node, 1), len(shape(node))
    before, after = [0] * rank, [0] * rank
    for i in range(len(amounts) // 2):
        before[rank - 1 - i], after[rank - 1 - i] = amounts[2 * i], amounts[2 * i + 1]
    return before, after


def repeats_edges(node: fx.Node) -> bool:
    """Whether ``pad`` continues what lies at the edges; else it adds zeros."""
    return bool(argument(node, 2, node.kwargs.get("mode")) == "replicate")


def convolution(node: fx.Node) -> tuple[object, list[int], list[int]]:
    """Bias or None, strides, and padding on either side along each axis of ``conv2d``."""
    stride, around = argument(node, 3, (1, 1)), argument(node, 4, (0, 0))
    return argument(node, 2), list(stride), list(around)

"""One form of what ``torch.export`` writes in several, so that backends translate less.

Run once, after tracing. What only asserts goes: shapes and types are fixed, and such operators name
the device of the trace, on which no program runs. So does what changes nothing. Every way to say
another shape becomes ``reshape``, every order of axes ``permute``, every change of type
``to.dtype``. A node that is rewritten keeps its name, and computes the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from exporter.errors import InputError
from exporter.program.aten import argument

ATEN = torch.ops.aten
EMPTY = (  # when nobody writes in place, and no program does
    ATEN.alias.default,
    ATEN.clone.default,
    ATEN.contiguous.default,
    ATEN.detach.default,
    ATEN.lift_fresh_copy.default,
)
RESHAPES = (
    ATEN.flatten.using_ints,
    ATEN.reshape.default,
    ATEN.squeeze.default,
    ATEN.squeeze.dim,
    ATEN.squeeze.dims,
    ATEN.unflatten.int,
    ATEN.unsqueeze.default,
    ATEN.view.default,
)
CASTS = (
    ATEN._to_copy.default,
    ATEN.to.device,
    ATEN.to.dtype,
    ATEN.to.dtype_layout,
    ATEN.to.other,
    ATEN.type_as.default,
)
PLACES = ("device", "layout", "pin_memory")  # arguments that say where a trace kept its tensors


def normalise(graph: fx.Graph) -> None:
    """Rewrite a traced graph in place.

    Raises InputError for an operator that means more than its form here could say.
    """
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        if only_asserts(node.target):
            graph.erase_node(node)
        elif _is_empty(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        else:
            _rewrite(node)
    graph.eliminate_dead_code()


def only_asserts(target: Any) -> bool:
    """Whether an operator gives nothing and changes nothing."""
    if not isinstance(target, torch._ops.OpOverload):
        return False
    return not target._schema.returns and not target._schema.is_mutable


def _is_empty(node: fx.Node) -> bool:
    if node.target in EMPTY:
        return True
    source = node.args[0] if node.target in CASTS else None
    return isinstance(source, fx.Node) and source.meta["val"].dtype == node.meta["val"].dtype


def _rewrite(node: fx.Node) -> None:
    node.kwargs = {key: value for key, value in node.kwargs.items() if key not in PLACES}
    source = node.args[0] if node.args else None
    if node.target in RESHAPES:
        _become(node, ATEN.reshape.default, source, list(node.meta["val"].shape))
    elif node.target in CASTS:
        _become(node, ATEN.to.dtype, source, node.meta["val"].dtype)
    elif node.target == ATEN.transpose.int:
        _become(node, ATEN.permute.default, source, _swapped(node))
    elif node.target == ATEN.slice.Tensor:
        _become(node, ATEN.slice.Tensor, source, *_bounds(node))
    elif node.target in (ATEN.add.Tensor, ATEN.sub.Tensor) and node.kwargs:
        if node.kwargs != {"alpha": 1}:
            raise InputError(f"internal: {node.name} was traced with {dict(node.kwargs)}")
        node.kwargs = {}


def _become(node: fx.Node, target: Any, *arguments: Any) -> None:
    node.target, node.args, node.kwargs = target, arguments, {}


def _swapped(node: fx.Node) -> list[int]:
    """``transpose`` as a permutation of all axes."""
    axes = list(range(node.meta["val"].ndim))
    _, first, second = node.args
    axes[first], axes[second] = axes[second], axes[first]  # type: ignore[index]
    return axes


def _bounds(node: fx.Node) -> tuple[int, int, int]:
    """Axis, first index and index after the last of ``slice``."""
    source: Any = node.args[0]
    axis, start, end, step = (argument(node, i, d) for i, d in enumerate((0, None, None, 1), 1))
    if step != 1:
        raise InputError(f"internal: {node.name} was traced with steps of {step}")
    first, last, _ = slice(start, end).indices(source.meta["val"].shape[axis])
    return axis, first, last

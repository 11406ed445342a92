"""One form of what ``torch.export`` writes in several, so that backends translate less.

Run once, after tracing. What only asserts goes: shapes and types are fixed, and such operators name
the device of the trace, on which no program runs. So does what changes nothing. Every way to say
another shape becomes ``reshape``, every order of axes ``permute``, every change of type
``to.dtype``. A node that is rewritten keeps its name, and computes the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
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
KERNELS = ("cudnn_enable", "cudnn_enabled")  # and with what torch computes
PADDINGS = ("constant", "replicate")
READ: Mapping[Any, int] = {  # how many of an operator's arguments backends read, in its order
    ATEN.add.Tensor: 2,
    ATEN.argmax.default: 2,
    ATEN.cat.default: 2,
    ATEN.conv2d.default: 5,
    ATEN.div.Tensor: 2,
    ATEN.embedding.default: 2,
    ATEN.eq.Scalar: 2,
    ATEN.gelu.default: 2,
    ATEN.group_norm.default: 5,
    ATEN.index_select.default: 3,
    ATEN.layer_norm.default: 5,
    ATEN.linear.default: 3,
    ATEN.mean.dim: 3,
    ATEN.mul.Tensor: 2,
    ATEN.pad.default: 3,
    ATEN.permute.default: 2,
    ATEN.pixel_shuffle.default: 2,
    ATEN.relu.default: 1,
    ATEN.reshape.default: 2,
    ATEN.rms_norm.default: 4,
    ATEN.rsqrt.default: 1,
    ATEN.select.int: 3,
    ATEN.sigmoid.default: 1,
    ATEN.silu.default: 1,
    ATEN.slice.Tensor: 4,
    ATEN.split.Tensor: 3,
    ATEN.sqrt.default: 1,
    ATEN.sub.Tensor: 2,
    ATEN.tanh.default: 1,
    ATEN.to.dtype: 2,
}


def normalise(graph: fx.Graph) -> None:
    """Rewrite a traced graph in place.

    Raises InputError for an operator with an argument that no backend would see.
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
    elif node.target in READ:
        _refuse_unread(node)
    if node.target == ATEN.slice.Tensor:
        _become(node, ATEN.slice.Tensor, source, *_bounds(node))
    elif node.target == ATEN.pad.default:
        _refuse_other_padding(node)


def _refuse_unread(node: fx.Node) -> None:
    """Drop arguments that no backend reads; raise InputError where one of them matters."""
    count = READ[node.target]
    target: Any = node.target
    for position, described in enumerate(target._schema.arguments[count:], count):
        name, default = described.name, described.default_value
        value = argument(node, position, node.kwargs.get(name, default))
        if value != default and name not in KERNELS:
            raise InputError(f"internal: {node.name} was traced with {name} = {value}")
    unread = {described.name for described in target._schema.arguments[count:]}
    node.kwargs = {key: value for key, value in node.kwargs.items() if key not in unread}


def _refuse_other_padding(node: fx.Node) -> None:
    mode = node.kwargs.get("mode", argument(node, 2, "constant"))
    if mode not in PADDINGS:
        raise InputError(f"internal: {node.name} was traced with mode = {mode}")


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
    axis, start, end = (argument(node, i, d) for i, d in enumerate((0, None, None), 1))
    first, last, _ = slice(start, end).indices(source.meta["val"].shape[axis])
    return axis, first, last

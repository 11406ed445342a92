"""A program in the operators that an integer machine has, one rounding behind each.

Attention is written out, norms lose their factors and sums to operators of their own, SiLU becomes
a sigmoid and a product, a 4-bit layer's bias a sum. What is computed stays the same.

Zeros beside a value are a piece of it times 0, and a constant that is joined to one is added to
such a piece: of Pad, and of constants that are joined, Qualcomm's compiler takes the codes for
those of another scale, and says nothing. One over a root is a division: of a reciprocal in 16 bits
its emulator gives a third.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import fx

from exporter.network import operators as _registers_operators  # noqa: F401
from exporter.program import aten
from exporter.program.program import Constant, Program
from exporter.quantize.program import QuantizedProgram

ATEN = torch.ops.aten
ATTENTION = torch.ops.fourstep.attention.default
LEAST_MASK = -64.0  # e^-64 is 0 in every sum; -1e9 would take all levels of the logits
UNITS = (ATEN.reshape.default, ATEN.permute.default, ATEN.cat.default)  # that a factor passes


@dataclass
class _Copy:
    """A graph that is being written anew.

    Attributes:
        env: what each node of the old graph has become.
        scales: by the weight of an RMSNorm, the factor that attention gives its queries.
        varying: the old graph's nodes whose values depend on its inputs.
    """

    program: QuantizedProgram
    scales: dict[fx.Node, float]
    graph: fx.Graph = field(default_factory=fx.Graph)
    env: dict[fx.Node, fx.Node] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.varying = self.program.varying()

    def of(self, node: Any) -> fx.Node:
        return self.env[node]

    def call(self, name: str, target: Any, shape: Sequence[int], *arguments: Any) -> fx.Node:
        """A new operator whose value is a float32 of that shape."""
        node = self.graph.call_function(target, arguments)
        node.name, node.meta["val"] = name, torch.empty(tuple(shape), device="meta")
        return node


def expanded(program: QuantizedProgram) -> QuantizedProgram:
    """The program in these operators; nodes that stay keep their names."""
    masks = _masks(program)
    copy = _Copy(program, _query_scales(program))
    for node in program.graph.nodes:
        rule = RULES.get(node.target) if node.op == "call_function" else None
        found = rule(copy, node) if rule else None
        if found is None:
            found = copy.graph.node_copy(node, lambda n: copy.env[n])
            found.name = node.name
        copy.env[node] = found
    clamped = {name: Constant(np.maximum(value, LEAST_MASK)) for name, value in masks.items()}
    return replace(program, graph=copy.graph, tensors={**program.tensors, **clamped})


def _masks(program: Program) -> dict[str, np.ndarray]:
    """The constants that are added to logits alone, by placeholder."""
    found = {}
    for node in program.nodes():
        bias = aten.argument(node, 5) if node.target is ATTENTION else None
        source = program.tensors.get(bias.name) if isinstance(bias, fx.Node) else None
        if not (isinstance(bias, fx.Node) and isinstance(source, Constant)):
            continue
        if all(user.target is ATTENTION for user in bias.users):
            found[bias.name] = source.value
    return found


def _query_scales(program: Program) -> dict[fx.Node, float]:
    """The RMSNorms that all of attention's queries come from, and attention's scale."""
    found: dict[fx.Node, float] = {}
    for node in program.nodes():
        if node.target is ATTENTION:
            norms = _norms_behind(node.args[0])
            found |= dict.fromkeys(norms or (), float(node.args[4]))  # type: ignore[arg-type]
    return found


def _norms_behind(node: object) -> list[fx.Node] | None:
    """The RMSNorms that a value is made of, if nothing else reads them; else None."""
    if not isinstance(node, fx.Node) or len(node.users) != 1:
        return None
    if node.target is ATEN.rms_norm.default:
        return [node]
    if node.target not in UNITS:
        return None
    parts = [_norms_behind(source) for source in node.all_input_nodes]
    if not parts or None in parts:
        return None
    return [norm for part in parts if part for norm in part]


def _attention(c: _Copy, node: fx.Node) -> fx.Node:
    q, k, v = node.args[:3]
    heads, scale, bias = node.args[3], float(node.args[4]), aten.argument(node, 5)  # type: ignore[arg-type]
    assert isinstance(heads, int)
    name, (batch, queries, _), keys = node.name, aten.shape(q), aten.shape(k)[1]
    query = c.of(q)
    if not set(_norms_behind(q) or ()) & set(c.scales):
        query = c.call(f"{name}_scaled", ATEN.mul.Tensor, aten.shape(q), query, scale)

    def by_heads(part: str, value: fx.Node, old: object, order: list[int]) -> fx.Node:
        _, rows, columns = aten.shape(old)
        cut = [batch, rows, heads, columns // heads]
        split = c.call(f"{name}_{part}_heads", ATEN.reshape.default, cut, value, cut)
        shape = [cut[axis] for axis in order]
        return c.call(f"{name}_{part}", ATEN.permute.default, shape, split, order)

    left = by_heads("q", query, q, [0, 2, 1, 3])
    right = by_heads("k", c.of(k), k, [0, 2, 3, 1])
    mixed = by_heads("v", c.of(v), v, [0, 2, 1, 3])
    shape = [batch, heads, queries, keys]
    logits = c.call(f"{name}_logits", ATEN.matmul.default, shape, left, right)
    if bias is not None:
        logits = c.call(f"{name}_biased", ATEN.add.Tensor, shape, logits, c.of(bias))
    shares = c.call(f"{name}_shares", ATEN.softmax.int, shape, logits, -1)
    out = [batch, heads, queries, aten.shape(mixed)[3]]
    product = c.call(f"{name}_product", ATEN.matmul.default, out, shares, mixed)
    back = [out[axis] for axis in (0, 2, 1, 3)]
    rows = c.call(f"{name}_rows", ATEN.permute.default, back, product, [0, 2, 1, 3])
    return c.call(name, ATEN.reshape.default, aten.shape(node), rows, list(aten.shape(node)))


def _without_factors(c: _Copy, node: fx.Node, eps: float) -> fx.Node | None:
    """A norm, then a product with its weight and a sum with its bias, of its channels."""
    weight, bias = (aten.argument(node, i) for i in (2, 3))
    if weight is None or bias is None:
        return None
    shape = aten.shape(node)

    def spread(vector: fx.Node, part: str) -> fx.Node:
        if len(shape) != 4:
            return c.of(vector)
        axes = [shape[1], 1, 1]
        return c.call(f"{node.name}_{part}", ATEN.reshape.default, axes, c.of(vector), axes)

    given = (c.of(node.args[0]), node.args[1], None, None, eps)
    bare = c.call(f"{node.name}_bare", node.target, shape, *given)
    scaled = c.call(f"{node.name}_times", ATEN.mul.Tensor, shape, bare, spread(weight, "weight"))
    return c.call(node.name, ATEN.add.Tensor, shape, scaled, spread(bias, "bias"))


def _norm(c: _Copy, node: fx.Node) -> fx.Node | None:
    return _without_factors(c, node, float(aten.argument(node, 4, 1e-5)))


def _rms_norm(c: _Copy, node: fx.Node) -> fx.Node | None:
    if node not in c.scales:
        return None
    x, shape, weight, eps = node.args
    scaled = c.call(
        f"{node.name}_weight", ATEN.mul.Tensor, aten.shape(weight), c.of(weight), c.scales[node]
    )
    return c.call(node.name, node.target, aten.shape(node), c.of(x), shape, scaled, eps)


def _silu(c: _Copy, node: fx.Node) -> fx.Node:
    x, shape = c.of(node.args[0]), aten.shape(node)
    gate = c.call(f"{node.name}_gate", ATEN.sigmoid.default, shape, x)
    return c.call(node.name, ATEN.mul.Tensor, shape, x, gate)


def _linear(c: _Copy, node: fx.Node) -> fx.Node | None:
    """A layer of blocks, or of 16 bits, and its bias: such a product has none on the NPU."""
    x, weight = node.args[:2]
    bias = aten.argument(node, 2)
    part = c.program.part(weight) if isinstance(weight, fx.Node) else None
    if bias is None or (part is not None and not part.format.is_grouped):
        return None
    bare = c.call(f"{node.name}_product", node.target, aten.shape(node), c.of(x), c.of(weight))
    return c.call(node.name, ATEN.add.Tensor, aten.shape(node), bare, c.of(bias))


def _cat(c: _Copy, node: fx.Node) -> fx.Node | None:
    """Constants among the parts become values that are computed."""
    parts: Any = node.args[0]
    axis = int(aten.argument(node, 1, 0)) % len(aten.shape(node))
    value = next((part for part in parts if part in c.varying), None)
    if value is None or all(part in c.varying for part in parts):
        return None
    (zero,) = _zeros(c, f"{node.name}_zero", c.of(value), axis, 1)
    joined = [
        c.of(part)
        if part in c.varying
        else c.call(f"{node.name}_part_{i}", ATEN.add.Tensor, aten.shape(part), zero, c.of(part))
        for i, part in enumerate(parts)
    ]
    return c.call(node.name, ATEN.cat.default, aten.shape(node), joined, axis)


def _pad(c: _Copy, node: fx.Node) -> fx.Node | None:
    """Zeros or edges beside a value, axis after axis; a convolution's zeros alone are its own."""
    edges = aten.repeats_edges(node)
    if not edges and all(u.target is ATEN.conv2d.default for u in node.users):
        return None
    before, after = aten.padding(node)
    found, shape = c.of(node.args[0]), [*aten.shape(node.args[0])]
    axes = [axis for axis in range(len(shape)) if before[axis] or after[axis]]
    for axis in axes:
        names = f"{node.name}_before_{axis}", f"{node.name}_after_{axis}"
        if edges:
            ahead = _repeated(c, names[0], found, axis, 0, before[axis])
            behind = _repeated(c, names[1], found, axis, shape[axis] - 1, after[axis])
        else:
            ahead = _zeros(c, names[0], found, axis, before[axis])
            behind = _zeros(c, names[1], found, axis, after[axis])
        shape[axis] += before[axis] + after[axis]
        name = node.name if axis == axes[-1] else f"{node.name}_axis_{axis}"
        found = c.call(name, ATEN.cat.default, shape, [*ahead, found, *behind], axis)
    return found


def _repeated(
    c: _Copy, name: str, value: fx.Node, axis: int, place: int, count: int
) -> list[fx.Node]:
    """What a value has at a place along an axis, so many times."""
    shape = [*aten.shape(value)]
    shape[axis] = 1
    given = (value, axis, place, place + 1)
    return count * [c.call(name, ATEN.slice.Tensor, shape, *given)] if count else []


def _zeros(c: _Copy, name: str, value: fx.Node, axis: int, count: int) -> list[fx.Node]:
    """So many along an axis beside a value, in pieces that are no longer than it."""
    pieces, size = [], aten.shape(value)[axis]
    for start in range(0, count, size):
        shape = [*aten.shape(value)]
        shape[axis] = min(size, count - start)
        given = (value, axis, 0, shape[axis])
        piece = c.call(f"{name}_piece_{start}", ATEN.slice.Tensor, shape, *given)
        pieces.append(c.call(f"{name}_{start}", ATEN.mul.Tensor, shape, piece, 0.0))
    return pieces


def _rsqrt(c: _Copy, node: fx.Node) -> fx.Node:
    shape = aten.shape(node)
    root = c.call(f"{node.name}_root", ATEN.sqrt.default, shape, c.of(node.args[0]))
    return c.call(node.name, ATEN.div.Tensor, shape, 1.0, root)


RULES: dict[Any, Callable[[_Copy, fx.Node], fx.Node | None]] = {
    ATTENTION: _attention,
    ATEN.layer_norm.default: _norm,
    ATEN.group_norm.default: _norm,
    ATEN.rms_norm.default: _rms_norm,
    ATEN.silu.default: _silu,
    ATEN.linear.default: _linear,
    ATEN.rsqrt.default: _rsqrt,
    ATEN.pad.default: _pad,
    ATEN.cat.default: _cat,
}

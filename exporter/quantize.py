"""Stop 4, quantize: weights become codes and scales inside the program, before any backend.

``quantize`` rewrites the program: a weight's placeholder gives way to placeholders for its codes,
scales and zero points, joined by ``fourstep::dequantize``. The rewritten program still runs in
torch and is the reference for every backend. Codes are computed when a source is read, one weight
at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, fx

from exporter import ops as _registers_operators  # noqa: F401
from exporter.checkpoint import Checkpoint
from exporter.errors import InputError
from exporter.formats import FORMATS, Format, Scheme, fit
from exporter.palettes import palettize
from exporter.runtime.manifest import Adjusted
from exporter.trace import Constant, Program, Stored

ATEN = torch.ops.aten
SLAB_VALUES = 1 << 19  # 2 MB of float32: what a core's cache holds
ALMOST_HALF = torch.tensor(0.49999997)  # the float32 before 0.5
FormatOf = Callable[[str, str, str], Format]


@dataclass(frozen=True)
class Part:
    """A part of a stored tensor in a format: ``values``, ``scale``, ``zero_point``, ``palette``."""

    of: Stored
    format: Format
    part: str


@dataclass(frozen=True, eq=False)
class Encoded:
    """A weight (N, K, ...) in a format.

    Attributes:
        values: fp16 values, or int8 codes (symmetric), or uint8 codes (asymmetric and palettes);
            (N, K, ...).
        scale: (N, K / block) float32, or None for fp16 and palettes.
        zero_point: (N, K / block) uint8, or None.
        palette: (P, 2^bits) float32, or None.
    """

    values: Tensor
    scale: Tensor | None = None
    zero_point: Tensor | None = None
    palette: Tensor | None = None


@dataclass(frozen=True)
class QuantizedProgram(Program):
    """A program with its weights in formats.

    Attributes:
        formats: format of each stored weight, by its name in the checkpoint.
        adjusted: weights whose format is not the one that was asked for.
    """

    formats: dict[str, Format] = field(default_factory=dict, repr=False)
    adjusted: tuple[Adjusted, ...] = ()

    def stored(self) -> dict[str, Stored]:
        """The tensors of the checkpoint that this program needs, by name."""
        sources = (s.of if isinstance(s, Part) else s for s in self.tensors.values())
        return {s.name: s for s in sources if isinstance(s, Stored)}

    def values_by_format(self) -> dict[str, int]:
        """How many weight values are stored in each format."""
        count: Counter[str] = Counter()
        for name, source in self.stored().items():
            count[str(self.formats[name])] += torch.Size(source.shape).numel()
        return dict(sorted(count.items()))

    def stored_bytes(self) -> int:
        """Bytes of all weights in their formats: values or codes, scales, zero points."""
        return sum(self.formats[n].stored_bytes(s.shape) for n, s in self.stored().items())


def encode(weight: Tensor, form: Format) -> Encoded:
    """Round a float32 weight (N, K, ...) to nearest in ``form``.

    int8: scale = max |w| / 127 over an output channel, code = w / scale rounded half to even
    (onnxruntime's per-channel symmetric quantizer).
    int4, by groups: the extreme value w* of a group maps to -8, so scale = w* / -8 may be
    negative and all 16 codes are in use; asymmetric: scale = (max - min) / 15 with 0 inside the
    range. Codes round half away from zero (onnxruntime's 4-bit block quantizer).
    Palettes: ``exporter.palettes``.

    Raises ValueError when a value is not finite, or too large for fp16.
    """
    if not torch.isfinite(weight).all():
        raise ValueError("has a value that is not finite")
    if form.name == "fp16":
        half = weight.to(torch.float16)
        if not torch.isfinite(half).all():
            raise ValueError("has a value beyond fp16's 65504")
        return Encoded(half)
    if form.is_palette:
        values, table = palettize(weight, form.bits, form.group_size or len(weight))
        return Encoded(values, palette=table)
    # Rows do not depend on each other: in slabs, a 130 M table needs little more than its codes.
    rows = max(1, SLAB_VALUES * len(weight) // weight.numel())
    slabs = [
        _encode_per_channel(slab) if form.bits == 8 else _encode_groups(slab, form)
        for slab in torch.split(weight, rows)
    ]
    return Encoded(
        torch.cat([s.values for s in slabs]),
        torch.cat([s.scale for s in slabs if s.scale is not None]),
        None
        if form.symmetric
        else torch.cat([s.zero_point for s in slabs if s.zero_point is not None]),
    )


def _encode_per_channel(weight: Tensor) -> Encoded:
    low, high = torch.aminmax(weight.flatten(1), dim=1)
    largest = torch.maximum(high, -low)
    scale = torch.where(largest > 0, largest / 127, torch.ones_like(largest))
    spread = scale.reshape(-1, *(1,) * (weight.ndim - 1))
    codes = torch.round(weight / spread).clamp_(-127, 127).to(torch.int8)
    return Encoded(codes, scale[:, None])


def _encode_groups(weight: Tensor, form: Format) -> Encoded:
    assert form.group_size is not None
    groups = weight.reshape(len(weight), -1, form.group_size)
    low, high = torch.aminmax(groups, dim=2)
    if form.symmetric:
        scale = torch.where(high.abs() > low.abs(), high, low) / -8
        zero_point = None
    else:
        low, high = low.clamp(max=0), high.clamp(min=0)
        scale = (high - low) / 15
        ratio = torch.where(scale > 0, -low / scale, torch.zeros_like(scale))
        zero_point = _round_half_away(ratio).clamp(0, 15)
    inverse = torch.where(scale != 0, 1 / scale, torch.zeros_like(scale))
    codes = _round_half_away(groups * inverse.unsqueeze(2))
    if zero_point is None:
        return Encoded(codes.clamp_(-8, 7).to(torch.int8).flatten(1), scale)
    codes = codes.add_(zero_point.unsqueeze(2)).clamp_(0, 15).to(torch.uint8).flatten(1)
    return Encoded(codes, scale, zero_point.to(torch.uint8))


def _round_half_away(x: Tensor) -> Tensor:
    """Nearest integer, ties away from zero (C's roundf), of float32 below 2^22.

    Adding 0.5 itself would carry the float32 before 0.5 up to 1.
    """
    return (x + torch.copysign(ALMOST_HALF, x)).trunc_()


class Weights:
    """Reads the tensors of programs from a checkpoint, computing codes as they are asked for.

    What was read is kept up to ``keep_bytes``, so that a small model's codes are computed once
    and a large one's never fill the memory.
    """

    def __init__(
        self, checkpoint: Checkpoint, dtype: torch.dtype = torch.float32, keep_bytes: int = 1 << 30
    ) -> None:
        self.checkpoint, self.dtype = checkpoint, dtype
        self._free_bytes = keep_bytes
        self._kept: dict[object, Tensor] = {}
        self._last: tuple[Stored, Format, Encoded] | None = None

    def shape(self, source: Stored) -> tuple[int, ...]:
        """Shape of the tensor in the checkpoint."""
        return self.checkpoint.component(source.component).info(source.name).shape

    def read(self, source: object) -> Tensor:
        """The value of a Stored, Constant or Part; floats in this reader's dtype.

        Raises InputError when a weight cannot be encoded.
        """
        if isinstance(source, Constant):
            value = torch.from_numpy(source.value)
            return value.to(torch.int32 if source.value.dtype.kind in "iu" else self.dtype)
        if source in self._kept:
            return self._kept[source]
        value = self._stored(source) if isinstance(source, Stored) else self._part(source)
        size = value.numel() * value.element_size()
        if size <= self._free_bytes:
            self._free_bytes -= size
            self._kept[source] = value
        return value

    def _stored(self, source: Stored) -> Tensor:
        component = self.checkpoint.component(source.component)
        if source.crop is None:
            value = component.read(source.name)
        else:
            value = torch.cat([component.read(source.name, rows) for rows in source.crop.rows], 1)
        return value.to(self.dtype)

    def _part(self, source: object) -> Tensor:
        assert isinstance(source, Part)
        if self._last is None or self._last[:2] != (source.of, source.format):
            try:
                encoded = encode(self._stored(source.of).float(), source.format)
            except ValueError as error:
                where = f"{source.of.component}: tensor '{source.of.name}'"
                raise InputError(
                    f"{where} {error}; it cannot be stored as {source.format}"
                ) from None
            self._last = (source.of, source.format, encoded)
        encoded = self._last[2]
        value = getattr(encoded, source.part)
        assert isinstance(value, Tensor)
        return value.to(self.dtype) if source.part in ("scale", "palette") else value


def roles(program: Program) -> dict[str, str]:
    """The role of each stored tensor, by placeholder: how the operators use it.

    ``linear``, ``conv`` and ``embedding`` are weights of such layers; ``table`` is any other
    tensor of two axes or more (positions), ``vector`` the rest (norms, biases).
    """
    found = {}
    for node in program.graph.nodes:
        source = program.tensors.get(node.name)
        if node.op == "placeholder" and isinstance(source, Stored):
            found[node.name] = _role(node, source, program)
    return found


def _role(node: fx.Node, source: Stored, program: Program) -> str:
    (user, *_) = node.users
    if user.target == ATEN.linear.default and user.args[1] is node:
        return "linear"
    if user.target == ATEN.conv2d.default and user.args[1] is node:
        return "conv"
    if user.target == ATEN.embedding.default and user.args[0] is node:
        index = user.args[1]
        looked_up = isinstance(index, fx.Node) and index.name not in program.tensors
        return "embedding" if looked_up else "table"
    return "table" if len([s for s in source.shape if s > 1]) > 1 else "vector"


def quantize(program: Program, format_of: FormatOf) -> QuantizedProgram:
    """Store each weight of ``program`` in the format that ``format_of`` names.

    Args:
        format_of: (graph, weight, role) -> Format, usually ``Scheme.format_of``.
    """
    graph, env = fx.Graph(), {}
    tensors, formats, adjusted = dict[str, object](), dict[str, Format](), []
    joins: list[tuple[fx.Node, dict[str, fx.Node], Format, int]] = []
    kinds = roles(program)
    for node in program.graph.nodes:
        if node.op != "placeholder":
            break
        source = program.tensors.get(node.name)
        if not isinstance(source, Stored):
            env[node] = _place(graph, node, node.name, node.meta["val"])
            if source is not None:
                tensors[node.name] = source
            continue
        asked = format_of(program.name, source.name, kinds[node.name])
        used = fit(asked, source.shape)
        formats[source.name] = used
        if used != asked:
            adjusted.append(Adjusted(source.name, str(asked), str(used)))
        if used.name == "fp32":
            env[node] = _place(graph, node, node.name, node.meta["val"])
            tensors[node.name] = source
            continue
        parts = {}
        for part, shape, dtype in _parts(source.shape, used):
            name = f"{node.name}_{part}"
            parts[part] = _place(graph, node, name, torch.empty(shape, dtype=dtype, device="meta"))
            tensors[name] = Part(source, used, part)
        joins.append((node, parts, used, used.group_size or source.shape[1]))
    for node, parts, used, block in joins:
        env[node] = _join(graph, parts, used, block)
        env[node].meta["val"] = node.meta["val"]
    for node in program.graph.nodes:
        if node.op != "placeholder":
            env[node] = graph.node_copy(node, lambda n: env[n])
    return QuantizedProgram(
        program.name, program.inputs, program.outputs, graph, tensors, formats, tuple(adjusted)
    )


def quantize_all(programs: Mapping[str, Program], scheme: Scheme) -> dict[str, QuantizedProgram]:
    """Quantize every graph by a scheme.

    Raises InputError when a pattern of the scheme, or of a recipe's override, matches no weight: a
    misspelt name must not pass for a wish.
    """
    weights = [
        (program.name, source.name, kinds[place])
        for program in programs.values()
        for kinds in [roles(program)]
        for place, source in program.tensors.items()
        if isinstance(source, Stored)
    ]
    for rule in scheme.rules:
        if rule.weight != "*" and not any(rule.matches(*w) for w in weights):
            fitting = replace(rule, weight="*")
            example = next((f", such as '{w[1]}'" for w in weights if fitting.matches(*w)), "")
            raise InputError(
                f"{scheme.name}: no weight of {rule.graph} that can be {rule.format} matches "
                f"'{rule.weight}'{example}"
            )
    return {name: quantize(program, scheme.format_of) for name, program in programs.items()}


def _place(graph: fx.Graph, like: fx.Node, name: str, value: Tensor) -> fx.Node:
    node = graph.placeholder(name)
    node.name, node.meta["val"] = name, value
    return node


def _parts(shape: tuple[int, ...], form: Format) -> list[tuple[str, tuple[int, ...], torch.dtype]]:
    """Name, shape and dtype of each part of a weight in a format."""
    if form.name == "fp16":
        return [("values", shape, torch.float16)]
    blocks = (shape[0], shape[1] // form.group_size if form.group_size else 1)
    if form.is_palette:
        palettes = shape[0] // form.group_size if form.group_size else 1
        return [
            ("values", shape, torch.uint8),
            ("palette", (palettes, 2**form.bits), torch.float32),
        ]
    parts = [
        ("values", shape, torch.int8 if form.symmetric else torch.uint8),
        ("scale", blocks, torch.float32),
    ]
    return parts if form.symmetric else [*parts, ("zero_point", blocks, torch.uint8)]


def _join(graph: fx.Graph, parts: dict[str, fx.Node], form: Format, block: int) -> fx.Node:
    if form.name == "fp16":
        return graph.call_function(ATEN.to.dtype, (parts["values"], torch.float32))
    if form.is_palette:
        table = (parts["values"], parts["palette"])
        return graph.call_function(torch.ops.fourstep.look_up.default, table)
    arguments = (parts["values"], parts["scale"], parts.get("zero_point"), block)
    return graph.call_function(torch.ops.fourstep.dequantize.default, arguments)


def unquantized(program: Program) -> QuantizedProgram:
    """The same program with every weight in float32."""
    return quantize(program, lambda *_: FORMATS["fp32"])

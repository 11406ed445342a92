"""Stop 4, quantize: weights become codes and scales inside the program, before any backend.

``quantize`` rewrites the program: a weight's placeholder gives way to placeholders for its codes,
scales and zero points, joined by ``fourstep::dequantize``. The rewritten program still runs in
torch and is the reference for every backend. Codes are computed when a source is read, one weight
at a time.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, fx

from exporter.errors import InputError
from exporter.package.manifest import Adjusted
from exporter.package.names import MMDIT
from exporter.program.program import MOST_ROWS, Constant, Folded, Program, Stored, linears
from exporter.quantize.formats import FORMATS, Format, Scheme, fitting_format
from exporter.quantize.schemes import is_shipped

ATEN = torch.ops.aten
FormatOf = Callable[[str, str, str], Format]
Methods = frozenset[str]
NEAREST: Methods = frozenset()


@dataclass(frozen=True)
class Part:
    """A part of a stored tensor in a format: ``values``, ``scale``, ``zero_point``, ``palette``.

    ``methods`` say how its codes are chosen (``calibrate.codes``); without any, to nearest.
    ``columns``, (K,) float32, multiply the weight's columns before it is encoded: the factors that
    its layer's rounded input is divided by.
    """

    of: Stored
    format: Format
    part: str
    methods: Methods = NEAREST
    columns: Constant | None = None


@dataclass(frozen=True)
class Unrounded:
    """A stored tensor that is not rounded, as the methods leave it.

    A bias takes over the mean change that rounding ``weight`` to ``format`` makes in its layer's
    output; with more than one row, (rows, N), a row for each that the layer meets.
    """

    of: Stored
    methods: Methods
    weight: Stored | None = None
    format: Format | None = None
    rows: int = 1


def stored_behind(source: object) -> Stored | None:
    """The tensor of the checkpoint that a source is, or is made of."""
    source = source.of if isinstance(source, Part | Unrounded) else source
    return source if isinstance(source, Stored) else None


def constant_shape(source: object) -> tuple[int, ...] | None:
    """Of a value, float32 or int32, that is not the checkpoint's; else None."""
    if isinstance(source, Constant):
        return source.value.shape
    return source.shape if isinstance(source, Folded) else None


@dataclass(frozen=True)
class QuantizedProgram(Program):
    """A program with its weights in formats.

    Attributes:
        formats: format of each stored weight, by its name in the checkpoint.
        adjusted: weights whose format is not the one that was asked for.
        methods: how codes are chosen.
    """

    formats: dict[str, Format] = field(default_factory=dict, repr=False)
    adjusted: tuple[Adjusted, ...] = ()
    methods: Methods = NEAREST

    def stored(self) -> dict[str, Stored]:
        """The tensors of the checkpoint that this program needs, by name."""
        sources = map(stored_behind, self.tensors.values())
        return {s.name: s for s in sources if s is not None}

    def part(self, weight: fx.Node) -> Part | None:
        """The codes that a weight's node decodes, or None for a weight that is stored as it is."""
        codes = weight.args[0] if weight.args else None
        source = self.tensors.get(codes.name) if isinstance(codes, fx.Node) else None
        return source if isinstance(source, Part) else None

    def values_by_format(self) -> dict[str, int]:
        """How many weight values are stored in each format."""
        count: Counter[str] = Counter()
        for name, source in self.stored().items():
            count[str(self.formats[name])] += torch.Size(source.shape).numel()
        return dict(sorted(count.items()))

    def stored_bytes(self) -> int:
        """Bytes of constants and of all weights in their formats: values or codes, scales."""
        rows = (s for s in self.tensors.values() if isinstance(s, Unrounded))
        shapes = (constant_shape(source) for source in self.tensors.values())
        added = sum(4 * math.prod(shape) for shape in shapes if shape is not None)
        added += sum(4 * (s.rows - 1) * torch.Size(s.of.shape).numel() for s in rows)
        return added + sum(self.formats[n].stored_bytes(s.shape) for n, s in self.stored().items())


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


def quantize(program: Program, format_of: FormatOf, methods: Methods = NEAREST) -> QuantizedProgram:
    """Store each weight of ``program`` in the format that ``format_of`` names.

    Args:
        format_of: (graph, weight, role) -> Format, usually ``Scheme.format_of``.
        methods: how codes are chosen (``calibrate.codes``); they need a calibration when
            weights are read.
    """
    biases = _biases(program, format_of) if "bias" in methods else {}
    formats, adjusted = _formats(program, format_of)
    held = {bias.weight for bias in biases.values()}
    graph, env = fx.Graph(), dict[fx.Node, fx.Node]()
    tensors, joins = dict[str, object](), dict[fx.Node, _Join]()
    for node in (n for n in program.graph.nodes if n.op == "placeholder"):
        source = program.tensors.get(node.name)
        if not isinstance(source, Stored):
            env[node] = _place(graph, node, node.name, node.meta["val"])
            if source is not None:
                tensors[node.name] = source
            continue
        form = formats[source.name]
        own = methods if source in held else methods - {"bias"}  # else nothing takes the mean out
        if form.name == "fp32":
            bias = biases.get(node)
            shape = source.shape if bias is None or bias.rows == 1 else (bias.rows, *source.shape)
            env[node] = _place(graph, node, node.name, node.meta["val"].new_empty(shape))
            tensors[node.name] = Unrounded(source, own) if own else source
        else:
            parts = _place_parts(graph, node, source, form)
            tensors |= {place.name: Part(source, form, part, own) for part, place in parts.items()}
            joins[node] = _Join(parts, form, form.group_size or source.shape[1])
    for node, bias in biases.items():
        form = formats[bias.weight.name]
        tensors[node.name] = Unrounded(bias.of, methods, bias.weight, form, bias.rows)
    _copy_operators(program, graph, env, joins, biases)
    return QuantizedProgram(
        program.name, program.inputs, program.outputs, graph, tensors, formats, adjusted, methods
    )


def _formats(
    program: Program, format_of: FormatOf
) -> tuple[dict[str, Format], tuple[Adjusted, ...]]:
    """The format that each stored weight gets, and those that are not what was asked for."""
    formats, adjusted = dict[str, Format](), list[Adjusted]()
    for place, role in roles(program).items():
        source = program.tensors[place]
        assert isinstance(source, Stored)
        asked = format_of(program.name, source.name, role)
        used = formats[source.name] = fitting_format(asked, source.shape)
        if used != asked:
            adjusted.append(Adjusted(source.name, str(asked), str(used)))
    return formats, tuple(adjusted)


@dataclass(frozen=True)
class _Join:
    """A weight's parts, by name, and how they become the weight again."""

    parts: Mapping[str, fx.Node]
    format: Format
    block: int


def _copy_operators(
    program: Program,
    graph: fx.Graph,
    env: dict[fx.Node, fx.Node],
    joins: dict[fx.Node, _Join],
    biases: Mapping[fx.Node, _Bias],
) -> None:
    """Copy what comes behind the placeholders; a weight's parts are joined where it is first used.

    A bias with a row for each that its layer meets is added by an operator of its own.
    """
    for node in (n for n in program.graph.nodes if n.op != "placeholder"):
        for weight in (a for a in node.all_input_nodes if a in joins):
            env[weight] = _join(graph, joins.pop(weight))
            env[weight].meta["val"] = weight.meta["val"]
        bias = next((biases[n] for n in node.all_input_nodes if n in biases), None)
        if bias is None or bias.rows == 1:
            env[node] = graph.node_copy(node, lambda n: env[n])
            continue
        x, weight, rows = (env[n] for n in node.all_input_nodes)
        bare = graph.call_function(ATEN.linear.default, (x, weight))
        env[node] = graph.call_function(ATEN.add.Tensor, (bare, rows))
        bare.meta["val"] = env[node].meta["val"] = node.meta["val"]


@dataclass(frozen=True)
class _Bias:
    """Of a linear layer's bias: the layer's weight, and how many rows the layer meets if few."""

    of: Stored
    weight: Stored
    rows: int


def _biases(program: Program, format_of: FormatOf) -> dict[fx.Node, _Bias]:
    """The biases that can take over a mean change: of one linear layer each, with codes.

    Or in float32, as sensitivities want it: what codes would change is asked of each row.
    """
    found = {}
    for node, weight in linears(program).items():
        form = fitting_format(format_of(program.name, weight.name, "linear"), weight.shape)
        if not form.takes_methods and form.name != "fp32":
            continue
        bias = node.args[2] if len(node.args) > 2 else None
        of = program.tensors.get(bias.name) if isinstance(bias, fx.Node) else None
        if isinstance(bias, fx.Node) and isinstance(of, Stored) and len(bias.users) == 1:
            rows = node.meta["val"].shape[:-1].numel()
            found[bias] = _Bias(of, weight, rows if rows <= MOST_ROWS else 1)
    return found


def quantize_all(programs: Mapping[str, Program], scheme: Scheme) -> dict[str, QuantizedProgram]:
    """Quantize every graph by a scheme.

    Raises InputError when a pattern of the scheme, or of a recipe's override, matches no weight: a
    misspelt name must not pass for a wish. A shipped scheme's rule for a graph that is not there,
    such as the VAE's where a tiny decoder draws, is none.
    """
    weights = [
        (program.name, source.name, kinds[place])
        for program in programs.values()
        for kinds in [roles(program)]
        for place, source in program.tensors.items()
        if isinstance(source, Stored)
    ]
    for rule in scheme.rules:
        if rule.graph not in programs and is_shipped(rule):
            continue
        if rule.weight != "*" and not any(rule.matches(*w) for w in weights):
            fitting = replace(rule, weight="*")
            example = next((f", such as '{w[1]}'" for w in weights if fitting.matches(*w)), "")
            raise InputError(
                f"{scheme.name}: no weight of {rule.graph} that can be {rule.format} matches "
                f"'{rule.weight}'{example}"
            )
    formats = {name: {scheme.format_of(*w) for w in weights if w[0] == name} for name in programs}
    return {
        name: quantize(
            program, scheme.format_of, methods_of(name, formats[name], scheme.used_methods)
        )
        for name, program in programs.items()
    }


def methods_of(graph: str, formats: Iterable[Format], methods: Sequence[str]) -> Methods:
    """The methods for one graph: for the MMDiT's, and for encoders with groups.

    Eight bits lose next to nothing in an encoder, and measuring its layers is as dear as drawing.
    """
    taking = [form for form in formats if form.takes_methods]
    asked = taking and (graph in MMDIT or any(form.is_grouped for form in taking))
    return frozenset(methods) if asked else NEAREST


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


def _place_parts(
    graph: fx.Graph, node: fx.Node, source: Stored, form: Format
) -> dict[str, fx.Node]:
    """Placeholders for the parts of a weight, by part."""
    return {
        part: _place(
            graph, node, f"{node.name}_{part}", torch.empty(shape, dtype=dtype, device="meta")
        )
        for part, shape, dtype in _parts(source.shape, form)
    }


def _join(graph: fx.Graph, join: _Join) -> fx.Node:
    parts, form = join.parts, join.format
    if form.name == "fp16":
        return graph.call_function(ATEN.to.dtype, (parts["values"], torch.float32))
    if form.is_palette:
        table = (parts["values"], parts["palette"])
        return graph.call_function(torch.ops.fourstep.look_up.default, table)
    arguments = (parts["values"], parts["scale"], parts.get("zero_point"), join.block)
    return graph.call_function(torch.ops.fourstep.dequantize.default, arguments)


def unquantized(program: Program) -> QuantizedProgram:
    """The same program with every weight in float32."""
    return quantize(program, lambda *_: FORMATS["fp32"])

"""Stop 4, quantize: weights become codes and scales inside the program, before any backend.

``quantize`` rewrites the program: a weight's placeholder gives way to placeholders for its codes,
scales and zero points, joined by ``fourstep::dequantize``. The rewritten program still runs in
torch and is the reference for every backend. Codes are computed when a source is read, one weight
at a time.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, fx

from exporter.calibrate import MOST_ROWS, LayerInputs, linears
from exporter.checkpoint import Checkpoint
from exporter.codes import best_codes
from exporter.errors import InputError
from exporter.formats import FORMATS, Format, Scheme, fit
from exporter.memory import release
from exporter.ops import dequantize, look_up
from exporter.palettes import palettize
from exporter.runtime.manifest import Adjusted
from exporter.statistics import Calibration
from exporter.trace import Constant, Program, Stored

ATEN = torch.ops.aten
LARGE_VALUES = 1 << 18
SLAB_VALUES = 1 << 19  # 2 MB of float32: what a core's cache holds
HALF_NORMALS = (2.0**-14, 65504.0)  # the smallest and the largest of fp16's normal numbers
ALMOST_HALF = 0.49999997  # the float32 before 0.5
FormatOf = Callable[[str, str, str], Format]
Methods = frozenset[str]
NEAREST: Methods = frozenset()
MMDIT = ("conditioner", "denoiser")


@dataclass(frozen=True)
class Part:
    """A part of a stored tensor in a format: ``values``, ``scale``, ``zero_point``, ``palette``.

    ``methods`` say how its codes are chosen (``exporter.codes``); without any, to nearest.
    """

    of: Stored
    format: Format
    part: str
    methods: Methods = NEAREST


@dataclass(frozen=True)
class Adapted:
    """A stored tensor that is not rounded, as the methods leave it.

    A bias takes over the mean change that rounding ``weight`` to ``format`` makes in its layer's
    output; with more than one row, (rows, N), a row for each that the layer meets.
    """

    of: Stored
    methods: Methods
    weight: Stored | None = None
    format: Format | None = None
    rows: int = 1


@dataclass(frozen=True, eq=False)
class Encoded:
    """A weight (N, K, ...) in a format.

    Attributes:
        values: floats as they are stored, or int8 codes (symmetric), or uint8 codes (asymmetric and
            palettes); (N, K, ...).
        scale: (N, K / block) float32, of groups rounded to fp16's values unless one is outside
            them; or None for floats and palettes.
        zero_point: (N, K / block) uint8, or None.
        palette: (P, 2^bits) float32, or None.
        mean_change: (R, N) float32, what rounding adds to the layer's output on average, or None
            when its inputs are not known.
    """

    values: Tensor
    scale: Tensor | None = None
    zero_point: Tensor | None = None
    palette: Tensor | None = None
    mean_change: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Change:
    """What rounding changes: a weight by ``weight``, its layer's mean output by ``mean`` (R, N)."""

    weight: Tensor
    mean: Tensor | None


def stored_behind(source: object) -> Stored | None:
    """The tensor of the checkpoint that a source is, or is made of."""
    source = source.of if isinstance(source, Part | Adapted) else source
    return source if isinstance(source, Stored) else None


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
        rows = (s for s in self.tensors.values() if isinstance(s, Adapted))
        constants = (s.value for s in self.tensors.values() if isinstance(s, Constant))
        added = sum(4 * value.size for value in constants)  # float32 or int32
        added += sum(4 * (s.rows - 1) * torch.Size(s.of.shape).numel() for s in rows)
        return added + sum(self.formats[n].stored_bytes(s.shape) for n, s in self.stored().items())


def encode(weight: Tensor, form: Format) -> Encoded:
    """Round a weight (N, K, ...) to nearest in ``form``, in float32, slab by slab.

    int8: scale = max |w| / 127 over an output channel, code = w / scale rounded half to even
    (onnxruntime's per-channel symmetric quantizer). w8a8: instead of max |w| the largest sum of two
    neighbours of one sign along the input axis, the first and second, third and fourth and so on.
    So no two codes that a processor without 8-bit dot products multiplies by levels of 0 to 255 and
    adds in 16 bits add up to more than 128: 128 x 255 is within 16 bits, and nothing is clipped.
    int4, by groups: the extreme value w* of a group maps to -8, so scale = w* / -8 may be
    negative and all 16 codes are in use; asymmetric: scale = (max - min) / 15 with 0 inside the
    range. Codes round half away from zero (onnxruntime's block quantizers). int2 alike: w* maps
    to -2, the range has 3 steps. Before codes are computed the scales are rounded to fp16, in
    which they are stored; those of a weight with one outside fp16's normal numbers stay float32.
    Palettes: ``exporter.palettes``. fp32 is left as it is.

    Raises ValueError when a value is not finite, or too large for fp16.
    """
    if form.is_integer:
        return _encode_groups(weight, form) if form.is_grouped else _encode_channels(weight, form)
    refuse_infinite(*torch.aminmax(weight))
    if form.name == "fp32":
        return Encoded(weight.float())
    if form.name == "fp16":
        half = weight.to(torch.float16)
        if not torch.isfinite(half).all():
            raise ValueError("has a value beyond fp16's 65504")
        return Encoded(half)
    values, table = palettize(weight.float(), form.bits, form.group_size or len(weight))
    return Encoded(values, palette=table)


def refuse_infinite(*ends: Tensor) -> None:
    """Raise ValueError if one of the least or of the largest values of a weight is not finite."""
    if not all(end.isfinite().all() for end in ends):
        raise ValueError("has a value that is not finite")


def _slabs(weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows of a weight in float32, and which: they do not depend on each other, and so a table of
    130 M values needs little more than its codes. All slabs are the same memory, to be changed."""
    count = max(1, SLAB_VALUES * len(weight) // weight.numel())
    memory = torch.empty(min(count, len(weight)), *weight.shape[1:])
    for first in range(0, len(weight), count):
        part = weight[first : first + count]
        yield slice(first, first + len(part)), memory[: len(part)].copy_(part)


def _extremes(values: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest along the last axis (``torch.aminmax`` takes ten times as long).

    Raises ValueError when one is not finite.
    """
    low, high = values.amin(-1), values.amax(-1)
    refuse_infinite(low, high)
    return low, high


def _encode_channels(weight: Tensor, form: Format) -> Encoded:
    codes = torch.empty(weight.shape, dtype=torch.int8)
    scale = torch.empty(len(weight))
    for rows, slab in _slabs(weight):
        low, high = _extremes(_pairs(slab) if form.rounds_inputs else slab.flatten(1))
        largest = torch.maximum(high, -low)
        scale[rows] = torch.where(largest > 0, largest / 127, torch.ones_like(largest))
        spread = scale[rows].reshape(-1, *(1,) * (slab.ndim - 1))
        codes[rows] = slab.div_(spread).round_().clamp_(-127, 127)
    return Encoded(codes, scale[:, None])


def _pairs(rows: Tensor) -> Tensor:
    """Sums of what is above 0, and of what is below it, of two neighbours along axis 1, (N, ...).

    Where neighbours are not the same in all layouts, since K is odd: twice the values.
    """
    if rows.shape[1] % 2:
        return rows.flatten(1) * 2
    one, other = rows[:, ::2].flatten(1), rows[:, 1::2].flatten(1)
    above, below = (one.clamp(**e) + other.clamp(**e) for e in ({"min": 0}, {"max": 0}))
    return torch.cat([above, below], 1)


def _encode_groups(weight: Tensor, form: Format) -> Encoded:
    assert form.group_size is not None
    groups = weight.reshape(len(weight), -1, form.group_size)
    low, high = torch.empty(2, *groups.shape[:2])
    for rows, slab in _slabs(groups):
        low[rows], high[rows] = _extremes(slab)
    steps = 2**form.bits - 1
    if form.symmetric:
        least, extreme = -(2 ** (form.bits - 1)), torch.where(high.abs() > low.abs(), high, low)
        scale = stored_scale(extreme / least, form)
        zero_point = None
    else:
        least, low, high = 0, low.clamp(max=0), high.clamp(min=0)
        scale = stored_scale((high - low) / steps, form)
        ratio = torch.where(scale > 0, -low / scale, torch.zeros_like(scale))
        zero_point = _round_half_away(ratio).clamp(0, steps)
    inverse = torch.where(scale != 0, 1 / scale, torch.zeros_like(scale))
    codes = torch.empty(groups.shape, dtype=torch.int8 if form.symmetric else torch.uint8)
    for rows, slab in _slabs(groups):
        rounded = _round_half_away(slab.mul_(inverse[rows, :, None]))
        if zero_point is not None:
            rounded.add_(zero_point[rows, :, None])
        codes[rows] = rounded.clamp_(least, least + steps)
    zeros = None if zero_point is None else zero_point.to(torch.uint8)
    return Encoded(codes.reshape(weight.shape), scale, zeros)


def stored_scale(scale: Tensor, form: Format) -> Tensor:
    """A weight's scales, float32, as they will be stored.

    Those of groups are rounded to fp16, unless one of them is outside its normal numbers: many
    devices take smaller ones for 0.
    """
    sizes = scale[scale != 0].abs()
    least, most = HALF_NORMALS
    if not form.is_grouped or (sizes.numel() and (sizes.min() < least or sizes.max() > most)):
        return scale
    return scale.half().float()


def _round_half_away(x: Tensor) -> Tensor:
    """Nearest integer, ties away from zero (C's roundf), of float32 below 2^22.

    Adding 0.5 itself would carry the float32 before 0.5 up to 1.
    """
    return x.abs().add_(ALMOST_HALF).floor_().copysign_(x)


class Weights:
    """Reads the tensors of programs from a checkpoint, computing codes as they are asked for.

    What was read is kept up to ``keep_bytes``, so that a small model's codes are computed once
    and a large one's never fill the memory.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype = torch.float32,
        keep_bytes: int = 1 << 30,
        calibration: Calibration | None = None,
    ) -> None:
        self.checkpoint, self.dtype, self.calibration = checkpoint, dtype, calibration
        self._free_bytes = keep_bytes
        self._kept: dict[object, Tensor] = {}
        self._last: tuple[tuple[Stored, Format, Methods], Encoded] | None = None
        self._mean_changes: dict[tuple[Stored, Format, Methods], Tensor | None] = {}

    def shape(self, source: Stored) -> tuple[int, ...]:
        """Shape of the tensor in the checkpoint."""
        return self.checkpoint.component(source.component).info(source.name).shape

    def read(self, source: object) -> Tensor:
        """The value of a Stored, Constant, Part or Adapted; floats in this reader's dtype.

        Raises InputError when a weight cannot be encoded.
        """
        if isinstance(source, Constant):
            value = torch.from_numpy(source.value)
            return value.to(torch.int32 if source.value.dtype.kind in "iu" else self.dtype)
        if source in self._kept:
            return self._kept[source]
        if isinstance(source, Stored):
            value = self._stored(source)
        elif isinstance(source, Adapted):
            value = self._adapted(source)
        else:
            value = self._part(source)
        size = value.numel() * value.element_size()
        if size <= self._free_bytes:
            self._free_bytes -= size
            self._kept[source] = value
        return value

    def _stored(self, source: Stored) -> Tensor:
        return self._raw(source).to(self.dtype)

    def _raw(self, source: Stored) -> Tensor:
        """In the checkpoint's dtype, and mapped if it is there as it is."""
        component = self.checkpoint.component(source.component)
        read = functools.partial(component.read, source.name)
        value = read(None) if source.derivation is None else source.derivation.value(read)
        if value.numel() >= LARGE_VALUES:
            release()  # what a backend made of the weight before, and what encoding it took
        return value

    def _scaled(self, source: Stored, methods: Methods) -> Tensor:
        value = self._stored(source)
        if self.calibration is None or "equalize" not in methods:
            return value
        scaling = self.calibration.scaling(source)
        return value if scaling is None else scaling.apply(value)

    def _adapted(self, source: Adapted) -> Tensor:
        value = self._scaled(source.of, source.methods)
        if source.rows > 1:
            value = value.expand(source.rows, -1)
        if source.weight is None or source.format is None or not source.format.takes_methods:
            return value
        key = (source.weight, source.format, source.methods)
        if key not in self._mean_changes:
            self._encoded(*key)
        change = self._mean_changes[key]
        return value if change is None else value - change.to(self.dtype).reshape(value.shape)

    def _part(self, source: object) -> Tensor:
        assert isinstance(source, Part)
        value = getattr(self._encoded(source.of, source.format, source.methods), source.part)
        assert isinstance(value, Tensor)
        return value.to(self.dtype) if source.part in ("scale", "palette") else value

    def _encoded(self, source: Stored, form: Format, methods: Methods) -> Encoded:
        key = (source, form, methods)
        if self._last is None or self._last[0] != key:
            try:
                encoded = self._encode(source, form, methods)
            except ValueError as error:
                where = f"{source.component}: tensor '{source.name}'"
                raise InputError(f"{where} {error}; it cannot be stored as {form}") from None
            self._last = (key, encoded)
            if methods:
                self._mean_changes[key] = encoded.mean_change if "bias" in methods else None
        return self._last[1]

    def change(self, source: Stored, form: Format, methods: Methods) -> Change:
        """What rounding changes: the weight, and its layer's mean output."""
        encoded = self._encoded(source, form, methods)
        rounded = decode(encoded)
        return Change(rounded - self._scaled(source, methods), encoded.mean_change)

    def _encode(self, source: Stored, form: Format, methods: Methods) -> Encoded:
        if not methods:
            return encode(self._raw(source), form)
        inputs = self.calibration.layer(source) if self.calibration else None
        weight = self._scaled(source, methods).float()
        if inputs is None or not form.takes_methods:
            return encode(weight, form)
        refuse_infinite(*torch.aminmax(weight))
        scaling = self.calibration.scaling(source) if self.calibration else None
        if "equalize" in methods and scaling is not None and scaling.columns is not None:
            inputs = inputs.scaled(1 / scaling.columns)
        return calibrated(weight, form, inputs, methods)


def decode(encoded: Encoded) -> Tensor:
    """The weight that is stored, float32."""
    weight = encoded.values.float()
    if encoded.palette is not None:
        weight = look_up(encoded.values, encoded.palette)
    if encoded.scale is not None:
        block = encoded.values.shape[1] // encoded.scale.shape[1]
        weight = dequantize(encoded.values, encoded.scale, encoded.zero_point, block)
    return weight


def calibrated(weight: Tensor, form: Format, inputs: LayerInputs, methods: Methods) -> Encoded:
    """Round a float32 weight (N, K) in an integer format, for the inputs that its layer meets."""
    codes, grid = best_codes(weight, form, inputs, methods)
    groups = codes.reshape(*grid.scale.shape, -1)
    change = grid.values(groups, slice(None)).flatten(1) - weight.double()
    return Encoded(
        codes.to(torch.int8 if form.symmetric else torch.uint8),
        grid.scale.float(),
        None if form.symmetric else grid.zero_point.to(torch.uint8),
        mean_change=(inputs.mean.double() @ change.T).float(),
    )


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
        methods: how codes are chosen (``exporter.codes.METHODS``); they need a calibration when
            weights are read.
    """
    graph, env = fx.Graph(), {}
    tensors, formats, adjusted = dict[str, object](), dict[str, Format](), []
    joins: dict[fx.Node, tuple[dict[str, fx.Node], Format, int]] = {}
    kinds, biases = roles(program), _biases(program, format_of) if "bias" in methods else {}
    held = {bias.weight for bias in biases.values()}
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
        own = methods if source in held else methods - {"bias"}  # else nothing takes the mean out
        if used != asked:
            adjusted.append(Adjusted(source.name, str(asked), str(used)))
        if used.name == "fp32":
            bias = biases.get(node)
            shape = source.shape if bias is None or bias.rows == 1 else (bias.rows, *source.shape)
            value = node.meta["val"].new_empty(shape)
            env[node] = _place(graph, node, node.name, value)
            tensors[node.name] = Adapted(source, own) if own else source
            continue
        parts = {}
        for part, shape, dtype in _parts(source.shape, used):
            name = f"{node.name}_{part}"
            parts[part] = _place(graph, node, name, torch.empty(shape, dtype=dtype, device="meta"))
            tensors[name] = Part(source, used, part, own)
        joins[node] = parts, used, used.group_size or source.shape[1]
    for node, bias in biases.items():
        form = formats[bias.weight.name]
        tensors[node.name] = Adapted(bias.of, methods, bias.weight, form, bias.rows)
    for node in program.graph.nodes:
        if node.op == "placeholder":
            continue
        for weight in (a for a in node.all_input_nodes if a in joins):  # where it is first used
            env[weight] = _join(graph, *joins.pop(weight))
            env[weight].meta["val"] = weight.meta["val"]
        bias = next((biases[n] for n in node.all_input_nodes if n in biases), None)
        if bias is None or bias.rows == 1:
            env[node] = graph.node_copy(node, lambda n: env[n])
            continue
        x, weight, rows = (env[n] for n in node.all_input_nodes)
        bare = graph.call_function(ATEN.linear.default, (x, weight))
        env[node] = graph.call_function(ATEN.add.Tensor, (bare, rows))
        bare.meta["val"] = env[node].meta["val"] = node.meta["val"]
    return QuantizedProgram(
        program.name, program.inputs, program.outputs, graph, tensors, formats, tuple(adjusted),
        methods,
    )  # fmt: skip


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
        form = fit(format_of(program.name, weight.name, "linear"), weight.shape)
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

"""How a weight is stored: formats, and the rules by which a scheme picks one for each weight.

A scheme is a file of ``exporter/quantize/schemes``; its name is the file's name, with hyphens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

from exporter.errors import InputError, known

GROUP_SIZES = (16, 32, 64, 128)  # onnxruntime's smallest block is 16
METHODS = ("equalize", "scales", "feedback", "bias")  # what each does: exporter.calibrate.codes
ROUNDED_GRAPHS = ("denoiser", "vae_decoder")  # that may have w8a8: nearly all of the time is theirs
ROLES = ("linear", "conv", "embedding", "table", "vector")
Kind = Literal["float", "integer", "palette"]
Granularity = Literal["value", "group", "channel", "channels", "weight"]


@dataclass(frozen=True)
class Storage:
    """What the name of a format stands for.

    Attributes:
        kind: ``float``: values; ``integer``: codes, scales and zero points; ``palette``: codes that
            index a table of values.
        bits: of a value or a code.
        granularity: what shares a scale or a table, unless a group size says otherwise: ``value``
            (nothing is shared), ``channel`` (an output channel), ``group`` (of values along the
            input axis), ``weight`` (all of it).
        inputs: bits that the layer's input is rounded to, in a fixed range; None: it is not. 16:
            so is every value of the graph (``exporter.quantize.everywhere``).
        multiples: scales of groups are whole multiples of their channel's, of 1 to so many.
    """

    kind: Kind
    bits: int
    granularity: Granularity
    inputs: int | None = None
    multiples: int | None = None


STORAGE: dict[str, Storage] = {
    "fp32": Storage("float", 32, "value"),
    "fp16": Storage("float", 16, "value"),
    "int8": Storage("integer", 8, "channel"),
    "w8a8": Storage("integer", 8, "channel", inputs=8),
    "w8a16": Storage("integer", 8, "channel", inputs=16),
    "pal6": Storage("palette", 6, "weight"),
    "int4": Storage("integer", 4, "group"),
    "w4a16": Storage("integer", 4, "group", inputs=16, multiples=15),
    "pal4": Storage("palette", 4, "weight"),
    "int2": Storage("integer", 2, "group"),
}


@dataclass(frozen=True)
class Format:
    """How one weight is stored.

    Attributes:
        name: a key of ``STORAGE``. ``w8a8`` is stored as ``int8`` is, with scales of its own
            (``exporter.quantize.nearest.encode``); a backend that can express it also
            rounds the layer's input to 8 bits, with a scale from calibration. ``pal4`` and ``pal6``
            are palettes: codes that index a table of 16 or 64 values. ``int4`` and ``int2`` have
            groups, each with a scale in fp16 (``exporter.quantize.nearest`` says when in float32).
        group_size: values along the input axis that share a scale, None: a whole output channel;
            of palettes: output channels that share a palette, None: the whole weight.
        symmetric: without a zero point.
    """

    name: str
    group_size: int | None = None
    symmetric: bool = True

    @property
    def storage(self) -> Storage:
        return STORAGE[self.name]

    @property
    def bits(self) -> int:
        return self.storage.bits

    @property
    def granularity(self) -> Granularity:
        """What shares a scale or a table; ``channels``: several output channels."""
        return "channels" if self.is_palette and self.group_size else self.storage.granularity

    @property
    def is_integer(self) -> bool:
        return self.storage.kind == "integer"

    @property
    def is_grouped(self) -> bool:
        """Whether groups of values along the input axis share a scale."""
        return self.storage.granularity == "group"

    @property
    def takes_methods(self) -> bool:
        """Whether codes can be chosen by what a layer puts out."""
        return self.is_integer and not self.rounds_inputs

    @property
    def rounds_inputs(self) -> bool:
        """Whether the layer's input is rounded too, to 8 bits in a fixed range of its own."""
        return self.storage.inputs == 8

    @property
    def rounds_all(self) -> bool:
        """Whether every value of the graph is rounded to 16 bits, each in a fixed range."""
        return self.storage.inputs == 16

    @property
    def is_palette(self) -> bool:
        return self.storage.kind == "palette"

    def __str__(self) -> str:
        group = f"-g{self.group_size}" if self.group_size else ""
        return f"{self.name}{group}{'' if self.symmetric else '-asym'}"

    def stored_bytes(self, shape: Sequence[int]) -> int:
        """Bytes of a weight (N, K, ...) in this format: values or codes, scales, zero points."""
        values = 1
        for size in shape:
            values *= size
        code_bytes = -(-values * self.bits // 8)
        if self.is_palette:
            palettes = shape[0] // self.group_size if self.group_size else 1
            return code_bytes + palettes * (4 << self.bits)
        if not self.is_integer:
            return code_bytes
        blocks = shape[0] * (shape[1] // self.group_size if self.group_size else 1)
        scale_bytes = blocks * (2 if self.is_grouped else 4)
        if self.storage.multiples:
            scale_bytes = blocks + 4 * shape[0]
        return code_bytes + scale_bytes + (0 if self.symmetric else -(-blocks * self.bits // 8))


FORMATS = {name: Format(name) for name in STORAGE}
FORMATS |= {name: replace(f, group_size=64) for name, f in FORMATS.items() if f.is_grouped}


@dataclass(frozen=True)
class Rule:
    """Weights that match ``graph`` and ``weight`` (shell patterns) and a role get ``format``."""

    graph: str
    weight: str
    format: Format
    roles: tuple[str, ...] = ROLES

    def matches(self, graph: str, weight: str, role: str) -> bool:
        return (
            role in self.roles
            and fnmatchcase(graph, self.graph)
            and fnmatchcase(weight, self.weight)
        )


@dataclass(frozen=True)
class Scheme:
    """Rules in order; the last one that matches wins, and a weight that none matches is fp32.

    ``methods`` say how codes are chosen (``exporter.calibrate.codes``); without any, to nearest.
    """

    name: str
    rules: tuple[Rule, ...]
    methods: tuple[str, ...] = ()

    @property
    def used_methods(self) -> tuple[str, ...]:
        """The methods, if there are codes for them, without those that harm.

        Scaled channels do not share a palette well.
        """
        if not any(rule.format.takes_methods for rule in self.rules):
            return ()
        palettes = any(rule.format.is_palette for rule in self.rules)
        return tuple(m for m in self.methods if not (palettes and m == "equalize"))

    def format_of(self, graph: str, weight: str, role: str) -> Format:
        chosen = FORMATS["fp32"]
        for rule in self.rules:
            if rule.matches(graph, weight, role):
                chosen = rule.format
        return chosen

    def with_groups(self, group_size: int | None, symmetric: bool | None) -> Scheme:
        """The same scheme with other groups or zero points where it has groups."""

        def adapt(rule: Rule) -> Rule:
            if not rule.format.is_grouped:
                return rule
            size = rule.format.group_size if group_size is None else group_size
            sign = rule.format.symmetric if symmetric is None else symmetric
            sign = sign or rule.format.storage.multiples is not None
            return replace(rule, format=replace(rule.format, group_size=size, symmetric=sign))

        return replace(self, rules=tuple(adapt(r) for r in self.rules))

    def with_rules(self, rules: tuple[Rule, ...]) -> Scheme:
        """The same scheme with further rules, which win over its own."""
        return replace(self, rules=self.rules + rules)


def parse_format(text: str) -> Format:
    """The format that is written as ``text``, such as "int8", "int4-g64" or "int4-g32-asym".

    Raises InputError naming the known ones.
    """
    name, *details = text.split("-")
    sizes = [d[1:] for d in details if d[:1] == "g" and d[1:].isdecimal()]
    rest = [d for d in details if d not in ("asym", *(f"g{size}" for size in sizes))]
    if name not in FORMATS or rest or len(sizes) > 1:
        raise InputError(known("format", text, FORMATS))
    form = FORMATS[name]
    if form.storage.multiples and "asym" in details:
        raise InputError(f"format {text!r}: {name} has no zero points")
    if details and not (form.is_grouped or (form.is_palette and "asym" not in details)):
        raise InputError(f"format {text!r}: {name} has neither groups nor zero points")
    size = int(sizes[0]) if sizes else form.group_size
    if form.is_grouped and size not in GROUP_SIZES:
        raise InputError(f"format {text!r}: {known('group size', size, GROUP_SIZES)}")
    return replace(form, group_size=size, symmetric="asym" not in details)


def roles_for(form: Format) -> tuple[str, ...]:
    """The roles that a format may be given to by name: norms and biases stay float32.

    Groups and palettes are for linear layers, 8-bit activations for convolutions too, integers for
    all but tables.
    """
    if form.is_grouped or form.is_palette:
        return ("linear",)
    if form.rounds_inputs or form.name == "w8a16":
        return ("linear", "conv")
    weights = tuple(role for role in ROLES if role != "vector")
    return tuple(role for role in weights if role != "table") if form.is_integer else weights


def fitting_format(asked: Format, shape: Sequence[int]) -> Format:
    """The format that a weight (N, K, ...) gets when groups of ``asked`` do not divide it.

    A group shrinks to the largest power of two that divides K (of a palette: N); a group of codes
    to 16 at least, else the weight gets int8 with one scale per output channel. So no backend ever
    meets a ragged group.
    """
    if asked.group_size is None:
        return asked
    size = asked.group_size
    while size >= (1 if asked.is_palette else min(GROUP_SIZES)):
        if shape[0 if asked.is_palette else 1] % size == 0:
            return replace(asked, group_size=size)
        size //= 2
    return FORMATS["w8a16" if asked.rounds_all else "int8"]

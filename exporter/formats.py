"""How a weight is stored: formats, and the rules by which a scheme picks one for each weight.

A scheme is a file of ``exporter/schemes``; its name is the file's name, with hyphens.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from exporter.errors import InputError, known

GROUP_SIZES = (32, 64, 128)
SMALLEST_GROUP = 16  # onnxruntime's smallest block
BITS: dict[str, int] = {
    "fp32": 32,
    "fp16": 16,
    "int8": 8,
    "w8a8": 8,
    "pal6": 6,
    "int4": 4,
    "pal4": 4,
}
ROLES = ("linear", "conv", "embedding", "table", "vector")


@dataclass(frozen=True)
class Format:
    """How one weight is stored.

    Attributes:
        name: a key of ``BITS``. ``w8a8`` is stored as ``int8``; a backend that can express it also
            rounds the layer's input to 8 bits, with a scale from calibration. ``pal4`` and ``pal6``
            are palettes: codes that index a table of 16 or 64 values.
        group_size: values along the input axis that share a scale, None: a whole output channel;
            of palettes: output channels that share a palette, None: the whole weight.
        symmetric: without a zero point.
    """

    name: str
    group_size: int | None = None
    symmetric: bool = True

    @property
    def bits(self) -> int:
        return BITS[self.name]

    @property
    def is_integer(self) -> bool:
        return self.name in ("int8", "int4", "w8a8")

    @property
    def is_palette(self) -> bool:
        return self.name.startswith("pal")

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
        return code_bytes + blocks * 4 + (0 if self.symmetric else -(-blocks * self.bits // 8))


FORMATS = {name: Format(name) for name in BITS} | {"int4": Format("int4", group_size=64)}


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
    """Rules in order; the last one that matches wins, and a weight that none matches is fp32."""

    name: str
    rules: tuple[Rule, ...]

    def format_of(self, graph: str, weight: str, role: str) -> Format:
        chosen = FORMATS["fp32"]
        for rule in self.rules:
            if rule.matches(graph, weight, role):
                chosen = rule.format
        return chosen

    def with_groups(self, group_size: int | None, symmetric: bool | None) -> Scheme:
        """The same scheme with other groups or zero points in its 4-bit rules."""

        def adapt(rule: Rule) -> Rule:
            if rule.format.name != "int4":
                return rule
            size = rule.format.group_size if group_size is None else group_size
            sign = rule.format.symmetric if symmetric is None else symmetric
            return replace(rule, format=replace(rule.format, group_size=size, symmetric=sign))

        return replace(self, rules=tuple(adapt(r) for r in self.rules))

    def with_rules(self, rules: tuple[Rule, ...]) -> Scheme:
        """The same scheme with further rules, which win over its own."""
        return replace(self, rules=self.rules + rules)


def fit(asked: Format, shape: Sequence[int]) -> Format:
    """The format that a weight (N, K, ...) gets when groups of ``asked`` do not divide it.

    A group shrinks to the largest power of two that divides K (of a palette: N); of 4-bit groups
    at least 16, else the weight gets int8 with one scale per output channel. So no backend ever
    meets a ragged group.
    """
    if asked.group_size is None:
        return asked
    size = asked.group_size
    while size >= (1 if asked.is_palette else SMALLEST_GROUP):
        if shape[0 if asked.is_palette else 1] % size == 0:
            return replace(asked, group_size=size)
        size //= 2
    return FORMATS["int8"]


def scheme_names() -> tuple[str, ...]:
    """The known schemes: the files of ``exporter/schemes``."""
    import exporter.schemes

    files = pkgutil.iter_modules(exporter.schemes.__path__)
    return tuple(sorted(f.name.replace("_", "-") for f in files))


def load_scheme(name: str) -> Scheme:
    """A scheme by name; raises InputError listing the known ones."""
    if name not in scheme_names():
        raise InputError(known("scheme", name, scheme_names()))
    file = name.replace("-", "_")
    scheme: Scheme = importlib.import_module(f"exporter.schemes.{file}").SCHEME
    return scheme

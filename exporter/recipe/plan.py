"""A plan: a format for every weight, as a file that a person can read and edit.

It is TOML: a table ``[plan]`` that says how it was made, and tables ``[formats.<graph>]`` of
weights (names or shell patterns) and formats. A build takes it wherever it takes a scheme's name,
and its scheme is called as the file. Beside ``NAME.toml``, ``NAME.json`` holds the sensitivities
that the choice was made from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.errors import InputError, known
from exporter.files.read import convert, is_text, parse_json, parse_toml, read_text
from exporter.files.staging import partial_of
from exporter.package.names import NAMES
from exporter.quantize.formats import (
    METHODS,
    ROUNDED_GRAPHS,
    Format,
    Rule,
    Scheme,
    parse_format,
    roles_for,
)
from exporter.quantize.schemes import load_scheme, scheme_names

SUFFIX = ".toml"
HEAD = """\
# Which format each weight gets, made by `fourstep plan`. Give this file to a build as its scheme:
#   fourstep build RECIPE --scheme {file}
# Any line of [formats.*] may be changed, and a name may be a pattern such as "*.ff.*". What is not
# listed is stored as the base scheme says.
"""


@dataclass(frozen=True)
class _Weight:
    graph: str
    weight: str


@dataclass(frozen=True)
class _Details:
    """What a build reads of a plan's sensitivities."""

    weights: tuple[_Weight, ...]


@dataclass(frozen=True)
class Plan:
    """A plan that was read.

    Attributes:
        scheme: rules of the base scheme, then one per line; named as the file.
        facts: the table ``[plan]``.
        text: the whole file.
        details: the text of the file of sensitivities beside it, or None.
    """

    scheme: Scheme
    facts: Mapping[str, Any]
    text: str
    details: str | None

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


def is_plan(name: str) -> bool:
    """Whether a scheme's name is the name of a plan's file."""
    return name.endswith(SUFFIX)


def read_plan(file: Path) -> Plan:
    """Read a plan; raises InputError naming the file, the line's key and the remedy."""
    if not file.exists():
        raise InputError(
            f"{file}: no such plan; make one: fourstep plan RECIPE --budget 1.2GB -o {file}"
        )
    text = read_text(file)
    raw = parse_toml(text, file)
    try:
        if not is_text(file.stem):
            raise InputError("its name is not UTF-8, and packages are called by it; rename it")
        scheme = _scheme(file.stem, raw)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    return Plan(scheme, raw["plan"], text, _details(file.with_suffix(".json")))


def _details(file: Path) -> str | None:
    """The text of a plan's sensitivities, or None when the plan is alone."""
    if not file.is_file():
        return None
    text = read_text(file)

    def failure(said: str) -> InputError:
        return InputError(
            f"{said}: not a plan's sensitivities; delete the file, and the plan does without it"
        )

    convert(parse_json(text, file, failure), _Details, file, failure)
    return text


def _scheme(name: str, raw: Mapping[str, Any]) -> Scheme:
    for section in raw:
        if section not in ("plan", "formats"):
            raise InputError(known("section", section, ("plan", "formats")))
    plan, formats = raw.get("plan"), raw.get("formats", {})
    if not isinstance(plan, dict) or not isinstance(formats, dict):
        raise InputError("a table [plan] and tables [formats.<graph>] are expected")
    base, methods = plan.get("base", "int8"), plan.get("methods", [])
    if not isinstance(base, str) or not isinstance(methods, list):
        raise InputError("[plan] base and methods: a scheme and a list are expected")
    if base not in scheme_names():
        raise InputError(f"[plan] base: {known('scheme', base, scheme_names())}")
    for method in methods:
        if method not in METHODS:
            raise InputError(f"[plan] methods: {known('method', method, METHODS)}")
    for graph, weights in formats.items():
        if graph not in NAMES:
            raise InputError(f"[formats.{graph}]: {known('graph', graph, NAMES)}")
        if not isinstance(weights, dict):
            raise InputError(f"[formats.{graph}] must be a table")
    return scheme_of(name, base, methods, formats)


def scheme_of(
    name: str, base: str, methods: Sequence[str], formats: Mapping[str, Mapping[str, object]]
) -> Scheme:
    """The scheme of a plan: the base's rules, then one per line.

    Args:
        formats: names of formats by graph and weight.

    Raises InputError naming the line of an unknown format.
    """
    rules = list(load_scheme(base).rules)
    for graph, weights in formats.items():
        for weight, form in weights.items():
            try:
                rules.append(_rule(graph, weight, parse_format(str(form))))
            except InputError as error:
                raise InputError(f"[formats.{graph}] {weight}: {error}") from None
    return Scheme(name, tuple(rules), tuple(methods))


def _rule(graph: str, weight: str, form: Format) -> Rule:
    if form.rounds_inputs and graph not in ROUNDED_GRAPHS:
        raise InputError(f"w8a8 applies to {' and '.join(ROUNDED_GRAPHS)}")
    return Rule(graph, weight, form, roles_for(form))


def write_plan(
    file: Path,
    facts: Mapping[str, Any],
    formats: Mapping[str, Mapping[str, str]],
    details: Mapping[str, Any],
) -> None:
    """Write a plan and its .json, each whole or not at all; raises InputError when it cannot.

    Args:
        facts: the table ``[plan]``: strings, numbers, lists of strings; None is left out.
        formats: by graph and weight.
        details: what the .json holds.
    """
    lines = [HEAD.format(file=file), "[plan]"]
    lines += [f"{key} = {_quoted(value)}" for key, value in facts.items() if value is not None]
    for graph, weights in formats.items():
        lines += ["", f"[formats.{graph}]"]
        width = max(len(_quoted(w)) for w in weights)
        lines += [f"{_quoted(w):<{width}} = {_quoted(f)}" for w, f in weights.items()]
    contents = {
        file.with_suffix(".json"): json.dumps(details, indent=1) + "\n",
        file: "\n".join(lines) + "\n",
    }
    partials = {place: partial_of(place) for place in contents}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        for place, text in contents.items():
            partials[place].write_text(text, encoding="utf-8", newline="\n")
        for place, partial in partials.items():
            partial.replace(place)
    except OSError as error:
        raise InputError(f"{file}: cannot be written: {error.strerror}") from None
    finally:
        for partial in partials.values():
            with suppress(OSError):
                partial.unlink()


def _quoted(value: Any) -> str:
    """A string, number or list as TOML writes it, which is as JSON does but for escapes."""
    return json.dumps(value, ensure_ascii=False)

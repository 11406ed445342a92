"""The format described by its own records: a JSON Schema, and a table of every field.

    python -m exporter.package.describe SCHEMA.json PAGE.md

writes both. The page marks where the tables stand; what is between the marks is made anew.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from exporter.package import manifest
from exporter.package.manifest import Manifest

SCHEMA = Path(__file__).with_name("manifest.schema.json")
MARKS = re.compile(r"(<!-- fields -->\n).*?(<!-- end of fields -->)", re.DOTALL)
LARGE = 2**31 - 1
ATTRIBUTE = re.compile(r"^    (?P<name>\w+): (?P<text>.*(?:\n {8}.*)*)", re.MULTILINE)


def schema() -> dict[str, Any]:
    """A JSON Schema of draft 2020-12 for ``manifest.json`` of any format 4.x.

    Keys that it does not know are allowed, as a reader leaves them out.
    """
    found = msgspec.json.schema(Manifest)
    for name, record in found["$defs"].items():
        first, fields = _said(name)
        record["description"] = first
        for field, text in fields.items():
            record["properties"][field]["description"] = text
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}


def schema_text() -> str:
    """What ``manifest.schema.json`` holds."""
    return json.dumps(schema(), indent=1) + "\n"


def tables() -> str:
    """A table for each record in Markdown, from the manifest down."""
    definitions = schema()["$defs"]
    return "\n".join(_table(name, definitions[name]) for name in _downward(definitions))


def with_tables(page: str) -> str:
    """A page with its tables made anew."""
    return MARKS.sub(lambda found: f"{found[1]}{tables()}{found[2]}", page)


def _said(record: str) -> tuple[str, dict[str, str]]:
    """What a record's docstring says of it, and of each field."""
    whole = inspect.getdoc(getattr(manifest, record)) or ""
    about, _, attributes = whole.partition("\n\nAttributes:\n")
    fields = {m["name"]: " ".join(m["text"].split()) for m in ATTRIBUTE.finditer(attributes)}
    return " ".join(about.split()).replace("``", "`"), {
        name: text.replace("``", "`") for name, text in fields.items()
    }


def _downward(definitions: Mapping[str, Any]) -> list[str]:
    """The records in the order in which a reader meets them."""
    order, left = list[str](), ["Manifest"]
    while left:
        name = left.pop(0)
        if name not in order:
            order.append(name)
            left += _records(definitions[name])
    return order


def _records(part: object) -> Iterator[str]:
    if isinstance(part, dict):
        if "$ref" in part:
            yield part["$ref"].rpartition("/")[2]
        for below in part.values():
            yield from _records(below)
    elif isinstance(part, list):
        for below in part:
            yield from _records(below)


def _table(name: str, record: Mapping[str, Any]) -> str:
    required = record.get("required", [])
    rows = [
        f"| `{field}` | {_kind(part)} | {'' if field in required else _default(part)} "
        f"| {part['description'].replace('|', chr(92) + '|')} |"
        for field, part in record["properties"].items()
    ]
    head = f"### {name}\n\n{record['description']}\n\n| field | type | default | meaning |\n"
    return head + "|---|---|---|---|\n" + "\n".join(rows) + "\n"


def _kind(part: Mapping[str, Any]) -> str:
    """A field's type in words: ``list of Port``, ``number > 0``, ``"euler" or "renoise"``."""
    if "$ref" in part:
        name = part["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in part:
        return " or ".join(dict.fromkeys(_kind(p) for p in part["anyOf"]))
    if "enum" in part:
        return " or ".join(f"`{json.dumps(value)}`" for value in part["enum"])
    if part["type"] == "array":
        return _list_of(part)
    if part["type"] == "object":
        return f"object of {_kind(part['additionalProperties'])}"
    if "pattern" in part:
        return _strings()[part["pattern"]]
    return f"{part['type']}{_limits(part)}"


def _limits(part: Mapping[str, Any]) -> str:
    if "exclusiveMinimum" in part:
        most = f", to {part['maximum']}" if "maximum" in part else ""
        return f" above {part['exclusiveMinimum']}{most}"
    if "minimum" not in part:
        return ""
    most = part["maximum"]
    # What all languages' numbers hold is no limit that a reader thinks of.
    return f", {part['minimum']} to {most}" if most < LARGE else f" from {part['minimum']}"


def _list_of(part: Mapping[str, Any]) -> str:
    if "prefixItems" in part:
        return f"{len(part['prefixItems'])} times {_kind(part['prefixItems'][0])}"
    least = f"{part['minItems']} or more " if "minItems" in part else ""
    return f"list of {least}{_kind(part['items'])}"


def _strings() -> dict[str, str]:
    """What the patterns of strings stand for."""
    record = msgspec.json.schema(Manifest)["$defs"]
    return {
        record["FileEntry"]["properties"]["path"]["pattern"]: "path",
        record["FileEntry"]["properties"]["sha256"]["pattern"]: "SHA-256",
        record["OriginEntry"]["properties"]["plan_sha256"]["pattern"]: 'SHA-256 or `""`',
        record["OriginEntry"]["properties"]["licence"]["pattern"]: 'path or `""`',
        record["OriginEntry"]["properties"]["attribution"]["pattern"]: "plain line",
        record["GraphEntry"]["properties"]["name"]["pattern"]: "name",
        record["ContextEntry"]["properties"]["qairt"]["pattern"]: "version",
        record["Manifest"]["properties"]["format_version"]["pattern"]: "`4.x`",
        record["MarkEntry"]["properties"]["payload"]["pattern"]: "8 hexadecimal digits",
        record["MarkEntry"]["properties"]["key_id"]["pattern"]: "16 hexadecimal digits",
    }


def _default(part: Mapping[str, Any]) -> str:
    return f"`{json.dumps(part['default'])}`" if "default" in part else "as its fields"


def main() -> None:
    place, page = (Path(argument) for argument in sys.argv[1:])
    place.write_text(schema_text(), encoding="utf-8", newline="\n")
    text = with_tables(page.read_text(encoding="utf-8"))
    page.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()

"""The format is described by its records: a schema, and a page with a table of every field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from exporter.package import describe
from tests.conftest import ROOT
from tests.test_manifest import DAMAGE, Change

PAGE = ROOT / "docs" / "package-format.md"
AGAIN = f"python -m exporter.package.describe {describe.SCHEMA} {PAGE}"
# What a schema cannot say: fields against each other.
BETWEEN = ("schedule.sigmas.*", "no multiple", "stages", "rows for", "not in the vocabulary",
    "takes", "1 GiB", "none, or two", "no output", "are not those of", "gives the loop",
    "does not", "only a stage", "image_to_image_only", "do not fall")  # fmt: skip


def test_the_schema_is_up_to_date() -> None:
    assert describe.SCHEMA.read_text("utf-8") == describe.schema_text(), AGAIN


def test_the_page_is_up_to_date() -> None:
    text = PAGE.read_text("utf-8")
    assert describe.with_tables(text) == text, AGAIN


def test_every_field_is_described() -> None:
    for name, record in describe.schema()["$defs"].items():
        assert record["description"].endswith((".", "says.")), name
        for field, part in record["properties"].items():
            assert part.get("description"), (name, field)
            assert f"| `{field}` |" in PAGE.read_text("utf-8"), (name, field)


def test_a_built_manifest_validates(tiny_package: Path) -> None:
    schema = json.loads(describe.SCHEMA.read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    raw = json.loads((tiny_package / "manifest.json").read_text())
    jsonschema.validate(raw, schema, jsonschema.Draft202012Validator)
    raw["format_version"], raw["later"], raw["origin"]["later"] = "4.7", {}, 3
    del raw["picture"]["pixels"]
    jsonschema.validate(raw, schema, jsonschema.Draft202012Validator)


@pytest.mark.parametrize(("change", "message"), DAMAGE, ids=[m for _, m in DAMAGE])
def test_the_schema_refuses_what_the_reader_refuses(
    tiny_package: Path, change: Change, message: str
) -> None:
    """All but fields that contradict each other."""
    if any(words in message for words in BETWEEN) and "enum" not in message:
        pytest.skip("between fields")
    schema = json.loads(describe.SCHEMA.read_text("utf-8"))
    raw: dict[str, Any] = json.loads((tiny_package / "manifest.json").read_text())
    change(raw)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(raw, schema, jsonschema.Draft202012Validator)


@pytest.mark.parametrize("path", ["../x", "/x", "a/../b", "a\\b", "C:x", "", "a//b", "a\n", "./a"])
def test_the_schema_refuses_paths_that_leave(path: str) -> None:
    file = json.loads(describe.SCHEMA.read_text("utf-8"))["$defs"]["FileEntry"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"path": path, "bytes": 1, "sha256": "0" * 64}, file)

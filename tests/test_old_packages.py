"""Packages that earlier versions built open, verify and draw in this one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from exporter.package.describe import SCHEMA
from exporter.runtime import Image, Request, Step, generate, open_package, verify
from tests.conftest import ROOT, previewed, seal

PACKAGES = sorted(file.parent for file in (ROOT / "tests" / "packages").glob("*/*/manifest.json"))
IDS = [f"{p.parent.name} {p.name}" for p in PACKAGES]


def test_every_format_has_one() -> None:
    assert [package.parent.name for package in PACKAGES] == ["4.0"]


@pytest.mark.parametrize("folder", PACKAGES, ids=IDS)
def test_it_verifies(folder: Path) -> None:
    package = open_package(folder)
    assert package.manifest.format_version == folder.parent.name
    report = verify(package)
    assert report.ok, report.failures
    assert report.vectors == 3 + 9 + 3 + 1 + 2 + 2 + 1  # ids, noise; of a picture with two steps
    assert [g.calls for g in report.graphs] == [1, 1, 1, 1, 1, 2, 1]
    jsonschema.validate(
        json.loads((folder / "manifest.json").read_text()), json.loads(SCHEMA.read_text())
    )


@pytest.mark.parametrize("folder", PACKAGES, ids=IDS)
def test_it_draws(folder: Path) -> None:
    """A prompt with a preview of each step, and from a picture."""
    start = np.full((16, 32, 3), 90, np.uint8)
    requests = [Request("a red circle", 3), Request("a red circle", 3, start, strength=0.5)]
    with open_package(folder).player() as player:
        events = list(generate(player, requests))
    steps = [e for e in events if isinstance(e, Step)]
    first, second = (e.pixels for e in events if isinstance(e, Image))
    assert [(e.index, e.step) for e in steps] == [(0, 1), (0, 2), (1, 2)]
    assert all(previewed(step).shape == (2, 4, 3) for step in steps)
    assert first.shape == (16, 32, 3) and not np.array_equal(first, second)


@pytest.mark.parametrize("folder", PACKAGES, ids=IDS)
def test_what_a_later_minor_version_adds_is_left_out(folder: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(folder, tmp_path / "later"))
    raw = json.loads((place / "manifest.json").read_text())
    raw["format_version"] = "4.7"
    raw["later"] = raw["stages"][0]["later"] = raw["text"]["tokenizers"]["t5"]["later"] = [{}]
    seal(place, raw)
    assert verify(open_package(place)).ok

"""A backend of another distribution, made of the page about it: found, built, drawn with."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from importlib.metadata import Distribution, EntryPoint
from pathlib import Path

import pytest
from click.testing import CliRunner

from exporter import backends
from exporter.backends.contract import Backend
from exporter.cli import main
from exporter.errors import InputError
from exporter.recipe.recipe import DEFAULT_BACKENDS, read_recipe
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "add-a-backend.md").read_text(encoding="utf-8")
RECIPE = """
[model]
checkpoint = "{checkpoint}"
[schedule]
sigmas = [1.0, 0.5, 0.0]
[image]
width_px = 64
height_px = 48
image_to_image = false
[text]
t5 = false
[weights]
scheme = ["int4"]
[build]
backends = ["toy"]
[toy]
sign = "loudly"
[golden]
prompts = ["a red circle"]
"""
COMMANDS = """
import json, sys
from exporter.cli import main

for line in json.loads(sys.argv[1]):
    print("$", *line, flush=True)
    try:
        main(line)
    except SystemExit as ended:
        if ended.code:
            raise
"""


def block(language: str) -> str:
    """The page's block in a language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return str(found)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder on the path in which the page's distribution is installed."""
    project = tomllib.loads(block("toml"))["project"]
    name, version = project["name"], project["version"]
    folder = tmp_path / "site"
    facts = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (group, entries), *_ = project["entry-points"].items()
    lines = [f"{key} = {value}" for key, value in entries.items()]
    (facts / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))
    (folder / "toy_backend.py").write_text(block("python"), encoding="utf-8")
    return folder


def run(site: Path, *lines: Sequence[object]) -> str:
    """What commands print in a process that has the distribution on its path."""
    given = json.dumps([[str(word) for word in line] for line in lines])
    path = os.pathsep.join([str(site), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, given],
        env={**os.environ, "PYTHONPATH": path},
        cwd=site,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_found_built_verified_drawn(site: Path, tiny_folder: Path, tmp_path: Path) -> None:
    recipe, out = tmp_path / "recipe.toml", tmp_path / "out"
    recipe.write_text(RECIPE.format(checkpoint=tiny_folder.as_posix()), encoding="utf-8")
    package, picture = out / "toy-int4", tmp_path / "picture.png"
    said = run(
        site,
        ["doctor"],
        ["build", recipe, "--out", out],
        ["verify", package],
        ["inspect", package],
        ["inspect", tiny_folder, "--recipe", recipe],
        ["run", package, "a red circle", "--out", picture],
    )
    assert "run toy" in said and "build toy" in said
    assert f"{package}  " in said and "\nok\n" in said
    assert said.count("not measured") == 2  # of the package's memory, of the checkpoint's
    assert picture.stat().st_size > 1000
    assert (package / "SIGNED").read_text() == "by a toy\n"
    manifest = json.loads((package / "manifest.json").read_text(encoding="utf-8"))
    assert "toy-backend" in json.dumps(manifest) and '"loudly"' in json.dumps(manifest)


def test_the_page_names_every_member() -> None:
    for member in backends.MEMBERS:
        assert re.search(rf"\b{member}\b", block("python")), member


class Elsewhere(Distribution):
    """An installed distribution with one entry point."""

    def __init__(self, name: str, entry: str, value: str) -> None:
        self.given, self.entry, self.value = name, entry, value

    def read_text(self, filename: str) -> str | None:
        if filename == "METADATA":
            return f"Metadata-Version: 2.1\nName: {self.given}\nVersion: 1.0\n"
        if filename == "entry_points.txt":
            return f"[{backends.GROUP}]\n{self.entry} = {self.value}\n"
        return None

    def locate_file(self, path: object) -> Path:
        raise NotImplementedError


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Elsewhere]]:
    """Distributions that are installed beside the real ones."""
    real, more = importlib.metadata.entry_points, list[Elsewhere]()

    def found(*, group: str) -> list[EntryPoint]:
        return [*real(group=group), *(e for dist in more for e in dist.entry_points)]

    monkeypatch.setattr(importlib.metadata, "entry_points", found)
    backends._entries.cache_clear()
    backends._load.cache_clear()
    yield more
    monkeypatch.undo()
    backends._entries.cache_clear()
    backends._load.cache_clear()


BROKEN = {
    "broken_nowhere:BACKEND": "ModuleNotFoundError: No module named 'broken_nowhere'",
    "exporter.errors:BACKEND": "AttributeError: module 'exporter.errors' has no attribute",
    "exporter.backends.reference:TORCH": "has no name, to_run, to_build, options, devices, cach",
    "exporter.backends.reference:BACKEND": "exporter.backends.reference:BACKEND is named reference",
}


@pytest.mark.parametrize("value", BROKEN)
def test_a_broken_one_is_one_line_that_names_its_distribution(
    installed: list[Elsewhere], value: str, tmp_path: Path
) -> None:
    installed.append(Elsewhere("vendor-things", "vendor", value))
    assert "vendor" in backends.names() and "vendor" not in backends.working_names()
    with pytest.raises(InputError) as refused:
        backends.load("vendor")
    message = str(refused.value)
    assert message.startswith("backend vendor of vendor-things 1.0 cannot be loaded: ")
    assert BROKEN[value] in message and message.endswith("; update or uninstall that distribution")
    assert "\n" not in message
    shown = CliRunner().invoke(main, ["doctor"])
    assert shown.exit_code == 0 and message in shown.stdout and "run reference" in shown.stdout


def test_a_broken_one_stops_only_who_names_it(installed: list[Elsewhere], tmp_path: Path) -> None:
    installed.append(Elsewhere("vendor-things", "vendor", "broken_nowhere:BACKEND"))
    text, file = RECIPE.format(checkpoint="somewhere"), tmp_path / "recipe.toml"
    file.write_text(text.replace("toy", "onnx").replace('sign = "loudly"', ""), encoding="utf-8")
    assert read_recipe(file).backends == ("onnx",)
    file.write_text(text.replace("toy", "vendor"), encoding="utf-8")
    with pytest.raises(InputError, match="backend vendor of vendor-things 1.0 cannot be loaded"):
        read_recipe(file)


def test_two_of_one_name_are_refused(installed: list[Elsewhere]) -> None:
    installed.append(Elsewhere("their-onnx", "onnx", "their:BACKEND"))
    with pytest.raises(InputError, match=r"onnx comes from .*their-onnx 1\.0; uninstall one of"):
        backends.load("onnx")


def test_none_at_all_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_entries", dict)
    with pytest.raises(InputError, match="no backend is installed, not even fourstep's own"):
        backends.load("onnx")


def test_others_are_not_built_by_default(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    text = RECIPE.format(checkpoint="somewhere").replace('backends = ["toy"]', "")
    file.write_text(text.replace('[toy]\nsign = "loudly"', ""), encoding="utf-8")
    assert read_recipe(file).backends == DEFAULT_BACKENDS
    assert "reference" in backends.names() and "reference" not in DEFAULT_BACKENDS


def test_every_backend_is_frozen() -> None:
    for name in backends.working_names():
        backend: Backend = backends.load(name)
        with pytest.raises(AttributeError):
            backend.name = "another"  # type: ignore[misc]

"""The README is true: commands exist, files exist, the table lists the schemes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from exporter.cli import main
from exporter.quantize.schemes import scheme_names
from exporter.recipe.recipe import DEFAULT_BACKENDS
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    (fourstep .+)$", README, re.MULTILINE)


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse(line: str) -> None:
    """Every command of the README has the arguments and flags that the command line takes."""
    _, name, *arguments = shlex.split(line.partition("#")[0])
    command = main.commands[name]
    command.make_context(name, arguments, parent=click.Context(main))


def test_every_command_is_shown() -> None:
    assert {shlex.split(line)[1] for line in COMMANDS} == set(main.commands)


def test_the_file_tree_is_whole() -> None:
    """Every Python file of the exporter is named or stands in a folder that is."""
    block = README.split("## The files")[1].split("## ")[0]
    for file in sorted((ROOT / "exporter").rglob("*.py")):
        if file.name == "__init__.py" or file.parent.name == "schemes":
            continue
        assert file.name in block, file
    for name in re.findall(r"[\w./]+\.py|(?:exporter|recipes|benchmarks)/[\w/]*/", block):
        assert list(ROOT.rglob(Path(name).name)), name


def test_the_table_lists_backends_and_schemes() -> None:
    header = next(line for line in README.splitlines() if line.startswith("| backend |"))
    assert all(f"| {scheme} |" in header for scheme in scheme_names())
    assert all(f"\n| {name} | yes" in README for name in DEFAULT_BACKENDS)


def test_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^    make ([\w-]+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile, target


def test_the_python_example_runs(tiny_package: Path) -> None:
    block = README.split("free memory:\n\n")[1].split("\n\nThe same seed")[0]
    code = "\n".join(line[4:] for line in block.splitlines())
    names: dict[str, object] = {}
    exec(code.replace("artifacts/shapes-flash/onnx-int8", str(tiny_package)), names)
    assert getattr(names["pixels"], "shape", None) == (48, 64, 3)


def test_pictures_exist() -> None:
    for place in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        assert (ROOT / place).is_file(), place

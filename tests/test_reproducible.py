"""The same recipe and checkpoint give the same bytes, whoever builds them, where and how fast."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from exporter.build.pipeline import build
from exporter.errors import InputError
from exporter.program.threads import THREADS
from exporter.recipe.recipe import Recipe
from tests.conftest import ROOT

RECIPE = """
[model]
checkpoint = "{checkpoint}"
[schedule]
sigmas = [1.0, 0.0]
[image]
width_px = 128
height_px = 128
[text]
t5 = false
[weights]
scheme = ["int8-w8a8"]
[build]
backends = ["onnx"]
[calibration]
prompts = "{prompts}"
methods = ["equalize", "scales", "feedback", "bias"]
[golden]
prompts = ["a red circle"]
"""

BUILD = """
import os, sys, torch
if sys.argv[1] != "0":
    torch.set_num_threads(int(sys.argv[1]))
os.umask(int(sys.argv[2], 8))
from exporter.cli import main
main(["build", sys.argv[3], "--out", sys.argv[4]])
"""


@dataclass(frozen=True)
class Way:
    """How a build is run.

    Attributes:
        threads: that torch is told to compute with before; 0: what it likes.
        within: what the command is put behind.
        flags: of Python.
    """

    variables: Mapping[str, str] = field(default_factory=dict)
    threads: int = 0
    umask: str = "022"
    within: Sequence[str] = ()
    flags: Sequence[str] = ()


ONE = ("taskset", "-c", "0")
SINGLE = {
    "OMP_NUM_THREADS=1": Way({"OMP_NUM_THREADS": "1"}),
    "OMP_NUM_THREADS=2": Way({"OMP_NUM_THREADS": "2"}),
    "OMP_NUM_THREADS=4": Way({"OMP_NUM_THREADS": "4"}),
    "set_num_threads(1)": Way(threads=1),
    "set_num_threads(3)": Way(threads=3),
    "set_num_threads(4)": Way(threads=4),
    "one processor": Way(within=ONE),
    "python -O": Way(flags=("-O",)),
    "LANG": Way({"LANG": "tr_TR.UTF-8", "LC_ALL": "C"}),
    "umask": Way(umask="077"),
    "hash seed": Way({"PYTHONHASHSEED": "7"}),
}
MANY = Way({"OMP_NUM_THREADS": "4", "PYTHONHASHSEED": "1", "LC_ALL": "C"}, 0, "077", (), ("-O",))
FEW = Way({"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "2"}, 1, within=ONE)


def built_so(way: Way, checkpoint: Path, place: Path) -> dict[str, str]:
    """Digests of all files of a package that is built in a folder and a home of its own."""
    place.mkdir()
    (place / "prompts.txt").write_text("a red circle\na blue square\n")
    recipe = place / "same.toml"  # a package has its recipe's name
    recipe.write_text(RECIPE.format(checkpoint=checkpoint, prompts=place / "prompts.txt"))
    code = [*way.flags, "-W", "ignore", "-c", BUILD, str(way.threads), way.umask]
    command = [*way.within, sys.executable, *code, str(recipe), str(place / "out")]
    clear = ("OMP_NUM_THREADS", "PYTHONHASHSEED", "LANG", "LC_ALL")
    bare = {k: v for k, v in os.environ.items() if k not in clear}
    environment = {**bare, "HOME": str(place), "PYTHONPATH": str(ROOT), **way.variables}
    done = subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    package = place / "out" / "onnx-int8-w8a8"
    return {
        str(file.relative_to(package)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(package.rglob("*"))
        if file.is_file()
    }


def assert_same(found: Mapping[str, str], expected: Mapping[str, str]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []


@pytest.mark.full  # make test rebuilds a package of shapes-flash, elsewhere and with one thread
def test_everything_else_at_once(tiny_folder: Path, tmp_path: Path) -> None:
    if shutil.which("taskset") is None:
        pytest.skip("taskset is not installed")
    many = built_so(MANY, tiny_folder, tmp_path / "here")
    assert any(name.startswith("golden/") for name in many) and "manifest.json" in many
    assert_same(built_so(FEW, tiny_folder, tmp_path / "elsewhere"), many)


@pytest.fixture(scope="module")
def expected(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A package as it is built when nothing is asked for."""
    return built_so(Way(), tiny_folder, tmp_path_factory.mktemp("plain") / "place")


@pytest.mark.full
@pytest.mark.parametrize("name", SINGLE)
def test_one_thing_at_a_time(
    name: str, expected: dict[str, str], tiny_folder: Path, tmp_path: Path
) -> None:
    if SINGLE[name].within and shutil.which("taskset") is None:
        pytest.skip("taskset is not installed")
    assert_same(built_so(SINGLE[name], tiny_folder, tmp_path / "elsewhere"), expected)


def test_threads_are_as_before_when_a_build_ends(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def refuse(*_: object) -> None:
        seen.append(torch.get_num_threads())
        raise InputError("enough")

    monkeypatch.setattr("exporter.build.pipeline.refuse_place", refuse)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with pytest.raises(InputError, match="enough"):
            build(tiny_recipe, tmp_path, ["onnx"], ["int4"])
        assert seen == [THREADS] and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)

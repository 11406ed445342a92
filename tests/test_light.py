"""Running a package needs neither torch nor an exporter, and opens no connection."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from exporter import backends
from exporter.build.pipeline import build
from exporter.recipe.recipe import Recipe
from tests.conftest import ROOT, needs

HEAVY = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "optimum", "nncf", "scipy")

DRAW = """
import socket, sys
from pathlib import Path

def refuse(*_, **__):
    raise AssertionError("a connection was opened")

socket.socket.connect = socket.socket.connect_ex = socket.create_connection = refuse
from exporter.cli import main
from exporter.runtime import Image, Request, generate, open_package

player = open_package(Path(sys.argv[1])).player()
images = [e for e in generate(player, [Request("a red circle")]) if isinstance(e, Image)]
assert images[0].pixels.shape == (48, 64, 3)
loaded = [m for m in sys.argv[2].split() if m in sys.modules]
assert not loaded, loaded
"""


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_drawing_imports_nothing_heavy(
    backend: str, tiny_recipe: Recipe, tiny_package: Path, tmp_path: Path
) -> None:
    package = tiny_package
    if backend != "onnx":
        if backends.missing(needs(backend)):
            pytest.skip(f"pip install '{backends.load(backend).to_build.install}'")
        package = build(tiny_recipe, tmp_path, [backend], ["int4"])[0].path
    subprocess.run([sys.executable, "-c", DRAW, str(package), " ".join(HEAVY)], check=True)


BUILD = """
import socket, sys

def refuse(*_, **__):
    raise AssertionError("a connection was opened")

socket.socket.connect = socket.socket.connect_ex = socket.create_connection = refuse
from pathlib import Path
from dataclasses import replace
from exporter.network.cut import Cut
from exporter.build.pipeline import build
from exporter.recipe.recipe import read_recipe

recipe = read_recipe(Path(sys.argv[1]))
recipe = replace(recipe, checkpoint=sys.argv[2], cut=Cut((1.0, 0.0), 64, 64))
build(recipe, Path(sys.argv[3]), [sys.argv[4]], [sys.argv[5]])
"""


@pytest.mark.parametrize(
    ("backend", "scheme"),
    [
        ("onnx", "int8"),
        ("openvino", "int8"),
        pytest.param("openvino", "int8-w8a8", marks=pytest.mark.full),
        pytest.param("coreml", "int8", marks=pytest.mark.full),
    ],
)
def test_building_opens_no_connection(
    tiny_folder: Path, tmp_path: Path, backend: str, scheme: str
) -> None:
    if backends.missing(needs(backend)):
        pytest.skip(f"pip install '{backends.load(backend).to_build.install}'")
    recipe = str(ROOT / "recipes" / "shapes-flash.toml")
    command = [
        sys.executable,
        "-c",
        BUILD,
        recipe,
        str(tiny_folder),
        str(tmp_path),
        backend,
        scheme,
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    assert (tmp_path / f"{backend}-{scheme}" / "manifest.json").is_file()
    assert done.stdout == ""


def test_importing_the_runtime_is_light() -> None:
    code = (
        "import sys, exporter.runtime, exporter.runtime.verify;"
        f"assert not [m for m in {(*HEAVY, 'onnxruntime')!r} if m in sys.modules]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_command_line_starts_light() -> None:
    code = f"import sys, exporter.cli; assert not [m for m in {HEAVY!r} if m in sys.modules]"
    subprocess.run([sys.executable, "-c", code], check=True)

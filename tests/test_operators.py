"""The operators that a package may have are those that its emitter writes, no more and no fewer.

That there are no fewer, every emitter asserts of every graph that any test builds.
"""

from __future__ import annotations

import ast
import random
import re
import shutil
from pathlib import Path

import pytest

from exporter import backends
from exporter.backends.contract import Checking, GraphFiles
from exporter.backends.coreml import operators as coreml
from exporter.backends.onnx import operators as onnx
from exporter.backends.openvino import operators as openvino
from exporter.build.pipeline import Built
from exporter.package.read import read_manifest
from exporter.runtime import CheckFailed, open_package, refuse
from tests.conftest import ROOT
from tests.hostile import HARMLESS

SOURCES = ("ops.py", "emitter.py", "rounded.py", "integers.py", "writer.py")


def constants_of(backend: str) -> set[str]:
    """The strings in the sources of an emitter."""
    folder = ROOT / "exporter" / "backends" / backend
    nodes = [
        node
        for name in SOURCES
        if (folder / name).is_file()
        for node in ast.walk(ast.parse((folder / name).read_text("utf-8")))
    ]
    return {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def test_every_operator_in_a_table_is_written() -> None:
    assert set(onnx.OPERATORS) - constants_of("onnx") == set()
    assert set(coreml.OPERATORS) - constants_of("coreml") == set()


def test_every_operator_in_openvinos_table_is_written() -> None:
    folder = ROOT / "exporter" / "backends" / "openvino"
    text = "".join((folder / name).read_text("utf-8") for name in ("ops.py", "emitter.py"))
    called = {name.replace("_", "") for name in re.findall(r"\bop\.(\w+)", text)}
    table = {name.lower().replace("const", "constant") for name in openvino.OPERATORS}
    assert table - called - {"constantant"} == set()


def test_what_recipes_build_is_opened(shapes_packages: dict[str, Built]) -> None:
    for built in shapes_packages.values():
        open_package(built.path)


@pytest.mark.parametrize("name", HARMLESS)
def test_any_bytes_end_in_one_error(tiny_package: Path, tmp_path: Path, name: str) -> None:
    """Bytes of graphs changed anywhere: they are taken, or refused with a ValueError."""
    package = Path(shutil.copytree(tiny_package, tmp_path / "package"))
    HARMLESS[name](package)
    manifest = read_manifest(package)
    backend = backends.load(manifest.backend)
    assert isinstance(backend, Checking)
    graph = min(manifest.graphs, key=lambda g: sum(f.bytes for f in g.files))
    sizes = {file.path: file.bytes for file in manifest.all_files}
    texts = {
        file.path: (package / file.path).read_bytes()
        for file in graph.files
        if not refuse.is_weights(file)
    }
    draw, refused = random.Random(5), 0
    for _ in range(300):
        changed = {path: bytearray(text) for path, text in texts.items()}
        target = changed[draw.choice(sorted(changed))]
        for _ in range(draw.randrange(1, 4)):
            target[draw.randrange(len(target))] = draw.randrange(256)
        views = {path: memoryview(bytes(text)) for path, text in changed.items()}
        try:
            backend.check_graph(
                GraphFiles(
                    graph.entry, graph.inputs, graph.outputs, graph.session, sizes, views, True
                )
            )
        except ValueError:
            refused += 1
    assert refused > 30


@pytest.mark.parametrize("gone", ["MatMul", "com.microsoft:MultiHeadAttention"])
def test_an_operator_that_the_table_lacks_is_refused(
    tiny_package: Path, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    """The table is what opening asks, not a list beside it."""
    from exporter.backends.onnx import check

    monkeypatch.setattr(check, "OPERATORS", onnx.OPERATORS - {gone})
    with pytest.raises(CheckFailed, match=f"operator '{gone}', which fourstep"):
        open_package(tiny_package)

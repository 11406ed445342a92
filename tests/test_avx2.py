"""Packages on a processor with AVX2 and nothing newer: products of 8 bits must not be clipped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.avx2 import environment, hindrance, replace_cpuid
from exporter.build.pipeline import Built

REASON = hindrance()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return os.environ | environment(sys.executable, tmp_path_factory.mktemp("avx2"))


def test_every_cpuid_instruction_gives_way(tmp_path: Path) -> None:
    """And bytes that look like one do not."""
    source, library = tmp_path / "one.c", tmp_path / "one.so"
    source.write_text(
        "#include <cpuid.h>\n"
        "const char like[] = {0x0f, 0xa2};\n"
        "unsigned level(void) { unsigned a, b, c, d; __cpuid(0, a, b, c, d); return a; }\n"
        "unsigned features(void) { unsigned a, b, c, d; __cpuid(1, a, b, c, d); return d; }\n"
    )
    subprocess.run(["gcc", "-O1", "-fPIC", "-shared", "-o", library, source], check=True)
    before = library.read_bytes()
    assert replace_cpuid(library) == 2
    changed = [
        i for i, (a, b) in enumerate(zip(before, library.read_bytes(), strict=True)) if a != b
    ]
    assert len(changed) == 2 and all(before[i - 1 : i + 1] == b"\x0f\xa2" for i in changed)
    assert library.read_bytes().count(b"\x0f\xa2") == before.count(b"\x0f\xa2") - 2 >= 1
    assert replace_cpuid(library) == 0


def test_runtimes_see_an_older_processor(older: dict[str, str]) -> None:
    code = (
        "import json, openvino; "
        "print(json.dumps(openvino.Core().get_property('CPU', 'OPTIMIZATION_CAPABILITIES')))"
    )
    found = subprocess.check_output([sys.executable, "-c", code], text=True, env=older)
    assert "BF16" not in json.loads(found)


@pytest.mark.parametrize(
    "name",
    [
        "onnx-int8-w8a8",
        "openvino-int8-w8a8",
        pytest.param("openvino-int4-a8", marks=pytest.mark.full),
    ],
)
def test_rounded_inputs_mean_the_same_there(
    shapes_packages: dict[str, Built], older: dict[str, str], name: str
) -> None:
    if name not in shapes_packages:
        pytest.skip(f"pip install 'fourstep[{name.split('-')[0]}]' enables this")
    built = shapes_packages[name]
    command = [sys.executable, "-m", "exporter", "verify", str(built.path), "--json"]
    found = json.loads(subprocess.check_output(command, text=True, env=older))
    assert found["ok"]
    for graph, here in zip(found["graphs"], built.report.graphs, strict=True):
        assert graph["graph"] == here.graph
        assert graph["exact"] < min(1.3 * here.exact + 1e-6, 0.03)
    for image, drawn in zip(found["images"], built.report.images, strict=True):
        assert abs(image["loss_db"] - drawn.loss_db) < 3

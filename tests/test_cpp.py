"""The runtime in C++: built from a bundle as a user builds it, it draws what Python draws."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pictures

from exporter.build.pipeline import Built
from exporter.bundle.cpp import unicode_header
from exporter.bundle.target import load_target
from exporter.bundle.unicode import FILE
from exporter.bundle.write import write_bundle
from exporter.drawing.loop import Image, Request, generate
from exporter.files.read import file_digest
from exporter.package.read import MANIFEST
from exporter.runtime.package import open_package
from tests.conftest import seal
from tests.test_cpp_onnx import DRAW
from tests.test_quiet import assert_silent, run_alone

PROMPT = "two red circles left of a blue square"
SCHEMES = ("int8-w8a8", "int4", "fp32", "fp16", "int8", "mixed-4.5", "int4-a8")
FEW = SCHEMES[:1]  # of make test


def run(project: Path, program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(project / "build" / program), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=project)


def test_all_vectors_hold(cpp_project: Path) -> None:
    done = run(cpp_project, "fourstep-vectors", "package")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = dict(re.findall(r"^(\S.*?)  +(\d+)  +0  ", done.stdout, re.MULTILINE))
    manifest = open_package(cpp_project / "package").manifest
    assert {f"graph {name}" for name in manifest.names} <= {*rows}
    assert {f"ids of {name}" for name in manifest.text.tokenizers} <= {*rows}
    others = {"noise", "ids of pictures", "noise of pictures", "steps of the schedule", "pixels",
              "previews", "whole pictures"}  # fmt: skip
    assert others <= {*rows} and all(int(count) > 0 for count in rows.values())
    assert done.stdout.endswith("ok\n")


@pytest.mark.parametrize(
    "scheme", [pytest.param(s, marks=[] if s in FEW else pytest.mark.full) for s in SCHEMES]
)
def test_pictures_are_pythons(
    cpp_project: Path, shapes_packages: dict[str, Built], scheme: str, tmp_path: Path
) -> None:
    package = shapes_packages[f"openvino-{scheme}"].path
    done = run(cpp_project, "fourstep-draw", package, PROMPT, 7, tmp_path / "a.png")
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [f"step {k} of 4" for k in range(1, 5)]
    (expected,) = [e.pixels for e in generate(open_package(package).player(), [Request(PROMPT, 7)])
                   if isinstance(e, Image)]  # fmt: skip
    with Pictures.open(tmp_path / "a.png") as found:
        assert np.array_equal(np.asarray(found), expected)


def test_a_picture_to_start_from(
    cpp_project: Path, shapes_packages: dict[str, Built], tmp_path: Path
) -> None:
    package = shapes_packages["openvino-int4"].path
    start = np.random.default_rng(3).integers(0, 256, (128, 128, 3), np.uint8)
    Pictures.fromarray(start).save(tmp_path / "start.ppm")
    arguments = [package, PROMPT, -5, tmp_path / "a.png", tmp_path / "start.ppm", 0.5]
    done = run(cpp_project, "fourstep-draw", *arguments)
    assert done.stderr.splitlines() == ["step 3 of 4", "step 4 of 4"]
    request = Request(PROMPT, -5, image=start, strength=0.5)
    (expected,) = [e.pixels for e in generate(open_package(package).player(), [request])
                   if isinstance(e, Image)]  # fmt: skip
    with Pictures.open(tmp_path / "a.png") as found:
        assert np.array_equal(np.asarray(found), expected)


def test_vectors_of_every_size_hold(cpp_project: Path, sized: Path) -> None:
    done = run(cpp_project, "fourstep-vectors", sized)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"^\d+x\d+$", done.stdout, re.MULTILINE) == ["64x48", "80x48"]
    for name in open_package(sized).manifest.names:
        row = rf"^graph {name} +[1-9]\d* +0 "
        assert len(re.findall(row, done.stdout, re.MULTILINE)) == 2, done.stdout


def test_another_size_is_drawn_as_by_python(cpp_project: Path, sized: Path, tmp_path: Path) -> None:
    drawn = [sized, PROMPT, 7, tmp_path / "a.png"]
    done = run(cpp_project, "fourstep-draw", "--size", "80x48", *drawn)
    assert done.returncode == 0, done.stderr
    requests = [Request(PROMPT, 7, size="80x48")]
    (expected,) = [e.pixels for e in generate(open_package(sized).player(), requests)
                   if isinstance(e, Image)]  # fmt: skip
    with Pictures.open(tmp_path / "a.png") as found:
        assert np.array_equal(np.asarray(found), expected)
    done = run(cpp_project, "fourstep-draw", "--size", "99x99", *drawn)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "this package does not draw 99x99; its sizes: 64x48, 80x48" in done.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"files": ["none.xml"]}, "'none.xml' is not among files"),
        ({"name": "unet"}, "'unet' stands in for none"),
        ({"inputs": []}, "sizes[0]: graphs[4].inputs: none, or two of a name"),
        ({"session": {"base": "../t5/t5.xml"}}, "differs from is not among the graph's files"),
    ],
)
def test_sizes_that_contradict_the_rest_are_refused(
    cpp_project: Path, sized: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    manifest = json.loads((sized / MANIFEST).read_text())
    manifest["sizes"][0]["graphs"][0] |= changes
    seal(tmp_path, manifest)
    done = run(cpp_project, "fourstep-draw", tmp_path, PROMPT)
    assert done.returncode == 2 and message in done.stderr, done.stderr


def test_what_is_no_number_is_refused(cpp_project: Path, shapes_packages: dict[str, Built]) -> None:
    package = shapes_packages["openvino-int4"].path
    for given in (["seven"], ["7x"], [7, "a.png", "start.ppm", "half"]):
        done = run(cpp_project, "fourstep-draw", package, PROMPT, *given)
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert "such number" in done.stderr or "start.ppm" in done.stderr


def test_nothing_is_reported(cpp_project: Path, tmp_path: Path) -> None:
    """No name asked, no connection, no file elsewhere while OpenVINO is open in a program."""
    assert_silent(run_alone(tmp_path, "-c", DRAW, cpp_project, 2))


CONSUMER = """
cmake_minimum_required(VERSION 3.18)
project(consumer CXX)
find_package(fourstep 0.1 REQUIRED)
add_executable(own own.cpp)
target_link_libraries(own PRIVATE fourstep::{target})
"""
OWN = {
    "c": "#include <fourstep.h>\nint main() { return fourstep_open(0, 0, 0, 0, 0, 0) != 0; }\n",
    "fourstep": "#include <fourstep/fourstep.hpp>\n"
    'int main() { return fourstep::make_engine("openvino")->backend() != "openvino"; }\n',
}


@pytest.mark.parametrize("target", ["c", pytest.param("fourstep", marks=pytest.mark.full)])
def test_it_is_installed_and_found(cpp_project: Path, tmp_path: Path, target: str) -> None:
    """``find_package(fourstep)`` gives the headers and the C library to other projects."""
    prefix = tmp_path / "prefix"
    (tmp_path / "CMakeLists.txt").write_text(CONSUMER.replace("{target}", target))
    (tmp_path / "own.cpp").write_text(OWN[target])
    python = f"-DPython3_EXECUTABLE={sys.executable}"
    for command in (
        ["cmake", "--install", cpp_project / "build", "--prefix", prefix],
        ["cmake", "-B", "build", f"-DCMAKE_PREFIX_PATH={prefix}", python],
        ["cmake", "--build", "build"],
        [tmp_path / "build" / "own"],
    ):
        words = [str(word) for word in command]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    moved = Path(shutil.move(prefix, tmp_path / "elsewhere"))
    done = subprocess.run([moved / "bin/fourstep-vectors"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == "fourstep-vectors PACKAGE\n"


def test_the_header_of_unicode_is_the_file() -> None:
    text = unicode_header(FILE.read_bytes())
    numbers = re.findall(r"\d+(?=,)", text)
    assert bytes(map(int, numbers)) == FILE.read_bytes()


def broken(cpp_project: Path, place: Path) -> Path:
    """A copy of the project's package that a test may damage."""
    return Path(shutil.copytree(cpp_project / "package", place / "package"))


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("graphs/denoiser/denoiser.bin", "denoiser.bin: damaged: SHA-256 differs; copy or build"),
        ("graphs/clip_l/clip_l.xml", "clip_l.xml: damaged: SHA-256 differs; copy or build"),
        ("tokenizer/t5.json", "t5.json: damaged: SHA-256 differs; copy or build"),
        ("golden/0.png", "0.png: damaged: SHA-256 differs; copy or build"),
        ("manifest.json", "manifest.json: damaged: it is not what manifest.sha256 says"),
    ],
)
def test_a_changed_bit_is_found(cpp_project: Path, tmp_path: Path, path: str, said: str) -> None:
    package = broken(cpp_project, tmp_path)
    flip(package / path)
    done = run(cpp_project, "fourstep-draw", package, PROMPT, 7, tmp_path / "a.png")
    assert done.returncode == 2 and said in done.stderr, done.stderr
    assert not (tmp_path / "a.png").exists()


def test_what_is_no_package(cpp_project: Path, tmp_path: Path) -> None:
    package = broken(cpp_project, tmp_path)
    raw = json.loads((package / "manifest.json").read_text("utf-8"))

    def said(changes: dict[str, Any] | None = None) -> str:
        if changes is not None:
            seal(package, raw | changes)
        done = run(cpp_project, "fourstep-draw", package, PROMPT)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
        return done.stderr

    assert "format version '3.2'; this runtime reads 4.x" in said({"format_version": "3.2"})
    assert "for coreml, and this program was built without an engine" in said({"backend": "coreml"})
    schedule = raw["schedule"] | {"mode": "heun"}
    assert "schedule.mode: 'heun' is not known to this runtime; take a" in said(
        {"schedule": schedule}
    )
    stages = [*raw["stages"], raw["stages"][-1] | {"runs": "for the filter"}]
    assert "runs: 'for the filter' is not known to this runtime" in said({"stages": stages})
    for wrong in ({"graph": "filter", "threshold": 0.5}, {}, "", False):  # with a stage or without
        for more in ({}, {"stages": stages}):
            assert "filter: this runtime runs no filter, and would" in said(
                {"filter": wrong} | more
            )
    schedule = raw["schedule"] | {"sigmas": [1.0, 1.0, 0.0]}
    assert "schedule.sigmas: do not fall" in said({"schedule": schedule})
    newer = {"format_version": "4.9", "stages": []}
    assert "format 4.9: take a newer runtime" in said(newer)
    seal(package, raw | {"format_version": "4.9", "unknown": {"a": [1]}})
    assert run(cpp_project, "fourstep-draw", package, PROMPT, 7, tmp_path / "a.png").returncode == 0
    (package / "manifest.sha256").unlink()
    assert "manifest.sha256: is missing" in said()
    (package / "manifest.json").unlink()
    assert "not a package (no manifest.json)" in said()
    shutil.rmtree(package)
    assert "no such folder" in said()


def test_without_golden_there_is_nothing_to_compare(cpp_project: Path, tmp_path: Path) -> None:
    package = open_package(cpp_project / "package")
    write_bundle(package, load_target("cpp"), tmp_path / "out", golden=False)
    done = run(cpp_project, "fourstep-vectors", tmp_path / "out" / "package")
    assert done.returncode == 2 and "has no golden files to compare with; bundle it" in done.stderr


def test_a_wrong_vector_is_noticed(cpp_project: Path, tmp_path: Path) -> None:
    """The table names what differs."""
    package = broken(cpp_project, tmp_path)
    text = (package / "golden/tokens.json").read_text("utf-8")
    (package / "golden/tokens.json").write_text(text.replace("[656, 657]", "[656, 656]", 1))
    reseal(package)
    done = run(cpp_project, "fourstep-vectors", package)
    assert done.returncode == 1 and "1 of the vectors differ" in done.stderr, done.stderr
    assert len(re.findall(r"^ids of clip_\w  +\d+  +1 ", done.stdout, re.MULTILINE)) == 1


def reseal(package: Path) -> None:
    """Give a package the digests of its files as they are, and leave one golden picture."""
    raw = json.loads((package / "manifest.json").read_text("utf-8"))
    del raw["golden"]["pictures"][1:]
    for entry in raw["files"]:
        entry["bytes"] = (package / entry["path"]).stat().st_size
        entry["sha256"] = file_digest(package / entry["path"])
    seal(package, raw)

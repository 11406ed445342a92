"""The runtime in C++ with onnxruntime, whose header comes with its releases and no package here.

``ONNXRUNTIME_ROOT`` names one, or a folder that ``.ci/onnxruntime`` made.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pictures

from exporter.build.pipeline import Built
from exporter.drawing.loop import Image, Request, generate
from exporter.runtime.package import open_package
from tests.conftest import built_in_cpp
from tests.test_quiet import assert_silent, run_alone

PLACE = os.environ.get("ONNXRUNTIME_ROOT", "")
PROMPT = "two red circles left of a blue square"
SCHEMES = ("int4", "fp32", "fp16", "int8", "int8-w8a8", "mixed-4.5")

pytestmark = pytest.mark.skipif(
    not PLACE, reason=".ci/onnxruntime FOLDER && make test-onnxruntime ONNXRUNTIME_ROOT=FOLDER"
)


@pytest.fixture(scope="module")
def project(shapes_packages: dict[str, Built], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cpp") / "project"
    package = open_package(shapes_packages["onnx-int4"].path)
    return built_in_cpp(package, folder, f"-DONNXRUNTIME_ROOT={PLACE}")


def test_all_vectors_hold(project: Path) -> None:
    command = [project / "build/fourstep-vectors", project / "package"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("scheme", SCHEMES)
def test_pictures_are_pythons(
    project: Path, shapes_packages: dict[str, Built], scheme: str, tmp_path: Path
) -> None:
    package = shapes_packages[f"onnx-{scheme}"].path
    command = [
        str(p) for p in (project / "build/fourstep-draw", package, PROMPT, 7, tmp_path / "a.png")
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (expected,) = [e.pixels for e in generate(open_package(package).player(), [Request(PROMPT, 7)])
                   if isinstance(e, Image)]  # fmt: skip
    with Pictures.open(tmp_path / "a.png") as found:
        assert np.array_equal(np.asarray(found), expected)


def test_nothing_is_reported(project: Path, tmp_path: Path) -> None:
    """For longer than onnxruntime waits: no name asked, no connection, no file elsewhere."""
    assert_silent(run_alone(tmp_path, "-c", DRAW, project, 15))


DRAW = """
import ctypes, sys, time

library = ctypes.CDLL(f"{sys.argv[1]}/build/libfourstep.so")
library.fourstep_open.restype = ctypes.c_void_p
error = ctypes.create_string_buffer(500)
place = f"{sys.argv[1]}/package".encode()
player = ctypes.c_void_p(library.fourstep_open(place, None, 0, 0, error, 500))
assert player, error.value

class Request(ctypes.Structure):
    _fields_ = [("prompt", ctypes.c_char_p), ("seed", ctypes.c_uint64),
                ("image", ctypes.c_void_p), ("strength", ctypes.c_double),
                ("negative", ctypes.c_char_p)]

asked = Request(b"a red circle", 7, None, 0.0, None)
status = library.fourstep_draw(
    player, ctypes.byref(asked), ctypes.c_size_t(1), None, None, error, ctypes.c_size_t(500)
)
assert status == 0, error.value
time.sleep(float(sys.argv[2]))
"""

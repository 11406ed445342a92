"""The loop in Java on onnxruntime's own library, and sources for Android on Android's own classes.

``ONNXRUNTIME_ROOT`` names a folder that ``.ci/onnxruntime`` made, ``ANDROID_JAR`` a file that
``.ci/android-jar`` made; neither comes with a package of pip or npm.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from exporter.build.pipeline import Built, build
from exporter.package.manifest import Guidance
from exporter.recipe.recipe import Recipe
from exporter.runtime import Request, SessionOptions, open_package
from tests.conftest import seal
from tests.languages import NEGATIVE, PROMPT, same_as_python, words_of
from tests.test_jvm import (
    ANDROID,
    COMPILER,
    JAVA,
    KOTLIN,
    NEEDED,
    SOURCES,
    TESTS,
    UNICODE,
    javac,
    stubs,
)
from tests.test_quiet import assert_silent, run_alone

PLACE = Path(os.environ.get("ONNXRUNTIME_ROOT", "/"))
ANDROID_JAR = Path(os.environ.get("ANDROID_JAR", ""))
SCHEMES = ("fp16", "fp32", "int4", "int8", "int8-w8a8", "mixed-4.5")

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(not shutil.which("javac"), reason=f"no javac: {NEEDED}"),
]
with_onnxruntime = pytest.mark.skipif(
    not (PLACE / "classes").is_dir(),
    reason=".ci/onnxruntime FOLDER && make test-onnxruntime ONNXRUNTIME_ROOT=FOLDER",
)


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The core, the adapter and what tests need, compiled against onnxruntime's own classes."""
    out = tmp_path_factory.mktemp("classes")
    (out / "dev" / "fourstep").mkdir(parents=True)
    shutil.copyfile(UNICODE, out / "dev" / "fourstep" / UNICODE.name)
    named = [*(SOURCES / "java").rglob("*.java"), *(TESTS / "dev" / "fourstep").glob("*.java")]
    return javac(out, named, f"{out}:{PLACE / 'classes'}")


def command(classes: Path, main: str, *words: object) -> list[str]:
    path = f"-Donnxruntime.native.path={PLACE / 'lib'}"
    named = ["-cp", f"{classes}:{PLACE / 'classes'}", f"dev.fourstep.{main}"]
    return [*JAVA, path, *named, *map(str, words)]


def java(classes: Path, main: str, *words: object) -> list[str]:
    """The lines that a program prints."""
    silent = os.environ | {"ORT_DISABLE_TELEMETRY": "1"}
    named = command(classes, main, *words)
    done = subprocess.run(named, env=silent, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout.splitlines()


def same(
    classes: Path, package: Path, requests: Sequence[Request], folder: Path, exact: bool = False
) -> list[str]:
    """What drawing says; latents and pictures are Python's, byte for byte."""
    engine = "onnxruntime-exact" if exact else "onnxruntime"
    words = words_of(requests, folder)
    lines = java(classes, "Draw", engine, folder, "preview", package, "onnx", *words)
    options = SessionOptions(precision="float32") if exact else None
    same_as_python(package, requests, folder, options)
    return lines


@with_onnxruntime
@pytest.mark.parametrize("exact", [False, True], ids=["as it runs", "exact"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_draws_pythons_bytes(
    classes: Path, shapes_packages: dict[str, Built], tmp_path: Path, scheme: str, exact: bool
) -> None:
    package = shapes_packages[f"onnx-{scheme}"].path
    requests = [Request("two red circles left of a blue square", 7)]
    lines = same(classes, package, requests, tmp_path, exact)
    assert lines[-1] == "open 0 opened 6", "a graph was left open, or opened twice"


@pytest.fixture(scope="module")
def guided(tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a package can have: guidance, noise at every step, a cut denoiser, image to image."""
    cut = replace(tiny_recipe.cut, image_to_image=True, t5=False, sigmas=(1.0, 0.75, 0.0))
    recipe = replace(tiny_recipe, cut=cut, mode="renoise", denoiser_parts=2, prompts=())
    recipe = recipe.with_guidance(Guidance(4.5, None))
    (built,) = build(recipe, tmp_path_factory.mktemp("guided"), ["onnx"], ["int8"])
    return built.path


@with_onnxruntime
def test_pictures_have_pythons_bytes(classes: Path, guided: Path, tmp_path: Path) -> None:
    """Two prompts, a seed beyond 32 bits, a negative prompt, and from a picture."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    requests = [
        Request(PROMPT, 7),
        Request("a green triangle", 2**33 + 5, negative=NEGATIVE),
        Request("a green triangle", -1, image=image, strength=0.5),
    ]
    lines = same(classes, guided, requests, tmp_path)
    assert lines[:-1] == [
        "conditioned 4",
        *(f"step {i} {k} of 2" for i in (0, 1) for k in (1, 2)),
        "step 2 2 of 2",
        *(f"picture {i}" for i in range(3)),
    ]


@with_onnxruntime
def test_graphs_and_pictures_are_compared_with_it(
    classes: Path, shapes_packages: dict[str, Built], tmp_path: Path
) -> None:
    """Every recorded call and every golden picture within its tolerance; what is not is named."""
    package = shapes_packages["onnx-int8"].path
    manifest = open_package(package).manifest
    ports = {s.graph: len(manifest.parts(s.graph)[-1].outputs) for s in manifest.stages}
    calls = {s.graph: manifest.schedule.steps if s.in_steps else 1 for s in manifest.stages}
    each = sum(ports[graph] * calls[graph] for graph in ports) + 1  # and the picture
    expected = f"{each * len(manifest.golden.pictures)} compared, open 0"
    assert java(classes, "Whole", "onnxruntime-exact", package, "onnx") == [expected]

    copy = Path(shutil.copytree(package, tmp_path / "package"))
    raw = json.loads((copy / "manifest.json").read_text())
    for graph in raw["graphs"]:
        graph["tolerance"] = {"graph_relative": 1e-12, "image_psnr_db": 200}
    seal(copy, raw)
    *failures, _ = java(classes, "Whole", "onnxruntime-exact", copy, "onnx")
    assert any(
        re.match(r"denoiser, call 3: relative error \S+, allowed 1.0E-12", f) for f in failures
    )
    assert any(re.match(r"picture '.*': PSNR \S+ dB, at least 200.0", f) for f in failures)


@with_onnxruntime
def test_a_drawing_stops_when_it_is_told(classes: Path, guided: Path, tmp_path: Path) -> None:
    words = ["stop", 1, guided, "onnx", "prompt", PROMPT]
    lines = java(classes, "Draw", "onnxruntime", tmp_path, *words)
    assert lines[-3:] == [
        "step 0 1 of 2",
        "CancellationException the drawing was cancelled",
        lines[-1],
    ]
    assert lines[-1].startswith("open 0 ")


@with_onnxruntime
def test_a_graph_that_it_cannot_open_is_named(
    classes: Path, tiny_package: Path, tmp_path: Path
) -> None:
    """One line, with the file's name; whole by its digests, and yet no graph."""
    package = Path(shutil.copytree(tiny_package, tmp_path / "package"))
    raw = json.loads((package / "manifest.json").read_text())
    raw["graphs"][0]["entry"] = raw["graphs"][0]["files"][-1]["path"]
    seal(package, raw)
    words = [package, "onnx", "prompt", "a"]
    (said, _) = java(classes, "Draw", "onnxruntime", tmp_path, *words)
    assert said.startswith("PackageException ") and "cannot open it: Error code" in said


SPEAK = """
import os, subprocess, sys, time
silent = os.environ | {"ORT_DISABLE_TELEMETRY": "1"}
done = subprocess.run(sys.argv[1:], capture_output=True, text=True, env=silent)
time.sleep(2)
sys.exit(done.stderr if "picture 0" not in done.stdout else 0)
"""


@with_onnxruntime
def test_nothing_is_reported(classes: Path, tiny_package: Path, tmp_path: Path) -> None:
    """No name asked, no connection, no file elsewhere."""
    package = shutil.copytree(tiny_package, tmp_path / "package")
    words = ["onnxruntime", tmp_path, package, "onnx", "prompt", "a red circle"]
    program = command(classes, "Draw", *words)
    program[0] = shutil.which("java") or ""
    program.insert(1, "-XX:-UsePerfData")  # which Java keeps in /tmp
    assert_silent(run_alone(tmp_path, "-c", SPEAK, *program))


@with_onnxruntime
def test_a_process_that_would_report_opens_nothing(
    classes: Path, tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Onnxruntime begins to when its library is loaded, which a call comes too late for."""
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    words = ["onnxruntime", tmp_path, tiny_package, "onnx", "prompt", "a"]
    done = subprocess.run(command(classes, "Draw", *words), capture_output=True, text=True)
    assert "start this process with ORT_DISABLE_TELEMETRY=1 in its environment" in done.stderr


@pytest.mark.skipif(
    not ANDROID_JAR.is_file(),
    reason=".ci/android-jar FOLDER && make test-onnxruntime ANDROID_JAR=FOLDER/android.jar",
)
@pytest.mark.skipif(not KOTLIN.is_dir(), reason="no Kotlin: npm ci --prefix tests/jvm")
def test_the_sources_for_android_have_the_right_types(tmp_path: Path) -> None:
    """Against Android's own classes, of an older level than the app asks for, and no stub of them.

    Play's asset packs and what Gradle generates are still stubs; onnxruntime's where it is absent.
    """
    real = [ANDROID_JAR, *([PLACE / "classes"] if (PLACE / "classes").is_dir() else [])]
    stubbed = ["com", "dev", *(["ai"] if len(real) == 1 else [])]
    out = tmp_path / "classes"
    out.mkdir()
    path = ":".join(map(str, (out, *real)))
    javac(out, [*stubs(tmp_path, *stubbed), *(SOURCES / "java").rglob("*.java")], path)
    libraries = [KOTLIN / "kotlin-stdlib.jar", KOTLIN / "kotlinx-coroutines-core-jvm.jar"]
    compiler = f"{KOTLIN / 'kotlin-preloader.jar'}:{KOTLIN / 'kotlin-compiler.jar'}"
    flags = ["-no-reflect", "-no-stdlib", "-jvm-target", "1.8", "-Werror"]
    classpath = ":".join(map(str, (*libraries, path)))
    command = ["java", "-cp", compiler, COMPILER, *flags, "-cp", classpath]
    command += ["-d", str(tmp_path / "kotlin"), *map(str, ANDROID.rglob("*.kt"))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr

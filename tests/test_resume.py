"""A build that is stopped goes on with what is whole, and ends in the same bytes."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from exporter import backends
from exporter.backends.onnx import BACKEND as backend
from exporter.build import emit, pipeline, resume, write
from exporter.build.pipeline import Built
from exporter.errors import InputError
from exporter.files import staging
from exporter.files.read import panics_as
from exporter.files.stop import forget, stop
from exporter.progress import Progress
from exporter.recipe.recipe import Recipe
from tests.conftest import needs
from tests.test_package import digests

GRAPHS = ["clip_l", "clip_g", "t5", "conditioner", "denoiser", "vae_decoder", "vae_encoder"]
JOURNAL, PARTIAL = ".onnx-int4.journal.json", ".onnx-int4.partial"
Stop = Callable[[str], None]


def build(recipe: Recipe, out: Path, name: str = "onnx") -> tuple[Path, list[str]]:
    """Build one package; its folder, and the names of the graphs that were emitted for it."""
    lines: list[str] = []
    (built,) = pipeline.build(
        recipe, out, [name], ["int4"], Progress(lambda line, *_: lines.append(line))
    )
    return built.path, [line.removeprefix("emit ") for line in lines if line.startswith("emit ")]


def stop_at(monkeypatch: pytest.MonkeyPatch, module: object, name: str, call: int) -> None:
    """Let a function's call of that number (from 0) stop the process, as SIGTERM does."""
    original, calls = getattr(module, name), iter(range(10**6))

    def stopping(*args: object, **options: object) -> object:
        if next(calls) == call:
            raise SystemExit(143)
        return original(*args, **options)

    monkeypatch.setattr(module, name, stopping)


@pytest.fixture(scope="module")
def undisturbed(
    tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, str]]:
    """Digests of a backend's package without golden pictures, built once."""
    folder = tmp_path_factory.mktemp("whole")
    return cache(lambda name: digests(build(replace(tiny_recipe, prompts=()), folder, name)[0]))


@pytest.mark.parametrize("name", backends.names())
@pytest.mark.parametrize("call", [0, 1, 4, 6])
def test_a_stopped_build_goes_on(
    tiny_recipe: Recipe,
    undisturbed: Callable[[str], dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    call: int,
) -> None:
    if missing := backends.missing(needs(name)):
        pytest.skip(f"pip install {' '.join(missing)}")
    recipe = replace(tiny_recipe, prompts=())
    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        stop_at(patch, type(backends.load(name)), "emit", call)
        build(recipe, out, name)
    assert out.exists() == (call > 0)
    again, emitted = build(recipe, out, name)
    assert emitted == GRAPHS[call:]
    assert digests(again) == undisturbed(name)
    assert {f.name for f in out.iterdir()} == {f"{name}-int4", f"{name}-int4.log.json"}


@pytest.mark.parametrize(
    ("module", "function"),
    [(write, "fill"), (emit, "verify"), (write, "write_log"), (staging, "_put")],
)
def test_stopped_after_the_last_graph(
    tiny_recipe: Recipe,
    tiny_package: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: object,
    function: str,
) -> None:
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        stop_at(patch, module, function, 0)
        build(tiny_recipe, tmp_path)
    assert {JOURNAL, PARTIAL} <= {f.name for f in tmp_path.iterdir()}
    again, emitted = build(tiny_recipe, tmp_path)
    assert emitted == [] and digests(again) == digests(tiny_package)
    assert {f.name for f in tmp_path.iterdir()} == {"onnx-int4", "onnx-int4.log.json"}


@pytest.fixture(scope="module")
def stopped_once(tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        stop_at(patch, type(backend), "emit", 5)
        build(tiny_recipe, folder)
    return folder


@pytest.fixture
def stopped(stopped_once: Path, tmp_path: Path) -> Path:
    """A folder with the first five graphs of a stopped build."""
    return Path(shutil.copytree(stopped_once, tmp_path, dirs_exist_ok=True))


def test_a_damaged_graph_is_emitted_again(
    tiny_recipe: Recipe, tiny_package: Path, stopped: Path
) -> None:
    file = stopped / PARTIAL / "graphs/clip_g/clip_g.onnx.data"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    again, emitted = build(tiny_recipe, stopped)
    assert emitted == ["clip_g", *GRAPHS[5:]] and digests(again) == digests(tiny_package)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"basis": 1, "graphs": [{}]}'])
def test_a_damaged_journal_starts_over(
    tiny_recipe: Recipe, tiny_package: Path, stopped: Path, text: str
) -> None:
    (stopped / JOURNAL).write_text(text)
    again, emitted = build(tiny_recipe, stopped)
    assert emitted == GRAPHS and digests(again) == digests(tiny_package)


def test_another_recipe_starts_over(tiny_recipe: Recipe, stopped: Path) -> None:
    _, emitted = build(replace(tiny_recipe, group_size=32), stopped)
    assert emitted == GRAPHS


def test_it_says_how_to_go_on(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    stop_at(monkeypatch, type(backend), "emit", 1)
    with pytest.raises(SystemExit):
        pipeline.build(
            tiny_recipe, tmp_path, ["onnx"], ["int4"], Progress(lambda line, *_: lines.append(line))
        )
    assert lines[-1] == "onnx-int4: stopped; the same command goes on from here"


def test_an_error_leaves_nothing(
    tiny_recipe: Recipe, stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(type(backend), "emit", full)
    with pytest.raises(InputError, match="the disk is full"):
        build(tiny_recipe, stopped)
    assert list(stopped.iterdir()) == []


def test_what_is_written_counts_as_free(
    tiny_recipe: Recipe, stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = resume.unfinished_bytes(stopped / "onnx-int4")
    assert lacking > 100_000
    needed = sum(
        f.stat().st_size for f in (build(tiny_recipe, stopped / "x")[0] / "graphs").rglob("*.data")
    )
    free = shutil._ntuple_diskusage(10**9, 0, needed - lacking // 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(InputError, match="free space or choose another place"):
        build(tiny_recipe, stopped / "other")
    build(tiny_recipe, stopped)


@pytest.fixture
def whole(tiny_recipe: Recipe, tmp_path: Path) -> Path:
    return build(tiny_recipe, tmp_path)[0]


def test_a_whole_package_is_kept(tiny_recipe: Recipe, tmp_path: Path) -> None:
    first = pipeline.build(tiny_recipe, tmp_path, ["onnx"], ["int8", "int4"])
    times = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*")}
    lines: list[str] = []
    progress = Progress(lambda line, *_: lines.append(line))
    again: list[Built] = pipeline.build(tiny_recipe, tmp_path, ["onnx"], ["int8", "int4"], progress)
    assert again == first and all(b.report.images for b in again)
    assert lines[-2:] == ["onnx-int8 is whole already", "onnx-int4 is whole already"]
    assert progress.done == progress.expected
    assert {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*")} == times


@pytest.mark.parametrize("prompts", [("a red circle",), ()])
def test_as_many_lines_of_progress_come_as_were_expected(
    tiny_recipe: Recipe, tmp_path: Path, prompts: tuple[str, ...]
) -> None:
    """With statistics to measure, a graph in parts, two schemes, one of them there already."""
    recipe = replace(
        tiny_recipe,
        prompts=prompts,
        t5_parts=2,
        cut=replace(tiny_recipe.cut, sigmas=(1.0, 0.0)),
        calibration=replace(tiny_recipe.calibration, prompts=("a star",), methods=("scales",)),
    )
    for schemes in (["int8"], ["int8", "int4"]):
        seen: list[tuple[int, int]] = []
        progress = Progress(lambda _, done, expected, seen=seen: seen.append((done, expected)))  # type: ignore[misc]
        pipeline.build(recipe, tmp_path, ["onnx"], schemes, progress)
        assert progress.done == progress.expected
        # All that is left to do is known once the graphs are traced.
        assert {expected for done, expected in seen[7:]} == {progress.expected}


def test_a_damaged_package_is_built_again(
    tiny_recipe: Recipe, tiny_package: Path, whole: Path
) -> None:
    """What is whole in it is taken, but for the decoder, which only a mark tells apart."""
    (whole / "graphs/t5/t5.onnx.data").write_bytes(b"")
    again, emitted = build(tiny_recipe, whole.parent)
    assert emitted == ["t5", "vae_decoder"] and digests(again) == digests(tiny_package)


def test_a_package_of_another_recipe_is_built_again(tiny_recipe: Recipe, whole: Path) -> None:
    _, emitted = build(replace(tiny_recipe, seed=8), whole.parent)
    assert emitted == GRAPHS


@pytest.mark.parametrize("text", ["", "[]", '{"basis": 1}'])
def test_a_package_with_a_damaged_log_is_built_again(
    tiny_recipe: Recipe, whole: Path, text: str
) -> None:
    (whole.parent / "onnx-int4.log.json").write_text(text)
    assert build(tiny_recipe, whole.parent)[1] == GRAPHS


def test_the_log_of_a_newer_package_does_not_speak_for_the_older(
    tiny_recipe: Recipe, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between the new log and the new package's move into place."""
    newer = replace(tiny_recipe, seed=8)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        stop_at(patch, staging, "_put", 0)
        build(newer, whole.parent)
    again, emitted = build(newer, whole.parent)
    assert emitted == [] and (again / "manifest.json").is_file()
    reference, _ = build(newer, whole.parent / "reference")
    assert digests(again) == digests(reference)


def test_another_version_of_a_tool_builds_again(
    tiny_recipe: Recipe, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume, "tools_of", lambda *_: {"onnx": "0"})
    assert build(tiny_recipe, whole.parent)[1] == GRAPHS


RECIPE = """
[model]
checkpoint = "{checkpoint}"
[schedule]
sigmas = [1.0, 0.9, 0.75, 0.5, 0.0]
[image]
width_px = 64
height_px = 64
[text]
t5_tokens = 8
[weights]
scheme = "int4"
group_size = 32
[golden]
prompts = []
"""


def test_a_signal_that_a_library_swallows_is_told(tmp_path: Path) -> None:
    """As safetensors does, which takes the exception for a damaged file: what is whole is kept."""
    target, journal = tmp_path / "package", tmp_path / "journal"

    def swallowing() -> None:
        try:
            stop(KeyboardInterrupt())
        except KeyboardInterrupt:
            raise TypeError("could not determine the shape") from None

    forget()
    try:
        with (
            pytest.raises(KeyboardInterrupt),
            staging.staging(target, journal=journal) as folder,
            panics_as(lambda said: InputError(f"a damaged file: {said}")),
        ):
            (folder / "graph").write_text("whole")
            journal.write_text("graph")
            swallowing()
        with pytest.raises(KeyboardInterrupt), staging.staging(target, journal=journal):
            swallowing()
    finally:
        forget()
    assert journal.exists() and (staging.partial_of(target) / "graph").read_text() == "whole"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed(tiny_folder: Path, tmp_path: Path, number: signal.Signals) -> None:
    """The real command, killed once the journal names a few graphs, then run again."""
    (tmp_path / "tiny.toml").write_text(RECIPE.format(checkpoint=tiny_folder))
    command = [sys.executable, "-m", "exporter", "build", str(tmp_path / "tiny.toml")]
    command += ["--backend", "onnx", "--out", str(tmp_path / "out")]
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore SIGINT, and hand that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    journal, end = tmp_path / "out" / JOURNAL, time.monotonic() + 120
    while not (journal.exists() and '"t5"' in journal.read_text()):
        assert child.poll() is None and time.monotonic() < end
        time.sleep(0.001)
    child.send_signal(number)
    stderr = child.communicate()[1]
    assert child.returncode and "Traceback" not in stderr
    assert not (tmp_path / "out" / "onnx-int4").exists()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "t5 is whole already" in done.stderr
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == [
        "onnx-int4",
        "onnx-int4.log.json",
    ]
    subprocess.run([*command[:-1], str(tmp_path / "again")], check=True, capture_output=True)
    assert digests(tmp_path / "out/onnx-int4") == digests(tmp_path / "again/onnx-int4")

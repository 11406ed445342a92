"""No library reports what it is used for: nothing is asked, opened or left behind."""

from __future__ import annotations

import ast
import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import pytest
from PIL import Image

from exporter import backends, quiet
from exporter.cli import main
from exporter.credentials.sign import Credentials, open_signer
from exporter.delivery.delta import write_delta
from exporter.delivery.pack import pack
from exporter.delivery.stores import OTA
from exporter.runtime.package import open_package
from tests import alone
from tests.certificates import issue
from tests.conftest import ROOT, needs
from tests.test_credentials import write
from tests.test_house import statements
from tests.test_marking import KEY, marked, shapes

SPEAKERS = (
    "onnxruntime", "openvino", "openvino_genai", "openvino_tokenizers", "nncf", "coremltools",
    "huggingface_hub", "transformers", "diffusers", "accelerate", "optimum", "selenium",
)  # fmt: skip
TOLD_APART = ("exporter", "benchmarks", "tests")  # folders whose ``__init__`` hushes
ALIVE_S = 40

RECIPE = """
[model]
checkpoint = "{checkpoint}"
[schedule]
sigmas = [1.0, 0.5, 0.0]
[image]
width_px = 64
height_px = 48
[text]
t5_tokens = 24
[weights]
scheme = ["int8"]
[build]
backends = {backends}
[onnx]
scheme = ["int4", "int8-w8a8"]
[calibration]
prompts = "{prompts}"
methods = ["feedback", "bias"]
[golden]
prompts = ["a red circle"]
"""

OPENED = """
import importlib, sys, time
from pathlib import Path
from exporter.runtime import open_package

for library in sys.argv[2:]:
    importlib.import_module(library)
open_package(Path(sys.argv[1])).player().open("clip_l")
time.sleep(15)
"""

COMMAND = """
import sys, time
from exporter.cli import main

began = time.monotonic()
try:
    main(sys.argv[2:])
finally:
    time.sleep(max(0.0, float(sys.argv[1]) - (time.monotonic() - began)))
"""


def able() -> str:
    """Why no command can be run alone here, or nothing."""
    if sys.platform != "linux" or os.geteuid():
        return "namespaces need Linux and root"
    lost = [tool for tool in ("unshare", "ip", "mount") if shutil.which(tool) is None]
    if lost:
        return f"not installed: {', '.join(lost)}"
    permitted = subprocess.run(["unshare", "--net", "--mount", "true"], check=False).returncode == 0
    return "" if permitted else "this machine permits no new namespaces (unshare --net --mount)"


def run_alone(place: Path, *arguments: object) -> dict[str, Any]:
    """What Python did with these arguments, alone: see ``tests/alone.py``."""
    if reason := able():
        pytest.skip(reason)
    script = [sys.executable, str(ROOT / "tests" / "alone.py"), str(place), sys.executable]
    environment = {
        "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(place / "home"), "TMPDIR": str(place / "tmp"),
    }  # fmt: skip
    command = ["unshare", "--net", "--mount", *script, *map(str, arguments)]
    done = subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def assert_silent(found: Mapping[str, Any]) -> None:
    assert found["code"] == 0, found["said"]
    silent: dict[str, Any] = {"names": [], "connections": [], "packets": 0, "written": []}
    assert {key: found[key] for key in silent} == silent


def installed(modules: Sequence[str]) -> list[str]:
    return [name for name in modules if not backends.missing({name: name})]


def test_no_library_speaks(tiny_package: Path, tmp_path: Path) -> None:
    """All of them in one process with an open graph, for longer than onnxruntime waits."""
    package = shutil.copytree(tiny_package, tmp_path / "package")
    assert_silent(run_alone(tmp_path, "-c", OPENED, package, *installed(SPEAKERS)))


def test_who_is_watched_is_heard(tmp_path: Path) -> None:
    """The test above can fail: names, connections and files are noticed."""
    said = "\n".join(
        [
            "import pathlib, socket",
            "pathlib.Path('/var/tmp/left').touch()",
            "pathlib.Path.home().joinpath('id').touch()",
            "connection = socket.socket()",
            "connection.settimeout(0.1)",
            "connection.connect_ex((socket.gethostbyname('example.com'), 443))",
        ]
    )
    found = run_alone(tmp_path, "-c", said)
    assert found["names"] == ["example.com"] and found["packets"] > 0
    assert found["connections"] == [f"{'.'.join(map(str, alone.SOMEWHERE))}:443"]
    assert found["written"] == [str(tmp_path / "home/id"), "/var/tmp/left"]


@pytest.fixture(scope="module")
def places(
    tiny_folder: Path, tiny_package: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """A folder for a command, with a recipe, a checkpoint and a folder of packages in it."""

    def prepare(name: str) -> Path:
        place = tmp_path_factory.mktemp(name)
        shutil.copytree(tiny_folder, place / "checkpoint")
        shutil.copytree(tiny_package, place / "packages" / "onnx-int4")
        (place / "prompts.txt").write_text("a red circle\na blue square\n")
        able_to = [b for b in backends.names() if not backends.missing(needs(b))]
        text = RECIPE.format(
            checkpoint=place / "checkpoint",
            prompts=place / "prompts.txt",
            backends=json.dumps(able_to),
        )
        (place / "tiny.toml").write_text(text)
        (place / "matrix.toml").write_text('recipes = ["tiny.toml"]\nschemes = ["fp16"]\n')
        package = open_package(place / "packages" / "onnx-int4")
        pack(package, OTA, place / "packs")
        write_delta(package, package, place / "update.delta")
        chain, key = issue("signer", issue("root", authority=True)).write(place)
        with open_signer(Credentials(chain, key)) as signer:
            write(place / "signed.webp", signer)
        (place / "mark.key").write_text(KEY.secret.hex())
        (place / "mark.key").chmod(0o600)
        Image.fromarray(marked(shapes()[0])).save(place / "marked.png")
        return place

    return prepare


COMMANDS: dict[str, tuple[str, ...]] = {
    "build": ("build", "tiny.toml", "--out", "out"),
    "matrix": ("matrix", "matrix.toml", "--out", "out", "--workers", "1"),
    "plan": ("plan", "tiny.toml", "--bits", "5", "-o", "tiny.plan.toml", "--statistics", "out"),
    "run": ("run", "packages/onnx-int4", "a red circle", "--out", "a.png", "--previews", "out"),
    "run-signed": (
        "run",
        "packages/onnx-int4",
        "a red circle",
        "--out",
        "a.png",
        "--credentials",
        "chain.pem",
        "key.pem",
    ),
    "credentials": ("credentials", "signed.webp"),
    "mark-key": ("mark", "key", "out.key"),
    "mark-read": ("mark", "read", "marked.png", "--key", "mark.key"),
    "mark-detector": ("mark", "detector", "--key", "mark.key", "-o", "out.onnx"),
    "verify": ("verify", "packages/onnx-int4"),
    "sign": ("sign", "packages/onnx-int4", "--key", "key.pem", "--certificate", "chain.pem"),
    "bom": ("bom", "packages/onnx-int4", "-o", "out.json"),
    "rebuild": ("rebuild", "packages/onnx-int4", "--checkpoint", "checkpoint", "-o", "out"),
    "bundle": ("bundle", "packages/onnx-int4", "--for", "cpp", "-o", "out"),
    "pack": ("pack", "packages/onnx-int4", "--for", "play", "-o", "out"),
    "unpack": ("unpack", "packs", "-o", "out"),
    "delta": ("delta", "packages/onnx-int4", "packages/onnx-int4", "-o", "out"),
    "apply": ("apply", "update.delta", "--to", "packages/onnx-int4", "-o", "out"),
    "bench": ("bench", "packages/onnx-int4"),
    "inspect": ("inspect", "packages/onnx-int4"),
    "inspect-checkpoint": ("inspect", "checkpoint"),
    "recipe": ("recipe", "checkpoint", "-o", "out.toml"),
    "report": ("report", "packages"),
    "synth": ("synth", "sd3.5-flash-mini", "out", "--no-t5"),
    "doctor": ("doctor",),
}


@pytest.fixture(scope="module")
def commands(places: Callable[[str], Path]) -> dict[str, dict[str, Any]]:
    """What each command did; several run side by side, as they mostly wait."""
    if reason := able():
        pytest.skip(reason)

    def watch(name: str) -> dict[str, Any]:
        return run_alone(prepared[name], "-c", COMMAND, ALIVE_S, *COMMANDS[name])

    prepared = {name: places(name) for name in COMMANDS}
    with ThreadPoolExecutor(4) as workers:
        return dict(zip(COMMANDS, workers.map(watch, COMMANDS), strict=True))


@pytest.mark.full
@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_speaks(name: str, commands: dict[str, dict[str, Any]]) -> None:
    """Every command for 40 s: no name asked, no connection, no file elsewhere."""
    assert_silent(commands[name])


def test_every_command_is_watched() -> None:
    """But ``fetch``, which is there to ask a hub."""
    there: set[tuple[str, ...]] = set()
    for name, found in main.commands.items():
        inner = found.commands if isinstance(found, click.Group) else [""]
        there |= {(name, *filter(None, [other])) for other in inner}
    watched = {given[: 1 if given[:1] in there else 2] for given in COMMANDS.values()}
    assert watched == there - {("fetch",)}


@pytest.mark.parametrize("package", TOLD_APART)
def test_whatever_is_imported_hushes_first(package: str) -> None:
    """And so do ``python -m`` of anything in these folders, and child processes of it."""
    code = f"import os, sys, {package}; print(*(os.environ.get(v) for v in sys.argv[1:]))"
    bare = {k: v for k, v in os.environ.items() if k not in quiet.VARIABLES}
    command = [sys.executable, "-c", f"{code}; print('openvino_telemetry' in sys.modules)"]
    said = subprocess.check_output([*command, *quiet.VARIABLES], env=bare, cwd=ROOT, text=True)
    assert said.splitlines() == [" ".join(quiet.VARIABLES.values()), "True"]


@functools.cache
def speakers_of(file: Path) -> list[str]:
    """The libraries that speak and are imported anywhere in a file."""
    names: list[str] = []
    for statement in statements(ast.parse(file.read_text("utf-8")), inside=True):
        if isinstance(statement, ast.Import):
            names += [alias.name for alias in statement.names]
        else:
            names.append(statement.module or "")
    return sorted({name.partition(".")[0] for name in names} & {*SPEAKERS})


def test_who_speaks_is_imported_where_it_is_hushed_alone() -> None:
    """Scripts that stand for themselves, outside these folders or run as a file, import none."""
    found = [f for f in ROOT.rglob("*.py") if not f.relative_to(ROOT).parts[0].startswith(".")]
    files = [f for f in found if not (f.parent / "manifest.json").exists()]  # packages' own
    outside = [f for f in files if f.relative_to(ROOT).parts[0] not in TOLD_APART]
    assert [f for f in outside if speakers_of(f)] == []
    for folder in TOLD_APART:
        own = [f for f in files if f.relative_to(ROOT).parts[0] == folder]
        assert any(speakers_of(f) for f in own)
    # The one script that leaves its folder meets Core ML's library, which has nothing to report.
    on_mac = ROOT / "exporter/backends/coreml/on_mac.py"
    assert speakers_of(on_mac) == ["coremltools"]

"""The wheel holds all that the package needs, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from email import message_from_bytes
from fnmatch import fnmatch
from pathlib import Path
from zipfile import ZipFile

import pytest

from exporter.bundle.target import targets
from exporter.bundle.write import read_bundle, write_bundle
from exporter.runtime.package import open_package
from tests.conftest import ROOT

LEFT = ("__pycache__", "*.egg-info")  # by running and by installing a plugin from its folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    """Built from a copy, because setuptools leaves folders where it builds; asks no index."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    left = shutil.ignore_patterns(*LEFT)
    shutil.copytree(ROOT / "exporter", source / "exporter", ignore=left)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    alone = ["--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, *alone, "--wheel-dir", str(place), str(source)], check=True)
    (file,) = place.glob("fourstep-*.whl")
    return ZipFile(file)


def test_the_wheel_has_every_file_of_the_exporter(wheel: ZipFile) -> None:
    """Types, styles, prompts and schemas too."""
    folder = ROOT / "exporter"
    files = [f.relative_to(ROOT) for f in folder.rglob("*") if f.is_file()]
    own = [f for f in files if not any(fnmatch(part, left) for part in f.parts for left in LEFT)]
    expected = {file.as_posix() for file in own}
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == expected and "exporter/py.typed" in held


def test_bundles_of_an_installed_wheel_are_the_same(
    wheel: ZipFile, tiny_package: Path, tmp_path: Path
) -> None:
    """Of every target that takes the tiny package; nothing of the repository is looked at."""
    wheel.extractall(tmp_path / "site")
    package = open_package(tiny_package)
    for target in (t for t in targets().values() if "onnx" in t.backends):
        out = tmp_path / target.name
        command = [sys.executable, "-m", "exporter", "bundle", str(tiny_package)]
        engine = ROOT / "tests" / "web" / target.engine.folder if target.engine else None
        if engine is not None:
            if not engine.is_dir():
                continue  # npm ci --ignore-scripts --prefix tests/web
            command += ["--engine", str(engine)]
        done = subprocess.run(
            [*command, "--for", target.name, "-o", str(out)],
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        own = tmp_path / f"{target.name}-own"
        assert read_bundle(out) == write_bundle(package, target, own, engine=engine)


def test_the_wheel_describes_itself(wheel: ZipFile) -> None:
    (name,) = [n for n in wheel.namelist() if n.endswith(".dist-info/METADATA")]
    told = message_from_bytes(wheel.read(name))
    readme = (ROOT / "README.md").read_text("utf-8")
    assert told["Name"] == "fourstep" and told["License-Expression"] == "Apache-2.0"
    assert str(told.get_payload()).strip().startswith(readme[:80])
    assert {"build", "onnx", "openvino", "coreml", "report"} <= set(
        told.get_all("Provides-Extra", [])
    )
    (points,) = [n for n in wheel.namelist() if n.endswith("entry_points.txt")]
    assert b"fourstep = exporter.cli:main" in wheel.read(points)
    assert Path(wheel.filename or "").name.endswith("-py3-none-any.whl")

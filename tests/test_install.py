"""A bare install runs packages: a new environment, no extras (make test-full; needs pip)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import ROOT

pytestmark = pytest.mark.full


def test_a_bare_install_draws(tiny_package: Path, tmp_path: Path) -> None:
    place = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    pip = [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    source = tmp_path / "source"  # pip leaves a build folder where it builds
    shutil.copytree(ROOT / "exporter", source / "exporter")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    subprocess.run([*pip, str(source), "-c", str(ROOT / "constraints.txt")], check=True)
    fourstep = str(place / "bin" / "fourstep")
    out = tmp_path / "picture.png"
    command = [fourstep, "run", str(tiny_package), "a red circle", "--out", str(out)]
    subprocess.run(command, check=True, cwd=tmp_path)
    with Image.open(out) as picture:
        assert picture.size == (64, 48)
    verified = subprocess.run([fourstep, "verify", str(tiny_package)], cwd=tmp_path, check=False)
    assert verified.returncode == 0
    recipe = ROOT / "recipes" / "shapes-flash.toml"
    refused = subprocess.run(
        [fourstep, "build", str(recipe)], cwd=tmp_path, check=False, capture_output=True, text=True
    )
    assert refused.returncode == 2
    assert refused.stderr.strip() == (
        "fourstep: cyclonedx-python-lib, torch is not installed: pip install 'fourstep[build]'"
    )

"""What CI installs before it tests: all that can be had, whatever cannot."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGES = [
    line for line in (ROOT / ".ci/apt.txt").read_text().splitlines() if not line.startswith("#")
]
NEEDED = ("bash", "cat", "dirname", "env", "grep", "id")


def program(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!{shutil.which('bash')}\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """A system whose apt-get notes what it is asked for, and cannot install chromium."""
    for name in NEEDED:
        (tmp_path / name).symlink_to(shutil.which(name) or pytest.skip(f"{name} is not here"))
    program(tmp_path, "sudo", 'shift; exec "$@"')
    program(tmp_path, "make", f"echo make $* >> {tmp_path}/asked")
    program(tmp_path, "python3.11", "exit 0")
    program(tmp_path, "dpkg-query", 'case "$*" in *softhsm2) echo "install ok installed";; esac')
    program(
        tmp_path, "apt-get", f'echo $* >> {tmp_path}/asked; case "$*" in *chromium) exit 100;; esac'
    )
    return tmp_path


def test_a_package_that_cannot_be_installed_keeps_no_other_away(system: Path) -> None:
    program(system, "npm", "exit 0")
    ended = subprocess.run(
        [ROOT / ".ci/run"], env={"PATH": str(system)}, capture_output=True, text=True
    )
    assert ended.returncode == 0
    asked = (system / "asked").read_text().splitlines()
    installed = [line.rpartition(" ")[2] for line in asked if " install " in f" {line} "]
    assert installed == [name for name in PACKAGES if name not in ("npm", "softhsm2", "make")]
    assert asked[-1] == "make test PYTHON=python3.11"
    assert ended.stderr.splitlines() == ["goes on without: chromium (apt-get could not install it)"]

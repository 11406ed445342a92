"""Hostile packages are refused before anything is computed: in a line, in 5 s, in 256 MB."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.hostile import HARMLESS, PACKAGES

MOST_S = 5.0
MOST_BYTES = 256e6
# Opens each package in a process of its own, which has to end by itself, and tells how it went.
RUNNER = """
import json, os, resource, sys, time
from pathlib import Path
from exporter.errors import FourstepError
from exporter.runtime import open_package

def attempt(folder):
    try:
        with open_package(Path(folder)).player():
            return {"said": "OPENED"}
    except FourstepError as error:
        return {"said": str(error), "kind": type(error).__name__}
    except BaseException as error:
        return {"said": f"DEFECT {error!r}"}

for folder in sys.stdin.read().splitlines():
    reads, writes = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
        os.write(writes, json.dumps(attempt(folder)).encode())
        os._exit(0)
    os.close(writes)
    _, status, used = os.wait4(child, 0)
    with open(reads, "rb") as stream:
        found = json.loads(stream.read() or b'{"said": "KILLED"}')
    found |= {"seconds": used.ru_utime + used.ru_stime, "wall": time.monotonic() - started}
    print(json.dumps(found | {"bytes": used.ru_maxrss * 1024, "place": folder}), flush=True)
"""


@pytest.fixture(scope="module")
def opened(tiny_package: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What happened to each package, by what is wrong with it."""
    place = tmp_path_factory.mktemp("hostile")
    changes = {name: change for name, (change, _) in PACKAGES.items()} | HARMLESS
    names = {}
    for i, (name, change) in enumerate(changes.items()):
        folder = Path(shutil.copytree(tiny_package, place / str(i)))
        change(folder)
        names[str(folder)] = name
    done = subprocess.run(
        [sys.executable, "-c", RUNNER],
        input="\n".join(names),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=600,
        check=True,
        env={"TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT)},
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {names[row["place"]]: row for row in found}


def test_what_is_whole_is_opened(opened: dict[str, Any]) -> None:
    assert {name: opened[name]["said"] for name in HARMLESS} == dict.fromkeys(HARMLESS, "OPENED")


def test_there_are_many_of_every_kind() -> None:
    assert len(PACKAGES) >= 100


@pytest.mark.parametrize("name", PACKAGES)
def test_a_hostile_package_is_refused(opened: dict[str, Any], name: str) -> None:
    row, words = opened[name], PACKAGES[name][1]
    assert row.get("kind") in ("CheckFailed", "InputError"), row
    assert any(part in row["said"] for part in words.split("|")), row["said"]
    assert "\n" not in row["said"] and len(row["said"]) < 2500
    assert row["seconds"] < MOST_S and row["bytes"] < MOST_BYTES, row

"""Builds that are killed: python -m tests.killed_builds RECIPE OLDER.toml PLACE COUNT [fallback].

A package of the older recipe is there; a build of the recipe is killed (SIGKILL) at a moment, which
is one of its own writes to the folder, and the same build is run again. One JSON line for each
moment. Every build is a fork of this process, which has imported everything and computed nothing.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from exporter.build import pipeline
from exporter.files import staging
from exporter.recipe.recipe import Recipe, read_recipe
from exporter.runtime.package import open_package
from exporter.runtime.verify import check_files
from tests.test_package import digests

WRITES = os.O_WRONLY | os.O_RDWR
EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate")


def build(recipe: Recipe, out: Path) -> None:
    pipeline.build(recipe, out, ["onnx"], ["int4"])


def forked(recipe: Recipe, out: Path, moment: int | None, log: Path | None = None) -> int:
    """Build in a fork; returns its status.

    Args:
        moment: the number of the write ahead of which it is killed, from 0; None: it is not.
        log: where each write's name goes, a line for each.
    """
    pid = os.fork()
    if pid == 0:
        count = itertools.count()
        lines: list[str] = []

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if event not in EVENTS or (event == "open" and not arguments[2] & WRITES):
                return
            # A folder's files are removed by their names alone, relative to it.
            is_name = event in ("os.remove", "os.rmdir") and "/" not in str(arguments[0])
            if not is_name and not str(arguments[0]).startswith(str(out)):
                return
            lines.append(f"{event} {arguments[0]}")
            if next(count) == moment:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        build(recipe, out)
        if log is not None:
            log.write_text("\n".join(lines))
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def moments(writes: list[str], count: int) -> list[int]:
    """Half of them ahead of where the new package takes its place, half from there on."""
    placed = max(i for i, line in enumerate(writes) if line.endswith(".log.json.part"))
    bounds = ((0, placed, count // 2), (placed, len(writes), count - count // 2))
    return [start + (end - start) * i // n for start, end, n in bounds for i in range(n)]


def is_whole(folder: Path) -> bool:
    try:
        return check_files(open_package(folder)) > 0
    except Exception:
        return False


def killed(older: Path, recipe: Recipe, place: Path, count: int) -> Iterator[dict[str, Any]]:
    out, log = place / "out", place / "writes"

    def prepare() -> None:
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(older, out)

    prepare()
    forked(recipe, out, None, log)
    expected, before = digests(out / "onnx-int4"), digests(older / "onnx-int4")
    for moment in moments(log.read_text().splitlines(), count):
        prepare()
        status = forked(recipe, out, moment)
        there = out / "onnx-int4"
        present = is_whole(there) and digests(there) in (expected, before)
        aside = is_whole(out / ".onnx-int4.old")
        again = forked(recipe, out, None)
        yield {
            "moment": moment,
            "killed": os.WIFSIGNALED(status),
            "present": present,
            "aside": aside,
            "again": again,
            "same": digests(there) == expected,
            "beside": sorted(f.name for f in out.iterdir()),
        }


def main() -> None:
    recipe, older, place = (
        read_recipe(Path(sys.argv[1])),
        read_recipe(Path(sys.argv[2])),
        sys.argv[3],
    )
    if sys.argv[5:]:
        staging._exchanging_rename = lambda: None  # type: ignore[assignment]
    first = Path(place) / "older"
    forked(older, first, None)
    for row in killed(first, recipe, Path(place), int(sys.argv[4])):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()

"""Packs and deltas that are killed: python -m tests.killed_deliveries WHAT PLACE OLD NEW COUNT.

WHAT is pack, archive, unpack, delta, apply or in-place. It is killed (SIGKILL) at a random moment,
either ahead of one of its own writes or after a while, and run again. One JSON line for each
moment. Every run is a fork of this process, which has imported everything and computed nothing.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from exporter.delivery.apply import apply
from exporter.delivery.coding import library
from exporter.delivery.delta import write_delta
from exporter.delivery.pack import pack
from exporter.delivery.stores import OTA, PLAY
from exporter.delivery.unpack import unpack
from exporter.files.read import file_digest
from exporter.runtime.package import open_package

WRITES = os.O_WRONLY | os.O_RDWR
EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link")


def digests(folder: Path) -> dict[str, str]:
    files = (f for f in sorted(folder.rglob("*")) if f.is_file())
    return {f.relative_to(folder).as_posix(): file_digest(f) for f in files}


def forked(run: Callable[[], object], place: Path, moment: int | float | None) -> tuple[int, int]:
    """Its status, and how many writes it made.

    Args:
        moment: a whole number: of the write ahead of which it is killed, from 0; another: of
            seconds after which it is; None: it is not.
    """
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        count = itertools.count()

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if event not in EVENTS or (event == "open" and not arguments[2] & WRITES):
                return
            if str(place) in str(arguments[0]) and next(count) == moment:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        run()
        os.write(tell, str(next(count)).encode())
        os._exit(0)
    os.close(tell)
    if isinstance(moment, float):
        time.sleep(moment)
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    with os.fdopen(told) as stream:
        return status, int(stream.read() or 0)


def state(place: Path) -> dict[str, str]:
    """Digests of a folder's files, or of a file alone; empty where nothing is."""
    if place.is_file():
        return {place.name: file_digest(place)}
    return digests(place) if place.exists() else {}


def run_of(what: str, place: Path, old: Path, new: Path) -> tuple[Callable[[], object], Path]:
    """What is killed, and where it writes to; what it needs is made first."""
    out, needed = place / "out" / "target", place / "needed"
    if what in ("pack", "archive"):
        return partial(pack, open_package(new), PLAY if what == "pack" else OTA, out), out
    if what == "delta":
        return partial(write_delta, open_package(old), open_package(new), out), out
    if what == "unpack":
        if not needed.exists():
            pack(open_package(new), PLAY, needed)
        return partial(unpack, needed, out), out
    if not needed.exists():
        write_delta(open_package(old), open_package(new), needed)
    return partial(apply, needed, out if what == "in-place" else old, out), out


def killed(what: str, place: Path, old: Path, new: Path, count: int) -> Iterator[dict[str, Any]]:
    chance = random.Random(f"{what} {count}")
    run, out = run_of(what, place, old, new)

    def prepare() -> None:
        shutil.rmtree(out.parent, ignore_errors=True)
        out.parent.mkdir()
        if what == "in-place":
            shutil.copytree(old, out)

    prepare()
    before = state(out)
    start = time.monotonic()
    _, writes = forked(run, out.parent, None)
    seconds = time.monotonic() - start
    expected, inputs = state(out), (digests(old), digests(new))
    for i in range(count):
        moment = chance.randrange(writes) if i % 2 else chance.uniform(0, seconds)
        while True:
            prepare()
            status, _ = forked(run, out.parent, moment)
            if os.WIFSIGNALED(status) or isinstance(moment, int):
                break
            moment /= 2  # it was done before
        yield {
            "moment": moment,
            "killed": os.WIFSIGNALED(status),
            "present": state(out) in (before, expected),
            "inputs": (digests(old), digests(new)) == inputs,
            "again": forked(run, out.parent, None)[0],
            "same": state(out) == expected,
            "beside": sorted(f.name for f in out.parent.iterdir()),
        }


def main() -> None:
    library()  # imported before the fork
    what, place, old, new, count = sys.argv[1:]
    for row in killed(what, Path(place), Path(old), Path(new), int(count)):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()

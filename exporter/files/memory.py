"""Memory: what is free on this machine, what this one may have at all, what a process has taken."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
GROUP = Path("/sys/fs/cgroup")  # of version 2, or of version 1 with the folder below
GROUP_1 = GROUP / "memory"
SAMPLE_S = 0.05


@dataclass(frozen=True)
class Free:
    """Bytes of memory; None where the system does not say.

    Attributes:
        total_bytes: what there is at all, for all processes.
        free_bytes: what more can be taken now without swapping.
    """

    total_bytes: int | None
    free_bytes: int | None


def free_memory(proc: Path = PROC, group: Path = GROUP, group_1: Path = GROUP_1) -> Free:
    """Of this machine, or of the container that it is, whichever has less."""
    lines = _status(proc / "meminfo") or _elsewhere()
    limits = [_limited(group, "memory.max", "memory.current", "inactive_file")]
    limits.append(
        _limited(group_1, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    )
    total = [lines.get("MemTotal"), *(limit.total_bytes for limit in limits)]
    free = [lines.get("MemAvailable"), *(limit.free_bytes for limit in limits)]
    return Free(
        min((t for t in total if t is not None), default=None),
        min((f for f in free if f is not None), default=None),
    )


def _limited(group: Path, limit: str, used: str, cached: str) -> Free:
    """What a control group allows; pages of files that it can drop are free."""
    try:
        most = int((group / limit).read_text(encoding="ascii"))
        taken = int((group / used).read_text(encoding="ascii"))
        stat = (group / "memory.stat").read_text(encoding="ascii").split()
    except (OSError, ValueError):  # none, or "max"
        return Free(None, None)
    dropped = dict(zip(stat[::2], stat[1::2], strict=False)).get(cached, "0")
    return Free(most, max(0, most - taken + int(dropped)))


def _status(file: Path) -> dict[str, int]:
    """Bytes by name, of the lines of a file that end in kB; empty where there is none."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines if line.endswith(" kB"))
    return {name: int(rest.split()[0]) * 1024 for name, _, rest in pairs}


def _elsewhere() -> dict[str, int]:
    """The same of macOS and Windows; empty without psutil."""
    try:
        import psutil
    except ImportError:
        return {}
    found = psutil.virtual_memory()
    return {"MemTotal": found.total, "MemAvailable": found.available}


def anonymous_bytes(process: int | None = None) -> int:
    """What a process holds now besides pages of files; 0 where that cannot be known."""
    found = _status(PROC / str(process or os.getpid()) / "status").get("RssAnon")
    if found is not None:
        return found
    try:
        import psutil

        return int(psutil.Process(process).memory_full_info().uss)
    except Exception:  # it is not installed, or the process has ended
        return 0


class Peak:
    """The most that this process has held since it was begun."""

    def __init__(self) -> None:
        self.bytes = anonymous_bytes()

    def sample(self) -> None:
        self.bytes = max(self.bytes, anonymous_bytes())


@contextmanager
def watched() -> Iterator[Peak]:
    """While it lasts, this process's memory is looked at some times a second."""
    peak, ended = Peak(), threading.Event()

    def watch() -> None:
        while not ended.wait(SAMPLE_S):
            peak.sample()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()
        peak.sample()

"""Runs a command as on a device with so much memory and no more, and measures what it took.

A device has its memory and no swap, so the measure is the smallest memory cgroup in which a command
completes; peak resident memory alone misleads, because it counts pages of mapped files, which the
kernel can drop. Both are reported, and peak anonymous memory, which it cannot.

    python -m benchmarks.memcap [--limit 4G] -- COMMAND [ARGUMENT...]

Without a limit, or where no cgroup can be made (it takes root), only the peaks are measured.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import energy

ROOT = Path("/sys/fs/cgroup")
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
SAMPLE_S = 0.02
KILLED = -9


@dataclass(frozen=True)
class Measured:
    """One run: exit code (-9: the limit killed it), seconds, and peaks of its largest process.

    Attributes:
        cpu_s: of all processors, the command's and its descendants'.
        joules: of the machine's processors meanwhile; None where no counter can be read.
        limit_bytes: of the cgroup; None when the run was not limited.
        peak_rss_bytes: resident, pages of mapped files included.
        peak_anonymous_bytes: resident and not backed by a file (sampled).
        output: what it wrote to stdout.
    """

    exit_code: int
    seconds: float
    cpu_s: float
    joules: float | None
    limit_bytes: int | None
    peak_rss_bytes: int
    peak_anonymous_bytes: int
    output: str

    @property
    def completed(self) -> bool:
        return self.exit_code == 0


def parse_bytes(text: str) -> int:
    """``600M`` or ``3.5G`` in bytes; raises ValueError."""
    unit = UNITS.get(text[-1:].upper())
    return int(float(text[:-1]) * unit) if unit else int(text)


@contextmanager
def cgroup(limit_bytes: int) -> Iterator[Path]:
    """A memory cgroup without swap, version 1 or 2; raises OSError where none can be made."""
    old = ROOT / "memory"
    folder = (old if old.is_dir() else ROOT) / f"fourstep.{os.getpid()}.{time.monotonic_ns()}"
    folder.mkdir()
    try:
        if old.is_dir():
            (folder / "memory.limit_in_bytes").write_text(str(limit_bytes))
            swap = folder / "memory.memsw.limit_in_bytes"
        else:
            (folder / "memory.max").write_text(str(limit_bytes))
            swap = folder / "memory.swap.max"
        if swap.exists():
            swap.write_text(str(limit_bytes if old.is_dir() else 0))
        yield folder
    finally:
        for _ in range(100):  # the kernel takes a moment to let go of the last process
            try:
                folder.rmdir()
                break
            except OSError:
                time.sleep(0.05)


def measure(
    command: Sequence[str],
    limit_bytes: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Measured:
    """Run a command, inside a cgroup when a limit is given; stderr passes through.

    Raises OSError where no cgroup can be made, or no such command exists.
    """
    if limit_bytes is None:
        return _measure(command, None, None, environment)
    with cgroup(limit_bytes) as folder:
        return _measure(command, limit_bytes, folder, environment)


def _measure(
    command: Sequence[str],
    limit_bytes: int | None,
    folder: Path | None,
    environment: Mapping[str, str] | None,
) -> Measured:
    def enter() -> None:
        if folder is not None:
            (folder / "cgroup.procs").write_text(str(os.getpid()))

    started, used_s, before = time.perf_counter(), _used_s(), energy.counters()
    everything = {**os.environ, **(environment or {})}
    with (
        tempfile.TemporaryFile("w+") as out,
        subprocess.Popen(command, stdout=out, preexec_fn=enter, env=everything) as process,
    ):
        peaks = {"VmHWM": 0, "RssAnon": 0}
        while process.poll() is None:
            for name, value in _memory(_family(process.pid), peaks).items():
                peaks[name] = max(peaks[name], value)
            time.sleep(SAMPLE_S)
        out.seek(0)
        output = out.read()
    seconds = time.perf_counter() - started
    spent = energy.joules(before, energy.counters())
    return Measured(
        process.returncode, seconds, _used_s() - used_s, spent, limit_bytes,
        peaks["VmHWM"], peaks["RssAnon"], output,
    )  # fmt: skip


def _used_s() -> float:
    """Seconds of processors of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _family(pid: int) -> list[int]:
    """A process and its descendants."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        children = []
    return [pid, *(p for child in children for p in _family(int(child)))]


def _memory(pids: Sequence[int], names: Mapping[str, int]) -> dict[str, int]:
    """The largest of each figure of ``/proc/<pid>/status`` over processes, in bytes."""
    found = dict.fromkeys(names, 0)
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, rest = line.partition(":")
            if name in found:
                found[name] = max(found[name], int(rest.split()[0]) * 1024)
    return found


def describe(found: Measured) -> str:
    """One line for a person."""
    limit = (
        "no limit" if found.limit_bytes is None else f"limit {found.limit_bytes / 2**30:.2f} GiB"
    )
    return (
        f"{limit}: exit code {found.exit_code}, {found.seconds:.1f} s, peak RSS "
        f"{found.peak_rss_bytes / 2**30:.2f} GiB, peak anonymous "
        f"{found.peak_anonymous_bytes / 2**30:.2f} GiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Run a command inside so much memory.")
    parser.add_argument("--limit", type=parse_bytes, help="such as 600M or 3.5G")
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    try:
        found = measure(arguments.command, arguments.limit)
    except PermissionError as error:
        sys.exit(f"no memory cgroup can be made here ({error}); run it without --limit")
    sys.stdout.write(found.output)
    print(describe(found), file=sys.stderr)
    sys.exit(found.exit_code if found.exit_code >= 0 else 128 - found.exit_code)


if __name__ == "__main__":
    main()

"""A graph in a process of its own, which may crash: what it ended with is told in a line."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from exporter.backends.onnx.qnn.frames import receive, send
from exporter.backends.onnx.qnn.log import unsupported
from exporter.backends.onnx.qnn.provider import QUIET, TELLING
from exporter.errors import CheckFailed, printable

MODULE = "exporter.backends.onnx.qnn.worker"
LAST_BYTES = 1 << 22  # of a log that are read
SHORTAGES = (signal.SIGKILL, signal.SIGABRT)
END_S = 10  # for a process that was told to end


@dataclass(frozen=True)
class Order:
    """How a graph is to be opened.

    Attributes:
        entry: its file; relative to ``place`` if that is given.
        soc: as ``provider.open_session`` takes it.
        entries, options: the same.
        others: further graphs that are opened after it with the same options, and what to configure
            for each: their compiled weights are shared.
        severity: the same.
        most_bytes: of memory that the process may ask for; None: no limit.
        most_s: that opening may take; None: no limit.
        place: the folder that it works in.
    """

    entry: str
    soc: str | None
    entries: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    others: Sequence[tuple[str, Mapping[str, str]]] = ()
    severity: int = QUIET
    most_bytes: int | None = None
    most_s: float | None = None
    place: Path | None = None

    @property
    def where(self) -> str:
        """The file, for people."""
        return str(self.place / self.entry if self.place else self.entry)


class Worker:
    """A process that has a graph open.

    Attributes:
        outputs: the names of what it gives.
        peak_bytes: resident memory of the process, at most, by the time that it is open.
        cpu_seconds: of processors that it has taken by then.
    """

    def __init__(self, order: Order) -> None:
        self._order, self._log = order, tempfile.TemporaryFile()  # noqa: SIM115
        # First on its path is this package, not the working folder, which may hold a json.py.
        home = str(Path(__file__).parents[4])
        path = os.pathsep.join([home, *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", MODULE],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, cwd=order.place,
            env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
        self._end = weakref.finalize(self, _end, self._process, self._log)
        said = asdict(replace(order, place=None))
        late = threading.Timer(order.most_s or 0, self._process.kill)
        if order.most_s is not None:
            late.start()
        try:
            found = self._ask(said, {}, "opened")[0]
        finally:
            late.cancel()
        self.outputs: list[str] = found["outputs"]
        self.peak_bytes: int = found["peak_bytes"]
        self.cpu_seconds: float = found["cpu_seconds"]

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name; raises CheckFailed."""
        return self._ask({}, inputs, "ran")[1]

    def told(self) -> list[str]:
        """Whatever it has printed, in lines."""
        self._log.seek(0)
        return [line.decode("utf-8", "replace") for line in self._log]

    def close(self) -> None:
        """End the process."""
        self._end()

    def _ask(
        self, said: Mapping[str, Any], arrays: Mapping[str, np.ndarray], what: str
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        orders, answers = self._process.stdin, self._process.stdout
        assert orders is not None and answers is not None
        try:
            send(orders, said, arrays)
            found = receive(answers)
        except (BrokenPipeError, ValueError):
            found = None
        if found is not None and "failed" not in found[0]:
            return found
        reason = _first_line(found[0]["failed"]) if found else self._ending(what)
        log = self._last_told()
        self.close()
        raise Refused(f"{self._order.where}: {reason}", unsupported(log), found is None)

    def _ending(self, what: str) -> str:
        code = self._process.wait()
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
            hint = ", as when memory or time runs out" if -code in SHORTAGES else ""
            return f"Qualcomm's provider crashed ({name}{hint}) while it {what} the graph"
        return f"Qualcomm's provider ended with code {code} while it {what} the graph"

    def _last_told(self) -> str:
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - LAST_BYTES))
        return self._log.read().decode("utf-8", "replace")


class Refused(CheckFailed):
    """A graph that the provider does not take.

    Attributes:
        nodes: the operators that it says it lacks: type by name.
        crashed: whether its process ended by itself.
    """

    def __init__(self, message: str, nodes: Mapping[str, str], crashed: bool) -> None:
        super().__init__(message)
        self.nodes, self.crashed = dict(nodes), crashed


def opened(order: Order) -> Worker:
    """Open a graph; what is refused is asked about once more, for the operators that are lacking.

    Raises Refused.
    """
    try:
        return Worker(order)
    except Refused as refused:
        if refused.nodes or refused.crashed or order.severity == TELLING:
            raise
    try:
        return Worker(replace(order, severity=TELLING))
    except Refused as told:
        told_nodes = told.nodes
        raise Refused(told.problem, told_nodes, told.crashed) from None


def _first_line(text: str) -> str:
    return printable(text.strip().splitlines()[0]) if text.strip() else "no reason was given"


def _end(process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    """Close a process's pipes, and wait for it or end it."""
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):  # it ended with something unread
                stream.close()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    log.close()

"""Opens a graph with Qualcomm's provider and runs it for another process, over pipes.

    python -m exporter.backends.onnx.qnn.worker

takes an order (``process.Order``), answers with the outputs' names or with what stopped it, and
then gives outputs for inputs until its stdin ends. What libraries print goes to stderr.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import IO

from exporter.backends.onnx.qnn.frames import receive, send
from exporter.backends.onnx.qnn.provider import open_session
from exporter.errors import InputError
from exporter.files.read import read_text


def serve(orders: IO[bytes], answers: IO[bytes]) -> None:
    """Open what the first message orders, then run each of the others."""
    first = receive(orders)
    if first is None:
        return
    order = first[0]
    if order["most_bytes"] is not None:
        _bound(order["most_bytes"])
    try:
        graphs = [(order["entry"], order["entries"]), *order["others"]]
        opened, *_ = [
            open_session(Path(entry), order["soc"], asked, order["options"], order["severity"])
            for entry, asked in graphs
        ]
        names = [port.name for port in opened.get_outputs()]
        took = {"peak_bytes": _peak_bytes(), "cpu_seconds": time.process_time()}
        send(answers, {"outputs": names, **took}, {})
        while (asked := receive(orders)) is not None:
            send(answers, {}, dict(zip(names, opened.run(names, asked[1]), strict=True)))
    except Exception as error:  # onnxruntime raises its own types, some bare
        send(answers, {"failed": str(error) or type(error).__name__}, {})


def _bound(most_bytes: int) -> None:
    """Let no more memory be asked for, where the system can be told so."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (most_bytes, most_bytes))
    except (ImportError, ValueError, OSError):
        return


def _peak_bytes() -> int:
    """Resident memory so far, at most; 0 where the system does not say.

    By ``/proc``: what ``getrusage`` tells is no less than the parent had when it forked.
    """
    try:
        lines = read_text(Path("/proc/self/status")).splitlines()
    except InputError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # Qualcomm's libraries print there
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()

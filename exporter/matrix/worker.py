"""A worker on this machine: takes orders as JSON lines and answers in them, until there are none.

    python -m exporter.matrix.worker

What libraries print goes to stderr. A worker whose orders have ended ends: also where whoever gave
them was killed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict
from typing import Any, TextIO

from exporter.files.read import parse_json
from exporter.matrix import work
from exporter.matrix.course import Task
from exporter.matrix.outcome import Assignment, Forecast, Outcome, PackagePart
from exporter.package.decode import parse


def main() -> None:
    """Answer each line of stdin, an ``asked``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever gives orders
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        raw = parse_json(line, "an order")
        _answer(answers, told(answered(raw, lambda said: _answer(answers, {"line": said}))))


def asked(task: Task) -> dict[str, Any]:
    """What a worker is to do, as JSON data; ``answered`` does it."""
    return {
        "order": asdict(task.order),
        "forecast": asdict(task.forecast) if task.forecast else None,
        "part": asdict(task.part) if task.part else None,
        "phase": task.phase,
    }


def answered(raw: dict[str, Any], say: work.Say) -> Outcome | Forecast:
    order = parse(Assignment, raw["order"])
    if raw["forecast"] is None:
        return work.look_up(order, say)
    forecast = parse(Forecast, raw["forecast"])
    if raw["part"] is not None:
        return work.make(order, forecast, parse(PackagePart, raw["part"]), say)
    return work.build(order, forecast, say)


def told(found: Outcome | Forecast) -> dict[str, Any]:
    """An answer as JSON data; ``heard`` reads it."""
    return {"forecast" if isinstance(found, Forecast) else "outcome": asdict(found)}


def heard(raw: dict[str, Any]) -> Outcome | Forecast | str:
    """An answer; a line of progress is text."""
    if "line" in raw:
        return str(raw["line"])
    return parse(Forecast, raw["forecast"]) if "forecast" in raw else parse(Outcome, raw["outcome"])


def _answer(stream: TextIO, value: dict[str, Any]) -> None:
    try:
        stream.write(json.dumps(value) + "\n")
        stream.flush()
    except BrokenPipeError:  # whoever gave the order is gone
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()

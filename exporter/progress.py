"""Progress as data: how many lines are expected, and a place to show each."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TextIO

from exporter.errors import printable

BAR_CELLS = 24
Show = Callable[[str, int, int], None]


@dataclass
class Progress:
    """Counts lines of work. ``show`` gets (line, done, expected); the default shows nothing."""

    show: Show = lambda line, done, expected: None
    expected: int = 0
    done: int = field(default=0, init=False)

    def expect(self, lines: int) -> None:
        """Say that this many more lines will come."""
        self.expected += lines

    def __call__(self, line: str) -> None:
        self.done += 1
        self.show(line, self.done, max(self.expected, self.done))


def nowhere() -> TextIO:
    """A stream that can be written to and keeps nothing."""
    return os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")


def say(text: str) -> None:
    """Write to stderr. Where nobody can read it any more, the work goes on without."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError):  # a broken pipe, or closed
        sys.stderr = nowhere()


def redraws() -> bool:
    """Whether stderr is a terminal that can go back to the start of a line and clear it."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        return False
    # A console of Windows shows the codes as they are, but for the terminals that say who they are.
    return os.name != "nt" or not {"WT_SESSION", "ANSICON", "TERM"}.isdisjoint(os.environ)


def bar_on_terminal(line: str, done: int, expected: int) -> None:
    """A bar that redraws itself on a terminal; plain lines anywhere else. Always on stderr."""
    line = printable(line)
    if not redraws():
        say(f"{line}\n")
        return
    filled = BAR_CELLS * done // expected
    bar = "#" * filled + "." * (BAR_CELLS - filled)
    say(f"\r\x1b[K[{bar}] {done}/{expected} {line}")


def end_of_bar() -> None:
    """Leave the bar's line, on a terminal."""
    if redraws():
        say("\n")

"""Progress as data: how many lines are expected, and a place to show each."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field

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


def bar_on_terminal(line: str, done: int, expected: int) -> None:
    """A bar that redraws itself on a terminal; plain lines anywhere else. Always on stderr."""
    if not sys.stderr.isatty():
        print(line, file=sys.stderr, flush=True)
        return
    filled = BAR_CELLS * done // expected
    bar = "#" * filled + "." * (BAR_CELLS - filled)
    print(f"\r\x1b[K[{bar}] {done}/{expected} {line}", end="", file=sys.stderr, flush=True)


def end_of_bar() -> None:
    """Leave the bar's line, on a terminal."""
    if sys.stderr.isatty():
        print(file=sys.stderr)

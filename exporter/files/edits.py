"""A file that somebody edits: told when it is another than before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from time import sleep

POLL_S = 0.05
State = tuple[int, int, int]


class Edits:
    """Compares a file by inode, size and time of writing, which any file system has."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._seen = self._state()

    def __iter__(self) -> Iterator[None]:
        """Once for the file as it is, then once for every change, without end.

        A file that is still being written, or is gone while an editor replaces it, is waited for:
        it has to be the same at two looks.
        """
        yield
        while True:
            sleep(POLL_S)
            found = self._state()
            if found is None or found == self._seen:
                continue
            sleep(POLL_S)
            if self._state() == found:
                self._seen = found
                yield

    def is_stale(self) -> bool:
        """Whether the file is another than when it was told of last."""
        found = self._state()
        return found is not None and found != self._seen

    def _state(self) -> State | None:
        try:
            status = self._file.stat()
        except OSError:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns

"""What the C library keeps is given back."""

from __future__ import annotations

import subprocess
import sys

import pytest

from exporter import memory

# Pieces too small to be mapped one by one, and one above them that keeps the heap from shrinking.
GROW = """
from exporter.memory import release
def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(l.split()[1]) // 1024 for l in lines if l.startswith("RssAnon"))
pieces = [bytes(60_000) for _ in range(4000)]
last = bytes(60_000)
full = anonymous()
pieces.clear()
held = anonymous()
release()
print(full, held, anonymous())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc_trim, Linux's /proc")
def test_memory_goes_back() -> None:
    code = [sys.executable, "-c", GROW]
    found = subprocess.run(code, check=True, capture_output=True, text=True).stdout
    full_mb, held_mb, left_mb = map(int, found.split())
    assert full_mb - held_mb < 60 and held_mb - left_mb > 150


def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(_: object) -> object:
        return object()

    monkeypatch.setattr("ctypes.CDLL", nothing)
    memory._trim.cache_clear()
    memory.release()
    assert memory._trim() is None
    memory._trim.cache_clear()

"""What the C library keeps is given back."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.calibrate import weights
from exporter.calibrate.weights import Weights
from exporter.checkpoint.open import Checkpoint
from exporter.files import heap
from exporter.program.program import Stored
from exporter.runtime.package import open_package

# Pieces too small to be mapped one by one, and one above them that keeps the heap from shrinking.
GROW = """
from exporter.files.heap import release
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


OPEN = """
import contextlib, sys
from exporter.files.heap import returning
def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(l.split()[1]) // 1024 for l in lines if l.startswith("RssAnon"))
large = bytearray(30_000_000)
del large  # from here on glibc maps no block below 30 MB by itself
with returning() if sys.argv[1] == "returning" else contextlib.nullcontext():
    blocks = [bytearray(1_000_000) for _ in range(300)]
    last = bytes(70_000)
    blocks.clear()
    print(anonymous())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's mallopt, Linux's /proc")
def test_while_a_graph_is_opened_large_blocks_go_back_at_once() -> None:
    def left_mb(how: str) -> int:
        code = [sys.executable, "-c", OPEN, how]
        return int(subprocess.run(code, check=True, capture_output=True, text=True).stdout)

    assert left_mb("returning") < 60
    assert left_mb("as it is") > 250


def test_a_session_is_opened_so(tiny_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And every large weight that is read gives back what the one before it left."""
    seen: list[str] = []
    monkeypatch.setattr(heap, "release", lambda: seen.append("release"))
    monkeypatch.setattr(heap, "_option", lambda: lambda *given: seen.append(str(given)))
    open_package(tiny_package).session("clip_l")
    assert seen == ["(-3, 131072)", "(-3, 33554432)", "release"]


def test_blocks_inside_each_other_set_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As two threads that open graphs have them: the last one out sets it back."""
    seen: list[int] = []
    monkeypatch.setattr(heap, "_option", lambda: lambda _, size: seen.append(size))
    with contextlib.suppress(ValueError), heap.returning():
        with heap.returning():
            pass
        assert seen == [heap.SMALL_BYTES]
        raise ValueError
    assert seen == [heap.SMALL_BYTES, heap.LARGE_BYTES]


def test_each_large_weight_gives_back_what_was_left(
    tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(weights, "release", lambda: seen.append(1))
    table = Stored("text_encoder_3", "shared.weight", (1000, 96))
    Weights(tiny).read(table)
    assert not seen
    monkeypatch.setattr(weights, "LARGE_VALUES", 96_000)
    Weights(tiny).read(table)
    assert seen


def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(_: object) -> object:
        return object()

    monkeypatch.setattr("ctypes.CDLL", nothing)
    heap._trim.cache_clear()
    heap._option.cache_clear()
    with heap.returning():
        heap.release()
    assert heap._trim() is None and heap._option() is None
    heap._trim.cache_clear()
    heap._option.cache_clear()

"""Memory that the C library keeps for later: given back to the system.

Tensors of many sizes that come and go leave holes, and glibc holds on to them: drawing a full-size
model's gradients piece by piece grew by several GB over one pass, of which all but the live values
went back with ``malloc_trim``, at no cost in time.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

M_MMAP_THRESHOLD = -3  # mallopt(3): from how many bytes on a block is mapped for itself
SMALL_BYTES = 1 << 17  # glibc's threshold at the start
LARGE_BYTES = 1 << 25  # the largest that it goes up to by itself

_lock = threading.Lock()
_asking = 0  # blocks of ``returning`` that last, in all threads: the setting is the process's


def release() -> None:
    """Give back what is free; does nothing where the C library has no such call."""
    trim = _trim()
    if trim is not None:
        trim(0)


def available_bytes(place: Path = Path("/proc/meminfo")) -> int | None:
    """Memory that processes can still have, by Linux; None elsewhere."""
    try:
        lines = place.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


@contextmanager
def returning() -> Iterator[None]:
    """While it lasts, blocks of more than ``SMALL_BYTES`` go back to the system when they are free.

    glibc stops doing so once a large block was freed. A runtime that opens a graph copies weights
    from form to form: onnxruntime's peak over the full-size denoiser in 4 bits was 1,564 MB, and is
    1,009 MB, in the same time. Afterwards glibc keeps blocks of up to ``LARGE_BYTES``, as it would
    have by then: a run that allocates and frees its activations is faster for it. Two threads may
    open graphs: the first one in sets it, the last one out sets it back.
    """
    _count(1)
    try:
        yield
    finally:
        _count(-1)
        release()


def _count(change: int) -> None:
    """One more or one fewer block of ``returning``."""
    global _asking
    option = _option()
    with _lock:
        begins, _asking = _asking == 0, _asking + change
        if option is not None and (begins or _asking == 0):
            option(M_MMAP_THRESHOLD, SMALL_BYTES if begins else LARGE_BYTES)


@functools.cache
def _option() -> Callable[[int, int], int] | None:
    try:
        found: Callable[[int, int], int] = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):  # no glibc
        return None
    return found


@functools.cache
def _trim() -> Callable[[int], int] | None:
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, TypeError, AttributeError):  # no glibc
        return None
    return found

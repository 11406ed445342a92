"""Memory that the C library keeps for later, given back to the system.

Tensors of many sizes that come and go leave holes, and glibc holds on to them: drawing a full-size
model's gradients piece by piece grew by several GB over one pass, of which all but the live values
went back with ``malloc_trim``, at no cost in time.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable


def release() -> None:
    """Give back what is free; does nothing where the C library has no such call."""
    trim = _trim()
    if trim is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, TypeError, AttributeError):  # no glibc
        return None
    return found

"""What graphs of several sizes write once: values that one before has written already."""

from __future__ import annotations

import hashlib
from typing import Generic, TypeVar

import numpy as np

P = TypeVar("P")


class Shared(Generic[P]):
    """Where values lie that the graphs of earlier sizes have written, by what they are.

    Within a size nothing is shared, so that the first has the bytes that it would have alone.

    Args:
        sizes: how many there will be; of one nothing is remembered.
    """

    def __init__(self, sizes: int) -> None:
        self._left = sizes
        self._earlier: dict[tuple[str, bytes], P] = {}
        self._now: dict[tuple[str, bytes], P] = {}

    def place(self, kind: str, values: bytes | np.ndarray) -> P | None:
        """Where an earlier size has written these values as this kind of element, or None."""
        return self._earlier.get(_key(kind, values)) if self._earlier else None

    def note(self, kind: str, values: bytes | np.ndarray, place: P) -> P:
        """Say where they lie; returns that."""
        if self._left > 1:
            self._now.setdefault(_key(kind, values), place)
        return place

    def next_size(self) -> None:
        """What was written so far may be shared from now on."""
        self._left -= 1
        self._earlier = {**self._now, **self._earlier}
        self._now = {}


def _key(kind: str, values: bytes | np.ndarray) -> tuple[str, bytes]:
    content = values if isinstance(values, bytes) else np.ascontiguousarray(values).data
    return kind, hashlib.sha256(content).digest()

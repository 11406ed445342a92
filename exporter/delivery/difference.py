"""Bytes of a new package against those of an old one: the shortest of a few ways to store them.

Weights that a fine-tune moved a little differ from the old ones by small numbers; a graph or a
manifest is the old one with other words in it. Which way is shortest is tried on slices, then done
with all of the bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from exporter.delivery.coding import (
    LEVEL,
    PAYS,
    THOROUGH,
    Undecodable,
    added,
    compress,
    decompress,
    subtracted,
)
from exporter.delivery.index import PieceCoding, Stride

SLICES, SLICE_BYTES = 8, 1 << 14  # of a piece, to try ways with


@dataclass(frozen=True)
class Way:
    """A way to store bytes, against a base or without one."""

    coding: PieceCoding
    stride: Stride = 1

    @property
    def ending(self) -> str:
        """Of a file that holds bytes stored so."""
        return f".{self.coding}{self.stride}"


WAYS = (
    Way("zstd"),
    Way("patch"),
    Way("difference", 1),
    Way("difference", 2),  # of weights in 16 bits
    Way("difference", 4),  # and in 32
    Way("raw"),
)


def stored_as(way: Way, data: bytes, base: bytes, level: int = THOROUGH) -> bytes:
    """Bytes as they are stored."""
    if way.coding == "raw":
        return data
    if way.coding == "difference":
        return compress(subtracted(data, base, way.stride), level=level)
    if way.coding == "patch":
        return compress(data, base, level)
    return compress(data)


def restored(way: Way, stored: bytes, size_bytes: int, base: bytes) -> bytes:
    """Bytes as they were; raises Undecodable."""
    if way.coding == "raw":
        return stored
    if way.coding == "difference":
        if len(base) != size_bytes:
            raise Undecodable("has a base of other bytes")
        return added(decompress(stored, size_bytes), base, way.stride)
    return decompress(stored, size_bytes, base if way.coding == "patch" else b"")


def best_way(data: bytes, base: bytes) -> tuple[Way, bytes]:
    """The way that makes a piece shortest, as samples of it tell, and the piece as it is stored."""
    sample, of_base = _sample(data), _sample(base)
    against = {"difference": of_base, "patch": base}
    way = min(
        _possible(data, base),
        key=lambda way: len(stored_as(way, sample, against.get(way.coding, b""), LEVEL)),
    )
    stored = stored_as(way, data, base)
    return (way, stored) if len(stored) < PAYS * len(data) else (Way("raw"), data)


def _sample(data: bytes) -> bytes:
    """Slices from all over, at the same places of bytes that are as many."""
    step = -(-len(data) // SLICES)
    slices = (data[at : at + SLICE_BYTES] for at in range(0, len(data), max(step, SLICE_BYTES)))
    return b"".join(slices)


def _possible(data: bytes, base: bytes) -> Iterator[Way]:
    """Ways that can be shorter than the bytes themselves."""
    fits = {"zstd": True, "patch": bool(base), "difference": len(base) == len(data), "raw": False}
    return (way for way in WAYS if fits[way.coding])

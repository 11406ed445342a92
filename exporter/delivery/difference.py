"""Bytes of a new package against those of an old one: the shortest of a few ways to store them.

Weights that a fine-tune moved a little differ from the old ones by small numbers; a graph or a
manifest is the old one with other words in it. Which way is shortest is tried on the first of the
bytes, then done with all of them.
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

SAMPLE_BYTES = 1 << 17


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
    """The way that makes a piece shortest, and the piece as it is stored."""
    sample = data[:SAMPLE_BYTES]
    ways = _possible(data, base)
    way = min(ways, key=lambda way: len(stored_as(way, sample, _base(way, base), LEVEL)))
    stored = stored_as(way, data, base)
    return (way, stored) if len(stored) < PAYS * len(data) else (Way("raw"), data)


def _possible(data: bytes, base: bytes) -> Iterator[Way]:
    """Ways that can be shorter than the bytes themselves."""
    fits = {"zstd": True, "patch": bool(base), "difference": len(base) == len(data), "raw": False}
    return (way for way in WAYS if fits[way.coding])


def _base(way: Way, base: bytes) -> bytes:
    """What a sample is stored against."""
    return base[:SAMPLE_BYTES] if way.coding == "difference" else base

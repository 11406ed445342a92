"""Which bytes of a new file lie in an old package, and where the others were before.

Tensors are compared by their digests, wherever they lie. What is new between two that are old is
likely what lay between those two: that is its base.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from exporter.delivery.bounds import tensor_bounds
from exporter.delivery.chunks import cut_file
from exporter.delivery.index import CHUNK_BYTES
from exporter.package.manifest import FileEntry

FEW_BYTES = 512  # a shorter run of old bytes between new ones costs more as a part of its own


@dataclass(frozen=True)
class OldRange:
    """Bytes of the old package: file by its number, offset and size."""

    number: int
    offset: int
    bytes: int

    @property
    def end(self) -> int:
        return self.offset + self.bytes


@dataclass(frozen=True)
class Run:
    """Bytes of a new file from an offset on, and where they lie in the old package, if they do."""

    offset: int
    bytes: int
    old: OldRange | None

    @property
    def end(self) -> int:
        return self.offset + self.bytes


@dataclass(frozen=True)
class OldChunks:
    """The chunks of an old package.

    Attributes:
        entries: its files, by their numbers.
        places: offsets of the bytes of a digest in each file that has them, in order.
        files: the first file that has the bytes of a digest.
    """

    entries: tuple[FileEntry, ...]
    places: dict[tuple[bytes, int], list[int]]
    files: dict[bytes, int]

    def find(self, data: bytes, near: OldRange) -> OldRange | None:
        """Where bytes lie: in the same file as ``near``, if they do, and as near to its start."""
        digest = hashlib.sha256(data).digest()
        number = near.number if (digest, near.number) in self.places else self.files.get(digest)
        if number is None:
            return None
        offsets = self.places[digest, number]
        i = bisect_left(offsets, near.offset)
        beside = offsets[max(i - 1, 0) : i + 1]
        nearest = min(beside, key=lambda offset: abs(offset - near.offset))
        return OldRange(number, nearest, len(data))

    def akin(self, entry: FileEntry) -> int | None:
        """The file of the same path, or that of the same kind whose size is nearest."""
        alike = [
            (old.path != entry.path, abs(old.bytes - entry.bytes), number)
            for number, old in enumerate(self.entries)
            if old.path == entry.path or _suffix(old) == _suffix(entry)
        ]
        return min(alike)[2] if alike else None


def _suffix(entry: FileEntry) -> str:
    return PurePosixPath(entry.path).suffix


def known_chunks(folder: Path, entries: Sequence[FileEntry]) -> OldChunks:
    """Every chunk of a package whose files were compared with their digests."""
    bounds = tensor_bounds(folder, entries)
    known = OldChunks(tuple(entries), {}, {})
    for number, entry in enumerate(entries):
        for at, data in cut_file(folder, entry, bounds.get(entry.path, ())):
            digest = hashlib.sha256(data).digest()
            known.files.setdefault(digest, number)
            known.places.setdefault((digest, number), []).append(at)
    return known


def runs_of(
    folder: Path, entry: FileEntry, bounds: Sequence[int], known: OldChunks
) -> tuple[Run, ...]:
    """A new file as runs of old bytes and of new ones, in order, as long as they can be."""
    found: list[Run] = []
    near = OldRange(known.akin(entry) or 0, 0, 0)  # where the old bytes are expected to go on
    for at, data in cut_file(folder, entry, bounds):
        old = known.find(data, near)
        found.append(Run(at, len(data), old))
        near = OldRange(old.number if old else near.number, (old or near).offset + len(data), 0)
        _join(found)
    return _without_short(found)


def _join(runs: list[Run]) -> None:
    """Make one of the last two if they go on in the new file and in the old one."""
    if len(runs) < 2:
        return
    last, one = runs[-2:]
    if last.old is None and one.old is None:
        runs[-2:] = [replace(last, bytes=last.bytes + one.bytes)]
    elif (
        last.old and one.old and (last.old.number, last.old.end) == (one.old.number, one.old.offset)
    ):
        longer = replace(last.old, bytes=last.old.bytes + one.old.bytes)
        runs[-2:] = [replace(last, bytes=last.bytes + one.bytes, old=longer)]


def _without_short(runs: Iterable[Run]) -> tuple[Run, ...]:
    """The same, with old bytes that are few beside new ones taken for new."""
    whole = list(runs)
    found: list[Run] = []
    for i, run in enumerate(whole):
        beside = [other.old for other in (*whole[max(i - 1, 0) : i], *whole[i + 1 : i + 2])]
        short = run.bytes < FEW_BYTES and None in beside
        found.append(replace(run, old=None) if short else run)
        _join(found)
    return tuple(found)


def gap_of(entry: FileEntry, runs: Sequence[Run], place: int, known: OldChunks) -> OldRange | None:
    """What lay between the old bytes around the new run at ``place``, or None.

    Where no old bytes stand before it, what the old file of the same path, or of the same kind and
    about the same size, begins with.
    """
    before = runs[place - 1].old if place else None
    behind = runs[place + 1].old if place + 1 < len(runs) else None
    akin = known.akin(entry)
    if before is not None:
        number, start = before.number, before.end
    elif behind is not None:
        number, start = behind.number, max(behind.offset - runs[place].bytes, 0)
    elif akin is not None:
        number, start = akin, 0
    else:
        return None
    end = known.entries[number].bytes
    if behind is not None:
        follows = behind.number == number and behind.offset >= start
        end = behind.offset if follows else min(start + runs[place].bytes, end)
    return OldRange(number, start, end - start) if end > start else None


def base_of(gap: OldRange | None, offset: int, run: Run) -> OldRange | None:
    """What the piece of a new run at an offset is likely like: as long, or a chunk about there."""
    if gap is None:
        return None
    at, size = offset - run.offset, min(CHUNK_BYTES, run.end - offset)
    if gap.bytes == run.bytes:
        return OldRange(gap.number, gap.offset + at, size)
    middle = at * gap.bytes // run.bytes + size // 2
    start = max(min(middle - CHUNK_BYTES // 2, gap.bytes - CHUNK_BYTES), 0)
    return OldRange(gap.number, gap.offset + start, min(CHUNK_BYTES, gap.bytes - start))

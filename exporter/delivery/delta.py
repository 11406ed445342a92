"""What makes a new package from an old one: the tensors that changed, and where the others lie."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from exporter import __version__
from exporter.delivery.bounds import tensor_bounds
from exporter.delivery.coding import Undecodable, version
from exporter.delivery.container import DELTA, write_container
from exporter.delivery.difference import WAYS, Way, best_way, restored
from exporter.delivery.index import (
    CHUNK_BYTES,
    VERSION,
    ChangedFile,
    DeltaIndex,
    PartEntry,
    Piece,
    refuse_own,
    to_json,
)
from exporter.delivery.match import OldChunks, OldRange, Run, base_of, gap_of, known_chunks, runs_of
from exporter.delivery.place import entries_of, refuse_inside
from exporter.delivery.write import ELSEWHERE, put, resumed_beside
from exporter.errors import CheckFailed, InputError
from exporter.files.lock import alone
from exporter.files.read import begins_with, read_bytes, reason_of
from exporter.package.check import changed, check_file
from exporter.package.manifest import FileEntry
from exporter.package.paths import confined
from exporter.package.read import OWN_FILES, SIGNATURE
from exporter.progress import Progress
from exporter.runtime.package import Package


def write_delta(
    old: Package, new: Package, out: Path, progress: Progress | None = None
) -> DeltaIndex:
    """Write what makes ``new`` from ``old`` to the file ``out``; the same call goes on with it.

    Raises InputError for a place that cannot be written or holds anything but a delta, CheckFailed
    for a damaged package.
    """
    say = progress or Progress()
    before, after = (entries_of(package.folder, package.manifest) for package in (old, new))
    before = tuple(
        entry for entry in before if entry.path != SIGNATURE
    )  # a device may have another
    if not out.parent.is_dir():
        raise InputError(f"{out}: folder '{out.parent}' does not exist; make it or {ELSEWHERE}")
    for package in (old, new):
        refuse_inside(package.folder, out)
    with alone(out, say):
        _refuse_other(out)
        say.expect(len(before) + 2 * len(after) + 1)
        for package, entries in ((old, before), (new, after)):
            for entry in entries:
                check_file(package.folder, entry)
                say(f"{package.folder / entry.path} compared with its digest")
        facts = [VERSION, __version__, version(), *map(asdict, (*before, *after))]
        basis = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        with resumed_beside(out, basis) as work:
            making = Making(old.folder, new.folder, known_chunks(old.folder, before), work)
            delta = making.delta(before, after, say)
            try:
                refuse_own(delta)
            except ValueError as error:
                raise InputError(f"{new.folder}: no delta can be made: {error}") from None
            write_container(out, DELTA, to_json(delta), making.stored)
            say(f"{len(delta.pieces)} pieces for {len(delta.files)} files")
    return delta


def _refuse_other(out: Path) -> None:
    if os.path.lexists(out) and not (out.is_file() and begins_with(out, DELTA)):
        raise InputError(f"{out}: is there, and no delta; {ELSEWHERE}, or delete it")


@dataclass
class Making:
    """A delta as it comes to be.

    Attributes:
        old, new: folders of the packages.
        known: what the old one holds.
        work: where pieces lie before the delta is one file.
        pieces: so far; ``stored``: their files.
    """

    old: Path
    new: Path
    known: OldChunks
    work: Path
    pieces: list[Piece] = field(default_factory=list)
    stored: list[Path] = field(default_factory=list)

    def delta(
        self, before: Sequence[FileEntry], after: Sequence[FileEntry], say: Progress
    ) -> DeltaIndex:
        """What changed between the files of the two packages."""
        listed = {entry.path: entry for entry in before}
        bounds = tensor_bounds(self.new, after)
        files = []
        for entry in after:
            if entry.path in OWN_FILES or listed.get(entry.path) != entry:
                parts = tuple(self._parts(entry, bounds.get(entry.path, ())))
                files.append(ChangedFile(entry.path, entry.bytes, entry.sha256, parts))
            say(f"{entry.path} {'changed' if listed.get(entry.path) != entry else 'as it was'}")
        paths = tuple(entry.path for entry in before)
        return DeltaIndex(
            VERSION, __version__, before[0].sha256, after[0].sha256, paths, tuple(files),
            tuple(self.pieces),
        )  # fmt: skip

    def _parts(self, entry: FileEntry, bounds: Sequence[int]) -> Iterator[PartEntry]:
        runs = runs_of(self.new, entry, bounds, self.known)
        for i, run in enumerate(runs):
            if run.old is not None:
                yield _part(run.old)
                continue
            gap = gap_of(entry, runs, i, self.known)
            for at in range(run.offset, run.end, CHUNK_BYTES):
                piece = Run(at, min(CHUNK_BYTES, run.end - at), base_of(gap, at, run))
                yield PartEntry("new", self._number_of(entry, piece), 0, piece.bytes)

    def _number_of(self, entry: FileEntry, run: Run) -> int:
        """The number of a piece, which is written."""
        data = _read(confined(self.new, entry.path), run.offset, run.bytes)
        old = run.old
        path = self.known.entries[old.number].path if old else ""
        base = _read(confined(self.old, path), old.offset, old.bytes) if old else b""
        key = hashlib.sha256(data + base).hexdigest()
        way, stored = self._earlier(key, data, base) or best_way(data, base)
        self.stored.append(self.work / f"{key}{way.ending}")
        put(self.stored[-1], stored)
        against = _part(old) if old and way.coding in ("patch", "difference") else None
        digest = hashlib.sha256(data).hexdigest()
        self.pieces.append(Piece(digest, len(data), len(stored), way.coding, against, way.stride))
        return len(self.pieces) - 1

    def _earlier(self, key: str, data: bytes, base: bytes) -> tuple[Way, bytes] | None:
        """A piece as a run that was killed has stored it."""
        for way in WAYS:
            file = self.work / f"{key}{way.ending}"
            stored = read_bytes(file) if file.is_file() else b""
            if stored and _restored(way, stored, len(data), base) == data:
                return way, stored
        return None


def _restored(way: Way, stored: bytes, size_bytes: int, base: bytes) -> bytes:
    try:
        return restored(way, stored, size_bytes, base)
    except Undecodable:
        return b""


def _part(old: OldRange) -> PartEntry:
    return PartEntry("old", old.number, old.offset, old.bytes)


def _read(file: Path, offset: int, size_bytes: int) -> bytes:
    """Bytes of a file that was compared with its digest; raises CheckFailed for one that shrank."""
    try:
        with file.open("rb") as stream:
            stream.seek(offset)
            data = stream.read(size_bytes)
    except OSError as error:
        raise CheckFailed(f"{file}: cannot be read: {reason_of(error)}") from None
    if len(data) != size_bytes:
        raise changed(file)
    return data

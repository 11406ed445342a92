"""Makes a new package of an old one and a delta: resumable, whole or absent, in bounded memory.

In the old package's own place the two change places at once, and files that did not change are
not copied: they get a second name until the old package is gone.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from exporter.delivery.coding import Undecodable
from exporter.delivery.container import DELTA, read_container
from exporter.delivery.difference import Way, restored
from exporter.delivery.index import (
    ChangedFile,
    DeltaIndex,
    PartEntry,
    Piece,
    entry_of,
    read_delta,
)
from exporter.delivery.place import entries_of, holds, read_arrived, refuse_inside
from exporter.delivery.write import (
    READ_BYTES,
    clear,
    prune,
    refuse_room,
    resumed,
    synced,
    write_file,
)
from exporter.errors import CheckFailed, InputError
from exporter.files.lock import alone
from exporter.files.read import reason_of
from exporter.package.check import check_file
from exporter.package.manifest import FileEntry, Manifest
from exporter.package.paths import confined
from exporter.package.read import OWN_FILES
from exporter.progress import Progress
from exporter.runtime.package import Package, open_package
from exporter.trust.check import Trust

FETCH = "fetch the delta again"


@dataclass(frozen=True)
class Update:
    """A delta to be applied.

    Attributes:
        delta: what its file says; ``file``: where that lies; ``offsets``: of each piece in it.
        old: folder of the old package.
        target: of the new one.
    """

    delta: DeltaIndex
    file: Path
    offsets: tuple[int, ...]
    old: Path
    target: Path

    @property
    def in_place(self) -> bool:
        """Whether the new package takes the old one's place."""
        return self.target.exists() and self.target.samefile(self.old)


@dataclass(frozen=True)
class Applied:
    """A package that was made. ``was_there``: it was whole already."""

    delta: DeltaIndex
    bytes: int
    was_there: bool


def apply(
    file: Path,
    old: Path,
    target: Path,
    progress: Progress | None = None,
    trust: Trust | None = None,
) -> Applied:
    """Make the new package that a delta is for in the folder ``target``, which may be ``old``.

    The same call goes on with what a killed one has begun. A package at ``target``, as it was
    written, is replaced when the new one is whole.

    Args:
        trust: whose signature the new package has to have; known before its manifest is parsed.

    Raises InputError for a file that is no delta, another base, or a target that holds anything
    else; CheckFailed for a damaged delta or package.
    """
    say = progress or Progress()
    update = _opened(file, old, target)
    delta = update.delta
    with alone(target, say):
        if holds(target, (entry_of(f) for f in delta.files if f.path in OWN_FILES)):
            whole = entries_of(target, read_arrived(target, target, trust))
            clear(target)
            return Applied(delta, sum(entry.bytes for entry in whole), True)
        package = open_package(old)
        if package.sha256 != delta.old_sha256:
            raise InputError(
                f"{old}: is package {package.sha256}, and {file} is for {delta.old_sha256}; name "
                "the package that it was made from"
            )
        if not update.in_place:
            refuse_inside(old, target)
        with resumed(target, f"{delta.old_sha256} {delta.new_sha256}") as folder:
            size = _make(update, package, folder, trust, say)
            synced()
    return Applied(delta, size, False)


def _opened(file: Path, old: Path, target: Path) -> Update:
    container = read_container(file, DELTA)
    delta = read_delta(container.index, file)
    sizes = (piece.stored_bytes for piece in delta.pieces)
    offsets = tuple(accumulate(sizes, initial=container.start))
    if container.size_bytes > offsets[-1]:
        left = container.size_bytes - offsets[-1]
        raise CheckFailed(f"{file}: damaged: {left} bytes behind its last piece; {FETCH}")
    for piece, end in zip(delta.pieces, offsets[1:], strict=True):
        if end > container.size_bytes:
            told = f"cut short before chunk {piece.sha256}"
            raise CheckFailed(f"{file}: damaged: {told}; {FETCH}")
    return Update(delta, file, offsets, old, target)


def _make(
    update: Update, package: Package, folder: Path, trust: Trust | None, say: Progress
) -> int:
    """Write the new package; returns its bytes."""
    files = update.delta.files
    for path in sorted(_used(update.delta)):
        _check_old(package, path)
    own = [file for file in files if file.path in OWN_FILES]
    for file in own:
        _write(update, file, folder)
    listed = _listed(update, read_arrived(folder, update.file, trust))
    changed = {file.path for file in files}
    kept = [entry for path, entry in listed.items() if path not in changed]
    new_bytes = sum(file.bytes for file in files)
    kept_bytes = sum(entry.bytes for entry in kept)
    refuse_room(update.target, new_bytes + (0 if update.in_place else kept_bytes))
    say.expect(len(files) + len(kept))
    prune(folder, changed | listed.keys())
    for file in files:
        _write(update, file, folder)
        say(f"{file.path} made")
    for entry in kept:
        _keep(update, entry, folder)
        say(f"{entry.path} kept")
    return new_bytes + kept_bytes


def _listed(update: Update, manifest: Manifest) -> dict[str, FileEntry]:
    """Files of the new manifest by path; raises CheckFailed where the delta differs from it."""
    listed = {entry.path: entry for entry in manifest.all_files}
    for file in update.delta.files:
        if file.path not in OWN_FILES and listed.get(file.path) != entry_of(file):
            raise CheckFailed(
                f"{update.file}: damaged: it and the package's manifest differ in '{file.path}'; "
                f"{FETCH}"
            )
    return listed


def _used(delta: DeltaIndex) -> set[str]:
    """Paths in the old package that bytes are taken from."""
    bases = (piece.base for piece in delta.pieces if piece.base is not None)
    parts = (part for file in delta.files for part in file.parts if part.source == "old")
    return {delta.old_files[part.number] for part in (*bases, *parts)}


def _check_old(package: Package, path: str) -> None:
    """Compare a file of the old package with its digest; raises CheckFailed."""
    if path in OWN_FILES:
        return  # the manifest's digest is that of the base
    entry = next((e for e in package.manifest.all_files if e.path == path), None)
    if entry is None:
        raise CheckFailed(f"{package.folder}: has no '{path}', which the delta takes; {FETCH}")
    check_file(package.folder, entry)


def _write(update: Update, file: ChangedFile, folder: Path) -> None:
    write_file(folder, entry_of(file), lambda at: _content(update, file, at), update.file)


def _keep(update: Update, entry: FileEntry, folder: Path) -> None:
    """Take over a file that did not change: by a second name in place, else by its bytes."""
    source, place = confined(update.old, entry.path), folder / entry.path
    if update.in_place:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        try:
            os.link(source.resolve(), place)
        except OSError:  # a file system without such names
            pass
        else:
            check_file(folder, entry)
            return
    whole = PartEntry("old", 0, 0, entry.bytes)
    write_file(folder, entry, lambda at: _old_bytes(source, whole, at), source)


def _content(update: Update, file: ChangedFile, offset: int) -> Iterator[bytes]:
    """The bytes of a changed file from an offset on; parts before it are not read."""
    at = 0
    for part in file.parts:
        skip = max(offset - at, 0)
        if skip < part.bytes:
            if part.source == "new":
                yield _piece(update, part.number, file.path)[skip:]
            else:
                yield from _old_bytes(_old_file(update, part), part, skip)
        at += part.bytes


def _old_file(update: Update, part: PartEntry) -> Path:
    return confined(update.old, update.delta.old_files[part.number])


def _old_bytes(file: Path, part: PartEntry, skip: int) -> Iterator[bytes]:
    """Bytes of an old file, a block at a time; raises CheckFailed where it is too short."""
    left = part.bytes - skip
    try:
        with file.open("rb") as stream:
            stream.seek(part.offset + skip)
            while left:
                data = stream.read(min(left, READ_BYTES))
                if not data:
                    raise CheckFailed(f"{file}: damaged: ends early; copy the package again")
                left -= len(data)
                yield data
    except OSError as error:
        raise CheckFailed(f"{file}: cannot be read: {reason_of(error)}") from None


def _piece(update: Update, number: int, path: str) -> bytes:
    """The bytes of a piece, as its digest says; raises CheckFailed naming it."""
    piece = update.delta.pieces[number]
    where = f"{update.file}: chunk {piece.sha256} of {path}"
    try:
        with update.file.open("rb") as stream:
            stream.seek(update.offsets[number])
            stored = stream.read(piece.stored_bytes)
        data = restored(Way(piece.coding, piece.stride), stored, piece.bytes, _base(update, piece))
    except OSError as error:
        raise CheckFailed(f"{where}: cannot be read: {reason_of(error)}") from None
    except Undecodable as error:
        raise CheckFailed(f"{where}: damaged: {error}; {FETCH}") from None
    if hashlib.sha256(data).hexdigest() != piece.sha256:
        raise CheckFailed(f"{where}: damaged: SHA-256 differs; {FETCH}")
    return data


def _base(update: Update, piece: Piece) -> bytes:
    if piece.base is None:
        return b""
    return b"".join(_old_bytes(_old_file(update, piece.base), piece.base, 0))

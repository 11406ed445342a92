"""Writing what may be interrupted at any moment: a kill costs nothing but the write it met.

What is written lies beside its final name, with a note of what it is to become; the same command
goes on with it. Bytes that are there are compared with their digest before they are believed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from exporter.errors import CheckFailed, InputError
from exporter.files.read import read_bytes, read_json
from exporter.files.staging import (
    beside,
    part_of,
    partial_of,
    refuse_place,
    remove,
    settle,
    staging,
    unwritable,
    write_whole,
)
from exporter.files.stop import tell_wish
from exporter.package.manifest import FileEntry

ELSEWHERE = "choose another place with -o"
READ_BYTES = 1 << 20
From = Callable[[int], Iterator[bytes]]  # the bytes of a file from an offset on


@contextmanager
def resumed(target: Path, basis: str) -> Iterator[Path]:
    """``staging`` of a folder; what a killed run of the same ``basis`` has written is in it."""
    journal = _journal_of(target)
    if _basis_of(journal) != basis:
        journal.unlink(missing_ok=True)
    with staging(target, ELSEWHERE, journal) as folder:
        write_whole(journal, json.dumps({"basis": basis}))
        yield folder


@contextmanager
def resumed_beside(file: Path, basis: str) -> Iterator[Path]:
    """A folder for the making of a file, removed when that is whole; see ``resumed``."""
    folder, journal = partial_of(file), _journal_of(file)
    try:
        if not file.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        if _basis_of(journal) != basis:
            remove(folder)
        folder.mkdir(exist_ok=True)
        write_whole(journal, json.dumps({"basis": basis}))
        yield folder
    except OSError as error:
        clear(file)
        raise unwritable(file, error, ELSEWHERE) from None
    except Exception:
        tell_wish()
        clear(file)
        raise
    clear(file)


def refuse_room(target: Path, needed_bytes: int) -> None:
    """Raise InputError if so many bytes cannot be written for a target.

    What a killed run has written is gone on with, or makes room.
    """
    found = (f.lstat() for f in partial_of(target).rglob("*") if not f.is_dir())
    begun = sum(state.st_size for state in found if state.st_nlink == 1)
    refuse_place(target, needed_bytes - begun, ELSEWHERE)


def clear(target: Path) -> None:
    """Remove what a kill has left of a target that turned out to be whole."""
    settle(target)
    remove(partial_of(target))
    _journal_of(target).unlink(missing_ok=True)


def _journal_of(target: Path) -> Path:
    return beside(target, ".journal.json")


def _basis_of(journal: Path) -> str:
    try:
        return str(read_json(journal).get("basis"))
    except InputError:
        return ""


def write_file(folder: Path, entry: FileEntry, content: From, where: object) -> None:
    """Write a file of a package, or go on with it; on the disk when this returns.

    Args:
        content: gives the bytes from an offset on, which may be more than are wanted.
        where: what is damaged if the bytes are not those of the entry.

    Raises CheckFailed if they are not.
    """
    file = folder / entry.path
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.is_symlink() or (file.exists() and file.stat().st_nlink > 1):
        file.unlink()  # another name's bytes are never written
    for keep in (True, False):  # a power cut may have left other bytes than were written
        if _written(file, entry, content, keep):
            return
    raise CheckFailed(f"{where}: damaged: '{entry.path}' does not get its SHA-256; fetch it again")


def _written(file: Path, entry: FileEntry, content: From, keep: bool) -> bool:
    """Whether the file has its digest now, what is there being kept or not."""
    digest = hashlib.sha256()
    with file.open("r+b" if keep and file.exists() else "w+b") as stream:
        while piece := stream.read(READ_BYTES):
            digest.update(piece)
        at = stream.tell()
        if at > entry.bytes:
            return False
        for piece in content(at) if at < entry.bytes else ():
            piece = piece[: entry.bytes - at]
            stream.write(piece)
            digest.update(piece)
            at += len(piece)
        stream.flush()
        os.fsync(stream.fileno())
    return at == entry.bytes and digest.hexdigest() == entry.sha256


def prune(folder: Path, paths: Collection[str]) -> None:
    """Remove every link in a folder, every file not among ``paths``, and folders without one."""
    kept = {parent for path in paths for parent in Path(path).parents}
    for place in sorted(folder.rglob("*"), reverse=True):
        path = place.relative_to(folder)
        if place.is_symlink() or (path.as_posix() not in paths and path not in kept):
            remove(place)


def put(file: Path, content: bytes) -> None:
    """Write a small file whole, unless it is there; on the disk after ``synced``."""
    if file.is_file() and read_bytes(file) == content:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(file)
    with part.open("wb") as stream:
        stream.write(content)
    part.replace(file)


def synced() -> None:
    """See that what was written is on the disk, where the system can be asked for it."""
    if hasattr(os, "sync"):
        os.sync()

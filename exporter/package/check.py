"""Files of a package against what the manifest says of them, and against being changed meanwhile.

A file that is checked and then opened by its path may be another one by then. So its identity is
taken where its bytes are read, and compared with that behind the path after it was opened.
"""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from exporter.errors import CheckFailed
from exporter.files.read import open_regular
from exporter.package.manifest import FileEntry
from exporter.package.paths import confined
from exporter.package.remembered import Remembered, State


@dataclass(frozen=True)
class Identity:
    """Which file a path stands for, and in which state it is."""

    device: int
    inode: int
    size: int
    changed_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def check_size(folder: Path, entry: FileEntry) -> None:
    """Compare a file's size with what the manifest says; raises CheckFailed naming it."""
    file = confined(folder, entry.path)
    try:
        size = file.stat().st_size
    except OSError as error:
        raise _unreadable(file, error) from None
    _compare_size(file, entry, size)


def check_file(folder: Path, entry: FileEntry, known: Remembered | None = None) -> Identity:
    """Compare a file with its size and digest; raises CheckFailed naming it.

    Args:
        known: what was checked before; a file that is in it as it is now is not read.

    Returns the identity of the file that was read.
    """
    file = confined(folder, entry.path)
    try:
        with open_regular(file) as stream:
            identity, handle = _opened(file, stream, entry), stream.fileno()
            if known is not None and known.knows(entry.path, handle):
                return identity
            before, began_ns = State.of(handle), time.time_ns()
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            _compare_digest(file, entry, digest)
            if known is not None:
                known.note(entry.path, before, handle, began_ns)
    except OSError as error:
        raise _unreadable(file, error) from None
    return identity


def read_file(folder: Path, entry: FileEntry) -> bytes:
    """What is in a file, read once and compared with size and digest; raises CheckFailed."""
    file = confined(folder, entry.path)
    try:
        with open_regular(file) as stream:
            _opened(file, stream, entry)
            content = stream.read(entry.bytes + 1)
    except OSError as error:
        raise _unreadable(file, error) from None
    _compare_digest(file, entry, hashlib.sha256(content).hexdigest())
    return content


def identity_of(place: Path) -> Identity:
    """Of a file or a folder; raises CheckFailed where there is none."""
    try:
        return Identity.of(place.stat())
    except OSError as error:
        raise _unreadable(place, error) from None


def changed(place: Path) -> CheckFailed:
    """What is raised of something that another process replaced."""
    return CheckFailed(f"{place}: changed while it was being read; run the command again")


def _opened(file: Path, stream: BinaryIO, entry: FileEntry) -> Identity:
    identity = Identity.of(os.fstat(stream.fileno()))
    _compare_size(file, entry, identity.size)
    return identity


def _compare_size(file: Path, entry: FileEntry, size: int) -> None:
    if size != entry.bytes:
        raise CheckFailed(
            f"{file}: damaged: {size} bytes where the manifest says {entry.bytes}; "
            "copy or build the package again"
        )


def _compare_digest(file: Path, entry: FileEntry, digest: str) -> None:
    if digest != entry.sha256:
        raise CheckFailed(f"{file}: damaged: SHA-256 differs; copy or build the package again")


def _unreadable(file: Path, error: OSError) -> CheckFailed:
    return CheckFailed(f"{file}: cannot be read: {error.strerror}; copy the package again")

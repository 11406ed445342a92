"""A file of a package against what the manifest says of it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from exporter.errors import CheckFailed
from exporter.package.manifest import FileEntry


def check_size(folder: Path, entry: FileEntry) -> None:
    """Compare a file's size with what the manifest says; raises CheckFailed naming it."""
    file = folder / entry.path
    try:
        size = file.stat().st_size
    except OSError as error:
        raise CheckFailed(f"{file}: cannot be read: {error.strerror}") from None
    if size != entry.bytes:
        raise CheckFailed(
            f"{file}: damaged: {size} bytes where the manifest says {entry.bytes}; "
            "copy or build the package again"
        )


def check_file(folder: Path, entry: FileEntry) -> None:
    """Compare a file with its size and digest; raises CheckFailed naming it."""
    check_size(folder, entry)
    file = folder / entry.path
    try:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise CheckFailed(f"{file}: cannot be read: {error.strerror}") from None
    if digest != entry.sha256:
        raise CheckFailed(f"{file}: damaged: SHA-256 differs; copy or build the package again")

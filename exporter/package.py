"""Writes packages: whole or absent. A package is built beside its final name and moved there."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from exporter.checkpoint import file_digest
from exporter.errors import InputError
from exporter.runtime.manifest import FileEntry

LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*")


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """A folder that becomes ``target`` when the block ends well and vanishes when it does not.

    An older package at ``target`` stays in place until the new one is whole. Raises InputError
    when the place cannot be written or the disk is full.
    """
    made = [p for p in (target.parent, *target.parent.parents) if not p.exists()]
    partial = target.parent / f".{target.name}.partial"
    retired = target.parent / f".{target.name}.old"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        shutil.rmtree(retired, ignore_errors=True)
        if target.exists():
            target.rename(retired)
        partial.rename(target)
    except OSError as error:
        raise _unwritable(target, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(retired, ignore_errors=True)
        if not target.exists():
            for folder in made:
                _remove_if_empty(folder)


def _unwritable(target: Path, error: OSError) -> InputError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return InputError(f"{target}: the disk is full; free space or choose another --out")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return InputError(
            f"{target}: cannot be written ({os.strerror(error.errno)}); choose another --out"
        )
    return InputError(f"{target}: {error.strerror or error}")


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return


def describe(folder: Path, files: list[Path]) -> tuple[FileEntry, ...]:
    """Manifest entries of files below ``folder``, sorted by path."""
    entries = [
        FileEntry(f.relative_to(folder).as_posix(), f.stat().st_size, file_digest(f)) for f in files
    ]
    return tuple(sorted(entries, key=lambda e: e.path))


def copy_licences(source: Path, folder: Path) -> list[Path]:
    """Copy the weights' LICENSE and NOTICE files; licences travel with the weights."""
    found = sorted({f for pattern in LICENCES for f in source.glob(pattern) if f.is_file()})
    return [Path(shutil.copyfile(f, folder / f.name)) for f in found]

"""Folders that are whole or absent: written beside their final name and moved there."""

from __future__ import annotations

import errno
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from exporter.errors import InputError

REMEDY = "choose another --out"  # what to do about a place that cannot be written
TRIAL_BYTES = 8 << 20  # what ``writing`` appends at a time; more than an .xml of OpenVINO has


def refuse_place(folder: Path, needed_bytes: int, remedy: str = REMEDY) -> None:
    """Raise InputError if so many bytes cannot be written in ``folder``, which need not exist.

    Asked before anything is computed; what changes later is caught when it is written.
    """
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not existing.is_dir():
        raise InputError(f"{folder}: {existing} is not a folder; {remedy}")
    if not os.access(existing, os.W_OK):
        raise InputError(f"{folder}: {existing} cannot be written; {remedy}")
    free_bytes = shutil.disk_usage(existing).free
    if needed_bytes > free_bytes:
        raise InputError(
            f"{folder}: needs {needed_bytes / 1e6:,.0f} MB and {free_bytes / 1e6:,.0f} MB are "
            f"free; free space or {remedy}"
        )


def partial_of(target: Path) -> Path:
    """Where a folder is written before it is whole."""
    return target.parent / f".{target.name}.partial"


@contextmanager
def staging(target: Path, remedy: str = REMEDY, journal: Path | None = None) -> Iterator[Path]:
    """A folder that becomes ``target`` when the block ends well and vanishes when it does not.

    An older package at ``target`` stays in place until the new one is whole. Raises InputError
    when the place cannot be written or the disk is full.

    Args:
        journal: a file where the block notes what is whole so far. While it is there, the folder
            outlives an interruption (Ctrl-C, SIGTERM, a kill), and the next block gets it as it is.
    """
    made = [p for p in (target.parent, *target.parent.parents) if not p.exists()]
    partial = partial_of(target)
    retired = target.parent / f".{target.name}.old"
    interrupted = False
    try:
        if journal is None or not journal.exists():
            shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True, exist_ok=True)
        yield partial
        shutil.rmtree(retired, ignore_errors=True)
        if target.exists():
            target.rename(retired)
        partial.rename(target)
    except OSError as error:
        raise _unwritable(target, error, remedy) from error
    except (KeyboardInterrupt, SystemExit):
        interrupted = journal is not None and journal.exists()
        raise
    finally:
        shutil.rmtree(retired, ignore_errors=True)
        if not interrupted:
            shutil.rmtree(partial, ignore_errors=True)
            if journal is not None:
                journal.unlink(missing_ok=True)
            if not target.exists():
                for folder in made:
                    _remove_if_empty(folder)


@contextmanager
def writing(file: Path, size_bytes: int = 0) -> Iterator[None]:
    """Find out why a library could not write ``file``: of a full disk it says RuntimeError alone.

    Raises the OSError that appending meets, if one does, and else what the library raised.

    Args:
        size_bytes: how much has to be appended at least: what the library may have removed again.
    """
    try:
        yield
    except RuntimeError:
        with file.open("ab") as stream:
            for _ in range(1 + math.ceil(size_bytes / TRIAL_BYTES)):
                stream.write(bytes(TRIAL_BYTES))
        raise


def _unwritable(target: Path, error: OSError, remedy: str) -> InputError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return InputError(f"{target}: the disk is full; free space or {remedy}")
    if error.errno == errno.EFBIG:
        return InputError(f"{target}: a file is larger than the place allows; {remedy}")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return InputError(f"{target}: cannot be written ({os.strerror(error.errno)}); {remedy}")
    return InputError(f"{target}: {error.strerror or error}")


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return

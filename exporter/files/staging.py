"""Folders that are whole or absent: written beside their final name and moved there."""

from __future__ import annotations

import ctypes
import errno
import functools
import hashlib
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from exporter.errors import InputError, tell_memory
from exporter.files.stop import tell_wish

REMEDY = "choose another place"  # what to do about a place that cannot be written
SHORTER = "choose a shorter name"
LONGEST_NAME_BYTES = 128  # of a hidden name; a few file systems allow 143, most 255
TRIAL_BYTES = 8 << 20  # what ``writing`` appends at a time; more than an .xml of OpenVINO has
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # renameat2(2); 2 is also RENAME_SWAP of macOS's renamex_np(2)
NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)


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


def beside(target: Path, ending: str) -> Path:
    """A hidden name next to a file or folder, for what belongs to it for a while.

    A name may be as long as the file system allows: of a long one, a digest stands in its place.
    """
    name = f".{target.name}{ending}"
    if len(os.fsencode(name)) > LONGEST_NAME_BYTES:
        name = f".{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:32]}{ending}"
    return target.parent / name


def partial_of(target: Path) -> Path:
    """Where a folder or a file is written before it is whole."""
    return beside(target, ".partial")


def retired_of(target: Path) -> Path:
    """Where an older folder lies for a moment, where the system cannot exchange the two."""
    return beside(target, ".old")


@contextmanager
def staging(target: Path, remedy: str = REMEDY, journal: Path | None = None) -> Iterator[Path]:
    """A folder that becomes ``target`` when the block ends well and vanishes when it does not.

    An older package at ``target`` stays in place until the new one is whole. Raises InputError
    when the place cannot be written or the disk is full.

    Args:
        journal: a file where the block notes what is whole so far. While it is there, the folder
            outlives an interruption (Ctrl-C, SIGTERM, a kill), and the next block gets it as it is.
    """
    made = absent(target.parent)
    partial = partial_of(target)
    is_put = keeps = False
    try:
        try:
            settle(target)
            if journal is None or not journal.exists():
                remove(partial)
            partial.mkdir(parents=True, exist_ok=True)
            yield partial
            _put(partial, target)
            is_put = True
        except Exception:
            tell_wish()
            raise
    except OSError as error:
        raise unwritable(target, error, remedy) from error
    except (KeyboardInterrupt, SystemExit):
        keeps = not is_put and journal is not None and journal.exists()
        raise
    finally:
        with suppress(OSError):  # what cannot be removed now is removed by the next block
            settle(target)
            if not keeps:
                if journal is not None:
                    journal.unlink(missing_ok=True)
                remove(partial)
        if not keeps and not target.exists():
            for folder in made:
                remove_if_empty(folder)


@contextmanager
def scratch(target: Path, remedy: str = REMEDY) -> Iterator[Path]:
    """An empty folder beside ``target`` while the block lasts, for what is put elsewhere from it.

    What a kill has left there is removed first. Raises InputError as ``staging`` does.
    """
    partial = partial_of(target)
    try:
        try:
            remove(partial)
            partial.mkdir(parents=True)
            yield partial
        except Exception:
            tell_wish()
            raise
    except OSError as error:
        raise unwritable(target, error, remedy) from error
    finally:
        with suppress(OSError):
            remove(partial)


def settle(target: Path) -> None:
    """Mend what a kill has left between two moves: the older folder goes back, or goes."""
    retired = retired_of(target)
    if not os.path.lexists(retired):
        return
    if os.path.lexists(target):
        remove(retired)
    else:
        retired.rename(target)


def _put(partial: Path, target: Path) -> None:
    """Move a whole folder to where an older one may lie, which is at ``partial`` then, or gone."""
    if not os.path.lexists(target):
        partial.rename(target)
    elif not exchange(partial, target):
        target.rename(retired_of(target))
        partial.rename(target)
        remove(retired_of(target))


def exchange(one: Path, other: Path) -> bool:
    """Let two names change places at once; False where the system cannot. Raises OSError."""
    rename = _exchanging_rename()
    if rename is None:
        return False
    if rename(os.fsencode(one), os.fsencode(other)) == 0:
        return True
    code = ctypes.get_errno()
    if code in NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(other))


@functools.cache
def _exchanging_rename() -> Callable[[bytes, bytes], int] | None:
    """Linux's renameat2 or macOS's renamex_np, asked to exchange."""
    try:
        library = ctypes.CDLL(None, use_errno=True)
    except (OSError, TypeError):  # Windows
        return None
    if hasattr(library, "renameat2"):
        return lambda one, other: int(
            library.renameat2(AT_FDCWD, one, AT_FDCWD, other, RENAME_EXCHANGE)
        )
    if hasattr(library, "renamex_np"):
        return lambda one, other: int(library.renamex_np(one, other, RENAME_EXCHANGE))
    return None


def remove(place: Path) -> None:
    """Remove a folder with all that is in it, a file or a link, if it is there; raises OSError."""
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def part_of(file: Path) -> Path:
    """Where ``write_whole`` writes a file before it is whole."""
    return beside(file.with_name(file.name.lstrip(".")), ".part")


def write_whole(file: Path, content: str | bytes) -> None:
    """Write a file beside its place and move it there, so that it is never half of it."""
    write_moved(content, part_of(file), file)


def write_moved(content: str | bytes, part: Path, file: Path) -> None:
    """Write a file at ``part``, on the same file system, and move it to its place, whole."""
    try:
        with part.open("wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())  # a full disk may tell only now
        part.replace(file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


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


def absent(folder: Path) -> list[Path]:
    """The folder and those above it that are not there, the deepest first."""
    return [place for place in (folder, *folder.parents) if not place.exists()]


def unwritable(target: Path, error: OSError, remedy: str = REMEDY) -> InputError:
    """What to say of a place that could not be written; raises MemoryError for want of memory."""
    tell_memory(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return InputError(f"{target}: the disk is full; free space or {remedy}")
    if error.errno == errno.EFBIG:
        return InputError(f"{target}: a file is larger than the place allows; {remedy}")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return InputError(f"{target}: cannot be written ({os.strerror(error.errno)}); {remedy}")
    if error.errno == errno.ENAMETOOLONG:
        return InputError(f"{target}: {error.strerror}; {SHORTER}")
    if error.errno == errno.ENOENT and not target.parent.is_dir():
        return InputError(f"{target}: folder '{target.parent}' does not exist; make it or {remedy}")
    return InputError(f"{target}: {error.strerror or error}; {remedy}")


def remove_if_empty(folder: Path) -> None:
    """Remove a folder that holds nothing."""
    try:
        folder.rmdir()
    except OSError:
        return

"""One process at a time in a place: a file in it that says who, locked for as long as it works.

The lock is the system's, so that it ends with its process however that ends. Where a file system
has no locks, whoever makes a file of the other name is the one; if that process is gone, the next
takes its place.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from exporter.errors import InputError
from exporter.files.read import convert, read_json
from exporter.files.staging import REMEDY, absent, beside, remove_if_empty, unwritable, write_whole

LOCK, OWNER = ".fourstep.lock", ".fourstep.owner"
POLL_S = 0.1
BEYOND = 1 << 20  # the byte that Windows locks: nobody could read who it is in those that are
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)


@dataclass(frozen=True)
class Owner:
    """Who works in a folder. ``since``: local time."""

    pid: int
    host: str
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} has been working here since {self.since}"


@dataclass(frozen=True)
class _Held:
    """A lock that is ours: the open file."""

    place: Path
    file: int

    def release(self) -> None:
        """Remove the file while nobody else can have it; on Windows it must be closed before."""
        if sys.platform != "win32":
            self.place.unlink(missing_ok=True)
        os.close(self.file)
        if sys.platform == "win32":
            with suppress(OSError):  # the next one has it open
                self.place.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, say: Callable[[str], None], remedy: str = REMEDY) -> Iterator[None]:
    """While it lasts, no other process is in a block for this folder, which is made if need be.

    Args:
        say: gets a line that names who works there, if this process has to wait.

    Raises InputError where the folder cannot be written, or where nobody can know whether the one
    who works there still does.
    """
    with _turn(folder, folder, folder / LOCK, folder / OWNER, say, remedy):
        yield


@contextmanager
def alone(target: Path, say: Callable[[str], None], remedy: str = REMEDY) -> Iterator[None]:
    """While it lasts, no other process is in a block for this file or folder; see ``locked``.

    Others may write other things beside it.
    """
    names = beside(target, LOCK), beside(target, OWNER)
    with _turn(target, target.parent, *names, say, remedy):
        yield


def write_alone(file: Path, content: str | bytes) -> None:
    """Write a file whole, one process at a time, into a folder that is there.

    Raises InputError that names the file and what to do.
    """
    try:
        if not file.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        with alone(file, lambda _: None):
            write_whole(file, content)
    except OSError as error:
        raise unwritable(file, error) from None


@contextmanager
def _turn(
    target: Path, folder: Path, lock: Path, owner: Path, say: Callable[[str], None], remedy: str
) -> Iterator[None]:
    """Hold a lock in ``folder``, which is made if need be, for ``target``."""
    made = absent(folder)
    try:
        held = _wait(target, lock, owner, say, remedy)
    except OSError as error:
        raise unwritable(target, error, remedy) from error
    try:
        yield
    finally:
        with suppress(OSError):  # the folder was taken away: so is the lock
            held.release()
        for parent in made:
            remove_if_empty(parent)


def _wait(target: Path, lock: Path, sign: Path, say: Callable[[str], None], remedy: str) -> _Held:
    told = False
    while True:
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            held = _attempt(lock)
            owner = None if held else _read_owner(lock)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            lock.unlink(missing_ok=True)
            held, owner = _attempt_by_name(sign)
            if owner is not None and owner.host != socket.gethostname():
                raise InputError(
                    f"{target}: {owner}; wait for it, {remedy}, or if it no longer runs, delete "
                    f"{sign}"
                ) from None
        if held is not None:
            return held
        if owner is not None and not told:
            say(f"{target}: {owner}; waiting for it")
            told = True
        time.sleep(POLL_S)


def _attempt(place: Path) -> _Held | None:
    """The lock, or None while another process has it; raises OSError where there are no locks."""
    file = os.open(place, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        # Whoever had it before removes the file: a lock on a file without a name locks nobody out.
        ours = _try_lock(file) and _is_at(file, place)
    except BaseException:
        os.close(file)
        raise
    if ours:
        return _signed(place, file)
    os.close(file)
    return None


def _attempt_by_name(place: Path) -> tuple[_Held | None, Owner | None]:
    """The same without locks: making the file is taking it. The second: who has it."""
    owner = _read_owner(place)
    if owner is not None and owner.host == socket.gethostname() and not _runs(owner.pid):
        place.unlink(missing_ok=True)
    try:
        return _signed(place, os.open(place, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)), None
    except FileExistsError:
        return None, owner


def _signed(place: Path, file: int) -> _Held:
    """The lock, with its owner in it; on a full disk, say, nothing stays."""
    held = _Held(place, file)
    owner = Owner(os.getpid(), socket.gethostname(), time.strftime("%Y-%m-%d %H:%M:%S"))
    try:
        os.ftruncate(file, 0)
        os.write(file, json.dumps(asdict(owner)).encode())
    except BaseException:
        held.release()
        raise
    return held


def _read_owner(place: Path) -> Owner | None:
    """Who has the lock; None where it does not say, as just before it is signed."""
    try:
        return convert(read_json(place), Owner, place)
    except InputError:
        return None


def _is_at(file: int, place: Path) -> bool:
    """Whether a file still has this name."""
    try:
        return os.path.samestat(os.fstat(file), place.stat())
    except FileNotFoundError:
        return False


def _runs(pid: int) -> bool:
    """Whether a process of this machine is there; True where that cannot be asked."""
    if sys.platform == "win32":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return True


if sys.platform == "win32":
    import msvcrt

    def _try_lock(file: int) -> bool:
        os.lseek(file, BEYOND, os.SEEK_SET)
        try:
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        finally:
            os.lseek(file, 0, os.SEEK_SET)
        return True
else:
    import fcntl

    def _try_lock(file: int) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

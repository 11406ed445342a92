"""Which files of a package had the digests of its manifest, and in which state they were then.

Digests of a full-size package are 2 to 3 GB to read. So a file whose digest was right is noted with
its state, in a folder that the user names: what cannot be changed without a trace. Anything odd
means that the digest is taken again: another state, a record that others can write, a file that was
changed shortly before it was read (its clock may have stood still in between), a file system
whose times of change are not to be relied on. Where the kernel holds a file to a digest of its own
(fs-verity), that stands for the state.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from exporter.errors import FourstepError
from exporter.files.read import convert, open_regular, parse_json
from exporter.files.staging import write_moved

PLACE = "FOURSTEP_CACHE"  # an environment variable: the folder; without it nothing is noted
SETTLED_NS = 3 * 10**9  # since the last change: a time of change is as coarse as 2 seconds
KEPT = 256  # records; of packages that are gone, too
MOST_RECORD_BYTES = 1 << 20
MEASURE_VERITY = 0xC0046686  # FS_IOC_MEASURE_VERITY of linux/fsverity.h
MOUNTS = Path("/proc/self/mountinfo")  # of the kernel
# File systems of this machine, of which the kernel itself notes every change of a file.
LOCAL = frozenset(
    ("ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "bcachefs", "tmpfs", "overlay")
)


@dataclass(frozen=True)
class State:
    """A file as it is, by what its file system says.

    Attributes:
        modified_ns: may be set by whoever may write the file.
        changed_ns: of its bytes, name or rights; nobody can set it.
        verity: the kernel's digest, if it holds the file to one.
    """

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int
    verity: str = ""

    @classmethod
    def of(cls, handle: int) -> State:
        """Of an open file."""
        s = os.fstat(handle)
        return cls(s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns, verity_of(handle))

    def stands_for(self, other: State) -> bool:
        """Whether the bytes of a file in one state are those of a file in the other."""
        if self.verity:
            return (self.verity, self.size) == (other.verity, other.size)
        return self == other

    def is_settled(self, now_ns: int) -> bool:
        """Whether a change after ``now_ns`` would show."""
        last = max(self.modified_ns, self.changed_ns)
        return bool(self.verity) or last < now_ns - SETTLED_NS


class _Record(msgspec.Struct, frozen=True):
    """What lies on the disk: the manifest's digest, and the state of files by their path."""

    manifest: str
    files: dict[str, State]


class Remembered:
    """What was checked of one package, kept in a file. Threads may share one.

    Whatever cannot be read or written is as if nothing were known.
    """

    def __init__(self, file: Path, manifest_sha256: str) -> None:
        self._file, self._manifest = file, manifest_sha256
        self._lock = threading.Lock()
        self._files = self._read()

    def knows(self, path: str, handle: int) -> bool:
        """Whether an open file had its digest when it was in the state in which it is now."""
        found = self._files.get(path)
        return found is not None and found.stands_for(State.of(handle))

    def note(self, path: str, before: State, handle: int, began_ns: int) -> None:
        """A file had its digest.

        Args:
            before: the state in which it was when it began to be read.
            began_ns: when that was, since the epoch.
        """
        if before.is_settled(began_ns) and State.of(handle) == before:
            with self._lock:
                self._files[path] = before

    def save(self) -> None:
        """Write what was noted, with what another process wrote meanwhile."""
        with self._lock:
            known = self._read()
            if all(known.get(path) == state for path, state in self._files.items()):
                return
            self._files = known | self._files
            text = json.dumps(msgspec.to_builtins(_Record(self._manifest, self._files)))
            with suppress(OSError):
                self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._write(text)
                _forget_oldest(self._file.parent)

    def _write(self, text: str) -> None:
        handle, part = tempfile.mkstemp(dir=self._file.parent, prefix=".", suffix=".partial")
        os.close(handle)
        write_moved(text, Path(part), self._file)

    def _read(self) -> dict[str, State]:
        """What is on the disk; nothing of what is not whole, of another package, or of others."""
        try:
            with open_regular(self._file) as stream:
                found = os.fstat(stream.fileno()), self._file.parent.stat()
                content = stream.read(MOST_RECORD_BYTES + 1) if all(map(_is_ours, found)) else b""
        except OSError:
            return {}
        with suppress(FourstepError, UnicodeDecodeError):
            record = convert(parse_json(content.decode(), self._file), _Record, self._file)
            return dict(record.files) if record.manifest == self._manifest else {}
        return {}


def remembered(folder: Path, manifest_sha256: str) -> Remembered | None:
    """What is known of the package in a folder, or None where nothing can be remembered."""
    home = _home()
    if home is None or not is_local(folder):
        return None
    status = folder.stat()
    key = f"{manifest_sha256} {status.st_dev} {status.st_ino}"
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    return Remembered(home / "checked" / f"{name}.json", manifest_sha256)


def verity_of(handle: int) -> str:
    """The digest to which the kernel holds an open file (fs-verity); empty where it does not."""
    if sys.platform != "linux":
        return ""
    import fcntl

    answer = bytearray(struct.pack("=HH", 0, 64) + bytes(64))
    try:
        fcntl.ioctl(handle, MEASURE_VERITY, answer)
    except OSError:
        return ""
    algorithm, size = struct.unpack_from("=HH", answer)
    return f"{algorithm}:{answer[4 : 4 + size].hex()}"


def is_local(folder: Path) -> bool:
    """Whether a folder is on a file system of which every change of a file can be told.

    Known on Linux alone; elsewhere nothing is remembered.
    """
    if sys.platform != "linux":
        return False
    try:
        place = str(folder.resolve())
        with MOUNTS.open(encoding="utf-8", errors="surrogateescape") as stream:
            table = stream.read()
    except (OSError, RuntimeError):
        return False
    nearest, kind = "", ""
    for line in table.splitlines():
        mount, _, source = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), mount.split(" ")[4])
        inside = place == point or place.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(nearest):  # of two on one point, the later hides the other
            nearest, kind = point, source.split(" ")[0]
    return kind in LOCAL


def _home() -> Path | None:
    """The folder for what is remembered, or None: nothing is written that was not asked for."""
    given = os.environ.get(PLACE)
    return Path(given).absolute() if given else None


def _is_ours(status: os.stat_result) -> bool:
    """Whether nobody else but root can have written it."""
    return sys.platform == "linux" and status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _forget_oldest(folder: Path) -> None:
    """Remove the records beyond ``KEPT`` that were written first, and what a kill has left."""
    now = time.time()
    for part in folder.glob(".*.partial"):
        if part.stat().st_mtime < now - 3600:
            part.unlink(missing_ok=True)
    records = sorted(folder.glob("*.json"), key=lambda file: file.stat().st_mtime)
    for file in records[:-KEPT]:
        file.unlink(missing_ok=True)

"""One file that holds an index and the bytes it speaks of: an archive of a package, or a delta.

Eight bytes that say which; the size of the index as eight bytes, the lowest first; the index, JSON
in a frame of zstd; then what is stored, in the order of the index, with nothing between. So whoever
receives it can read it from its start to its end.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from exporter.delivery.coding import Undecodable, compress, decompress_some
from exporter.delivery.index import MOST_INDEX_BYTES
from exporter.errors import CheckFailed, InputError
from exporter.files.read import begins_with, reason_of
from exporter.files.staging import part_of

ARCHIVE, DELTA = b"4STPACK1", b"4STDELT1"
NAMES = {ARCHIVE: "an archive of fourstep pack", DELTA: "a delta of fourstep delta"}
USES = {ARCHIVE: "fourstep unpack", DELTA: "fourstep apply"}
HEAD_BYTES = 16
COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class Container:
    """The head of such a file.

    Attributes:
        file: where it lies.
        index: JSON.
        start: where the first stored byte is.
        size_bytes: of the whole file.
    """

    file: Path
    index: bytes
    start: int
    size_bytes: int


def write_container(file: Path, kind: bytes, index: bytes, stored: Iterable[Path]) -> None:
    """Write a file whole, of an index and what lies in other files; raises OSError."""
    frame = compress(index)
    part = part_of(file)
    try:
        with part.open("wb") as stream:
            stream.write(kind + len(frame).to_bytes(8, "little") + frame)
            for place in stored:
                with place.open("rb") as source:
                    shutil.copyfileobj(source, stream, COPY_BYTES)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def read_container(file: Path, kind: bytes) -> Container:
    """The index of a file of this kind.

    Raises InputError for a file that is none, CheckFailed for a damaged one.
    """
    try:
        if not file.is_file():
            raise InputError(f"{file}: no such file; name {NAMES[kind]}")
        for other in NAMES:
            if other != kind and begins_with(file, other):
                raise InputError(f"{file}: is {NAMES[other]}, which {USES[other]} takes")
        with file.open("rb") as stream:
            head = stream.read(HEAD_BYTES)
            if head[: len(kind)] != kind:
                raise InputError(f"{file}: is not {NAMES[kind]}")
            size = int.from_bytes(head[len(kind) :], "little")
            frame = stream.read(size) if size <= MOST_INDEX_BYTES else b""
            whole = os.fstat(stream.fileno()).st_size
    except OSError as error:
        raise CheckFailed(f"{file}: cannot be read: {reason_of(error)}") from None
    try:
        if len(frame) != size or len(head) != HEAD_BYTES:
            raise Undecodable("is cut short")
        index = decompress_some(frame, MOST_INDEX_BYTES)
    except Undecodable as error:
        raise CheckFailed(f"{file}: damaged: its index {error}; fetch it again") from None
    return Container(file, index, HEAD_BYTES + size, whole)

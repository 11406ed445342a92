"""The cache as builds use it: what is found is checked, what is not as it should be is a miss.

    records/<kind>/<key>.json     what decides it -> what it is, and the digests of its files
    files/<ab>/<sha256>           what is in a file, whatever it is called

Files are written before the record that names them, and each of them whole or not at all: two that
build at once write the same under the same name. No lock is needed, and none is there.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from exporter.cache.records import MOST_RECORD_BYTES, Kind, Record, RecordError, read_record
from exporter.cache.store import CHUNK_BYTES, ObjectStore, StoreError, open_store
from exporter.cache.url import SECRET, CacheUrl, redacted
from exporter.files.read import reason_of
from exporter.files.staging import remove
from exporter.files.stop import tell_wish
from exporter.package.manifest import FileEntry

ROOT = "fourstep-1"  # of everything in the cache; another layout would have another name


class Damaged(Exception):
    """A file of the cache is not what its record says."""


@dataclass
class Counts:
    """What a cache was asked for, by kind."""

    hits: dict[str, int] = field(default_factory=dict)
    misses: dict[str, int] = field(default_factory=dict)
    refused: int = 0
    read_bytes: int = 0
    written_bytes: int = 0


@dataclass
class Cache:
    """Records and files in a store.

    A store that cannot be reached is said once, and not asked again: the work goes on without it.

    Attributes:
        say: gets a line for whatever is refused.
        reads: False: only written to.
    """

    store: ObjectStore
    say: Callable[[str], None]
    secret: bytes = b""
    reads: bool = True
    counts: Counts = field(default_factory=Counts)
    _is_lost: bool = field(default=False, init=False)
    _refused: set[str] = field(default_factory=set, init=False)

    def find(self, kind: Kind, key: str) -> Record | None:
        """The record under a key; None for none, and for one that is no such record."""
        record = self._find(kind, key) if self.reads and not self._is_lost else None
        if record is None:
            self.counts.misses[kind] = self.counts.misses.get(kind, 0) + 1
        return record

    def _find(self, kind: Kind, key: str) -> Record | None:
        name = _record_name(kind, key)
        try:
            stream = self.store.open(name)
            if stream is None:
                return None
            with stream:
                content = stream.read(MOST_RECORD_BYTES + 1)
            if len(content) > MOST_RECORD_BYTES:
                raise RecordError("it is too large")
            return read_record(content, kind, key, self.secret)
        except RecordError as error:
            self.refuse(kind, key, str(error))
        except (StoreError, OSError) as error:
            self._lose(error)
        except Exception as error:  # of a library, while a stream is read
            tell_wish()
            self._lose(error)
        return None

    def refuse(self, kind: Kind, key: str, reason: str) -> None:
        """Say that an entry is passed over, and have the next one written in its place."""
        self.counts.refused += 1
        self._refused.add(key)
        self.say(f"cache: {kind} {key[:12]} is passed over: {redacted(reason)}")

    def take(self, record: Record, folder: Path) -> bool:
        """Copy a record's files into a folder; False, with none of them left, for a damaged one."""
        taken: list[Path] = []
        try:
            for file in record.files:
                place = folder / file.path
                place.parent.mkdir(parents=True, exist_ok=True)
                taken.append(place)
                self._take(file, place)
        except Damaged as error:
            self._refused |= {file.sha256 for file in record.files}
            self.refuse(record.kind, record.key, str(error))
            _remove(taken)
            return False
        except StoreError as error:
            self._lose(error)
            _remove(taken)
            return False
        self.counts.hits[record.kind] = self.counts.hits.get(record.kind, 0) + 1
        return True

    def _take(self, file: FileEntry, place: Path) -> None:
        try:
            stream = self.store.open(_file_name(file.sha256))
        except StoreError as error:  # of one that is no file, too
            raise Damaged(f"{file.path} cannot be read: {error}") from None
        if stream is None:
            raise Damaged(f"{file.path} is missing")
        with stream, place.open("xb") as out:
            digest = hashlib.sha256()
            left = file.bytes
            for chunk in _chunks(stream, file.bytes + 1):
                digest.update(chunk)
                left -= len(chunk)
                out.write(chunk)
        if left or digest.hexdigest() != file.sha256:
            raise Damaged(f"{file.path} is damaged")
        self.counts.read_bytes += file.bytes

    def keep(
        self, kind: Kind, key: str, value: Mapping[str, Any], files: Sequence[FileEntry] = (),
        folder: Path = Path(),
    ) -> None:  # fmt: skip
        """Write files, which lie in a folder, and then the record that names them."""
        if self._is_lost:
            return
        try:
            for file in files:
                name = _file_name(file.sha256)
                if file.sha256 in self._refused or not self.store.has(name):
                    self.store.put(name, folder / file.path)
                    self.counts.written_bytes += file.bytes
            record = Record(kind, key, dict(value), tuple(files))
            self.store.put(_record_name(kind, key), record.to_bytes(self.secret))
        except StoreError as error:
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        self._is_lost = True
        self.say(f"cache: goes on without it: {redacted(reason_of(error))}")


def _chunks(stream: BinaryIO, most_bytes: int) -> Any:
    """What a stream has, and no more than that; raises StoreError."""
    while most_bytes > 0:
        try:
            chunk = stream.read(min(CHUNK_BYTES, most_bytes))
        except Exception as error:  # of any library that fsspec calls
            tell_wish()
            raise StoreError(redacted(reason_of(error))) from None
        if not chunk:
            return
        most_bytes -= len(chunk)
        yield chunk


def _remove(places: Sequence[Path]) -> None:
    for place in places:
        with suppress(OSError):
            remove(place)


def _file_name(sha256: str) -> str:
    return f"{ROOT}/files/{sha256[:2]}/{sha256}"


def _record_name(kind: Kind, key: str) -> str:
    return f"{ROOT}/records/{kind}/{key}.json"


def open_cache(url: CacheUrl, say: Callable[[str], None]) -> Cache:
    """The cache at a place, made if need be; raises InputError where none can be.

    Its secret is taken from the environment, where no other process sees it.
    """
    return Cache(open_store(url), say, os.environ.get(SECRET, "").encode())

"""Where a shared cache lies: a folder, or whatever fsspec reaches by a URL.

A store holds small objects under names with ``/``. Writing one is atomic: whoever reads it finds
nothing, the old object, or the new one.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from exporter.cache.url import CacheUrl, redacted
from exporter.errors import InputError, needs_extra, not_installed
from exporter.files.read import open_regular, reason_of
from exporter.files.stop import tell_wish

CHUNK_BYTES = 1 << 20
LIBRARIES = {
    "s3": "s3fs",
    "s3a": "s3fs",
}  # of fsspec's protocols, those that another library brings


class StoreError(Exception):
    """A store could not be reached, read or written; the text names no credential."""


class ObjectStore(Protocol):
    """Objects by name. Every verb raises StoreError for what is no missing object."""

    def open(self, name: str) -> BinaryIO | None:
        """An object to be read from its start, or None where there is none."""

    def put(self, name: str, source: Path | bytes) -> None:
        """Write an object, whole or not at all."""

    def has(self, name: str) -> bool:
        """Whether there is such an object."""


@dataclass(frozen=True)
class FolderStore:
    """A folder, which several processes and machines may use at once."""

    folder: Path

    def open(self, name: str) -> BinaryIO | None:
        try:
            return open_regular(self.folder / name)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(reason_of(error)) from None

    def put(self, name: str, source: Path | bytes) -> None:
        place = self.folder / name
        part = place.parent / f".{secrets.token_hex(8)}.part"
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                _copy(source, part)
                part.replace(place)
            finally:
                with suppress(FileNotFoundError):
                    part.unlink()
        except OSError as error:
            raise StoreError(reason_of(error)) from None

    def has(self, name: str) -> bool:
        return (self.folder / name).is_file()


def _copy(source: Path | bytes, target: Path) -> None:
    """Write a new file through to the disk; raises OSError, also where the name is taken."""
    with target.open("xb") as out:
        if isinstance(source, bytes):
            out.write(source)
        else:
            with open_regular(source) as stream:
                while chunk := stream.read(CHUNK_BYTES):
                    out.write(chunk)
        out.flush()
        os.fsync(out.fileno())  # a full disk may tell only now


@dataclass(frozen=True, eq=False)
class RemoteStore:
    """A place that fsspec reaches. An object store writes whole objects; the rest is moved."""

    files: Any  # fsspec.AbstractFileSystem
    root: str
    moves: bool

    def open(self, name: str) -> BinaryIO | None:
        with _told():
            try:
                found: BinaryIO = self.files.open(self._at(name), "rb")
            except FileNotFoundError:
                return None
        return found

    def put(self, name: str, source: Path | bytes) -> None:
        place = self._at(name)
        part = f"{place}.{secrets.token_hex(8)}.part" if self.moves else place
        with _told():
            if self.moves:  # of a store of objects this would be a bucket, mistyped maybe
                self.files.makedirs(place.rpartition("/")[0], exist_ok=True)
            if isinstance(source, bytes):
                self.files.pipe_file(part, source)
            else:
                self.files.put_file(str(source), part)
            if self.moves:
                self.files.mv(part, place)

    def has(self, name: str) -> bool:
        with _told():
            return bool(self.files.exists(self._at(name)))

    def _at(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"


@contextmanager
def _told() -> Iterator[None]:
    """What a library raises, as StoreError without credentials."""
    try:
        yield
    except Exception as error:  # of any library that fsspec calls
        tell_wish()
        raise StoreError(redacted(reason_of(error))) from None


def open_store(url: CacheUrl) -> ObjectStore:
    """The store at a URL; raises InputError where nothing can be kept there."""
    if url.folder is not None:
        return _folder_store(url.folder)
    library = LIBRARIES.get(url.protocol)
    if library and not importlib.util.find_spec(library):
        raise needs_extra("s3", library)
    if not importlib.util.find_spec("fsspec"):
        raise not_installed("fsspec", "fsspec")
    import fsspec

    try:
        files, root = fsspec.core.url_to_fs(url.text, **_options(url.protocol))
    except Exception as error:  # of any library that fsspec calls
        tell_wish()
        raise InputError(redacted(reason_of(error)), field="shared_cache", given=url.text) from None
    return RemoteStore(files, str(root), moves=url.protocol not in ("s3", "s3a", "gs", "gcs"))


def _options(protocol: str) -> dict[str, Any]:
    """What reads an object as it is now, and not as a listing had it a while ago."""
    return {"use_listings_cache": False, "skip_instance_cache": True} if protocol else {}


def _folder_store(folder: Path) -> FolderStore:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(
            "is not a folder; choose another", field="shared_cache", given=folder
        ) from None
    except OSError as error:
        said = f"{reason_of(error)}; choose another folder"
        raise InputError(said, field="shared_cache", given=folder) from None
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise InputError("cannot be written; choose another", field="shared_cache", given=folder)
    return FolderStore(folder)

"""What a pack holds, wherever it lies now: a folder of packs, what a device fetched, an archive.

A folder is looked through for the index and for chunks by their names, so that it does not matter
where a store's client has put each pack.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Final, Protocol

from exporter.delivery.coding import Undecodable, decompress
from exporter.delivery.container import ARCHIVE, read_container
from exporter.delivery.index import MOST_INDEX_BYTES, Chunk, Coding, Index, read_index
from exporter.errors import CheckFailed, InputError
from exporter.files.read import read_bytes, reason_of

INDEX = "index.json"
ENDING = ".fourstep"  # of an archive
ENDINGS: Final[Mapping[Coding, str]] = {"zstd": ".zst", "raw": ""}
FETCH = "fetch it again"
MOST_NAMED = 3  # chunks that a message names


class HeldPack(Protocol):
    """A pack that is read from."""

    @property
    def index(self) -> Index: ...

    def lacks(self) -> list[Chunk]:
        """Chunks that are not there, or not in their size."""

    def stored(self, number: int) -> bytes:
        """A chunk as it is stored; raises OSError or KeyError."""


def name_of(chunk: Chunk) -> str:
    """The name of a chunk's file: its digest, and how it is stored."""
    return f"{chunk.sha256}{ENDINGS[chunk.coding]}"


@dataclass(frozen=True)
class Folder:
    """A folder that holds an index and chunks. ``places``: files by their names."""

    index: Index
    places: Mapping[str, Path]

    def lacks(self) -> list[Chunk]:
        """Chunks without a file of their size."""
        return [c for c in self.index.chunks if c.coding != "inline" and not self._has(c)]

    def _has(self, chunk: Chunk) -> bool:
        place = self.places.get(name_of(chunk))
        try:
            return place is not None and place.stat().st_size == chunk.stored_bytes
        except OSError:
            return False

    def stored(self, number: int) -> bytes:
        """What is in a chunk's file, and no more than its size."""
        chunk = self.index.chunks[number]
        with self.places[name_of(chunk)].open("rb") as stream:
            return stream.read(chunk.stored_bytes)


@dataclass(frozen=True)
class Archive:
    """One file. ``offsets``: of each chunk in it, and where the last one ends.

    Attributes:
        size_bytes: of the file.
    """

    index: Index
    file: Path
    offsets: tuple[int, ...]
    size_bytes: int

    def lacks(self) -> list[Chunk]:
        """Chunks that a file which was cut short does not reach."""
        ends = zip(self.index.chunks, self.offsets[1:], strict=True)
        return [chunk for chunk, end in ends if chunk.coding != "inline" and end > self.size_bytes]

    def stored(self, number: int) -> bytes:
        """The bytes at a chunk's place."""
        with self.file.open("rb") as stream:
            stream.seek(self.offsets[number])
            return stream.read(self.index.chunks[number].stored_bytes)


def open_held(place: Path) -> HeldPack:
    """A folder or a file that ``fourstep pack`` wrote, or what came of it on its way.

    Raises InputError for what is none, CheckFailed for one that is damaged or lacks chunks.
    """
    held = _opened(place)
    lacking = held.lacks()
    if lacking:
        named = ", ".join(label(held.index, chunk) for chunk in lacking[:MOST_NAMED])
        more = len(lacking) - MOST_NAMED
        others = f" and {more} more" if more > 0 else ""
        raise CheckFailed(f"{place}: missing or cut short: {named}{others}; fetch the pack again")
    return held


def _opened(place: Path) -> HeldPack:
    if not place.is_dir():
        return _archive(place)
    files = dict[str, Path]()
    indices = []
    for file in _files(place):
        if file.name == INDEX:
            indices.append(file)
        files[file.name] = file
    if not indices:
        archives = [file for name, file in files.items() if name.endswith(ENDING)]
        if len(archives) == 1:
            return _archive(archives[0])
        told = f"{len(archives)} archives" if archives else f"no {INDEX}"
        raise InputError(f"{place}: is not a pack ({told}); name what fourstep pack wrote")
    texts = {read_bytes(file, CheckFailed, MOST_INDEX_BYTES) for file in indices}
    if len(texts) > 1:
        raise InputError(f"{place}: holds {len(texts)} packs: {indices[0]}, {indices[1]}; name one")
    return Folder(read_index(texts.pop(), indices[0]), files)


def _files(folder: Path) -> Iterator[Path]:
    """Files in a folder and those below, in order, links passed over."""
    try:
        for root, folders, names in os.walk(folder):
            folders.sort()
            for name in sorted(names):
                place = Path(root, name)
                if not place.is_symlink() and place.is_file():
                    yield place
    except OSError as error:
        raise CheckFailed(f"{folder}: cannot be read: {reason_of(error)}") from None


def _archive(file: Path) -> Archive:
    container = read_container(file, ARCHIVE)
    index = read_index(container.index, file)
    sizes = (chunk.stored_bytes for chunk in index.chunks)
    offsets = tuple(accumulate(sizes, initial=container.start))
    if container.size_bytes > offsets[-1]:
        left = container.size_bytes - offsets[-1]
        raise CheckFailed(f"{file}: damaged: {left} bytes behind its last chunk; {FETCH}")
    return Archive(index, file, offsets, container.size_bytes)


def chunk_bytes(held: HeldPack, number: int) -> bytes:
    """The bytes of a chunk, as its digest says; raises CheckFailed naming it."""
    chunk = held.index.chunks[number]
    try:
        data = _decoded(held, number, chunk)
    except (OSError, KeyError) as error:
        said = f"cannot be read: {reason_of(error)}"
        raise CheckFailed(f"{label(held.index, chunk)}: {said}; {FETCH}") from None
    except (Undecodable, binascii.Error) as error:
        raise CheckFailed(f"{label(held.index, chunk)}: damaged: {error}; {FETCH}") from None
    if hashlib.sha256(data).hexdigest() != chunk.sha256:
        raise CheckFailed(f"{label(held.index, chunk)}: damaged: SHA-256 differs; {FETCH}")
    return data


def _decoded(held: HeldPack, number: int, chunk: Chunk) -> bytes:
    if chunk.coding == "inline":
        return base64.b64decode(chunk.inline, validate=True)
    stored = held.stored(number)
    return decompress(stored, chunk.bytes) if chunk.coding == "zstd" else stored


def label(index: Index, chunk: Chunk) -> str:
    """How a message names a chunk: its digest, and the first file that it is of."""
    users = (f.path for f in index.files if any(index.chunks[n] is chunk for n in f.chunks))
    return f"chunk {chunk.sha256} of {next(users, 'no file')}"

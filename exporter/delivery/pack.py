"""Cuts a package into chunks that are named by their digests, and lays them out for a store.

A chunk is a tensor, or 4 MiB of one, wherever it lies: the chunk of a tensor that did not change
has the name that it had, so that a store's update does not deliver it again.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from exporter import __version__
from exporter.delivery.bounds import tensor_bounds
from exporter.delivery.chunks import cut_file
from exporter.delivery.coding import Undecodable, decompress, shortest, version
from exporter.delivery.container import ARCHIVE, write_container
from exporter.delivery.held import ENDING, ENDINGS, INDEX, name_of, open_held
from exporter.delivery.index import (
    INLINE_BYTES,
    VERSION,
    Chunk,
    Coding,
    Index,
    PackedFile,
    refuse_own,
    to_json,
)
from exporter.delivery.place import entries_of, refuse_inside
from exporter.delivery.stores import SMALLER, STORES, Store
from exporter.delivery.write import ELSEWHERE, prune, put, refuse_room, resumed, synced
from exporter.errors import FourstepError, InputError
from exporter.files.lock import alone
from exporter.files.read import read_bytes
from exporter.package.check import check_file
from exporter.package.manifest import FileEntry
from exporter.progress import Progress
from exporter.runtime.package import Package

CHUNKS = "chunks"  # the folder of chunks, in that of a pack
ENTRY_BYTES = 512  # what an archive of a store adds for a file, at most


def pack(package: Package, store: Store, out: Path, progress: Progress | None = None) -> Index:
    """Write the packs of a package to the folder ``out``; the same call goes on with them.

    Earlier packs there are replaced, unless something in them was changed.

    Raises InputError for a package that a store does not take, or a place that holds anything else;
    CheckFailed for a damaged package.
    """
    say = progress or Progress()
    entries = entries_of(package.folder, package.manifest)
    basis = _basis(store, entries)
    with alone(out, say):
        refuse_inside(package.folder, out)
        refuse_others(out)
        size = sum(entry.bytes for entry in entries)
        refuse_room(out, 2 * size if store.in_one else size)
        say.expect(2 * len(entries) + 1)
        for entry in entries:
            check_file(package.folder, entry)
            say(f"{entry.path} compared with its digest")
        with resumed(out, basis) as folder:
            index = _cut(package, store, entries, folder, say)
            _lay_out(index, store, folder)
            say(f"{len(index.chunks)} chunks in {len(index.packs)} packs")
    return index


def _basis(store: Store, entries: Sequence[FileEntry]) -> str:
    """Of everything that decides the bytes of packs."""
    facts = [store.name, store.pack_bytes, VERSION, __version__, version(), *map(asdict, entries)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _cut(
    package: Package, store: Store, entries: Sequence[FileEntry], folder: Path, say: Progress
) -> Index:
    """Write every chunk of a package into the packs' folders."""
    manifest = package.manifest
    cutting = Cutting(folder, store, (manifest.name, manifest.backend, manifest.scheme))
    bounds = tensor_bounds(package.folder, entries)
    files = []
    for entry in entries:
        pieces = cut_file(package.folder, entry, bounds.get(entry.path, ()))
        numbers = tuple(cutting.number_of(data) for _, data in pieces)
        files.append(PackedFile(entry.path, entry.bytes, entry.sha256, numbers))
        say(f"{entry.path} cut into {len(numbers)}")
    index = cutting.index(__version__, entries[0].sha256, tuple(files))
    try:
        refuse_own(index)
    except ValueError as error:
        raise InputError(f"{package.folder}: cannot be packed: {error}") from None
    return index


@dataclass
class Cutting:
    """The chunks of a package, each once, as they come to lie in packs one after the other.

    Attributes:
        folder: where the packs are written.
        store: what they are for.
        words: name, backend and scheme of the package.
        packs: names of the packs so far; ``held_bytes``: what each of them holds.
        chunks: so far; ``numbers``: of each by its digest.
    """

    folder: Path
    store: Store
    words: tuple[str, str, str]
    packs: list[str] = field(default_factory=list)
    held_bytes: list[int] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)

    def number_of(self, data: bytes) -> int:
        """The number of the chunk of these bytes, which is written if it is not there."""
        digest = hashlib.sha256(data).hexdigest()
        if digest not in self.numbers:
            small = len(data) <= INLINE_BYTES
            made = _inline(digest, data) if small else self._written(digest, data)
            self.numbers[digest] = len(self.chunks)
            self.chunks.append(made)
        return self.numbers[digest]

    def index(self, fourstep: str, package_sha256: str, files: tuple[PackedFile, ...]) -> Index:
        """What was cut; its own bytes have room in the last pack."""
        name, backend, scheme = self.words
        while True:
            index = Index(
                VERSION, self.store.name, fourstep, name, backend, scheme, package_sha256,
                tuple(self.packs), files, tuple(self.chunks),
            )  # fmt: skip
            self._pack_for(len(to_json(index)))
            if len(self.packs) == len(index.packs):
                return index

    def _written(self, digest: str, data: bytes) -> Chunk:
        coding, stored = self._earlier(digest, data) or shortest(data)
        number = self._pack_for(len(stored))
        self.held_bytes[number] += len(stored) + ENTRY_BYTES
        place = self._place(number, digest, coding)
        put(place, stored)
        return Chunk(digest, len(data), len(stored), coding, number)

    def _pack_for(self, size_bytes: int) -> int:
        """The last pack, or a new one where that has no room; raises InputError beyond the last."""
        if sum(self.held_bytes) + size_bytes > self.store.whole_bytes:
            raise InputError(
                f"{self.words[0]}: is more than the {self.store.whole_bytes / 1e9:,.1f} GB that "
                f"{self.store.title} may be in all; {SMALLER}"
            )
        full = self.store.pack_bytes - size_bytes - ENTRY_BYTES
        if not self.packs or self.held_bytes[-1] > full:
            self.packs.append(self.store.label(*self.words, str(len(self.packs) + 1)))
            self.held_bytes.append(0)
        return len(self.packs) - 1

    def _earlier(self, digest: str, data: bytes) -> tuple[Coding, bytes] | None:
        """A chunk as a run that was killed has stored it."""
        for number in range(max(len(self.packs) - 1, 0), len(self.packs) + 1):
            for coding in ENDINGS:
                place = self._place(number, digest, coding)
                stored = read_bytes(place) if place.is_file() else b""
                if stored and _decoded(stored, coding, len(data)) == data:
                    return coding, stored
        return None

    def _place(self, number: int, digest: str, coding: Coding) -> Path:
        pack = self.store.label(*self.words, str(number + 1))
        inside = self.store.folder(pack, self.words)
        return self.folder / inside / CHUNKS / f"{digest}{ENDINGS[coding]}"


def _inline(digest: str, data: bytes) -> Chunk:
    return Chunk(digest, len(data), 0, "inline", 0, base64.b64encode(data).decode())


def _decoded(stored: bytes, coding: Coding, size_bytes: int) -> bytes:
    try:
        return decompress(stored, size_bytes) if coding == "zstd" else stored
    except Undecodable:
        return b""


def _lay_out(index: Index, store: Store, folder: Path) -> None:
    """Write what goes along with the chunks; what an earlier run has left is removed."""
    if store.in_one:
        stored = (folder / path for path in _chunk_paths(index, store))
        write_container(folder / archive_name(index, store), ARCHIVE, to_json(index), stored)
    else:
        put(folder / _index_path(index, store), to_json(index))
        for path, text in store.extra(index).items():
            put(folder / path, text.encode())
    prune(folder, {*paths_of(index, store)})
    synced()


def archive_name(index: Index, store: Store) -> str:
    """The name of an archive."""
    return f"{store.label(index.name, index.backend, index.scheme)}{ENDING}"


def paths_of(index: Index, store: Store) -> Iterator[str]:
    """Every file that is written for a store."""
    if store.in_one:
        yield archive_name(index, store)
    else:
        yield from _chunk_paths(index, store)
        yield _index_path(index, store)
        yield from store.extra(index)


def _chunk_paths(index: Index, store: Store) -> Iterator[str]:
    """The file of every chunk that has one, in the order of the index."""
    words = (index.name, index.backend, index.scheme)
    for chunk in index.chunks:
        if chunk.coding != "inline":
            inside = store.folder(index.packs[chunk.pack], words)
            yield f"{inside}/{CHUNKS}/{name_of(chunk)}"


def _index_path(index: Index, store: Store) -> str:
    words = (index.name, index.backend, index.scheme)
    return f"{store.folder(index.packs[-1], words)}/{INDEX}"


def refuse_others(out: Path) -> None:
    """Raise InputError for a place that holds anything but packs as they were written."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise InputError(f"{out}: is a {'link' if out.is_symlink() else 'file'}; {ELSEWHERE}")
    found = sorted(f.relative_to(out).as_posix() for f in out.rglob("*") if not f.is_dir())
    if not found:
        return
    try:
        index = open_held(out).index
        store = STORES.get(index.target)
    except FourstepError:
        raise InputError(
            f"{out}: holds {found[0]}, which is not of a pack; {ELSEWHERE}, or delete {out}"
        ) from None
    extra = store.extra(index) if store else {}
    listed = {*paths_of(index, store)} if store else set()
    for path in found:
        if path not in listed:
            raise InputError(f"{out}: holds {path}, which fourstep pack did not write; {ELSEWHERE}")
        if path in extra and read_bytes(out / path) != extra[path].encode():
            raise InputError(f"{out}: holds {path}, which was changed; {ELSEWHERE}")

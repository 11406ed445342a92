"""What packs and a delta say of themselves: records, and their fields against each other.

Both name the package that they end in by the digest of its manifest. They are believed in nothing
that is not checked: sizes add up, paths stay inside, every chunk has a digest.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Annotated, Any, Literal

from msgspec import Meta

from exporter.errors import CheckFailed
from exporter.package.decode import decode
from exporter.package.manifest import Count, Digest, FileEntry, Name
from exporter.package.paths import RelativePath
from exporter.package.read import DIGEST, MANIFEST, OWN_FILES

VERSION = "1.0"  # of both records
MOST_INDEX_BYTES = 8 << 20  # as JSON; what 64 MB of memory can hold as records
MOST_OWN_BYTES = 2 << 20  # of the manifest, its digest, its signature
CHUNK_BYTES = 4 << 20  # a longer tensor is several chunks
INLINE_BYTES = 256  # up to here a chunk stands in the index itself, in base64

SELDOM = {
    "inline": "",
    "base": None,
    "stride": 1,
}  # fields that are written where they tell something

ChunkBytes = Annotated[int, Meta(ge=1, le=CHUNK_BYTES)]
Version = Annotated[str, Meta(pattern=r"^1\.[0-9]{1,4}$(?!\n)")]
Coding = Literal["raw", "zstd", "inline"]
PieceCoding = Literal["raw", "zstd", "patch", "difference"]
Stride = Literal[1, 2, 4]
Number = Annotated[int, Meta(ge=0, le=1 << 24)]


@dataclass(frozen=True)
class Chunk:
    """A run of bytes that is stored once, wherever it stands.

    Attributes:
        sha256: of the bytes; its name in a store.
        bytes: how many there are.
        stored_bytes: how many there are as they are stored.
        coding: how they are stored: ``raw``, as they are; ``zstd``, a frame of it; ``inline``, in
            base64 in ``inline``.
        pack: which of the index's packs holds it, counted from 0.
        inline: the bytes themselves, if they are few; else empty.
    """

    sha256: Digest
    bytes: ChunkBytes
    stored_bytes: Annotated[int, Meta(ge=0, le=CHUNK_BYTES)]
    coding: Coding
    pack: Number = 0
    inline: Annotated[str, Meta(max_length=2 * INLINE_BYTES)] = ""


@dataclass(frozen=True)
class PackedFile:
    """A file of the package.

    Attributes:
        path, bytes, sha256: as in its manifest.
        chunks: what it is made of, in order: numbers in the index's ``chunks``, from 0.
    """

    path: RelativePath
    bytes: Count
    sha256: Digest
    chunks: tuple[Number, ...]


@dataclass(frozen=True)
class Index:
    """What a pack holds.

    Attributes:
        index_version: of this record; a reader of 1.0 reads every 1.x.
        target: what it was packed for.
        fourstep: the version that wrote it.
        name, backend, scheme: of the package.
        package_sha256: of its ``manifest.json``.
        packs: names of the packs that the chunks lie in.
        files: every file of the package, the manifest and its digest first.
        chunks: what they are made of.
    """

    index_version: Version
    target: Name
    fourstep: str
    name: str
    backend: Name
    scheme: Name
    package_sha256: Digest
    packs: tuple[Name, ...]
    files: tuple[PackedFile, ...]
    chunks: tuple[Chunk, ...]

    @property
    def bytes(self) -> int:
        """Of the package."""
        return sum(file.bytes for file in self.files)

    @property
    def stored_bytes(self) -> int:
        """Of all chunks as they are stored, those in the index not counted."""
        return sum(chunk.stored_bytes for chunk in self.chunks)


@dataclass(frozen=True)
class PartEntry:
    """A run of bytes of a file that a delta makes.

    Attributes:
        source: ``old``: of the old package's file ``number`` from ``offset`` on; ``new``: the
            delta's own piece ``number``, whole.
        number: in the delta's ``old_files`` or ``pieces``, from 0.
        offset: in the old file; of a piece 0.
        bytes: how many.
    """

    source: Literal["old", "new"]
    number: Number
    offset: Count
    bytes: Count


@dataclass(frozen=True)
class Piece:
    """Bytes that a delta carries.

    Attributes:
        sha256: of the bytes.
        bytes: how many there are.
        stored_bytes: how many there are as they are stored.
        coding: how they are stored: ``raw``; ``zstd``, a frame of it; ``patch``, a frame with the
            bytes of ``base`` as its prefix; ``difference``, a frame of the bytes minus those of
            ``base``, each modulo 256, gathered by ``stride``.
        base: bytes of the old package, or nothing.
        stride: of a difference: first every byte whose place in the piece is a multiple of it,
            then those one behind, and so on.
    """

    sha256: Digest
    bytes: ChunkBytes
    stored_bytes: Annotated[int, Meta(ge=1, le=CHUNK_BYTES)]
    coding: PieceCoding
    base: PartEntry | None = None
    stride: Stride = 1


@dataclass(frozen=True)
class ChangedFile:
    """A file of the new package that the old one has not at the same path.

    Attributes:
        path, bytes, sha256: as in the new package.
        parts: what it is made of, in order.
    """

    path: RelativePath
    bytes: Count
    sha256: Digest
    parts: tuple[PartEntry, ...]


@dataclass(frozen=True)
class DeltaIndex:
    """What makes a new package from an old one.

    Files of the new manifest that are not listed are those of the old package at the same path.

    Attributes:
        delta_version: of this record; a reader of 1.0 reads every 1.x.
        fourstep: the version that wrote it.
        old_sha256: of the old package's ``manifest.json``.
        new_sha256: of the new package's.
        old_files: paths in the old package that parts are taken from.
        files: what changed, the manifest and its digest first.
        pieces: what the delta carries.
    """

    delta_version: Version
    fourstep: str
    old_sha256: Digest
    new_sha256: Digest
    old_files: tuple[RelativePath, ...]
    files: tuple[ChangedFile, ...]
    pieces: tuple[Piece, ...]

    @property
    def stored_bytes(self) -> int:
        """Of all pieces as they are stored."""
        return sum(piece.stored_bytes for piece in self.pieces)


def to_json(record: Index | DeltaIndex) -> bytes:
    """Deterministic JSON; what few chunks and pieces have is left out of the others."""
    plain = asdict(record, dict_factory=_without_defaults)
    return json.dumps(plain, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def _without_defaults(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: value for key, value in pairs if key not in SELDOM or value != SELDOM[key]}


def read_index(text: bytes, where: object) -> Index:
    """A pack's index from JSON, its fields agreeing; raises CheckFailed naming ``where``."""
    try:
        index = decode(Index, text)
        _refuse(_problems_of_index(index))
    except ValueError as error:
        raise CheckFailed(f"{where}: damaged: {error}; fetch the pack again") from None
    return index


def read_delta(text: bytes, where: object) -> DeltaIndex:
    """A delta's record from JSON, its fields agreeing; raises CheckFailed naming ``where``."""
    try:
        delta = decode(DeltaIndex, text)
        _refuse(_problems_of_delta(delta))
    except ValueError as error:
        raise CheckFailed(f"{where}: damaged: {error}; fetch the delta again") from None
    return delta


def refuse_own(record: Index | DeltaIndex) -> None:
    """Raise ValueError for a record that nobody would read."""
    if len(to_json(record)) > MOST_INDEX_BYTES:
        raise ValueError(f"more tensors than an index of {MOST_INDEX_BYTES >> 20} MiB lists")
    if isinstance(record, Index):
        _refuse(_problems_of_index(record))
    else:
        _refuse(_problems_of_delta(record))


def _refuse(problems: Iterable[str]) -> None:
    for problem in problems:
        raise ValueError(problem)


def _problems_of_index(index: Index) -> Iterator[str]:
    yield from _problems_of_files(index.files, index.package_sha256)
    for digest, times in Counter(chunk.sha256 for chunk in index.chunks).items():
        if times > 1:
            yield f"chunk {digest} is listed {times} times"
    for chunk in index.chunks:
        inline = chunk.coding == "inline"
        if chunk.pack >= len(index.packs) or inline == bool(chunk.stored_bytes):
            yield f"chunk {chunk.sha256} lies nowhere"
        if chunk.coding == "raw" and chunk.stored_bytes != chunk.bytes:
            yield f"chunk {chunk.sha256} is of {chunk.bytes} and {chunk.stored_bytes} bytes"
    for file in index.files:
        if any(number >= len(index.chunks) for number in file.chunks):
            yield f"'{file.path}' has a chunk that is not listed"
        elif sum(index.chunks[number].bytes for number in file.chunks) != file.bytes:
            yield f"the chunks of '{file.path}' are not its {file.bytes} bytes"


def _problems_of_delta(delta: DeltaIndex) -> Iterator[str]:
    yield from _problems_of_files(delta.files, delta.new_sha256)
    for file in delta.files:
        if sum(part.bytes for part in file.parts) != file.bytes:
            yield f"the parts of '{file.path}' are not its {file.bytes} bytes"
    parts = chain.from_iterable(file.parts for file in delta.files)
    bases = (piece.base for piece in delta.pieces if piece.base is not None)
    for part in chain(parts, bases):
        listed = delta.old_files if part.source == "old" else delta.pieces
        if part.number >= len(listed):
            yield f"{part.source} {part.number} is not listed"
        elif part.source == "new" and part.bytes != delta.pieces[part.number].bytes:
            yield f"piece {part.number} is of {part.bytes} and of other bytes"
    for i, piece in enumerate(delta.pieces):
        base = piece.base
        if (base is None) != (piece.coding in ("raw", "zstd")):
            yield f"piece {i} of coding '{piece.coding}' has a base, or none"
        elif base is not None and (base.source != "old" or base.bytes > CHUNK_BYTES):
            yield f"the base of piece {i} is not of the old package, or too long"
        elif base is not None and piece.coding == "difference" and base.bytes != piece.bytes:
            yield f"the base of piece {i} is of other bytes"


def _problems_of_files(
    files: Sequence[PackedFile] | Sequence[ChangedFile], manifest_sha256: str
) -> Iterator[str]:
    """The manifest and its own files lead; no path is there twice, or is a folder of another."""
    own = [file for file in files if file.path in OWN_FILES]
    if [file.path for file in own[:2]] != [MANIFEST, DIGEST] or own != [*files[: len(own)]]:
        yield f"{MANIFEST} and {DIGEST} are not the first files"
    elif own[0].sha256 != manifest_sha256:
        yield f"{MANIFEST} is not that of the package"
    for file in own:
        if file.bytes > MOST_OWN_BYTES:
            yield f"'{file.path}' is larger than {MOST_OWN_BYTES >> 20} MiB"
    # A disk may take two spellings for one name.
    spelled = Counter(file.path.casefold() for file in files)
    folders = {folder for path in spelled for folder in _folders_of(path)}
    for path, times in spelled.items():
        if times > 1 or path in folders:
            yield f"'{path}' is there twice, or a folder of another file"


def _folders_of(path: str) -> Iterator[str]:
    parts = path.split("/")
    return ("/".join(parts[:i]) for i in range(1, len(parts)))


def entry_of(file: PackedFile | ChangedFile) -> FileEntry:
    """What a manifest says of the file."""
    return FileEntry(file.path, file.bytes, file.sha256)

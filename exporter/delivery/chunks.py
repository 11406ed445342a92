"""Files cut on the bounds of their tensors, read once from their start to their end."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from exporter.delivery.index import CHUNK_BYTES
from exporter.errors import CheckFailed
from exporter.files.read import reason_of
from exporter.package.manifest import FileEntry
from exporter.package.paths import confined


def spans(size_bytes: int, bounds: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Offset and size of every chunk of a file; a tensor that is longer than one is several."""
    for start, end in pairwise((0, *bounds, size_bytes)):
        for at in range(start, end, CHUNK_BYTES):
            yield at, min(CHUNK_BYTES, end - at)


def cut_file(folder: Path, entry: FileEntry, bounds: Sequence[int]) -> Iterator[tuple[int, bytes]]:
    """Offset and bytes of every chunk of a file of a package.

    Raises CheckFailed, after the last, for a file that is not as its digest says.
    """
    file = confined(folder, entry.path)
    whole = hashlib.sha256()
    try:
        with file.open("rb") as stream:
            for at, size in spans(entry.bytes, bounds):
                data = stream.read(size)
                whole.update(data)
                yield at, data
            rest = stream.read(1)
    except OSError as error:
        said = f"cannot be read: {reason_of(error)}"
        raise CheckFailed(f"{file}: {said}; copy the package again") from None
    if rest or whole.hexdigest() != entry.sha256:
        raise CheckFailed(f"{file}: damaged: SHA-256 differs; copy or build the package again")

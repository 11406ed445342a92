"""Puts a package together again from a pack: resumable, whole or absent, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from exporter.delivery.held import HeldPack, chunk_bytes, open_held
from exporter.delivery.index import Index, PackedFile, entry_of
from exporter.delivery.place import holds, read_arrived
from exporter.delivery.write import clear, prune, refuse_room, resumed, synced, write_file
from exporter.errors import CheckFailed
from exporter.files.lock import alone
from exporter.package.manifest import Manifest
from exporter.package.read import OWN_FILES
from exporter.progress import Progress
from exporter.trust.check import Trust


@dataclass(frozen=True)
class Unpacked:
    """A package that was put together. ``was_there``: it was whole already."""

    index: Index
    was_there: bool


def unpack(
    source: Path, target: Path, progress: Progress | None = None, trust: Trust | None = None
) -> Unpacked:
    """Write the package that a pack holds to the folder ``target``; the same call goes on with it.

    A package there, as it was written, is replaced when the new one is whole.

    Args:
        trust: whose signature the package has to have; known before its manifest is parsed.

    Raises InputError for a source that is no pack or a target that holds anything else; CheckFailed
    for a chunk that is missing or damaged, naming it.
    """
    say = progress or Progress()
    held = open_held(source)
    index = held.index
    with alone(target, say):
        own = [entry_of(file) for file in index.files if file.path in OWN_FILES]
        if holds(target, own):
            read_arrived(target, target, trust)
            clear(target)
            return Unpacked(index, True)
        refuse_room(target, index.bytes)
        say.expect(len(index.files))
        with resumed(target, index.package_sha256) as folder:
            prune(folder, {file.path for file in index.files})
            for file in index.files[: len(own)]:
                _write(folder, held, file, say)
            _compare(read_arrived(folder, source, trust), index, source)
            for file in index.files[len(own) :]:
                _write(folder, held, file, say)
            synced()
    return Unpacked(index, False)


def _write(folder: Path, held: HeldPack, file: PackedFile, say: Progress) -> None:
    write_file(folder, entry_of(file), lambda offset: _content(held, file, offset), file.path)
    say(f"{file.path} whole")


def _content(held: HeldPack, file: PackedFile, offset: int) -> Iterator[bytes]:
    """The bytes of a file from an offset on; chunks before it are not read."""
    at = 0
    for number in file.chunks:
        size = held.index.chunks[number].bytes
        if at + size > offset:
            yield chunk_bytes(held, number)[max(offset - at, 0) :]
        at += size


def _compare(manifest: Manifest, index: Index, source: Path) -> None:
    """Raise CheckFailed unless the index lists what the manifest lists: before the weights."""
    listed = {entry.path: entry for entry in manifest.all_files}
    found = {f.path: entry_of(f) for f in index.files if f.path not in OWN_FILES}
    for path in sorted(listed.keys() | found.keys()):
        if listed.get(path) != found.get(path):
            raise CheckFailed(
                f"{source}: damaged: its index and the package's manifest differ in '{path}'; "
                "fetch the pack again"
            )

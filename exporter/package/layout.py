"""What a folder in another layout than the native one says of itself, and whether it is whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from exporter.errors import CheckFailed, InputError
from exporter.files.read import read_bytes
from exporter.package.check import check_file
from exporter.package.decode import decode
from exporter.package.manifest import FileEntry, MarkEntry, OriginEntry, Port, Schedule
from exporter.package.paths import confined
from exporter.package.read import DIGEST

LAYOUT_FILE = "fourstep.json"  # beside what clients read; they look past it
LAYOUT_VERSION = "1.0"


@dataclass(frozen=True)
class LayoutGraph:
    """A graph of a layout.

    Attributes:
        folder: where its files lie.
        inputs, outputs: with the largest sizes; ``free`` says which axes may be shorter.
        formats: how many values of its weights are stored in each format.
        made_of: the native graphs that are in it.
        free: axes of any size, by input.
        bytes: of its files.
    """

    folder: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    formats: dict[str, int]
    made_of: tuple[str, ...]
    free: dict[str, tuple[int, ...]]
    bytes: int


@dataclass(frozen=True)
class LayoutManifest:
    """A folder in a layout for clients of others.

    Attributes:
        layout_version: of this file.
        layout, name, backend, scheme: what was built.
        clients: who loads it.
        origin: what it was built from.
        schedule: that pictures are drawn along, whatever the client.
        timesteps: that a client feeds, one for each step.
        gains: in the graph: our step over the client's.
        starts_from_pictures: whether a client may start from one.
        graphs: in the order in which they run.
        files: all but this one.
        mark: in every picture, whichever client draws it, or None.
    """

    layout_version: str
    layout: str
    name: str
    backend: str
    scheme: str
    clients: tuple[str, ...]
    origin: OriginEntry
    schedule: Schedule
    timesteps: tuple[float, ...]
    gains: tuple[float, ...]
    starts_from_pictures: bool
    graphs: tuple[LayoutGraph, ...]
    files: tuple[FileEntry, ...]
    mark: MarkEntry | None = None

    @property
    def bytes(self) -> int:
        """Of all files but this one."""
        return sum(file.bytes for file in self.files)


def is_layout(folder: Path) -> bool:
    """Whether a folder is in a layout for clients of others, and no native package."""
    return (folder / LAYOUT_FILE).is_file() and not (folder / DIGEST).is_file()


def read_layout(folder: Path) -> LayoutManifest:
    """What a folder says of itself; raises CheckFailed for a file that cannot be read."""
    file = folder / LAYOUT_FILE
    try:
        found = decode(LayoutManifest, read_bytes(file, CheckFailed))
    except ValueError as error:
        raise CheckFailed(f"{file}: {error}; build it again") from None
    if found.layout_version.partition(".")[0] != LAYOUT_VERSION.partition(".")[0]:
        raise CheckFailed(f"{file}: of version {found.layout_version}; update fourstep")
    return found


def check_layout(folder: Path) -> LayoutManifest:
    """The same, with every file's digest checked; raises CheckFailed naming a damaged one."""
    found = read_layout(folder)
    for entry in found.files:
        confined(folder, entry.path)
        check_file(folder, entry)
    return found


def refuse_layout(folder: Path) -> None:
    """Raise InputError for a folder that is not for fourstep's own loop."""
    if is_layout(folder):
        found = read_layout(folder)
        raise InputError(
            f"{folder}: in {found.layout} layout, for {', '.join(found.clients)}; load it with "
            "one of them, or build the recipe with [build] layout = 'native'"
        )

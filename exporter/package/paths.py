"""Paths inside a package: relative, in no need of resolving, and without links that lead away."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from exporter.errors import CheckFailed

# Names between slashes: no empty one, no "." or "..", no backslash, colon or control character.
NAME = r"(?!\.{1,2}(?:/|$))[^/\\:\x00-\x1f\x7f]+"
RELATIVE = rf"^{NAME}(?:/{NAME})*$(?!\n)"
RelativePath = Annotated[str, Meta(pattern=RELATIVE, max_length=400)]
OptionalPath = Annotated[str, Meta(pattern=rf"^(?:{NAME}(?:/{NAME})*)?$(?!\n)", max_length=400)]


def is_relative(path: str) -> bool:
    """Whether a path leads inside whatever folder it is taken from."""
    return re.search(RELATIVE, path) is not None


def confined(folder: Path, path: str) -> Path:
    """The file of a package behind a path of its manifest; raises CheckFailed when a link leaves.

    A link may lead elsewhere in the package, and in the cache of a hub (``models--x/snapshots/
    <revision>``) to that repository's blobs: files of a snapshot are links to them.
    """
    file = folder / path
    try:
        real, home = file.resolve(), folder.resolve()
    except (OSError, RuntimeError):  # a link to itself
        raise CheckFailed(f"{file}: a link that leads nowhere; copy the package again") from None
    if not any(real.is_relative_to(place) for place in (home, *_blobs(home))):
        raise CheckFailed(
            f"{file}: a link that leaves the package, to {real}; copy the package with its files"
        )
    return file


def _blobs(home: Path) -> list[Path]:
    """Where a hub's cache keeps the files of the snapshot that a folder is in, or is."""
    return [
        place.parent.parent / "blobs"
        for place in (home, *home.parents)
        if place.parent.name == "snapshots" and place.parent.parent.name.startswith("models--")
    ]

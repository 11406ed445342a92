"""A cache of what takes long to make: looked through before it is used, listed when it is written.

Runtimes write into such folders what they compile, and read it back as it is: one of them drew
another picture from a file with one changed bit, and a kill may leave half a file.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from exporter.errors import InputError, Remark
from exporter.files.lock import LOCK, OWNER, locked
from exporter.files.read import convert, file_digest, read_json
from exporter.files.staging import remove, write_whole

LIST = "digests.json"
REMEDY = "choose another cache"


class DamagedCache(Remark):
    """Something in a cache was not as it was written."""


@contextmanager
def checked(folder: Path) -> Iterator[Path]:
    """A folder of a cache, in which every file is as it was written, and written to its end.

    If one is not, all of them are removed first, with a warning. What the block writes is listed
    when it ends well. Only one process at a time is in a block for a folder.

    Raises InputError where the folder cannot be written.
    """
    with locked(folder, lambda _: None, REMEDY):
        damaged = _damaged(folder)
        if damaged is not None:
            warnings.warn(
                f"{damaged}: is not as it was written; {folder} is made anew",
                DamagedCache,
                stacklevel=3,
            )
            for place in [*_files(folder), folder / LIST]:
                remove(place)
        before = _states(folder)
        yield folder
        if _states(folder) != before:
            found = {name: file_digest(folder / name) for name in _states(folder)}
            write_whole(folder / LIST, json.dumps({"sha256": found}, indent=1) + "\n")


def _files(folder: Path) -> list[Path]:
    """What lies in a folder beside its list and its lock: files, and folders of files."""
    return sorted(f for f in folder.iterdir() if f.name not in (LIST, LOCK, OWNER))


def _states(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file, by its path from the folder."""
    inside = [f for place in _files(folder) for f in (place, *place.rglob("*")) if f.is_file()]
    return {
        f.relative_to(folder).as_posix(): (f.stat().st_size, f.stat().st_mtime_ns) for f in inside
    }


def _damaged(folder: Path) -> Path | None:
    """A file that is not as it was written, or should not be there; None if all is well."""
    found = set(_states(folder))
    listed: dict[str, str] = {}
    if (folder / LIST).exists():
        try:
            raw = read_json(folder / LIST).get("sha256")
            listed = convert(raw, dict[str, str], folder / LIST)
        except InputError:
            return folder / LIST
    for name in sorted(found ^ set(listed)):
        return folder / name
    return next(
        (folder / name for name in sorted(found) if file_digest(folder / name) != listed[name]),
        None,
    )

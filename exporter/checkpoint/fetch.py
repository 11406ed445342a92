"""Fetching a hub id into the hub's cache: the one place that opens connections.

The files that a recipe needs and no others. huggingface_hub starts a file again when its process
ended in the middle, so each is fetched beside its place in the cache, goes on where it stopped,
and is moved there when its digest is right; the library then finds it and links to it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from exporter.checkpoint.hub import files_of, hub_reason, library
from exporter.errors import FourstepError, InputError
from exporter.files.lock import locked
from exporter.progress import say

CACHE_REMEDY = "make room, or set HF_HOME to another folder"
PART = ".fourstep.part"  # of a file's name while it is fetched
AT_ONCE_BYTES = 1 << 20
GIT_BLOB, SHA256 = re.compile("[0-9a-f]{40}"), re.compile("[0-9a-f]{64}")
ShowBytes = Callable[[str, int, int], None]  # a file, its bytes that are there, all of them


@dataclass(frozen=True)
class Remote:
    """A file of a hub repository.

    Attributes:
        name: relative to the repository.
        url: where it is.
        etag: its name in the cache: the digest of what it holds.
        size_bytes: of it.
    """

    name: str
    url: str
    etag: str
    size_bytes: int


def fetch(
    place: str,
    components: Sequence[str],
    revision: str | None,
    variant: str | None,
    show: ShowBytes,
) -> Path:
    """Fetch what these components of a hub id need, and return the snapshot in the hub's cache.

    Raises InputError, also when a connection ends; what is there then is kept.
    """
    if Path(place).exists():
        raise InputError(f"{place}: is there already; fetch takes a hub id, such as owner/name")
    hub = library(place)
    from huggingface_hub import constants, utils

    blobs = Path(constants.HF_HUB_CACHE) / f"models--{place.replace('/', '--')}" / "blobs"
    utils.disable_progress_bars()
    utils.logging.set_verbosity_error()
    try:
        commit, names = _listed(hub, place, revision)
        files = files_of(names, components, variant, place)
        with locked(blobs, lambda line: say(f"{line}\n"), CACHE_REMEDY):
            for name in files:
                _obtain(_remote(hub, place, name, commit), blobs, show)
        return Path(hub.snapshot_download(place, revision=revision, allow_patterns=files))
    except FourstepError:
        raise
    except OSError as error:
        if error.errno is None:  # the library's own, of a connection
            raise InputError(f"{place}: {hub_reason(error, revision)}") from None
        raise InputError(f"{error.filename or blobs}: {error.strerror}; {CACHE_REMEDY}") from None
    except Exception as error:  # the library raises a dozen unrelated types
        raise InputError(f"{place}: {hub_reason(error, revision)}") from None


def _listed(hub: Any, place: str, revision: str | None) -> tuple[str, list[str]]:
    """The commit of a revision, and the names of its files."""
    info = hub.HfApi().model_info(place, revision=revision)
    return info.sha, [file.rfilename for file in info.siblings or []]


def _remote(hub: Any, place: str, name: str, commit: str) -> Remote:
    url = hub.hf_hub_url(place, name, revision=commit)
    found = hub.get_hf_file_metadata(url)
    is_digest = found.etag and (SHA256.fullmatch(found.etag) or GIT_BLOB.fullmatch(found.etag))
    if not is_digest or found.size is None:
        raise InputError(
            f"{place}: the hub does not say what {name} is, so that it cannot be checked"
        )
    return Remote(name, url, found.etag, found.size)


def _obtain(remote: Remote, blobs: Path, show: ShowBytes) -> None:
    """Bring a file into the cache's blobs, unless it is there."""
    blob = blobs / remote.etag
    if blob.exists():
        show(remote.name, remote.size_bytes, remote.size_bytes)
        return
    part = blob.with_name(blob.name + PART)
    with part.open("ab") as stream:
        _download(remote, stream, show)
    if not _is_right(part, remote):
        part.unlink()
        raise InputError(f"{remote.name}: came damaged, and is thrown away; fetch it again")
    part.replace(blob)


def _download(remote: Remote, stream: BinaryIO, show: ShowBytes) -> None:
    """Append to a file what it lacks of a remote one."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    if stream.tell() > remote.size_bytes:
        stream.truncate(0)
        stream.seek(0)
    begun = stream.tell()
    show(remote.name, begun, remote.size_bytes)
    http_get(
        remote.url,
        stream,
        resume_size=begun,
        headers=build_hf_headers(),
        expected_size=remote.size_bytes,
        tqdm_class=_bar(remote, begun, show),
    )


def _bar(remote: Remote, begun: int, show: ShowBytes) -> type:
    """What the library takes for a class of bars, of one file."""

    class Bar:
        """Counts bytes; the library makes one, and hands it on when it tries again."""

        done = begun

        def __init__(self, *_: object, **__: object) -> None:
            """What the library says of the file is known."""

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            """Nothing to close."""

        def update(self, count: float | None = 1) -> None:
            self.done += int(count or 0)
            show(remote.name, self.done, remote.size_bytes)

    return Bar


def _is_right(file: Path, remote: Remote) -> bool:
    """Whether a file is what its etag is the digest of: SHA-256, or git's of a small one."""
    if SHA256.fullmatch(remote.etag):
        total = hashlib.sha256()
    else:
        total = hashlib.sha1(f"blob {file.stat().st_size}\0".encode(), usedforsecurity=False)
    with file.open("rb") as stream:
        while chunk := stream.read(AT_ONCE_BYTES):
            total.update(chunk)
    return total.hexdigest() == remote.etag

"""The place of a shared cache as it is typed: a folder or a URL, and never a credential."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from exporter.errors import InputError

VARIABLE = "FOURSTEP_SHARED_CACHE"  # names the cache where no flag does
SECRET = "FOURSTEP_SHARED_CACHE_SECRET"  # signs records, and refuses those that it did not sign
URL = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://")
# Variables whose values are never shown, whatever a library says.
SECRET_NAMES = re.compile(r"SECRET|TOKEN|PASSWORD|PASSPHRASE|ACCESS_KEY|ACCOUNT_KEY|CREDENTIAL")
LEAST_SECRET_CHARACTERS = 6  # shorter values stand in words by chance
HIDDEN = "***"
REMEDY = (
    "credentials come from where the service's own tools take them, such as AWS_ACCESS_KEY_ID "
    "and AWS_SECRET_ACCESS_KEY"
)


@dataclass(frozen=True)
class CacheUrl:
    """A place without credentials.

    Attributes:
        text: as it was given; a folder in full.
        protocol: of fsspec; empty for a folder.
        folder: None where it is none.
    """

    text: str
    protocol: str = ""
    folder: Path | None = None


def parse_url(given: str) -> CacheUrl:
    """A folder, or a URL; raises InputError, which repeats no part that may be a credential."""
    found = URL.match(given)
    if not given or "\0" in given:
        raise InputError("a folder or a URL is expected", field="shared_cache")
    if found is None:
        return _folder(Path(given).expanduser())
    protocol = found[1].lower()
    try:
        parts = urlsplit(given)
        is_bare = not (parts.username or parts.password or parts.query or parts.fragment)
    except ValueError:
        is_bare = False
    if not is_bare or "@" in given or "?" in given:
        raise InputError(
            f"a {protocol} URL of a place alone is expected, without names, keys or queries: "
            f"{REMEDY}",
            field="shared_cache",
        )
    if protocol in ("file", "local"):
        return _folder(Path(parts.path))
    return CacheUrl(given.rstrip("/"), protocol)


def _folder(folder: Path) -> CacheUrl:
    return CacheUrl(str(folder.absolute()), "", folder.absolute())


def redacted(text: str) -> str:
    """A library's words without the values of variables that hold secrets, or names in URLs."""
    values = {v for name, v in os.environ.items() if SECRET_NAMES.search(name.upper())}
    for value in sorted(values, key=len, reverse=True):
        if len(value) >= LEAST_SECRET_CHARACTERS:
            text = text.replace(value, HIDDEN)
    text = re.sub(r"(://)[^/@\s]+@", rf"\1{HIDDEN}@", text)
    return re.sub(r"([?&][\w.-]+)=[^&\s]+", rf"\1={HIDDEN}", text)

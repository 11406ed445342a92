"""What a record of the cache is: under the digest of what decides it, files and their digests."""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from exporter.errors import FourstepError
from exporter.files.read import parse_json, parse_text
from exporter.package.decode import parse
from exporter.package.manifest import FileEntry
from exporter.package.paths import is_relative

FORMAT = 1
MOST_RECORD_BYTES = 16 << 20
Kind = Literal["graph", "package", "request", "statistics"]


class RecordError(ValueError):
    """A record is not what this project writes under its key."""


@dataclass(frozen=True)
class Record:
    """One entry.

    Attributes:
        kind: what it is a record of.
        key: SHA-256 of everything that decides it.
        value: what its kind says of it, as JSON.
        files: by path from a folder, with digests.
        mac: HMAC-SHA256 of the rest with the secret that machines share; empty without one.
    """

    kind: Kind
    key: str
    value: dict[str, Any]
    files: tuple[FileEntry, ...]
    format: int = FORMAT
    mac: str = ""

    def to_bytes(self, secret: bytes) -> bytes:
        """JSON, signed where there is a secret; names in the order in which manifests have them."""
        body = asdict(self) | {"mac": ""}
        return json.dumps(body | {"mac": _mac(body, secret) if secret else ""}).encode()


def read_record(content: bytes, kind: Kind, key: str, secret: bytes) -> Record:
    """The record that lies under a key; raises RecordError that says why it is none."""
    try:
        raw = parse_json(parse_text(content, "record"), "record", unique=True)
        record = parse(Record, raw)
    except (ValueError, FourstepError) as error:
        raise RecordError(str(error)) from None
    if record.format != FORMAT:
        raise RecordError(f"it has format {record.format}, this fourstep reads {FORMAT}")
    if (record.kind, record.key) != (kind, key):
        raise RecordError("it is the record of something else")
    if secret and not hmac.compare_digest(record.mac, _mac(raw | {"mac": ""}, secret)):
        raise RecordError("it is not signed with the secret of this cache")
    for file in record.files:
        if not is_relative(file.path) or file.bytes < 0 or not _is_digest(file.sha256):
            raise RecordError(f"it names a file {file.path!r:.80} that no package has")
    if len({file.path for file in record.files}) != len(record.files):
        raise RecordError("it names a file twice")
    return record


def _is_digest(text: str) -> bool:
    return len(text) == 64 and set(text) <= set("0123456789abcdef")


def _mac(body: dict[str, Any], secret: bytes) -> str:
    text = json.dumps(body, sort_keys=True)
    return hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()

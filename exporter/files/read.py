"""Reading files: digests, and JSON with an error that names the file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from exporter.errors import InputError


def file_digest(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object; raises InputError naming the file and the line."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{file}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{file}: a JSON object is expected")
    return value

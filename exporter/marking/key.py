"""Keys of marks: 32 secret bytes, in a file of their own or in the environment.

A key decides every pattern of its marks. Who has it can read and forge them, so it is in no recipe
and in no package; a package names it by its ``id``, which tells nothing about it.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import stat
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from exporter.errors import InputError, Remark
from exporter.files.read import read_text
from exporter.files.staging import unwritable

KEY_BYTES = 32
MADE_BY = "fourstep mark key FILE"
HEAD = "# A key of invisible marks. Keep it secret: who has it can read and forge them."


class KeyWarning(Remark):
    """A key lies where others can read it."""


@dataclass(frozen=True)
class MarkKey:
    """A secret; it is never shown.

    Attributes:
        secret: 32 bytes.
    """

    secret: bytes = field(repr=False)

    @property
    def id(self) -> str:
        """16 hexadecimal digits that name the key and tell nothing about it."""
        return hashlib.sha256(b"fourstep mark key id 1" + self.secret).hexdigest()[:16]


def read_key(file: Path, where: str = "") -> MarkKey:
    """The key in a file; raises InputError naming it, after ``where`` if that is given.

    Warns of a file that others than its owner can read.
    """
    said = f"{where}: {file}" if where else str(file)
    if not file.exists():
        raise InputError(f"{said}: no such key; make one with: {MADE_BY}")
    text = read_text(file, lambda problem: InputError(f"{where}: {problem}" if where else problem))
    key = _parsed(text, said)
    if os.name == "posix" and file.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        warnings.warn(f"{file}: others can read this key; chmod 600 it", KeyWarning, stacklevel=2)
    return key


def key_of_environment(name: str, where: str) -> MarkKey:
    """The key in a variable of the environment; raises InputError."""
    text = os.environ.get(name)
    if not text:
        raise InputError(f"{where}: the environment has no variable {name}; set it to a key")
    return _parsed(text, f"{where}: the variable {name}")


def _parsed(text: str, said: str) -> MarkKey:
    """The one line of text that is no remark; the text itself is not shown."""
    lines = [line.strip() for line in text.splitlines()]
    left = [line for line in lines if line and not line.startswith("#")]
    if len(left) != 1 or not re.fullmatch(f"[0-9a-fA-F]{{{2 * KEY_BYTES}}}", left[0]):
        raise InputError(
            f"{said}: not a key, which is {2 * KEY_BYTES} hexadecimal digits on one line; make one "
            f"with: {MADE_BY}"
        )
    return MarkKey(bytes.fromhex(left[0]))


def make_key(file: Path) -> MarkKey:
    """Write a new key that its owner alone can read; raises InputError for a file that is there."""
    key = MarkKey(secrets.token_bytes(KEY_BYTES))
    text = f"{HEAD}\n{key.secret.hex()}\n".encode()
    try:
        # Made with its final rights: there is no moment in which another could open it.
        place = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise InputError(
            f"{file}: is there already, and marks made with it could not be read without it; "
            "choose another name"
        ) from None
    except OSError as error:
        raise unwritable(file, error) from None
    try:
        with os.fdopen(place, "wb") as stream:
            stream.write(text)
    except OSError as error:
        file.unlink(missing_ok=True)
        raise unwritable(file, error) from None
    return key

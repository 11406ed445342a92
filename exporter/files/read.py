"""Reading files that others wrote: text, JSON and TOML within limits, and digests.

Whatever is wrong with such a file ends as one error of the project that names it. Siblings read
safetensors (``tensors``), pictures (``pictures``), tokenizers (``tokens``) and lists of prompts
(``prompts``); tests/test_house.py
holds that nothing else in the package reads any of them.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import stat
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from exporter.errors import FourstepError, InputError
from exporter.files.stop import tell_wish

MOST_TEXT_BYTES = 64 << 20  # tokenizers are the largest texts: 2 to 20 MB
MOST_DEPTH = 64  # of objects and arrays in each other; a tokenizer's are 6 deep
MOST_NUMBER = 1 << 64  # of a whole number: seeds and sizes are less
# How a file is opened that may be a pipe, without waiting for whoever writes into it.
NO_WAITING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
SURROGATES = range(0xD800, 0xE000)

T = TypeVar("T")
Failure = Callable[[str], FourstepError]


def file_digest(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def open_regular(file: Path) -> io.BufferedReader:
    """Open a file that is one, to be read; raises OSError.

    Of a pipe nothing is awaited, and of a device nothing is read: neither ends.
    """
    handle = os.open(file, os.O_RDONLY | NO_WAITING)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is a folder, a pipe or a device, no file")
    return io.BufferedReader(io.FileIO(handle))


def begins_with(file: Path, start: bytes) -> bool:
    """Whether these are the first bytes of a file."""
    with file.open("rb") as stream:
        return stream.read(len(start)) == start


def reason_of(error: BaseException) -> str:
    """What an error says, on one line; for an OSError without the file's name, which is said."""
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(said).split())


def read_text(file: Path, failure: Failure = InputError, most_bytes: int = MOST_TEXT_BYTES) -> str:
    """A file's text, which must be UTF-8; raises ``failure`` naming the file.

    A byte order mark, which some editors of Windows write, is left out.
    """
    return parse_text(read_bytes(file, failure, most_bytes), file, failure, most_bytes)


def read_bytes(
    file: Path, failure: Failure = InputError, most_bytes: int = MOST_TEXT_BYTES
) -> bytes:
    """What is in a file that is not larger than that; raises ``failure`` naming the file."""
    try:
        with file.open("rb") as stream:
            content = stream.read(most_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a zero character in the path
        raise failure(f"{file}: cannot be read: {reason_of(error)}") from None
    if len(content) > most_bytes:
        raise failure(f"{file}: is larger than {most_bytes / 1e6:,.0f} MB")
    return content


def parse_text(
    content: bytes, where: object, failure: Failure = InputError, most_bytes: int = MOST_TEXT_BYTES
) -> str:
    """The text of bytes, lines ended by a line feed alone; raises ``failure`` naming ``where``."""
    if len(content) > most_bytes:
        raise failure(f"{where}: is larger than {most_bytes / 1e6:,.0f} MB")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise failure(f"{where}: not UTF-8 text (byte {error.start})") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_json(
    text: str, where: object, failure: Failure = InputError, unique: bool = False
) -> Any:
    """A JSON value whose numbers, strings and nesting are within limits; raises ``failure``.

    Args:
        unique: refuse an object that has a key twice, of which readers take one or the other.
    """
    pairs = _without_duplicates if unique else None
    try:
        value = json.loads(text, parse_constant=_no_constant, object_pairs_hook=pairs)
        _check(value)
    except RecursionError:
        raise failure(f"{where}: not valid JSON: nested more than {MOST_DEPTH} deep") from None
    except ValueError as error:
        raise failure(f"{where}: not valid JSON: {error}") from None
    return value


def read_json(file: Path, failure: Failure = InputError) -> dict[str, Any]:
    """A JSON object; raises ``failure`` naming the file and the line."""
    value = parse_json(read_text(file, failure), file, failure)
    if not isinstance(value, dict):
        raise failure(f"{file}: a JSON object is expected")
    return value


def convert(raw: Any, kind: type[T], where: object, failure: Failure = InputError) -> T:
    """A record (a dataclass) from parsed JSON; raises ``failure`` for keys or types it has not.

    Keys that the record does not know are passed over.
    """
    import msgspec

    try:
        return msgspec.convert(raw, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise failure(f"{where}: {reason_of(error)}") from None


def parse_toml(text: str, where: object) -> dict[str, Any]:
    """TOML tables whose numbers, strings and nesting are within limits; raises InputError."""
    try:
        value = tomllib.loads(text)
        _check(value)
    except RecursionError:
        raise InputError(f"{where}: not valid TOML: nested more than {MOST_DEPTH} deep") from None
    except ValueError as error:
        hint = "; write a path of Windows in single quotes: 'C:\\folder'" if "\\" in text else ""
        told = hint if "escape" in str(error) or "hex" in str(error) else ""
        raise InputError(f"{where}: not valid TOML: {error}{told}") from None
    return value


@contextmanager
def panics_as(failure: Callable[[str], Exception]) -> Iterator[None]:
    """What a library raises inside, its panics too, becomes ``failure`` of what it said.

    Libraries written in Rust raise PanicException for their own defects, which a hostile file can
    reach; it is no Exception, so that ``except Exception`` would let it through.
    """
    try:
        yield
    except (FourstepError, MemoryError):
        raise
    except Exception as error:
        tell_wish()
        raise failure(reason_of(error)) from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        tell_wish()
        raise failure(f"the library gave up: {reason_of(error)}") from None


def is_text(value: str) -> bool:
    """Whether a string can be written as UTF-8: whether it is free of lone surrogates."""
    return value.isascii() or not any(ord(character) in SURROGATES for character in value)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise ValueError(f"the key {twice[:40]!r} is there twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _check(value: object) -> None:
    """Raise ValueError for what no file of ours holds, and what others' readers stumble over."""
    level, depth = [value], 0
    while level:
        if depth > MOST_DEPTH:
            raise ValueError(f"nested more than {MOST_DEPTH} deep")
        below: list[object] = []
        for item in level:
            if isinstance(item, Mapping):
                below += [*item.keys(), *item.values()]
            elif isinstance(item, list):
                below += item
            elif isinstance(item, str):
                if not is_text(item):
                    raise ValueError(f"{item[:40]!r} holds half of a surrogate pair")
            elif isinstance(item, int) and abs(item) > MOST_NUMBER:
                raise ValueError(f"a number of {item.bit_length()} bits")
            elif isinstance(item, float) and not abs(item) < float("inf"):
                raise ValueError(f"{item} is not a number")
        level, depth = below, depth + 1

"""Protocol buffers read field by field, within limits, without a library and without a schema."""

from __future__ import annotations

from collections.abc import Iterator

VARINT, EIGHT_BYTES, DELIMITED, FOUR_BYTES = 0, 1, 2, 5
MOST_FIELDS = 2_000_000  # of a file: a second's work
LONGEST_VARINT = 10  # bytes
Field = tuple[int, int, "int | memoryview"]


class Wire:
    """Reads the fields of messages; all that one object reads counts against one limit."""

    def __init__(self) -> None:
        self._left = MOST_FIELDS

    def fields(self, message: memoryview) -> Iterator[Field]:
        """Number, wire type and value of each field; numbers of 4 and 8 bytes as they lie there.

        Raises ValueError for what is no such message, and for more fields than are read of a file.
        """
        at, end = 0, len(message)
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise ValueError(f"more than {MOST_FIELDS:,} fields")
            key, at = _varint(message, at)
            number, kind = key >> 3, key & 7
            if number == 0:
                raise ValueError("a field without a number")
            if kind == VARINT:
                value, at = _varint(message, at)
                yield number, kind, value
                continue
            size = {EIGHT_BYTES: 8, FOUR_BYTES: 4}.get(kind)
            if kind == DELIMITED:
                size, at = _varint(message, at)
            if size is None or size > end - at:
                raise ValueError("a field that ends behind its message, or of no known type")
            yield number, kind, message[at : at + size]
            at += size

    def packed(self, kind: int, value: int | memoryview) -> list[int]:
        """The numbers of a repeated field of varints, which may lie in one piece."""
        if kind == VARINT and isinstance(value, int):
            return [value]
        if kind != DELIMITED or isinstance(value, int):
            raise ValueError("no list of numbers")
        found, at = [], 0
        while at < len(value):
            self._left -= 1
            if self._left < 0:
                raise ValueError(f"more than {MOST_FIELDS:,} fields")
            number, at = _varint(value, at)
            found.append(number)
        return found


def text_of(value: int | memoryview) -> str:
    """A field that is text; raises ValueError for another."""
    if isinstance(value, int):
        raise ValueError("a number where text belongs")
    return bytes(value).decode()  # UnicodeDecodeError is a ValueError


def message_of(value: int | memoryview) -> memoryview:
    """A field that is a message; raises ValueError for another."""
    if isinstance(value, int):
        raise ValueError("a number where a message belongs")
    return value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number and where the next field begins."""
    if at < len(message) and (small := message[at]) < 0x80:  # as nearly all are
        return small, at + 1
    found = 0
    for i in range(LONGEST_VARINT):
        if at + i >= len(message):
            raise ValueError("it ends in the middle of a field")
        byte = message[at + i]
        found |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return found, at + i + 1
    raise ValueError("a number that does not end")

"""A file as what differs from another: what graphs of further sizes are kept as.

The same operators for other shapes make files that differ in a few numbers. Differences are edits
in the order of the file: so many bytes of the base that stay, so many left out, so many new
ones, which follow. Nothing of the base is used twice, so what they make is never longer than both
files together, whatever they say.
"""

from __future__ import annotations

SUFFIX = ".diff"
ALIKE_BYTES = 16  # that files have to have in common to go on together behind a difference
FAR_BYTES = 1 << 15  # how far ahead that is looked for
LONGEST_NUMBER = 5  # bytes of a count
SAME = 4096  # bytes that are compared at once


def differences(content: bytes, base: bytes) -> bytes:
    """What makes ``content`` of a base."""
    edits = bytearray()
    at_base = at = 0
    while at < len(content) or at_base < len(base):
        kept = _alike(base, at_base, content, at)
        at_base, at = at_base + kept, at + kept
        left, new = _until_alike(base, at_base, content, at)
        for count in (kept, left, new):
            edits += _number(count)
        edits += content[at : at + new]
        at_base, at = at_base + left, at + new
    return bytes(edits)


def applied(edits: bytes | memoryview, base: bytes | memoryview) -> bytes:
    """What edits make of a base; raises ValueError for edits that are not of this base."""
    edits, base = memoryview(edits), memoryview(base)
    content = bytearray()
    at = at_base = 0
    while at < len(edits):
        kept, at = _read_number(edits, at)
        left, at = _read_number(edits, at)
        new, at = _read_number(edits, at)
        if kept + left > len(base) - at_base or new > len(edits) - at:
            raise ValueError("differences that are not of this file")
        content += base[at_base : at_base + kept]
        content += edits[at : at + new]
        at_base, at = at_base + kept + left, at + new
    if at_base != len(base):
        raise ValueError("differences that are not of this file")
    return bytes(content)


def _alike(a: bytes, i: int, b: bytes, j: int) -> int:
    """How many bytes are the same from two places on."""
    count = 0
    while (size := min(SAME, len(a) - i - count, len(b) - j - count)) > 0:
        left, right = a[i + count : i + count + size], b[j + count : j + count + size]
        if left != right:
            return count + next(k for k in range(size) if left[k] != right[k])
        count += size
    return count


def _until_alike(a: bytes, i: int, b: bytes, j: int) -> tuple[int, int]:
    """How many bytes to leave out of both until they go on together: as few as they can be in all;
    as far as was looked if they do not."""
    found = min(len(a) - i, FAR_BYTES), min(len(b) - j, FAR_BYTES)
    for new in range(found[1] - ALIKE_BYTES + 1):
        most = sum(found) - new  # in the base, to leave fewer out than so far
        if most <= 0:
            break
        place = a.find(b[j + new : j + new + ALIKE_BYTES], i, i + most + ALIKE_BYTES - 1)
        if place >= 0:
            found = place - i, new
    return found


def _number(value: int) -> bytes:
    """Seven bits to a byte, the lowest first; a byte that is not the last has its highest bit."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _read_number(edits: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for place, byte in enumerate(edits[at : at + LONGEST_NUMBER]):
        value |= (byte & 0x7F) << 7 * place
        if byte <= 0x7F:
            return value, at + place + 1
    raise ValueError("differences that end in a number")

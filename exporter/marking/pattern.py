"""The pattern of a mark: a sign for each chip of a tile, which the key and the payload decide.

A chip is a square of ``CHIP_PX`` pixels, a tile ``TILE_CHIPS`` of them each way; a picture is laid
out with tiles from its top left corner. The payload's four bytes and their exclusive or are five
symbols of eight bits. Every chip belongs to one symbol, neighbours to different ones, and the key
gives it a random sign for each value of its symbol. So the signs of any one payload are
independent fair coins to whoever has no key: what ``read`` computes its probabilities from.
"""

from __future__ import annotations

import functools
import hashlib
import re

import numpy as np

from exporter.errors import InputError
from exporter.marking.key import MarkKey

SCHEME = "fourstep-1"  # what this module, ``embed`` and ``read`` say
CHIP_PX = 4
TILE_CHIPS = 32
TILE_PX = CHIP_PX * TILE_CHIPS
SYMBOLS = 5  # four bytes of payload, and their exclusive or
VALUES = 256  # of a symbol
PAYLOAD_BITS = 32
LEAST_PX = 64  # a picture's side; fewer chips than 256 cannot carry so many bits

_ROWS, _COLUMNS = np.mgrid[:TILE_CHIPS, :TILE_CHIPS]
SYMBOL_OF_CHIP: np.ndarray = (_ROWS + 2 * _COLUMNS) % SYMBOLS  # a chip and its four: all five


def parse_payload(given: object, where: str) -> int:
    """32 bits from a whole number or from up to 8 hexadecimal digits; raises InputError."""
    if isinstance(given, str) and re.fullmatch("(0[xX])?[0-9a-fA-F]{1,8}", given):
        return int(given, 16)
    if type(given) is int and 0 <= given < 1 << PAYLOAD_BITS:
        return given
    raise InputError(
        f"{where} = {given!r}: {PAYLOAD_BITS} bits are expected: up to 8 hexadecimal digits such "
        "as '1a2b3c4d', or a whole number from 0 to 4294967295"
    )


def payload_text(payload: int) -> str:
    """8 hexadecimal digits."""
    return f"{payload:08x}"


@functools.lru_cache(maxsize=4)
def signs(key: MarkKey) -> np.ndarray:
    """(256, 32, 32) int8 of -1 and 1: each chip's sign for each value of its symbol."""
    count = VALUES * TILE_CHIPS**2
    drawn = hashlib.shake_256(b"fourstep mark signs 1" + key.secret).digest(count // 8)
    bits = np.unpackbits(np.frombuffer(drawn, np.uint8))
    found: np.ndarray = (bits.astype(np.int8) * 2 - 1).reshape(VALUES, TILE_CHIPS, TILE_CHIPS)
    found.flags.writeable = False
    return found


def symbols(payload: int) -> np.ndarray:
    """(5,) of a payload."""
    parts = payload.to_bytes(4, "big")
    return np.array([*parts, functools.reduce(int.__xor__, parts)])


def tile(key: MarkKey, payload: int) -> np.ndarray:
    """(32, 32) int8: the signs of one payload, all that a package holds of its key."""
    values = symbols(payload)[SYMBOL_OF_CHIP]
    return np.asarray(np.take_along_axis(signs(key), values[None], 0)[0])


def laid_out(signs_of_tile: np.ndarray, height_px: int, width_px: int) -> np.ndarray:
    """(H / 4, W / 4): a tile repeated over a picture whose sides are multiples of 4."""
    shape = (height_px // CHIP_PX, width_px // CHIP_PX)
    times = [-(-side // TILE_CHIPS) for side in shape]
    return np.tile(signs_of_tile, times)[: shape[0], : shape[1]]


def refuse_small(height_px: int, width_px: int, where: str) -> None:
    """Raise InputError for a picture that is too small to carry a mark."""
    if min(height_px, width_px) < LEAST_PX:
        raise InputError(
            f"{where}: a picture of {width_px} x {height_px} px is too small to carry a mark; both "
            f"sides must be at least {LEAST_PX} px"
        )

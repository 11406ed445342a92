"""Codes of 2 and 4 bits in bytes, and scales in the narrowest type that holds them."""

from __future__ import annotations

import numpy as np

PACKED_AT_ONCE = 1 << 18  # bytes: what a core's cache holds


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes of 2 or 4 bits, of any shape, in bytes: the first in the low bits, 0 after the last."""
    in_byte = 8 // bits
    flat = np.ascontiguousarray(codes).reshape(-1).view(np.uint8)
    flat = np.pad(flat, (0, -flat.size % in_byte)) if flat.size % in_byte else flat
    words = flat.view(f"<u{in_byte}")  # of the codes of one byte
    mask = np.full(in_byte, (1 << bits) - 1, np.uint8).view(words.dtype)
    packed = np.empty(len(words), np.uint8)
    for first in range(0, len(words), PACKED_AT_ONCE):
        part = words[first : first + PACKED_AT_ONCE] & mask
        out = packed[first : first + PACKED_AT_ONCE]
        out[:] = part
        for place in range(1, in_byte):
            out |= (part >> (place * (8 - bits))).astype(np.uint8)
    return packed


def narrowed(scale: np.ndarray) -> np.ndarray:
    """Scales in fp16 if it holds every one of them exactly, else as they are."""
    with np.errstate(over="ignore"):
        half = scale.astype(np.float16)
    return half if np.array_equal(half.astype(scale.dtype), scale) else scale

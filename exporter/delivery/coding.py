"""Bytes as they are stored: zstd where it pays, and against older bytes in a delta.

A frame of zstd is read up to the size that is stated and no further, with a window that is bounded:
nothing that is stored can ask for more memory.
"""

from __future__ import annotations

import io
from types import ModuleType
from typing import Any, Literal

import numpy as np

from exporter.errors import needs_extra
from exporter.files.read import reason_of

LEVEL = 9  # of zstd: weights get no smaller above 3, graphs' texts a tenth
THOROUGH = 19  # for what is against older bytes: a seventh smaller than at 9
WINDOW_LOG = 23  # 8 MiB: a chunk and as much of a prefix
TABLES_LOG = 20  # of the thorough level, whose own take 80 MB and make frames 1 % smaller
PAYS = 0.97  # what is stored must be smaller than this part of the bytes
READ_BYTES = 1 << 20


class Undecodable(ValueError):
    """Stored bytes that are not what they should be."""


def library() -> ModuleType:
    """The ``zstandard`` module; raises InputError that says how to install it."""
    try:
        import zstandard
    except ImportError:
        raise needs_extra("stores", "zstandard") from None
    return zstandard


def version() -> str:
    """Of what decides the bytes of a frame."""
    return f"zstandard {library().__version__} levels {LEVEL} {THOROUGH}"


def compress(data: bytes, prefix: bytes = b"", level: int = LEVEL) -> bytes:
    """A frame of zstd, of the same bytes wherever it is made."""
    zstd = library()
    tables = {"chain_log": TABLES_LOG, "hash_log": TABLES_LOG} if level == THOROUGH else {}
    parameters = zstd.ZstdCompressionParameters.from_level(
        level, window_log=WINDOW_LOG, write_checksum=False, write_content_size=True, **tables
    )
    known = _prefix(zstd, prefix)
    made: bytes = zstd.ZstdCompressor(compression_params=parameters, dict_data=known).compress(data)
    return made


def decompress(frame: bytes, size_bytes: int, prefix: bytes = b"") -> bytes:
    """What is in a frame, which must be so many bytes; raises Undecodable."""
    data = decompress_some(frame, size_bytes, prefix)
    if len(data) != size_bytes:
        raise Undecodable(f"holds {len(data)} bytes where {size_bytes} are stated")
    return data


def decompress_some(frame: bytes, most_bytes: int, prefix: bytes = b"") -> bytes:
    """What is in a frame; raises Undecodable for one that expands to more than ``most_bytes``."""
    zstd = library()
    known = _prefix(zstd, prefix)
    reader = zstd.ZstdDecompressor(dict_data=known, max_window_size=1 << WINDOW_LOG).stream_reader(
        io.BytesIO(frame), closefd=False
    )
    found = bytearray()
    try:
        while piece := reader.read(min(READ_BYTES, most_bytes + 1 - len(found))):
            found += piece
    except zstd.ZstdError as error:
        raise Undecodable(f"no frame of zstd: {reason_of(error)}") from None
    if len(found) > most_bytes:
        raise Undecodable(f"would expand beyond {most_bytes} bytes")
    return bytes(found)


def _prefix(zstd: ModuleType, prefix: bytes) -> Any:
    """What a frame may refer to before its start, or None."""
    return zstd.ZstdCompressionDict(prefix, dict_type=zstd.DICT_TYPE_RAWCONTENT) if prefix else None


def shortest(data: bytes) -> tuple[Literal["raw", "zstd"], bytes]:
    """``zstd`` and a frame where that pays, else ``raw`` and the bytes themselves."""
    frame = compress(data)
    return ("zstd", frame) if len(frame) < PAYS * len(data) else ("raw", data)


def subtracted(data: bytes, base: bytes, stride: int) -> bytes:
    """The bytes minus as many of ``base``, modulo 256, gathered by place modulo ``stride``."""
    change = np.frombuffer(data, np.uint8) - np.frombuffer(base, np.uint8)
    return b"".join(change[k::stride].tobytes() for k in range(stride))


def added(gathered: bytes, base: bytes, stride: int) -> bytes:
    """What ``subtracted`` was made of; as many bytes as ``base``."""
    change = np.empty(len(gathered), np.uint8)
    flat, at = np.frombuffer(gathered, np.uint8), 0
    for k in range(stride):
        part = change[k::stride]
        part[:] = flat[at : at + len(part)]
        at += len(part)
    data: bytes = (change + np.frombuffer(base, np.uint8)).tobytes()
    return data

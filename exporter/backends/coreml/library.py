"""The one door to coremltools: Apple's message types, and the reader and writer of its blob file.

coremltools is imported inside functions, because it takes seconds, and silently, because it speaks
of everything that it misses on this platform.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

BLOB_ALIGN_BYTES = 64  # headers and data of weight.bin
BLOB_SENTINEL = 0xDEADBEEF  # first word of a blob's header


@dataclass(frozen=True)
class Element:
    """An element type of an ML Program.

    Attributes:
        bits: bits per value where values are packed.
        array: numpy type of the unpacked values.
        blob: its number in a blob's header; 0 where blobs cannot hold it.
        verb: the middle of ``read_<verb>_data`` and ``write_<verb>_data``.
    """

    bits: int
    array: type[np.generic]
    blob: int = 0
    verb: str = ""


# Named as in MIL.proto, lower case; "fp" for "float" as in the programs' own strings.
ELEMENTS = {
    "bool": Element(8, np.bool_),
    "fp16": Element(16, np.float16, 1, "fp16"),
    "fp32": Element(32, np.float32, 2, "float"),
    "fp64": Element(64, np.float64),
    "uint8": Element(8, np.uint8, 3, "uint8"),
    "int8": Element(8, np.int8, 4, "int8"),
    "int16": Element(16, np.int16, 6, "int16"),
    "uint16": Element(16, np.uint16, 7, "uint16"),
    "int4": Element(4, np.int8, 8, "int4"),
    "uint1": Element(1, np.uint8, 9, "uint1"),
    "uint2": Element(2, np.uint8, 10, "uint2"),
    "uint4": Element(4, np.uint8, 11, "uint4"),
    "uint3": Element(3, np.uint8, 12, "uint3"),
    "uint6": Element(6, np.uint8, 13, "uint6"),
    "int32": Element(32, np.int32, 14, "int32"),
    "uint32": Element(32, np.uint32, 15, "uint32"),
    "int64": Element(64, np.int64),
    "uint64": Element(64, np.uint64),
}


@contextmanager
def quiet() -> Iterator[None]:
    """Let coremltools neither log nor warn."""
    logger = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _module(name: str) -> Any:
    with quiet():
        return importlib.import_module(name)


def coremltools() -> Any:
    """The library itself."""
    return _module("coremltools")


def model_messages() -> Any:
    """``Model_pb2``: the message types of a model specification."""
    return _module("coremltools.proto.Model_pb2")


def program_messages() -> Any:
    """``MIL_pb2``: the message types of an ML Program."""
    return _module("coremltools.proto.MIL_pb2")


def blob_reader(file: Path) -> Any:
    """Apple's reader of a weight file: ``read_<verb>_data(offset)`` -> flat numpy array.

    fp16 comes as uint16, packed types as one value a byte. Raises RuntimeError and ValueError.
    """
    return _module("coremltools.libmilstoragepython")._BlobStorageReader(str(file))


def blob_writer(file: Path) -> Any:
    """Apple's writer of a weight file: ``write_<verb>_data(flat array)`` -> offset.

    The file is complete when the writer is deleted.
    """
    return _module("coremltools.libmilstoragepython")._BlobStorageWriter(str(file))


def data_types() -> dict[str, int]:
    """Numbers of MIL's data types, by the names used here."""
    kinds = dict(program_messages().DataType.items())
    return {key.lower().replace("float", "fp"): number for key, number in kinds.items()}

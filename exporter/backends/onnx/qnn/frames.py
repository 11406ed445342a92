"""What processes tell each other over pipes: a line of JSON, and arrays behind it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import IO, Any

import numpy as np

from exporter.errors import CheckFailed
from exporter.files.read import parse_json


def send(stream: IO[bytes], said: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write one message."""
    listed = [[name, value.dtype.str, value.shape] for name, value in arrays.items()]
    stream.write(json.dumps({**said, "arrays": listed}).encode() + b"\n")
    for value in arrays.values():
        stream.write(np.ascontiguousarray(value).tobytes())
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """Read one message; None when the other process has ended."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        return None
    said = parse_json(line.decode(), "what another process says", CheckFailed)
    arrays = {}
    for name, kind, shape in said.pop("arrays"):
        dtype = np.dtype(kind)
        data = stream.read(math.prod(shape) * dtype.itemsize)
        if len(data) < math.prod(shape) * dtype.itemsize:
            return None
        arrays[name] = np.frombuffer(data, dtype).reshape(shape)
    return said, arrays

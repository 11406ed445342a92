"""Reading safetensors: headers, and tensors as numpy or torch have them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load

from exporter.errors import InputError
from exporter.files.read import Failure, panics_as

Framework = Literal["numpy", "pt"]
REMEDY = "copy it again"
DAMAGED = "not a whole safetensors file"


@dataclass(frozen=True)
class TensorInfo:
    """Where one stored tensor lies: file, shape and dtype as safetensors writes it (``BF16``)."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


@contextmanager
def opened(
    file: Path, framework: Framework, failure: Failure = InputError, remedy: str = REMEDY
) -> Iterator[Any]:
    """A safetensors file, mapped; what goes wrong inside raises ``failure`` naming the file.

    Args:
        framework: ``numpy`` or ``pt``, which imports torch.
        remedy: what to do about a damaged file.
    """
    with panics_as(lambda said: failure(f"{file}: {DAMAGED} ({said}); {remedy}")):
        yield safe_open(file, framework=framework)


def open_tensors(file: Path, framework: Framework, failure: Failure = InputError) -> Any:
    """A safetensors file that stays mapped for as long as what is returned is kept."""
    with opened(file, framework, failure) as stream:
        return stream


def read_header(file: Path, failure: Failure = InputError) -> dict[str, TensorInfo]:
    """Every tensor's place by its name, without reading a value; raises ``failure``."""
    with opened(file, "numpy", failure) as stream:
        slices = {key: stream.get_slice(key) for key in stream.keys()}  # noqa: SIM118
        return {
            key: TensorInfo(file, tuple(part.get_shape()), part.get_dtype())
            for key, part in slices.items()
        }


def read_metadata(file: Path, failure: Failure = InputError) -> dict[str, str]:
    """The words that a file carries beside its tensors; raises ``failure``."""
    with opened(file, "numpy", failure) as stream:
        return dict(stream.metadata() or {})


def read_tensors(file: Path, failure: Failure = InputError, remedy: str = REMEDY) -> dict[str, Any]:
    """All tensors of a file as numpy arrays by name; raises ``failure``."""
    with opened(file, "numpy", failure, remedy) as stream:
        return {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118


def parse_tensors(
    content: bytes, where: object, failure: Failure = InputError, remedy: str = REMEDY
) -> dict[str, np.ndarray]:
    """The tensors of what was read from a file; raises ``failure`` naming it."""
    with panics_as(
        lambda said: failure(f"{where}: not a whole safetensors file ({said}); {remedy}")
    ):
        return dict(load(content))


def take(
    tensors: Mapping[str, np.ndarray], name: str, file: Path, failure: Failure = InputError
) -> np.ndarray:
    """One tensor by name; raises ``failure`` naming the file when it is not there."""
    try:
        return tensors[name]
    except KeyError:
        raise failure(f"{file}: tensor '{name}' is missing") from None

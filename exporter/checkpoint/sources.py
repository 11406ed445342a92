"""Where the values of a tensor come from: a file, and what has to be done to what it holds.

A network asks for tensors by the names that diffusers gives them. A layout answers with sources
under those names, whatever its file calls them: nothing is renamed, cut or widened before it is
read, and then one tensor at a time.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch

from exporter.files.tensors import TensorInfo, opened

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# What a stored type is computed with: bfloat16 holds every value of either 8-bit type.
WIDENED = {"F64": torch.float32, "F8_E4M3": torch.bfloat16, "F8_E5M2": torch.bfloat16}
FLOATS = (*DTYPES, "F8_E4M3", "F8_E5M2")


class TensorSource(Protocol):
    """One tensor of a component."""

    @property
    def file(self) -> Path:
        """Names it in an error."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> str:
        """As its file writes it (``BF16``)."""

    def read(self, rows: slice | None = None) -> torch.Tensor:
        """The values, or rows of axis 1 of them: float32, float16 or bfloat16."""

    def raw(self) -> Iterator[torch.Tensor]:
        """What the values are made of: decides what the tensor is, in whatever way it is stored."""


class Sliced(TensorSource, Protocol):
    """A tensor of a file, of which rows of axis 0 can be had without the others."""

    def between(self, first: int, last: int) -> TensorSource:
        """Rows ``first`` to before ``last`` of axis 0."""


@dataclass(frozen=True)
class Kept:
    """A tensor of a safetensors file, or rows of axis 0 of it.

    Attributes:
        key: its name in the file.
        info: the file, shape and dtype.
        span: the first row and the one after the last; None: all.
    """

    key: str
    info: TensorInfo
    span: tuple[int, int] | None = None

    @property
    def file(self) -> Path:
        return self.info.file

    @property
    def shape(self) -> tuple[int, ...]:
        if self.span is None:
            return self.info.shape
        return (self.span[1] - self.span[0], *self.info.shape[1:])

    @property
    def dtype(self) -> str:
        return self.info.dtype

    def between(self, first: int, last: int) -> Kept:
        """Rows of axis 0, which are mapped as the whole is."""
        start = self.span[0] if self.span else 0
        return replace(self, span=(start + first, start + last))

    def read(self, rows: slice | None = None) -> torch.Tensor:
        """See ``TensorSource``; float64 is rounded to float32, 8-bit floats widen to bfloat16."""
        with opened(self.file, "pt") as file:
            if rows is None and self.span is None:
                value = file.get_tensor(self.key)
            else:
                part = (slice(*(self.span or (None,))), *((rows,) if rows else ()))
                value = file.get_slice(self.key)[part]
        value = value.to(WIDENED[self.dtype]) if self.dtype in WIDENED else value
        return value  # type: ignore[no-any-return]

    def raw(self) -> Iterator[torch.Tensor]:
        yield self.read()


@dataclass(frozen=True)
class Scaled:
    """A tensor that is stored divided by a factor: one, or one for each row of axis 0.

    The values are the product in float32.
    """

    stored: Kept
    scale: Kept

    dtype = "F32"

    @property
    def file(self) -> Path:
        return self.stored.file

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    def between(self, first: int, last: int) -> Scaled:
        each_row = math.prod(self.scale.shape) > 1
        scale = self.scale.between(first, last) if each_row else self.scale
        return Scaled(self.stored.between(first, last), scale)

    def read(self, rows: slice | None = None) -> torch.Tensor:
        value = self.stored.read(rows).float()
        scale = self.scale.read().float().reshape(-1, *[1] * (value.ndim - 1))
        return value * scale

    def raw(self) -> Iterator[torch.Tensor]:
        yield self.read()


@dataclass(frozen=True)
class Exchanged:
    """A tensor whose halves of axis 0 are stored in the other order."""

    stored: TensorSource

    @property
    def file(self) -> Path:
        return self.stored.file

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    @property
    def dtype(self) -> str:
        return self.stored.dtype

    def read(self, rows: slice | None = None) -> torch.Tensor:
        first, second = self.stored.read(rows).chunk(2)
        return torch.cat((second, first))

    def raw(self) -> Iterator[torch.Tensor]:
        yield self.read()


@dataclass(frozen=True)
class Reshaped:
    """The values of a tensor in another shape."""

    stored: TensorSource
    shape: tuple[int, ...]

    @property
    def file(self) -> Path:
        return self.stored.file

    @property
    def dtype(self) -> str:
        return self.stored.dtype

    def read(self, rows: slice | None = None) -> torch.Tensor:
        value = self.stored.read().reshape(self.shape)
        return value if rows is None else value[:, rows]

    def raw(self) -> Iterator[torch.Tensor]:
        yield self.read()


@dataclass(frozen=True)
class LeftOut:
    """The matrix that changes nothing, which a file leaves out: (width, width)."""

    file: Path
    width: int
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.width, self.width)

    def read(self, rows: slice | None = None) -> torch.Tensor:
        value = torch.eye(self.width, dtype=DTYPES[self.dtype])
        return value if rows is None else value[:, rows]

    def raw(self) -> Iterator[torch.Tensor]:
        yield self.read()


def digest_of(tensors: Iterable[torch.Tensor]) -> str:
    """SHA-256 over the dtypes, shapes and bytes of tensors, in this order."""
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()

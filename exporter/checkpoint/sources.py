"""Where the values of a tensor come from: a file, and what has to be done to what it holds.

A network asks for tensors by the names that diffusers gives them. A layout answers with sources
under those names, whatever its file calls them: nothing is renamed, cut or widened before it is
read, and then one tensor at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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
        """What the values are made of, as it is stored: decides what the tensor is."""


@dataclass(frozen=True)
class Kept:
    """A tensor of a safetensors file as it is.

    Attributes:
        key: its name in the file.
        info: the file, shape and dtype.
    """

    key: str
    info: TensorInfo

    @property
    def file(self) -> Path:
        return self.info.file

    @property
    def shape(self) -> tuple[int, ...]:
        return self.info.shape

    @property
    def dtype(self) -> str:
        return self.info.dtype

    def read(self, rows: slice | None = None) -> torch.Tensor:
        """See ``TensorSource``; float64 is rounded to float32, 8-bit floats widen to bfloat16."""
        value = self._stored(rows)
        return value.to(WIDENED[self.dtype]) if self.dtype in WIDENED else value

    def raw(self) -> Iterator[torch.Tensor]:
        yield self._stored(None)

    def _stored(self, rows: slice | None) -> torch.Tensor:
        with opened(self.file, "pt") as file:
            if rows is None:
                return file.get_tensor(self.key)  # type: ignore[no-any-return]
            return file.get_slice(self.key)[:, rows]  # type: ignore[no-any-return]


def digest_of(tensors: Iterable[torch.Tensor]) -> str:
    """SHA-256 over the dtypes, shapes and bytes of tensors, in this order."""
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()

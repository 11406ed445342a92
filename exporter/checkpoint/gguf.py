"""GGUF: a header that says where each tensor lies, and blocks of integers with scales.

The header is read here, within bounds: the library's reader believes whatever length a file claims.
What the blocks stand for is the library's to say (``gguf.quants.dequantize``).
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exporter.errors import InputError, known, needs_extra
from exporter.files.read import panics_as

MAGIC = b"GGUF"
VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # of scalars, bytes
MOST_AXES, MOST_VALUES = 4, 1 << 40
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
# Of the files that hold what is read; without a name: stable-diffusion.cpp's.
ARCHITECTURES = ("sd3", "t5", "t5encoder", "pig", "cow", "")
ALIGNMENT = 32  # bytes, where the header names none


@dataclass(frozen=True)
class Blocks:
    """A tensor of a GGUF file, or rows of axis 0 of it.

    Attributes:
        key: its name in the file.
        kind: the library's name for how it is stored (``Q8_0``).
        number: the library's number of that kind.
        shape: of the values; the file has it in the other order.
        offset: of its first byte in the file.
        row_bytes: of one row of axis 0.
    """

    file: Path
    key: str
    kind: str
    number: int
    shape: tuple[int, ...]
    offset: int
    row_bytes: int

    @property
    def dtype(self) -> str:
        """What it is read as: blocks give float32."""
        return self.kind if self.kind in ("F16", "BF16") else "F32"

    def between(self, first: int, last: int) -> Blocks:
        """Rows of axis 0, which lie together."""
        return Blocks(
            self.file,
            self.key,
            self.kind,
            self.number,
            (last - first, *self.shape[1:]),
            self.offset + first * self.row_bytes,
            self.row_bytes,
        )

    def read(self, rows: slice | None = None) -> torch.Tensor:
        """See ``TensorSource``: plain types are mapped, blocks are computed."""
        with panics_as(lambda said: InputError(f"{self.file}: cannot be read: {said}")):
            size_bytes = self.shape[0] * self.row_bytes
            stored = np.memmap(self.file, np.uint8, "c", self.offset, (size_bytes,))
            if self.kind in PLAIN:
                value = torch.from_numpy(stored).view(PLAIN[self.kind])
                value = value.float() if self.kind == "F64" else value
            else:
                from gguf import GGMLQuantizationType
                from gguf.quants import dequantize

                by_row = stored.reshape(math.prod(self.shape[:-1]), -1)
                value = torch.from_numpy(dequantize(by_row, GGMLQuantizationType(self.number)))
        value = value.reshape(self.shape)
        return value if rows is None else value[:, rows]

    def raw(self) -> Iterator[torch.Tensor]:
        yield self.read()


def read_gguf(file: Path) -> dict[str, Blocks]:
    """Where each tensor of a GGUF file lies, by its name in it.

    Raises InputError for a file that is cut or damaged, of another architecture, or with tensors
    that the library cannot turn into numbers.
    """
    sizes = _block_sizes()

    def damaged(said: str) -> InputError:
        return InputError(f"{file}: not a whole GGUF file ({said}); copy it again")

    with panics_as(damaged), file.open("rb") as stream:
        size_bytes = file.stat().st_size
        if size_bytes < len(MAGIC):
            raise damaged("too short")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            header = _Header(content, damaged)
            architecture, listed, start = header.read()
    if architecture not in ARCHITECTURES:
        expected = known("architecture", architecture, [a for a in ARCHITECTURES if a])
        raise InputError(f"{file}: {expected}")
    found: dict[str, Blocks] = {}
    for key, axes, number, offset in listed:
        if key in found:
            raise damaged(f"tensor '{key}' is there twice")
        found[key] = _blocks(file, key, axes, number, start + offset, sizes, damaged)
        if found[key].offset + axes[0] * found[key].row_bytes > size_bytes:
            raise damaged(f"tensor '{key}' lies past its end")
    return found


def _blocks(
    file: Path,
    key: str,
    axes: tuple[int, ...],
    number: int,
    offset: int,
    sizes: dict[int, tuple[str, int, int]],
    damaged: Callable[[str], InputError],
) -> Blocks:
    if number not in sizes:
        raise InputError(
            f"{file}: tensor '{key}': {known('kind', number, [n for n, _, _ in sizes.values()])}"
        )
    kind, values, block_bytes = sizes[number]
    if axes[-1] % values:
        raise damaged(f"tensor '{key}' has rows of {axes[-1]} values in blocks of {values}")
    if kind not in PLAIN and len(axes) == 1:
        raise damaged(f"tensor '{key}' has one axis and is stored in blocks")
    row_bytes = math.prod(axes[1:]) // values * block_bytes if len(axes) > 1 else block_bytes
    return Blocks(file, key, kind, number, axes, offset, row_bytes)


def _block_sizes() -> dict[int, tuple[str, int, int]]:
    """Of each kind that can be read, by its number: name, values in a block, bytes of a block."""
    try:
        from gguf import GGML_QUANT_SIZES, quants
    except ImportError:
        raise needs_extra("build", "gguf") from None
    return {
        kind.value: (kind.name, *sizes)
        for kind, sizes in GGML_QUANT_SIZES.items()
        if kind.name in PLAIN or hasattr(quants, kind.name)
    }


class _Header:
    """Walks a GGUF header; what lies past its end is an error of ``damaged``'s."""

    def __init__(self, content: mmap.mmap, damaged: Callable[[str], InputError]) -> None:
        self.content, self.damaged, self.at = content, damaged, 0

    def read(self) -> tuple[str, list[tuple[str, tuple[int, ...], int, int]], int]:
        """The architecture, each tensor (name, axes, kind, offset), where the data begins."""
        if self._bytes(4) != MAGIC:
            raise self.damaged("it does not begin with GGUF")
        version = self._number("I")
        if version not in VERSIONS:
            raise self.damaged(f"version {version}; known: {', '.join(map(str, VERSIONS))}")
        tensors, entries = self._number("Q"), self._number("Q")
        said = dict(self._entry() for _ in range(self._count(entries, 13)))
        listed = [self._tensor() for _ in range(self._count(tensors, 24))]
        alignment = said.get("general.alignment", ALIGNMENT)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise self.damaged("its alignment is no power of two")
        start = -(-self.at // alignment) * alignment
        return str(said.get("general.architecture", "")), listed, start

    def _entry(self) -> tuple[str, Any]:
        """One entry: its key, and its value if that is text or a 32-bit number."""
        key, kind = self._text(), self._number("I")
        if kind == STRING:
            return key, self._text()
        if kind == 4:
            return key, self._number("I")
        if kind == ARRAY:
            self._pass_array()
        else:
            self._bytes(self._width(kind))
        return key, None

    def _pass_array(self) -> None:
        kind, count = self._number("I"), self._number("Q")
        if kind == STRING:
            for _ in range(self._count(count, 8)):
                self._pass(self._number("Q"))
        else:
            self._pass(self._count(count, self._width(kind)) * self._width(kind))

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        key, count = self._text(), self._number("I")
        if not 1 <= count <= MOST_AXES:
            raise self.damaged(f"tensor '{key}' has {count} axes")
        axes = tuple(self._number("Q") for _ in range(count))[::-1]
        if not 0 < math.prod(axes) < MOST_VALUES:
            raise self.damaged(f"tensor '{key}' has shape {list(axes)}")
        return key, axes, self._number("I"), self._number("Q")

    def _width(self, kind: int) -> int:
        if kind not in WIDTHS:
            raise self.damaged(f"a value of unknown kind {kind}")
        return WIDTHS[kind]

    def _count(self, count: int, least_bytes: int) -> int:
        """How many follow, of at least so many bytes each; raises when they cannot be there."""
        if count * least_bytes > len(self.content) - self.at:
            raise self.damaged("it ends within its header")
        return count

    def _pass(self, count: int) -> None:
        self.at += self._count(count, 1)

    def _bytes(self, count: int) -> bytes:
        start = self.at
        self._pass(count)
        return self.content[start : self.at]

    def _number(self, form: str) -> int:
        return int(struct.unpack(f"<{form}", self._bytes(struct.calcsize(f"<{form}")))[0])

    def _text(self) -> str:
        return self._bytes(self._number("Q")).decode("utf-8", "replace")

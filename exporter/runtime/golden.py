"""What a package keeps to compare with: tensors and pictures, as their digests say."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping

import numpy as np

from exporter.errors import CheckFailed
from exporter.files.pictures import parse_picture
from exporter.files.tensors import parse_tensors
from exporter.package.manifest import Golden
from exporter.runtime.package import Package

REMEDY = "build the package again"


class Tensors(Mapping[str, np.ndarray]):
    """The tensors of a file by name; raises CheckFailed for one that it has not."""

    def __init__(self, file: str, found: Mapping[str, np.ndarray]) -> None:
        self._file, self._found = file, found

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._found:
            raise CheckFailed(f"{self._file}: tensor '{name}' is missing; {REMEDY}")
        return self._found[name]

    def __contains__(self, name: object) -> bool:
        return name in self._found

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


def read_tensors(package: Package, path: str) -> Tensors:
    """A safetensors file of a package; raises CheckFailed when it is none."""
    where = package.folder / path
    return Tensors(str(where), parse_tensors(package.read(path), where, CheckFailed, REMEDY))


def picture_tensors(package: Package, golden: Golden) -> Tensors:
    """Those of a golden picture, with what a further size has as the first one."""
    own = read_tensors(package, golden.tensors)
    if not golden.like:
        return own
    first = read_tensors(package, golden.like)
    copies = {name: own[other] for name, other in golden.same.items()}
    return Tensors(str(package.folder / golden.tensors), {**first, **own, **copies})


def golden_pixels(package: Package, path: str) -> np.ndarray:
    """(H, W, 3) uint8 of a picture of the package's size; raises CheckFailed when it is none."""
    entry, where = package.manifest.picture, package.folder / path
    pixels = parse_picture(io.BytesIO(package.read(path)), where, CheckFailed)
    if pixels.shape != (entry.height_px, entry.width_px, 3):
        raise CheckFailed(
            f"{where}: {pixels.shape[1]} x {pixels.shape[0]} px; the manifest says "
            f"{entry.width_px} x {entry.height_px} px; {REMEDY}"
        )
    return pixels

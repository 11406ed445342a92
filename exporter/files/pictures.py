"""Reading and writing pictures with Pillow: of a limited size, and whole or not at all."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np

from exporter.errors import InputError
from exporter.files.read import Failure, panics_as
from exporter.files.staging import unwritable, write_whole

FORMATS = (
    "PNG",
    "JPEG",
    "WEBP",
    "BMP",
    "GIF",
    "TIFF",
)  # Pillow's others start programs, or are odd
MOST_PX = 1 << 26  # 8192 x 8192: a small file can unpack to any size


def read_picture(file: Path, failure: Failure = InputError) -> np.ndarray:
    """(H, W, 3) uint8 of a picture file; raises ``failure`` naming it when it cannot be read."""
    if not file.exists():
        raise failure(f"{file}: no such file")
    return parse_picture(file, file, failure)


def parse_picture(
    source: Path | io.BytesIO, where: object, failure: Failure = InputError
) -> np.ndarray:
    """(H, W, 3) uint8 of a picture's file or bytes; raises ``failure`` naming ``where``."""
    from PIL import Image as Picture

    with (
        panics_as(lambda said: failure(f"{where}: not a picture: {said}")),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # of odd metadata; and of sizes that are refused below
        with Picture.open(source, formats=FORMATS) as picture:
            if picture.width * picture.height > MOST_PX:
                raise failure(
                    f"{where}: {picture.width} x {picture.height} px; at most "
                    f"{MOST_PX / 1e6:,.0f} million pixels are read"
                )
            return np.asarray(picture.convert("RGB"))


def write_picture(pixels: np.ndarray, file: Path) -> None:
    """Write (H, W, 3) uint8 in the format of the file's suffix, whole or not at all.

    It is encoded before the disk is touched, and moved to its name once it is on the disk. Raises
    InputError when it cannot be written.
    """
    from PIL import Image as Picture

    encoded = io.BytesIO()
    Picture.fromarray(pixels).save(encoded, Picture.registered_extensions()[file.suffix.lower()])
    try:
        write_whole(file, encoded.getvalue())
    except OSError as error:
        raise unwritable(file, error) from None

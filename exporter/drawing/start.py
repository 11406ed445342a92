"""A picture to start from: a file, Pillow's or an array, as the pixels that a package takes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from exporter.errors import InputError, Remark, known
from exporter.files.colours import (
    BACKGROUND,
    MOST_WHOLE,
    WHOLE,
    Colour,
    Say,
    flattened,
    parse_colour,
    to_levels,
)
from exporter.files.pictures import opened, refuse_size, upright
from exporter.files.read import panics_as

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    Given = str | Path | Picture | np.ndarray

Fit = Literal["cover", "contain", "stretch"]
FITS: tuple[Fit, ...] = get_args(Fit)
CHANNELS = (1, 2, 3, 4)  # grey, grey and alpha, RGB, RGB and alpha
WANTED = (
    "a path, a picture of Pillow's or an array (H, W), (H, W, 3) or (H, W, 4) of uint8, uint16 or "
    "floats from 0 to 1 is expected"
)


class PictureRemark(Remark):
    """What has to be known of how a picture to start from was read, as that some was cut off."""


@dataclass(frozen=True)
class Frame:
    """What a picture is brought into.

    Attributes:
        size: width and height in pixels.
        fit: how.
        background: below what is transparent, and around what does not fill the frame.
    """

    size: tuple[int, int]
    fit: Fit
    background: Colour


def start_picture(
    given: Given,
    width_px: int,
    height_px: int,
    fit: Fit = "cover",
    background: str | None = None,
) -> np.ndarray:
    """A picture to start from as (height, width, 3) uint8, in sRGB.

    A picture is turned as its Exif says and its colour profile is applied. Of a file's several
    frames the first is taken. Warns PictureRemark of what is not used, or had to be guessed.
    Raises InputError of the field ``image``, ``fit`` or ``background``.

    Args:
        given: a path, a picture of Pillow's, or an array (H, W), (H, W, 1), (H, W, 2), (H, W, 3) or
            (H, W, 4), grey or RGB, with alpha or without, of uint8, uint16 or floats from 0 to 1.
        fit: to another size: ``cover`` fills the frame and loses what lies outside of it,
            ``contain`` keeps all and fills up with the background, ``stretch`` keeps all and
            distorts it.
        background: a colour for what is transparent and for what ``contain`` leaves free; None:
            white.
    """
    if fit not in FITS:
        raise InputError(known("fit", fit, FITS), field="fit")
    colour = parse_colour(BACKGROUND if background is None else background)
    frame = Frame((width_px, height_px), fit, colour)
    remarks: list[str] = []
    pixels, used = _read(given, frame, remarks.append)
    if background is not None and not used:
        remarks.append("is opaque and fills the frame: the background is not used")
    place = f" {given}" if isinstance(given, str | Path) else ""
    for said in remarks:
        warnings.warn(f"image{place}: {said}", PictureRemark, stacklevel=2)
    return pixels


def _read(given: object, frame: Frame, say: Say) -> tuple[np.ndarray, bool]:
    """The pixels of whatever was given, and whether any of them may be of the background."""
    if isinstance(given, np.ndarray):
        return _framed(_of_array(given), frame, say)
    if isinstance(given, str | Path):
        file = Path(given)
        if not file.exists():
            raise _wrong(f"{file}: no such file")
        with opened(file, file, _wrong) as picture:
            if getattr(picture, "is_animated", False):
                say("holds several pictures; the first is taken")
            return _framed(picture, frame, say)
    if not _is_pillows(given):
        raise _wrong(f"is {_called(given)}; {WANTED}")
    own: Any = given
    refuse_size(own.size, "a picture of Pillow's", _wrong)
    with panics_as(lambda said: _wrong(f"a picture of Pillow's: cannot be read: {said}")):
        return _framed(own, frame, say)


def _wrong(message: str) -> InputError:
    return InputError(message, field="image")


def _called(given: object) -> str:
    kind = type(given)
    return f"a {kind.__module__}.{kind.__qualname__}".replace("builtins.", "")


def _is_pillows(given: object) -> bool:
    from PIL import Image

    return isinstance(given, Image.Image)


def _framed(picture: Picture, frame: Frame, say: Say) -> tuple[np.ndarray, bool]:
    """A picture upright, flat and of the size wanted; whether the background may show."""
    seen = upright(picture, say)
    flat = flattened(seen, frame.background, say)
    whole = FITTERS[frame.fit](flat, frame, say) if flat.size != frame.size else flat
    pads = frame.fit == "contain" and _scales(flat, frame)[0] != _scales(flat, frame)[1]
    return np.array(whole), pads or picture.has_transparency_data


def _scales(picture: Picture, frame: Frame) -> tuple[float, float]:
    """By how much a picture would have to grow to be as wide, and to be as high."""
    return frame.size[0] / picture.width, frame.size[1] / picture.height


def _stretch(picture: Picture, frame: Frame, say: Say) -> Picture:
    from PIL import Image

    return picture.resize(frame.size, Image.Resampling.LANCZOS)


def _contain(picture: Picture, frame: Frame, say: Say) -> Picture:
    from PIL import Image

    scale = min(_scales(picture, frame))
    width, height = (max(1, round(side * scale)) for side in picture.size)
    whole = Image.new("RGB", frame.size, frame.background)
    place = (frame.size[0] - width) // 2, (frame.size[1] - height) // 2
    whole.paste(picture.resize((width, height), Image.Resampling.LANCZOS), place)
    return whole


def _cover(picture: Picture, frame: Frame, say: Say) -> Picture:
    from PIL import Image

    scale = max(_scales(picture, frame))
    left, top = (
        max(0.0, (own - side / scale) / 2)
        for own, side in zip(picture.size, frame.size, strict=True)
    )
    lost = [(2 * left, picture.width, "columns"), (2 * top, picture.height, "rows")]
    for count, of, what in lost:
        if round(count):
            say(f"{round(count)} of its {of} {what} are cut off; fit contain or stretch keep all")
    box = (left, top, picture.width - left, picture.height - top)
    return picture.resize(frame.size, Image.Resampling.LANCZOS, box)


FITTERS: dict[Fit, Callable[[Picture, Frame, Say], Picture]] = {
    "cover": _cover,
    "contain": _contain,
    "stretch": _stretch,
}


def _of_array(array: np.ndarray) -> Picture:
    """A picture of an array's values; raises InputError for a shape or dtype that is none."""
    from PIL import Image

    shape = " x ".join(str(n) for n in array.shape)
    is_flat = array.ndim == 2
    if not (is_flat or (array.ndim == 3 and array.shape[2] in CHANNELS)) or not array.size:
        raise _wrong(f"is an array of {shape or 'one number'}; {WANTED}")
    levels = _levels(array)
    if not is_flat and array.shape[2] == 1:
        levels = levels[..., 0]
    return Image.fromarray(np.ascontiguousarray(levels))


def _levels(array: np.ndarray) -> np.ndarray:
    """An array's values as uint8; raises InputError for another dtype, or floats out of range."""
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return to_levels(array, MOST_WHOLE)
    if array.dtype.kind != "f":
        raise _wrong(f"is an array of {array.dtype}; {WANTED}")
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):
        raise _wrong(
            f"is an array of {array.dtype} from {low:g} to {high:g}; floats are taken from 0 to 1: "
            f"divide by {WHOLE}, or scale and shift them"
        )
    return to_levels(array, 1)

"""Whatever Pillow opened, as the colours that a viewer shows: sRGB in 8 bits, on a background.

Every mode of Pillow's: palettes, alpha straight and premultiplied, one transparent colour, CMYK,
YCbCr, LAB, HSV, 16 and 32 bits and floats, which are scaled and never clipped.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from exporter.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

Colour = tuple[int, int, int]
Say = Callable[[str], None]
BACKGROUND = "white"  # below what is transparent, and around what does not fill the frame
GREYS = ("1", "L", "LA", "La")
AS_THEY_ARE = ("L", "RGB", "CMYK")  # modes that a colour profile can be of
WHOLE, MOST_WHOLE = 255, 65535  # the largest levels of 8 and of 16 bits


def parse_colour(name: str) -> Colour:
    """A colour's name (``white``), ``#rrggbb`` or ``rgb(...)``; raises InputError."""
    from PIL import ImageColor

    found: tuple[int, ...] = ()
    with suppress(ValueError, TypeError, AttributeError):  # the last two: of what is no text
        found = ImageColor.getrgb(name)
    if len(found) != 3 or not all(0 <= level <= WHOLE for level in found):
        raise InputError(
            "an opaque colour is expected, such as white, black or '#808080'",
            field="background",
            given=repr(name),
        )
    red, green, blue = found
    return red, green, blue


def flattened(picture: Picture, background: Colour, say: Say) -> Picture:
    """The picture in mode RGB: its colour profile applied, what is transparent on ``background``.

    Args:
        say: gets what has to be known of how it was read.

    Raises ValueError for numbers whose range is not known.
    """
    from PIL import Image

    base, alpha = _parted(picture, say)
    profile = picture.info.get("icc_profile") if picture.mode != "LAB" else None  # is of no device
    colours = _in_srgb(base, profile, say)
    if alpha is None:
        return colours
    under = Image.new("RGB", colours.size, background)
    under.paste(colours, mask=alpha)
    return under


def _parted(picture: Picture, say: Say) -> tuple[Picture, Picture | None]:
    """The colours in L, RGB or CMYK, and how opaque they are in L, or None: all opaque."""
    if picture.mode in ("I", "F") or picture.mode.startswith("I;"):
        return _of_wide_levels(picture, say)
    if picture.has_transparency_data:
        straight = picture.convert("LA") if picture.mode == "La" else picture
        whole = straight if straight.mode == "RGBA" else straight.convert("RGBA")
        base = whole.getchannel("R") if picture.mode in GREYS else whole.convert("RGB")
        return base, whole.getchannel("A")
    if picture.mode in AS_THEY_ARE:
        return picture, None
    return picture.convert("L" if picture.mode in GREYS else "RGB"), None


def _of_wide_levels(picture: Picture, say: Say) -> tuple[Picture, Picture | None]:
    """Grey of 16 bits, of 32 or of floats, scaled to 8 bits."""
    from PIL import Image

    values = np.asarray(picture)
    if picture.mode in ("I", "F"):
        top = top_of(values)
        say(f"its numbers are read as grey from 0 to {top:g}")
    else:
        top = MOST_WHOLE
    clear = picture.info.get("transparency")  # the level that is transparent
    grey = Image.fromarray(to_levels(values, top))
    if not isinstance(clear, int):
        return grey, None
    return grey, Image.fromarray(np.where(values == clear, 0, WHOLE).astype(np.uint8))


def top_of(values: np.ndarray) -> int:
    """What stands for white where a format does not say: 1 (of floats), 255 or 65535.

    The first of them that no value is above. Raises ValueError when there is none, or a value is
    below 0 or no number.
    """
    low, high = float(values.min()), float(values.max())
    tops = (1, WHOLE, MOST_WHOLE) if values.dtype.kind == "f" else (WHOLE, MOST_WHOLE)
    if not low >= 0 or not high <= MOST_WHOLE:
        raise ValueError(f"numbers from {low:g} to {high:g}; scale them to 0 to 255 or to 65535")
    return next(top for top in tops if high <= top)


def to_levels(values: np.ndarray, top: float) -> np.ndarray:
    """Values from 0 to ``top`` as uint8, rounded to the nearest."""
    levels: np.ndarray = np.rint(values.astype(np.float32) * np.float32(WHOLE / top))
    return levels.astype(np.uint8)


def _in_srgb(base: Picture, profile: bytes | None, say: Say) -> Picture:
    """Colours of L, RGB or CMYK in sRGB, by the profile that the file brings, if any."""
    plain = base if base.mode == "RGB" else base.convert("RGB")
    if not profile:
        return plain
    from PIL import ImageCms

    try:
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        srgb = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(base, given, srgb, outputMode="RGB")
        assert converted is not None  # it is not done in place
    except (ImportError, OSError, ValueError, TypeError, ImageCms.PyCMSError) as error:
        reason = " ".join(str(error).split())
        say(f"its colour profile cannot be applied ({reason}); its numbers are taken as sRGB")
        return plain
    return converted

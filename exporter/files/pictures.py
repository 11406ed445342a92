"""Reading and writing pictures with Pillow: of a limited size, and whole or not at all."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.errors import InputError
from exporter.files.colours import Say
from exporter.files.lock import write_alone
from exporter.files.read import Failure, panics_as, reason_of

if TYPE_CHECKING:
    from PIL import Image as Pictures

# What is opened of what Pillow reads. Of the others some start programs (EPS), and most nobody has.
# TGA comes last: it has no mark that it could be told by.
FORMATS = (
    "PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "JPEG2000", "PPM", "QOI", "ICO",
    "ICNS", "PCX", "SGI", "DDS", "TGA",
)  # fmt: skip
MOST_PX = 1 << 26  # 8192 x 8192: a small file can unpack to any size
COMMON = (".png", ".jpg", ".webp", ".avif", ".tiff")
IN_EXIF = ("JPEG", "MPO", "WEBP", "AVIF", "TIFF")  # formats that say in Exif what is in a picture
LESSER_MODES = {"BLP": "P", "MSP": "1", "XBM": "1"}  # of formats that hold no RGB
MOST_EXIF_BYTES = 60_000  # a segment of JPEG holds 64 KiB
MOST_ICO_PX = 256
EXIF_FIELDS, USER_COMMENT, SOFTWARE, ORIENTATION = 0x8769, 0x9286, 0x0131, 0x0112  # tags
ASCII = b"ASCII\0\0\0"  # how the text of a UserComment begins
Seal = Callable[[bytes, str], bytes]  # a file's bytes and its format by Pillow's name -> bytes


def as_it_is(content: bytes, form: str) -> bytes:
    """Seals nothing."""
    return content


@contextmanager
def opened(
    source: Path | io.BytesIO, where: object, failure: Failure = InputError
) -> Iterator[Pictures.Image]:
    """A picture's file or bytes, opened, of a size that may be decoded; its first frame.

    Raises ``failure`` naming ``where``, also for what goes wrong while it is decoded inside.
    """
    from PIL import Image as Picture
    from PIL import UnidentifiedImageError

    too_large = (Picture.DecompressionBombError, Picture.DecompressionBombWarning)
    with (
        panics_as(lambda said: failure(f"{where}: not a picture: {said}")),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # of odd metadata
        warnings.simplefilter("error", Picture.DecompressionBombWarning)  # of what is in a file
        try:
            Picture.init()
            known = [name for name in FORMATS if name in Picture.OPEN]
            with Picture.open(source, formats=known) as picture:
                refuse_size(picture.size, where, failure)
                yield picture
        except UnidentifiedImageError:
            raise failure(
                f"{where}: not a picture that can be read, which are {', '.join(FORMATS)}; "
                "convert it to PNG"
            ) from None
        except too_large:
            raise failure(f"{where}: {_too_large('too many pixels')}") from None


def refuse_size(size: tuple[int, int], where: object, failure: Failure = InputError) -> None:
    """Raise ``failure`` for a picture of more pixels than are decoded."""
    width, height = size
    if width * height > MOST_PX:
        raise failure(f"{where}: {_too_large(f'{width} x {height} px')}")


def _too_large(found: str) -> str:
    return f"{found}; at most {MOST_PX / 1e6:,.0f} million pixels are read"


def parse_picture(
    source: Path | io.BytesIO, where: object, failure: Failure = InputError
) -> np.ndarray:
    """(H, W, 3) uint8 of a package's own picture; raises ``failure`` naming ``where``."""
    with opened(source, where, failure) as picture:
        return np.asarray(picture.convert("RGB"))


def upright(picture: Pictures.Image, say: Say) -> Pictures.Image:
    """The picture turned as its file says that it is to be seen (Exif's orientation)."""
    from PIL import ImageOps

    picture.load()
    try:
        is_turned = picture.getexif().get(ORIENTATION, 1) != 1
        return ImageOps.exif_transpose(picture) if is_turned else picture
    except Exception as error:  # of damaged metadata the library raises anything
        say(f"its Exif cannot be read ({reason_of(error)}); it is taken as it lies in the file")
        return picture


def format_of(file: Path) -> str:
    """Pillow's name of the format that a file's suffix stands for; raises InputError of ``out``."""
    from PIL import Image as Picture

    known = {
        suffix: form
        for suffix, form in Picture.registered_extensions().items()
        if form in Picture.SAVE
    }
    found = known.get(file.suffix.lower())
    if found is None:
        common = ", ".join(suffix for suffix in COMMON if suffix in known)
        raise InputError(
            f"must end in {common}, or as another format that Pillow writes",
            field="out",
            given=file,
        )
    return found


def check_picture(
    file: Path, width_px: int, height_px: int, about: Mapping[str, str], seal: Seal = as_it_is
) -> None:
    """Raise InputError of ``out`` if a picture of this size could not be written, or not sealed.

    Found out with an empty one, before any other is drawn.
    """
    empty = np.zeros((height_px, width_px, 3), np.uint8)
    seal(encoded(empty, file, about), format_of(file))


def write_picture(
    pixels: np.ndarray,
    file: Path,
    about: Mapping[str, str] | None = None,
    seal: Seal = as_it_is,
) -> None:
    """Write (H, W, 3) uint8 in the format of the file's suffix, whole or not at all.

    It is encoded before the disk is touched, and moved to its name once it is on the disk. Raises
    InputError when it cannot be written.

    Args:
        about: what is said in the file: in PNG a text for each key, in JPEG, WebP, AVIF and TIFF
            JSON in Exif's UserComment. Other formats hold none.
        seal: what is done with the file's bytes last, as signing them.
    """
    write_alone(file, seal(encoded(pixels, file, about or {}), format_of(file)))


def encoded(pixels: np.ndarray, file: Path, about: Mapping[str, str]) -> bytes:
    """(H, W, 3) uint8 in the format of the file's suffix; raises InputError of ``out``."""
    from PIL import Image as Picture

    form, stream = format_of(file), io.BytesIO()
    height, width = pixels.shape[:2]
    if form == "ICNS" or (form == "ICO" and max(width, height) > MOST_ICO_PX):
        reason = f"{form} holds icons, and not a picture of {width} x {height} px"
        raise InputError(f"{reason}; choose another suffix", field="out", given=file)
    options = _said_in(form, file, about) if about else {}
    if form == "ICO":
        options["sizes"] = [(width, height)]  # else it holds smaller copies alone
    with (
        panics_as(
            lambda said: InputError(
                f"cannot be written as {form}: {said}; choose another suffix",
                field="out",
                given=file,
            )
        ),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # of formats that Pillow is going to drop
        drawn = Picture.fromarray(pixels)
        mode = LESSER_MODES.get(form, drawn.mode)
        if mode != drawn.mode:
            drawn = drawn.convert(mode, palette=Picture.Palette.ADAPTIVE)
        drawn.save(stream, form, **options)
    return stream.getvalue()


def _said_in(form: str, file: Path, about: Mapping[str, str]) -> dict[str, Any]:
    """Pillow's arguments that put ``about`` into a file; raises InputError for too long a text."""
    from PIL import Image as Picture
    from PIL.PngImagePlugin import PngInfo

    if form == "PNG":
        texts = PngInfo()
        for key, value in about.items():
            texts.add_text(key, value)  # Latin-1 as tEXt, all else as iTXt
        return {"pnginfo": texts}
    if form not in IN_EXIF:
        return {}
    comment = ASCII + json.dumps(dict(about)).encode("ascii")
    if len(comment) > MOST_EXIF_BYTES:
        raise InputError(
            f"{form} holds no text of {len(comment)} bytes about a picture; write .png, or no "
            "metadata",
            field="out",
            given=file,
        )
    exif = Picture.Exif()
    exif[SOFTWARE] = about.get("Software", "")
    exif[EXIF_FIELDS] = {USER_COMMENT: comment}
    return {"exif": exif.tobytes()}

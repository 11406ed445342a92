"""Pictures in: every mode, orientation, profile and size. Pictures out: every format, and what it
says."""

from __future__ import annotations

import io
import json
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from exporter.drawing.start import PictureRemark, start_picture
from exporter.errors import CheckFailed, InputError
from exporter.files.pictures import FORMATS, check_picture, encoded, write_picture
from exporter.package.pixels import to_pixels
from exporter.package.preview import Preview

WIDTH, HEIGHT = 32, 24
WHITE = (255, 255, 255)


def scene() -> Image.Image:
    """A slow gradient of colours that no mode loses much of."""
    x, y = np.meshgrid(np.linspace(60, 190, WIDTH), np.linspace(70, 180, HEIGHT))
    return Image.fromarray(np.stack([x, y, 250 - x], -1).astype(np.uint8))


def silent(given: Any, **options: Any) -> np.ndarray:
    """Its pixels; it is read without a remark."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return start_picture(given, WIDTH, HEIGHT, **options)


def remarked(given: Any, words: str, **options: Any) -> np.ndarray:
    with pytest.warns(PictureRemark, match=words) as found:
        pixels = start_picture(given, WIDTH, HEIGHT, **options)
    assert len(found) == 1
    return pixels


def apart(pixels: np.ndarray, expected: Any) -> int:
    """The largest difference in levels."""
    return int(np.abs(pixels.astype(int) - np.asarray(expected).astype(int)).max())


def grey() -> np.ndarray:
    return np.asarray(scene().convert("L"))


def of_mode(mode: str) -> Image.Image:
    if mode.startswith("I;16"):
        order = ">u2" if mode.endswith("B") else "<u2"
        return Image.frombytes(mode, (WIDTH, HEIGHT), (grey() * 257.0).astype(order).tobytes())
    if mode in ("La", "RGBa"):
        return scene().convert({"La": "LA", "RGBa": "RGBA"}[mode]).convert(mode)
    return scene().convert(mode)


TONES = {"1": 255, "P": 60, "PA": 60, "LAB": 12, "HSV": 8, "YCbCr": 3, "CMYK": 3}
GREY_MODES = ("1", "L", "LA", "La", "I", "F")


@pytest.mark.parametrize("mode", Image.MODES)
def test_every_mode_of_pillows(mode: str) -> None:
    picture = of_mode(mode)
    is_grey = mode in GREY_MODES or mode.startswith("I;")
    expected = np.stack([grey()] * 3, -1) if is_grey else np.asarray(scene())
    if mode in ("I", "F"):
        found = remarked(picture, "its numbers are read as grey from 0 to 255")
    else:
        found = silent(picture)
    assert found.shape == (HEIGHT, WIDTH, 3) and found.dtype == np.uint8
    assert apart(found, expected) <= TONES.get(mode, 0)
    assert np.abs(found.mean() - expected.mean()) < 4, "nothing is clipped"


@pytest.mark.parametrize(
    ("suffix", "write"),
    [
        (".png", lambda f: Image.fromarray((grey() * 257.0).astype(np.uint16)).save(f)),
        (".tiff", lambda f: Image.fromarray((grey() * 257.0).astype(np.uint16)).save(f)),
        (".jp2", lambda f: Image.fromarray((grey() * 257.0).astype(np.uint16)).save(f)),
        (".pgm", lambda f: Image.fromarray((grey() * 257.0).astype(np.uint16)).save(f)),
    ],
)
@pytest.mark.filterwarnings("ignore::exporter.drawing.start.PictureRemark")
def test_16_bits_are_scaled(tmp_path: Path, suffix: str, write: Callable[[Path], None]) -> None:
    """Pillow's own conversion cuts all above 255 off."""
    file = tmp_path / f"deep{suffix}"
    write(file)
    assert apart(start_picture(file, WIDTH, HEIGHT)[..., 0], grey()) <= 1


@pytest.mark.parametrize(("top", "scale"), [(1, 1 / 255), (65535, 257.0)])
def test_floats_by_their_range(top: int, scale: float) -> None:
    values = (grey() * np.float32(scale)).astype(np.float32)
    values[0, 0] = top
    found = remarked(Image.fromarray(values), f"from 0 to {top}$")
    assert apart(found[1:, :, 0], grey()[1:]) == 0
    for wrong in (np.nan, -1.0, 1e6):
        values[0, 0] = wrong
        with pytest.raises(InputError, match="image: .*numbers from .*scale them"):
            start_picture(Image.fromarray(values), WIDTH, HEIGHT)


def clear(mode: str) -> tuple[Image.Image, dict[str, Any]]:
    """A picture whose left half is transparent, and what Pillow saves a PNG of it with."""
    picture = Image.new("RGBA", (WIDTH, HEIGHT), (10, 200, 30, 255))
    picture.paste((90, 90, 90, 0), (0, 0, WIDTH // 2, HEIGHT))
    left, right = (90, 90, 90), (10, 200, 30)
    plain = Image.new("RGB", picture.size, right)
    plain.paste(left, (0, 0, WIDTH // 2, HEIGHT))
    if mode == "P, a table":
        return plain.quantize(2), {"transparency": bytes([0, 255])}
    if mode == "P":
        return plain.quantize(2), {"transparency": 0}
    if mode == "L":
        return plain.convert("L"), {"transparency": 90}
    if mode == "RGB":
        return plain, {"transparency": left}
    if mode == "I;16":
        levels = np.asarray(plain.convert("L")).astype(np.uint16) * 257
        return Image.fromarray(levels), {"transparency": 90 * 257}
    if mode in ("La", "RGBa"):
        return picture.convert({"La": "LA", "RGBa": "RGBA"}[mode]).convert(mode), {}
    return picture.convert(mode), {}


@pytest.mark.parametrize("background", [None, "black", "#ff8000"])
@pytest.mark.parametrize(
    "mode", ["RGBA", "LA", "PA", "La", "RGBa", "P", "P, a table", "L", "RGB", "I;16"]
)
def test_what_is_transparent_shows_the_background(mode: str, background: str | None) -> None:
    picture, options = clear(mode)
    given = picture
    if options:
        stream = io.BytesIO()
        picture.save(stream, "PNG", **options)
        given = Image.open(stream)
    colour = {None: WHITE, "black": (0, 0, 0), "#ff8000": (255, 128, 0)}[background]
    found = silent(given, background=background)
    halves = (found[:, : WIDTH // 2], found[:, WIDTH // 2 :])
    covered = [bool((half == colour).all()) for half in halves]
    if mode.startswith("P") and mode != "PA":
        assert sum(covered) == 1, "which colour is the palette's first is the quantizer's choice"
    else:
        assert covered == [True, False]


def test_half_transparent_is_mixed() -> None:
    picture = Image.new("RGBA", (WIDTH, HEIGHT), (200, 100, 0, 128))
    assert silent(picture)[0, 0].tolist() == [227, 177, 127]
    assert silent(picture, background="black")[0, 0].tolist() == [100, 50, 0]


def test_a_background_that_is_not_needed_is_said() -> None:
    remarked(scene(), "the background is not used", background="black")
    for name in ("no colour", "#12345678", "rgb(300,0,0)", "", 3):
        with pytest.raises(InputError, match="an opaque colour is expected") as error:
            start_picture(scene(), WIDTH, HEIGHT, background=name)  # type: ignore[arg-type]
        assert error.value.field == "background"


TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tiff", ".avif"])
@pytest.mark.parametrize("orientation", TURNS)
def test_orientation(tmp_path: Path, suffix: str, orientation: int) -> None:
    stored = np.asarray(scene())
    expected = TURNS[orientation](stored)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / f"turned{suffix}"
    exact: dict[str, dict[str, Any]] = {
        ".jpg": {"quality": 100, "subsampling": 0},
        ".webp": {"lossless": True},
    }
    scene().save(file, exif=exif, **exact.get(suffix, {}))
    height, width = expected.shape[:2]
    assert apart(start_picture(file, width, height), expected) <= (6 if suffix == ".avif" else 3)


def test_damaged_exif_costs_no_picture(tmp_path: Path) -> None:
    file = tmp_path / "start.png"
    scene().save(file, exif=b"Exif\0\0II*\0" + b"\xff" * 20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PictureRemark)
        assert apart(start_picture(file, WIDTH, HEIGHT), scene()) == 0


def profile(space: bytes = b"RGB ") -> bytes:
    """An ICC profile whose red is sRGB's green, and the other way round."""

    def fixed(*numbers: float) -> bytes:
        return b"".join(struct.pack(">i", round(number * 65536)) for number in numbers)

    def xyz(*numbers: float) -> bytes:
        return b"XYZ \0\0\0\0" + fixed(*numbers)

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(2.2 * 256)) + b"\0\0"
    text = b"desc\0\0\0\0" + struct.pack(">I", 2) + b"x\0" + bytes(78)
    tags = {
        b"desc": text + bytes(-len(text) % 4),
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        b"rXYZ": xyz(0.3851, 0.7169, 0.0971),
        b"gXYZ": xyz(0.4361, 0.2225, 0.0139),
        b"bXYZ": xyz(0.1431, 0.0606, 0.7141),
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve),
    }
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        table += name + struct.pack(">II", start + len(body), len(value))
        body += value
    size, version = start + len(body), 0x02100000
    head = struct.pack(">I4sI4s4s4s", size, bytes(4), version, b"mntr", space, b"XYZ ")
    head += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp") + bytes(28)
    head += fixed(0.9642, 1.0, 0.8249)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_a_colour_profile_is_applied(tmp_path: Path, mode: str) -> None:
    file = tmp_path / "start.png"
    Image.new("RGB", (WIDTH, HEIGHT), (250, 5, 5)).convert(mode).save(file, icc_profile=profile())
    red, green, _ = silent(file)[0, 0].astype(int)
    assert green > 240 and red < 60


def test_srgb_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "start.png"
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    scene().save(file, icc_profile=srgb)
    assert apart(silent(file), scene()) == 0


@pytest.mark.parametrize("wrong", [b"no profile", profile(b"CMYK")])
def test_a_profile_that_cannot_be_applied_is_said(tmp_path: Path, wrong: bytes) -> None:
    file = tmp_path / "start.png"
    scene().save(file, icc_profile=wrong)
    found = remarked(file, "colour profile cannot be applied .* taken as sRGB")
    assert apart(found, scene()) == 0


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_that_is_opened(tmp_path: Path, form: str) -> None:
    file = tmp_path / "start"
    options: dict[str, Any] = {"JPEG": {"quality": 100}, "AVIF": {"quality": 100}}.get(form, {})
    picture = scene()
    if form in ("ICO", "ICNS"):
        picture = scene().resize((64, 64)).convert("RGBA")
        options = {"sizes": [(64, 64)]} if form == "ICO" else {}
    if form == "WEBP":
        options = {"lossless": True}
    picture.save(file, form, **options)
    found = start_picture(file, WIDTH, HEIGHT, "stretch")
    assert np.abs(found.astype(int) - np.asarray(scene()).astype(int)).mean() < 4


def test_the_first_picture_of_several(tmp_path: Path) -> None:
    for suffix in (".gif", ".png", ".webp", ".tiff"):
        file = tmp_path / f"moving{suffix}"
        options: dict[str, Any] = {"lossless": True} if suffix == ".webp" else {}
        scene().save(file, save_all=True, append_images=[scene().rotate(180)], **options)
        found = remarked(file, rf"image {file}: holds several pictures; the first is taken")
        assert apart(found, scene()) <= 40


def chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def png_of(width: int, height: int) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rest = chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + rest


@pytest.mark.parametrize("side", [8193, 20_000, 100_000])
def test_bombs(tmp_path: Path, side: int) -> None:
    """Refused by what the head says, before anything is unpacked; also inside of an icon."""
    inner = png_of(side, side)
    icon = struct.pack("<HHHBBBBHHII", 0, 1, 1, 0, 0, 0, 0, 1, 32, len(inner), 22) + inner
    files = {"bomb.png": inner} | ({"bomb.ico": icon} if side >= 20_000 else {})
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"image: .*{name}: .*at most 67 million pixels"):
            start_picture(tmp_path / name, WIDTH, HEIGHT)
    if side == 8193:
        with pytest.raises(InputError, match="8193 x 8193 px; at most"):
            start_picture(Image.new("1", (side, side)), WIDTH, HEIGHT)


def test_what_is_no_picture(tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("no picture")
    cut = tmp_path / "cut.png"
    scene().save(cut)
    cut.write_bytes(cut.read_bytes()[:-60])
    document = tmp_path / "page.eps"
    scene().save(document)
    for file, words in (
        (text, "not a picture that can be read, which are PNG, .*convert it to PNG"),
        (document, "not a picture that can be read"),
        (cut, "not a picture: "),
        (tmp_path, "not a picture: "),
        (tmp_path / "none.png", "no such file"),
    ):
        with pytest.raises(InputError, match=f"^image: {file}: {words}") as error:
            start_picture(file, WIDTH, HEIGHT)
        assert error.value.field == "image"


WIDE = Image.fromarray(np.repeat(np.arange(80, dtype=np.uint8)[None, :, None], 20, 0).repeat(3, 2))


def test_cover_keeps_the_middle_and_says_what_is_cut_off() -> None:
    """80 x 20 px fill 32 x 24 px: 27 of the 80 columns are kept."""
    found = remarked(WIDE, r"53 of its 80 columns are cut off; fit contain or stretch keep all")
    assert found[0, [0, -1], 0].tolist() == pytest.approx([27, 53], abs=1)
    tall = remarked(WIDE.rotate(90, expand=True), "of its 80 rows are cut off", fit="cover")
    assert len(np.unique(tall[12])) == 1


def test_contain_keeps_all_in_the_middle() -> None:
    found = silent(WIDE, fit="contain", background="#0a0b0c")
    assert (found[:8] == (10, 11, 12)).all() and (found[16:] == (10, 11, 12)).all()
    assert found[12, 0, 0] <= 2 and found[12, -1, 0] >= 77
    assert silent(WIDE, fit="contain")[0, 0].tolist() == [*WHITE]
    thin = silent(Image.new("RGB", (5000, 1), "red"), fit="contain")
    assert [row[0].tolist() for row in thin].count([255, 0, 0]) == 1


def test_stretch_keeps_all() -> None:
    found = silent(WIDE, fit="stretch")
    assert found[0, 0, 0] <= 2 and found[-1, -1, 0] >= 77


def test_of_the_size_wanted_no_fit_changes_anything() -> None:
    for fit in ("cover", "contain", "stretch"):
        assert apart(silent(scene(), fit=fit), scene()) == 0
    with pytest.raises(InputError, match="fit: unknown fit 'crop'; known: contain, cover, stretch"):
        silent(scene(), fit="crop")


def test_arrays() -> None:
    pixels = np.asarray(scene())
    assert apart(silent(pixels), pixels) == 0
    assert apart(silent(pixels[::-1, ::-1]), pixels[::-1, ::-1]) == 0, "not contiguous"
    assert apart(silent(pixels.astype(np.uint16) * 257), pixels) == 0
    assert apart(silent(pixels.astype(">u2") * 257), pixels) == 0
    for dtype in (np.float16, np.float32, np.float64):
        assert apart(silent((pixels / 255).astype(dtype)), pixels) == 0
    greys = np.stack([grey()] * 3, -1)
    assert apart(silent(grey()), greys) == apart(silent(grey()[..., None]), greys) == 0
    alpha = np.full((HEIGHT, WIDTH, 1), 0, np.uint8)
    for colours in (pixels, grey()[..., None]):
        assert silent(np.concatenate([colours, alpha], 2)).min() == 255
    before = pixels.copy()
    silent(pixels)[:] = 0
    assert apart(pixels, before) == 0, "what was given is not changed"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (np.zeros((24, 32, 3), np.int64), "is an array of int64; a path"),
        (np.zeros((24, 32, 3), bool), "is an array of bool; a path"),
        (np.full((24, 32, 3), 255.0), "from 255 to 255; floats are taken from 0 to 1: divide by"),
        (np.full((24, 32, 3), -1.0), "floats are taken from 0 to 1"),
        (np.full((24, 32, 3), np.nan), "from nan to nan"),
        (np.zeros((3, 24, 32), np.uint8), "is an array of 3 x 24 x 32; a path"),
        (np.zeros((1, 24, 32, 3), np.uint8), "is an array of 1 x 24 x 32 x 3"),
        (np.zeros((24, 32, 5), np.uint8), "is an array of 24 x 32 x 5"),
        (np.zeros((0, 32, 3), np.uint8), "is an array of 0 x 32 x 3"),
        (np.zeros(5, np.uint8), "is an array of 5"),
        (np.uint8(5), "is a numpy.uint8"),
        ([[1, 2], [3, 4]], "is a list; a path"),
        (b"x", "is a bytes; a path"),
    ],
)
def test_what_is_no_picture_in_python(given: Any, words: str) -> None:
    with pytest.raises(InputError, match=f"^image: .*{words}") as error:
        start_picture(given, WIDTH, HEIGHT)
    assert error.value.field == "image"


WRITTEN = (
    ".apng", ".avif", ".bmp", ".dds", ".dib", ".eps", ".gif", ".im", ".jp2", ".j2k", ".jfif",
    ".jpe", ".jpeg", ".jpg", ".mpo", ".pcx", ".pdf", ".png", ".ppm", ".qoi", ".sgi", ".tga", ".tif",
    ".tiff", ".webp", ".ico", ".PNG", ".blp", ".msp", ".xbm",
)  # fmt: skip
ABOUT = {"prompt": "ein Käfer, 赤い丸", "seed": "7", "package": "shapes onnx-int8", "version": "0"}


@pytest.mark.parametrize("suffix", WRITTEN)
def test_every_format_that_pillow_writes(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"drawn{suffix}"
    write_picture(np.asarray(scene()), file, ABOUT)
    assert [f.name for f in tmp_path.iterdir()] == [file.name]
    if suffix not in (".pdf", ".eps", ".im"):
        with Image.open(file) as found:
            found.load()
            assert found.size == (WIDTH, HEIGHT)
            shown = np.asarray(found.convert("RGB")).astype(int)
            assert np.abs(shown.mean() - np.asarray(scene()).mean()) < 4
            if suffix not in (".msp", ".xbm"):
                assert np.abs(shown - np.asarray(scene())).mean() < 9


def test_formats_that_cannot_hold_a_picture() -> None:
    for name, words in (
        ("p", "out p: must end in .png, .jpg"),
        ("p.txt", "out p.txt: must end in .png, .jpg"),
        ("p.psd", "out p.psd: must end in"),
        ("p.palm", "out p.palm: cannot be written as PALM: cannot write mode RGB"),
        ("p.hdf", "out p.hdf: cannot be written as HDF5"),
        ("p.icns", "ICNS holds icons, and not a picture of 32 x 24 px; choose another suffix"),
    ):
        with pytest.raises(InputError, match=words):
            check_picture(Path(name), WIDTH, HEIGHT, {})
    with pytest.raises(InputError, match="ICO holds icons, and not a picture of 512 x 512 px"):
        check_picture(Path("p.ico"), 512, 512, {})
    with pytest.raises(InputError, match="webp: cannot be written as WEBP"):
        check_picture(Path("p.webp"), 20_000, 16, {})


def opened(content: bytes) -> Any:
    return Image.open(io.BytesIO(content))


def test_png_says_what_it_shows() -> None:
    found = opened(encoded(np.asarray(scene()), Path("p.png"), ABOUT))
    assert found.text == ABOUT and apart(np.asarray(found), scene()) == 0
    assert type(found.text["prompt"]).__name__ == "iTXt" and b"tEXtseed\x007" in encoded(
        np.asarray(scene()), Path("p.png"), ABOUT
    )
    assert not opened(encoded(np.asarray(scene()), Path("p.png"), {})).text


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".avif", ".tiff", ".mpo"])
def test_exif_says_what_is_shown(suffix: str) -> None:
    found = opened(encoded(np.asarray(scene()), Path(f"p{suffix}"), ABOUT))
    comment = found.getexif().get_ifd(0x8769)[0x9286]
    assert comment.startswith(b"ASCII\0\0\0") and json.loads(comment[8:]) == ABOUT
    without = opened(encoded(np.asarray(scene()), Path(f"p{suffix}"), {}))
    assert 0x9286 not in without.getexif().get_ifd(0x8769)
    with pytest.raises(InputError, match="holds no text of .* bytes about a picture; write .png"):
        check_picture(Path(f"p{suffix}"), 32, 32, {"prompt": "x" * 70_000})
    check_picture(Path("p.png"), 32, 32, {"prompt": "x" * 100_000})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_no_pixel(value: float) -> None:
    image = np.zeros((1, 3, 4, 4), np.float32)
    image[0, 1, 2, 3] = value
    with pytest.raises(CheckFailed, match="^vae_decoder holds NaN or infinity"):
        to_pixels(image, what="vae_decoder")
    latent = np.zeros((1, 2, 4, 4), np.float32)
    latent[0, 1, 2, 3] = value
    with pytest.raises(CheckFailed, match="^the latent of a preview holds NaN or infinity"):
        Preview(np.ones((2, 3)), np.zeros(3)).picture(latent)

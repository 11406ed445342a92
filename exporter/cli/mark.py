"""``fourstep mark``: keys of invisible marks, and reading them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

from exporter import backends
from exporter.cli.options import PLACE, GivenOnce, json_option
from exporter.cli.output import complain, show, show_json
from exporter.errors import InputError
from exporter.files.lock import write_alone
from exporter.files.pictures import opened, upright
from exporter.marking.key import MarkKey, key_of_environment, make_key, read_key
from exporter.marking.pattern import payload_text
from exporter.marking.read import Reading, read_mark

NOT_FOUND = 1  # exit code
MOST_SIDE_PX = 8192


@click.group("mark", cls=GivenOnce)
def command() -> None:
    """Make keys of invisible marks, and read marks in pictures."""


@command.command("key")
@click.argument("file", type=PLACE)
@json_option
def key(file: Path, as_json: bool) -> None:
    """Write a new key into FILE, which its owner alone can read.

    A recipe names it as key_file in [mark]. Keep a copy: marks cannot be read without it.
    """
    made = make_key(file)
    if as_json:
        show_json({"path": str(file), "key_id": made.id})
    else:
        show(f"{file}  key {made.id}")


def _key_options(function: click.decorators.FC) -> click.decorators.FC:
    given = click.option("--key", "key_file", type=PLACE, help="The key's file.")
    named = click.option("--key-env", help="The variable of the environment that holds the key.")
    return given(named(function))


@command.command("read")
@click.argument("pictures", metavar="PICTURE...", nargs=-1, required=True, type=PLACE)
@_key_options
@click.option("--size", help="Width and height that the pictures were drawn at, such as 512x512.")
@json_option
def read(
    pictures: Sequence[Path],
    key_file: Path | None,
    key_env: str | None,
    size: str | None,
    as_json: bool,
) -> None:
    """Find the mark of a key in each PICTURE, and the payload that it carries.

    With --size a picture may have been resized in any way, and not cropped. Exit code 0: every
    picture is marked; 1: some picture has no mark of this key.
    """
    found_key, drawn = _key(key_file, key_env), _size(size)
    readings = [read_mark(_levels(picture), found_key, drawn) for picture in pictures]
    if as_json:
        rows = zip(pictures, readings, strict=True)
        show_json([{"picture": str(p), "key_id": found_key.id, **_told(r)} for p, r in rows])
    else:
        for picture, reading in zip(pictures, readings, strict=True):
            show(f"{picture}  {_worded(reading)}")
    if not all(reading is not None and reading.found for reading in readings):
        click.get_current_context().exit(NOT_FOUND)


@command.command("detector")
@_key_options
@click.option("-o", "--out", type=PLACE, required=True, help="The ONNX file to write.")
@click.option("--replace", is_flag=True, help="Write over a file that is there.")
def detector(key_file: Path | None, key_env: str | None, out: Path, replace: bool) -> None:
    """Write a small ONNX graph that reads the marks of a key.

    It takes a picture (1, 3, H, W) of levels 0 ... 255 at the size that it was drawn at. It holds
    the key's signs: keep it as secret as the key.
    """
    backends.load_to_build("onnx")
    from exporter.backends.onnx.detector import detector as make

    if out.exists() and not replace:
        raise InputError(f"{out}: is there already; choose another name, or add --replace")
    write_alone(out, make(_key(key_file, key_env)).SerializeToString())
    show(str(out))


def _key(file: Path | None, name: str | None) -> MarkKey:
    if (file is None) == (name is None):
        raise InputError("give the key as one of --key FILE and --key-env NAME")
    return (
        read_key(file, "--key") if file is not None else key_of_environment(str(name), "--key-env")
    )


def _size(text: str | None) -> tuple[int, int] | None:
    """Height and width of WIDTHxHEIGHT; raises InputError."""
    if text is None:
        return None
    found = re.fullmatch("([0-9]{1,5})[xX]([0-9]{1,5})", text)
    width, height = (int(side) for side in found.groups()) if found else (0, 0)
    if not (0 < width <= MOST_SIDE_PX and 0 < height <= MOST_SIDE_PX):
        raise InputError(f"--size {text!r}: width and height are expected, such as 512x512")
    return height, width


def _levels(file: Path) -> np.ndarray:
    """(H, W, 3) uint8, as the picture is to be seen; raises InputError."""
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    with opened(file, file) as picture:
        seen = upright(picture, lambda said: complain(f"warning: {file}: {said}"))
        return np.asarray(seen.convert("RGB"))


def _told(reading: Reading | None) -> dict[str, object]:
    """What JSON says of a reading."""
    if reading is None:
        names = ("payload", "statistic", "false_positive_log10", "scale", "offset_px")
        return {"found": False, **dict.fromkeys(names)}
    return {
        "found": reading.found,
        "payload": payload_text(reading.payload) if reading.found else None,
        "statistic": reading.statistic,
        "false_positive_log10": reading.false_positive_log10,
        "scale": reading.scale if reading.found else None,
        "offset_px": list(reading.offset_px) if reading.found else None,
    }


def _worded(reading: Reading | None) -> str:
    if reading is None or not reading.found:
        return "no mark of this key"
    chance = f"a chance below 1 in 10^{int(-reading.false_positive_log10)}"
    scale = "" if reading.scale == 1 else f", at {100 * reading.scale:.0f} % of its size"
    down, right = reading.offset_px
    cut = f", cut {right} px from the left and {down} from the top of a tile"
    where = f"{scale}{cut if down or right else ''}"
    return f"payload {payload_text(reading.payload)}, {chance}{where}"

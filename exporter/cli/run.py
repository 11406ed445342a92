"""``fourstep run``: draw prompts with a package."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from exporter.backends.contract import Precision, SessionOptions
from exporter.cli.draw import Chosen, Order, Output, Start, drawn, drawn_at_changes
from exporter.cli.options import (
    PASSPHRASE,
    PLACE,
    RANDOM,
    Seed,
    as_typed,
    at_once_option,
    cache_option,
    check_always_option,
    device_option,
    half_option,
    json_option,
    size_option,
    trusted_option,
)
from exporter.cli.output import show, show_json
from exporter.drawing.start import FITS, Fit
from exporter.errors import CheckFailed, InputError, PicturesRejected
from exporter.files.colours import BACKGROUND

if TYPE_CHECKING:
    from exporter.credentials.sign import Credentials
    from exporter.trust.check import Trust

STDIN = Path("-")


@click.command("run")
@click.argument("package", type=PLACE)
@click.argument("prompts", nargs=-1, callback=as_typed)
@click.option(
    "--prompts",
    "listed",
    type=PLACE,
    help="A text file with more prompts, one per line; - reads them from standard input.",
)
@click.option(
    "--seed",
    "seeds",
    type=Seed(drawn=True),
    multiple=True,
    default=(0,),
    show_default=True,
    help=f"Seed of the noise, or {RANDOM} (repeatable: one picture per seed).",
)
@click.option(
    "--out",
    type=PLACE,
    default=Path("fourstep.png"),
    show_default=True,
    help="Picture to write, in any format of Pillow's; several get -0, -1, ... before the suffix.",
)
@click.option(
    "--watch",
    type=PLACE,
    help="A text file with prompts, one per line, in place of PROMPTS: drawn now, and whatever "
    "changes in it as soon as it does, until Ctrl-C. Graphs stay open, as with --at-once.",
)
@size_option
@click.option("--image", type=PLACE, help="Start from this picture.")
@click.option(
    "--strength",
    type=float,
    default=1.0,
    show_default=True,
    help="With --image: how much of it is drawn anew, above 0 up to 1.",
)
@click.option(
    "--fit",
    type=click.Choice(FITS),
    help="With --image: to another size; cover (default) cuts, contain pads, stretch distorts.",
)
@click.option(
    "--background",
    callback=as_typed,
    help=f"With --image: colour below what is transparent and beside it [default: {BACKGROUND}].",
)
@click.option(
    "--negative",
    callback=as_typed,
    help="What not to draw, for packages with guidance; empty unless given.",
)
@click.option("--previews", type=PLACE, help="Folder for a preview per step.")
@click.option(
    "--no-metadata", is_flag=True, help="Do not write prompt, seed and package into pictures."
)
@click.option(
    "--credentials",
    nargs=2,
    metavar="CERT KEY",
    callback=as_typed,
    help="Sign Content Credentials (C2PA) into .png, .jpg or .webp: a certificate chain and its "
    f"key, PEM files, or a pkcs11: URI as key. {PASSPHRASE}: of an encrypted one.",
)
@click.option(
    "--exact", is_flag=True, help="Compute in float32 even where activations are rounded."
)
@device_option
@half_option
@at_once_option
@cache_option
@trusted_option
@check_always_option
@json_option
def command(
    package: Path,
    prompts: Sequence[str],
    listed: Path | None,
    seeds: Sequence[int],
    out: Path,
    watch: Path | None,
    size: str | None,
    image: Path | None,
    strength: float,
    fit: Fit | None,
    background: str | None,
    negative: str | None,
    previews: Path | None,
    no_metadata: bool,
    credentials: tuple[str, str] | None,
    exact: bool,
    device: str | None,
    half: bool,
    at_once: bool,
    cache: Path | None,
    trusted: Trust | None,
    check_always: bool,
    as_json: bool,
) -> None:
    """Draw PROMPTS with PACKAGE, one picture per prompt and seed."""
    if half and exact:
        raise InputError("--half and --exact ask for opposites; leave one out")
    precision: Precision = "half" if half else "float32" if exact else "packaged"
    options = SessionOptions(precision, device, cache)
    order = Order(
        Chosen(package, trusted, "always" if check_always else "once"),
        seeds,
        negative,
        Start(image, strength, fit, background, size),
        Output(out, previews, not no_metadata, _credentials(credentials)),
        options,
    )
    try:
        if watch is not None:
            _watch(order, watch, prompts, listed, as_json)
        rows = list(drawn(order, _prompts(prompts, listed), at_once))
    except CheckFailed as error:  # a damaged package is the user's input here
        raise InputError(str(error)) from None
    if as_json:
        show_json(rows)
    else:
        for row in rows:
            show(_line(row))
    _tell_rejected(rows)


def _watch(
    order: Order, file: Path, prompts: Sequence[str], listed: Path | None, as_json: bool
) -> NoReturn:
    """Draw what is in a file, again and again; tell of each picture when it is there."""
    if prompts or listed is not None:
        raise InputError("--watch takes the place of prompts; leave the others out")
    if file == STDIN:
        raise InputError("--watch: standard input cannot be watched; name a file")
    for row in drawn_at_changes(order, file, partial(_prompts, (), file, "watch")):
        if as_json:
            show_json(json.dumps(row, ensure_ascii=False))
        else:
            show(_line(row))
    raise AssertionError("a file is watched without end")


def _line(row: Mapping[str, Any]) -> str:
    """What is told of a picture."""
    signed = row["credentials"]
    by = f"  signed by {signed['signer']!r}" if signed else ""
    what = f"rejected, score {row['score']:.3g}" if row["rejected"] else row["path"]
    return f"{what}  {row['prompt']!r}  seed {row['seed']}{by}"


def _tell_rejected(rows: Sequence[Mapping[str, Any]]) -> None:
    """Raise PicturesRejected if a package's filter held pictures back."""
    rejected = [row for row in rows if row["rejected"]]
    if rejected:
        labels = ", ".join(sorted({row["label"] for row in rejected if row["label"]}))
        what = f" ({labels})" if labels else ""
        raise PicturesRejected(
            f"{len(rejected)} of {len(rows)} pictures were rejected by the package's filter{what}; "
            "nothing was written of them"
        )


def _credentials(given: tuple[str, str] | None) -> Credentials | None:
    """What to sign with, as it was typed."""
    from exporter.credentials.sign import Credentials
    from exporter.credentials.token import SCHEME

    if not given:
        return None
    certificate, key = given
    place = key if key.startswith(SCHEME) else PLACE.convert(key, None, None)
    return Credentials(
        PLACE.convert(certificate, None, None), place, os.environ.get(PASSPHRASE) or None
    )


def _prompts(typed: Sequence[str], listed: Path | None, field: str = "prompts") -> list[str]:
    """What to draw: what was typed, then what is in the file.

    Args:
        field: that named the file.
    """
    from exporter.drawing.text import check_prompt

    if any(not prompt.strip() for prompt in typed):
        raise InputError("the prompt is empty; say what to draw")
    for prompt in typed:
        check_prompt(prompt)
    lines = _listed(listed, field) if listed is not None else {}
    for number, prompt in lines.items():
        try:
            check_prompt(prompt)
        except InputError as error:
            raise InputError(f"{listed}, line {number}: {error}", field=field) from None
    if not typed and not lines:
        raise InputError("say what to draw: a prompt, or --prompts FILE with one per line")
    return [*typed, *lines.values()]


def _listed(file: Path, field: str) -> dict[int, str]:
    from exporter.files.prompts import prompts_from, read_prompts

    def failure(said: str) -> InputError:
        return InputError(said, field=field)

    if file != STDIN:
        return read_prompts(file, failure)
    if sys.stdin is None:  # closed
        raise failure("standard input is closed; name a file")
    return prompts_from(sys.stdin.buffer, failure)

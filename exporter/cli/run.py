"""``fourstep run``: draw prompts with a package."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from exporter.backends.contract import Precision, SessionOptions
from exporter.cli.options import (
    PLACE,
    SEED,
    as_typed,
    at_once_option,
    cache_option,
    device_option,
    half_option,
    json_option,
)
from exporter.cli.output import show, show_json, show_warning
from exporter.errors import CheckFailed, InputError
from exporter.progress import Progress, bar_on_terminal, end_of_bar

if TYPE_CHECKING:
    from exporter.drawing.loop import Player, Request

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@click.command("run")
@click.argument("package", type=PLACE)
@click.argument("prompts", nargs=-1, required=True, callback=as_typed)
@click.option(
    "--seed",
    "seeds",
    type=SEED,
    multiple=True,
    default=(0,),
    show_default=True,
    help="Seed of the noise (repeatable: one picture per seed).",
)
@click.option(
    "--out",
    type=PLACE,
    default=Path("fourstep.png"),
    show_default=True,
    help="Picture to write; several get -0, -1, ... before the suffix.",
)
@click.option("--image", type=PLACE, help="Start from this picture.")
@click.option(
    "--strength",
    type=float,
    default=1.0,
    show_default=True,
    help="With --image: how much of it is drawn anew, above 0 up to 1.",
)
@click.option("--previews", type=PLACE, help="Folder for a preview per step.")
@click.option(
    "--exact", is_flag=True, help="Compute in float32 even where activations are rounded."
)
@device_option
@half_option
@at_once_option
@cache_option
@json_option
def command(
    package: Path,
    prompts: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    image: Path | None,
    strength: float,
    previews: Path | None,
    exact: bool,
    device: str | None,
    half: bool,
    at_once: bool,
    cache: Path | None,
    as_json: bool,
) -> None:
    """Draw PROMPTS with PACKAGE, one picture per prompt and seed."""
    from exporter.drawing.text import PromptCut

    if half and exact:
        raise InputError("--half and --exact ask for opposites; leave one out")
    precision: Precision = "half" if half else "float32" if exact else "packaged"
    options = SessionOptions(precision, device, cache)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", PromptCut)
            warnings.showwarning = show_warning
            rows = _run(package, prompts, seeds, out, image, strength, previews, options, at_once)
    except CheckFailed as error:  # a damaged package is the user's input here
        raise InputError(str(error)) from None
    if as_json:
        show_json(rows)
    else:
        for row in rows:
            show(f"{row['path']}  {row['prompt']!r}  seed {row['seed']}")


def _run(
    folder: Path,
    prompts: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    image: Path | None,
    strength: float,
    previews: Path | None,
    options: SessionOptions,
    at_once: bool,
) -> list[dict[str, Any]]:
    from exporter import runtime
    from exporter.drawing.text import check_prompt
    from exporter.files.pictures import read_picture

    if any(not p.strip() for p in prompts):
        raise InputError("the prompt is empty; say what to draw")
    for prompt in prompts:
        check_prompt(prompt)
    if strength != 1.0 and image is None:
        raise InputError("--strength applies to --image only")
    source = None if image is None else read_picture(image)
    requests = [runtime.Request(p, s, source, strength) for p in prompts for s in seeds]
    places = _places(out, len(requests))
    package = runtime.open_package(folder)
    if previews is not None:
        _make_folder(previews)
    with package.player(options, keep=at_once) as player:
        return _draw(player, requests, places, previews)


def _draw(
    player: Player, requests: Sequence[Request], places: Sequence[Path], previews: Path | None
) -> list[dict[str, Any]]:
    """Draw and save; a row of facts for each picture."""
    from exporter.drawing.loop import Conditioned, Step, generate
    from exporter.files.pictures import write_picture

    progress = Progress(bar_on_terminal, expected=len(requests) * (player.schedule.steps + 1) + 1)
    rows, started = [], time.perf_counter()
    for event in generate(player, requests):
        if isinstance(event, Conditioned):
            progress(f"{event.prompts} prompt(s) encoded")
        elif isinstance(event, Step):
            progress(f"picture {event.index + 1}: step {event.step} of {event.steps}")
            if previews is not None and event.preview is not None:
                write_picture(event.preview(), previews / f"{event.index}-{event.step}.png")
        else:
            write_picture(event.pixels, places[event.index])
            progress(f"picture {event.index + 1}: {places[event.index]}")
            rows.append(
                {
                    "path": str(places[event.index]),
                    "prompt": event.request.prompt,
                    "seed": event.request.seed,
                    "seconds": round(time.perf_counter() - started, 3),
                }
            )
    end_of_bar()
    return rows


def _places(out: Path, count: int) -> list[Path]:
    """Where pictures go; refuses before anything is drawn."""
    if out.suffix.lower() not in PICTURES:
        raise InputError(f"--out {out}: must end in {', '.join(PICTURES)}")
    if not out.parent.is_dir():
        raise InputError(f"--out {out}: folder '{out.parent}' does not exist")
    if not os.access(out.parent, os.W_OK):
        raise InputError(f"--out {out}: folder '{out.parent}' cannot be written")
    places = [out]
    if count > 1:
        places = [out.with_name(f"{out.stem}-{i}{out.suffix}") for i in range(count)]
    for place in places:
        if place.is_dir():
            raise InputError(f"--out {place}: is a folder; name a file")
    return places


def _make_folder(previews: Path) -> None:
    try:
        previews.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--previews {previews}: {error.strerror}; name a folder") from None

"""``fourstep bench``: seconds and memory of packages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from exporter import backends
from exporter.backends.contract import SessionOptions
from exporter.cli.options import (
    PLACE,
    SEED,
    as_typed,
    at_once_option,
    cache_option,
    device_option,
    half_option,
    json_option,
    size_option,
)
from exporter.cli.output import complain, show, show_json
from exporter.errors import InputError
from exporter.progress import Progress, bar_on_terminal, end_of_bar


@click.command("bench")
@click.argument("packages", type=PLACE, nargs=-1, required=True)
@click.option(
    "--prompt",
    default="two red circles left of a blue square",
    show_default=True,
    callback=as_typed,
)
@click.option("--seed", type=SEED, default=0, show_default=True)
@size_option
@device_option
@half_option
@at_once_option
@cache_option
@json_option
def command(
    packages: Sequence[Path],
    prompt: str,
    seed: int,
    size: str | None,
    device: str | None,
    half: bool,
    at_once: bool,
    cache: Path | None,
    as_json: bool,
) -> None:
    """Time PACKAGES: two pictures of each, in a process of its own.

    With --cache each draws once while the folder fills and once from it.
    """
    from exporter.bench.bench import bench as measure
    from exporter.bench.bench import table
    from exporter.bench.process import Asked
    from exporter.drawing.text import check_prompt
    from exporter.runtime.package import open_package

    if not prompt.strip():
        raise InputError("the prompt is empty; say what to draw")
    check_prompt(prompt)
    options = SessionOptions("half" if half else "packaged", device, cache)
    opened = [open_package(folder) for folder in packages]
    for package in opened:
        if size is not None:
            package.at(size)
        backends.load_to_run(package.manifest.backend)
        backends.check_session(package.manifest.backend, options)
    pictures = 2 * (2 if cache else 1) * len(opened)
    steps = opened[0].manifest.schedule.steps
    progress = Progress(bar_on_terminal, expected=pictures * (steps + 1))
    rows = list(measure(opened, Asked(prompt, seed, size or ""), progress, options, at_once))
    end_of_bar()
    for remark in dict.fromkeys(remark for row in rows for remark in row.drawn.remarks):
        complain(f"warning: {remark}")
    if as_json:
        show_json([row.to_json() for row in rows])
    else:
        show(table(rows))

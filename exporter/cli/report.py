"""``fourstep report``: one page about a folder of packages."""

from __future__ import annotations

from pathlib import Path

import click

from exporter.cli.options import PLACE, json_option
from exporter.cli.output import megabytes, show, show_json
from exporter.errors import CheckFailed, InputError
from exporter.progress import Progress, bar_on_terminal, end_of_bar


@click.command("report")
@click.argument("folder", metavar="DIR", type=PLACE)
@click.option(
    "--out",
    type=PLACE,
    help="Folder of the page and its data; DIR/report unless given.",
)
@click.option(
    "--prompts",
    type=PLACE,
    help="Draw these, one per line, in place of the golden ones.",
)
@click.option(
    "--metric",
    type=PLACE,
    help="A Python file with measure(prompts, pictures, references) -> numbers by name.",
)
@json_option
def command(
    folder: Path, out: Path | None, prompts: Path | None, metric: Path | None, as_json: bool
) -> None:
    """Write one self-contained HTML page about all packages in DIR."""
    from exporter.package.measures import finite
    from exporter.report.facts import summary
    from exporter.report.make import make
    from exporter.report.markup import decibels

    place = out or folder / "report"
    try:
        made = make(folder, place, prompts, metric, Progress(bar_on_terminal))
    except CheckFailed as error:  # a damaged package is the user's input here
        raise InputError(str(error)) from None
    end_of_bar()
    rows = [summary(entry) for entry in made.packages]
    if as_json:
        found = {"path": str(place / "index.html"), "packages": finite(rows)}
        show_json(found)
        return
    for entry in made.packages:
        quality = f"final latent {decibels(entry.latent_snr_db)} dB"
        state = quality if entry.drawn else "; ".join(entry.remarks[:1])
        show(f"{entry.name}  {megabytes(entry.manifest.bytes)}  {state}")
    show(str(place / "index.html"))

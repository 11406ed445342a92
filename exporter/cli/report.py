"""``fourstep report``: one page about a folder of packages."""

from __future__ import annotations

import json
from pathlib import Path

import click

from exporter.cli.options import json_option
from exporter.cli.output import megabytes
from exporter.errors import CheckFailed, InputError
from exporter.progress import Progress, bar_on_terminal, end_of_bar


@click.command("report")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of the page and its data; DIR/report unless given.",
)
@click.option(
    "--prompts",
    type=click.Path(path_type=Path),
    help="Draw these, one per line, in place of the golden ones.",
)
@click.option(
    "--metric",
    type=click.Path(path_type=Path),
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
        click.echo(json.dumps(found, indent=1))
        return
    for entry in made.packages:
        quality = f"final latent {decibels(entry.latent_snr_db)} dB"
        state = quality if entry.drawn else "; ".join(entry.remarks[:1])
        click.echo(f"{entry.name}  {megabytes(entry.manifest.bytes)}  {state}")
    click.echo(place / "index.html")

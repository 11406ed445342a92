"""``fourstep recipe``: a recipe for whatever checkpoint is there."""

from __future__ import annotations

from pathlib import Path

import click

from exporter.cli.options import PLACE
from exporter.cli.output import require_build, show
from exporter.errors import InputError
from exporter.files.lock import write_alone


@click.command("recipe")
@click.argument("place", metavar="CHECKPOINT")
@click.option("-o", "--out", type=PLACE, help="The file to write; on stdout otherwise.")
@click.option("--replace", is_flag=True, help="Write over a file that is there.")
@click.option("--revision", help="Of a hub id: branch, tag or commit.")
@click.option("--variant", help="Of the weights' files, such as fp16.")
def command(
    place: str, out: Path | None, replace: bool, revision: str | None, variant: str | None
) -> None:
    """Write a commented recipe that builds CHECKPOINT, from what is there.

    CHECKPOINT is a folder in diffusers layout, a single file, or a hub id that was fetched.
    """
    require_build()
    from exporter.checkpoint.survey import refuse_lora
    from exporter.recipe.draft import CheckpointName, draft

    place = str(PLACE.convert(place, None, None)) if place.startswith("~") else place
    if out and out.exists() and not replace:
        raise InputError(f"{out}: is there already; choose another name, or add --replace")
    refuse_lora(place)
    text = draft(CheckpointName(place, revision, variant), out.parent if out else Path())
    if out is None:
        show(text.removesuffix("\n"))
        return
    write_alone(out, text)
    show(str(out))

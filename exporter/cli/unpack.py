"""``fourstep unpack``: the package that packs hold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from exporter.cli.options import PLACE, json_option, trusted_option
from exporter.cli.output import megabytes, show, show_json
from exporter.errors import CheckFailed, InputError
from exporter.progress import Progress, bar_on_terminal, end_of_bar

if TYPE_CHECKING:
    from exporter.trust.check import Trust


@click.command("unpack")
@click.argument("source", metavar="DIR_OR_FILE", type=PLACE)
@click.option("-o", "--out", type=PLACE, required=True, help="Folder of the package.")
@trusted_option
@json_option
def command(source: Path, out: Path, trusted: Trust | None, as_json: bool) -> None:
    """Put together the package that fourstep pack cut into DIR_OR_FILE.

    Packs may lie anywhere in the folder, as a store delivered them. After an interruption the same
    command goes on.

    \b
    fourstep unpack packs -o artifacts/unpacked
    """
    from exporter.delivery.unpack import unpack

    try:
        made = unpack(source, out, Progress(bar_on_terminal), trusted)
    except CheckFailed as error:  # damaged packs are the user's input here
        raise InputError(str(error)) from None
    end_of_bar()
    index = made.index
    row = {
        "path": str(out),
        "package_sha256": index.package_sha256,
        "name": index.name,
        "backend": index.backend,
        "scheme": index.scheme,
        "files": len(index.files),
        "bytes": index.bytes,
        "was_there": made.was_there,
    }
    if as_json:
        show_json(row)
    else:
        told = "is there already" if made.was_there else "written"
        show(f"{out}  {len(index.files)} files  {megabytes(index.bytes)}  {told}")

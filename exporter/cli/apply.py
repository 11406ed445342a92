"""``fourstep apply``: the new package of an old one and a delta."""

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


@click.command("apply")
@click.argument("delta", metavar="FILE", type=PLACE)
@click.option("--to", "old", type=PLACE, required=True, help="The package that FILE is for.")
@click.option(
    "-o", "--out", type=PLACE, required=True, help="Folder of the new package; may be that of --to."
)
@trusted_option
@json_option
def command(delta: Path, old: Path, out: Path, trusted: Trust | None, as_json: bool) -> None:
    """Make the new package that the delta FILE is for, whole or not at all.

    Takes at most 64 MB of memory. After an interruption the same command goes on.

    \b
    fourstep apply update.delta --to artifacts/shapes-flash/onnx-int8 -o artifacts/updated
    """
    from exporter.delivery.apply import apply

    try:
        made = apply(delta, old, out, Progress(bar_on_terminal), trusted)
    except CheckFailed as error:  # a damaged delta or package is the user's input here
        raise InputError(str(error)) from None
    end_of_bar()
    row = {
        "path": str(out),
        "old_sha256": made.delta.old_sha256,
        "new_sha256": made.delta.new_sha256,
        "bytes": made.bytes,
        "was_there": made.was_there,
    }
    if as_json:
        show_json(row)
    else:
        told = "is there already" if made.was_there else "written"
        show(f"{out}  {megabytes(made.bytes)}  {told}")

"""``fourstep delta``: what makes a new package from an old one."""

from __future__ import annotations

from pathlib import Path

import click

from exporter.cli.options import PLACE, json_option
from exporter.cli.output import megabytes, show, show_json
from exporter.errors import CheckFailed, InputError
from exporter.progress import Progress, bar_on_terminal, end_of_bar


@click.command("delta")
@click.argument("old", type=PLACE)
@click.argument("new", type=PLACE)
@click.option("-o", "--out", type=PLACE, required=True, help="File of the delta.")
@json_option
def command(old: Path, new: Path, out: Path, as_json: bool) -> None:
    """Write what makes the package NEW from the package OLD: the tensors that changed.

    fourstep apply makes NEW from it on a device that has OLD.

    \b
    fourstep delta artifacts/shapes-flash/onnx-int8 artifacts/shapes-flash/onnx-int4 -o update.delta
    """
    from exporter.delivery.delta import write_delta
    from exporter.runtime.package import open_package

    try:
        before, after = open_package(old), open_package(new)
        delta = write_delta(before, after, out, Progress(bar_on_terminal))
    except CheckFailed as error:  # a damaged package is the user's input here
        raise InputError(str(error)) from None
    end_of_bar()
    row = {
        "path": str(out),
        "old_sha256": delta.old_sha256,
        "new_sha256": delta.new_sha256,
        "changed_files": len(delta.files),
        "changed_bytes": sum(file.bytes for file in delta.files),
        "pieces": len(delta.pieces),
        "piece_bytes": sum(piece.bytes for piece in delta.pieces),
        "bytes": out.stat().st_size,
    }
    if as_json:
        show_json(row)
    else:
        show(
            f"{out}  {megabytes(out.stat().st_size)} for {len(delta.files)} files of "
            f"{megabytes(sum(file.bytes for file in delta.files))} that changed"
        )

"""``fourstep pack``: a package cut into chunks for a store."""

from __future__ import annotations

from pathlib import Path

import click

from exporter.cli.options import PLACE, json_option
from exporter.cli.output import megabytes, show, show_json
from exporter.errors import CheckFailed, InputError
from exporter.progress import Progress, bar_on_terminal, end_of_bar


@click.command("pack")
@click.argument("package", type=PLACE)
@click.option("--for", "target", required=True, help="Where it goes: play, appstore or ota.")
@click.option("-o", "--out", type=PLACE, required=True, help="Folder of the packs.")
@json_option
def command(package: Path, target: str, out: Path, as_json: bool) -> None:
    """Cut PACKAGE into chunks named by their digests, as a store takes them.

    play: AI packs of Google Play, Gradle modules; appstore: Background Assets of Apple; ota: one
    archive. fourstep unpack puts it together again.

    \b
    fourstep pack artifacts/shapes-flash/onnx-int4 --for play -o packs
    """
    from exporter.delivery.pack import pack
    from exporter.delivery.stores import load_store, stored_in
    from exporter.runtime.package import open_package

    store = load_store(target)
    try:
        index = pack(open_package(package), store, out, Progress(bar_on_terminal))
    except CheckFailed as error:  # a damaged package is the user's input here
        raise InputError(str(error)) from None
    end_of_bar()
    row = {
        "path": str(out),
        "target": index.target,
        "package_sha256": index.package_sha256,
        "packs": [
            {"name": name, "stored_bytes": stored_in(index, number)}
            for number, name in enumerate(index.packs)
        ],
        "chunks": len(index.chunks),
        "files": len(index.files),
        "bytes": index.bytes,
        "stored_bytes": index.stored_bytes,
    }
    if as_json:
        show_json(row)
    else:
        show(
            f"{out}  {store.title}: {len(index.packs)} of {megabytes(index.stored_bytes)} for "
            f"{megabytes(index.bytes)}, {len(index.chunks)} chunks"
        )

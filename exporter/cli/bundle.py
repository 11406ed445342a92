"""``fourstep bundle``: a package with the loop in a device's language."""

from __future__ import annotations

from pathlib import Path

import click

from exporter.cli.options import PLACE, json_option
from exporter.cli.output import megabytes, show, show_json
from exporter.errors import CheckFailed, InputError
from exporter.progress import Progress, bar_on_terminal, end_of_bar


@click.command("bundle")
@click.argument("package", type=PLACE)
@click.option("--for", "target", required=True, help="What it is to run on, such as cpp.")
@click.option("-o", "--out", type=PLACE, required=True, help="Folder of the project.")
@click.option("--without-golden", is_flag=True, help="Leave out what the runtime is tested with.")
@click.option("--engine", type=PLACE, help="Folder of the engine's files, where some go along.")
@json_option
def command(
    package: Path, target: str, out: Path, without_golden: bool, engine: Path | None, as_json: bool
) -> None:
    """Write a project that draws with PACKAGE: its files, a runtime, licences and a README."""
    from exporter.bundle.target import load_target
    from exporter.bundle.write import LINES, write_bundle
    from exporter.runtime.package import open_package

    wanted = load_target(target)
    progress = Progress(bar_on_terminal, LINES)
    try:
        opened = open_package(package)
        made = write_bundle(opened, wanted, out, not without_golden, progress, engine)
    except CheckFailed as error:  # a damaged package is the user's input here
        raise InputError(str(error)) from None
    end_of_bar()
    row = {
        "path": str(out),
        "target": made.target,
        "package": made.package.name,
        "backend": made.package.backend,
        "scheme": made.package.scheme,
        "golden": made.package.golden,
        "files": len(made.files),
        "bytes": made.bytes,
    }
    if as_json:
        show_json(row)
    else:
        show(f"{out}  {wanted.title}  {len(made.files)} files  {megabytes(made.bytes)}")

"""``fourstep bom``: the bill of materials of a package that is there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from exporter.cli.options import PLACE, json_option
from exporter.cli.output import show, show_json
from exporter.errors import CheckFailed, InputError
from exporter.files.lock import write_alone
from exporter.files.read import parse_json
from exporter.progress import Progress, bar_on_terminal, end_of_bar

if TYPE_CHECKING:
    from exporter.package.layout import LayoutManifest
    from exporter.package.manifest import Manifest


@click.command("bom")
@click.argument("package", type=PLACE)
@click.option("-o", "--out", type=PLACE, required=True, help="The file to write.")
@click.option("--replace", is_flag=True, help="Write over a file that is there.")
@json_option
def command(package: Path, out: Path, replace: bool, as_json: bool) -> None:
    """Write what PACKAGE is made of as a CycloneDX ML-BOM: licences, origin, quantization, files.

    Packages of format 4.2 hold theirs as sbom.cdx.json, with the same bytes. It is checked against
    the schema. Example: fourstep bom artifacts/shapes-flash/onnx-int4 -o shapes.cdx.json
    """
    from exporter.bom.licence import require_library
    from exporter.bom.write import check_schema

    require_library()
    if out.exists() and not replace:
        raise InputError(f"{out}: is there already; choose another name, or add --replace")
    if package.resolve() in out.resolve().parents:
        raise InputError(f"{out}: lies in the package, which lists all its files; choose another")
    progress = Progress(bar_on_terminal, 1)
    try:
        text, manifest, files = _bill(package, progress)
    except CheckFailed as error:  # a damaged package is the user's input here
        raise InputError(str(error)) from None
    end_of_bar()
    check_schema(text)
    write_alone(out, text.encode())
    bill = parse_json(text, out)
    row = {
        "path": str(out),
        "spec_version": bill["specVersion"],
        "serial_number": bill["serialNumber"],
        "licence": manifest.origin.licence_id,
        "files": files,
    }
    if as_json:
        show_json(row)
    else:
        files, serial = row["files"], row["serial_number"]
        show(f"{out}  CycloneDX {row['spec_version']}, {files} files, {serial}")


def _bill(package: Path, progress: Progress) -> tuple[str, Manifest | LayoutManifest, int]:
    """The bill of a package or of a folder in another layout, what it is of, and its files."""
    from exporter.bom.evidence import evidence_in
    from exporter.bom.write import bill_of, bill_of_layout
    from exporter.package.layout import check_layout, is_layout
    from exporter.runtime.package import open_package
    from exporter.runtime.verify import check_files

    if is_layout(package):
        layout = check_layout(package)
        return bill_of_layout(layout), layout, len(layout.files)
    opened = open_package(package)
    check_files(opened, progress)
    manifest = opened.manifest
    bill = bill_of(manifest, evidence_in(package, manifest))
    return bill, manifest, len(manifest.all_files)

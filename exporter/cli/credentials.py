"""``fourstep credentials``: the Content Credentials of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from exporter.cli.options import PLACE, json_option
from exporter.cli.output import show, show_json
from exporter.errors import CheckFailed

if TYPE_CHECKING:
    from exporter.credentials.check import Found


@click.command("credentials")
@click.argument("pictures", type=PLACE, nargs=-1, required=True)
@click.option("--trust", type=PLACE, help="A PEM file of authorities: the signer must be of one.")
@json_option
def command(pictures: Sequence[Path], trust: Path | None, as_json: bool) -> None:
    """Show who signed PICTURES and what is claimed, and whether they were changed since.

    Fails for a picture that is not signed, that was changed since, or whose certificate expired,
    and with --trust for one whose signer is not of an authority in it.
    """
    from exporter.credentials.check import read_credentials

    found = {picture: read_credentials(picture, trust) for picture in pictures}
    _show(found, as_json)
    for picture, credentials in found.items():
        if not _ok(credentials, trust):
            raise CheckFailed(f"{picture}: {_why(credentials)}")


def show_credentials(picture: Path, as_json: bool) -> None:
    """Show a picture's, whatever they are."""
    from exporter.credentials.check import read_credentials

    _show({picture: read_credentials(picture)}, as_json)


def _show(found: Mapping[Path, Found], as_json: bool) -> None:
    if as_json:
        show_json([{"path": str(path), **asdict(one)} for path, one in found.items()])
        return
    for path, one in found.items():
        show("\n".join(_lines(path, one)))


def _ok(found: Found, trust: Path | None) -> bool:
    return found.state == "trusted" or (trust is None and found.state == "valid")


def _why(found: Found) -> str:
    if found.state == "not signed":
        return "is not signed"
    if found.state == "invalid":
        return f"its Content Credentials are invalid: {'; '.join(found.problems)}"
    return "its signer is of no authority that --trust names"


def _lines(picture: Path, found: Found) -> list[str]:
    """A picture's credentials for reading."""
    if found.state == "not signed":
        return [f"{picture}  not signed"]
    by = f"{found.signer!r} of {found.issuer!r}" if found.issuer else repr(found.signer)
    lines = [f"{picture}  {found.state}, signed by {by} ({found.algorithm})"]
    kinds = ", ".join(dict.fromkeys(found.source_types)) or "of no source that is named"
    lines.append(f"  {kinds}; {', '.join(found.actions)}, by {found.generator}")
    if found.ingredients:
        lines.append(f"  made from {found.ingredients} other picture(s)")
    if found.model:
        told = found.model
        lines.append(
            f"  {told.get('name')} {told.get('backend')}-{told.get('scheme')}, package "
            f"{str(told.get('package_sha256'))[:12]}, licence {told.get('licence') or 'not named'}"
        )
    return lines + [f"  {problem}" for problem in found.problems]

"""``fourstep sign``: a signature over every file of a package."""

from __future__ import annotations

import os
from pathlib import Path

import click

from exporter.cli.options import PASSPHRASE, PLACE, as_typed, json_option
from exporter.cli.output import show, show_json
from exporter.errors import CheckFailed, InputError
from exporter.package.read import SIGNATURE
from exporter.progress import Progress, bar_on_terminal, end_of_bar


@click.command("sign")
@click.argument("package", type=PLACE)
@click.option(
    "--key",
    required=True,
    callback=as_typed,
    help="Private key: a PEM file (P-256, P-384 or P-521), or a pkcs11: URI of one in a token. "
    f"{PASSPHRASE}: of an encrypted one.",
)
@click.option(
    "--certificate",
    type=PLACE,
    help="PEM file: the key's certificate, then those that issued it.",
)
@json_option
def command(package: Path, key: str, certificate: Path | None, as_json: bool) -> None:
    """Sign PACKAGE: its manifest and every file, as OpenSSF model-signing does.

    The signature is the file model.sig in it: fourstep sign PACKAGE --key maker.key.pem
    """
    from exporter.credentials.token import SCHEME
    from exporter.package.layout import refuse_layout
    from exporter.trust.sign import SigningKey, sign_package

    place = key if key.startswith(SCHEME) else PLACE.convert(key, None, None)
    with_key = SigningKey(place, certificate, os.environ.get(PASSPHRASE) or None)
    try:
        refuse_layout(package)
        if not (package / "manifest.json").is_file():
            raise InputError(f"{package}: not a package (no manifest.json)")
        made = sign_package(package, with_key, Progress(bar_on_terminal, 1))
    except CheckFailed as error:  # a damaged package is the user's input here
        raise InputError(str(error)) from None
    end_of_bar()
    row = {
        "path": str(package / SIGNATURE),
        "signer": made.by,
        "algorithm": made.algorithm,
        "files": made.files,
        "replaced": made.replaced,
    }
    if as_json:
        show_json(row)
    else:
        again = ", in place of an earlier one" if made.replaced else ""
        show(f"{row['path']}  {made.files} files, signed by {made.by} ({made.algorithm}){again}")

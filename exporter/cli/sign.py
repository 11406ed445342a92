"""``fourstep sign``: a signature over every file of a package."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from exporter.cli.options import PASSPHRASE, PLACE, as_typed, json_option
from exporter.cli.output import show, show_json
from exporter.errors import CheckFailed, InputError
from exporter.package.read import SIGNATURE
from exporter.progress import Progress, bar_on_terminal, end_of_bar

if TYPE_CHECKING:
    from exporter.trust.keyless import SigningIdentity
    from exporter.trust.sign import SigningKey


@click.command("sign")
@click.argument("package", type=PLACE)
@click.option(
    "--key",
    callback=as_typed,
    help="Private key: a PEM file (P-256, P-384 or P-521), or a pkcs11: URI of one in a token. "
    f"{PASSPHRASE}: of an encrypted one.",
)
@click.option(
    "--certificate",
    type=PLACE,
    help="PEM file: the key's certificate, then those that issued it.",
)
@click.option(
    "--identity",
    metavar="FILE|env:NAME",
    callback=as_typed,
    help="In place of a key: a file, or a variable, with an identity token (OpenID Connect). Asks "
    "Sigstore's authority and log over the network.",
)
@click.option(
    "--trust-config",
    type=PLACE,
    help="With --identity: the trust configuration (JSON) of a private instance of Sigstore.",
)
@json_option
def command(
    package: Path,
    key: str | None,
    certificate: Path | None,
    identity: str | None,
    trust_config: Path | None,
    as_json: bool,
) -> None:
    """Sign PACKAGE: its manifest and every file, as OpenSSF model-signing does.

    The signature is the file model.sig in it: fourstep sign PACKAGE --key maker.key.pem
    """
    from exporter.package.layout import is_layout
    from exporter.trust.sign import sign_package

    signer = _signer(key, certificate, identity, trust_config)
    try:
        if not (package / "manifest.json").is_file() and not is_layout(package):
            raise InputError(f"{package}: not a package (no manifest.json)")
        made = sign_package(package, signer, Progress(bar_on_terminal, 1))
    except CheckFailed as error:  # a damaged package is the user's input here
        raise InputError(str(error)) from None
    end_of_bar()
    row = {
        "path": str(package / SIGNATURE),
        "signer": made.by,
        "issuer": made.issuer or None,
        "algorithm": made.algorithm,
        "log_index": made.log_index,
        "files": made.files,
        "replaced": made.replaced,
    }
    if as_json:
        show_json(row)
    else:
        again = ", in place of an earlier one" if made.replaced else ""
        show(f"{row['path']}  {made.files} files, signed by {made.by} ({made.algorithm}){again}")


def _signer(
    key: str | None, certificate: Path | None, identity: str | None, trust_config: Path | None
) -> SigningKey | SigningIdentity:
    """A key or an identity, as it was asked for; raises InputError for both, none, or a rest."""
    from exporter.credentials.token import SCHEME
    from exporter.trust.keyless import SigningIdentity, read_token
    from exporter.trust.sign import SigningKey

    if (key is None) == (identity is None):
        raise InputError("give --key or --identity, and not both")
    if identity is not None:
        if certificate is not None:
            raise InputError(
                "--certificate goes with --key; an identity is given one; leave it out"
            )
        return SigningIdentity(read_token(identity), trust_config)
    if trust_config is not None:
        raise InputError("--trust-config goes with --identity; a key asks nobody; leave it out")
    assert key is not None
    place = key if key.startswith(SCHEME) else PLACE.convert(key, None, None)
    return SigningKey(place, certificate, os.environ.get(PASSPHRASE) or None)

"""Whether the certificates in a signature lead from the signer to one that is trusted, today."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from exporter.credentials.chain import issued, named, validity_problems

if TYPE_CHECKING:
    from cryptography.x509 import Certificate


def chain_problems(
    chain: tuple[Certificate, ...], anchors: tuple[Certificate, ...]
) -> Iterator[str]:
    """What is wrong with a chain, the signer's first; nothing if it ends in an anchor.

    Every certificate has to bear a signature that is checked, also one that is not needed: what
    nobody checks could be changed.
    """
    own = chain[0]
    if not anchors:
        yield f"is signed with a certificate, of '{named(own)}', and keys alone are trusted"
    yield from validity_problems(chain)
    for certificate in chain:
        if certificate not in anchors and not any(
            issued(certificate, issuer) for issuer in (*anchors, *chain)
        ):
            yield f"'{named(certificate)}' was issued by nobody that is trusted or stands with it"
    yield from _path(chain, anchors)
    if not _signs(own):
        yield f"the certificate of '{named(own)}' is not for signing"


def _path(chain: tuple[Certificate, ...], anchors: tuple[Certificate, ...]) -> Iterator[str]:
    """Whether X.509 lets the anchors vouch for the signer (RFC 5280), by ``cryptography``."""
    from cryptography import x509
    from cryptography.x509.verification import (
        Criticality,
        ExtensionPolicy,
        PolicyBuilder,
        Store,
        VerificationError,
    )

    authority = (
        ExtensionPolicy.permit_all()
        .require_present(x509.BasicConstraints, Criticality.AGNOSTIC, None)
        .may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _may_issue)
    )
    verifier = (
        PolicyBuilder()
        .store(Store(list(anchors)))
        .time(datetime.now(UTC))
        .extension_policies(ca_policy=authority, ee_policy=ExtensionPolicy.permit_all())
        .build_client_verifier()
    )
    try:
        verifier.verify(chain[0], list(chain[1:]))
    except VerificationError as error:
        for anchor in anchors:
            if any(issued(one, anchor) for one in chain):
                yield from validity_problems((anchor,))
        yield f"'{named(chain[0])}' signed it, whom nobody issued that is trusted: {_said(error)}"


def _said(error: Exception) -> str:
    return str(error).removeprefix("validation failed: ").partition(" (encountered")[0]


def _may_issue(policy: Any, certificate: Any, extension: Any) -> None:
    if extension is not None and not extension.key_cert_sign:
        raise ValueError("an authority's key usage lacks keyCertSign")


def _signs(own: Certificate) -> bool:
    """Whether a certificate is for signatures, as model-signing asks it."""
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    try:
        if own.extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature:
            return True
    except x509.ExtensionNotFound:
        pass
    try:
        purposes = own.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return False
    return ExtendedKeyUsageOID.CODE_SIGNING in purposes

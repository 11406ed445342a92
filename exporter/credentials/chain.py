"""The certificates that a signature comes with, held against the profile that C2PA demands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.credentials.keys import MOST_PEM_BYTES
from exporter.credentials.library import PURPOSES
from exporter.errors import InputError
from exporter.files.read import panics_as, read_text

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
MOST_CERTIFICATES = 20


@dataclass(frozen=True)
class Chain:
    """Certificates of a file, each issued by the next.

    Attributes:
        file: where they were read.
        certificates: the signer's own first.
    """

    file: Path
    certificates: tuple[Certificate, ...]

    @property
    def pem(self) -> str:
        return pem_of(self.certificates)

    @property
    def sha256(self) -> str:
        """Of the signer's own certificate, in hexadecimal."""
        from cryptography.hazmat.primitives import hashes

        return self.certificates[0].fingerprint(hashes.SHA256()).hex()

    @property
    def signer(self) -> str:
        """The name in the signer's own certificate."""
        return named(self.certificates[0])


def _unreadable(said: str) -> InputError:
    return InputError(f"{said}; name a PEM file of certificates, the signer's first")


def read_certificates(file: Path) -> tuple[Certificate, ...]:
    """The certificates of a PEM file, in order; raises InputError naming the file."""
    from cryptography.x509 import load_pem_x509_certificate

    found = CERTIFICATE.findall(read_text(file, _unreadable, MOST_PEM_BYTES))
    if not found:
        raise InputError(f"{file}: holds no certificate in PEM (-----BEGIN CERTIFICATE-----)")
    with panics_as(lambda said: InputError(f"{file}: cannot be read as certificates: {said}")):
        return tuple(load_pem_x509_certificate(text.encode()) for text in found)


def pem_of(certificates: tuple[Certificate, ...]) -> str:
    """Certificates as the library takes them, without what else stood in their file."""
    from cryptography.hazmat.primitives.serialization import Encoding

    return "".join(c.public_bytes(Encoding.PEM).decode() for c in certificates)


def read_chain(file: Path) -> Chain:
    """The certificates to sign with; raises InputError naming the file and what is wrong."""
    certificates = read_certificates(file)
    if len(certificates) > MOST_CERTIFICATES:
        raise InputError(f"{file}: more than {MOST_CERTIFICATES} certificates")
    with panics_as(lambda said: InputError(f"{file}: cannot be read as certificates: {said}")):
        problem = next(_problems(certificates), None)
    if problem:
        raise InputError(f"{file}: {problem}")
    return Chain(file, certificates)


def _problems(certificates: tuple[Certificate, ...]) -> Iterator[str]:
    """What readers of Content Credentials would refuse, in the order in which to mend it."""
    own = certificates[0]
    if issued(own, own):
        yield (
            f"'{named(own)}' is self-signed, and C2PA takes none that is; have an authority issue "
            "one (docs/credentials.md says what it must hold)"
        )
    if _is_authority(own):
        yield f"its first certificate, '{named(own)}', is an authority's; put the signer's first"
    yield from validity_problems(certificates)
    for certificate, issuer in pairwise(certificates):
        if not issued(certificate, issuer):
            yield (
                f"'{named(certificate)}' was not issued by '{named(issuer)}' below it; order them "
                "from the signer's to the root's"
            )
    yield from _uses(own)


def validity_problems(certificates: tuple[Certificate, ...]) -> Iterator[str]:
    """Which of them expired, or are not valid yet."""
    now = datetime.now(UTC)
    for certificate in certificates:
        first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if now > last:
            yield f"'{named(certificate)}' expired on {last:%Y-%m-%d}; bring a renewed one"
        if now < first:
            yield f"'{named(certificate)}' is not valid before {first:%Y-%m-%d %H:%M} UTC"


def _uses(own: Certificate) -> Iterator[str]:
    """Whether the signer's certificate may be used for this."""
    from cryptography import x509

    wanted = ", ".join(f"{name} ({oid})" for oid, name in PURPOSES.items())
    try:
        usage = own.extensions.get_extension_for_class(x509.KeyUsage).value
        purposes = own.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound as error:
        missing = error.oid._name
        yield f"'{named(own)}' has no {missing}; C2PA demands digitalSignature and one of {wanted}"
        return
    if not usage.digital_signature:
        yield f"the key usage of '{named(own)}' lacks digitalSignature, which C2PA demands"
    if not {oid.dotted_string for oid in purposes} & set(PURPOSES):
        yield f"the extended key usage of '{named(own)}' lacks one of {wanted}"


def _is_authority(certificate: Certificate) -> bool:
    from cryptography import x509

    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def issued(certificate: Certificate, issuer: Certificate) -> bool:
    """Whether a certificate bears the signature of the issuer's key, and its name."""
    from cryptography.exceptions import InvalidSignature

    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def named(certificate: Certificate) -> str:
    """What a certificate calls its owner."""
    from cryptography.x509.oid import NameOID

    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else certificate.subject.rfc4514_string()

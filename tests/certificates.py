"""Certificates and keys as tests need them: an authority, and signers that it issues."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

MAIL = ExtendedKeyUsageOID.EMAIL_PROTECTION
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Issued:
    """A certificate, its key, and those that issued it."""

    certificate: x509.Certificate
    key: Any
    above: tuple[x509.Certificate, ...] = ()

    @property
    def chain(self) -> bytes:
        return b"".join(pem(c) for c in (self.certificate, *self.above))

    def write(self, folder: Path, passphrase: bytes | None = None) -> tuple[Path, Path]:
        """The files of chain and key."""
        chain, key = folder / "chain.pem", folder / "key.pem"
        chain.write_bytes(self.chain)
        key.write_bytes(key_pem(self.key, passphrase))
        return chain, key


def issue(
    name: str,
    by: Issued | None = None,
    key: Any = None,
    *,
    authority: bool = False,
    purposes: tuple[x509.ObjectIdentifier, ...] | None = (MAIL,),
    critical_purposes: bool = False,
    digital_signature: bool = True,
    first: timedelta = -DAY,
    last: timedelta = 30 * DAY,
    ocsp: str = "",
) -> Issued:
    """A certificate valid between two times from now; self-signed without an issuer."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    issuer_key = by.key if by else key
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(by.certificate.subject if by else _name(name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + first)
        .not_valid_after(now + last)
        .add_extension(x509.BasicConstraints(authority, None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
        .add_extension(_usage(digital_signature and not authority, authority), critical=True)
    )
    if purposes is not None and not authority:
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical_purposes)
    if ocsp:
        place = x509.AccessDescription(
            x509.oid.AuthorityInformationAccessOID.OCSP, x509.UniformResourceIdentifier(ocsp)
        )
        builder = builder.add_extension(x509.AuthorityInformationAccess([place]), critical=False)
    digest = None if isinstance(issuer_key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    above = (by.certificate, *by.above) if by else ()
    return Issued(builder.sign(issuer_key, digest), key, above)


def keys() -> dict[str, Any]:
    """A key for each algorithm."""
    return {
        "ES256": ec.generate_private_key(ec.SECP256R1()),
        "ES384": ec.generate_private_key(ec.SECP384R1()),
        "ES512": ec.generate_private_key(ec.SECP521R1()),
        "PS256": rsa.generate_private_key(65537, 2048),
        "ED25519": ed25519.Ed25519PrivateKey.generate(),
    }


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def key_pem(
    key: Any, passphrase: bytes | None = None, form: PrivateFormat = PrivateFormat.PKCS8
) -> bytes:
    secret = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    return bytes(key.private_bytes(Encoding.PEM, form, secret))


def public_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    public = key.public_key()
    return bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def _name(name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Maker of devices"),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )


def _usage(signature: bool, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=signature,
        content_commitment=not signature and not authority,  # some bit has to be set
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )

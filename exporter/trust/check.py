"""Whether a package is signed by somebody who is trusted, before anything of it is parsed.

Read, in this order: the signature file, within limits; the certificates in it; the statement, once
its signature is good; the names of files; the bytes of each, for its digest.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from exporter.credentials.chain import CERTIFICATE, named, read_certificates
from exporter.credentials.keys import MOST_PEM_BYTES, PRIVATE, algorithm_of
from exporter.errors import CheckFailed, InputError, needs_extra
from exporter.files.read import open_regular, panics_as, read_text, reason_of
from exporter.package.layout import LAYOUT_FILE, is_layout
from exporter.package.paths import confined
from exporter.package.read import DIGEST, MANIFEST, SIGNATURE
from exporter.trust.chain import chain_problems
from exporter.trust.identity import Root, Who, check_identity, read_root, told_by
from exporter.trust.signature import MOST_BYTES, Signature, digests_in, parse, to_sign

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.x509 import Certificate

PUBLIC = re.compile(r"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----", re.DOTALL)
CURVES = ("secp256r1", "secp384r1", "secp521r1")  # those that model-signing signs with
READ_AT_ONCE = 2  # files


@dataclass(frozen=True)
class Trust:
    """Whose packages are opened.

    Attributes:
        file: PEM: public keys, or certificates, of which one has to have issued the signer's, or
            be it. Or JSON: the trusted root of an instance of Sigstore, or a trust configuration.
        identity: with a root, and only then: who has to have signed, a mail address or a URI.
        issuer: with a root, and only then: the URL of who vouched for the identity.
    """

    file: Path
    identity: str = ""
    issuer: str = ""


@dataclass(frozen=True)
class _Anchors:
    """What a file of trust holds: keys by the digest that names them, certificates, or a root."""

    keys: Mapping[str, EllipticCurvePublicKey]
    certificates: tuple[Certificate, ...] = ()
    root: Root | None = None


@dataclass(frozen=True)
class Signed:
    """A package whose signature holds.

    Attributes:
        digests: SHA-256 of every file but the signature itself, by path.
        by: who signed: the name in a certificate, an identity and its issuer, or the beginning of
            a key's digest.
        until: when the first certificate of the chain expires; None for a key, and for an
            identity, whose certificate was valid when it signed.
    """

    digests: Mapping[str, str]
    by: str
    until: datetime | None = None


def check_trust(folder: Path, trust: Trust) -> Signed:
    """Check the signature of a package, and every file against it.

    Raises CheckFailed that names the file at fault, InputError for a file of trust that is none.
    """
    signed = check_signer(folder, trust)
    compare(folder, signed.digests)
    return signed


def check_signer(folder: Path, trust: Trust) -> Signed:
    """Check the signature of a package alone, whose files may not be there yet; as above."""
    anchors = _read_trust(trust)
    file = folder / SIGNATURE
    content = read_signature(folder)
    if content is None:
        raise CheckFailed(
            f"{folder}: is not signed (no {SIGNATURE}), and has to be by whom {trust.file} names; "
            "fourstep sign signs it"
        )
    signature = parse(content, file)
    if signature.logged or anchors.root is not None:
        by = _vouched(signature, content, anchors.root, file, trust)
        return Signed(digests_in(signature.payload, file), by)
    if signature.certificates:
        key, by, until = _certified(signature, anchors.certificates, file, trust)
    else:
        key, until = _known(signature, anchors.keys, file, trust), None
        by = f"key {signature.hint[:16]}"
    with panics_as(lambda said: CheckFailed(f"{file}: cannot be checked: {said}")):
        _check_signature(key, signature, file)
    return Signed(digests_in(signature.payload, file), by, until)


def _vouched(
    signature: Signature, content: bytes, root: Root | None, file: Path, trust: Trust
) -> str:
    """The identity that signed, if a root is trusted and it is the one that is."""
    if root is None:
        raise CheckFailed(
            f"{file}: is signed by an identity of Sigstore's, and {trust.file} holds keys or "
            "certificates; trust a trusted root with the identity and its issuer"
        )
    if not signature.logged:
        raise CheckFailed(
            f"{file}: is signed with a key or a certificate, and the identity {trust.identity} "
            "alone is trusted"
        )
    who = Who(trust.identity, trust.issuer)
    check_identity(content, who, root, file)
    return str(who)


def signer_of(folder: Path) -> str | None:
    """Who signed a package, as its signature says and nobody checked; None without one.

    Raises CheckFailed for a signature file that is none.
    """
    content = read_signature(folder)
    if content is None:
        return None
    signature = parse(content, folder / SIGNATURE)
    if not signature.certificates:
        return f"key {signature.hint[:16]}"
    if importlib.util.find_spec("cryptography") is None:
        return "a certificate"
    from cryptography.x509 import load_der_x509_certificate

    with panics_as(lambda said: CheckFailed(f"{folder / SIGNATURE}: damaged: {said}")):
        certificate = load_der_x509_certificate(signature.certificates[0])
        return f"'{told_by(certificate) if signature.logged else named(certificate)}'"


def read_signature(folder: Path) -> bytes | None:
    """The signature file of a package, or None without one; raises CheckFailed naming it."""
    file = folder / SIGNATURE
    if not os.path.lexists(file):
        return None
    try:
        with open_regular(confined(folder, SIGNATURE)) as stream:
            content = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise CheckFailed(f"{file}: cannot be read: {reason_of(error)}") from None
    if len(content) > MOST_BYTES:
        raise CheckFailed(f"{file}: damaged: more than {MOST_BYTES >> 20} MiB")
    return content


def compare(folder: Path, digests: Mapping[str, str]) -> None:
    """Compare the files of a folder with the digests that were signed; raises CheckFailed.

    None may be missing, changed, added or anything but a file.
    """
    for needed in (LAYOUT_FILE,) if is_layout(folder) else (MANIFEST, DIGEST):
        if needed not in digests:
            raise CheckFailed(
                f"{folder / SIGNATURE}: does not sign {needed}; sign the package again"
            )
    stray = next(_strays(folder, digests), None)
    if stray is not None:
        raise CheckFailed(f"{folder / stray}: was not signed; remove it, or get the package again")
    with ThreadPoolExecutor(READ_AT_ONCE) as pool:
        for path, found in zip(digests, pool.map(partial(_digest, folder), digests), strict=True):
            if found != digests[path]:
                pool.shutdown(wait=False, cancel_futures=True)
                raise CheckFailed(
                    f"{folder / path}: is not what was signed: SHA-256 differs; get the package "
                    "again"
                )


def _digest(folder: Path, path: str) -> str:
    """SHA-256 of a file of the package; raises CheckFailed naming it."""
    file = confined(folder, path)
    try:
        with open_regular(file) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise CheckFailed(
            f"{file}: cannot be read: {reason_of(error)}; get the package again"
        ) from None


def _strays(folder: Path, digests: Mapping[str, str]) -> Iterator[str]:
    """What lies in a package and was not signed; folders that hold nothing signed are not read."""
    folders = {str(parent) for path in digests for parent in PurePosixPath(path).parents}
    left = [""]
    while left:
        place = left.pop()
        with os.scandir(folder / place) as entries:
            for entry in entries:
                path = f"{place}/{entry.name}" if place else entry.name
                if path in folders and entry.is_dir(follow_symlinks=False):
                    left.append(path)
                elif path not in digests and path != SIGNATURE:
                    yield path


def _unreadable(said: str) -> InputError:
    return InputError(
        f"{said}; name a PEM file of public keys or certificates, or the trusted root of identities"
    )


def _read_trust(trust: Trust) -> _Anchors:
    """What is trusted; raises InputError."""
    if importlib.util.find_spec("cryptography") is None:
        raise needs_extra("trust", "cryptography")
    text = read_text(trust.file, _unreadable, MOST_PEM_BYTES)
    is_root = text.lstrip().startswith("{")
    if is_root and not (trust.identity and trust.issuer):
        raise InputError(
            f"{trust.file}: is a root of trust, under which anybody can sign: say who has to have, "
            "by identity and issuer (--identity WHO --issuer URL)"
        )
    if is_root:
        return _Anchors({}, (), read_root(text, trust.file))
    if trust.identity or trust.issuer:
        raise InputError(
            f"{trust.file}: is no trusted root of Sigstore's (JSON), with which alone an identity "
            "and an issuer go"
        )
    return _read_pem(text, trust.file)


def _read_pem(text: str, file: Path) -> _Anchors:
    """The keys and certificates in PEM; raises InputError naming the file."""
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    if PRIVATE.search(text):
        raise InputError(
            f"{file}: holds a private key, which no device should have; give the public one "
            "(openssl pkey -in KEY -pubout)"
        )
    keys = {}
    for pem in PUBLIC.findall(text):
        with panics_as(lambda said: InputError(f"{file}: cannot be read as a public key: {said}")):
            key = load_pem_public_key(pem.encode())
        checked = ec_key(key, file)
        keys[hint_of(checked)] = checked
    certificates = read_certificates(file) if CERTIFICATE.search(text) else ()
    if not keys and not certificates:
        raise InputError(f"{file}: holds neither a public key nor a certificate in PEM")
    return _Anchors(keys, certificates)


def ec_key(key: Any, where: object) -> EllipticCurvePublicKey:
    """A key that model-signing takes; raises InputError for another."""
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

    if not isinstance(key, EllipticCurvePublicKey) or key.curve.name not in CURVES:
        raise InputError(
            f"{where}: its key is of a kind that model-signing does not sign with; P-256, P-384 "
            "and P-521 are taken"
        )
    return key


def hint_of(key: EllipticCurvePublicKey) -> str:
    """What a signature says of its key: SHA-256 of its PEM."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(pem).hexdigest()


def _known(
    signature: Signature, keys: Mapping[str, EllipticCurvePublicKey], file: Path, trust: Trust
) -> EllipticCurvePublicKey:
    """The key that a signature names, if it is trusted."""
    if signature.hint not in keys:
        raise CheckFailed(
            f"{file}: is signed with another key ({signature.hint[:16]}) than {trust.file} holds"
        )
    return keys[signature.hint]


def _check_signature(key: EllipticCurvePublicKey, signature: Signature, file: Path) -> None:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA

    algorithm = algorithm_of(key, file)
    try:
        key.verify(signature.signature, to_sign(signature.payload), ECDSA(algorithm.hash))
    except InvalidSignature:
        raise CheckFailed(
            f"{file}: the signature does not belong to what it signs; get the package again"
        ) from None


def _certified(
    signature: Signature, anchors: tuple[Certificate, ...], file: Path, trust: Trust
) -> tuple[EllipticCurvePublicKey, str, datetime]:
    """The signer's key, its name, and until when: of a chain that ends in one that is trusted."""
    from cryptography.x509 import load_der_x509_certificate

    with panics_as(lambda said: CheckFailed(f"{file}: its certificates cannot be read: {said}")):
        chain = tuple(load_der_x509_certificate(der) for der in signature.certificates)
        problem = next(chain_problems(chain, anchors), None)
        if problem is not None:
            raise CheckFailed(f"{file}: {problem} (trusted: {trust.file})")
        until = min(one.not_valid_after_utc for one in chain)
        try:
            return ec_key(chain[0].public_key(), file), named(chain[0]), until
        except InputError as error:
            raise CheckFailed(str(error)) from None

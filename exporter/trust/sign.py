"""Signs a package that is whole: ``model.sig`` beside its files, replaced whole or not at all."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.credentials.chain import MOST_CERTIFICATES, named, read_certificates
from exporter.credentials.keys import (
    Algorithm,
    Sign,
    algorithm_of,
    der_of,
    key_signer,
    read_private_key,
)
from exporter.credentials.token import SCHEME, open_token
from exporter.errors import CheckFailed, InputError, needs_extra
from exporter.files.lock import alone
from exporter.files.read import panics_as, read_bytes
from exporter.files.staging import beside, unwritable, write_moved
from exporter.package.check import check_file
from exporter.package.layout import LAYOUT_FILE, LayoutManifest, check_layout, is_layout
from exporter.package.manifest import Manifest
from exporter.package.read import (
    DIGEST,
    MANIFEST,
    SIGNATURE,
    manifest_bytes,
    read_manifest,
)
from exporter.package.strays import Unlisted, unlisted
from exporter.trust.chain import chain_problems
from exporter.trust.check import ec_key, hint_of
from exporter.trust.keyless import SigningIdentity, Vouched, open_identity
from exporter.trust.signature import Signature, statement, text_of, to_sign

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.x509 import Certificate

PART = f".{SIGNATURE}.part"  # of a hidden name beside the package


@dataclass(frozen=True)
class SigningKey:
    """What to sign packages with.

    Attributes:
        key: a PEM file, or a ``pkcs11:`` URI (RFC 7512) of a key in a token.
        certificate: a PEM file: the signer's certificate, then those that issued it; None: whoever
            trusts the signature has the public key.
        passphrase: of an encrypted file, or the PIN of a token whose URI names none.
    """

    key: str | Path
    certificate: Path | None = None
    passphrase: str | None = None

    @property
    def name(self) -> str:
        """The key, in an error: the file, or the URI without what may hold a PIN."""
        return os.fspath(self.key).partition("?")[0] if self.in_token else os.fspath(self.key)

    @property
    def in_token(self) -> bool:
        """Whether a token signs."""
        return os.fspath(self.key).startswith(SCHEME)


@dataclass(frozen=True)
class Written:
    """A signature that was written.

    Attributes:
        by: the name in the certificate, the identity, or the beginning of the key's digest.
        algorithm: ES256, ES384 or ES512.
        files: how many it is over.
        replaced: whether an earlier one was there.
        issuer: who vouched for an identity; empty for a key.
        log_index: the place of an identity's signature in the log; None for a key.
    """

    by: str
    algorithm: str
    files: int
    replaced: bool
    issuer: str = ""
    log_index: int | None = None


@dataclass(frozen=True)
class _Made:
    """A signature file's content, and what ``Written`` tells of it."""

    content: bytes
    by: str
    algorithm: str
    issuer: str = ""
    log_index: int | None = None


@dataclass(frozen=True)
class _Signer:
    public: EllipticCurvePublicKey
    algorithm: Algorithm
    sign: Sign
    certificates: tuple[Certificate, ...]


def sign_package(
    folder: Path,
    signer: SigningKey | SigningIdentity,
    say: Callable[[str], None] = lambda line: None,
) -> Written:
    """Sign every file of a package, once each was compared with the manifest.

    A folder in a layout for clients of others is signed in the same way.

    Args:
        signer: a key, which opens no connection, or an identity, which asks an instance of
            Sigstore.
        say: gets a line when the files are compared, and while another process works there.

    Raises InputError for a key, a certificate or an identity that does not sign, or a place that
    cannot be written; CheckFailed for a package that is damaged, or holds what its manifest does
    not list.
    """
    with _opened(signer, say) as made_of, alone(folder, say):
        name, digests = _layout_listed(folder) if is_layout(folder) else _listed(folder)
        say(f"{len(digests)} files whole")
        made = made_of(statement(name, digests))
        place = folder / SIGNATURE
        replaced = os.path.lexists(place)
        try:
            write_moved(made.content, beside(folder, PART), place)
        except OSError as error:
            raise unwritable(place, error) from None
    return Written(made.by, made.algorithm, len(digests), replaced, made.issuer, made.log_index)


@contextmanager
def _opened(
    signer: SigningKey | SigningIdentity, say: Callable[[str], None]
) -> Iterator[Callable[[bytes], _Made]]:
    """What makes a signature file of a statement, while it is open."""
    if isinstance(signer, SigningIdentity):
        vouch = open_identity(signer, say)
        yield lambda payload: _made_by(vouch(payload))
        return
    with _open(signer) as key:
        yield lambda payload: _made_with(key, payload, signer)


def _made_by(vouched: Vouched) -> _Made:
    who = vouched.who
    return _Made(vouched.content, who.identity, "ES256", who.issuer, vouched.log_index)


def _made_with(key: _Signer, payload: bytes, with_key: SigningKey) -> _Made:
    signature = _signed(payload, key, with_key)
    own = key.certificates
    by = named(own[0]) if own else f"key {signature.hint[:16]}"
    return _Made(text_of(signature), by, key.algorithm.name)


def _listed(folder: Path) -> tuple[str, dict[str, str]]:
    """A package's name, and SHA-256 of every file; raises CheckFailed for one that is not whole."""
    manifest = read_manifest(folder)
    _refuse_strays(folder, unlisted(folder, manifest))
    for entry in manifest.all_files:
        check_file(folder, entry)
    own = {name: hashlib.sha256(manifest_bytes(folder / name)) for name in (MANIFEST, DIGEST)}
    digests = {name: digest.hexdigest() for name, digest in own.items()}
    return _name(manifest), digests | {entry.path: entry.sha256 for entry in manifest.all_files}


def _layout_listed(folder: Path) -> tuple[str, dict[str, str]]:
    """The same of a folder in another layout."""
    content = read_bytes(folder / LAYOUT_FILE, CheckFailed)
    layout = check_layout(folder)
    _refuse_strays(folder, unlisted(folder, layout))
    own = {LAYOUT_FILE: hashlib.sha256(content).hexdigest()}
    return _name(layout), own | {entry.path: entry.sha256 for entry in layout.files}


def _name(manifest: Manifest | LayoutManifest) -> str:
    return f"{manifest.name} {manifest.backend}-{manifest.scheme}"


def _refuse_strays(folder: Path, found: Unlisted) -> None:
    for stray in (*found.strays, *found.beside):
        raise CheckFailed(
            f"{folder / stray}: is not in the manifest, and no file beside it is signed; remove it"
        )


def _signed(payload: bytes, signer: _Signer, with_key: SigningKey) -> Signature:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
    from cryptography.hazmat.primitives.serialization import Encoding

    message = to_sign(payload)
    with panics_as(lambda said: InputError(f"{with_key.name}: cannot sign: {said}")):
        found = der_of(signer.sign(message), signer.algorithm)
        try:
            signer.public.verify(found, message, ECDSA(signer.algorithm.hash))
        except InvalidSignature:
            raise InputError(f"{with_key.name}: signs otherwise than its public key says") from None
    certificates = tuple(one.public_bytes(Encoding.DER) for one in signer.certificates)
    return Signature(payload, found, "" if certificates else hint_of(signer.public), certificates)


@contextmanager
def _open(with_key: SigningKey) -> Iterator[_Signer]:
    """What signs while it is open; raises InputError naming the file or the token at fault."""
    if importlib.util.find_spec("cryptography") is None:
        raise needs_extra("signing", "cryptography")
    chain = () if with_key.certificate is None else _chain(with_key.certificate)
    if not with_key.in_token:
        key = read_private_key(Path(with_key.key), with_key.passphrase)
        public = _public(key, with_key)
        algorithm = algorithm_of(public, with_key.name)
        yield _owned(_Signer(public, algorithm, key_signer(key, algorithm), chain), with_key)
        return
    with open_token(os.fspath(with_key.key), with_key.passphrase, "signing") as token:
        if chain:
            public = ec_key(chain[0].public_key(), with_key.certificate)
        else:
            public = _loaded(token.public_key(), with_key)
        algorithm = algorithm_of(public, with_key.name)
        yield _Signer(public, algorithm, token.signer(algorithm), chain)


def _public(key: Any, with_key: SigningKey) -> EllipticCurvePublicKey:
    try:
        public = key.public_key()
    except AttributeError:  # a key of an exchange has no such thing
        public = None
    return ec_key(public, with_key.name)


def _loaded(der: bytes, with_key: SigningKey) -> EllipticCurvePublicKey:
    from cryptography.hazmat.primitives.serialization import load_der_public_key

    with panics_as(lambda said: InputError(f"{with_key.name}: has no key that signs: {said}")):
        return ec_key(load_der_public_key(der), with_key.name)


def _owned(signer: _Signer, with_key: SigningKey) -> _Signer:
    """The signer, if its key is that of the first certificate."""
    if signer.certificates and signer.certificates[0].public_key() != signer.public:
        raise InputError(
            f"{with_key.name}: is not the key of the first certificate in {with_key.certificate}, "
            f"'{named(signer.certificates[0])}'"
        )
    return signer


def _chain(file: Path) -> tuple[Certificate, ...]:
    """The certificates to sign with; raises InputError for one that no verifier would take."""
    chain = read_certificates(file)
    if len(chain) > MOST_CERTIFICATES:
        raise InputError(f"{file}: more than {MOST_CERTIFICATES} certificates")
    with panics_as(lambda said: InputError(f"{file}: cannot be read as certificates: {said}")):
        ec_key(chain[0].public_key(), file)
        problem = next(chain_problems(chain, chain[-1:]), None)
    if problem is not None:
        raise InputError(f"{file}: {problem}")
    return chain

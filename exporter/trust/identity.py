"""Signatures by an identity, which an instance of Sigstore vouched for: checked without asking it.

The bundle holds all that is needed: a certificate of some minutes for the identity, with the
authority's entry in a log of certificates, and the entry of a second log, which says when it was
signed. The library ``sigstore`` checks them against a root of trust; what it leaves open in a
bundle is refused here.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import importlib.util
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.errors import CheckFailed, InputError, needs_extra
from exporter.files.read import convert, panics_as, parse_json

if TYPE_CHECKING:
    from cryptography.x509 import Certificate
    from sigstore.models import Bundle, TrustedRoot

ISSUER = "1.3.6.1.4.1.57264.1.8"  # Fulcio's extension: who says so, a string in DER
OLD_ISSUER = "1.3.6.1.4.1.57264.1.1"  # the same as bare text
MOST_SAID = 300  # characters of what the library says
CONFIG = "application/vnd.dev.sigstore.clienttrustconfig"
# A note of a log: lines of text, a blank one, and a line for each that signed it.
NOTE = re.compile(r"(?P<origin>[^\n]+)\n(?P<size>[0-9]+)\n[^\n]+\n(?:[^\n]+\n)*\n(?:— \S+ \S+\n)+")
BY = re.compile(r"— (\S+) (\S+)\n")


@dataclass(frozen=True)
class Who:
    """An identity and who says that it is one.

    Attributes:
        identity: a mail address, or a URI such as a workflow's.
        issuer: the URL of the provider of identities that the authority believed.
    """

    identity: str
    issuer: str

    def __str__(self) -> str:
        return f"{self.identity} ({self.issuer})"


@dataclass(frozen=True)
class _KeyId:
    keyId: str


@dataclass(frozen=True)
class _Note:
    envelope: str


@dataclass(frozen=True)
class _Proof:
    checkpoint: _Note
    logIndex: str = "0"
    treeSize: str = "0"


@dataclass(frozen=True)
class _Entry:
    logId: _KeyId
    inclusionProof: _Proof
    logIndex: str = "0"
    integratedTime: str = "0"
    inclusionPromise: dict[str, Any] | None = None


@dataclass(frozen=True)
class _Signed:
    keyid: str = ""


@dataclass(frozen=True)
class _Envelope:
    signatures: tuple[_Signed, ...] = ()


@dataclass(frozen=True)
class _Material:
    tlogEntries: tuple[_Entry, ...] = ()


@dataclass(frozen=True)
class _Bundle:
    verificationMaterial: _Material
    dsseEnvelope: _Envelope


@dataclass(frozen=True)
class _LogKey:
    rawBytes: str


@dataclass(frozen=True)
class _Log:
    publicKey: _LogKey
    logId: _KeyId | None = None
    checkpointKeyId: _KeyId | None = None


@dataclass(frozen=True)
class _Logs:
    tlogs: tuple[_Log, ...] = ()


@dataclass(frozen=True)
class Root:
    """What an instance of Sigstore is known by.

    Attributes:
        trusted: the authorities and the keys of the logs, as the library holds them.
        logs: the identifiers, in base64, of the logs of signatures.
    """

    trusted: TrustedRoot
    logs: frozenset[str] = field(default_factory=frozenset)


def need_library() -> None:
    """Raise InputError that says what to install where the library is missing."""
    if importlib.util.find_spec("sigstore") is None:
        raise needs_extra("signing", "sigstore")


def read_root(text: str, file: Path) -> Root:
    """A root of trust, or the trust configuration that holds one; raises InputError naming it."""
    need_library()
    from sigstore.models import ClientTrustConfig, TrustedRoot

    wrong = "is no trusted root, and no trust configuration, of Sigstore's"
    raw = parse_json(text, file, InputError, unique=True)
    with quiet(), panics_as(lambda said: InputError(f"{file}: {wrong}: {shortened(said)}")):
        if str(raw.get("mediaType", "")).startswith(CONFIG):
            return root_of(ClientTrustConfig.from_json(text).trusted_root)
        return root_of(TrustedRoot.from_file(str(file)))


def shortened(said: str) -> str:
    """What pydantic says of a record, without where to read of it and beyond some of its fields."""
    return said.partition(" For further information")[0][:MOST_SAID]


def root_of(trusted: TrustedRoot) -> Root:
    """A root of trust as the library holds it, with the names of its logs."""
    raw = parse_json(trusted._inner.to_json(), "the trusted root")  # it tells them in no other way
    logs = convert(raw, _Logs, "the trusted root").tlogs
    return Root(trusted, frozenset(name for log in logs for name in _names(log)))


def _names(log: _Log) -> Iterator[str]:
    """What entries may call a log: its key's digest, or what the root says."""
    yield base64.b64encode(
        hashlib.sha256(base64.b64decode(log.publicKey.rawBytes)).digest()
    ).decode()
    yield from (name.keyId for name in (log.logId, log.checkpointKeyId) if name is not None)


def check_identity(content: bytes, who: Who, root: Root, file: Path) -> None:
    """Check that an identity signed, at a time that the log vouches for.

    Args:
        content: of the signature file, whose form ``signature.parse`` has checked.

    Raises CheckFailed naming ``file``.
    """
    from sigstore.models import Bundle
    from sigstore.verify import Verifier
    from sigstore.verify.policy import Identity

    with quiet():
        wrong = f"{file}: is no bundle of Sigstore's: "
        with panics_as(lambda said: CheckFailed(wrong + shortened(said))):
            bundle = Bundle.from_json(content)
            raw = parse_json(content.decode(), file, CheckFailed, unique=True)
            if parse_json(bundle.to_json(), file, CheckFailed) != raw:
                raise CheckFailed(f"{file}: holds more than a signature, or is not written as one")
        problem = next(_open_ends(convert(raw, _Bundle, file, CheckFailed), root), None)
        if problem is not None:
            raise CheckFailed(f"{file}: {problem}; get the package again")
        with panics_as(lambda said: CheckFailed(f"{file}: is not signed by {who}: {said}")):
            _all_stamped(bundle, root.trusted, file)
            policy = Identity(identity=who.identity, issuer=who.issuer)
            Verifier(trusted_root=root.trusted).verify_dsse(bundle, policy)


def _open_ends(bundle: _Bundle, root: Root) -> Iterator[str]:
    """What is wrong in that part of a bundle which the library does not hold against anything."""
    if any(signed.keyid for signed in bundle.dsseEnvelope.signatures):
        yield "its signature names a key, which one by an identity does not"
    for entry in bundle.verificationMaterial.tlogEntries:
        proof = entry.inclusionProof
        if entry.logId.keyId not in root.logs:
            yield "is in another log than the trusted root names"
        if entry.inclusionPromise is None and entry.integratedTime != "0":
            yield "its entry in the log has a time that nobody signed"
        if entry.inclusionPromise is None and entry.logIndex != proof.logIndex:
            yield "its entry in the log has two places"
        yield from _note_problems(proof, base64.b64decode(entry.logId.keyId)[:4])


def _note_problems(proof: _Proof, log: bytes) -> Iterator[str]:
    note = NOTE.fullmatch(proof.checkpoint.envelope)
    if note is None:
        yield "the log's checkpoint is not written as one"
        return
    if note["size"] != proof.treeSize:
        yield "the log had another size than its checkpoint says"
    signers = BY.findall(proof.checkpoint.envelope[note.start() :])
    own = [name for name, signature in signers if _decoded(signature)[:4] == log]
    if not any(note["origin"] in (name, *_with_tree(name, note["origin"])) for name in own):
        yield "the log's checkpoint is signed under another name than its own"


def _with_tree(name: str, origin: str) -> tuple[str, ...]:
    """The origin if it is the name and a tree's number, as the first kind of log has it."""
    return (origin,) if re.fullmatch(re.escape(name) + " - [0-9]+", origin) else ()


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


def _all_stamped(bundle: Bundle, root: TrustedRoot, file: Path) -> None:
    """Refuse a bundle with a time stamp that no authority of the root signed.

    The library passes over it where the log has a time.
    """
    stamps = bundle.verification_material.timestamp_verification_data
    authorities = root.get_timestamp_authorities()
    for stamp in stamps.rfc3161_timestamps if stamps is not None else ():
        if not any(
            _stamps(one.certificates(allow_expired=True), stamp, bundle.signature)
            for one in authorities
        ):
            raise CheckFailed(f"{file}: has a time stamp of an authority that is not trusted")


def _stamps(certificates: list[Certificate], stamp: Any, message: bytes) -> bool:
    """Whether an authority, the last of its certificates, signed a time stamp (RFC 3161)."""
    from rfc3161_client import VerificationError, VerifierBuilder

    if len(certificates) < 2 or stamp.status != 0:  # granted
        return False
    builder = VerifierBuilder(tsa_certificate=certificates[0], roots=[certificates[-1]])
    for certificate in certificates[1:-1]:
        builder = builder.add_intermediate_certificate(certificate)
    try:
        return bool(builder.build().verify_message(stamp, message))
    except VerificationError:
        return False


def told_by(certificate: Certificate) -> Who:
    """Whom a certificate names and who vouched for that, as it says and nobody checked."""
    from cryptography import x509

    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        known = (x509.RFC822Name, x509.UniformResourceIdentifier)
        identity = next((str(one.value) for one in names if isinstance(one, known)), "")
    except x509.ExtensionNotFound:
        identity = ""
    return Who(identity, _issuer(certificate))


def _issuer(certificate: Certificate) -> str:
    """Who vouched for the identity in a certificate; empty where it does not say."""
    from cryptography import x509
    from cryptography.hazmat import asn1

    own = {one.oid.dotted_string: one.value for one in certificate.extensions}
    new, old = own.get(ISSUER), own.get(OLD_ISSUER)
    if isinstance(new, x509.UnrecognizedExtension):
        return asn1.decode_der(str, new.value)
    if isinstance(old, x509.UnrecognizedExtension):
        return old.value.decode()
    return ""


@contextmanager
def quiet(say: Callable[[str], None] = lambda line: None) -> Iterator[None]:
    """What the library warns of goes to ``say`` alone while this is open."""
    logger = logging.getLogger("sigstore")
    handler = _Teller(say)
    before, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


class _Teller(logging.Handler):
    """Hands what is logged to a function, line by line."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(record.getMessage())

"""``model.sig``: a Sigstore bundle around a DSSE envelope around an in-toto statement, as JSON.

The statement lists every file with its digest. What is not needed to check it is not read.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, TypeVar

from msgspec import Meta

from exporter.errors import CheckFailed
from exporter.files.read import convert, parse_json, parse_text
from exporter.package.paths import is_relative
from exporter.package.read import SIGNATURE

BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
MOST_BYTES = 4 << 20  # of the file
MOST_FILES = 20_000
# What the library leaves out unless it is told otherwise: where git keeps its own.
LEFT_OUT = (SIGNATURE, ".git", ".gitattributes", ".github", ".gitignore")
T = TypeVar("T")
DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Signature:
    """What a signature file holds; nothing of it is believed yet.

    Attributes:
        payload: the in-toto statement, as it was signed.
        signature: of ECDSA, as DER.
        hint: SHA-256 of the public key's PEM, of a signature by a key alone; else empty.
        certificates: DER, the signer's first; none where a key alone signed.
        logged: whether it is one of Sigstore's, with entries of its log.
    """

    payload: bytes
    signature: bytes
    hint: str = ""
    certificates: tuple[bytes, ...] = ()
    logged: bool = False


@dataclass(frozen=True)
class _PublicKey:
    hint: str = ""


@dataclass(frozen=True)
class _Certificate:
    rawBytes: str


@dataclass(frozen=True)
class _Chain:
    certificates: Annotated[tuple[_Certificate, ...], Meta(min_length=1, max_length=20)]


@dataclass(frozen=True)
class _Material:
    publicKey: _PublicKey | None = None
    x509CertificateChain: _Chain | None = None
    certificate: _Certificate | None = None
    tlogEntries: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class _Signed:
    sig: str


@dataclass(frozen=True)
class _Envelope:
    payload: str
    payloadType: str
    signatures: Annotated[tuple[_Signed, ...], Meta(min_length=1, max_length=1)]


@dataclass(frozen=True)
class _Bundle:
    mediaType: str
    verificationMaterial: _Material
    dsseEnvelope: _Envelope


@dataclass(frozen=True)
class _Subject:
    name: str
    digest: dict[str, str]


@dataclass(frozen=True)
class _Resource:
    name: str
    algorithm: str
    digest: str


@dataclass(frozen=True)
class _Serialization:
    method: str
    hash_type: str


@dataclass(frozen=True)
class _Predicate:
    serialization: _Serialization
    resources: Annotated[tuple[_Resource, ...], Meta(min_length=1, max_length=MOST_FILES)]


@dataclass(frozen=True)
class _Statement:
    _type: str
    subject: Annotated[tuple[_Subject, ...], Meta(min_length=1, max_length=1)]
    predicateType: str
    predicate: _Predicate


def parse(content: bytes, file: Path) -> Signature:
    """A signature file; raises CheckFailed naming it for one that is none."""
    bundle = _record(content, _Bundle, file)
    if bundle.mediaType != BUNDLE_TYPE:
        raise CheckFailed(f"{file}: is a {bundle.mediaType!r:.80}, not a {BUNDLE_TYPE}")
    envelope, material = bundle.dsseEnvelope, bundle.verificationMaterial
    if envelope.payloadType != PAYLOAD_TYPE:
        raise CheckFailed(f"{file}: holds a {envelope.payloadType!r:.80}, not a {PAYLOAD_TYPE}")
    given = (material.publicKey, material.x509CertificateChain, material.certificate)
    if sum(one is not None for one in given) != 1:
        raise CheckFailed(f"{file}: says not by one key, one chain or one certificate who signed")
    chain = material.x509CertificateChain.certificates if material.x509CertificateChain else ()
    if material.certificate is not None:
        chain = (material.certificate,)
    found = Signature(
        _decoded(envelope.payload, "dsseEnvelope.payload", file),
        _decoded(envelope.signatures[0].sig, "dsseEnvelope.signatures[0].sig", file),
        material.publicKey.hint if material.publicKey else "",
        tuple(_decoded(one.rawBytes, "a certificate", file) for one in chain),
        material.certificate is not None or bool(material.tlogEntries),
    )
    # What nobody checks could be changed: there is nothing else in it.
    if not found.logged and _value(content, file) != _value(text_of(found), file):
        raise CheckFailed(f"{file}: holds more than a signature, or is not written as one")
    return found


def text_of(signature: Signature) -> bytes:
    """The file, as the library writes it."""
    material: dict[str, Any] = {"publicKey": {"hint": signature.hint}}
    if signature.certificates:
        chain = [{"rawBytes": _encoded(one)} for one in signature.certificates]
        material = {"x509CertificateChain": {"certificates": chain}}
    bundle = {
        "mediaType": BUNDLE_TYPE,
        "verificationMaterial": material | {"tlogEntries": []},
        "dsseEnvelope": {
            "payload": _encoded(signature.payload),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": _encoded(signature.signature), "keyid": ""}],
        },
    }
    return json.dumps(bundle, separators=(",", ":")).encode()


def to_sign(payload: bytes) -> bytes:
    """What is signed in a payload's place: DSSE's pre-authentication encoding (PAE)."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def statement(name: str, digests: Mapping[str, str]) -> bytes:
    """The in-toto statement that lists files.

    Args:
        name: of the model; it binds nobody.
        digests: SHA-256 by path.
    """
    ordered = sorted(digests, key=PurePosixPath)
    resources = [{"name": path, "algorithm": "sha256", "digest": digests[path]} for path in ordered]
    said = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": _root([*map(digests.get, ordered)])}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [*LEFT_OUT],
            },
            "resources": resources,
        },
    }
    return json.dumps(said, indent=1).encode()


def digests_in(payload: bytes, file: Path) -> dict[str, str]:
    """SHA-256 by path, of a statement whose signature is good; raises CheckFailed naming ``file``.

    Every path leads inside the package, and none is there twice.
    """
    said = _record(payload, _Statement, file)
    if (said._type, said.predicateType) != (STATEMENT_TYPE, PREDICATE_TYPE):
        raise CheckFailed(f"{file}: signs no model: its statement is not a {PREDICATE_TYPE}")
    serialization, resources = said.predicate.serialization, said.predicate.resources
    if (serialization.method, serialization.hash_type) != ("files", "sha256"):
        raise CheckFailed(
            f"{file}: lists {serialization.hash_type!r:.40} of {serialization.method!r:.40}; "
            "SHA-256 of whole files is read: sign it so"
        )
    found: dict[str, str] = {}
    for one in resources:
        if not is_relative(one.name) or one.name in found or one.name == SIGNATURE:
            raise CheckFailed(f"{file}: {one.name!r:.200} is no path in a package, or there twice")
        if one.algorithm != "sha256" or DIGEST.fullmatch(one.digest) is None:
            raise CheckFailed(f"{file}: has no SHA-256 of {one.name!r:.200}")
        found[one.name] = one.digest
    if said.subject[0].digest != {"sha256": _root([one.digest for one in resources])}:
        raise CheckFailed(f"{file}: the digest of the model is not that of its files")
    return found


def _root(digests: list[str | None]) -> str:
    """SHA-256 over digests, one behind the other."""
    return hashlib.sha256(bytes.fromhex("".join(d or "" for d in digests))).hexdigest()


def _record(content: bytes, kind: type[T], file: Path) -> T:
    return convert(_value(content, file), kind, file, CheckFailed)


def _value(content: bytes, file: Path) -> Any:
    text = parse_text(content, file, CheckFailed, MOST_BYTES)
    return parse_json(text, file, CheckFailed, unique=True)


def _encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _decoded(text: str, what: str, file: Path) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise CheckFailed(f"{file}: {what} is not base64") from None

"""Reads Content Credentials out of a picture, and what the C2PA library finds about them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from exporter.credentials import library
from exporter.credentials.chain import pem_of, read_certificates
from exporter.credentials.claim import ACTIONS, MODEL
from exporter.errors import InputError
from exporter.files.read import convert, parse_json, read_bytes, reason_of
from exporter.files.stop import tell_wish

State = Literal["trusted", "valid", "invalid", "not signed"]
MOST_PICTURE_BYTES = 1 << 28


@dataclass(frozen=True)
class Found:
    """What Content Credentials a picture has.

    Attributes:
        state: ``trusted``: whole, and the signer's authority is among the anchors; ``valid``:
            whole, by whomever; ``invalid``: the picture or what is claimed is not what was signed,
            or the certificate is none to sign with, or no longer; ``not signed``: there are none.
        signer: the name in the signer's certificate.
        issuer: the organisation in it.
        algorithm: of the signature.
        generator: the program that made the claim, and its version.
        source_types: of the actions, the last word of each address: ``trainedAlgorithmicMedia``.
        actions: in order.
        model: what fourstep says of the package that drew it.
        ingredients: how many pictures it was made from.
        problems: what the library found wrong.
    """

    state: State
    signer: str = ""
    issuer: str = ""
    algorithm: str = ""
    generator: str = ""
    source_types: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    model: Mapping[str, str] | None = None
    ingredients: int = 0
    problems: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return self.state in ("trusted", "valid")


@dataclass(frozen=True)
class _Signature:
    """As the library tells of it."""

    alg: str | None = None
    issuer: str | None = None
    common_name: str | None = None


@dataclass(frozen=True)
class _Assertion:
    label: str
    data: Any = None


@dataclass(frozen=True)
class _Manifest:
    """What the library tells of a picture's own manifest, as far as it is shown."""

    claim_generator_info: tuple[dict[str, Any], ...] = ()
    assertions: tuple[_Assertion, ...] = ()
    ingredients: tuple[dict[str, Any], ...] = ()
    signature_info: _Signature = field(default_factory=_Signature)


@dataclass(frozen=True)
class _Problem:
    code: str
    explanation: str | None = None


def read_credentials(file: Path, anchors: Path | None = None) -> Found:
    """The Content Credentials of a picture, checked by the C2PA library; asks no network.

    Args:
        anchors: a PEM file of certificates to trust; without one a signer may be anybody.

    Raises InputError for a file that cannot be read, or that is no picture.
    """
    c2pa = library.load()
    trusted = None if anchors is None else pem_of(read_certificates(anchors))
    content = read_bytes(file, most_bytes=MOST_PICTURE_BYTES)
    try:
        with (
            library.context(trusted) as context,
            c2pa.Reader(None, io.BytesIO(content), context=context) as reader,
        ):
            return _found(parse_json(reader.json(), file), file)
    except c2pa.C2paError as error:
        tell_wish()
        if isinstance(error, c2pa.C2paError.ManifestNotFound):
            return Found("not signed")
        raise InputError(f"{file}: cannot be read: {reason_of(error)}") from None


def _found(told: dict[str, Any], file: Path) -> Found:
    """What the library tells of a picture, in fewer words."""
    own = told.get("manifests", {}).get(told.get("active_manifest"), {})
    manifest = convert(own, _Manifest, file)
    results = told.get("validation_results", {}).get("activeManifest", {})
    problems = convert(results.get("failure", []), tuple[_Problem, ...], file)
    states: dict[object, State] = {"Trusted": "trusted", "Valid": "valid"}
    actions = [a for found in _data(manifest, ACTIONS) for a in found.get("actions", [])]
    sources = [str(a["digitalSourceType"]) for a in actions if "digitalSourceType" in a]
    model = next((dict(found) for found in _data(manifest, MODEL)), None)
    return Found(
        states.get(told.get("validation_state"), "invalid"),
        manifest.signature_info.common_name or "",
        manifest.signature_info.issuer or "",
        (manifest.signature_info.alg or "").upper(),
        "; ".join(_program(info) for info in manifest.claim_generator_info),
        tuple(source.rpartition("/")[2] for source in sources),
        tuple(str(action.get("action", "")) for action in actions),
        model,
        len(manifest.ingredients),
        tuple(f"{p.code}: {p.explanation or ''}".rstrip(": ") for p in problems),
    )


def _data(manifest: _Manifest, label: str) -> list[dict[str, Any]]:
    """The assertions of a label that hold what such ones hold."""
    found = [a.data for a in manifest.assertions if a.label == label]
    return [data for data in found if isinstance(data, dict)]


def _program(info: dict[str, Any]) -> str:
    return f"{info.get('name', '')} {info.get('version', '')}".strip()

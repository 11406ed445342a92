"""Reads ``manifest.json``: whole, of a format that is known, and consistent."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import msgspec

from exporter.errors import CheckFailed
from exporter.files.read import open_regular, parse_json
from exporter.package import consistent
from exporter.package.decode import decode
from exporter.package.manifest import FORMAT_VERSION, Manifest, to_json

MANIFEST, DIGEST = "manifest.json", "manifest.sha256"
SIGNATURE = "model.sig"  # over all other files, if somebody signed the package
OWN_FILES = (MANIFEST, DIGEST, SIGNATURE)  # which the manifest does not list
MOST_BYTES = 4 << 20  # of a manifest; one of 2.24 billion weights has 0.3 MB
BUILD = "fourstep build RECIPE"


def _minor(version: str) -> int:
    return int(version.partition(".")[2])


class _Versioned(msgspec.Struct):
    format_version: object = None


def read_manifest(folder: Path, sha256: str | None = None) -> Manifest:
    """Read and check ``manifest.json``; raises CheckFailed naming the file and what is wrong.

    Nothing of it is believed before it has the digest that ``manifest.sha256`` says.

    Args:
        sha256: of the one that was signed; nothing of another one is parsed.
    """
    file = folder / MANIFEST
    text = manifest_bytes(file)
    if sha256 is not None and hashlib.sha256(text).hexdigest() != sha256:
        raise CheckFailed(f"{file}: changed while it was being read; run the command again")
    digest = folder / DIGEST
    if digest.exists() and manifest_bytes(digest) != digest_line(text):
        raise CheckFailed(f"{file}: damaged: it is not what {DIGEST} says; copy the package again")
    version = _version(text, file)
    if not digest.exists():
        raise CheckFailed(f"{digest}: is missing; copy the package again")
    try:
        manifest = decode(Manifest, text)
        parse_json(text.decode(), file, _twice, unique=True)
        consistent.check(manifest)
    except ValueError as error:
        newer = _minor(version) > _minor(FORMAT_VERSION)
        remedy = f"format {version}: update fourstep" if newer else f"build it again: {BUILD}"
        raise CheckFailed(f"{file}: damaged: {error}; {remedy}") from None
    return manifest


def _twice(said: str) -> CheckFailed:
    return CheckFailed(f"{said}; build it again: {BUILD}")


def package_digest(folder: Path) -> str:
    """SHA-256 of a package's manifest, which holds the digest of every other file."""
    return hashlib.sha256(manifest_bytes(folder / MANIFEST)).hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json``, and beside it its digest, as ``sha256sum -c`` reads it.

    Raises ValueError for a manifest that ``read_manifest`` would refuse.
    """
    consistent.check(manifest)
    text = to_json(manifest).encode()
    decode(Manifest, text)
    (folder / MANIFEST).write_bytes(text)
    (folder / DIGEST).write_bytes(digest_line(text))


def digest_line(text: bytes) -> bytes:
    """What ``manifest.sha256`` holds."""
    return f"{hashlib.sha256(text).hexdigest()}  {MANIFEST}\n".encode()


def manifest_bytes(file: Path) -> bytes:
    """What is in a manifest or its digest, within limits; raises CheckFailed naming the file."""
    try:
        with open_regular(file) as stream:
            text = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise CheckFailed(f"{file}: cannot be read: {error.strerror}") from None
    if len(text) > MOST_BYTES:
        raise CheckFailed(f"{file}: damaged: more than {MOST_BYTES >> 20} MiB; copy it again")
    return text


def _version(text: bytes, file: Path) -> str:
    """The format's version; raises CheckFailed for one that is not read."""
    try:
        version = decode(_Versioned, text).format_version
    except ValueError as error:
        raise CheckFailed(
            f"{file}: cannot be read as a manifest: {error}; build it again: {BUILD}"
        ) from None
    if not (isinstance(version, str) and re.fullmatch(r"4\.[0-9]{1,4}", version)):
        raise CheckFailed(
            f"{file}: format version {version!r:.40}; this fourstep reads 4.x; build the package "
            f"again: {BUILD}"
        )
    return version

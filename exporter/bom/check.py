"""A bill of materials against the manifest of the package that it lies in. Needs no library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from exporter.errors import CheckFailed
from exporter.files.read import parse_json, parse_text
from exporter.package.manifest import Manifest

SBOM = "sbom.cdx.json"
SHA256 = "SHA-256"
MAY_BE_ABSENT = "optional"  # the scope of files that a bundle may leave out


def disagreements(content: bytes, manifest: Manifest) -> list[str]:
    """In what a bill says something else than the manifest of its package; raises CheckFailed.

    Every file but the bill itself has to be in it, with its digest, and no other one, unless its
    scope says that it may be absent.
    """
    listed = _files(parse_json(parse_text(content, SBOM, CheckFailed), SBOM, CheckFailed))
    there = {file.path: file.sha256 for file in manifest.all_files if file.path != manifest.bom}
    named = {path for path, _, _ in listed}
    found = [f"{SBOM}: does not list {path}" for path in there if path not in named]
    for path, digest, scope in listed:
        if path not in there:
            if scope != MAY_BE_ABSENT:
                found.append(f"{SBOM}: lists {path}, which the package has not")
        elif digest != there[path]:
            found.append(f"{SBOM}: says another digest of {path} than the manifest")
    return found


def _files(bill: object) -> list[tuple[str, str, str]]:
    """Path, SHA-256 and scope of every file that a bill lists; raises CheckFailed."""
    try:
        return [
            (str(part["name"]), _digest(part), str(part.get("scope", "")))
            for part in _components(bill)
            if part["type"] == "file"
        ]
    except (AttributeError, KeyError, TypeError):
        raise CheckFailed(f"{SBOM}: not a CycloneDX bill; build the package again") from None


def _components(bill: Any) -> Iterator[Mapping[str, Any]]:
    """Those of a bill and those inside each other."""
    left = list(bill["components"])
    while left:
        part = left.pop()
        yield part
        left += part.get("components", [])


def _digest(part: Mapping[str, Any]) -> str:
    return next((str(h["content"]) for h in part["hashes"] if h["alg"] == SHA256), "")

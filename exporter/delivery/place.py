"""Which files a package has, and whether a place may be written to."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from exporter.delivery.write import ELSEWHERE
from exporter.errors import CheckFailed, FourstepError, InputError
from exporter.files.read import file_digest, reason_of
from exporter.package.check import check_file
from exporter.package.manifest import FileEntry, Manifest
from exporter.package.paths import confined
from exporter.package.read import MANIFEST, OWN_FILES, read_manifest
from exporter.package.strays import unlisted
from exporter.trust.check import Trust, check_signer


def entries_of(folder: Path, manifest: Manifest) -> tuple[FileEntry, ...]:
    """Every file of a package, the manifest's own first; raises CheckFailed.

    What hubs, git and file managers keep beside them is left out; raises InputError for anything
    else that the manifest does not list.
    """
    for path in unlisted(folder, manifest).strays:
        raise InputError(f"{folder / path}: is not listed in the manifest; delete it")
    return (*own_entries(folder), *manifest.all_files)


def own_entries(folder: Path) -> tuple[FileEntry, ...]:
    """The manifest's own files, as they are."""
    try:
        return tuple(
            FileEntry(name, (folder / name).stat().st_size, file_digest(confined(folder, name)))
            for name in OWN_FILES
            if os.path.lexists(folder / name)
        )
    except OSError as error:
        said = f"cannot be read: {reason_of(error)}"
        raise CheckFailed(f"{error.filename}: {said}; copy the package again") from None


def holds(target: Path, own: Iterable[FileEntry]) -> bool:
    """Whether a place holds the package of these own files of a manifest, whole.

    False also where it may be replaced. Raises InputError for a place that holds anything but a
    package as it was written.
    """
    if not os.path.lexists(target):
        return False
    if target.is_symlink() or not target.is_dir():
        raise InputError(f"{target}: is a {'link' if target.is_symlink() else 'file'}; {ELSEWHERE}")
    if not any(target.iterdir()):
        return False
    try:
        manifest = read_manifest(target)
        found = unlisted(target, manifest)
        for path in (*found.strays, *found.beside):
            raise InputError(f"holds {path}, which is not of a package")
        for entry in manifest.all_files:
            check_file(target, entry)
        return own_entries(target) == tuple(own)
    except FourstepError as error:
        told = str(error).removeprefix(f"{target}{os.sep}")
        raise InputError(
            f"{target}: is no whole package: {told}; {ELSEWHERE}, or delete it"
        ) from None


def read_arrived(folder: Path, source: Path, trust: Trust | None) -> Manifest:
    """The manifest of a package whose other files are not there yet; raises CheckFailed.

    Args:
        source: what it came in, for messages.
        trust: whose signature has to hold, for the digest of every file, before it is parsed.
    """
    try:
        signed = None if trust is None else check_signer(folder, trust).digests
        manifest = read_manifest(folder, None if signed is None else signed.get(MANIFEST, ""))
    except CheckFailed as error:
        raise CheckFailed(str(error).replace(str(folder), str(source))) from None
    listed = {entry.path: entry.sha256 for entry in manifest.all_files}
    if signed is not None and listed != {p: d for p, d in signed.items() if p not in OWN_FILES}:
        raise CheckFailed(f"{source}: its package lists other files than were signed")
    return manifest


def refuse_inside(package: Path, out: Path) -> None:
    """Raise InputError for a place in the package itself."""
    if out.resolve() == package.resolve() or package.resolve() in out.resolve().parents:
        raise InputError(f"{out}: lies in the package {package}; {ELSEWHERE}")

"""Files that lie in a package and that its manifest does not list.

Those that a hub, git or a file manager keeps beside a package for itself are told apart: nothing
that draws reads them, and who publishes or copies a package does not put them there on purpose.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from exporter.errors import CheckFailed
from exporter.package.layout import LAYOUT_FILE, LayoutManifest
from exporter.package.manifest import Manifest
from exporter.package.paths import confined
from exporter.package.read import OWN_FILES, SIGNATURE

# By the names that they use, from the package's folder: whatever else lies there is a stray.
GIT = re.compile(
    r"\.git(attributes|ignore|modules)?"  # a file ``.git`` leads to a repository elsewhere
    r"|\.git/(([A-Z]+_)?HEAD|COMMIT_EDITMSG|config|description|index|packed-refs|shallow)"
    r"|\.git/(branches|hooks|info|lfs|logs|objects|refs)/.+"
)
HUB = re.compile(
    r"README\.md"
    r"|\.cache/huggingface/(\.gitignore(\.lock)?|CACHEDIR\.TAG)"
    r"|\.cache/huggingface/(download|upload)/.+\.(metadata|lock|incomplete)"
)
FILE_MANAGER = re.compile(r"(.+/)?(\.DS_Store|Thumbs\.db|desktop\.ini)")
FOLDERS = (".git/", ".cache/huggingface/")  # named whole


@dataclass(frozen=True)
class Unlisted:
    """Paths relative to the package, in order.

    Attributes:
        strays: what should not be there.
        beside: what hubs, git and file managers keep; of their folders only the name.
    """

    strays: tuple[str, ...]
    beside: tuple[str, ...]


def unlisted(folder: Path, manifest: Manifest | LayoutManifest) -> Unlisted:
    """Files, and links to folders, that lie in a package and that its manifest does not list."""
    if isinstance(manifest, LayoutManifest):
        listed = {LAYOUT_FILE, SIGNATURE, *(entry.path for entry in manifest.files)}
    else:
        listed = {*OWN_FILES, *(entry.path for entry in manifest.all_files)}
    found = set[str]()
    for root, folders, files in os.walk(folder):
        place = Path(root)
        links = [name for name in folders if (place / name).is_symlink()]
        found |= {(place / name).relative_to(folder).as_posix() for name in (*files, *links)}
    found -= listed
    beside = {path for path in found if _is_kept_beside(folder, path)}
    return Unlisted(tuple(sorted(found - beside)), tuple(sorted({*map(_shortened, beside)})))


def _is_kept_beside(folder: Path, path: str) -> bool:
    """By its name, and as a file: a link to a folder, or one that leaves the package, is not."""
    if not any(pattern.fullmatch(path) for pattern in (GIT, HUB, FILE_MANAGER)):
        return False
    try:
        return confined(folder, path).is_file()
    except CheckFailed:
        return False


def _shortened(path: str) -> str:
    return next((folder for folder in FOLDERS if path.startswith(folder)), path)

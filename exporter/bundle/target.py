"""What a bundle can be for: a folder beside this file for each, whose ``TARGET`` says the rest.

The sources of a target's runtime lie in its folder as they are copied into a bundle, but Python's.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from exporter import bundle
from exporter.errors import InputError, known
from exporter.package.manifest import Manifest

HERE = Path(__file__).parent


@dataclass(frozen=True)
class FileLimit:
    """The largest file that a place takes.

    Attributes:
        bytes: how large it may be.
        of: whose limit it is, as ``an asset pack of Google Play``.
        remedy: what to do about a file that is larger.
    """

    bytes: int
    of: str
    remedy: str


@dataclass(frozen=True)
class EngineFiles:
    """Files of an engine that a project cannot build without, and that are not ours to ship.

    Attributes:
        title: what it is, with its version.
        install: the command that gets it.
        folder: where that command puts the files, from the working directory.
        place: the folder of the bundle that they are copied to.
        files: SHA-256 of each, by name.
    """

    title: str
    install: str
    folder: str
    place: str
    files: Mapping[str, str]


def nothing(manifest: Manifest) -> Mapping[str, str]:
    """Of a target that moves nothing, or writes nothing of its own."""
    return {}


@dataclass(frozen=True)
class Target:
    """A language, or a place that programs run in, and what a bundle for it is.

    Attributes:
        name: as ``--for`` takes it: that of its folder.
        title: as a page calls it.
        backends: whose packages its engines open.
        place: the folder of the bundle that the package is copied to, with ``/`` between names.
        filled: files of its sources in which ``{{words}}`` stand for facts of the package:
            ``facts_of`` has them.
        shared: files of ``exporter/bundle`` that several targets need: their places in the bundle,
            by the file's name.
        limit: the largest file that can be delivered, or None.
        moved: files of a package that do not lie below ``place``: their places in the bundle, by
            their paths in the package.
        engine: files of an engine that go along, or None.
        extra: texts of files that depend on the package, by their places in the bundle.
    """

    name: str
    title: str
    backends: tuple[str, ...]
    place: str = "package"
    filled: tuple[str, ...] = ("README.md",)
    shared: Mapping[str, str] = field(default_factory=dict)
    limit: FileLimit | None = None
    engine: EngineFiles | None = None
    moved: Callable[[Manifest], Mapping[str, str]] = nothing
    extra: Callable[[Manifest], Mapping[str, str]] = nothing

    @property
    def sources(self) -> Path:
        """The folder of its runtime's sources."""
        return HERE / self.name


def targets() -> dict[str, Target]:
    """What a bundle can be for, by name: the folders beside this file that have a ``TARGET``."""
    names = sorted(module.name for module in pkgutil.iter_modules(bundle.__path__) if module.ispkg)
    modules = {name: importlib.import_module(f"{bundle.__name__}.{name}") for name in names}
    return {name: module.TARGET for name, module in modules.items() if hasattr(module, "TARGET")}


def load_target(name: str) -> Target:
    """A target by name; raises InputError listing the known ones."""
    found = targets()
    if name not in found:
        raise InputError(known("target", name, found), field="target")
    return found[name]

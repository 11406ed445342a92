"""Backends. One folder each; the folder's name is the backend's name; same verbs, no base class.

A backend module has:

    EXTRA: str                           the extra whose ``pip install`` enables building for it
    REQUIRES: dict[str, str]             module -> distribution, to build
    RUNS_WITH: dict[str, str]            module -> distribution, to run
    refuse(format) -> str | None         why a weight format cannot be expressed, or None
    emit(program, read, folder) -> Emitted      writes one graph into a folder
    session(entry, settings, exact) -> Session  opens one graph to run it

``emit`` may import torch and the vendor's library; ``session`` the vendor's runtime only.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from exporter.errors import InputError, known, needs_extra

if TYPE_CHECKING:
    from exporter.quantize import QuantizedProgram

Session = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Emitted:
    """What ``emit`` wrote: the file that a session opens, all files, and session settings."""

    entry: Path
    files: tuple[Path, ...]
    session: dict[str, str] = field(default_factory=dict)


def names() -> tuple[str, ...]:
    """The known backends: the folders of ``exporter/backends``."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__)))


def load(name: str) -> ModuleType:
    """A backend by name; raises InputError listing the known ones."""
    if name not in names():
        raise InputError(known("backend", name, names()))
    return importlib.import_module(f"exporter.backends.{name}")


def refuse_inexpressible(
    name: str, backend: ModuleType, quantized: Mapping[str, Mapping[str, QuantizedProgram]]
) -> None:
    """Raise InputError if a backend cannot express a format that a scheme gave a weight.

    Args:
        quantized: programs by graph, by scheme.
    """
    for scheme, programs in quantized.items():
        for program in programs.values():
            for weight, form in program.formats.items():
                reason = backend.refuse(form)
                if reason:
                    raise InputError(
                        f"{name} cannot express scheme {scheme} ({program.name}: {weight} as "
                        f"{form}): {reason}"
                    )


def missing(requires: Mapping[str, str]) -> list[str]:
    """The distributions that are not installed."""
    return [dist for module, dist in requires.items() if importlib.util.find_spec(module) is None]


def load_to_build(name: str) -> ModuleType:
    """A backend whose build requirements are installed; raises InputError with the pip line."""
    backend = load(name)
    absent = missing(backend.REQUIRES)
    if absent:
        raise needs_extra(f"build,{backend.EXTRA}", ", ".join(absent))
    return backend


def load_to_run(name: str) -> ModuleType:
    """A backend whose runtime is installed; raises InputError with the pip line."""
    backend = load(name)
    absent = missing(backend.RUNS_WITH)
    if absent:
        raise needs_extra(backend.EXTRA, ", ".join(absent))
    return backend

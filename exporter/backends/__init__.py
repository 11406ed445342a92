"""Backends. One folder each; the folder's name is the backend's name; same verbs, no base class.

A backend module has:

    EXTRA: str                           the extra whose ``pip install`` enables running
    BUILD_EXTRA: str                     the extras that enable building
    REQUIRES: dict[str, str]             module -> distribution, to build
    RUNS_WITH: dict[str, str]            module -> distribution, to run
    OPTIONS: dict[str, tuple[str, ...]]  what a recipe's table [<backend>] may choose, default first
    DEVICES: tuple[str, ...]             where a session can run, default first
    CACHES: tuple[str, ...]              those of them that can keep compiled graphs in a folder
    HALF: tuple[str, ...]                those of them that can be told to compute in 16 bits
    MEMORY: Memory                       what building and running a graph take
    refuse(format, options) -> str | None       why a weight format cannot be expressed, or None
    emit(program, read, folder, order) -> Emitted       writes one graph into a folder
    finish(folder, tokenizers) -> tuple[Path, ...]      writes what its devices want beside graphs
    session(entry, settings, setup) -> Session  opens one graph to run it

``emit`` and ``finish`` may import torch and the vendor's library; ``session`` the vendor's runtime
only.
"""

from __future__ import annotations

import importlib.util
import os
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from exporter.backends.contract import Emitted, Memory, Order, Session, Setup
from exporter.errors import InputError, known, needs_extra

if TYPE_CHECKING:
    from exporter.quantize.program import QuantizedProgram

__all__ = ["Emitted", "Memory", "Order", "Session", "Setup"]


def names() -> tuple[str, ...]:
    """The known backends: the folders of ``exporter/backends``."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if m.ispkg))


def load(name: str) -> ModuleType:
    """A backend by name; raises InputError listing the known ones."""
    if name not in names():
        raise InputError(known("backend", name, names()))
    return importlib.import_module(f"exporter.backends.{name}")


def default_options(backend: ModuleType) -> dict[str, str]:
    """What a recipe gets that has no table for the backend."""
    return {key: values[0] for key, values in backend.OPTIONS.items()}


def refuse_inexpressible(
    name: str, backend: ModuleType, options: Mapping[str, str], scheme: str,
    programs: Mapping[str, QuantizedProgram],
) -> None:  # fmt: skip
    """Raise InputError if a backend cannot express a format that a scheme gave a weight."""
    for program in programs.values():
        for weight, form in program.formats.items():
            reason = backend.refuse(form, options)
            if reason:
                able = ", ".join(expressible_schemes(backend, options))
                raise InputError(
                    f"{name} cannot express scheme {scheme} ({program.name}: {weight} as "
                    f"{form}): {reason}; schemes that {name} can: {able}"
                )


def expressible_schemes(backend: ModuleType, options: Mapping[str, str]) -> list[str]:
    """The shipped schemes whose every format a backend can express."""
    from exporter.quantize.schemes import load_scheme, scheme_names

    return [
        name
        for name in scheme_names()
        if not any(backend.refuse(rule.format, options) for rule in load_scheme(name).rules)
    ]


def check_setup(name: str, setup: Setup) -> None:
    """Raise InputError for a device that a backend does not know, or what is of no use there."""
    backend = load(name)
    device = setup.device or backend.DEVICES[0]
    if device not in backend.DEVICES:
        raise InputError(f"--device: {name} has no {device}; it has {', '.join(backend.DEVICES)}")
    if setup.half and setup.exact:
        raise InputError("--half and --exact ask for opposites; leave one out")
    if setup.half and device not in backend.HALF:
        able = ", ".join(n for n in names() if load(n).HALF)
        raise InputError(
            f"--half: {name} computes on {device} as the package says; leave --half out "
            f"(backends that take it here: {able})"
        )
    if setup.cache is None:
        return
    if device not in backend.CACHES:
        able = ", ".join(n for n in names() if load(n).CACHES)
        raise InputError(
            f"--cache: {name} keeps no compiled graphs on {device}; leave --cache out "
            f"(backends that take it here: {able})"
        )
    _check_cache(setup.cache)


def _check_cache(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"--cache {folder}: not a folder; choose another") from None
    except OSError as error:
        raise InputError(f"--cache {folder}: {error.strerror}; choose another folder") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"--cache {folder}: cannot be written; choose another folder")


def missing(requires: Mapping[str, str]) -> list[str]:
    """The distributions that are not installed."""
    return [dist for module, dist in requires.items() if importlib.util.find_spec(module) is None]


def load_to_build(name: str) -> ModuleType:
    """A backend whose build requirements are installed; raises InputError with the pip line."""
    backend = load(name)
    absent = missing(backend.REQUIRES)
    if absent:
        raise needs_extra(backend.BUILD_EXTRA, ", ".join(absent))
    return backend


def load_to_run(name: str) -> ModuleType:
    """A backend whose runtime is installed; raises InputError with the pip line."""
    backend = load(name)
    absent = missing(backend.RUNS_WITH)
    if absent:
        raise needs_extra(backend.EXTRA, ", ".join(absent))
    return backend

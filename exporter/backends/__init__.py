"""Backends: a folder each, and those of other distributions; each an object with the same verbs.

``exporter.backends.contract.Backend`` says what a backend has. They are found by the entry points
of group ``fourstep.backends``: ``docs/add-a-backend.md`` shows how to bring one.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.backends.contract import (
    Backend,
    EmitOptions,
    Emitted,
    ForNpu,
    MeasuredCosts,
    Precision,
    Requirement,
    Session,
    SessionOptions,
)
from exporter.errors import InputError, known, not_installed

if TYPE_CHECKING:
    from exporter.quantize.formats import Scheme
    from exporter.quantize.program import QuantizedProgram

__all__ = [
    "Backend", "EmitOptions", "Emitted", "ForNpu", "MeasuredCosts", "Precision", "Requirement",
    "Session", "SessionOptions",
]  # fmt: skip
GROUP = "fourstep.backends"  # of entry points
MEMBERS = tuple(name for name in vars(Backend) if not name.startswith("_"))


@functools.cache
def _entries() -> Mapping[str, tuple[EntryPoint, ...]]:
    """The entry points of installed distributions, by the backend's name."""
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for entry in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda e: e.name):
        found[entry.name] = (*found.get(entry.name, ()), entry)
    return found


def names() -> tuple[str, ...]:
    """The backends of all installed distributions."""
    return tuple(_entries())


def working_names() -> tuple[str, ...]:
    """Those that can be loaded: a distribution that is broken must not stop all others."""
    return tuple(name for name in names() if _loads(name))


def _loads(name: str) -> bool:
    try:
        load(name)
    except InputError:
        return False
    return True


def load(name: str) -> Backend:
    """A backend by name; raises InputError listing the known ones, or naming what is broken."""
    if not _entries():
        raise InputError("no backend is installed, not even fourstep's own: pip install fourstep")
    if name not in _entries():
        raise InputError(known("backend", name, names()))
    return _load(name)


@functools.cache
def _load(name: str) -> Backend:
    entry, *others = _entries()[name]
    if others:
        rivals = " and ".join(_distribution(e) for e in (entry, *others))
        raise InputError(f"backend {name} comes from {rivals}; uninstall one of them")
    broken = f"backend {name} of {_distribution(entry)} cannot be loaded"
    remedy = "update or uninstall that distribution"
    try:
        backend: Backend = entry.load()
    except Exception as error:  # whatever a module of others raises when it is imported
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{broken}: {reason}; {remedy}") from None
    lacking = [member for member in MEMBERS if not hasattr(backend, member)]
    if lacking:
        raise InputError(f"{broken}: {entry.value} has no {', '.join(lacking)}; {remedy}")
    if backend.name != name:
        raise InputError(f"{broken}: {entry.value} is named {backend.name}; {remedy}")
    return backend


def _distribution(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value


def distribution(name: str) -> str:
    """The distribution that a backend comes with."""
    (entry, *_) = _entries()[name]
    return entry.dist.name if entry.dist else ""


def lists_of(backend: Backend) -> Mapping[str, tuple[str, ...]]:
    """Keys of a recipe's table that take several of these names."""
    return backend.lists if isinstance(backend, ForNpu) else {}


def npu_devices(backend: Backend) -> tuple[str, ...]:
    """A backend's devices that are NPUs and take graphs whole or not at all."""
    return backend.npu_devices if isinstance(backend, ForNpu) else ()


def keys_of(backend: Backend) -> tuple[str, ...]:
    """Keys of a recipe's table, besides its schemes."""
    return (*backend.options, *lists_of(backend))


def default_choices(backend: Backend) -> dict[str, str]:
    """What a recipe gets that has no table for the backend."""
    chosen = {key: values[0] for key, values in backend.options.items()}
    return chosen | dict.fromkeys(lists_of(backend), "")


def refuse_choices(backend: Backend, choices: Mapping[str, str]) -> str | None:
    """Why what a recipe chose of a backend does not go together, or None."""
    return backend.refuse_choices(choices) if isinstance(backend, ForNpu) else None


def costs_of(backend: Backend, asked: str) -> MeasuredCosts:
    """What graphs take on a backend; raises InputError naming what ``asked`` for a prediction."""
    if backend.costs is None:
        raise InputError(
            f"what {backend.name} takes has not been measured and cannot be predicted; "
            f"leave it out, or {backend.name} out of the backends",
            field=asked,
        )
    return backend.costs


def refuse_inexpressible(
    backend: Backend, choices: Mapping[str, str], scheme: str,
    programs: Mapping[str, QuantizedProgram],
) -> None:  # fmt: skip
    """Raise InputError if a backend cannot express a format that a scheme gave a weight.

    Or if no backend can: a weight that cannot be beside others of its graph.
    """
    from exporter.quantize.everywhere import refuse_mixture

    for program in programs.values():
        refuse_mixture(program)
        reason = backend.refuse_program(program, choices) if isinstance(backend, ForNpu) else None
        if reason:
            raise InputError(f"{backend.name} cannot build scheme {scheme}: {reason}")
        for weight, form in program.formats.items():
            reason = backend.refuse(form, choices)
            if reason:
                able = ", ".join(expressible_schemes(backend, choices))
                raise InputError(
                    f"{backend.name} cannot express scheme {scheme} ({program.name}: {weight} as "
                    f"{form}): {reason}; schemes that {backend.name} can: {able}"
                )


def expressible_schemes(backend: Backend, choices: Mapping[str, str]) -> list[str]:
    """The shipped schemes whose every format a backend can express, and that suit the choices."""
    from exporter.quantize.schemes import load_scheme, scheme_names

    def fits(scheme: Scheme) -> bool:
        able = not any(backend.refuse(rule.format, choices) for rule in scheme.rules)
        return able and (not isinstance(backend, ForNpu) or backend.suits(scheme, choices))

    return [name for name in scheme_names() if fits(load_scheme(name))]


def check_session(name: str, options: SessionOptions) -> None:
    """Raise InputError for a device that a backend does not know, or what is of no use there."""
    backend = load(name)
    device = options.device or backend.devices[0]
    if device not in backend.devices:
        has = ", ".join(backend.devices)
        raise InputError(f"{name} has no {device}; it has {has}", field="device")
    if options.precision == "half" and device not in backend.half_devices:
        able = ", ".join(n for n in working_names() if load(n).half_devices)
        raise InputError(
            f"{name} computes on {device} as the package says; leave it out "
            f"(backends that take it here: {able})",
            field="half",
        )
    if options.cache is None:
        return
    if device not in backend.caching_devices:
        able = ", ".join(n for n in working_names() if load(n).caching_devices)
        raise InputError(
            f"{name} keeps no compiled graphs on {device}; leave it out "
            f"(backends that take it here: {able})",
            field="cache",
        )
    _check_cache(options.cache)


def _check_cache(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError("not a folder; choose another", field="cache", given=folder) from None
    except OSError as error:
        reason = f"{error.strerror}; choose another folder"
        raise InputError(reason, field="cache", given=folder) from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError("cannot be written; choose another folder", field="cache", given=folder)


def missing(modules: Mapping[str, str]) -> list[str]:
    """Of the distributions by module, those that are not installed."""
    return [dist for module, dist in modules.items() if importlib.util.find_spec(module) is None]


def load_to_build(name: str) -> Backend:
    """A backend whose build requirements are installed; raises InputError with the pip line."""
    backend = load(name)
    _require(backend.to_build)
    return backend


def load_to_run(name: str) -> Backend:
    """A backend whose runtime is installed; raises InputError with the pip line."""
    backend = load(name)
    _require(backend.to_run)
    return backend


def _require(requirement: Requirement) -> None:
    absent = missing(requirement.modules)
    if absent:
        raise not_installed(", ".join(absent), requirement.install)

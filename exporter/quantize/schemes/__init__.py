"""One file per scheme; the file's name is the scheme's name, its ``SCHEME`` the data."""

from __future__ import annotations

import importlib
import pkgutil

from exporter.errors import InputError, known
from exporter.quantize.formats import Rule, Scheme


def scheme_names() -> tuple[str, ...]:
    """The known schemes: the files of this folder."""
    files = pkgutil.iter_modules(__path__)
    return tuple(sorted(f.name.replace("_", "-") for f in files))


def load_scheme(name: str) -> Scheme:
    """A scheme by name; raises InputError listing the known ones."""
    if name not in scheme_names():
        raise InputError(known("scheme", name, scheme_names()))
    file = name.replace("-", "_")
    scheme: Scheme = importlib.import_module(f"{__name__}.{file}").SCHEME
    return scheme


def is_shipped(rule: Rule) -> bool:
    """Whether a rule is a scheme's own, for any checkpoint, and nobody's wish for this one."""
    return any(rule in load_scheme(name).rules for name in scheme_names())

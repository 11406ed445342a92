"""What commands say alike: results, warnings, mistakes, sizes, and what is not installed."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from exporter import backends
from exporter.errors import InputError, Remark, decoded, needs_extra, printable
from exporter.progress import say

BEYOND_ASCII = re.compile(r"[^\x00-\x7e]")
BUILD = {"cyclonedx": "cyclonedx-python-lib", "torch": "torch"}  # distributions by module
# The flag of each field that the library's errors speak of.
FLAGS = {
    "background": "--background",
    "bits_per_weight": "--bits",
    "budget_bytes": "--budget",
    "cache": "--cache",
    "device": "--device",
    "earlier": "--from",
    "fit": "--fit",
    "floor_db": "--floor",
    "formats": "--format",
    "graphs": "--graph",
    "half": "--half",
    "identity": "--identity",
    "image": "--image",
    "jobs": "--job",
    "loras": "--lora",
    "mark_key": "--mark-key",
    "memory_bytes": "--memory",
    "metric": "--metric",
    "negative": "--negative",
    "out": "--out",
    "passphrase": "FOURSTEP_PASSPHRASE",
    "places": "--part",
    "previews": "--previews",
    "shared_cache": "--cache",
    "size": "--size",
    "prompts": "--prompts",
    "recipe": "--recipe",
    "seed": "--seed",
    "strength": "--strength",
    "target": "--for",
    "watch": "--watch",
}


def show(text: str) -> None:
    """Print a result on stdout; what files say in it is made printable, line by line."""
    click.echo("\n".join(printable(line) for line in text.split("\n")))


def show_json(value: object) -> None:
    """Print a result as JSON, in ASCII alone."""
    text = value if isinstance(value, str) else json.dumps(value, indent=1, ensure_ascii=False)
    click.echo(BEYOND_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], decoded(text)))


def complain(line: str) -> None:
    """One line on stderr."""
    say(f"fourstep: {printable(' '.join(line.splitlines()))}\n")


@contextmanager
def remarks_shown() -> Iterator[None]:
    """Show the project's own remarks, each text once; other warnings as Python would decide."""
    shown: set[str] = set()

    def show_remark(message: Warning | str, *_: Any, **__: Any) -> None:
        if str(message) not in shown:
            shown.add(str(message))
            complain(f"warning: {message}")

    with warnings.catch_warnings():
        warnings.simplefilter("always", Remark)
        warnings.showwarning = show_remark
        yield


def require_build() -> None:
    absent = backends.missing(BUILD)
    if absent:
        raise needs_extra("build", ", ".join(absent))


def megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def bytes_of(flag: str, text: str | None) -> int | None:
    """Bytes of a size such as 1.2GB, 900 MB, 1GiB or 123456; raises InputError."""
    if text is None:
        return None
    found = re.fullmatch(r"\s*([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([kKMGT]?)(i?)B?\s*", text)
    if found is None:
        raise InputError(f"{flag} {text!r}: a size is expected, such as 1.2GB or 900MB")
    number, prefix, binary = found.groups()
    power = " kMGT".index(prefix.replace("K", "k")) if prefix else 0
    return int(float(number) * (1024 if binary else 1000) ** power)

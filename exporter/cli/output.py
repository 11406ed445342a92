"""What commands say alike: results, warnings, mistakes, sizes, and what is not installed."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from exporter import backends
from exporter.errors import decoded, needs_extra, printable
from exporter.progress import say

if TYPE_CHECKING:
    from exporter.recipe.recipe import Recipe

BEYOND_ASCII = re.compile(r"[^\x00-\x7e]")
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
    "image": "--image",
    "memory_bytes": "--memory",
    "metric": "--metric",
    "negative": "--negative",
    "out": "--out",
    "previews": "--previews",
    "prompts": "--prompts",
    "seed": "--seed",
    "strength": "--strength",
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


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    complain(f"warning: {message}")


@contextmanager
def warnings_shown(*categories: type[Warning]) -> Iterator[None]:
    """Show warnings of these categories, each text once; others as Python would decide."""
    with warnings.catch_warnings():
        for category in categories:
            warnings.simplefilter("once", category)
        warnings.showwarning = show_warning
        yield


def recipe_of(file: Path) -> Recipe:
    """Read a recipe, and show what is said of it; raises InputError."""
    from exporter.recipe.recipe import RecipeWarning, read_recipe

    with warnings_shown(RecipeWarning):
        return read_recipe(file)


def require_build() -> None:
    absent = backends.missing({"torch": "torch"})
    if absent:
        raise needs_extra("build", ", ".join(absent))


def megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"

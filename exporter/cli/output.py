"""What commands say alike: warnings, sizes, and what is not installed."""

from __future__ import annotations

from typing import Any

import click

from exporter import backends
from exporter.errors import needs_extra


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    click.echo(f"fourstep: warning: {message}", err=True)


def require_build() -> None:
    absent = backends.missing({"torch": "torch"})
    if absent:
        raise needs_extra("build", ", ".join(absent))


def megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"

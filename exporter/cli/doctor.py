"""``fourstep doctor``: what is installed and how to get the rest."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from typing import Any

import click

from exporter import backends
from exporter.cli.options import json_option

BASE = ("numpy", "tokenizers", "Pillow", "click", "safetensors")


@click.command("doctor")
@json_option
def command(as_json: bool) -> None:
    """Show what is installed, what is missing and how to get it."""
    rows: list[dict[str, Any]] = [
        {"name": "python", "version": platform.python_version(), "missing": [], "get": ""}
    ]
    rows += [{"name": n, "version": _version(n), "missing": [], "get": ""} for n in BASE]
    builds = backends.missing({"torch": "torch"})
    rows.append(_row("build", "torch", builds, "build"))
    for name in backends.names():
        backend = backends.load(name)
        absent = backends.missing(backend.RUNS_WITH)
        last = list(backend.RUNS_WITH.values())[-1]
        rows.append(_row(f"run {name}", last, absent, backend.EXTRA))
        absent = backends.missing(backend.REQUIRES)
        last = list(backend.REQUIRES.values())[-1]
        rows.append(_row(f"build {name}", last, absent, backend.BUILD_EXTRA))
    absent = backends.missing({"skimage": "scikit-image"})
    rows.append(_row("report", "scikit-image", absent, "report"))
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        state = row["version"] if not row["missing"] else f"missing {', '.join(row['missing'])}"
        click.echo(f"{row['name']:<14} {state:<24} {row['get']}".rstrip())


def _row(name: str, distribution: str, absent: list[str], extra: str) -> dict[str, Any]:
    get = f"pip install 'fourstep[{extra}]'" if absent else ""
    version = "" if absent else f"{distribution} {_version(distribution)}"
    return {"name": name, "version": version, "missing": absent, "get": get}


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "missing"

"""``fourstep doctor``: what is installed and how to get the rest."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import click

from exporter import backends
from exporter.cli.options import json_option
from exporter.cli.output import BUILD, show, show_json
from exporter.errors import InputError

BASE = ("numpy", "tokenizers", "Pillow", "click", "safetensors")

CHECKING = {"cryptography": "cryptography"}
SIGNING = {
    **CHECKING,
    "pkcs11": "python-pkcs11",
    "model_signing": "model-signing",
    "sigstore": "sigstore",
}


@click.command("doctor")
@json_option
def command(as_json: bool) -> None:
    """Show what is installed, what is missing and how to get it."""
    rows: list[dict[str, Any]] = [
        {"name": "python", "version": platform.python_version(), "missing": [], "get": ""}
    ]
    rows += [{"name": n, "version": _version(n), "missing": [], "get": ""} for n in BASE]
    build = backends.Requirement("fourstep[build]", BUILD)
    rows.append(_row("build", build))
    for name in backends.names():
        try:
            backend = backends.load(name)
        except InputError as error:
            rows.append({"name": f"run {name}", "version": "", "missing": [], "get": str(error)})
            continue
        rows.append(_row(f"run {name}", backend.to_run))
        rows.append(_row(f"build {name}", backend.to_build))
    rows.append(_npu())
    report = backends.Requirement(
        "fourstep[report]", {"psutil": "psutil", "skimage": "scikit-image"}
    )
    rows.append(_row("report", report))
    signing = {"pkcs11": "python-pkcs11", "c2pa": "c2pa-python"}
    rows.append(_row("credentials", backends.Requirement("fourstep[credentials]", signing)))
    rows.append(_row("verify --trusted", backends.Requirement("fourstep[trust]", CHECKING)))
    rows.append(_row("sign", backends.Requirement("fourstep[signing]", SIGNING)))
    stores = backends.Requirement("fourstep[stores]", {"zstandard": "zstandard"})
    rows.append(_row("stores", stores))
    rows.append(_row("--cache s3://", backends.Requirement("fourstep[s3]", {"s3fs": "s3fs"})))
    cluster = backends.Requirement("fourstep[dask]", {"distributed": "distributed"})
    rows.append(_row("--on dask://", cluster))
    if as_json:
        show_json(rows)
        return
    for row in rows:
        absent = f"missing {', '.join(row['missing'])}" if row["missing"] else "broken"
        state = row["version"] or absent
        show(f"{row['name']:<16} {state:<24} {row['get']}".rstrip())


def _npu() -> dict[str, Any]:
    """Qualcomm's NPU: its provider, and in it emulator, compiler and their version (QAIRT)."""
    from exporter.backends.onnx.qnn.provider import REQUIRED, require
    from exporter.backends.onnx.qnn.socs import is_emulated

    row = _row("run onnx on HTP", REQUIRED)
    if not row["missing"]:
        what = "emulator and compiler" if is_emulated() else "device and compiler"
        row["version"] += f": {what}, QAIRT {require().qairt}"
    return row


def _row(name: str, requirement: backends.Requirement) -> dict[str, Any]:
    absent = backends.missing(requirement.modules)
    get = f"pip install '{requirement.install}'" if absent else ""
    last = [*requirement.modules.values()][-1]
    version = "" if absent else f"{last} {_version(last)}"
    return {"name": name, "version": version, "missing": absent, "get": get}


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "missing"

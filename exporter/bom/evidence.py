"""What a bill says beyond the manifest, read from the package's own files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from exporter.bom.write import Evidence, GoldenLoss
from exporter.errors import CheckFailed
from exporter.files.pictures import parse_picture
from exporter.files.read import parse_json, parse_text
from exporter.package.check import read_file
from exporter.package.manifest import Golden, Manifest
from exporter.package.measures import psnr_db
from exporter.package.sizes import sizes_of

# Formats whose layers' inputs are rounded, in ranges chosen on trajectories.
ROUNDED = ("w8a8", "w8a16", "w4a16")


def evidence_in(folder: Path, manifest: Manifest) -> Evidence:
    """The losses of a package's golden pictures, and the prompts that layers were measured on.

    They follow from the package's bytes alone, so that every machine finds the same. Raises
    CheckFailed for a damaged file.
    """
    drawn = [manifest.golden.pictures, *(entry.pictures for entry in manifest.sizes)]
    losses = [
        GoldenLoss(g.prompt, g.seed, str(size), _psnr_db(folder, manifest, g))
        for size, pictures in zip(sizes_of(manifest), drawn, strict=True)
        for g in pictures
    ]
    return Evidence(losses, _prompts(folder, manifest))


def _psnr_db(folder: Path, manifest: Manifest, golden: Golden) -> float:
    one, other = (_pixels(folder, manifest, p) for p in (golden.image, golden.unquantized))
    return psnr_db(one, other)


def _pixels(folder: Path, manifest: Manifest, path: str) -> np.ndarray:
    content = _content(folder, manifest, path)
    return parse_picture(io.BytesIO(content), folder / path, CheckFailed)


def _prompts(folder: Path, manifest: Manifest) -> Sequence[str]:
    """Those that decided bytes: of the statistics, or of ranges that inputs are rounded in."""
    origin = manifest.origin
    rounded = any(form.startswith(ROUNDED) for graph in manifest.graphs for form in graph.formats)
    if not origin.recipe or not (origin.statistics_sha256 or rounded):
        return ()
    where = folder / origin.recipe
    text = parse_text(_content(folder, manifest, origin.recipe), where, CheckFailed)
    recipe: Any = parse_json(text, where, CheckFailed)
    try:
        return tuple(str(prompt) for prompt in recipe["calibration"]["prompts"])
    except (KeyError, TypeError):
        raise CheckFailed(f"{where}: names no calibration prompts; build it again") from None


def _content(folder: Path, manifest: Manifest, path: str) -> bytes:
    entry = next(file for file in manifest.files if file.path == path)
    return read_file(folder, entry)

"""Pictures by anybody's MMDiT between one set of text encoders and one VAE, and what they lost."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.fidelity.graphs import EXACT
from benchmarks.fidelity.variant import GRAPHS, Samples
from benchmarks.shapes_flash.shapeeval import EvalPrompt, score
from exporter.backends.contract import Session
from exporter.calibrate.trajectories import travel
from exporter.drawing.loop import Image, Request, generate
from exporter.package.measures import SAME_DB, psnr_db, snr_db
from exporter.package.names import ENCODERS
from exporter.recipe.recipe import CalibrationChoice
from exporter.runtime.package import open_package


class Studio:
    """Draws with the text encoders and the VAE of an unquantized package."""

    def __init__(self, package: Path) -> None:
        self._player = open_package(package).player(EXACT)
        self._open = functools.cache(self._opened)

    def _opened(self, name: str) -> Session:
        opened = self._player.open(name)
        return _remembering(opened) if name in ENCODERS else opened

    def draw(self, mmdit: Mapping[str, Session], prompts: Sequence[EvalPrompt]) -> list[Image]:
        """One picture per prompt, with its own seed.

        Args:
            mmdit: sessions for conditioner and denoiser; those missing are the package's.
        """
        player = replace(self._player, open=lambda name: mmdit.get(name) or self._open(name))
        requests = [Request(p.text, p.seed) for p in prompts]
        return [event for event in generate(player, requests) if isinstance(event, Image)]

    def samples(self, calibration: CalibrationChoice) -> dict[str, Samples]:
        """Inputs of conditioner and denoiser along the steps of the calibration prompts."""
        calls = travel(self._player, calibration.prompts, calibration.seed).calls
        return {name: calls[name] for name in GRAPHS}


def _remembering(session: Session) -> Session:
    known: dict[bytes, dict[str, np.ndarray]] = {}

    def call(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        key = inputs["ids"].tobytes()
        if key not in known:
            known[key] = session(inputs)
        return known[key]

    return call


def losses(
    prompts: Sequence[EvalPrompt],
    found: Sequence[Image],
    plain: Sequence[Image],
    snr_prompts: int,
) -> dict[str, float]:
    """Mean and standard error of ShapeEval, PSNR and the final latents' SNR.

    Args:
        plain: the unquantized model's pictures.
        snr_prompts: how many prompts the SNR is a mean of, evenly spaced.
    """
    passed = [score(image.pixels, p) for image, p in zip(found, prompts, strict=True)]
    share, n = sum(passed) / len(passed), len(passed)
    psnr = [psnr_db(a.pixels, b.pixels) for a, b in zip(found, plain, strict=True)]
    chosen = np.unique(np.linspace(0, n - 1, min(snr_prompts, n)).round().astype(int))
    snr = [snr_db(found[i].latent, plain[i].latent) for i in chosen]
    return {
        **_mean("latent_snr_db", snr),
        **_mean("psnr_db", psnr),
        "shapeeval": share,
        "shapeeval_se": math.sqrt(share * (1 - share) / n),
    }


def _mean(name: str, ratios_db: Sequence[float]) -> dict[str, float]:
    values = np.clip(ratios_db, -SAME_DB, SAME_DB)
    error = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0
    return {name: float(np.mean(values)), f"{name}_se": error}

"""What a package's quantization costs in pictures: ShapeEval, PSNR and latent SNR.

Draws the evaluation prompts with each package and compares with the fp32 package's pictures of the
same seeds. Points are hundredths of the share of prompts whose picture passes.

    python -m benchmarks.quality artifacts/shapes-flash/onnx-{fp32,int8,int4} [--per-category 40]

The first package is the yardstick.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.shapes_flash.shapeeval import EvalPrompt, evaluation_prompts, score, summarize
from exporter.runtime import Image, Request, generate, open_package
from exporter.verify import psnr_db, snr_db

SAME_DB = 99.0  # stands for an infinite ratio where a mean is taken


@dataclass(frozen=True, eq=False)
class Drawn:
    """All pictures of a package: pixels (H, W, 3), final latents, and seconds per picture."""

    pixels: list[np.ndarray]
    latents: list[np.ndarray]
    seconds: float


def draw(package: Path, prompts: Sequence[EvalPrompt]) -> Drawn:
    """Draw every prompt with its own seed."""
    player = open_package(package).player()
    started = time.perf_counter()
    requests = [Request(p.text, p.seed) for p in prompts]
    images = [e for e in generate(player, requests) if isinstance(e, Image)]
    seconds = (time.perf_counter() - started) / len(prompts)
    return Drawn([i.pixels for i in images], [i.latent for i in images], seconds)


def compare(prompts: Sequence[EvalPrompt], found: Drawn, yardstick: Drawn) -> dict[str, object]:
    """ShapeEval per category, and mean PSNR and latent SNR against the yardstick."""
    shares = summarize(prompts, [score(x, p) for x, p in zip(found.pixels, prompts, strict=True)])
    psnr = [psnr_db(a, b) for a, b in zip(found.pixels, yardstick.pixels, strict=True)]
    snr = [snr_db(a, b) for a, b in zip(found.latents, yardstick.latents, strict=True)]
    return {
        "shapeeval": shares,
        "psnr_db": float(np.mean(np.minimum(psnr, SAME_DB))),
        "latent_snr_db": float(np.mean(np.minimum(snr, SAME_DB))),
        "seconds_per_picture": found.seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Quality of packages against the first of them.")
    parser.add_argument("packages", nargs="+", type=Path)
    parser.add_argument("--per-category", type=int, default=40)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    prompts = evaluation_prompts(arguments.per_category)
    yardstick = draw(arguments.packages[0], prompts)
    rows = {}
    print(
        f"{'package':<24} {'ShapeEval':>9} {'lost':>6} {'PSNR':>7} {'latent SNR':>11} {'bytes':>12}"
    )
    for i, package in enumerate(arguments.packages):
        row = compare(prompts, yardstick if i == 0 else draw(package, prompts), yardstick)
        row["bytes"] = sum(g.bytes for g in open_package(package).manifest.graphs)
        rows[package.name] = row
        shares = row["shapeeval"]
        first = rows[arguments.packages[0].name]["shapeeval"]
        assert isinstance(shares, dict) and isinstance(first, dict)
        lost = 100 * (first["overall"] - shares["overall"])
        print(
            f"{package.name:<24} {shares['overall']:>9.3f} {lost:>6.1f} {row['psnr_db']:>7.1f} "
            f"{row['latent_snr_db']:>11.1f} {row['bytes']:>12,}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

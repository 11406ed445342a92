"""What a package's quantization costs in pictures: ShapeEval, PSNR and latent SNR.

Draws the evaluation prompts with each package and compares with the fp32 package's pictures of the
same seeds. Points are hundredths of the share of prompts whose picture passes.

    python -m benchmarks.quality [PACKAGE ...] [--per-category 40] [--device HTP] [--json FILE]
                                 [--agreement FILE]

The first package is the yardstick, and draws on the processor whatever ``--device`` says; without
names, all packages of artifacts/shapes-flash are compared with onnx-fp32. Packages of one scheme
are also compared across backends.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import figures
from benchmarks.shapes_flash.shapeeval import EvalPrompt, evaluation_prompts, score, summarize
from exporter.backends.contract import SessionOptions
from exporter.drawing.loop import Image, Request, generate
from exporter.package.measures import SAME_DB, psnr_db, snr_db
from exporter.runtime.package import open_package

SHAPES = Path("artifacts/shapes-flash")
WHAT = "What quantization costs on shapes-flash"
COLUMNS = (
    figures.Column("package", "package"),
    figures.Column("shapeeval", "ShapeEval", 3),
    figures.Column("points_lost", "points lost", 1),
    figures.Column("psnr_db", "PSNR dB", 1),
    figures.Column("latent_snr_db", "latent SNR dB", 1),
    figures.Column("bytes", "bytes of graphs"),
)
WHAT_PAIRED = "The same prompt, seed and scheme on any two backends"
PAIRED = (
    figures.Column("scheme", "scheme"),
    figures.Column("psnr_db", "lowest PSNR dB of all pairs of backends", 1),
)


@dataclass(frozen=True, eq=False)
class Drawn:
    """All pictures of a package: pixels (H, W, 3), final latents, and seconds per picture."""

    pixels: list[np.ndarray]
    latents: list[np.ndarray]
    seconds: float


def draw(package: Path, prompts: Sequence[EvalPrompt], device: str | None = None) -> Drawn:
    """Draw every prompt with its own seed."""
    player = open_package(package).player(SessionOptions(device=device))
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


def agreement(drawn: Mapping[str, Drawn]) -> dict[tuple[str, str], float]:
    """Lowest PSNR in dB of a prompt's pictures, for every pair of packages."""
    return {
        (first, second): min(map(psnr_db, drawn[first].pixels, drawn[second].pixels))
        for first, second in itertools.combinations(drawn, 2)
    }


def lowest(drawn: Mapping[str, Drawn], scheme_of: Mapping[str, str]) -> list[figures.Row]:
    """By scheme: the lowest PSNR in dB of a prompt's pictures, over all pairs of its packages."""
    found: dict[str, float] = {}
    for (one, other), psnr in agreement(drawn).items():
        scheme = scheme_of[one]
        if scheme == scheme_of[other]:
            found[scheme] = min(psnr, found.get(scheme, SAME_DB))
    return [{"scheme": scheme, "psnr_db": psnr} for scheme, psnr in found.items()]


def built_packages(folder: Path) -> list[Path]:
    """The packages in a folder: by backend, its least rounded scheme first."""
    order = ("onnx", "openvino", "coreml")
    found = [open_package(f.parent).manifest for f in folder.glob("*/manifest.json")]
    found.sort(key=lambda m: (order.index(m.backend), -m.bytes))
    return [folder / f"{m.backend}-{m.scheme}" for m in found]


def main() -> None:
    parser = argparse.ArgumentParser(description="Quality of packages against the first of them.")
    parser.add_argument("packages", nargs="*", type=Path)
    parser.add_argument("--per-category", type=int, default=40)
    parser.add_argument("--device", help="of a backend; of those that are compared")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--agreement", type=Path, help="also write those across backends here")
    arguments = parser.parse_args()
    packages = arguments.packages or built_packages(SHAPES)
    prompts = evaluation_prompts(arguments.per_category)
    drawn: dict[str, Drawn] = {}
    rows: list[figures.Row] = []
    for package in packages:
        device = arguments.device if drawn else None
        drawn[package.name] = draw(package, prompts, device)
        found = compare(prompts, drawn[package.name], drawn[packages[0].name])
        share = found["shapeeval"]["overall"]  # type: ignore[index]
        rows.append(
            {
                "package": package.name,
                **found,
                "shapeeval": share,
                "points_lost": 100 * (rows[0]["shapeeval"] - share) if rows else 0.0,
                "bytes": sum(g.bytes for g in open_package(package).manifest.graphs),
            }
        )
        print(figures.markdown(COLUMNS, rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    print(figures.markdown(COLUMNS, rows))
    alike = lowest(drawn, {p.name: open_package(p).manifest.scheme for p in packages})
    print(f"\n{figures.markdown(PAIRED, alike)}")
    what = f"{len(prompts)} held-out prompts"
    if arguments.json:
        figures.write(arguments.json, f"{WHAT}: {what}, against the first package.", COLUMNS, rows)
    if arguments.agreement:
        figures.write(arguments.agreement, f"{WHAT_PAIRED}: the lowest of {what}.", PAIRED, alike)


if __name__ == "__main__":
    main()

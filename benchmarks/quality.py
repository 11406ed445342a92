"""What a package's quantization costs in pictures: ShapeEval, PSNR and latent SNR.

Draws the evaluation prompts with each package and compares with the fp32 package's pictures of the
same seeds. Points are hundredths of the share of prompts whose picture passes.

    python -m benchmarks.quality [PACKAGE ...] [--per-category 40]

The first package is the yardstick; without names, all packages of artifacts/shapes-flash are
compared with onnx-fp32. Packages of one scheme are also compared across backends.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.shapes_flash.shapeeval import EvalPrompt, evaluation_prompts, score, summarize
from exporter.drawing.loop import Image, Request, generate
from exporter.package.measures import SAME_DB, psnr_db, snr_db
from exporter.runtime.package import open_package

SHAPES = Path("artifacts/shapes-flash")


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


def agreement(drawn: Mapping[str, Drawn]) -> dict[tuple[str, str], float]:
    """Lowest PSNR in dB of a prompt's pictures, for every pair of packages."""
    return {
        (first, second): min(map(psnr_db, drawn[first].pixels, drawn[second].pixels))
        for first, second in itertools.combinations(drawn, 2)
    }


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
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    packages = arguments.packages or built_packages(SHAPES)
    prompts = evaluation_prompts(arguments.per_category)
    drawn: dict[str, Drawn] = {}
    rows: dict[str, dict[str, object]] = {}
    print("| package | ShapeEval | points lost | PSNR dB | latent SNR dB | bytes of graphs |")
    print("|---|---|---|---|---|---|")
    for package in packages:
        name = package.name
        drawn[name] = draw(package, prompts)
        row = rows[name] = compare(prompts, drawn[name], drawn[packages[0].name])
        row["bytes"] = sum(g.bytes for g in open_package(package).manifest.graphs)
        share, first = (
            rows[n]["shapeeval"]["overall"]  # type: ignore[index]
            for n in (name, packages[0].name)
        )
        print(
            f"| {name} | {share:.3f} | {100 * (first - share):.1f} | {row['psnr_db']:.1f} | "
            f"{row['latent_snr_db']:.1f} | {row['bytes']:,} |",
            flush=True,
        )
    by_scheme = {name: open_package(p).manifest.scheme for p in packages for name in [p.name]}
    pairs = {
        pair: db
        for pair, db in agreement(drawn).items()
        if by_scheme[pair[0]] == by_scheme[pair[1]]
    }
    print(f"\n| same scheme on two backends | lowest PSNR of {len(prompts)} prompts |\n|---|---|")
    for (first_name, second_name), db in pairs.items():
        print(f"| {first_name}, {second_name} | {min(db, SAME_DB):.1f} dB |")
    if arguments.json:
        named = {" ".join(pair): min(db, SAME_DB) for pair, db in pairs.items()}
        arguments.json.write_text(json.dumps({"packages": rows, "pairs": named}, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Load, step, picture and memory of packages, against diffusers in float32 in the same run.

Each contestant runs in a process of its own and draws the same prompt twice; the second picture
is timed stage by stage. Ratios are against diffusers.

    python -m benchmarks.runtime [PACKAGE...] [--json FILE]

Builds shapes-flash in every scheme into a temporary folder when no package is named.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RECIPE = Path("recipes/shapes-flash.toml")
CHECKPOINT = Path("artifacts/shapes-flash")
PROMPT = "two red circles left of a blue square"
SIGMAS = (1.0, 0.9, 0.75, 0.5)
PICTURES = 5


def measure_package(package: Path) -> dict[str, float]:
    """Time a package's stages and its process's peak resident memory."""
    from exporter.runtime import Conditioned, Image, Request, Step, generate, open_package

    player = open_package(package).player()
    stages: dict[str, list[float]] = {"text": [], "step": [], "decode": [], "picture": []}
    for seed in range(PICTURES):
        started = last = time.perf_counter()
        for event in generate(player, [Request(PROMPT, seed)]):
            now = time.perf_counter()
            kind = {Conditioned: "text", Step: "step", Image: "decode"}[type(event)]
            first_step = kind == "step" and event.step == 1  # type: ignore[union-attr]
            if not first_step:  # the first also opens the denoiser
                stages[kind].append(now - last)
            last = now
        stages["picture"].append(last - started)
    return {f"{k}_ms": 1e3 * min(v) for k, v in stages.items()} | _memory()


def measure_diffusers(checkpoint: Path) -> dict[str, float]:
    """The same prompt with StableDiffusion3Pipeline in float32."""
    import torch
    from diffusers import StableDiffusion3Pipeline

    pipe: Any = StableDiffusion3Pipeline.from_pretrained(checkpoint, local_files_only=True)
    pipe = pipe.to(torch.float32)
    pipe.set_progress_bar_config(disable=True)
    times = []
    for seed in range(PICTURES):
        started = time.perf_counter()
        with torch.inference_mode():
            pipe(
                PROMPT,
                sigmas=[s / (3 - 2 * s) for s in SIGMAS],
                guidance_scale=1.0,
                max_sequence_length=32,
                generator=torch.Generator().manual_seed(seed),
            )
        times.append(time.perf_counter() - started)
    return {"picture_ms": 1e3 * min(times)} | _memory()


def _memory() -> dict[str, float]:
    return {"peak_rss_bytes": float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)}


def _in_process(kind: str, place: Path) -> dict[str, float]:
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "benchmarks.runtime",
        "--one",
        kind,
        str(place),
    ]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(out.splitlines()[-1])
    return found


def _build(folder: Path) -> list[Path]:
    from exporter.pipeline import build
    from exporter.recipe import read_recipe

    schemes = ("fp32", "fp16", "int8", "int4")
    return [b.path for b in build(read_recipe(RECIPE), folder, ["onnx"], schemes)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed and memory of packages and of diffusers.")
    parser.add_argument("packages", nargs="*", type=Path)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        kind, place = arguments.one
        measure = measure_package if kind == "package" else measure_diffusers
        print(json.dumps(measure(Path(place))))
        return
    with tempfile.TemporaryDirectory() as place:
        packages = arguments.packages or _build(Path(place))
        rows = {"diffusers fp32": _in_process("diffusers", CHECKPOINT)}
        rows |= {p.name: _in_process("package", p) for p in packages}
    floor = rows["diffusers fp32"]
    print(
        f"{'':<16} {'text':>7} {'step':>7} {'decode':>7} {'picture ms':>11} {'ratio':>6} "
        f"{'peak MB':>8} {'ratio':>6}"
    )
    for name, row in rows.items():
        parts = " ".join(
            f"{row.get(k, float('nan')):>7.1f}" for k in ("text_ms", "step_ms", "decode_ms")
        )
        time_ratio = row["picture_ms"] / floor["picture_ms"]
        memory_ratio = row["peak_rss_bytes"] / floor["peak_rss_bytes"]
        print(
            f"{name:<16} {parts} {row['picture_ms']:>11.1f} {time_ratio:>6.2f} "
            f"{row['peak_rss_bytes'] / 1e6:>8.0f} {memory_ratio:>6.2f}"
        )
    if arguments.json:
        machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        arguments.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

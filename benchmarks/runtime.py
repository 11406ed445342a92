"""Seconds and memory of packages, against diffusers in float32 in the same run.

Each contestant runs in a process of its own: one picture from nothing (imports excluded, files
opened and digests checked), then eight pictures in one call, which opens each graph once. Ratios
are against diffusers. A model this small mostly measures the opening of graphs; the full-size
figures are another benchmark's.

    python -m benchmarks.runtime [PACKAGE...] [--json FILE]

Builds shapes-flash in every scheme into a temporary folder when no package is named.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import figures

RECIPE = Path("recipes/shapes-flash.toml")
CHECKPOINT = Path("artifacts/shapes-flash")
PROMPT = "two red circles left of a blue square"
SIGMAS = (1.0, 0.9, 0.75, 0.5)
PICTURES = 8
WHAT = (
    "shapes-flash, one prompt: first picture with everything opened, then eight in one call; "
    "ratios to diffusers in float32."
)
COLUMNS = (
    figures.Column("package", ""),
    figures.Column("first_ms", "first ms"),
    figures.Column("step_ms", "step ms", 1),
    figures.Column("batch_ms", "picture of a batch ms"),
    figures.Column("ratio", "ratio", 2),
    figures.Column("peak_rss_mb", "peak RSS MB"),
    figures.Column("memory_ratio", "ratio", 2),
)


def measure_package(package: Path) -> dict[str, float]:
    """Time the first picture, a step, and a picture of a batch."""
    from exporter.drawing.loop import Image, Request, Step, generate
    from exporter.runtime.package import open_package

    started = time.perf_counter()
    for event in generate(open_package(package).player(), [Request(PROMPT, 0)]):
        first_s = time.perf_counter() - started
        assert event is not None
    requests = [Request(PROMPT, seed) for seed in range(PICTURES)]
    steps, last = [], 0.0
    started = time.perf_counter()
    for event in generate(open_package(package).player(), requests):
        now = time.perf_counter()
        if isinstance(event, Step) and (event.index, event.step) > (0, 1):  # else: opening it too
            steps.append(now - last)
        if isinstance(event, Image):
            batch_s = now - started
        last = now
    times = {"first_ms": first_s, "step_ms": min(steps), "batch_ms": batch_s / PICTURES}
    return {name: 1e3 * seconds for name, seconds in times.items()} | _memory()


def measure_diffusers(checkpoint: Path) -> dict[str, float]:
    """The same prompt with StableDiffusion3Pipeline in float32, a picture at a time."""
    import torch
    from diffusers import StableDiffusion3Pipeline

    started = time.perf_counter()
    pipe: Any = StableDiffusion3Pipeline.from_pretrained(checkpoint, local_files_only=True)
    pipe = pipe.to(torch.float32)
    pipe.set_progress_bar_config(disable=True)
    times = []
    for seed in range(PICTURES + 1):
        with torch.inference_mode():
            pipe(
                PROMPT,
                sigmas=[s / (3 - 2 * s) for s in SIGMAS],
                guidance_scale=1.0,
                max_sequence_length=32,
                generator=torch.Generator().manual_seed(seed),
            )
        now = time.perf_counter()
        times.append(now - started)
        started = now
    return {"first_ms": 1e3 * times[0], "batch_ms": 1e3 * sum(times[1:]) / PICTURES} | _memory()


def _memory() -> dict[str, float]:
    """Peak resident memory of this process; getrusage would count its parent's before exec."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return {"peak_rss_bytes": float(line.split()[1]) * 1024}
    return {"peak_rss_bytes": float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)}


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
    from exporter.build.pipeline import build
    from exporter.recipe.recipe import read_recipe

    schemes = ("fp32", "fp16", "int8", "int4")
    return [b.path for b in build(read_recipe(RECIPE), folder, ["onnx"], schemes)]


def against(rows: Mapping[str, Mapping[str, float]], yardstick: str) -> list[figures.Row]:
    """Rows of the table, with ratios to one of them."""
    floor = rows[yardstick]
    return [
        {
            "package": name,
            **{key: row[key] for key in ("first_ms", "step_ms", "batch_ms") if key in row},
            "ratio": row["batch_ms"] / floor["batch_ms"],
            "peak_rss_mb": row["peak_rss_bytes"] / 1e6,
            "memory_ratio": row["peak_rss_bytes"] / floor["peak_rss_bytes"],
        }
        for name, row in rows.items()
    ]


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
    compared = against(rows, "diffusers fp32")
    print(figures.markdown(COLUMNS, compared))
    if arguments.json:
        figures.write(arguments.json, WHAT, COLUMNS, compared)


if __name__ == "__main__":
    main()

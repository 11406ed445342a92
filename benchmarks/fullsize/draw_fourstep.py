"""Draws two pictures with a package of ours; prints seconds by stage as JSON."""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import Any

from exporter.backends.contract import SessionOptions
from exporter.bench.process import Clock, parts_of
from exporter.drawing.loop import Image, Player, Request, generate
from exporter.runtime.package import open_package


def timed(player: Player, prompt: str, seed: int) -> dict[str, Any]:
    """One picture, and how long each stage took; a graph that is open already opens in no time."""
    clock, started = Clock(), time.perf_counter()
    events = generate(clock.watch(player), [Request(prompt, seed)])
    (image,) = [event for event in events if isinstance(event, Image)]
    steps = [clock.runs_s[name] for name in parts_of(player, "each step")]
    return {
        "picture_s": time.perf_counter() - started,
        "load_s": sum(sum(opens) for opens in clock.opens_s.values()),
        "text_s": sum(sum(clock.runs_s[name]) for name in parts_of(player, "once per prompt")),
        "steps_s": [sum(parts) for parts in zip(*steps, strict=True)],
        "vae_s": sum(clock.runs_s["vae_decoder"]),
        "pixels_sha256": hashlib.sha256(image.pixels.tobytes()).hexdigest(),
        "pixels_std": float(image.pixels.std()),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("package", type=Path)
    parser.add_argument("prompt")
    parser.add_argument("seed", type=int)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--half", action="store_true")
    given = parser.parse_args()
    options = SessionOptions("half" if given.half else "packaged", cache=given.cache)
    started = time.perf_counter()
    player = open_package(given.package).player(options, given.keep)
    opening_s = time.perf_counter() - started
    found = [timed(player, given.prompt, given.seed) for _ in range(2)]
    for key in ("picture_s", "load_s"):
        found[0][key] += opening_s
    print(json.dumps(found))


if __name__ == "__main__":
    main()

"""Draws two pictures with a package of ours; prints seconds by stage as JSON."""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from exporter.backends import Session, Setup
from exporter.runtime import Image, Request, generate, open_package
from exporter.runtime.loop import Player

STAGES = {"denoiser": "step", "vae_decoder": "vae"}  # all else encodes the prompt


def timed(player: Player, prompt: str, seed: int) -> dict[str, Any]:
    """One picture, and how long each stage took; a graph that is open already opens in no time."""
    spent: dict[str, list[float]] = defaultdict(list)

    def opened(name: str) -> Session:
        started = time.perf_counter()
        session = player.open(name)
        spent["load"].append(time.perf_counter() - started)
        stage = STAGES.get(name, "text")

        def call(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            began = time.perf_counter()
            outputs = session(inputs)
            spent[stage].append(time.perf_counter() - began)
            return outputs

        return call

    started = time.perf_counter()
    events = generate(replace(player, open=opened), [Request(prompt, seed)])
    (image,) = [event for event in events if isinstance(event, Image)]
    return {
        "picture_s": time.perf_counter() - started,
        "load_s": sum(spent["load"]),
        "text_s": sum(spent["text"]),
        "steps_s": spent["step"],
        "vae_s": sum(spent["vae"]),
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
    setup = Setup(cache=given.cache, half=given.half)
    started = time.perf_counter()
    player = open_package(given.package).player(setup, given.keep)
    opening_s = time.perf_counter() - started
    found = [timed(player, given.prompt, given.seed) for _ in range(2)]
    for key in ("picture_s", "load_s"):
        found[0][key] += opening_s
    print(json.dumps(found))


if __name__ == "__main__":
    main()

"""Draws two pictures with a package of ours; prints seconds by stage as JSON."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from exporter.backends import Session, Setup
from exporter.runtime import Image, Request, generate, open_package

STAGES = {"denoiser": "step", "vae_decoder": "vae"}  # all else encodes the prompt


def timed(package: Path, prompt: str, seed: int, cache: Path | None = None) -> dict[str, object]:
    """One picture from a package that is not open yet."""
    spent: dict[str, list[float]] = defaultdict(list)
    player = open_package(package).player(Setup(cache=cache))

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


if __name__ == "__main__":
    folder, words, number, *caches = sys.argv[1:]
    kept = Path(caches[0]) if caches else None
    print(json.dumps([timed(Path(folder), words, int(number), kept) for _ in range(2)]))

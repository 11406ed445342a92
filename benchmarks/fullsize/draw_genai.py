"""Draws two pictures with OpenVINO GenAI; prints seconds by stage as JSON.

It takes no sigmas: its scheduler's own steps, as many of them, cost the same.
"""

from __future__ import annotations

import json
import sys
import time

from benchmarks.fullsize.stages import stages


def main() -> None:
    folder, prompt, seed, px, count, *hints = sys.argv[1:]
    import numpy as np
    import openvino_genai as genai

    started = time.perf_counter()
    options = {"INFERENCE_PRECISION_HINT": hints[0]} if hints else {}
    pipe = genai.Text2ImagePipeline(folder, "CPU", **options)
    load_s, found = time.perf_counter() - started, []
    for number in range(2):
        ends: list[float] = []

        def note(step: int, steps: int, latent: object, ends: list[float] = ends) -> bool:
            ends.append(time.perf_counter())
            return False

        began = time.perf_counter()
        image = pipe.generate(
            prompt, width=int(px), height=int(px), num_inference_steps=int(count),
            guidance_scale=1.0, rng_seed=int(seed), callback=note,
        )  # fmt: skip
        std = float(np.asarray(image.data).std())
        found.append(stages(0 if number else load_s, began, ends, time.perf_counter(), std))
    print(json.dumps(found))


if __name__ == "__main__":
    main()

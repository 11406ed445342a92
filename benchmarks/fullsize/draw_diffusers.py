"""Draws two pictures with a pipeline of diffusers' kind; prints seconds by stage as JSON."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from benchmarks.fullsize.stages import stages


def open_pipeline(folder: str, kind: str) -> Any:
    """``float32`` or ``bfloat16``: diffusers itself; ``onnx``, ``openvino``: optimum's."""
    if kind == "onnx":
        from optimum.onnxruntime import ORTStableDiffusion3Pipeline

        return ORTStableDiffusion3Pipeline.from_pretrained(folder, local_files_only=True)
    if kind == "openvino":
        from optimum.intel import OVStableDiffusion3Pipeline

        return OVStableDiffusion3Pipeline.from_pretrained(folder, local_files_only=True)
    import torch
    from diffusers import StableDiffusion3Pipeline

    return StableDiffusion3Pipeline.from_pretrained(
        folder, torch_dtype=getattr(torch, kind), local_files_only=True
    )


def main() -> None:
    folder, kind, prompt, seed, px, *sigmas = sys.argv[1:]
    import torch

    started = time.perf_counter()
    pipe = open_pipeline(folder, kind)
    pipe.set_progress_bar_config(disable=True)
    load_s, found = time.perf_counter() - started, []
    for number in range(2):
        ends: list[float] = []

        def note(pipe: Any, step: int, at: Any, kept: Any, ends: list[float] = ends) -> Any:
            ends.append(time.perf_counter())
            return kept

        began = time.perf_counter()
        with torch.inference_mode():
            image = pipe(
                prompt, width=int(px), height=int(px), guidance_scale=1.0,
                sigmas=[s / (3 - 2 * s) for s in map(float, sigmas)],  # before the shift of 3
                generator=torch.Generator().manual_seed(int(seed)), callback_on_step_end=note,
                output_type="np",
            ).images[0]  # fmt: skip
        end = time.perf_counter()
        std = 255 * float(image.std())
        found.append(stages(0 if number else load_s, began, ends, end, std))
    print(json.dumps(found))


if __name__ == "__main__":
    main()

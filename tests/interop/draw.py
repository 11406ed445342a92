"""Run by a client's environment: draws with a folder, keeps each latent, measures seconds.

python draw.py genai|optimum-intel|optimum-onnx FOLDER PROMPT SEED STEPS OUT.npz [T5_TOKENS]
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np

CLIENT, FOLDER, PROMPT, SEED, STEPS, OUT = sys.argv[1:7]
TOKENS = {"max_sequence_length": int(sys.argv[7])} if len(sys.argv) > 7 else {}  # else a bare call
EXACT = {"INFERENCE_PRECISION_HINT": "f32"}
PICTURES = 3  # after the first, for the seconds of the next one
latents: list[np.ndarray] = []


def genai():
    import openvino_genai

    pipeline = openvino_genai.Text2ImagePipeline(FOLDER, "CPU", **EXACT)

    def note(step, steps, latent):
        latents.append(np.array(latent.data))
        return False

    def draw():
        noise = openvino_genai.TorchGenerator(int(SEED))
        settings = {"num_inference_steps": int(STEPS), "guidance_scale": 1.0, **TOKENS}
        return pipeline.generate(PROMPT, **settings, generator=noise, callback=note).data[0]

    return draw


def optimum():
    import torch

    if CLIENT == "optimum-intel":
        from optimum.intel import OVStableDiffusion3Pipeline

        pipeline = OVStableDiffusion3Pipeline.from_pretrained(FOLDER, ov_config=EXACT)
    else:
        from optimum.onnxruntime import ORTStableDiffusion3Pipeline

        pipeline = ORTStableDiffusion3Pipeline.from_pretrained(FOLDER)
    pipeline.set_progress_bar_config(disable=True)

    def note(_, step, timestep, values):
        latents.append(values["latents"].numpy().copy())
        return values

    def draw():
        found = pipeline(
            PROMPT,
            num_inference_steps=int(STEPS),
            guidance_scale=1.0,
            **TOKENS,
            generator=torch.Generator().manual_seed(int(SEED)),
            output_type="np",
            callback_on_step_end=note,
        ).images[0]
        return np.round(np.nan_to_num(found) * 255).astype(np.uint8)

    return draw


started = time.perf_counter()
draw = genai() if CLIENT == "genai" else optimum()
picture = np.array(draw())
first_s = time.perf_counter() - started
kept = list(latents)
next_s = []
for _ in range(PICTURES):
    before = time.perf_counter()
    draw()
    next_s.append(time.perf_counter() - before)
np.savez(OUT, picture=picture, latents=np.stack(kept))
print(json.dumps({"first_s": first_s, "next_s": min(next_s)}))

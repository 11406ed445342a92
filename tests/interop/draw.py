"""Run by a client's environment: draws with a folder, keeps each latent, measures seconds.

python draw.py genai|optimum-intel|optimum-onnx FOLDER REQUESTS STEPS OUT.npz [T5_TOKENS]

REQUESTS: JSON, a list of prompts with their seeds. What is kept has an axis for them first.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np

CLIENT, FOLDER, GIVEN, STEPS, OUT = sys.argv[1:6]
REQUESTS = json.loads(GIVEN)
TOKENS = {"max_sequence_length": int(sys.argv[6])} if len(sys.argv) > 6 else {}  # else a bare call
EXACT = {"INFERENCE_PRECISION_HINT": "f32"}
PICTURES = 5  # after all requests, for the seconds of the next one
latents: list[np.ndarray] = []


def genai():
    import openvino_genai

    pipeline = openvino_genai.Text2ImagePipeline(FOLDER, "CPU", **EXACT)

    def note(step, steps, latent):
        latents.append(np.array(latent.data))
        return False

    def draw(prompt, seed):
        noise = openvino_genai.TorchGenerator(seed)
        settings = {"num_inference_steps": int(STEPS), "guidance_scale": 1.0, **TOKENS}
        return pipeline.generate(prompt, **settings, generator=noise, callback=note).data[0]

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

    def draw(prompt, seed):
        found = pipeline(
            prompt,
            num_inference_steps=int(STEPS),
            guidance_scale=1.0,
            **TOKENS,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
            callback_on_step_end=note,
        ).images[0]
        return np.round(np.nan_to_num(found) * 255).astype(np.uint8)

    return draw


def now():
    """Seconds on the clock, and of all the process's threads on processors."""
    return np.array([time.perf_counter(), time.process_time()])


started = now()
draw = genai() if CLIENT == "genai" else optimum()
pictures = [np.array(draw(*REQUESTS[0]))]
first = now() - started
pictures += [np.array(draw(*request)) for request in REQUESTS[1:]]
kept = np.stack(latents).reshape(len(REQUESTS), -1, *latents[0].shape)
following = []
for _ in range(PICTURES):
    before = now()
    draw(*REQUESTS[0])
    following.append(now() - before)
np.savez(OUT, pictures=np.stack(pictures), latents=kept)
least = np.min(following, 0)
print(
    json.dumps({
        "first_s": first[0], "first_cpu_s": first[1], "next_s": least[0], "next_cpu_s": least[1]
    })
)  # fmt: skip

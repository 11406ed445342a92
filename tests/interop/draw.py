"""Run by a client's environment: draws with a folder, keeps each latent, measures seconds.

python draw.py genai|optimum-intel|optimum-onnx FOLDER REQUESTS STEPS OUT.npz [options]

REQUESTS: JSON, a list of prompts with their seeds. What is kept has an axis for them first.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

parser = argparse.ArgumentParser()
parser.add_argument("client", choices=("genai", "optimum-intel", "optimum-onnx"))
parser.add_argument("folder")
parser.add_argument("requests", type=json.loads)
parser.add_argument("steps", type=int)
parser.add_argument("out", type=Path)
parser.add_argument("--t5-tokens", type=int, help="else a bare call")
parser.add_argument("--start", type=Path, help="PNG of the picture's size to start from")
parser.add_argument("--strength", type=float, default=0.5)
GIVEN = parser.parse_args()
STEPS, START = {"num_inference_steps": GIVEN.steps, "guidance_scale": 1.0}, GIVEN.start
TOKENS = {"max_sequence_length": GIVEN.t5_tokens} if GIVEN.t5_tokens else {}
EXACT = {"INFERENCE_PRECISION_HINT": "f32"}
PICTURES = 5  # after all requests, for the seconds of the next one
latents: list[np.ndarray] = []


def genai():
    import openvino
    import openvino_genai

    kind = openvino_genai.Image2ImagePipeline if START else openvino_genai.Text2ImagePipeline
    pipeline = kind(GIVEN.folder, "CPU", **EXACT)
    given = [openvino.Tensor(np.array(picture())[None])] if START else []
    more = {"strength": GIVEN.strength} if START else {}

    def note(step, steps, latent):
        latents.append(np.array(latent.data))
        return False

    def draw(prompt, seed):
        noise = openvino_genai.TorchGenerator(seed)
        settings = {**STEPS, **TOKENS, **more}
        return pipeline.generate(prompt, *given, **settings, generator=noise, callback=note).data[0]

    return draw


def picture():
    from PIL import Image

    return Image.open(START).convert("RGB")


def optimum():
    import torch

    if GIVEN.client == "optimum-intel":
        from optimum import intel as kinds

        stem, options = "OV", {"ov_config": EXACT}
    else:
        from optimum import onnxruntime as kinds

        stem, options = "ORT", {}
    kind = getattr(kinds, f"{stem}StableDiffusion3{'Img2Img' if START else ''}Pipeline")
    pipeline = kind.from_pretrained(GIVEN.folder, **options)
    pipeline.set_progress_bar_config(disable=True)
    more = {"image": picture(), "strength": GIVEN.strength} if START else {}

    def note(_, step, timestep, values):
        latents.append(values["latents"].numpy().copy())
        return values

    def draw(prompt, seed):
        found = pipeline(
            prompt,
            **STEPS,
            **TOKENS,
            **more,
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
draw = genai() if GIVEN.client == "genai" else optimum()
pictures = [np.array(draw(*GIVEN.requests[0]))]
first = now() - started
pictures += [np.array(draw(*request)) for request in GIVEN.requests[1:]]
kept = np.stack(latents).reshape(len(GIVEN.requests), -1, *latents[0].shape)
following = []
for _ in range(PICTURES):
    before = now()
    draw(*GIVEN.requests[0])
    following.append(now() - before)
np.savez(GIVEN.out, pictures=np.stack(pictures), latents=kept)
least = np.min(following, 0)
told = {"first_s": first[0], "first_cpu_s": first[1], "next_s": least[0], "next_cpu_s": least[1]}
print(json.dumps(told))

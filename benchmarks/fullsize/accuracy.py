"""How far one step and the decoder of packages are from the unquantized program in torch.

    python -m benchmarks.fullsize.accuracy RECIPE PACKAGE [PACKAGE ...]

The first package encodes the prompt; its context, and noise as the latent, go to every denoiser and
to torch, which reads the recipe's checkpoint weight by weight in float32.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from benchmarks.fullsize.contestants import PROMPT, SEED
from exporter.build.model import trace_model
from exporter.drawing.loop import condition
from exporter.drawing.noise import TorchNoise
from exporter.package.measures import relative_error
from exporter.program.run import run
from exporter.progress import Progress
from exporter.recipe.recipe import read_recipe
from exporter.runtime.package import open_package


def main() -> None:
    parser = argparse.ArgumentParser(description="Packages against the unquantized program.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("packages", type=Path, nargs="+")
    arguments = parser.parse_args()
    model = trace_model(read_recipe(arguments.recipe), 0, Progress())
    player = open_package(arguments.packages[0]).player()
    found = condition(player, [PROMPT])[PROMPT]
    latent: np.ndarray = TorchNoise(SEED).randn(*player.latent)
    calls = [
        (
            "denoiser",
            f"step {step + 1}, velocity",
            {
                "latent": latent,
                "context": found["conditioner", "context"],
                "modulation": found["conditioner", "modulation"][step : step + 1],
            },
        )
        for step in range(model.recipe.cut.steps)
    ]
    calls.append(("vae_decoder", "image", {"latent": latent}))
    for graph, what, inputs in calls:
        tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
        with torch.inference_mode():
            (exact,) = run(model.unrounded[graph], model.weights.read, tensors).values()
        for folder in arguments.packages:
            (output,) = open_package(folder).session(graph)(inputs).values()
            error = relative_error(output, exact.numpy())
            print(f"{what:<18} {folder.name:<22} relative error {error:.4f}", flush=True)


if __name__ == "__main__":
    main()

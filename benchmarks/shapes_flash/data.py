"""Training data: rendered scenes with prompts, kept as latents and token ids.

python -m benchmarks.shapes_flash.data --vae RUN --tokenizers DIR --out FILE
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.shapes_flash.networks import Ids, Tokenizers, build_vae
from benchmarks.shapes_flash.training import load_weights
from benchmarks.shapes_flash.world import (
    BACKGROUNDS,
    COLOURS,
    HALF_PX,
    PITCH_PX,
    SHAPES,
    Item,
    arrange,
    phrase,
    render,
    sample_scene,
)

CHUNK = 500
PHRASINGS = 4  # prompts per picture
# The harder a category, the more often training shows it.
WEIGHTS = {
    "single_object": 1,
    "two_objects": 2,
    "counting": 3,
    "colours": 1,
    "position": 4,
    "colour_attribution": 3,
}

Chunk = tuple[NDArray[np.uint8], list[str]]


def render_chunk(key: tuple[int, int]) -> Chunk:
    """`CHUNK` pictures (CHUNK, 128, 128, 3), `PHRASINGS` prompts each; key is (seed, number)."""
    rng = Random(f"data {key[0]} {key[1]}")
    images, texts = [], []
    for category in rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=CHUNK):
        scene = sample_scene(category, rng, evaluation=False)
        images.append(render(arrange(scene, rng), scene.background))
        texts += [phrase(scene, rng) for _ in range(PHRASINGS)]
    return np.stack(images), texts


def render_chunks(count: int, seed: int) -> Iterator[Chunk]:
    """At least `count` pictures, rendered by all processors, in a fixed order."""
    keys = [(seed, number) for number in range(-(-count // CHUNK))]
    with get_context("fork").Pool(os.cpu_count()) as pool:
        yield from pool.imap(render_chunk, keys, chunksize=1)


def render_crowd(rng: Random) -> NDArray[np.uint8]:
    """A small picture (64, 64, 3) with a random object in most of its four corners.

    The autoencoder learns edges and colours from these: scenes are mostly background.
    """
    items = [
        Item(
            rng.choice(SHAPES),
            rng.choice(list(COLOURS)),
            PITCH_PX * (column + 0.5) + rng.uniform(-5, 5),
            PITCH_PX * (row + 0.5) + rng.uniform(-5, 5),
            rng.uniform(*HALF_PX),
        )
        for row in range(2)
        for column in range(2)
        if rng.random() < 0.8
    ]
    return render(tuple(items), rng.choice(list(BACKGROUNDS)), 2 * PITCH_PX)


def to_pixels(images: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) to float (B, 3, H, W) from -1 to 1."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


@dataclass(frozen=True)
class Examples:
    """Latents (N, 16, 16, 16) as the transformer sees them; ids of `PHRASINGS` prompts for each."""

    latents: Tensor
    ids: Ids

    def sample(self, batch: int) -> tuple[Tensor, Ids]:
        """Random latents (batch, 16, 16, 16), each with one of its prompts."""
        device = self.latents.device
        rows = torch.randint(len(self.latents), (batch,), device=device)
        chosen = PHRASINGS * rows + torch.randint(PHRASINGS, (batch,), device=device)
        return self.latents[rows].float(), self.ids.take(chosen)

    @staticmethod
    def load(path: Path, device: str) -> Examples:
        """Read what `main` wrote, onto a device."""
        tensors = load_file(path, device=device)
        ids = Ids(tensors["clip_l"], tensors["clip_g"], tensors["t5"])
        return Examples(tensors["latents"], ids)


def build_examples(count: int, seed: int, vae_run: Path, tokenizers: Path, device: str) -> Examples:
    """Render, encode (the posterior's mean, shifted and scaled), tokenize."""
    statistics = load_file(vae_run / "statistics.safetensors")
    vae = build_vae()
    load_weights(vae, vae_run)
    vae.requires_grad_(False).eval().to(device)
    tokenizer = Tokenizers.load(tokenizers)
    latents, texts = [], []
    for images, chunk_texts in render_chunks(count, seed):
        for part in torch.split(torch.from_numpy(images), 50):
            mean = vae.encode(to_pixels(part.to(device))).latent_dist.mean.cpu()
            latents.append(((mean - statistics["shift"]) * statistics["scale"]).half().contiguous())
        texts += chunk_texts
    return Examples(torch.cat(latents), tokenizer.ids(texts))


def main() -> None:
    """Render and encode the training set."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--vae", type=Path, required=True, help="run folder of the VAE")
    parser.add_argument("--tokenizers", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=12_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    made = build_examples(args.count, args.seed, args.vae, args.tokenizers, args.device)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    ids = {"clip_l": made.ids.clip_l, "clip_g": made.ids.clip_g, "t5": made.ids.t5}
    save_file({"latents": made.latents, **ids}, args.out)


if __name__ == "__main__":
    main()

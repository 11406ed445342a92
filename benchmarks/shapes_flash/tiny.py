"""Train the tiny autoencoder that stands in for the VAE, and write it into the checkpoint.

    python -m benchmarks.shapes_flash.tiny --checkpoint DIR --out RUN --crowded 3000
    python -m benchmarks.shapes_flash.tiny --checkpoint DIR --out RUN             # then: scenes

The decoder learns the VAE's picture of a latent, the encoder the VAE's latent of a picture
(distillation of both ends, each on its own). The examples are rendered scenes, encoded by the VAE,
and scenes that the model drew in its four steps: what the decoder will meet; or crowds, small
pictures that are full of edges. Both networks are diffusers' AutoencoderTiny, TAESD's layers at a
quarter of their width.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, StableDiffusion3Pipeline
from diffusers.utils import logging
from torch import Tensor

from benchmarks.shapes_flash.data import WEIGHTS, render_chunks, render_crowd, to_pixels
from benchmarks.shapes_flash.networks import LATENT_CHANNELS
from benchmarks.shapes_flash.shapeeval import SIGMAS, T5_TOKENS
from benchmarks.shapes_flash.training import Plan, Run
from benchmarks.shapes_flash.world import phrase, sample_scene

WIDTH = 16
ENCODER_BLOCKS, DECODER_BLOCKS = (0, 2, 3, 4), (4, 4, 2, 0)  # by stage, input to output
MSE_WEIGHT = 4.0
DRAWN_AT_ONCE = 20


def build_tiny() -> AutoencoderTiny:
    """Untrained, for latents as the transformer sees them: no scale, no shift."""
    return AutoencoderTiny(
        latent_channels=LATENT_CHANNELS,
        encoder_block_out_channels=(WIDTH,) * 4,
        decoder_block_out_channels=(WIDTH,) * 4,
        num_encoder_blocks=ENCODER_BLOCKS,
        num_decoder_blocks=DECODER_BLOCKS,
        scaling_factor=1.0,
        shift_factor=0.0,
    )


@dataclass(frozen=True)
class Pairs:
    """What the VAE makes of what: float16 latents (N, 16, h, w), pictures (N, 3, 8h, 8w).

    Pictures are the VAE's, from -1 to 1. ``encoded``: the VAE's latents of these pictures.
    """

    latents: Tensor
    pictures: Tensor
    encoded: Tensor

    def take(self, rows: Tensor) -> Pairs:
        """Some of them."""
        return Pairs(self.latents[rows], self.pictures[rows], self.encoded[rows])


def encode(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """The posterior's mean as the transformer sees it."""
    mean: Tensor = vae.encode(pixels).latent_dist.mean
    latents: Tensor = (mean - vae.config.shift_factor) * vae.config.scaling_factor
    return latents


def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """The VAE's picture, from -1 to 1."""
    picture: Tensor = vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor)[0]
    return picture.clamp(-1, 1)


def draw(pipeline: StableDiffusion3Pipeline, count: int, seed: int) -> Tensor:
    """Final latents of prompts like those of training."""
    rng = Random(f"tiny {seed}")
    before_shift = [sigma / (3 - 2 * sigma) for sigma in SIGMAS[:-1]]
    latents = []
    for start in range(0, count, DRAWN_AT_ONCE):
        categories = rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=DRAWN_AT_ONCE)
        scenes = [sample_scene(category, rng, evaluation=False) for category in categories]
        latents.append(
            pipeline(
                [phrase(scene, rng) for scene in scenes],
                sigmas=before_shift,
                guidance_scale=1.0,
                max_sequence_length=T5_TOKENS,
                generator=torch.Generator("cpu").manual_seed((seed << 20) + start),
                output_type="latent",
            ).images
        )
    return torch.cat(latents)[:count]


@dataclass(frozen=True)
class Count:
    """How many examples: rendered and drawn by the model; or crowds, 64 x 64 px, alone."""

    rendered: int
    drawn: int
    crowds: int


def render_pictures(count: Count, seed: int) -> Tensor:
    """(N, H, W, 3) uint8."""
    if count.crowds:
        rng = Random(f"tiny crowds {seed}")
        return torch.from_numpy(np.stack([render_crowd(rng) for _ in range(count.crowds)]))
    chunks = [torch.from_numpy(images) for images, _ in render_chunks(count.rendered, seed)]
    return torch.cat(chunks)[: count.rendered]


@torch.no_grad()
def gather(checkpoint: Path, count: Count, seed: int, device: str) -> Pairs:
    """Encode rendered pictures and draw others; decode and encode again, as the VAE does it."""
    logging.disable_progress_bar()
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        checkpoint, torch_dtype=torch.float32, local_files_only=True
    ).to(device)
    pipeline.set_progress_bar_config(disable=True)
    vae = pipeline.vae
    chosen = torch.split(render_pictures(count, seed), DRAWN_AT_ONCE)
    latents = [encode(vae, to_pixels(part.to(device))) for part in chosen]
    if count.drawn:
        latents += torch.split(draw(pipeline, count.drawn, seed), DRAWN_AT_ONCE)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for part in latents:
        pictures = decode(vae, part)
        found.append((part.half(), pictures.half(), encode(vae, pictures).half()))
    return Pairs(*(torch.cat(column) for column in zip(*found, strict=True)))


def losses(tiny: AutoencoderTiny, pairs: Pairs) -> dict[str, Tensor]:
    """Distance of both ends from the VAE's; of the decoder also the squared one."""
    error = tiny.decode(pairs.latents.float()).sample - pairs.pictures.float()
    latent = tiny.encode(pairs.pictures.float()).latents - pairs.encoded.float()
    return {"l1": error.abs().mean(), "mse": (error**2).mean(), "latent": (latent**2).mean()}


@torch.no_grad()
def measure_db(tiny: AutoencoderTiny, pairs: Pairs) -> dict[str, float]:
    """Mean PSNR of pictures against the VAE's: of its latents, and encoded and decoded."""
    wanted = pairs.pictures.float()

    def psnr_db(latents: Tensor) -> float:
        error = tiny.decode(latents).sample.clamp(-1, 1) - wanted
        return 10 * torch.log10(4 / (error**2).mean((1, 2, 3))).mean().item()

    return {
        "decoder_psnr_db": psnr_db(pairs.latents.float()),
        "both_psnr_db": psnr_db(tiny.encode(wanted).latents),
    }


def train(folder: Path, plan: Plan, pairs: Pairs) -> AutoencoderTiny:
    """Train and write the run folder; returns the averaged network."""
    torch.manual_seed(plan.seed)
    shuffled = pairs.take(torch.randperm(len(pairs.latents), device=pairs.latents.device))
    held = max(1, min(100, len(shuffled.latents) // 10))
    order = torch.arange(len(shuffled.latents), device=plan.device)
    unseen = shuffled.take(order[:held])
    tiny = build_tiny().to(plan.device, memory_format=torch.channels_last)
    run = Run(folder, tiny, plan)
    for _ in run.steps():
        rows = torch.randint(held, len(order), (plan.batch,), device=plan.device)
        with plan.autocast():
            terms = losses(tiny, shuffled.take(rows))
        loss = terms["l1"] + MSE_WEIGHT * terms["mse"] + terms["latent"]
        loss.backward()  # type: ignore[no-untyped-call]
        run.update()
        run.count(terms)
    average = run.average
    assert isinstance(average, AutoencoderTiny)
    figures = measure_db(average, unseen)
    run.report(figures)
    if not all(math.isfinite(value) for value in figures.values()):
        raise ArithmeticError("the tiny autoencoder diverged")
    return average


def main() -> None:
    """Train the tiny autoencoder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="what it is distilled from")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rendered", type=int, default=1_000)
    parser.add_argument("--drawn", type=int, default=600)
    parser.add_argument("--crowded", type=int, default=0, metavar="N", help="N crowds alone")
    Plan.add_arguments(parser, batch=8, rate=3e-3)
    args = parser.parse_args()
    plan = Plan.from_arguments(args)
    count = Count(args.rendered, args.drawn, 0)
    if args.crowded:
        count = Count(0, 0, args.crowded)
    pairs = gather(args.checkpoint, count, plan.seed, plan.device)
    train(args.out, plan, pairs).half().save_pretrained(args.checkpoint / "vae_tiny")


if __name__ == "__main__":
    main()

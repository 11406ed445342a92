"""Train the autoencoder, then measure the scale and shift of its latents.

    python -m benchmarks.shapes_flash.vae --out RUN --crowded     # first: small, dense pictures
    python -m benchmarks.shapes_flash.vae --out RUN               # then: scenes

Loss: L1 + squared error + a Kullback-Leibler term per latent value (arXiv 1312.6114). The last is
far heavier than in large models: a plain picture needs few of the 4096 latent values, and those it
does not need should carry nothing that the transformer would have to learn.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from random import Random

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.shapes_flash.data import render_chunks, render_crowd, to_pixels
from benchmarks.shapes_flash.networks import build_vae
from benchmarks.shapes_flash.training import Plan, Run

MSE_WEIGHT, KL_WEIGHT = 4.0, 5e-3


def losses(vae: AutoencoderKL, pixels: Tensor) -> dict[str, Tensor]:
    """Terms of the loss for pixels (B, 3, H, W) from -1 to 1."""
    posterior = vae.encode(pixels).latent_dist
    error = vae.decode(posterior.sample()).sample.float() - pixels
    mean, variance = posterior.mean.float(), posterior.var.float()
    divergence = 0.5 * (mean**2 + variance - 1 - variance.log())
    return {"l1": error.abs().mean(), "mse": (error**2).mean(), "kl": divergence.mean()}


@torch.no_grad()
def balance(vae: AutoencoderKL, images: Tensor) -> None:
    """Bring the deviations of the latent channels closer together, each to its square root.

    Three channels carry the background and would drown the others, which carry the objects. The
    factors go into the encoder's last and the decoder's first convolution: no picture changes.
    """
    parts = [vae.encode(to_pixels(part)).latent_dist.mean for part in torch.split(images, 20)]
    factor = torch.cat(parts).float().std((0, 2, 3)) ** -0.5
    out, channels = vae.encoder.conv_out, len(factor)
    out.weight[:channels] *= factor[:, None, None, None]
    out.bias[:channels] *= factor
    out.bias[channels:] += 2 * factor.log()  # the other half is the logarithm of the variance
    vae.decoder.conv_in.weight /= factor[:, None, None]


@torch.no_grad()
def measure(vae: AutoencoderKL, images: Tensor) -> tuple[dict[str, Tensor], float]:
    """Shift and scale that give latents zero mean and unit deviation; reconstruction PSNR in dB."""
    means, errors = [], []
    for part in torch.split(images, 20):
        pixels = to_pixels(part)
        mean = vae.encode(pixels).latent_dist.mean
        errors.append(((vae.decode(mean).sample.clamp(-1, 1) - pixels) ** 2).mean((1, 2, 3)))
        means.append(mean)
    latents = torch.cat(means).float()
    statistics = {"shift": latents.mean().cpu(), "scale": 1 / latents.std().cpu()}
    psnr_db = 10 * torch.log10(4 / torch.cat(errors)).mean().item()
    return statistics, psnr_db


def pictures(count: int, seed: int, crowded: bool) -> Tensor:
    """Training pictures: crowds (N, 64, 64, 3) or scenes (N, 128, 128, 3)."""
    if crowded:
        rng = Random(f"crowds {seed}")
        return torch.from_numpy(np.stack([render_crowd(rng) for _ in range(count)]))
    return torch.cat([torch.from_numpy(images) for images, _ in render_chunks(count, seed)])


def train(folder: Path, plan: Plan, count: int, crowded: bool) -> None:
    """Train and write `weights.safetensors` and `statistics.safetensors`."""
    torch.manual_seed(plan.seed)
    images = pictures(count, plan.seed, crowded).to(plan.device)
    unseen, images = images[:100], images[100:]
    vae = build_vae().to(plan.device, memory_format=torch.channels_last)
    run = Run(folder, vae, plan)
    for _ in run.steps():
        rows = torch.randint(len(images), (plan.batch,), device=plan.device)
        with plan.autocast():
            terms = losses(vae, to_pixels(images[rows]))
        loss = terms["l1"] + MSE_WEIGHT * terms["mse"] + KL_WEIGHT * terms["kl"]
        loss.backward()  # type: ignore[no-untyped-call]
        run.update()
        run.count(terms)
    average = run.average
    assert isinstance(average, AutoencoderKL)
    balance(average, unseen)
    run.save_weights()
    statistics, psnr_db = measure(average, unseen)
    save_file(statistics, folder / "statistics.safetensors")
    run.report({"psnr_db": psnr_db, **{name: value.item() for name, value in statistics.items()}})
    if not math.isfinite(psnr_db):
        raise ArithmeticError("the autoencoder diverged")


def main() -> None:
    """Train the autoencoder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=4_000)
    parser.add_argument("--crowded", action="store_true", help="small full pictures, no scenes")
    Plan.add_arguments(parser, batch=16, rate=1e-3)
    args = parser.parse_args()
    train(args.out, Plan.from_arguments(args), args.pictures, args.crowded)


if __name__ == "__main__":
    main()

"""Rectified flow: noise schedule, velocity, guidance, and the steps from noise to picture.

x = (1 - sigma) z + sigma e for a latent z and noise e; the transformer predicts dx/dsigma = e - z
(arXiv 2403.03206). Sampling goes from sigma 1 to 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from benchmarks.shapes_flash.networks import Condition
from benchmarks.shapes_flash.shapeeval import SIGMAS

SHIFT = 3.0

__all__ = ["SHIFT", "SIGMAS", "Guided", "null_tokens", "sample_sigmas", "shifted", "unshifted"]


def shifted(share: Tensor) -> Tensor:
    """The scheduler's shift: 3s / (1 + 2s)."""
    return SHIFT * share / (1 + (SHIFT - 1) * share)


def unshifted(sigma: float) -> float:
    """Inverse of `shifted`."""
    return sigma / (SHIFT - (SHIFT - 1) * sigma)


def sample_sigmas(count: int, device: str) -> Tensor:
    """Training noise levels (B,): evenly spread before the shift, one per stratum.

    A quarter of them falls into each of the student's four steps.
    """
    strata = torch.arange(count, device=device)
    return shifted((strata + torch.rand(count, device=device)) / count)


def velocity(transformer: nn.Module, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
    """dx/dsigma at x (B, 16, h, w) and sigma (B,)."""
    predicted: Tensor = transformer(
        hidden_states=x,
        encoder_hidden_states=condition.context,
        pooled_projections=condition.pooled,
        timestep=1000 * sigma,
        return_dict=False,
    )[0]
    return predicted.float()


def null_tokens(condition: Condition, clip_tokens: int, count: int) -> Condition:
    """The same prompts with `count` zero tokens in T5's place."""
    clip = condition.context[:, :clip_tokens]
    return Condition(nn.functional.pad(clip, (0, 0, 0, count)), condition.pooled)


@dataclass(frozen=True)
class Guided:
    """A transformer under classifier-free guidance (arXiv 2207.12598)."""

    transformer: nn.Module
    positive: Condition
    negative: Condition
    scale: float

    def velocity(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Guided dx/dsigma: both conditions in one batch. Scale 1 needs only the positive one."""
        if self.scale == 1:
            return velocity(self.transformer, x, sigma, self.positive)
        both = Condition(
            torch.cat([self.positive.context, self.negative.context]),
            torch.cat([self.positive.pooled, self.negative.pooled]),
        )
        pair = velocity(self.transformer, x.repeat(2, 1, 1, 1), sigma.repeat(2), both)
        positive, negative = pair.chunk(2)
        return negative + self.scale * (positive - negative)

    def integrate(self, x: Tensor, start: float, end: float, substeps: int) -> Tensor:
        """Follow the flow from sigma `start` to `end` in Euler steps, even before the shift."""
        shares = torch.linspace(unshifted(start), unshifted(end), substeps + 1, dtype=torch.float64)
        sigmas = [float(sigma) for sigma in shifted(shares)]
        for here, there in pairwise(sigmas):
            sigma = torch.full((len(x),), here, device=x.device)
            x = x + (there - here) * self.velocity(x, sigma)
        return x

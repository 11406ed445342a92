"""Building blocks that several graphs share. All are created on the meta device."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exporter.network.operators import attention

VAE_SCALE = 8
MOST_LAYERS, MOST_WIDTH = 256, 1 << 17  # of what config.json may say
CLIP_TOKENS = 77


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis (Zhang and Sennrich 2019)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


def constant(module: nn.Module, name: str, value: np.ndarray) -> None:
    """Give ``module`` a buffer whose value is known without a checkpoint.

    The buffer is a meta tensor; ``constants_of`` collects the values. Integers stay int32, all
    else becomes float32 when it is written.
    """
    dtype = torch.int32 if value.dtype.kind in "iu" else torch.float32
    module.register_buffer(
        name, torch.empty(value.shape, dtype=dtype, device="meta"), persistent=False
    )
    values = module.__dict__.setdefault("constant_values", {})
    values[name] = value


def constants_of(module: nn.Module) -> Mapping[str, np.ndarray]:
    """Values of every ``constant`` below ``module``, by the buffer's full name."""
    return {
        f"{path}.{name}" if path else name: value
        for path, child in module.named_modules()
        for name, value in child.__dict__.get("constant_values", {}).items()
    }


def attend(
    q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, bias: Tensor | None = None
) -> Tensor:
    """``fourstep::attention`` with the types that a module needs."""
    mixed: Tensor = attention(q, k, v, heads, scale, bias)
    return mixed

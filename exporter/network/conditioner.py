"""conditioner: everything of the MMDiT-X that a prompt decides, computed once.

hidden and pooled states -> context (1, N, D), modulation (S, M). With a fixed negative prompt it
gives both of that, too; the negative prompt's states are inputs until they are folded into the
program (``Program.fold``).

The S timesteps are constants, so each adaLN linear runs here on S rows and leaves the step loop:
at full size 762 M of 2,243 M weights. The 1 of adaLN's 1 + scale is added here too.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exporter.errors import InputError
from exporter.network.clip import ClipConfig
from exporter.network.cut import Cut
from exporter.network.denoiser import TransformerConfig, text_tokens
from exporter.network.graph import Graph
from exporter.network.layers import CLIP_TOKENS, constant, constants_of
from exporter.package.manifest import Port
from exporter.package.names import NEGATIVE

FREQUENCIES = 128


def timestep_sinusoids(sigmas: tuple[float, ...], dtype: type[np.floating]) -> np.ndarray:
    """cos and sin of 1000 * sigma at 128 frequencies: (S, 256) (Vaswani et al. 2017, 3.5).

    With float32 each operation is rounded as diffusers rounds it: the largest angle is 1000, so a
    rounding of the frequency shifts a sinusoid by up to 6e-5, far more than a final rounding.
    With float64 it is exact. Transcendentals are computed in double precision and rounded, so the
    result does not depend on a processor's vector library.
    """
    t = np.asarray(sigmas, dtype=dtype) * dtype(1000)
    exponent = dtype(-math.log(10000)) * np.arange(FREQUENCIES).astype(dtype) / dtype(FREQUENCIES)
    frequency = np.array([math.exp(e) for e in exponent]).astype(dtype)
    angle = (t[:, None] * frequency[None, :]).astype(np.float64)
    waves = [[math.cos(a) for a in row] + [math.sin(a) for a in row] for row in angle]
    return np.array(waves).astype(dtype).astype(np.float64)


class TwoLayers(nn.Module):
    """linear_2(silu(linear_1(x)))."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(inputs, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear_2(F.silu(self.linear_1(x)))
        return y


class Modulation(nn.Module):
    """An adaLN layer's linear, named as in the checkpoint."""

    def __init__(self, width: int, chunks: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, chunks * width)

    def forward(self, steps: Tensor) -> Tensor:
        rows: Tensor = self.linear(steps)
        return rows


class BlockModulation(nn.Module):
    """Both adaLN layers of a block, image first."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        image, text = config.modulation_chunks(layer)
        self.norm1 = Modulation(config.width, image)
        self.norm1_context = Modulation(config.width, text)

    def forward(self, steps: Tensor) -> Tensor:
        return torch.cat([self.norm1(steps), self.norm1_context(steps)], 1)


class TimeTextEmbedding(nn.Module):
    """Timesteps (S, 256) and pooled text (1, P) -> (S, D)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.timestep_embedder = TwoLayers(2 * FREQUENCIES, config.width)
        self.text_embedder = TwoLayers(config.pooled_width, config.width)

    def forward(self, timesteps: Tensor, pooled: Tensor) -> Tensor:
        embedded: Tensor = self.timestep_embedder(timesteps) + self.text_embedder(pooled)
        return embedded


class Layers(nn.Module):
    """Context embedder, timestep and pooled embedders, and all adaLN linears."""

    null_token: Tensor
    timesteps: Tensor
    one_for_scales: Tensor

    def __init__(self, config: TransformerConfig, cut: Cut) -> None:
        super().__init__()
        self.context_width = config.context_width
        self.context_embedder = nn.Linear(config.context_width, config.width)
        self.time_text_embed = TimeTextEmbedding(config)
        self.transformer_blocks = nn.ModuleList(
            BlockModulation(config, layer) for layer in range(config.layers)
        )
        self.norm_out = Modulation(config.width, 2)
        scales = np.repeat(np.array(config.modulation_scales, dtype=np.float64), config.width)
        constant(self, "one_for_scales", scales[None])
        constant(self, "timesteps", timestep_sinusoids(cut.sigmas[:-1], np.float32))
        if not cut.t5:
            constant(self, "null_token", np.zeros((1, 1, config.context_width)))

    def text(self, hidden_l: Tensor, hidden_g: Tensor, hidden_t5: Tensor | None) -> Tensor:
        """All tokens of a prompt: (1, N, width of the encoders' states)."""
        clip = torch.cat([hidden_l, hidden_g], 2)
        clip = F.pad(clip, (0, self.context_width - clip.shape[2]))
        tail = self.null_token if hidden_t5 is None else hidden_t5
        return torch.cat([clip, tail], 1)

    def modulation(self, embedded: Tensor) -> Tensor:
        """A row (M,) for each embedded timestep with its pooled text, (R, D)."""
        steps = F.silu(embedded)
        rows = [block(steps) for block in self.transformer_blocks]
        rows.append(self.norm_out(steps))
        return torch.cat(rows, 1) + self.one_for_scales


class Conditioner(Layers):
    """The conditions of a prompt."""

    def forward(
        self,
        hidden_l: Tensor,
        hidden_g: Tensor,
        pooled_l: Tensor,
        pooled_g: Tensor,
        hidden_t5: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        context = self.context_embedder(self.text(hidden_l, hidden_g, hidden_t5))
        pooled = torch.cat([pooled_l, pooled_g], 1)
        return context, self.modulation(self.time_text_embed(self.timesteps, pooled))


class GuidedConditioner(Layers):
    """The conditions of a prompt, and those of a negative one behind them.

    Both pass each layer together, so that a weight has one reader: their tokens side by side, the
    rows of one below those of the other.
    """

    def forward(self, *states: Tensor) -> tuple[Tensor, ...]:
        """(context, modulation, the same of the negative prompt), from the states in the order of
        ``STATES``, then those of the negative prompt."""
        half = len(states) // 2
        texts, pooled = [], []
        for hidden_l, hidden_g, pooled_l, pooled_g, *t5 in (states[:half], states[half:]):
            texts.append(self.text(hidden_l, hidden_g, t5[0] if t5 else None))
            pooled.append(torch.cat([pooled_l, pooled_g], 1))
        context = self.context_embedder(torch.cat(texts, 1))
        times = self.time_text_embed.timestep_embedder(self.timesteps)
        both = self.time_text_embed.text_embedder(torch.cat(pooled))
        rows = self.modulation(torch.cat([times + both[:1], times + both[1:]]))
        tokens, steps = texts[0].shape[1], times.shape[0]
        return context[:, :tokens], rows[:steps], context[:, tokens:], rows[steps:]


def cut(config: TransformerConfig, clip_l: ClipConfig, clip_g: ClipConfig, cut: Cut) -> Graph:
    """The graph ``conditioner`` for one list of sigmas."""
    if clip_l.projection + clip_g.projection != config.pooled_width:
        raise InputError(
            f"the CLIP encoders project to {clip_l.projection} + {clip_g.projection} values, "
            f"transformer/config.json says pooled_projection_dim = {config.pooled_width}"
        )
    if clip_l.hidden + clip_g.hidden > config.context_width:
        raise InputError(
            f"the CLIP encoders are {clip_l.hidden} + {clip_g.hidden} wide, more than "
            f"joint_attention_dim = {config.context_width} of transformer/config.json"
        )
    with torch.device("meta"):
        module = (GuidedConditioner if cut.fixed_negative else Conditioner)(config, cut)
    inputs = [
        Port("hidden_l", (1, CLIP_TOKENS, clip_l.hidden)),
        Port("hidden_g", (1, CLIP_TOKENS, clip_g.hidden)),
        Port("pooled_l", (1, clip_l.projection)),
        Port("pooled_g", (1, clip_g.projection)),
    ]
    if cut.t5:
        inputs.append(Port("hidden_t5", (1, cut.t5_tokens, config.context_width)))
    outputs = [
        Port("context", (1, text_tokens(cut), config.width)),
        Port("modulation", (cut.steps, config.modulation_width)),
    ]
    if cut.fixed_negative:
        for ports in (inputs, outputs):
            ports += [replace(port, name=f"{NEGATIVE}{port.name}") for port in ports]
    return Graph(
        "conditioner",
        "transformer",
        module,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        constants=constants_of(module),
    )

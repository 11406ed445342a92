"""denoiser: one step of the MMDiT-X, with everything that does not change taken out of it.

latent (1, 16, h, w), context (1, N, D), one modulation row (1, M) -> velocity (1, 16, h, w).

What is folded:
- every adaLN linear: its output depends on (step, prompt) only, so the ``conditioner`` computes
  all rows once per prompt, and this graph hands vectors of its row to layer norm as weight and
  bias;
- the positional table: only the centre crop of the resolution is read;
- without T5, diffusers feeds L identical zero tokens. They stay identical through every block, so
  one of them is kept and ln L is added to its key's logit: L exp(s) = exp(s + ln L). The bias
  rides in one extra channel of q and k, so that attention needs no mask.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exporter.checkpoint.component import Component
from exporter.errors import InputError
from exporter.network.cut import Cut
from exporter.network.graph import Crop, Graph
from exporter.network.layers import (
    CLIP_TOKENS,
    MOST_LAYERS,
    MOST_WIDTH,
    VAE_SCALE,
    RMSNorm,
    attend,
    constant,
    constants_of,
)
from exporter.package.manifest import Port

EPS = 1e-6


@dataclass(frozen=True)
class TransformerConfig:
    """What ``config.json`` of an SD3Transformer2DModel says."""

    layers: int
    heads: int
    head_width: int
    channels: int
    patch: int
    context_width: int
    pooled_width: int
    table_side: int
    dual_layers: tuple[int, ...]
    qk_norm: bool

    @property
    def width(self) -> int:
        return self.heads * self.head_width

    def modulation_chunks(self, layer: int) -> tuple[int, int]:
        """How many vectors of ``width`` the image and the text side of a block need."""
        image = 9 if layer in self.dual_layers else 6
        return image, 2 if layer == self.layers - 1 else 6

    @property
    def modulation_scales(self) -> tuple[bool, ...]:
        """For every modulation vector in order, whether it is a scale.

        Blocks list shift, scale, gate (thrice with dual attention); the continuous norms, of the
        last block's text and of the output, list scale, shift.
        """
        flags: list[bool] = []
        for layer in range(self.layers):
            for chunks in self.modulation_chunks(layer):
                flags += [True, False] if chunks == 2 else [False, True, False] * (chunks // 3)
        return (*flags, True, False)

    @property
    def modulation_width(self) -> int:
        """M: all vectors of all blocks, and two of the output norm."""
        return len(self.modulation_scales) * self.width


def read_config(component: Component) -> TransformerConfig:
    """Read and check ``config.json``; raises InputError for what the graph cannot express."""
    config = TransformerConfig(
        layers=component.integer("num_layers", high=MOST_LAYERS),
        heads=component.integer("num_attention_heads", high=MOST_WIDTH),
        head_width=component.integer("attention_head_dim", high=MOST_WIDTH),
        channels=component.integer("in_channels", high=MOST_WIDTH),
        patch=component.integer("patch_size", high=64),
        context_width=component.integer("joint_attention_dim", high=MOST_WIDTH),
        pooled_width=component.integer("pooled_projection_dim", high=MOST_WIDTH),
        table_side=component.integer("pos_embed_max_size", high=4096),
        dual_layers=component.integers("dual_attention_layers", 0, MOST_LAYERS),
        qk_norm=component.require("qk_norm", ("rms_norm", None)) == "rms_norm",
    )
    component.require("out_channels", (config.channels,))
    component.require("caption_projection_dim", (config.width,))
    return config


def latent_size(config: TransformerConfig, cut: Cut) -> tuple[int, int]:
    """Height and width of the latent; raises InputError for a size that cannot be drawn."""
    multiple = VAE_SCALE * config.patch
    limit = config.table_side * multiple
    for key, size in (("width_px", cut.width_px), ("height_px", cut.height_px)):
        if size % multiple or not 0 < size <= limit:
            raise InputError(
                f"[image] {key} = {size}: must be a multiple of {multiple} up to {limit}"
            )
    return cut.height_px // VAE_SCALE, cut.width_px // VAE_SCALE


def text_tokens(cut: Cut) -> int:
    """N, the length of the context: CLIP's 77 tokens and T5's, or one for all null tokens."""
    return CLIP_TOKENS + (cut.t5_tokens if cut.t5 else 1)


class GeluProjection(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.ModuleDict({"0": GeluProjection(width), "2": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net["2"](self.net["0"](x))
        return y


class Attention(nn.Module):
    """Attention over image tokens, and text tokens where ``joint``."""

    def __init__(self, config: TransformerConfig, joint: bool, text_out: bool) -> None:
        super().__init__()
        width = config.width
        self.heads, self.head_width = config.heads, config.head_width
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        if config.qk_norm:
            self.norm_q = RMSNorm(config.head_width, EPS)
            self.norm_k = RMSNorm(config.head_width, EPS)
        if joint:
            self.add_q_proj, self.add_k_proj, self.add_v_proj = (
                nn.Linear(width, width) for _ in range(3)
            )
            if config.qk_norm:
                self.norm_added_q = RMSNorm(config.head_width, EPS)
                self.norm_added_k = RMSNorm(config.head_width, EPS)
        if text_out:
            self.to_add_out = nn.Linear(width, width)

    def normed(self, x: Tensor, norm: str) -> Tensor:
        """(1, tokens, heads * e) -> (1, tokens, heads, e), normed head by head."""
        x = x.reshape(*x.shape[:2], self.heads, self.head_width)
        y: Tensor = getattr(self, norm)(x) if hasattr(self, norm) else x
        return y

    def forward(
        self, image: Tensor, text: Tensor | None, key_bias: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor | None]:
        q = self.normed(self.to_q(image), "norm_q")
        k = self.normed(self.to_k(image), "norm_k")
        v = self.to_v(image)
        if text is not None:
            q = torch.cat([q, self.normed(self.add_q_proj(text), "norm_added_q")], 1)
            k = torch.cat([k, self.normed(self.add_k_proj(text), "norm_added_k")], 1)
            v = torch.cat([v, self.add_v_proj(text)], 1)
            if key_bias is not None:
                q = torch.cat([q, key_bias[0]], 3)
                k = torch.cat([k, key_bias[1]], 3)
        mixed = attend(q.flatten(2), k.flatten(2), v, self.heads, self.head_width**-0.5)
        if text is None:
            return self.to_out[0](mixed), None
        image_out = self.to_out[0](mixed[:, : image.shape[1]])
        if not hasattr(self, "to_add_out"):
            return image_out, None
        return image_out, self.to_add_out(mixed[:, image.shape[1] :])


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm of x (1, tokens, D) whose weight and bias are modulation vectors (D,).

    adaLN multiplies by 1 + scale; the conditioner has added the 1.
    """
    return F.layer_norm(x, (x.shape[-1],), scale, shift, EPS)


class Block(nn.Module):
    """One MMDiT-X block (Esser et al. 2024, figure 2; dual attention as in SD3.5 Medium)."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.last = layer == config.layers - 1
        self.chunks = config.modulation_chunks(layer)
        self.attn = Attention(config, joint=True, text_out=not self.last)
        if layer in config.dual_layers:
            self.attn2 = Attention(config, joint=False, text_out=False)
        self.ff = FeedForward(config.width)
        if not self.last:
            self.ff_context = FeedForward(config.width)

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        vectors: tuple[Tensor, ...],
        key_bias: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        m, c = vectors[: self.chunks[0]], vectors[self.chunks[0] :]
        # The last block's text norm lists scale before shift (AdaLayerNormContinuous).
        text_in = modulated_norm(text, *((c[1], c[0]) if self.last else (c[0], c[1])))
        image_in = modulated_norm(image, m[0], m[1])
        second_in = modulated_norm(image, m[6], m[7]) if hasattr(self, "attn2") else None
        image_mixed, text_mixed = self.attn(image_in, text_in, key_bias)
        image = image + m[2] * image_mixed
        if second_in is not None:
            image = image + m[8] * self.attn2(second_in, None, None)[0]
        image = image + m[5] * self.ff(modulated_norm(image, m[3], m[4]))
        if not self.last:
            text = text + c[2] * text_mixed
            text = text + c[5] * self.ff_context(modulated_norm(text, c[3], c[4]))
        return image, text


class PatchEmbedding(nn.Module):
    def __init__(self, config: TransformerConfig, tokens: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(config.channels, config.width, config.patch, config.patch)
        self.pos_embed = nn.Parameter(torch.empty(1, tokens, config.width))

    def forward(self, latent: Tensor) -> Tensor:
        x: Tensor = self.proj(latent)
        return x.flatten(2).transpose(1, 2) + self.pos_embed


class Denoiser(nn.Module):
    """The step loop's network."""

    def __init__(self, config: TransformerConfig, cut: Cut) -> None:
        super().__init__()
        height, width = latent_size(config, cut)
        self.config, self.grid = config, (height // config.patch, width // config.patch)
        image_tokens = self.grid[0] * self.grid[1]
        self.pos_embed = PatchEmbedding(config, image_tokens)
        self.transformer_blocks = nn.ModuleList(Block(config, i) for i in range(config.layers))
        self.proj_out = nn.Linear(config.width, config.patch**2 * config.channels)
        if not cut.t5:
            shape = (1, image_tokens + text_tokens(cut), config.heads, 1)
            bias = np.zeros(shape)
            # scale * q' k' must add ln L to the null token's logit; q' is 1, scale is e^-0.5.
            bias[:, -1] = math.log(cut.t5_tokens) * math.sqrt(config.head_width)
            constant(self, "query_channel", np.ones(shape))
            constant(self, "key_channel", bias)

    def forward(self, latent: Tensor, context: Tensor, modulation: Tensor) -> Tensor:
        width = self.config.width
        vectors = torch.split(modulation.flatten(), width)
        key_bias = (self.query_channel, self.key_channel) if hasattr(self, "key_channel") else None
        image, text, used = self.pos_embed(latent), context, 0
        for block in self.transformer_blocks:
            need = sum(block.chunks)  # type: ignore[arg-type]
            image, text = block(image, text, vectors[used : used + need], key_bias)
            used += need
        scale, shift = vectors[used:]
        image = self.proj_out(modulated_norm(image, shift, scale))
        return self.unpatchify(image)

    def unpatchify(self, tokens: Tensor) -> Tensor:
        """(1, h/p * w/p, p * p * C) -> (1, C, h, w), without a tensor of rank 6."""
        (rows, columns), patch, channels = self.grid, self.config.patch, self.config.channels
        pixels = tokens.reshape(rows, columns, patch, patch, channels).permute(4, 0, 2, 1, 3)
        return pixels.reshape(1, channels, rows * patch, columns * patch)


def cut(config: TransformerConfig, cut: Cut) -> Graph:
    """The graph ``denoiser`` at one resolution."""
    height, width = latent_size(config, cut)
    with torch.device("meta"):
        module = Denoiser(config, cut)
    latent = (1, config.channels, height, width)
    rows, columns = module.grid
    return Graph(
        "denoiser",
        "transformer",
        module,
        inputs=(
            Port("latent", latent),
            Port("context", (1, text_tokens(cut), config.width)),
            Port("modulation", (1, config.modulation_width)),
        ),
        outputs=(Port("velocity", latent),),
        constants=constants_of(module),
        derived={"pos_embed.pos_embed": Crop(config.table_side, rows, columns)},
    )

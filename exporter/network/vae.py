"""vae_decoder and vae_encoder: diffusers' AutoencoderKL with its scale and shift inside.

latent (1, 16, h, w) -> image (1, 3, 8h, 8w) in [-1, 1]; and back, as the mean of the posterior
(diffusers draws a sample around it). Large feature maps are worked on in strips of rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exporter.checkpoint.component import Component
from exporter.network.cut import Cut
from exporter.network.graph import Graph
from exporter.network.layers import MOST_LAYERS, MOST_WIDTH, VAE_SCALE, attend, constants_of
from exporter.network.mark import marked
from exporter.network.strips import Doubling, Strips, convolve, double, halve, join, normalize
from exporter.network.strips import cut as cut_strips
from exporter.package.manifest import Port

EPS = 1e-6


@dataclass(frozen=True)
class VaeConfig:
    """What ``config.json`` of an AutoencoderKL says."""

    channels: tuple[int, ...]
    latent_channels: int
    layers: int
    groups: int
    scaling: float
    shift: float
    mid_attention: bool


def read_config(component: Component) -> VaeConfig:
    """Read and check ``config.json``; raises InputError for what the graphs cannot express."""
    component.require("act_fn", ("silu", "swish"))
    component.require("use_quant_conv", (False,))
    component.require("use_post_quant_conv", (False,))
    channels = component.integers("block_out_channels", 1, MOST_WIDTH)
    component.require("in_channels", (3,))
    component.require("out_channels", (3,))
    config = VaeConfig(
        channels=channels,
        latent_channels=component.integer("latent_channels", high=MOST_WIDTH),
        layers=component.integer("layers_per_block", high=MOST_LAYERS),
        groups=component.integer("norm_num_groups"),
        scaling=component.number("scaling_factor", low=1e-6),
        shift=component.number("shift_factor", low=-1e6),
        mid_attention=component.flag("mid_block_add_attention"),
    )
    if 2 ** (len(channels) - 1) != VAE_SCALE:
        component.require("block_out_channels", (f"{VAE_SCALE} times smaller, four entries",))
    for width in channels:
        component.require_divisible("block_out_channels", width, "norm_num_groups", config.groups)
    return config


def _active(norm: nn.GroupNorm, x: Strips) -> Iterator[Tensor]:
    return map(F.silu, normalize(norm, x))


class ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs, EPS)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, outputs, EPS)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.conv_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Strips) -> Strips:
        y = convolve(self.conv1, _active(self.norm1, x))
        if hasattr(self, "conv_shortcut"):
            both = tuple(zip(y, convolve(self.conv_shortcut, x), strict=True))
            x, hidden = tuple(b for _, b in both), tuple(a for a, _ in both)
        else:
            hidden = tuple(y)
        y = convolve(self.conv2, _active(self.norm2, hidden))
        return tuple(a + b for a, b in zip(x, y, strict=True))


class SpatialAttention(nn.Module):
    """Single-head attention over all positions of a feature map, which is one strip."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, EPS)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)
        mixed = self.to_out[0](attend(q, k, v, 1, q.shape[-1] ** -0.5))
        y: Tensor = mixed.transpose(1, 2).reshape(x.shape)
        return x + y


class MidBlock(nn.Module):
    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        channels = config.channels[-1]
        self.resnets = nn.ModuleList(
            ResidualBlock(channels, channels, config.groups) for _ in range(2)
        )
        if config.mid_attention:
            self.attentions = nn.ModuleList([SpatialAttention(channels, config.groups)])

    def forward(self, x: Tensor) -> Tensor:
        (x,) = self.resnets[0]((x,))
        if hasattr(self, "attentions"):
            x = self.attentions[0](x)
        strips: Strips = self.resnets[1]((x,))
        return join(strips)


class Resample(nn.Module):
    """A convolution that doubles (its parameters are a ``Doubling``'s), or one that halves."""

    def __init__(self, channels: int, up: bool) -> None:
        super().__init__()
        self.up = up
        doubles = nn.Conv2d(channels, 4 * channels, 2)
        self.conv = doubles if up else nn.Conv2d(channels, channels, 3, 2)

    def forward(self, x: Strips) -> Strips:
        return tuple((double if self.up else halve)(self.conv, x))


class Stage(nn.Module):
    """Residual blocks at one resolution, then a resampling unless it is the last stage."""

    def __init__(self, widths: tuple[int, int], count: int, groups: int, resample: str) -> None:
        super().__init__()
        inputs, outputs = widths
        self.resnets = nn.ModuleList(
            ResidualBlock(inputs if i == 0 else outputs, outputs, groups) for i in range(count)
        )
        self.resample = resample
        if resample:
            setattr(self, resample, nn.ModuleList([Resample(outputs, resample == "upsamplers")]))

    def forward(self, x: Strips) -> Strips:
        for block in self.resnets:
            x = block(x)
        if self.resample:
            x = getattr(self, self.resample)[0](x)
        return x


def stages(channels: tuple[int, ...], count: int, groups: int, resample: str) -> nn.ModuleList:
    """Stages through ``channels``; every one but the last resamples."""
    pairs = zip((channels[0], *channels), channels, strict=False)
    last = len(channels) - 1
    return nn.ModuleList(
        Stage(pair, count, groups, resample if i < last else "") for i, pair in enumerate(pairs)
    )


class DecoderNet(nn.Module):
    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths = tuple(reversed(config.channels))
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(config)
        self.up_blocks = stages(widths, config.layers + 1, config.groups, "upsamplers")
        self.conv_norm_out = nn.GroupNorm(config.groups, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        strips: Strips = (self.mid_block(self.conv_in(x)),)
        for stage in self.up_blocks:
            strips = stage(strips)
        return join(tuple(convolve(self.conv_out, _active(self.conv_norm_out, strips))))


class EncoderNet(nn.Module):
    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths = config.channels
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down_blocks = stages(widths, config.layers, config.groups, "downsamplers")
        self.mid_block = MidBlock(config)
        self.conv_norm_out = nn.GroupNorm(config.groups, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        growth = -(-self.conv_in.out_channels // self.conv_in.in_channels)
        strips = tuple(convolve(self.conv_in, cut_strips((x,), growth, VAE_SCALE)))
        for stage in self.down_blocks:
            strips = stage(strips)
        x = self.mid_block(join(strips))
        y: Tensor = self.conv_out(F.silu(self.conv_norm_out(x)))
        return y


class Decoder(nn.Module):
    """latent / scaling + shift, decoded."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config = config
        self.decoder = DecoderNet(config)

    def forward(self, latent: Tensor) -> Tensor:
        image: Tensor = self.decoder(latent / self.config.scaling + self.config.shift)
        return image


class Encoder(nn.Module):
    """The posterior's mean, minus shift, times scaling."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = EncoderNet(config)

    def forward(self, image: Tensor) -> Tensor:
        mean = self.encoder(image)[:, : self.config.latent_channels]
        latent: Tensor = (mean - self.config.shift) * self.config.scaling
        return latent


def cut_decoder(config: VaeConfig, cut: Cut, tile: np.ndarray | None = None) -> Graph:
    """The graph ``vae_decoder`` at one resolution, its pictures marked with a tile of signs."""
    graph = _cut("vae_decoder", Decoder, config, cut)
    return graph if tile is None else marked(graph, tile)


def cut_encoder(config: VaeConfig, cut: Cut) -> Graph:
    """The graph ``vae_encoder`` at one resolution."""
    return _cut("vae_encoder", Encoder, config, cut)


def _cut(name: str, kind: type[Decoder] | type[Encoder], config: VaeConfig, cut: Cut) -> Graph:
    with torch.device("meta"):
        module = kind(config)
    size = (cut.height_px, cut.width_px)
    latent = Port("latent", (1, config.latent_channels, size[0] // VAE_SCALE, size[1] // VAE_SCALE))
    image = Port("image", (1, 3, *size))
    ports = (latent, image) if kind is Decoder else (image, latent)
    doubled = {
        f"{path}.conv.{part}": Doubling()
        for path, child in module.named_modules()
        if isinstance(child, Resample) and child.up
        for part in ("weight", "bias")
    }
    return Graph(name, "vae", module, (ports[0],), (ports[1],), constants_of(module), doubled)

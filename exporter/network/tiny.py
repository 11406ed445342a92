"""tiny_decoder and tiny_encoder: TAESD's layers, which stand in for the VAE at a fraction of it.

latent (1, C, h, w) -> image (1, 3, 8h, 8w) in [-1, 1]; and back. As diffusers' AutoencoderTiny:
residual blocks of three convolutions of one width, rectified, no norms and no attention. Large
feature maps are worked on in strips of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exporter.checkpoint.component import Component
from exporter.checkpoint.tiny import NAME, STAGES
from exporter.network.cut import Cut
from exporter.network.graph import Graph
from exporter.network.layers import MOST_LAYERS, VAE_SCALE, constants_of
from exporter.network.mark import marked
from exporter.network.strips import Doubling, Strips, contract, convolve, double, join
from exporter.network.strips import cut as cut_strips
from exporter.package.manifest import Port

LARGEST_LATENT = 3.0  # what a decoder is shown lies between this and minus this


@dataclass(frozen=True)
class TinyConfig:
    """What one end of a tiny autoencoder is made of.

    Attributes:
        width: channels of every feature map.
        blocks: residual blocks of each stage, from the input to the output.
        latent_channels: of the latent.
        scaling, shift: between the latent of the loop and what the autoencoder knows, as a VAE's.
    """

    width: int
    blocks: tuple[int, ...]
    latent_channels: int
    scaling: float = 1.0
    shift: float = 0.0


class Block(nn.Module):
    """max(0, x + three convolutions of x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        convolutions = {str(i): nn.Conv2d(width, width, 3, padding=1) for i in (0, 2, 4)}
        self.conv = nn.ModuleDict(convolutions)

    def forward(self, x: Strips) -> Strips:
        first, second, third = _convolutions(self.conv.values())
        y = convolve(second, map(F.relu, convolve(first, x)))
        y = convolve(third, map(F.relu, y))
        return tuple(F.relu(a + b) for a, b in zip(x, y, strict=True))


def _convolutions(layers: Iterable[nn.Module]) -> list[nn.Conv2d]:
    return [layer for layer in layers if isinstance(layer, nn.Conv2d)]


class DecoderNet(nn.Module):
    """Layers under their numbers in diffusers' DecoderTiny."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        width = config.width
        layers: dict[str, nn.Module] = {"0": nn.Conv2d(config.latent_channels, width, 3, padding=1)}
        number = 2  # behind a rectifier, which has a number too
        for stage, blocks in enumerate(config.blocks):
            layers |= {str(number + i): Block(width) for i in range(blocks)}
            number += blocks
            if stage < STAGES - 1:  # behind a doubling, which has a number too
                layers[str(number + 1)] = nn.Conv2d(width, 4 * width, 2, bias=False)
                number += 2
        layers[str(number)] = nn.Conv2d(width, 3, 3, padding=1)
        self.layers = nn.ModuleDict(layers)

    def forward(self, x: Tensor) -> Tensor:
        first, *_, last = _convolutions(self.layers.values())
        strips: Strips = (F.relu(first(x)),)
        for layer in self.layers.values():
            if isinstance(layer, Block):
                strips = layer(strips)
            elif isinstance(layer, nn.Conv2d) and layer not in (first, last):
                strips = tuple(double(layer, strips))
        return join(tuple(convolve(last, strips)))


class EncoderNet(nn.Module):
    """Layers under their numbers in diffusers' EncoderTiny."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        width = config.width
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1)]
        for stage, blocks in enumerate(config.blocks):
            if stage:
                layers.append(nn.Conv2d(width, width, 3, 2, padding=1, bias=False))
            layers += [Block(width) for _ in range(blocks)]
        layers.append(nn.Conv2d(width, config.latent_channels, 3, padding=1))
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        first, *_, last = _convolutions(self.layers)
        growth = -(-first.out_channels // first.in_channels)
        strips: Strips = tuple(convolve(first, cut_strips((x,), growth, VAE_SCALE)))
        for layer in self.layers:
            if isinstance(layer, Block):
                strips = layer(strips)
            elif isinstance(layer, nn.Conv2d) and layer not in (first, last):
                strips = tuple(contract(layer, strips))
        y: Tensor = last(join(strips))
        return y


class Decoder(nn.Module):
    """latent / scaling + shift, bent into ``LARGEST_LATENT``, decoded from 0 ... 1 to -1 ... 1."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        self.decoder = DecoderNet(config)

    def forward(self, latent: Tensor) -> Tensor:
        if self.config.scaling != 1:
            latent = latent / self.config.scaling
        if self.config.shift:
            latent = latent + self.config.shift
        bent = torch.tanh(latent / LARGEST_LATENT) * LARGEST_LATENT
        image: Tensor = self.decoder(bent) * 2 - 1
        return image


class Encoder(nn.Module):
    """An image from -1 ... 1 to 0 ... 1, encoded, minus shift, times scaling."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = EncoderNet(config)

    def forward(self, image: Tensor) -> Tensor:
        latent: Tensor = self.encoder((image + 1) / 2)
        if self.config.shift:
            latent = latent - self.config.shift
        return latent if self.config.scaling == 1 else latent * self.config.scaling


def read_config(component: Component, end: str) -> TinyConfig:
    """What opening an end of a tiny autoencoder found (``checkpoint.tiny``)."""
    return TinyConfig(
        width=component.integer(f"{end}_width"),
        blocks=component.integers(f"{end}_blocks", 0, MOST_LAYERS),
        latent_channels=component.integer("latent_channels"),
        scaling=component.number("scaling_factor", low=1e-6),
        shift=component.number("shift_factor", low=-1e6),
    )


def cut_decoder(config: TinyConfig, cut: Cut, tile: np.ndarray | None = None) -> Graph:
    """The graph ``tiny_decoder`` at one resolution, its pictures marked with a tile of signs."""
    graph = _cut("tiny_decoder", Decoder, config, cut)
    return graph if tile is None else marked(graph, tile)


def cut_encoder(config: TinyConfig, cut: Cut) -> Graph:
    """The graph ``tiny_encoder`` at one resolution."""
    return _cut("tiny_encoder", Encoder, config, cut)


def _cut(name: str, kind: Callable[[TinyConfig], nn.Module], config: TinyConfig, cut: Cut) -> Graph:
    with torch.device("meta"):
        module = kind(config)
    size = (cut.height_px, cut.width_px)
    latent = Port("latent", (1, config.latent_channels, *(side // VAE_SCALE for side in size)))
    image = Port("image", (1, 3, *size))
    ports = (latent, image) if kind is Decoder else (image, latent)
    doubled = {
        f"{path}.weight": Doubling()
        for path, child in module.named_modules()
        if isinstance(child, nn.Conv2d) and child.kernel_size == (2, 2)
    }
    return Graph(name, NAME, module, (ports[0],), (ports[1],), constants_of(module), doubled)

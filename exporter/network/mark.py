"""The invisible mark behind a decoder: image (1, 3, H, W) -> the same with a pattern in it.

What ``marking.embed`` says in numpy, as convolutions with constant kernels. All but the last lines
work on one value for each chip, a sixteenth of the picture. Numbers are in eighths of a level of
255: so squares of a whole picture's range, and of the mark's own size, are both well inside fp16.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exporter.marking import embed
from exporter.marking.pattern import CHIP_PX, laid_out
from exporter.network.graph import Graph
from exporter.network.layers import constant, constants_of

UNIT = 8.0  # levels
HALF_RANGE = embed.LEVELS / 2  # levels that a decoder's 1 stands for


class Mark(nn.Module):
    """Pushes each chip towards its sign; every value is a constant."""

    luma: Tensor
    colours: Tensor
    halving: Tensor
    held: Tensor
    around: Tensor
    neighbours: Tensor
    spread: Tensor
    signs: Tensor

    def __init__(self, tile: np.ndarray, height_px: int, width_px: int) -> None:
        """``tile``: (32, 32) signs of a payload (``marking.pattern.tile``)."""
        super().__init__()
        area = float(embed.AROUND**2)
        halving = np.outer(embed.HALVING, embed.HALVING)
        unit = embed.composed().max() * (embed.pulse() ** 2).sum()
        values = {
            "luma": embed.LUMA[None, :, None, None] * HALF_RANGE / UNIT,
            "colours": embed.COLOURS[None, :, None, None] * UNIT / HALF_RANGE,
            "halving": halving[None, None],
            "held": (embed.reader_filter() / unit)[None, None],
            "around": np.full((1, 1, embed.AROUND, embed.AROUND), 1 / area),
            "neighbours": embed.NEIGHBOURS[None, None],
            "spread": _phases(embed.pulse())[:, None],
            "signs": laid_out(tile, height_px, width_px)[None, None].astype(np.float64),
        }
        for name, value in values.items():
            constant(self, name, value)

    def forward(self, image: Tensor) -> Tensor:
        luma = F.conv2d(image, self.luma)
        luma = F.pad(luma, 2 * embed.margins(), "replicate")
        # The filter in two steps, of which each reads few pixels.
        held = F.conv2d(F.conv2d(luma, self.halving, stride=2), self.held, stride=CHIP_PX // 2)
        around = F.conv2d(held * held, self.around, padding=embed.AROUND // 2)
        around = around + embed.TINY
        texture = around * torch.rsqrt(around)
        chips = self.signs * _pushes(self.signs * held, texture)
        even = chips * F.relu(texture * (-UNIT / embed.EVEN) + 1)
        chips = chips + F.conv2d(even, self.neighbours, padding=1)
        side = self.spread.shape[-1] // 2
        added = F.pixel_shuffle(F.conv2d(chips, self.spread, padding=side), CHIP_PX)
        mean = (added * added).mean((2, 3), keepdim=True) + embed.TINY
        scale = torch.rsqrt(mean) * (embed.gain(1.0) / UNIT)
        return image + added * scale * self.colours


class Marked(nn.Module):
    """A decoder's layers under their own names, and a mark behind them."""

    def __init__(self, decoder: nn.Module, mark: Mark) -> None:
        super().__init__()
        self._decode = decoder.forward
        for name, child in decoder.named_children():
            self.add_module(name, child)
        self.mark = mark

    def forward(self, latent: Tensor) -> Tensor:
        image: Tensor = self.mark(self._decode(latent))
        return image


def marked(graph: Graph, tile: np.ndarray) -> Graph:
    """A decoder's graph whose pictures are marked.

    Args:
        tile: (32, 32) signs of a payload (``marking.pattern.tile``).
    """
    _, _, height, width = graph.outputs[0].shape
    with torch.device("meta"):
        module = Marked(graph.module, Mark(tile, height, width))
    return replace(graph, module=module, constants=constants_of(module))


def _pushes(held: Tensor, texture: Tensor) -> Tensor:
    """``marking.embed.pushes``, in this module's unit."""
    push = embed.PUSH / UNIT
    reach = push + _at_most(embed.REACH * texture, (embed.MOST_REACH - 1) * push)
    margin = push + _at_most(embed.MARGIN * texture, push)
    wanted = margin - held
    return F.relu(F.relu(wanted) - F.relu(wanted - reach) * embed.GIVEN_UP)


def _at_most(x: Tensor, most: float) -> Tensor:
    return x - F.relu(x - most)


def _phases(pulse: np.ndarray) -> np.ndarray:
    """(16, k, k): for each pixel of a chip, what every chip around adds to it.

    Ordered as ``torch.nn.functional.pixel_shuffle`` spreads channels. A chip t away reaches pixel r
    with what the pulse has at r - 4 t from its own first pixel.
    """
    before, _ = embed.margins()
    reach = -(-len(pulse) // (2 * CHIP_PX))
    found = np.zeros((CHIP_PX, CHIP_PX, 2 * reach + 1, 2 * reach + 1))
    inside = range(len(pulse))
    for y, x, down, across in np.ndindex(found.shape):
        at = (y - CHIP_PX * (down - reach) + before, x - CHIP_PX * (across - reach) + before)
        if at[0] in inside and at[1] in inside:
            found[y, x, down, across] = pulse[at]
    return found.reshape(CHIP_PX**2, *found.shape[2:])

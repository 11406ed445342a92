"""The invisible mark behind a decoder: image (1, 3, H, W) -> the same with a pattern in it.

What ``marking.embed`` says in numpy, as convolutions with constant kernels. Between the first lines
and the last ones there is one value for each chip, a sixteenth of the picture. Numbers are in units
of 8 levels of 255: so squares of a whole picture's range, and of the mark's own size, are both well
inside fp16.
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

    halving: Tensor
    held: Tensor
    around: Tensor
    short: Tensor
    wide: Tensor
    most: Tensor
    plain: Tensor
    neighbours: Tensor
    spread: Tensor
    signs: Tensor
    colours: Tensor

    def __init__(self, tile: np.ndarray, height_px: int, width_px: int) -> None:
        """``tile``: (32, 32) signs of a payload (``marking.pattern.tile``)."""
        super().__init__()
        push, reach = embed.PUSH / UNIT, embed.REACH
        luma = embed.LUMA[None, :, None, None] * HALF_RANGE / UNIT
        # From a picture's second pixel on: what the outermost belong to is not all inside.
        halving = np.pad(np.outer(embed.HALVING, embed.HALVING), ((1, 0), (1, 0)))
        around = np.full((1, 1, embed.AROUND, embed.AROUND), (reach / embed.AROUND) ** 2)
        plain = reach * embed.EVEN / UNIT
        values = {
            "halving": _four_times(halving) * luma,
            "held": _four_times(embed.chip_filter()),
            "around": around,
            "short": _single(push * reach / embed.MARGIN),
            "wide": _single((embed.MOST_REACH - 1) * push),
            "most": _single(2 * push),
            "plain": _single(plain),
            "neighbours": embed.NEIGHBOURS[None, None] / plain,
            "spread": _phases(embed.pulse())[:, None],
            "signs": laid_out(tile, height_px, width_px)[None, None].astype(np.float64),
            "colours": embed.COLOURS[None, :, None, None] * embed.gain(1.0) / HALF_RANGE,
        }
        for name, value in values.items():
            constant(self, name, value)

    def forward(self, image: Tensor) -> Tensor:
        halved = _at_every_second(image, self.halving)
        halved = F.pad(halved, 4 * (embed.HALF_MARGIN,), "replicate")
        held = _at_every_second(halved, self.held)
        # The texture around, times REACH.
        side = embed.AROUND // 2
        reach = torch.sqrt(F.conv2d(held * held, self.around, padding=side))
        chips = self.signs * self._pushes(self.signs * held, reach)
        even = chips * F.relu(self.plain - reach)
        chips = chips + F.conv2d(even, self.neighbours, padding=1)
        side = self.spread.shape[-1] // 2
        added = F.pixel_shuffle(F.conv2d(chips, self.spread, padding=side), CHIP_PX)
        mean = (added * added).mean((2, 3), keepdim=True) + embed.TINY
        return image + added * (torch.rsqrt(mean) * self.colours)

    def _pushes(self, held: Tensor, reach: Tensor) -> Tensor:
        """``marking.embed.pushes``, in this module's unit, with what is least as a difference."""
        short = F.relu(self.short - reach) * (embed.MARGIN / embed.REACH)
        wide = F.relu(self.wide - reach)
        wanted = self.most - (short + held)
        beyond = F.relu(wanted + wide - embed.MOST_REACH * embed.PUSH / UNIT)
        return F.relu(wanted - beyond * embed.GIVEN_UP)


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


def _single(value: float) -> np.ndarray:
    return np.full((1, 1, 1, 1), value)


def _at_every_second(x: Tensor, kernels: Tensor) -> Tensor:
    """What a kernel answers at every second place each way (``_four_times``)."""
    return F.pixel_shuffle(F.conv2d(x, kernels, stride=4), 2)


def _four_times(kernel: np.ndarray) -> np.ndarray:
    """(4, 1, k + 2, k + 2): a kernel at four neighbouring of every second places.

    Engines compute eight or sixteen channels at a time, wanted or not.
    """
    side = len(kernel)
    found = np.zeros((2, 2, side + 2, side + 2))
    for y, x in np.ndindex(2, 2):
        found[y, x, 2 * y : 2 * y + side, 2 * x : 2 * x + side] = kernel
    return found.reshape(4, 1, side + 2, side + 2)


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

"""How strongly each sign of a pattern goes into a picture.

The picture is looked at as a reader will look at it: its halved luma through ``chip_filter`` at
every chip gives a number whose sign is read. Where it has the wanted sign already nothing is
needed; where it is on the wrong side but within reach it is pushed over; where it is far away, in
the middle of a texture, a push would only cost. The reach grows with the texture around, where the
eye sees less. In even areas, where codecs drop whatever is fine and faint, a chip moves its
neighbours too: what is left is coarser and stronger. What is added is then scaled so that every
picture has ``PSNR_DB`` to its unmarked self.

``network.mark`` says the same in torch; the constants are here.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from exporter.marking.pattern import CHIP_PX, laid_out

PSNR_DB = 42.15  # before pixels are rounded to whole levels, which costs up to 0.13 dB
LUMA = np.array([0.299, 0.587, 0.114])
# What is added to red, green and blue: in the direction that changes luma the most for its energy.
COLOURS = LUMA / np.sqrt((LUMA**2).mean())
LEVELS = 255.0

KERNEL = 10  # half-size pixels of a reader's filter: even, so that it is centred between two
NARROW, WIDE = 0.8, 2.6  # standard deviations of its two Gaussians, in half-size pixels
HALVING = np.array([1.0, 3.0, 3.0, 1.0]) / 8  # how a reader makes a picture half as large
HALF_MARGIN = 5  # half-size pixels on each side that the filter sees beyond those all inside
AROUND = 5  # chips each way over which texture is averaged

PUSH = 2.3  # levels: what a chip of an even area gets, before all is scaled
MARGIN = 0.1  # of texture: how far beyond zero a chip is pushed
REACH, MOST_REACH = 0.35, 4.0  # of texture, and times PUSH: how far from zero a chip may be
GIVEN_UP = 3.0  # how fast the push falls off beyond that reach
EVEN = 6.0  # levels: of texture; in areas with less, a chip also moves its neighbours
NEIGHBOURS = np.array(
    [[0.25, 0.5, 0.25], [0.5, 0.0, 0.5], [0.25, 0.5, 0.25]]
)  # by so much of its own
TINY = 1e-6


@functools.cache
def reader_filter() -> np.ndarray:
    """(10, 10), of unit norm and sum 0: a narrow Gaussian less a wide one that ends smoothly."""
    at = np.arange(KERNEL) - (KERNEL - 1) / 2
    window = np.sqrt(np.hanning(KERNEL + 2)[1:-1])
    narrow = np.exp(-(at**2) / (2 * NARROW**2))
    wide = np.exp(-(at**2) / (2 * WIDE**2)) * window
    narrow, wide = narrow / narrow.sum(), wide / wide.sum()
    kernel = np.outer(narrow, narrow) - np.outer(wide, wide)
    return np.asarray(kernel / np.sqrt((kernel**2).sum()))


@functools.cache
def composed() -> np.ndarray:
    """(22, 22): halving a picture and the reader's filter behind it as one kernel."""
    spread = np.zeros((2 * KERNEL - 1, 2 * KERNEL - 1))
    spread[::2, ::2] = reader_filter()
    side = len(spread) + len(HALVING) - 1
    found = np.zeros((side, side))
    for y, x in np.ndindex(len(HALVING), len(HALVING)):
        found[y : y + len(spread), x : x + len(spread)] += HALVING[y] * HALVING[x] * spread
    return found


@functools.cache
def pulse() -> np.ndarray:
    """(22, 22), of peak 1: what a chip adds to a picture; the reader's filter at full size."""
    return np.asarray(composed() / composed().max())


def gain(amplitudes_rms: float) -> float:
    """What all is multiplied by, so that a picture's three colours change by ``PSNR_DB``."""
    return LEVELS * 10 ** (-PSNR_DB / 20) / amplitudes_rms


def pushes(held: np.ndarray, texture: np.ndarray) -> np.ndarray:
    """How far each chip is pushed, in levels.

    Args:
        held: what it holds, counted in the direction of its sign.
        texture: root mean square of what the chips around it hold.
    """
    reach = PUSH + np.minimum(REACH * texture, (MOST_REACH - 1) * PUSH)
    margin = PUSH + np.minimum(MARGIN * texture, PUSH)
    wanted = np.maximum(margin - held, 0)
    beyond = np.maximum(margin - reach - held, 0)
    return np.asarray(np.maximum(wanted - GIVEN_UP * beyond, 0))


def marked(picture: np.ndarray, signs_of_tile: np.ndarray) -> np.ndarray:
    """A picture (H, W, 3) in levels with a mark, not rounded; both sides are multiples of 4.

    What the decoder's graph does, in float64: the yardstick of its tests, and how benchmarks mark
    pictures that no graph drew.
    """
    height, width = picture.shape[:2]
    pattern = laid_out(signs_of_tile, height, width)
    held = _at_chips(picture @ LUMA)
    texture = np.sqrt(_around(held**2, np.full((AROUND, AROUND), AROUND**-2.0)))
    amplitudes = pattern * pushes(pattern * held, texture)
    even = amplitudes * np.maximum(0, 1 - texture / EVEN)
    added = _spread(amplitudes + _around(even, NEIGHBOURS))
    scale = gain(math.sqrt((added**2).mean() + TINY))
    return np.asarray(picture + scale * added[..., None] * COLOURS)


def margins() -> tuple[int, int]:
    """Pixels of a pulse before its chip's first pixel, and behind its last."""
    before = (len(pulse()) - CHIP_PX) // 2
    return before, len(pulse()) - CHIP_PX - before


@functools.cache
def chip_filter() -> np.ndarray:
    """(10, 10): gives of a halved picture what a chip holds: 1 for a ``pulse`` of height 1."""
    return np.asarray(reader_filter() / (composed().max() * (pulse() ** 2).sum()))


def _at_chips(luma: np.ndarray) -> np.ndarray:
    """(H / 4, W / 4): ``chip_filter`` at every chip of the halved picture.

    It is continued by its edges: by the outermost half-size pixels that are all inside.
    """
    inside = _answers(luma[1:-1, 1:-1], np.outer(HALVING, HALVING))
    return _answers(np.pad(inside, HALF_MARGIN, mode="edge"), chip_filter())


def _answers(values: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Of a kernel at every second place each way, all of it inside."""
    windows = np.lib.stride_tricks.sliding_window_view(values, kernel.shape)[::2, ::2]
    return np.stack([np.tensordot(row, kernel, 2) for row in windows])


def _around(values: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Each chip's neighbours times a kernel of odd sides, zeros outside the picture."""
    padded = np.pad(values, len(kernel) // 2)
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape)
    return np.asarray(np.einsum("hwyx,yx->hw", windows, kernel))


def _spread(amplitudes: np.ndarray) -> np.ndarray:
    """(H, W): a pulse at every chip."""
    rows, columns = amplitudes.shape
    kernel, (before, _) = pulse(), margins()
    side = len(kernel)
    canvas = np.zeros((rows * CHIP_PX + side, columns * CHIP_PX + side))
    for y, x in np.ndindex(side, side):
        place = canvas[y : y + rows * CHIP_PX : CHIP_PX, x : x + columns * CHIP_PX : CHIP_PX]
        place += kernel[y, x] * amplitudes
    inside = canvas[before : before + rows * CHIP_PX, before : before + columns * CHIP_PX]
    return np.asarray(inside)

"""A small convolutional network that says how likely each sign of a chip is.

It was trained on marked pictures after what happens to them (``benchmarks.mark_reader``): so it
knows what a codec leaves of a chip, and where nothing is left. What it gives is a logarithm of
odds, near zero where it cannot tell; a statistic may weigh chips in any way, as long as the key has
no part in it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np

WEIGHTS = Path(__file__).with_name("learned.npz")
LAYERS = ("first", "second", "third", "last")
STRIDE = 2  # half-size pixels from chip to chip
AROUND = 8, 9  # half-size pixels that are seen before a picture's first chip, and behind its last
SKIPPED = 6  # of those: what the one linear layer beside the others does not see


@functools.cache
def weights() -> Mapping[str, np.ndarray]:
    """float32, as convolutions take them: each of ``LAYERS`` with its ``_bias``, and ``linear``.

    The first and the linear one step from chip to chip.
    """
    with np.load(WEIGHTS) as kept:
        return {name: kept[name].astype(np.float32) for name in kept.files}


def odds(planes: np.ndarray, down: int, across: int) -> np.ndarray:
    """(rows, columns): of each chip, the first of which lies so many half-size pixels in.

    Args:
        planes: (6, h, w) float32, ``raster.planes``.
        down, across: 0 or 1.
    """
    kept = weights()
    padded = np.pad(planes, ((0, 0), AROUND, AROUND), mode="edge")[:, down:, across:]
    inner = padded[:, SKIPPED:-SKIPPED, SKIPPED:-SKIPPED]
    linear = _convolved(inner, kept["linear"], STRIDE)
    found = padded
    for name in LAYERS:
        if name != LAYERS[0]:
            found = np.maximum(found, 0)
        stride = STRIDE if name == LAYERS[0] else 1
        found = _convolved(found, kept[name], stride) + kept[f"{name}_bias"][:, None, None]
    return np.asarray((found + linear)[0])


def _convolved(x: np.ndarray, weight: np.ndarray, stride: int) -> np.ndarray:
    """(out, rows, columns) of (in, h, w), without anything around, one tap after the other."""
    side = weight.shape[-1]
    rows, columns = ((length - side) // stride + 1 for length in x.shape[1:])
    found = np.zeros((len(weight), rows, columns), np.float32)
    for y, x_tap in np.ndindex(side, side):
        seen = x[:, y::stride, x_tap::stride][:, :rows, :columns]
        found += np.tensordot(weight[..., y, x_tap], seen, 1)
    return found

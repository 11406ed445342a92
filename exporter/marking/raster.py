"""Pictures as a reader looks at them: at half size, and as signs that edges do not spoil."""

from __future__ import annotations

import math

import numpy as np

from exporter.marking.embed import KERNEL, LUMA, reader_filter

FLOOR = 1.0  # levels: what is below it is rounding, not a mark
BOX = 9  # half-size pixels over which a map's strength is taken
CLIPPED_AT = (0.05, 1.0)  # of that strength: the first map is hardly more than signs
BLUR = np.exp(-(np.arange(-2, 3) ** 2) / (2 * 0.7**2))
BLUR /= BLUR.sum()
BETWEEN = np.array([1.0, 7.0, 7.0, 1.0]) / 16  # from pixels to the places between them
WITH_NEIGHBOURS = np.array([0.5, 0.0, 1.0, 0.0, 0.5])  # a chip is two half-size pixels
OFFSETS = range(-6, 7, 2)  # half-size pixels: the neighbours that a pixel is compared with
NEAR, ALIKE = 2.4, 20.0  # their weights fall off with distance, and with a difference in levels
STRENGTHS = (2.0, 8.0, 32.0)  # levels at which detail is cut off
MAPS, PLANES = 3, 6


def halved(luma: np.ndarray, height: int, width: int, phase: tuple[int, int]) -> np.ndarray:
    """A picture's luma resampled to (height, width), moved up and left by half pixels of that.

    Args:
        phase: 0 or 1 each: how many half pixels of the result its first pixel lies further in.
    """
    rows = _resampling(luma.shape[0], height, phase[0])
    columns = _resampling(luma.shape[1], width, phase[1])
    return np.asarray(rows @ luma @ columns.T)


def _resampling(size: int, wanted: int, phase: int) -> np.ndarray:
    """(wanted, size): a triangle of the width of the larger pixels, as Pillow's BILINEAR."""
    scale = size / wanted
    centres = (np.arange(wanted) + 0.5 + phase / 2) * scale
    distances = np.abs(np.arange(size) + 0.5 - centres[:, None])
    weights = np.maximum(0, 1 - distances / max(scale, 1.0))
    total = weights.sum(1, keepdims=True)
    return np.asarray(weights / np.where(total > 0, total, 1))


def luma_of(picture: np.ndarray) -> np.ndarray:
    """(H, W) of (H, W, 3) in levels."""
    return np.asarray(picture.astype(np.float64) @ LUMA)


def planes(half: np.ndarray) -> np.ndarray:
    """(6, h, w) float32: what ``learned.odds`` looks at, the last three of them ``maps``.

    The others are the picture's detail, cut off at three strengths.
    """
    detail = half - _mean(half)
    cut = [np.clip(detail / strength, -1, 1) for strength in STRENGTHS]
    return np.concatenate([np.stack(cut), maps(half)]).astype(np.float32)


def maps(half: np.ndarray) -> np.ndarray:
    """(3, h, w): what a chip would be read as, were its centre just below and right of a pixel.

    The first is the embedder's own filter, hardly more than its sign: it sees what was pushed in
    textures. The second compares each pixel with neighbours of its own kind alone, so that an edge
    beside an even area does not drown what lies in the area. The third is the second with a chip's
    neighbours, as the embedder moves them in even areas.
    """
    own = _limited(_filtered(half), CLIPPED_AT[0])
    unlike = _limited(_unlike_neighbours(half), CLIPPED_AT[1])
    return np.stack([own, unlike, _along_both(unlike, WITH_NEIGHBOURS, 2, 2)])


def _filtered(half: np.ndarray) -> np.ndarray:
    before = KERNEL // 2 - 1
    padded = np.pad(half, (before, KERNEL // 2), mode="edge")
    kernel, found = reader_filter(), np.zeros_like(half)
    height, width = half.shape
    for y, x in np.ndindex(KERNEL, KERNEL):
        found += kernel[y, x] * padded[y : y + height, x : x + width]
    return found


def _unlike_neighbours(half: np.ndarray) -> np.ndarray:
    """How far each place is from the mean of the neighbours that are like it."""
    blurred = _along_both(half, BLUR, 2, 2)
    most = max(OFFSETS)
    padded = np.pad(blurred, most, mode="edge")
    height, width = half.shape
    total, weight = np.zeros_like(half), np.zeros_like(half)
    for y in OFFSETS:
        for x in OFFSETS:
            other = padded[most + y : most + y + height, most + x : most + x + width] - blurred
            share = np.maximum(0, 1 - np.abs(other) / ALIKE)
            share *= math.exp(-(y * y + x * x) / (2 * NEAR**2))
            total += share * other
            weight += share
    return _along_both(-total / weight, BETWEEN, 1, 2)


def _limited(values: np.ndarray, share: float) -> np.ndarray:
    """Divided by a share of the strength around, and cut to -1 ... 1."""
    strength = np.sqrt(_mean(values**2) + FLOOR**2)
    return np.asarray(np.clip(values / (share * strength), -1, 1))


def _mean(values: np.ndarray) -> np.ndarray:
    """Over a box."""
    return _along_both(values, np.full(BOX, 1 / BOX), BOX // 2, BOX // 2)


def _along_both(values: np.ndarray, taps: np.ndarray, before: int, behind: int) -> np.ndarray:
    """The same taps along rows and columns, the edges continued."""
    for axis in (0, 1):
        around = [(before, behind) if a == axis else (0, 0) for a in (0, 1)]
        padded = np.pad(values, around, mode="edge")
        length = values.shape[axis]
        values = sum(
            tap * np.take(padded, range(i, i + length), axis) for i, tap in enumerate(taps)
        )
    return values

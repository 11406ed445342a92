"""Feature maps cut into strips of rows, so that a picture of any size needs little memory.

A convolution of a strip needs one row of each neighbour, a normalization the statistics of all
strips. Both are exact: nothing overlaps, is blended or is estimated. A map that is one strip goes
through torch's own layers as they are.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STRIP_BYTES = 1 << 26  # of float32; measured on the full-size VAE: docs/full-size.md
Strips = tuple[Tensor, ...]  # (1, C, h_i, W) each, from top to bottom


def cut(x: Strips, growth: int = 1, rows: int = 1) -> Strips:
    """The same map in strips that are no larger than ``STRIP_BYTES``, as far as rows allow.

    Args:
        growth: how many times as many values the layer behind it makes of each.
        rows: a strip's height is a multiple of it.
    """
    pieces: list[Tensor] = []
    for strip in x:
        height = strip.shape[2]
        most = STRIP_BYTES * height // (strip.numel() * 4 * growth)
        most = max(most // rows * rows, rows)
        pieces += torch.split(strip, most, 2) if height > most else (strip,)
    return tuple(pieces)


def join(x: Strips) -> Tensor:
    """The whole map."""
    return x[0] if len(x) == 1 else torch.cat(x, 2)


def normalize(norm: nn.GroupNorm, x: Strips) -> Iterator[Tensor]:
    """Group normalization with the mean and the variance of each group over all strips.

    Two passes: each channel's mean, then its variance around it. A group's variance is the mean of
    its channels' variances plus the variance of their means. Strips keep their shape all the way:
    a runtime that stores channels last would copy them for another one.
    """
    if len(x) == 1:
        yield norm(x[0])
        return
    by_channel = (1, norm.num_channels, 1, 1)
    by_group = (1, norm.num_groups, norm.num_channels // norm.num_groups)
    height = sum(strip.shape[2] for strip in x)

    def mean(parts: Iterable[Tensor]) -> Tensor:
        """(1, C, 1, 1): over rows and columns of all parts."""
        shares = (p.mean((2, 3), keepdim=True) * (p.shape[2] / height) for p in parts)
        return functools.reduce(torch.add, shares)

    centre = mean(x)
    variance = mean(_square(strip - centre) for strip in x).reshape(by_group)
    centre = centre.reshape(by_group)
    middle = centre.mean(2, keepdim=True)
    spread = (variance + _square(centre - middle)).mean(2, keepdim=True)
    scale = norm.weight.reshape(by_group) * torch.rsqrt(spread + norm.eps)
    shift = norm.bias.reshape(by_group) - middle * scale
    for strip in x:
        yield strip * scale.reshape(by_channel) + shift.reshape(by_channel)


def convolve(conv: nn.Conv2d, x: Iterable[Tensor]) -> Iterator[Tensor]:
    """A convolution of 3 x 3 with zeros around the map, or of 1 x 1."""
    if conv.kernel_size == (1, 1):
        yield from map(conv, x)
        return
    for above, strip, below in _neighbours(x):
        if above is below is None:
            yield conv(strip)
        else:
            joined = _between(above, strip, below)
            yield F.conv2d(joined, conv.weight, conv.bias, padding=(0, 1))


@dataclass(frozen=True)
class Doubling:
    """A convolution of 3 x 3 behind a doubling, as one of 2 x 2 ahead of it.

    Of the three rows that an output row reads, two are the same row of the smaller map: rows 2i - 1
    read (w0 + w1, w2) times rows (i - 1, i) of it, rows 2i read (w0, w1 + w2). Columns likewise. So
    four kernels of 2 x 2 make four output values each from one place: 16 products in place of 36.
    Kernel and bias are ordered as ``torch.nn.functional.pixel_shuffle`` spreads channels.
    """

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(N, C, 3, 3) of (4 N, C, 2, 2); (N,) of (4 N,)."""
        return (shape[0] // 4, *shape[1:2], *(3,) * len(shape[2:]))

    def value(self, read: Callable[[None], Tensor]) -> Tensor:
        """(4 N, C, 2, 2) of a kernel, (4 N,) of a bias; sums are in float64."""
        stored = read(None)
        if stored.ndim == 1:
            return stored.repeat_interleave(4)
        taps = torch.tensor([[[1, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 1]]], dtype=torch.float64)
        kernels = torch.einsum("ncyx,asy,btx->nabcst", stored.double(), taps, taps)
        return kernels.flatten(0, 2)


def double(conv: nn.Conv2d, x: Strips) -> Iterator[Tensor]:
    """Every value twice in both directions, then a convolution of 3 x 3, as a ``Doubling``."""
    for above, strip, below in _neighbours(cut(x, 4)):
        if above is below is None:
            y = F.conv2d(strip, conv.weight, conv.bias, padding=1)
        else:
            joined = _between(above, strip, below)
            y = F.conv2d(joined, conv.weight, conv.bias, padding=(0, 1))
        yield F.pixel_shuffle(y, 2)[:, :, 1:-1, 1:-1]


def halve(conv: nn.Conv2d, x: Strips) -> Iterator[Tensor]:
    """A convolution of 3 x 3 at every second row and column, with zeros below and to the right."""
    for _, strip, below in _neighbours(x):
        if below is None:
            yield conv(F.pad(strip, (0, 1, 0, 1)))
        else:
            yield conv(F.pad(torch.cat((strip, below[:, :, :1]), 2), (0, 1)))


def contract(conv: nn.Conv2d, x: Iterable[Tensor]) -> Iterator[Tensor]:
    """A convolution of 3 x 3 at every second row and column, with zeros on all sides of the map.

    Each strip has an even number of rows, so that none needs a row of the one below it.
    """
    for above, strip, below in _neighbours(x):
        if above is below is None:
            yield conv(strip)
        else:
            shown = [] if above is None else [above[:, :, -1:]]
            joined = torch.cat((*shown, strip), 2) if shown else F.pad(strip, (0, 0, 1, 0))
            yield F.conv2d(joined, conv.weight, conv.bias, conv.stride, (0, 1))


def _neighbours(x: Iterable[Tensor]) -> Iterator[tuple[Tensor | None, Tensor, Tensor | None]]:
    """Each strip with the one above it and the one below it."""
    above, strip = None, None
    for below in itertools.chain(x, [None]):
        if strip is not None:
            yield above, strip, below
        above, strip = strip, below


def _between(above: Tensor | None, strip: Tensor, below: Tensor | None) -> Tensor:
    """A strip with a row of each neighbour, or of zeros."""
    rows = [] if above is None else [above[:, :, -1:]]
    rows += [strip] if below is None else [strip, below[:, :, :1]]
    joined = torch.cat(rows, 2) if len(rows) > 1 else strip
    zeros = (0, 0, int(above is None), int(below is None))
    return F.pad(joined, zeros) if any(zeros) else joined


def _square(x: Tensor) -> Tensor:
    return x * x

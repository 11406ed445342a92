"""Small pictures of a latent without the decoder: one linear map from channels to colours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from exporter.errors import CheckFailed
from exporter.package.manifest import Pixels, PreviewEntry
from exporter.package.pixels import NOT_FINITE, PIXELS, to_pixels


@dataclass(frozen=True, eq=False)
class Preview:
    """colour = latent @ factors + bias; factors (channels, 3), bias (3,), colours in [-1, 1]."""

    factors: np.ndarray
    bias: np.ndarray
    pixels: Pixels = PIXELS

    def picture(self, latent: np.ndarray) -> np.ndarray:
        """(1, channels, h, w) -> (h, w, 3) uint8; computed in float64.

        Raises CheckFailed for a latent that holds NaN or infinity.
        """
        if not np.isfinite(latent).all():
            raise CheckFailed(f"the latent of a preview {NOT_FINITE}")
        colours = latent[0].transpose(1, 2, 0) @ self.factors + self.bias
        return to_pixels(colours.transpose(2, 0, 1)[None], self.pixels)

    def entry(self) -> PreviewEntry:
        """What the manifest says of it, rounded to five decimals."""
        factors = np.round(self.factors, 5).tolist()
        red, green, blue = np.round(self.bias, 5).tolist()
        return PreviewEntry(tuple((r, g, b) for r, g, b in factors), (red, green, blue))


def preview_of(entry: PreviewEntry, pixels: Pixels) -> Preview:
    """The map that a manifest holds."""
    return Preview(np.array(entry.factors), np.array(entry.bias), pixels)


def fit(latents: list[np.ndarray], images: list[np.ndarray]) -> Preview:
    """The map that best explains decoded pictures, each latent pixel's mean colour.

    Args:
        latents: each (1, channels, h, w).
        images: each (1, 3, 8h, 8w) in [-1, 1].
    """
    rows = np.concatenate([x[0].reshape(x.shape[1], -1).T for x in latents])
    scale = images[0].shape[2] // latents[0].shape[2]
    small = [_mean_pool(i[0], scale).reshape(3, -1).T for i in images]
    design = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
    # A little ridge keeps channels that barely vary from getting huge factors.
    gram = design.T @ design + 1e-3 * len(rows) * np.eye(design.shape[1])
    solution = np.linalg.solve(gram, design.T @ np.concatenate(small))
    return Preview(solution[:-1], solution[-1])


def _mean_pool(image: np.ndarray, scale: int) -> np.ndarray:
    channels, height, width = image.shape
    tiles = image.reshape(channels, height // scale, scale, width // scale, scale)
    pooled: np.ndarray = tiles.mean(axis=(2, 4))
    return pooled

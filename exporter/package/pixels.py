"""Pictures of whole levels to tensors and back, by the constants of a manifest."""

from __future__ import annotations

import numpy as np

from exporter.errors import CheckFailed
from exporter.package.manifest import Pixels

PIXELS = Pixels()  # as diffusers converts
NOT_FINITE = (
    "holds NaN or infinity: numbers left the range of its weights or of 16 bits; run it exact, or "
    "build it with a wider scheme"
)


def to_pixels(image: np.ndarray, pixels: Pixels = PIXELS, what: str = "the picture") -> np.ndarray:
    """(1, 3, H, W) -> (H, W, 3) uint8; in the dtype of ``image``, a half to the even neighbour.

    Raises CheckFailed naming ``what`` where a value is no number: it would be a black pixel.
    """
    if not np.isfinite(image).all():
        raise CheckFailed(f"{what} {NOT_FINITE}")
    unit = image[0].transpose(1, 2, 0) * pixels.to_levels_scale + pixels.to_levels_offset
    return np.asarray(np.round(np.clip(unit, 0, 1) * pixels.levels), dtype=np.uint8)


def from_pixels(levels: np.ndarray, pixels: Pixels = PIXELS) -> np.ndarray:
    """(H, W, 3) uint8 -> (1, 3, H, W) float32."""
    unit = levels.astype(np.float32) / pixels.levels
    values = pixels.from_levels_scale * unit + pixels.from_levels_offset
    return np.ascontiguousarray(values.transpose(2, 0, 1)[None])

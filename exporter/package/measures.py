"""How far apart two tensors or two pictures are. Numpy alone; SSIM asks for scikit-image."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence

import numpy as np

from exporter.errors import needs_extra

SAME_DB = 99.0  # stands for no difference where a mean is taken


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """|found - expected| / |expected| in L2; NaN counts as infinite."""
    difference = float(np.linalg.norm(found.astype(np.float64) - expected))
    size = float(np.linalg.norm(expected.astype(np.float64)))
    error = difference / size if size else difference
    return math.inf if math.isnan(error) else error


def snr_db(found: np.ndarray, expected: np.ndarray) -> float:
    """Signal-to-noise ratio in dB: power of ``expected`` over power of the difference."""
    error = relative_error(found, expected)
    return math.inf if error == 0 else -20 * math.log10(error)


def psnr_db(found: np.ndarray, expected: np.ndarray) -> float:
    """Peak signal-to-noise ratio of uint8 pictures in dB; infinite when they are the same."""
    mean_square = float(np.mean((found.astype(np.float64) - expected) ** 2))
    return math.inf if mean_square == 0 else 10 * math.log10(255**2 / mean_square)


def has_ssim() -> bool:
    """Whether scikit-image is installed."""
    return importlib.util.find_spec("skimage") is not None


def ssim(found: np.ndarray, expected: np.ndarray) -> float:
    """Structural similarity of uint8 pictures (H, W, 3), 1 when they are the same.

    The window is that of Wang et al. (2004): Gaussian, 1.5 px, which pictures of at least 11 x 11
    px hold. Raises InputError with the pip line where scikit-image is not installed.
    """
    if not has_ssim():
        raise needs_extra("report", "scikit-image")
    from skimage.metrics import structural_similarity

    value = structural_similarity(
        found,
        expected,
        channel_axis=2,
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    return float(value)


def mean_db(values: Sequence[float]) -> float:
    """Mean of decibels, each counted as ``SAME_DB`` at most, so that infinite ones have a mean."""
    return float(np.mean([min(value, SAME_DB) for value in values]))


def finite(value: object) -> object:
    """The same dicts and lists with None for every number that is not finite: JSON has none."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def difference_map(found: np.ndarray, expected: np.ndarray, factor: int) -> np.ndarray:
    """(H, W) uint8: a pixel's largest difference over channels times ``factor``, at most 255."""
    return np.asarray(np.minimum(_largest(found, expected) * factor, 255), dtype=np.uint8)


def amplification(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> int:
    """The factor that shows differences best: a power of two, 1 to 64.

    It is the largest at which at most a hundredth of the pixels of each pair would exceed 255.
    """
    largest = [float(np.quantile(_largest(a, b), 0.99)) for a, b in pairs]
    headroom = 255 / max([1.0, *largest])
    return 1 << max(0, min(6, math.floor(math.log2(headroom))))


def _largest(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    difference: np.ndarray = np.abs(found.astype(np.int32) - expected).max(axis=2)
    return difference

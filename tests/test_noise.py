"""The runtime's noise is torch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from exporter.drawing.noise import TorchNoise
from exporter.errors import InputError

SIZES = [1, 2, 3, 7, 15, 16, 17, 23, 31, 32, 33, 47, 100, 255, 4096, 4100, 16 * 64 * 64]


@pytest.mark.parametrize("seed", [0, 1, 42, 12345, 2**31, 2**32 - 1, 2**40 + 7])
def test_same_as_torch(seed: int) -> None:
    for size in SIZES:
        expected = torch.randn(size, generator=torch.Generator().manual_seed(seed)).numpy()
        np.testing.assert_allclose(TorchNoise(seed).randn(size), expected, atol=2e-6)


@pytest.mark.parametrize(
    "seed", [2**63 - 1, 2**63, 2**64 - 1, 2**64 - 2**32 + 3, -1, -2, -(2**63), -(2**32)]
)
def test_every_seed_that_torch_takes(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    assert generator.initial_seed() == seed % 2**64
    noise = TorchNoise(seed)
    for size in (5, 100):
        expected = torch.randn(size, generator=generator).numpy()
        np.testing.assert_allclose(noise.randn(size), expected, atol=2e-6)


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 10**30, 1.0, "3", True, None])
def test_no_seed_that_torch_does_not_take(seed: object) -> None:
    with pytest.raises((ValueError, RuntimeError, TypeError)):
        torch.Generator().manual_seed(seed)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="seed .*: a whole number from .* is expected") as error:
        TorchNoise(seed)  # type: ignore[arg-type]
    assert error.value.field == "seed"


def test_stream_continues_as_torch_does() -> None:
    """Small draws keep half a pair for the next call; large ones do not."""
    generator, noise = torch.Generator().manual_seed(5), TorchNoise(5)
    for size in (3, 20, 5, 1, 64, 2, 16, 7, 33):
        expected = torch.randn(size, generator=generator).numpy()
        np.testing.assert_allclose(noise.randn(size), expected, atol=2e-6)


def test_shape_and_dtype() -> None:
    noise = TorchNoise(1).randn(1, 16, 4, 6)
    assert noise.shape == (1, 16, 4, 6)
    assert noise.dtype == np.float32

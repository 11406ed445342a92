"""Palettes: close to the best that k-means can do, and the same every time."""

from __future__ import annotations

import importlib
import itertools

import pytest
import torch
from torch import Tensor

from exporter import backends
from exporter.backends.coreml import library
from exporter.quantize.palettes import palettize


def squared_error(weight: Tensor, codes: Tensor, palettes: Tensor) -> float:
    rows = codes.reshape(len(palettes), -1).long()
    return float((palettes.gather(1, rows).reshape(weight.shape) - weight).double().square().sum())


def sample(kind: str, shape: tuple[int, int]) -> Tensor:
    torch.manual_seed(4)
    drawn: Tensor = {
        "normal": torch.randn(shape),
        "uniform": torch.rand(shape),
        "outliers": torch.distributions.StudentT(3.0).sample(shape),
    }[kind]
    return drawn


def best_error(values: Tensor, size: int) -> float:
    """The least squared error of any split of a few values into intervals."""
    ordered = values.flatten().sort().values.double()
    n = len(ordered)
    return min(
        float(sum((ordered[a:b] - ordered[a:b].mean()).square().sum() for a, b in spans))
        for inner in itertools.combinations(range(1, n), size - 1)
        for spans in [list(itertools.pairwise((0, *inner, n)))]
    )


def test_few_values_are_split_best() -> None:
    weight = torch.tensor([[0.1, 0.12, -1.0, 2.0, 2.2, 0.4, -0.9, 5.0, 0.11]])
    codes, palettes = palettize(weight, 2, 1)
    assert squared_error(weight, codes, palettes) == pytest.approx(best_error(weight, 4), rel=1e-5)


@pytest.mark.parametrize("kind", ["normal", "uniform", "outliers"])
@pytest.mark.parametrize("bits", [4, 6])
def test_as_good_as_the_exact_algorithm(kind: str, bits: int) -> None:
    """coremltools brings an exact one-dimensional k-means: at most half a percent worse."""
    if backends.missing({"coremltools": "coremltools"}):
        pytest.skip("pip install 'fourstep[build,coreml]'")
    with library.quiet():
        kmeans1d = importlib.import_module("coremltools._deps.kmeans1d")
    weight = sample(kind, (32, 128))
    codes, palettes = palettize(weight, bits, 32)
    found, centres = kmeans1d.cluster(weight.flatten().double().tolist(), 2**bits)
    exact = squared_error(weight, torch.tensor(found), torch.tensor([centres]))
    assert squared_error(weight, codes, palettes) <= 1.005 * exact


def test_groups_are_independent_and_repeatable() -> None:
    weight = sample("outliers", (48, 80))
    codes, palettes = palettize(weight, 4, 16)
    again = palettize(weight, 4, 16)
    assert torch.equal(codes, again[0]) and torch.equal(palettes, again[1])
    assert palettes.shape == (3, 16) and codes.dtype == torch.uint8 and int(codes.max()) == 15
    for i in range(3):
        rows = slice(16 * i, 16 * (i + 1))
        alone = palettize(weight[rows], 4, 16)
        assert torch.equal(alone[0], codes[rows]) and torch.equal(alone[1][0], palettes[i])
    whole = palettize(weight, 4, 48)
    assert squared_error(weight, codes, palettes) < squared_error(weight, *whole)


@pytest.mark.parametrize("values", [[0.0], [1.5, 1.5, 1.5], [1.0, -1.0]])
def test_fewer_values_than_colours(values: list[float]) -> None:
    weight = torch.tensor(values).repeat(4, 4)
    codes, palettes = palettize(weight, 4, 4)
    assert squared_error(weight, codes, palettes) == 0
    assert torch.isfinite(palettes).all()


def test_convolution_kernels_keep_their_shape() -> None:
    weight = sample("normal", (16, 36)).reshape(16, 4, 3, 3)
    codes, palettes = palettize(weight, 4, 16)
    assert codes.shape == weight.shape and palettes.shape == (1, 16)

"""shapes-flash for every backend: what diffusers draws, and what quantization costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from benchmarks.quality import Drawn, agreement, compare, draw
from benchmarks.shapes_flash.shapeeval import EvalPrompt, evaluation_prompts
from exporter.build.pipeline import Built
from exporter.drawing.loop import Image, Request, generate
from exporter.runtime.package import open_package
from tests.conftest import SHAPES, SIGMAS

# Graphs whose inputs are rounded: engines differ by which of two levels a value falls to.
ROUNDED = {"int8-w8a8": ("denoiser", "vae_decoder"), "int4-a8": ("vae_decoder",)}


@pytest.fixture(scope="module")
def prompts() -> tuple[EvalPrompt, ...]:
    return evaluation_prompts(40)


@pytest.fixture(scope="module")
def fp32(shapes_packages: dict[str, Built], prompts: tuple[EvalPrompt, ...]) -> Drawn:
    return draw(shapes_packages["onnx-fp32"].path, prompts)


def test_fp32_pictures_are_diffusers(
    prompts: tuple[EvalPrompt, ...], shapes_packages: dict[str, Built]
) -> None:
    """Twenty prompts, same seed and sigmas: at most one grey level of 255 apart."""
    pipe: Any = StableDiffusion3Pipeline.from_pretrained(SHAPES).to(torch.float32)
    pipe.set_progress_bar_config(disable=True)
    chosen = prompts[::12]
    assert len(chosen) == 20
    player = open_package(shapes_packages["onnx-fp32"].path).player()
    requests = [Request(p.text, p.seed) for p in chosen]
    ours = [e.pixels for e in generate(player, requests) if isinstance(e, Image)]
    for prompt, found in zip(chosen, ours, strict=True):
        theirs = pipe(
            prompt.text,
            guidance_scale=1.0,
            max_sequence_length=32,
            sigmas=[s / (3 - 2 * s) for s in SIGMAS[:-1]],
            generator=torch.Generator().manual_seed(prompt.seed),
        ).images[0]
        apart = np.abs(found.astype(int) - np.asarray(theirs).astype(int)).max()
        assert apart <= 1, prompt.text


def test_every_package_verifies(shapes_packages: dict[str, Built]) -> None:
    for built in shapes_packages.values():
        assert built.report.ok
        allowed = 5e-3 if built.backend == "coreml" else 1e-4
        exact = {g.graph: g.exact for g in built.report.graphs}
        manifest = open_package(built.path).manifest
        for graph in ROUNDED.get(built.scheme, ()):
            allowed_here = next(g for g in manifest.graphs if g.name == graph).tolerance
            assert exact.pop(graph) <= allowed_here.graph_relative <= 0.05, built.path.name
            assert min(i.exact_db for i in built.report.images) >= 45, built.path.name
        assert max(exact.values()) <= allowed, built.path.name


@pytest.mark.parametrize(
    ("scheme", "least_db"),
    [
        pytest.param("fp32", 40, marks=pytest.mark.full),
        pytest.param("fp16", 40, marks=pytest.mark.full),
        pytest.param("int8", 35, marks=pytest.mark.full),
        ("int4", 35),
    ],
)
def test_backends_draw_the_same_picture(
    shapes_packages: dict[str, Built],
    prompts: tuple[EvalPrompt, ...],
    scheme: str,
    least_db: float,
) -> None:
    """Twenty prompts, same seed and scheme, every pair of backends, as the packages run."""
    chosen = prompts[5::12]
    drawn = {n: draw(b.path, chosen) for n, b in shapes_packages.items() if b.scheme == scheme}
    assert len(chosen) == 20 and len(drawn) >= 2
    for pair, found_db in agreement(drawn).items():
        assert found_db >= least_db, pair


@pytest.mark.parametrize(
    ("package", "allowed_points"),
    [
        pytest.param("onnx-fp16", 1, marks=pytest.mark.full),
        pytest.param("onnx-int8", 1, marks=pytest.mark.full),
        pytest.param("onnx-int8-w8a8", 2, marks=pytest.mark.full),
        pytest.param("onnx-int4", 5, marks=pytest.mark.full),
        pytest.param("openvino-int8", 1, marks=pytest.mark.full),
        pytest.param("openvino-int8-w8a8", 2, marks=pytest.mark.full),
        ("openvino-int4", 5),
        pytest.param("openvino-int4-a8", 5, marks=pytest.mark.full),
    ],
)
def test_shapeeval_loss(
    shapes_packages: dict[str, Built],
    prompts: tuple[EvalPrompt, ...],
    fp32: Drawn,
    package: str,
    allowed_points: float,
) -> None:
    """240 held-out prompts: points of ShapeEval lost against fp32, as the package runs."""
    if package not in shapes_packages:
        pytest.skip(f"{package}: pip install 'fourstep[all]'")
    yardstick = compare(prompts, fp32, fp32)["shapeeval"]
    found = compare(prompts, draw(shapes_packages[package].path, prompts), fp32)["shapeeval"]
    assert isinstance(yardstick, dict) and isinstance(found, dict)
    assert yardstick["overall"] >= 0.85
    assert 100 * (yardstick["overall"] - found["overall"]) <= allowed_points


def test_sizes(shapes_packages: dict[str, Built]) -> None:
    sizes = {
        b.scheme: sum(f.stat().st_size for f in Path(b.path / "graphs").rglob("*") if f.is_file())
        for b in shapes_packages.values()
        if b.backend == "onnx"
    }
    assert sizes["fp32"] > 1.9 * sizes["fp16"] > 3.4 * sizes["int8"] > 3.8 * sizes["int4"]

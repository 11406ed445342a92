"""The full-size widths with two layers: real shapes through the whole road (make test-full)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest

from exporter.build.pipeline import build
from exporter.network.cut import Cut
from exporter.recipe.recipe import read_recipe
from exporter.runtime.package import open_package
from exporter.synth.presets import find_preset
from exporter.synth.write import synthesize
from tests.conftest import ROOT

pytestmark = pytest.mark.full


def test_the_shipped_recipe_on_real_widths(tmp_path: Path) -> None:
    recipe = read_recipe(ROOT / "recipes" / "sd3.5-flash.toml")
    cut = Cut((1.0, 0.75, 0.0), 256, 256, t5=False, t5_tokens=256, image_to_image=False)
    wide = synthesize(find_preset("sd3.5-flash-mini"), tmp_path / "wide", with_t5=False).path
    recipe = replace(recipe, checkpoint=str(wide), cut=cut)
    (built,) = build(recipe, tmp_path, ["onnx"], ["int4"])
    assert built.report.ok
    manifest = open_package(built.path).manifest
    assert not any(g.adjusted for g in manifest.graphs)
    denoiser = manifest.graph("denoiser")
    assert denoiser is not None and denoiser.formats["int4-g64"] > 100_000_000
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(str(built.path / denoiser.entry), options)
    kinds = [
        n.op_type
        for n in onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph.node
    ]
    assert "MatMulNBits" in kinds and "MatMul" not in kinds and "Gemm" not in kinds

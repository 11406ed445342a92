"""The full-size widths with two layers: real shapes through the whole road (make test-full)."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
import torch

from exporter.cut import Cut
from exporter.pipeline import build
from exporter.recipe import read_recipe
from exporter.runtime import open_package
from tests.conftest import ROOT, SHAPES

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bf16 checkpoint, 0.9 GB: SD3.5 Medium's widths, two MMDiT layers, two-layer encoders."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    folder = tmp_path_factory.mktemp("wide")
    torch.manual_seed(0)

    def clip(width: int, heads: int, activation: str) -> CLIPTextModelWithProjection:
        return CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=49408,
                hidden_size=width,
                intermediate_size=4 * width,
                projection_dim=width,
                num_hidden_layers=2,
                num_attention_heads=heads,
                hidden_act=activation,
                eos_token_id=2,
            )
        )

    parts = {
        "text_encoder": clip(768, 12, "quick_gelu"),
        "text_encoder_2": clip(1280, 20, "gelu"),
        "transformer": SD3Transformer2DModel(
            sample_size=128,
            num_layers=2,
            attention_head_dim=64,
            num_attention_heads=24,
            joint_attention_dim=4096,
            caption_projection_dim=1536,
            pooled_projection_dim=2048,
            pos_embed_max_size=384,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        ),
        "vae": AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            latent_channels=16,
            norm_num_groups=32,
            layers_per_block=2,
            use_quant_conv=False,
            use_post_quant_conv=False,
            scaling_factor=1.5305,
            shift_factor=0.0609,
        ),
    }
    for name, module in parts.items():
        module.to(torch.bfloat16).save_pretrained(folder / name)
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(SHAPES / name, folder / name)
    shutil.copyfile(SHAPES / "model_index.json", folder / "model_index.json")
    return folder


def test_the_shipped_recipe_on_real_widths(wide_folder: Path, tmp_path: Path) -> None:
    recipe = read_recipe(ROOT / "recipes" / "sd3.5-flash.toml")
    cut = Cut((1.0, 0.75, 0.0), 256, 256, t5=False, t5_tokens=256, image_to_image=False)
    recipe = replace(recipe, checkpoint=str(wide_folder), cut=cut)
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

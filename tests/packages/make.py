"""Builds the package that is kept here, of a checkpoint of random weights as small as they can be.

    python -m tests.packages.make FOLDER

A package of a format is kept for good: it is not built again when the format grows, so that later
versions are tested with what earlier ones wrote.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from exporter.build.pipeline import build
from exporter.network.cut import Cut
from exporter.recipe.recipe import read_recipe
from tests.conftest import ROOT, SHAPES

CUT = Cut((1.0, 0.6, 0.0), 32, 16, t5=True, t5_tokens=6)


def checkpoint(folder: Path) -> None:
    """Write the checkpoint: two layers of CLIP, one of everything else, widths of 4 to 16."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
    from transformers import (
        CLIPTextConfig,
        CLIPTextModelWithProjection,
        T5Config,
        T5EncoderModel,
    )

    torch.manual_seed(4)
    clip: dict[str, Any] = {
        "vocab_size": 700, "hidden_size": 8, "intermediate_size": 8, "projection_dim": 8,
        "num_hidden_layers": 2, "num_attention_heads": 2, "eos_token_id": 2,
    }  # fmt: skip
    parts = {
        "text_encoder": CLIPTextModelWithProjection(CLIPTextConfig(**clip)),
        "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**clip, hidden_act="gelu")),
        "text_encoder_3": T5EncoderModel(
            T5Config(
                vocab_size=160, d_model=16, d_ff=16, d_kv=8, num_heads=2, num_layers=1,
                feed_forward_proj="gated-gelu",
            )
        ),
        "transformer": SD3Transformer2DModel(
            sample_size=8, num_layers=2, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=16,
            pos_embed_max_size=4, dual_attention_layers=(0,), qk_norm="rms_norm",
        ),
        "vae": AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(4, 4, 4, 4), latent_channels=16, norm_num_groups=2,
            layers_per_block=1, use_quant_conv=False, use_post_quant_conv=False,
            scaling_factor=1.5305, shift_factor=0.0609,
        ),
    }  # fmt: skip
    for name, module in parts.items():
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.2)
        module.save_pretrained(folder / name)
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    for name in ("tokenizer", "tokenizer_2", "tokenizer_3"):
        shutil.copytree(SHAPES / name, folder / name)
    shutil.copyfile(SHAPES / "model_index.json", folder / "model_index.json")
    (folder / "LICENSE").write_text("Random weights, for tests.\n", encoding="utf-8")


def main() -> None:
    (place,) = (Path(argument) for argument in sys.argv[1:])
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "checkpoint"
        checkpoint(folder)
        recipe = read_recipe(ROOT / "recipes" / "shapes-flash.toml")
        recipe = replace(
            recipe, name="smallest", checkpoint=str(folder), cut=CUT, prompts=("a red circle",),
            calibration=replace(recipe.calibration, methods=()),
        )  # fmt: skip
        (built,) = build(recipe, Path(temporary), ["onnx"], ["int8"])
        shutil.copytree(built.path, place)


if __name__ == "__main__":
    main()

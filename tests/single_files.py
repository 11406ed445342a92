"""Writes a diffusers folder's tensors as Stability, ComfyUI and llama.cpp name them.

Written from the names that such files have, apart from what reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

Tensors = dict[str, Tensor]
ENCODERS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"}


def tensors_of(folder: Path, name: str) -> Tensors:
    """A component's tensors as diffusers and transformers name them."""
    return {
        k: v for f in sorted((folder / name).glob("*.safetensors")) for k, v in load_file(f).items()
    }


def mmdit(tensors: Mapping[str, Tensor]) -> Tensors:
    """Of a transformer: (diffusers' name -> tensor) as Stability's reference names them."""
    left = dict(tensors)
    found: Tensors = {}

    def move(to: str, *names: str, exchange: bool = False) -> None:
        for leaf in ("weight", "bias"):
            if f"{names[0]}.{leaf}" in left:
                parts = [left.pop(f"{name}.{leaf}") for name in names]
                if exchange:
                    scale, shift = parts[0].chunk(2)
                    parts = [shift, scale]
                found[f"{to}.{leaf}"] = torch.cat(parts)

    found["pos_embed"] = left.pop("pos_embed.pos_embed")
    move("x_embedder.proj", "pos_embed.proj")
    for their, our in (("t", "timestep"), ("y", "text")):
        for place, number in ((0, 1), (2, 2)):
            move(f"{their}_embedder.mlp.{place}", f"time_text_embed.{our}_embedder.linear_{number}")
    move("context_embedder", "context_embedder")
    move("final_layer.adaLN_modulation.1", "norm_out.linear", exchange=True)
    move("final_layer.linear", "proj_out")
    layers = 1 + max(int(k.split(".")[1]) for k in left)
    for i in range(layers):
        block, x = f"transformer_blocks.{i}", f"joint_blocks.{i}.x_block"
        context = f"joint_blocks.{i}.context_block"
        for attention in ("attn", "attn2"):
            a = f"{block}.{attention}"
            move(f"{x}.{attention}.qkv", f"{a}.to_q", f"{a}.to_k", f"{a}.to_v")
            move(f"{x}.{attention}.proj", f"{a}.to_out.0")
            for which in "qk":
                move(f"{x}.{attention}.ln_{which}", f"{a}.norm_{which}")
                move(f"{context}.{attention}.ln_{which}", f"{a}.norm_added_{which}")
        a = f"{block}.attn"
        move(f"{context}.attn.qkv", f"{a}.add_q_proj", f"{a}.add_k_proj", f"{a}.add_v_proj")
        move(f"{context}.attn.proj", f"{a}.to_add_out")
        move(f"{x}.adaLN_modulation.1", f"{block}.norm1.linear")
        last = i == layers - 1
        move(f"{context}.adaLN_modulation.1", f"{block}.norm1_context.linear", exchange=last)
        for side, name in ((x, "ff"), (context, "ff_context")):
            move(f"{side}.mlp.fc1", f"{block}.{name}.net.0.proj")
            move(f"{side}.mlp.fc2", f"{block}.{name}.net.2")
    assert not left
    return found


def latent_diffusion(tensors: Mapping[str, Tensor], levels: int = 4) -> Tensors:
    """Of an autoencoder: as latent diffusion names them, its attention as 1 x 1 convolutions."""
    found: Tensors = {}
    for key, value in tensors.items():
        new = key
        for i in range(levels):
            new = new.replace(f"decoder.up_blocks.{i}.", f"decoder.up.{levels - 1 - i}.")
            new = new.replace(f"encoder.down_blocks.{i}.", f"encoder.down.{i}.")
            new = new.replace(f"mid_block.resnets.{i}.", f"mid.block_{i + 1}.")
        for old, its in (
            (".resnets.", ".block."),
            ("downsamplers.0.conv", "downsample.conv"),
            ("upsamplers.0.conv", "upsample.conv"),
            ("conv_shortcut", "nin_shortcut"),
            ("conv_norm_out", "norm_out"),
            ("mid_block.attentions.0.group_norm", "mid.attn_1.norm"),
            ("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"),
            ("mid_block.attentions.0.to_", "mid.attn_1."),
        ):
            new = new.replace(old, its)
        matrix = ".attn_1." in new and value.ndim == 2
        found[new] = value[:, :, None, None] if matrix else value
    return found


def whole(folder: Path, encoders: bool = True) -> Tensors:
    """All of a checkpoint under the names of Stability's files, with or without text encoders."""
    found = {
        f"model.diffusion_model.{k}": v for k, v in mmdit(tensors_of(folder, "transformer")).items()
    }
    vae = latent_diffusion(tensors_of(folder, "vae"))
    found |= {f"first_stage_model.{k}": v for k, v in vae.items()}
    for name, theirs in ENCODERS.items() if encoders else ():
        parts = tensors_of(folder, name).items()
        found |= {f"text_encoders.{theirs}.transformer.{k}": v for k, v in parts}
    return found


def llama_t5(tensors: Mapping[str, Tensor]) -> Tensors:
    """Of T5's encoder: as llama.cpp names them."""
    words = {
        "layer.0.SelfAttention.relative_attention_bias": "attn_rel_b",
        "layer.0.SelfAttention.": "attn_",
        "layer.0.layer_norm": "attn_norm",
        "layer.1.layer_norm": "ffn_norm",
        "layer.1.DenseReluDense.wi_0": "ffn_gate",
        "layer.1.DenseReluDense.wi_1": "ffn_up",
        "layer.1.DenseReluDense.wo": "ffn_down",
        "encoder.block.": "enc.blk.",
        "encoder.final_layer_norm": "enc.output_norm",
        "shared": "token_embd",
    }
    found: Tensors = {}
    for key, value in tensors.items():
        if key != "encoder.embed_tokens.weight":
            for old, new in words.items():
                key = key.replace(old, new)
            found[key] = value
    return found

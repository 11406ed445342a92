"""Configurations of files that have none: from the shapes of tensors, and what the family has."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from exporter.checkpoint.component import TIED
from exporter.checkpoint.names import count
from exporter.checkpoint.sources import TensorSource
from exporter.errors import InputError

HEAD_WIDTH = 64  # of every attention of the family whose shapes do not tell
# What no shape tells: the same in Stable Diffusion 3 Medium, 3.5 Medium, 3.5 Large and their
# fine-tunes.
FAMILY: Mapping[str, Mapping[str, Any]] = {
    "transformer": {"sample_size": 128},
    "text_encoder": {"hidden_act": "quick_gelu", "eos_token_id": 2, "layer_norm_eps": 1e-5},
    "text_encoder_2": {"hidden_act": "gelu", "eos_token_id": 2, "layer_norm_eps": 1e-5},
    "text_encoder_3": {"relative_attention_max_distance": 128, "layer_norm_epsilon": 1e-6},
    "vae": {
        "norm_num_groups": 32,
        "scaling_factor": 1.5305,
        "shift_factor": 0.0609,
        "act_fn": "silu",
    },
}
# Shapes tell these only as far as heads are HEAD_WIDTH wide.
GUESSED = {
    "transformer": ("num_attention_heads", "attention_head_dim"),
    "text_encoder": ("num_attention_heads",),
    "text_encoder_2": ("num_attention_heads",),
}


def not_told(name: str, config: Mapping[str, Any]) -> str | None:
    """A key that is guessed as the family has it, and that these widths contradict; or None."""
    if name == "transformer" and config["caption_projection_dim"] % config["attention_head_dim"]:
        return "attention_head_dim"
    if name in ("text_encoder", "text_encoder_2") and config["hidden_size"] % HEAD_WIDTH:
        return "num_attention_heads"
    if name == "vae" and any(w % config["norm_num_groups"] for w in config["block_out_channels"]):
        return "norm_num_groups"
    return None


# The widths that tell a guess is right: those of the family's own models.
CLIP_WIDTHS = {768: "text_encoder", 1280: "text_encoder_2"}
MEDIUM_WIDTH = 1536  # of the one transformer without norms of queries and keys
VAE_WIDTHS = [128, 256, 512, 512]


def only_guessed(name: str, config: Mapping[str, Any]) -> str | None:
    """A key that is guessed as the family has it, of widths that no model of it has; or None."""
    if name == "transformer" and config["qk_norm"] is None:
        return None if config["caption_projection_dim"] == MEDIUM_WIDTH else "attention_head_dim"
    if name in ("text_encoder", "text_encoder_2"):
        return None if config["hidden_size"] in CLIP_WIDTHS else "num_attention_heads"
    if name == "vae":
        return None if config["block_out_channels"] == VAE_WIDTHS else "norm_num_groups"
    return None


@dataclass(frozen=True)
class Shapes:
    """The shapes of a component's tensors, and what its file calls them."""

    found: Mapping[str, tuple[int, ...]]
    called: Callable[[str], str]

    def agreed(self, tensor: str, axis: int, other: str, its: int) -> int:
        """The length of an axis that another tensor has too; raises InputError naming both."""
        length = self.axis(tensor, axis)
        if self.axis(other, its) != length:
            raise InputError(
                f"tensor '{self.called(tensor)}' has shape {list(self.found[tensor])}, and "
                f"'{self.called(other)}' has {list(self.found[other])}"
            )
        return length

    def axis(self, tensor: str, axis: int) -> int:
        """The length of an axis; raises InputError that names a tensor that has none."""
        shape = self.found.get(tensor)
        if shape is None:
            raise InputError(f"tensor '{self.called(tensor)}' is missing")
        if axis >= len(shape) or not shape[axis]:
            raise InputError(f"tensor '{self.called(tensor)}' has shape {list(shape)}")
        return shape[axis]

    def any(self, part: str) -> bool:
        """Whether a name holds this."""
        return any(part in name for name in self.found)

    def count(self, pattern: str) -> int:
        """See ``names.count``."""
        return count(self.found, pattern)


def inferred(
    name: str, tensors: Mapping[str, TensorSource], called: Callable[[str], str]
) -> dict[str, Any]:
    """The keys of a component's configuration that shapes decide.

    Raises InputError that names a tensor without which they cannot, or a shape that none has.
    """
    ties = TIED.get(name, {})
    shapes = {ties.get(key, key): source.shape for key, source in tensors.items()}
    return READERS[name](Shapes(shapes, called))


def _transformer(shapes: Shapes) -> dict[str, Any]:
    width = shapes.agreed("context_embedder.weight", 0, "context_embedder.bias", 0)
    normed = "transformer_blocks.0.attn.norm_q.weight"
    head = (
        shapes.agreed(normed, 0, normed.replace("_q.", "_k."), 0)
        if normed in shapes.found
        else HEAD_WIDTH
    )
    patch = shapes.agreed("pos_embed.proj.weight", 2, "pos_embed.proj.weight", 3)
    layers = shapes.count(r"transformer_blocks\.(\d+)\.")
    second = "transformer_blocks.{}.attn2.to_q.weight"
    return {
        "num_layers": layers,
        "num_attention_heads": width // head,
        "attention_head_dim": head,
        "in_channels": shapes.axis("pos_embed.proj.weight", 1),
        "out_channels": shapes.agreed("proj_out.weight", 0, "proj_out.bias", 0) // (patch * patch),
        "patch_size": patch,
        "joint_attention_dim": shapes.axis("context_embedder.weight", 1),
        "pooled_projection_dim": shapes.axis("time_text_embed.text_embedder.linear_1.weight", 1),
        "caption_projection_dim": width,
        "pos_embed_max_size": math.isqrt(shapes.axis("pos_embed.pos_embed", 1)),
        "dual_attention_layers": [i for i in range(layers) if second.format(i) in shapes.found],
        "qk_norm": "rms_norm" if shapes.any(".norm_q.") else None,
    }


def _clip(shapes: Shapes) -> dict[str, Any]:
    tokens, positions = (
        f"text_model.embeddings.{n}_embedding.weight" for n in ("token", "position")
    )
    width = shapes.agreed(tokens, 1, positions, 1)
    dense = "text_model.encoder.layers.0.mlp.fc1"
    return {
        "hidden_size": width,
        "intermediate_size": shapes.agreed(f"{dense}.weight", 0, f"{dense}.bias", 0),
        "num_hidden_layers": shapes.count(r"text_model\.encoder\.layers\.(\d+)\."),
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "projection_dim": shapes.axis("text_projection.weight", 0),
        "max_position_embeddings": shapes.axis(
            "text_model.embeddings.position_embedding.weight", 0
        ),
        "vocab_size": shapes.axis("text_model.embeddings.token_embedding.weight", 0),
    }


def _t5(shapes: Shapes) -> dict[str, Any]:
    attention, dense = (
        f"encoder.block.0.layer.{n}" for n in ("0.SelfAttention", "1.DenseReluDense")
    )
    heads = shapes.axis(f"{attention}.relative_attention_bias.weight", 1)
    gated = f"{dense}.wi_0.weight" in shapes.found
    wide = f"{dense}.wi_0.weight" if gated else f"{dense}.wi.weight"
    return {
        "d_model": shapes.agreed("shared.weight", 1, "encoder.final_layer_norm.weight", 0),
        "d_ff": shapes.agreed(wide, 0, f"{dense}.wo.weight", 1),
        "d_kv": shapes.agreed(f"{attention}.q.weight", 0, f"{attention}.o.weight", 1)
        // max(1, heads),
        "num_heads": heads,
        "num_layers": shapes.count(r"encoder\.block\.(\d+)\."),
        "vocab_size": shapes.axis("shared.weight", 0),
        "feed_forward_proj": "gated-gelu" if gated else "relu",
        "relative_attention_num_buckets": shapes.axis(
            f"{attention}.relative_attention_bias.weight", 0
        ),
    }


def _autoencoder(shapes: Shapes) -> dict[str, Any]:
    levels = shapes.count(r"decoder\.up_blocks\.(\d+)\.")
    level = "decoder.up_blocks.{}.resnets.0.conv1"
    rising = [
        shapes.agreed(f"{level.format(i)}.weight", 0, f"{level.format(i)}.bias", 0)
        for i in range(levels)
    ]
    drawn = "encoder.conv_in.weight"
    return {
        "block_out_channels": rising[::-1],
        "latent_channels": shapes.axis("decoder.conv_in.weight", 1),
        "layers_per_block": shapes.count(r"decoder\.up_blocks\.0\.resnets\.(\d+)\.") - 1,
        "mid_block_add_attention": shapes.any(".mid_block.attentions."),
        "in_channels": shapes.axis(drawn, 1) if drawn in shapes.found else 3,
        "out_channels": shapes.agreed("decoder.conv_out.weight", 0, "decoder.conv_out.bias", 0),
        "use_quant_conv": "quant_conv.weight" in shapes.found,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes.found,
    }


READERS: Mapping[str, Callable[[Shapes], dict[str, Any]]] = {
    "transformer": _transformer,
    "text_encoder": _clip,
    "text_encoder_2": _clip,
    "text_encoder_3": _t5,
    "vae": _autoencoder,
}

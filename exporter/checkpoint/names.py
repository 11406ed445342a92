"""What other layouts call the tensors that diffusers has under names of its own.

A table lists every name that a file of a certain depth can have. What is in a file and not in its
table is a tensor that nothing here reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from exporter.errors import InputError

MOST_LAYERS = 1024
LEAVES = ("weight", "bias")
# Of Stability's transformer (MMDiT), what lies outside its blocks.
MMDIT = {
    "x_embedder.proj": ("pos_embed.proj",),
    "t_embedder.mlp.0": ("time_text_embed.timestep_embedder.linear_1",),
    "t_embedder.mlp.2": ("time_text_embed.timestep_embedder.linear_2",),
    "y_embedder.mlp.0": ("time_text_embed.text_embedder.linear_1",),
    "y_embedder.mlp.2": ("time_text_embed.text_embedder.linear_2",),
    "context_embedder": ("context_embedder",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
# In each block; q, k and v are one matrix.
MMDIT_BLOCK = {
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block.attn.ln_q": ("attn.norm_q",),
    "x_block.attn.ln_k": ("attn.norm_k",),
    "x_block.attn.proj": ("attn.to_out.0",),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "x_block.attn2.ln_q": ("attn2.norm_q",),
    "x_block.attn2.ln_k": ("attn2.norm_k",),
    "x_block.attn2.proj": ("attn2.to_out.0",),
    "x_block.adaLN_modulation.1": ("norm1.linear",),
    "x_block.mlp.fc1": ("ff.net.0.proj",),
    "x_block.mlp.fc2": ("ff.net.2",),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "context_block.attn.ln_q": ("attn.norm_added_q",),
    "context_block.attn.ln_k": ("attn.norm_added_k",),
    "context_block.attn.proj": ("attn.to_add_out",),
    "context_block.adaLN_modulation.1": ("norm1_context.linear",),
    "context_block.mlp.fc1": ("ff_context.net.0.proj",),
    "context_block.mlp.fc2": ("ff_context.net.2",),
}
# Of the first latent diffusion's autoencoder, in a block of either direction.
RESNET = {
    "norm1": "norm1",
    "conv1": "conv1",
    "norm2": "norm2",
    "conv2": "conv2",
    "nin_shortcut": "conv_shortcut",
}
MIDDLE_ATTENTION = {
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
}
# Of llama.cpp's T5, in each block.
GGUF_T5_BLOCK = {
    "attn_q": "0.SelfAttention.q",
    "attn_k": "0.SelfAttention.k",
    "attn_v": "0.SelfAttention.v",
    "attn_o": "0.SelfAttention.o",
    "attn_rel_b": "0.SelfAttention.relative_attention_bias",
    "attn_norm": "0.layer_norm",
    "ffn_gate": "1.DenseReluDense.wi_0",
    "ffn_up": "1.DenseReluDense.wi_1",
    "ffn_down": "1.DenseReluDense.wo",
    "ffn_norm": "1.layer_norm",
}


@dataclass(frozen=True)
class Names:
    """How a layout calls the tensors of a component.

    Attributes:
        table: of each name in the file, the tensors of diffusers that its rows are, in order.
        exchanged: names whose halves are in the other order: a shift and a scale.
        matrices: names of 1 x 1 convolutions that diffusers has as matrices.
    """

    table: Mapping[str, tuple[str, ...]]
    exchanged: frozenset[str] = frozenset()
    matrices: frozenset[str] = frozenset()

    def in_file(self) -> dict[str, str]:
        """Of each tensor of diffusers, its name in the file."""
        return {name: key for key, names in self.table.items() for name in names}


def mmdit_names(keys: Iterable[str]) -> Names:
    """Of Stability's transformer; raises InputError for a depth that none has."""
    layers = count(keys, r"joint_blocks\.(\d+)\.")
    stems: dict[str, tuple[str, ...]] = dict(MMDIT)
    for i in range(layers):
        for stem, names in MMDIT_BLOCK.items():
            stems[f"joint_blocks.{i}.{stem}"] = tuple(f"transformer_blocks.{i}.{n}" for n in names)
    last = f"joint_blocks.{layers - 1}.context_block.adaLN_modulation.1"
    return Names(
        {"pos_embed": ("pos_embed.pos_embed",)} | _with_leaves(stems),
        exchanged=frozenset(
            f"{stem}.{leaf}" for stem in (last, "final_layer.adaLN_modulation.1") for leaf in LEAVES
        ),
    )


def autoencoder_names(keys: Iterable[str]) -> Names:
    """Of an autoencoder as latent diffusion names it; raises InputError for odd depths."""
    keys = tuple(keys)
    stems = {name: name for name in ("quant_conv", "post_quant_conv")}
    matrices = []
    for side, way, ways, resize in (
        ("encoder", "down", "down_blocks", "downsample"),
        ("decoder", "up", "up_blocks", "upsample"),
    ):
        for name, its in (("conv_in",) * 2, ("conv_out",) * 2, ("norm_out", "conv_norm_out")):
            stems[f"{side}.{name}"] = f"{side}.{its}"
        for name, its in RESNET.items():
            stems[f"{side}.mid.block_1.{name}"] = f"{side}.mid_block.resnets.0.{its}"
            stems[f"{side}.mid.block_2.{name}"] = f"{side}.mid_block.resnets.1.{its}"
        for name, its in MIDDLE_ATTENTION.items():
            stems[f"{side}.mid.attn_1.{name}"] = f"{side}.mid_block.attentions.0.{its}"
        matrices += [f"{side}.mid.attn_1.{name}.weight" for name in ("q", "k", "v", "proj_out")]
        levels = count(keys, rf"{side}\.{way}\.(\d+)\.")
        layers = count(keys, rf"{side}\.{way}\.\d+\.block\.(\d+)\.")
        for i in range(levels):
            level = f"{side}.{ways}.{i if way == 'down' else levels - 1 - i}"
            stems[f"{side}.{way}.{i}.{resize}.conv"] = f"{level}.{resize}rs.0.conv"
            for j in range(layers):
                for name, its in RESNET.items():
                    stems[f"{side}.{way}.{i}.block.{j}.{name}"] = f"{level}.resnets.{j}.{its}"
    table = _with_leaves({stem: (name,) for stem, name in stems.items()})
    return Names(table, matrices=frozenset(matrices))


def gguf_t5_names(keys: Iterable[str]) -> Names:
    """Of T5 as llama.cpp names it; raises InputError for a depth that none has."""
    keys = tuple(keys)
    table = {
        "token_embd.weight": ("shared.weight",),
        "enc.output_norm.weight": ("encoder.final_layer_norm.weight",),
        "output.weight": ("lm_head.weight",),
    }
    for i in range(count(keys, r"enc\.blk\.(\d+)\.")):
        for name, its in GGUF_T5_BLOCK.items():
            table[f"enc.blk.{i}.{name}.weight"] = (f"encoder.block.{i}.layer.{its}.weight",)
    # A whole T5's decoder is the same to nobody: harmless under the name that says so.
    table |= {key: (f"decoder.{key}",) for key in keys if key.startswith("dec.")}
    return Names(table)


def flat_clip_names(keys: Iterable[str]) -> Names:
    """Of a CLIP that was saved without its projection by transformers 5.6 and later."""
    inner = ("embeddings.", "encoder.", "final_layer_norm.")
    return Names({k: (f"text_model.{k}" if k.startswith(inner) else k,) for k in keys})


def count(keys: Iterable[str], pattern: str) -> int:
    """One more than the highest number that a pattern finds; raises InputError for nonsense."""
    numbers = [int(found[1][:9]) for key in keys if (found := re.match(pattern, key))]
    if max(numbers, default=0) >= MOST_LAYERS:
        raise InputError(f"holds block {max(numbers)}; at most {MOST_LAYERS} are read")
    return max(numbers, default=-1) + 1


def _with_leaves(stems: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    return {
        f"{stem}.{leaf}": tuple(f"{name}.{leaf}" for name in names)
        for stem, names in stems.items()
        for leaf in LEAVES
    }

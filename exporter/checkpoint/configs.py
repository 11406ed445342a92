"""What the graphs are cut by: the keys of ``config.json`` that decide, and what they are without.

Files of old and new versions of diffusers and transformers, and what is inferred from a file that
has no configuration, come out the same here when they describe the same network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

REQUIRED = object()  # a key that must be there

# Of each class, its keys; the values are what the libraries take where the file says nothing.
KEYS: Mapping[str, Mapping[str, Any]] = {
    "SD3Transformer2DModel": {
        "num_layers": REQUIRED,
        "num_attention_heads": REQUIRED,
        "attention_head_dim": REQUIRED,
        "in_channels": REQUIRED,
        "out_channels": None,
        "patch_size": REQUIRED,
        "joint_attention_dim": REQUIRED,
        "pooled_projection_dim": REQUIRED,
        "caption_projection_dim": REQUIRED,
        "pos_embed_max_size": REQUIRED,
        "sample_size": REQUIRED,
        "dual_attention_layers": [],
        "qk_norm": None,
    },
    "CLIPTextModelWithProjection": {
        "hidden_size": REQUIRED,
        "intermediate_size": REQUIRED,
        "num_hidden_layers": REQUIRED,
        "num_attention_heads": REQUIRED,
        "hidden_act": "quick_gelu",
        "projection_dim": 512,
        "max_position_embeddings": 77,
        "vocab_size": REQUIRED,
        "eos_token_id": 49407,
        "layer_norm_eps": 1e-5,
    },
    "T5EncoderModel": {
        "d_model": REQUIRED,
        "d_ff": REQUIRED,
        "d_kv": REQUIRED,
        "num_heads": REQUIRED,
        "num_layers": REQUIRED,
        "vocab_size": REQUIRED,
        "feed_forward_proj": "relu",
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6,
    },
    "AutoencoderKL": {
        "block_out_channels": REQUIRED,
        "latent_channels": REQUIRED,
        "layers_per_block": 1,
        "norm_num_groups": 32,
        "scaling_factor": REQUIRED,
        "shift_factor": 0.0,
        "mid_block_add_attention": True,
        "act_fn": "silu",
        "in_channels": 3,
        "out_channels": 3,
        "use_quant_conv": True,
        "use_post_quant_conv": True,
    },
}


# What a configuration of a whole CLIP says of its text encoder, where it leaves a key out: it lists
# only what differs from these (transformers).
NESTED = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
}
# Names that transformers takes for a key as well.
ALIASES = {
    "T5EncoderModel": {
        "hidden_size": "d_model",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
        "head_dim": "d_kv",
    }
}


# Where null says the same as nothing; elsewhere it is no value.
NULLABLE = ("out_channels", "dual_attention_layers", "qk_norm", "shift_factor")


def decisive(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a class that decide; one that is missing is what the library takes then.

    A key that must be there and is not, is not there.
    """
    config = _flat(name, config)
    found = {}
    for key, default in KEYS[name].items():
        value = config.get(key, default)
        if value is None and key in NULLABLE:
            value = default
        if value is not REQUIRED:
            found[key] = value
    if name == "SD3Transformer2DModel" and found["out_channels"] is None:
        found["out_channels"] = found.get("in_channels")
    return found


def _flat(name: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A configuration in the one form: not nested, under its keys' first names.

    Keys that diffusers marks as its own defaults count as missing, as they do there.
    """
    nested = config.get("text_config")
    if name == "CLIPTextModelWithProjection" and isinstance(nested, Mapping):
        # A whole CLIP projects to the width that stands outside; the one inside may be a default.
        outside = {key: config[key] for key in ("projection_dim",) if key in config}
        config = {**NESTED, **nested, **outside}
    defaults = config.get("_use_default_values")
    left_out = defaults if isinstance(defaults, list) else []
    flat = {key: value for key, value in config.items() if key not in left_out}
    for alias, key in ALIASES.get(name, {}).items():
        if alias in flat:
            flat.setdefault(key, flat[alias])
    end = flat.get("eos_token_id")
    if isinstance(end, list) and len(end) == 1:
        flat["eos_token_id"] = end[0]
    return flat

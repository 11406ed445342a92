"""Beside the graphs of the diffusers layout: configurations and tokenizers. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from exporter.files.read import parse_json
from exporter.layouts.contract import ClientFacts
from exporter.layouts.schedule import ClientSchedule
from exporter.package.manifest import Tokenizer

# Of each text encoder, the folder of its tokenizer.
TOKENIZERS = {"clip_l": "tokenizer", "clip_g": "tokenizer_2", "t5": "tokenizer_3"}
WRITTEN_FOR = "0.39.0"  # the version of diffusers that configurations say they are of
COMPONENTS = (
    ("scheduler", ("diffusers", "FlowMatchEulerDiscreteScheduler")),
    ("text_encoder", ("transformers", "CLIPTextModelWithProjection")),
    ("text_encoder_2", ("transformers", "CLIPTextModelWithProjection")),
    ("text_encoder_3", ("transformers", "T5EncoderModel")),
    ("tokenizer", ("transformers", "CLIPTokenizer")),
    ("tokenizer_2", ("transformers", "CLIPTokenizer")),
    ("tokenizer_3", ("transformers", "T5TokenizerFast")),
    ("transformer", ("diffusers", "SD3Transformer2DModel")),
    ("vae", ("diffusers", "AutoencoderKL")),
)
Json = Mapping[str, Any]


def configurations(told: ClientFacts) -> dict[str, str]:
    """The text of each JSON file, by its path in the folder."""
    vae = {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": WRITTEN_FOR,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        **told.components["vae"],
        "sample_size": max(told.width_px, told.height_px),
        "force_upcast": False,
        "scaling_factor": 1.0,  # both are in the graphs
        "shift_factor": 0.0,
    }
    files: dict[str, Json] = {
        "model_index.json": _index("t5" in told.tokenizers),
        "scheduler/scheduler_config.json": _scheduler(told.schedule),
        "transformer/config.json": {
            "_class_name": "SD3Transformer2DModel",
            "_diffusers_version": WRITTEN_FOR,
            **told.components["transformer"],
            "sample_size": max(told.width_px, told.height_px) // 8,
        },
        "vae_decoder/config.json": vae,
    }
    if told.has_encoder:
        files["vae_encoder/config.json"] = vae
    for name in ("text_encoder", "text_encoder_2"):
        files[f"{name}/config.json"] = {
            "architectures": ["CLIPTextModelWithProjection"],
            "model_type": "clip_text_model",
            **told.components[name],
            "num_hidden_layers": 1,  # of the states that the graph gives, none but the last count
        }
    if "t5" in told.tokenizers:
        own = told.components["text_encoder_3"]
        files["text_encoder_3/config.json"] = {
            "architectures": ["T5EncoderModel"],
            "model_type": "t5",
            "is_encoder_decoder": False,
            "num_decoder_layers": own["num_layers"],
            **own,
        }
    return {path: _text(value) for path, value in files.items()}


def _index(has_t5: bool) -> Json:
    absent = () if has_t5 else ("text_encoder_3", "tokenizer_3")
    found: dict[str, Any] = {
        "_class_name": "StableDiffusion3Pipeline",
        "_diffusers_version": WRITTEN_FOR,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
    }
    for name, kinds in COMPONENTS:
        found[name] = [None, None] if name in absent else list(kinds)
    return found


def _scheduler(schedule: ClientSchedule) -> Json:
    return {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "_diffusers_version": WRITTEN_FOR,
        "num_train_timesteps": schedule.train_timesteps,
        "shift": schedule.shift,
        "use_dynamic_shifting": False,
        "base_shift": 0.5,
        "max_shift": 1.15,
        "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
        "invert_sigmas": False,
        "shift_terminal": None,
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "time_shift_type": "exponential",
        "stochastic_sampling": False,
    }


def tokenizer_files(encoder: str, text: str, entry: Tokenizer) -> dict[str, str]:
    """The text of each file of a tokenizer, by its name, for transformers 4.57 and 5.

    Args:
        text: of a ``tokenizer.json``.
    """
    parsed = parse_json(text, "a tokenizer.json")
    special = {token["id"]: token["content"] for token in parsed["added_tokens"]}
    if encoder == "t5":
        ids = {content: number for number, content in special.items()}
        named = {
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "pad_token": special.get(entry.pad_id, "<pad>"),
        }
        settings = {
            "tokenizer_class": "T5TokenizerFast",
            "extra_ids": sum(content.startswith("<extra_id_") for content in ids),
            "model_max_length": 512,
            **named,
        }
        return {"tokenizer.json": text, "tokenizer_config.json": _text(settings)}
    vocabulary = parsed["model"]["vocab"]
    pairs = [m if isinstance(m, str) else " ".join(m) for m in parsed["model"]["merges"]]
    words = {number: token for token, number in vocabulary.items()}
    named = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": special.get(entry.pad_id, words.get(entry.pad_id, "!")),
    }
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": entry.tokens, **named}
    return {
        "vocab.json": json.dumps(vocabulary, ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *pairs, ""]),
        "tokenizer_config.json": _text(settings),
        "special_tokens_map.json": _text(named),
    }


def _text(value: Json) -> str:
    return json.dumps(value, indent=1) + "\n"

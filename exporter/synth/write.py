"""Synth: a full-size checkpoint of random weights, to measure memory, disk and speed with.

The weights of Stable Diffusion 3.5 Flash are not public. A folder from here has its tensor names,
shapes, configurations and tokenizer sizes, so everything but the picture costs what it costs with
the real ones. Shapes come from the graphs themselves, on the meta device. Values are bfloat16 and
follow from (seed, component, tensor name) alone: same bytes on any machine.

How values are drawn (see ``draw_of``), so that activations stay in a sane range through all layers:

- a weight is normal with deviation gain / sqrt(inputs). The gain is 1, but 1 / sqrt(2 layers) where
  a text encoder's layer adds to its residual stream; 1 / sqrt(head width) for T5's queries, whose
  logits are not scaled; 0.75 for adaLN, which makes gates and scales of about 0.3 (the MMDiT needs
  no smaller output weights: its gates do that); 0.8 for the VAE's last convolution;
- norms are 1 +- 0.05, biases +- 0.02; embeddings have the deviations that CLIP and T5 start from;
- channels stand out as in trained networks: 1 in 500 input channels (harder for weight groups) and
  1 in 500 output channels (harder for activations) of a weight are 5 times larger;
- the position table is the true one: 2D sines and cosines over a base of 64 patches.

A normal value is one of 65,536 equally likely quantiles, looked up by 16 random bits: exact integer
work, several hundred million values a second, and no value beyond 4.3 deviations.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.checkpoint.component import COMPONENTS
from exporter.checkpoint.tokenizers import CLIP_END
from exporter.errors import InputError
from exporter.files.lock import alone
from exporter.files.staging import refuse_place, staging
from exporter.network import clip, conditioner, denoiser, t5, vae
from exporter.network.cut import Cut
from exporter.network.graph import Graph
from exporter.progress import Progress
from exporter.synth.presets import SAMPLE_SIZE, Preset
from exporter.synth.tokenizers import write_clip_tokenizer, write_json, write_t5_tokenizer
from exporter.synth.values import TensorPlan, blocks

SHARD_BYTES = 2_000_000_000
OTHER_BYTES = 8_000_000  # tokenizers, configurations, headers and a little air
REMEDY = "name another folder"  # what to do about a place that cannot be written
STEMS = {"transformer": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}

LICENCE = """\
The weights in this folder are random numbers and its tokenizers are lists of letters, all made by
"fourstep synth". They were not trained and derive from nobody's work. No right in them is claimed:
they are in the public domain (CC0 1.0, https://creativecommons.org/publicdomain/zero/1.0/).
"""


@dataclass(frozen=True)
class ComponentPlan:
    """A folder of the checkpoint: its ``config.json`` and its tensors, in order."""

    component: str
    config: Mapping[str, Any]
    tensors: tuple[TensorPlan, ...]


@dataclass(frozen=True)
class Synthesized:
    """A finished checkpoint: its folder, how many values its tensors hold, bytes of all files."""

    path: Path
    parameters: int
    bytes: int


def plan(preset: Preset, with_t5: bool = True) -> tuple[ComponentPlan, ...]:
    """Every tensor of a checkpoint, from the graphs on the meta device: no weights in memory."""
    cut = Cut((1.0, 0.0), 64, 64, t5=True, t5_tokens=1)
    parts = [
        ComponentPlan(
            "transformer",
            _transformer_config(preset.transformer),
            _tensors(
                denoiser.cut(preset.transformer, cut),
                conditioner.cut(preset.transformer, preset.clip_l, preset.clip_g, cut),
            ),
        ),
        ComponentPlan(
            "text_encoder",
            _clip_config(preset.clip_l),
            _tensors(clip.cut("clip_l", "text_encoder", preset.clip_l)),
        ),
        ComponentPlan(
            "text_encoder_2",
            _clip_config(preset.clip_g),
            _tensors(clip.cut("clip_g", "text_encoder_2", preset.clip_g)),
        ),
        ComponentPlan("text_encoder_3", _t5_config(preset.t5), _tensors(t5.cut(preset.t5, 1))),
        ComponentPlan(
            "vae",
            _vae_config(preset.vae),
            _tensors(vae.cut_decoder(preset.vae, cut), vae.cut_encoder(preset.vae, cut)),
        ),
    ]
    return tuple(p for p in parts if with_t5 or p.component != "text_encoder_3")


def synthesize(
    preset: Preset,
    target: Path,
    with_t5: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> Synthesized:
    """Write a random checkpoint in diffusers layout to ``target``, whole or not at all.

    One block of half a megabyte is in memory at a time. Raises InputError when the folder is taken
    or cannot be written, or when the disk is too small: the last before anything is written.
    """
    progress = progress or Progress()
    target = target.resolve()
    parts = plan(preset, with_t5)
    _refuse_taken(target)
    needed_bytes = sum(t.bytes for p in parts for t in p.tensors) + OTHER_BYTES
    refuse_place(target.parent, needed_bytes, REMEDY)
    progress.expect(sum(len(_shards(p.tensors)) for p in parts) + 1)
    with alone(target, progress, REMEDY), staging(target, REMEDY) as folder:
        _refuse_taken(target)  # another may have written it in the meantime
        for part in parts:
            _write_part(folder / part.component, part, preset, seed, progress)
        _write_beside(folder, preset, with_t5)
        progress("tokenizers")
    files = [f for f in target.rglob("*") if f.is_file()]
    values = sum(t.values for p in parts for t in p.tensors)
    return Synthesized(target, values, sum(f.stat().st_size for f in files))


def _refuse_taken(target: Path) -> None:
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise InputError(f"{target}: exists and is not an empty folder; name another one")
    if target.is_mount():
        raise InputError(f"{target}: is where a disk is mounted; name a folder in it")


# Tensors: which, and with what values.


def _tensors(*graphs: Graph) -> tuple[TensorPlan, ...]:
    """The parameters of graphs as the checkpoint stores them."""
    found = []
    for graph in graphs:
        for name, parameter in graph.module.named_parameters():
            shape = tuple(parameter.shape)
            if name in graph.derived:
                shape = graph.derived[name].stored_shape(shape)
            found.append(TensorPlan(graph.component, name, shape))
    return tuple(found)


# Files.


def _shards(tensors: Sequence[TensorPlan]) -> list[list[TensorPlan]]:
    """Tensors in order, in runs of at most SHARD_BYTES (or one tensor that is larger)."""
    shards: list[list[TensorPlan]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.bytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.bytes
    return shards


def _write_part(
    folder: Path, part: ComponentPlan, preset: Preset, seed: int, progress: Progress
) -> None:
    """A component: ``config.json``, one safetensors file or shards with their index."""
    folder.mkdir()
    write_json(folder / "config.json", part.config)
    stem, shards = STEMS.get(part.component, "model"), _shards(part.tensors)
    places: dict[str, str] = {}
    for i, tensors in enumerate(shards, 1):
        one_of = f"-{i:05}-of-{len(shards):05}" if len(shards) > 1 else ""
        file = folder / f"{stem}{one_of}.safetensors"
        _write_tensors(file, tensors, preset, seed)
        places |= {t.name: file.name for t in tensors}
        progress(f"{part.component}/{file.name}  {file.stat().st_size / 1e6:,.1f} MB")
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(t.bytes for t in part.tensors)}}
        write_json(folder / f"{stem}.safetensors.index.json", {**index, "weight_map": places})


def _write_tensors(file: Path, tensors: Sequence[TensorPlan], preset: Preset, seed: int) -> None:
    """A safetensors file: length and JSON of the header, then every tensor's bytes in order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        place = [end, end := end + tensor.bytes]
        header[tensor.name] = {"dtype": "BF16", "shape": tensor.shape, "data_offsets": place}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            for block in blocks(tensor, preset, seed):
                stream.write(block.tobytes())


def _write_beside(folder: Path, preset: Preset, with_t5: bool) -> None:
    """Everything that is not a component: index, scheduler, tokenizers, licence."""
    index: dict[str, Any] = {
        "_class_name": "StableDiffusion3Pipeline",
        "_diffusers_version": "0.42.1",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "tokenizer_3": ["transformers", "T5TokenizerFast"] if with_t5 else [None, None],
    }
    for name, kind in COMPONENTS.items():
        index[name] = ["diffusers" if name in STEMS else "transformers", kind]
    if not with_t5:
        index["text_encoder_3"] = [None, None]
    write_json(folder / "model_index.json", dict(sorted(index.items())))
    (folder / "scheduler").mkdir()
    scheduler = {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "_diffusers_version": "0.42.1",
        "num_train_timesteps": 1000,
        "shift": 3.0,
    }
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    for name, pad in (("tokenizer", CLIP_END), ("tokenizer_2", "!")):
        write_clip_tokenizer(folder / name, pad)
    if with_t5:
        write_t5_tokenizer(folder / "tokenizer_3")
    (folder / "LICENSE").write_text(LICENCE, encoding="utf-8", newline="\n")


# Configurations.


def _transformer_config(config: denoiser.TransformerConfig) -> dict[str, Any]:
    return {
        "_class_name": COMPONENTS["transformer"],
        "_diffusers_version": "0.42.1",
        "attention_head_dim": config.head_width,
        "caption_projection_dim": config.width,
        "dual_attention_layers": list(config.dual_layers),
        "in_channels": config.channels,
        "joint_attention_dim": config.context_width,
        "num_attention_heads": config.heads,
        "num_layers": config.layers,
        "out_channels": config.channels,
        "patch_size": config.patch,
        "pooled_projection_dim": config.pooled_width,
        "pos_embed_max_size": config.table_side,
        "qk_norm": "rms_norm" if config.qk_norm else None,
        "sample_size": SAMPLE_SIZE,
    }


def _clip_config(config: clip.ClipConfig) -> dict[str, Any]:
    return {
        "architectures": [COMPONENTS["text_encoder"]],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "dtype": "bfloat16",
        "eos_token_id": config.eos_id,
        "hidden_act": config.activation,
        "hidden_size": config.hidden,
        "intermediate_size": config.intermediate,
        "layer_norm_eps": config.eps,
        "max_position_embeddings": config.tokens,
        "model_type": "clip_text_model",
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "pad_token_id": 1,
        "projection_dim": config.projection,
        "vocab_size": config.vocabulary,
    }


def _t5_config(config: t5.T5Config) -> dict[str, Any]:
    return {
        "architectures": [COMPONENTS["text_encoder_3"]],
        "d_ff": config.feed_forward,
        "d_kv": config.head_width,
        "d_model": config.width,
        "dense_act_fn": "gelu_new",
        "dtype": "bfloat16",
        "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": False,
        "is_gated_act": True,
        "layer_norm_epsilon": config.eps,
        "model_type": "t5",
        "num_heads": config.heads,
        "num_layers": config.layers,
        "pad_token_id": 0,
        "relative_attention_max_distance": config.max_distance,
        "relative_attention_num_buckets": config.buckets,
        "use_cache": False,
        "vocab_size": config.vocabulary,
    }


def _vae_config(config: vae.VaeConfig) -> dict[str, Any]:
    stages = len(config.channels)
    return {
        "_class_name": COMPONENTS["vae"],
        "_diffusers_version": "0.42.1",
        "act_fn": "silu",
        "block_out_channels": list(config.channels),
        "down_block_types": ["DownEncoderBlock2D"] * stages,
        "force_upcast": True,
        "in_channels": 3,
        "latent_channels": config.latent_channels,
        "layers_per_block": config.layers,
        "mid_block_add_attention": config.mid_attention,
        "norm_num_groups": config.groups,
        "out_channels": 3,
        "sample_size": 8 * SAMPLE_SIZE,
        "scaling_factor": config.scaling,
        "shift_factor": config.shift,
        "up_block_types": ["UpDecoderBlock2D"] * stages,
        "use_post_quant_conv": False,
        "use_quant_conv": False,
    }

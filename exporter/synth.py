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

import functools
import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from tokenizers import AddedToken, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Tokens

from exporter.checkpoint import COMPONENTS
from exporter.cut import Cut
from exporter.errors import InputError, known
from exporter.graphs import Graph, clip, conditioner, denoiser, t5, vae
from exporter.progress import Progress
from exporter.staging import refuse_place, staging
from exporter.tokenizers import CLIP_END, CLIP_START

SHARD_BYTES = 2_000_000_000
OTHER_BYTES = 8_000_000  # tokenizers, configurations, headers and a little air
ITEM_BYTES = 2
BLOCK_VALUES = 1 << 18
REMEDY = "name another folder"  # what to do about a place that cannot be written
SAMPLE_SIZE = 128  # latents of 128 x 128: the position table counts 64 patches as its base
OUTLIER_EVERY, OUTLIER_FACTOR = 500, 5.0
STEMS = {"transformer": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
POSITION_TABLE = "pos_embed.pos_embed"

EMBEDDINGS = {
    "*.token_embedding.weight": 0.02,
    "*.position_embedding.weight": 0.01,
    "shared.weight": 1.0,
    "*.relative_attention_bias.weight": 0.5,
}
GAINS = {"*norm*.linear.weight": 0.75, "decoder.conv_out.weight": 0.8}
TEXT_RESIDUALS = ("*.out_proj.weight", "*.fc2.weight", "*.o.weight", "*.wo.weight")

LICENCE = """\
The weights in this folder are random numbers and its tokenizers are lists of letters, all made by
"fourstep synth". They were not trained and derive from nobody's work. No right in them is claimed:
they are in the public domain (CC0 1.0, https://creativecommons.org/publicdomain/zero/1.0/).
"""

CLIP_IDS = 49408
T5_PIECES, T5_EXTRA_PIECES = 32100, 100
LETTERS = "etaoinshrdlcumwfgypbvkjxqz"  # English, most frequent first
PAIRS = tuple(  # of letters, roughly the most frequent first
    (LETTERS[i], LETTERS[j])
    for i, j in sorted(itertools.product(range(26), repeat=2), key=lambda ij: (sum(ij), ij))
)
SPACE = "\u2581"  # in a T5 piece


@dataclass(frozen=True)
class Preset:
    """The shapes of a checkpoint, as the graphs read them from its configurations."""

    transformer: denoiser.TransformerConfig
    clip_l: clip.ClipConfig
    clip_g: clip.ClipConfig
    t5: t5.T5Config
    vae: vae.VaeConfig


# Stable Diffusion 3.5 Medium, of whose architecture Flash is: stabilityai's config.json files.
FLASH = Preset(
    denoiser.TransformerConfig(
        layers=24,
        heads=24,
        head_width=64,
        channels=16,
        patch=2,
        context_width=4096,
        pooled_width=2048,
        table_side=384,
        dual_layers=tuple(range(13)),
        qk_norm=True,
    ),
    clip.ClipConfig(768, 3072, 12, 12, "quick_gelu", 768, 77, CLIP_IDS, 2, 1e-5),
    clip.ClipConfig(1280, 5120, 32, 20, "gelu", 1280, 77, CLIP_IDS, 2, 1e-5),
    t5.T5Config(4096, 10240, 64, 64, 24, 32128, 32, 128, 1e-6),
    vae.VaeConfig((128, 256, 512, 512), 16, 2, 32, 1.5305, 0.0609, True),
)
PRESETS: Mapping[str, Preset] = {
    "sd3.5-flash": FLASH,
    "sd3.5-flash-half": replace(  # what doubling the transformer's depth costs
        FLASH, transformer=replace(FLASH.transformer, layers=12, dual_layers=tuple(range(7)))
    ),
    "sd3.5-flash-mini": Preset(  # the same widths, as few layers as the graphs can have
        replace(FLASH.transformer, layers=2, dual_layers=(0,)),
        replace(FLASH.clip_l, layers=2),
        replace(FLASH.clip_g, layers=2),
        replace(FLASH.t5, layers=1),
        FLASH.vae,
    ),
}


@dataclass(frozen=True)
class Planned:
    """A tensor that will be written."""

    component: str
    name: str
    shape: tuple[int, ...]

    @property
    def values(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return ITEM_BYTES * self.values


@dataclass(frozen=True)
class Part:
    """A folder of the checkpoint: its ``config.json`` and its tensors, in order."""

    component: str
    config: Mapping[str, Any]
    tensors: tuple[Planned, ...]


@dataclass(frozen=True)
class Synthesized:
    """A finished checkpoint: its folder, how many values its tensors hold, bytes of all files."""

    path: Path
    parameters: int
    bytes: int


def find_preset(name: str) -> Preset:
    """A preset by its name; raises InputError that lists the known ones."""
    if name not in PRESETS:
        raise InputError(known("preset", name, PRESETS))
    return PRESETS[name]


def plan(preset: Preset, with_t5: bool = True) -> tuple[Part, ...]:
    """Every tensor of a checkpoint, from the graphs on the meta device: no weights in memory."""
    cut = Cut((1.0, 0.0), 64, 64, t5=True, t5_tokens=1)
    parts = [
        Part(
            "transformer",
            _transformer_config(preset.transformer),
            _tensors(
                denoiser.cut(preset.transformer, cut),
                conditioner.cut(preset.transformer, preset.clip_l, preset.clip_g, cut),
            ),
        ),
        Part(
            "text_encoder",
            _clip_config(preset.clip_l),
            _tensors(clip.cut("clip_l", "text_encoder", preset.clip_l)),
        ),
        Part(
            "text_encoder_2",
            _clip_config(preset.clip_g),
            _tensors(clip.cut("clip_g", "text_encoder_2", preset.clip_g)),
        ),
        Part("text_encoder_3", _t5_config(preset.t5), _tensors(t5.cut(preset.t5, 1))),
        Part(
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
    with staging(target, REMEDY) as folder:
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


def _tensors(*graphs: Graph) -> tuple[Planned, ...]:
    """The parameters of graphs as the checkpoint stores them."""
    found = []
    for graph in graphs:
        for name, parameter in graph.module.named_parameters():
            shape = tuple(parameter.shape)
            if name in graph.derived:
                shape = graph.derived[name].stored_shape(shape)
            found.append(Planned(graph.component, name, shape))
    return tuple(found)


@dataclass(frozen=True)
class Draw:
    """How a tensor is drawn: normal, with output and input channels that stand out or without."""

    mean: float
    deviation: float
    loud_outputs: bool = False
    loud_inputs: bool = False


def draw_of(tensor: Planned, preset: Preset) -> Draw:
    """The distribution of a tensor, by its name and shape."""
    if len(tensor.shape) == 1:
        return Draw(1.0, 0.05) if tensor.name.endswith(".weight") else Draw(0.0, 0.02)
    for pattern, deviation in EMBEDDINGS.items():
        if fnmatchcase(tensor.name, pattern):
            return Draw(0.0, deviation, loud_inputs=True)
    gain = _gain(tensor, preset) / math.sqrt(math.prod(tensor.shape[1:]))
    return Draw(0.0, gain, loud_outputs=True, loud_inputs=True)


def _gain(tensor: Planned, preset: Preset) -> float:
    text = {
        "text_encoder": preset.clip_l.layers,
        "text_encoder_2": preset.clip_g.layers,
        "text_encoder_3": preset.t5.layers,
    }
    if tensor.component in text and any(fnmatchcase(tensor.name, p) for p in TEXT_RESIDUALS):
        return 1 / math.sqrt(2 * text[tensor.component])
    if fnmatchcase(tensor.name, "*.SelfAttention.q.weight"):
        return 1 / math.sqrt(preset.t5.head_width)
    gains = (g for pattern, g in GAINS.items() if fnmatchcase(tensor.name, pattern))
    return next(gains, 1.0)


def blocks(tensor: Planned, preset: Preset, seed: int) -> Iterator[np.ndarray]:
    """The values of a tensor in order, as little-endian bfloat16 bits (uint16), block by block."""
    if tensor.name == POSITION_TABLE:
        yield from _position_rows(preset.transformer)
        return
    label = f"{seed}/{tensor.component}/{tensor.name}"
    key = int.from_bytes(hashlib.sha256(label.encode()).digest()[:16], "little")
    draw, source = draw_of(tensor, preset), np.random.PCG64(key)
    outputs, inputs = (*tensor.shape, 1)[:2]
    rest = math.prod(tensor.shape[2:])
    usual = _quantiles(draw.mean, draw.deviation)
    loud = _quantiles(draw.mean, OUTLIER_FACTOR * draw.deviation)
    loud_outputs = _channels(source, outputs if draw.loud_outputs else 0)
    loud_inputs = _channels(source, inputs if draw.loud_inputs else 0)
    step = max(1, BLOCK_VALUES // (inputs * rest))
    for start in range(0, outputs, step):
        shape = (min(step, outputs - start), inputs, rest)
        raw = source.random_raw(-(-math.prod(shape) // 4))
        codes = raw.astype("<u8", copy=False).view("<u2")[: math.prod(shape)].reshape(shape)
        block = np.take(usual, codes)
        block[:, loud_inputs] = np.take(loud, codes[:, loud_inputs])
        rows = loud_outputs[(loud_outputs >= start) & (loud_outputs < start + step)] - start
        block[rows] = np.take(loud, codes[rows])
        yield block


def _channels(source: np.random.PCG64, count: int) -> np.ndarray:
    """Indices of the channels that stand out among ``count``: about one in OUTLIER_EVERY."""
    picks = [int(r) % count for r in source.random_raw(round(count / OUTLIER_EVERY))]
    return np.unique(np.array(picks, dtype=np.int64))


@functools.cache
def _standard_quantiles() -> np.ndarray:
    """The 65,536 quantiles (i + 1/2) / 65,536 of the normal distribution, in float64."""
    half = [NormalDist().inv_cdf((i + 0.5) / 65536) for i in range(32768)]
    return np.array(half + [-z for z in reversed(half)])


@functools.lru_cache(maxsize=32)
def _quantiles(mean: float, deviation: float) -> np.ndarray:
    return bfloat16_bits(mean + deviation * _standard_quantiles())


def bfloat16_bits(values: np.ndarray) -> np.ndarray:
    """Finite values as bfloat16, rounded half to even, as little-endian uint16 bits."""
    bits = values.astype("<f4").view("<u4")
    rounded: np.ndarray = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    return rounded


def _position_rows(config: denoiser.TransformerConfig) -> Iterator[np.ndarray]:
    """The position table (side * side, width), a row of patches at a time, as diffusers has it.

    The first half of the channels says the column, the second half the row; each half is sines,
    then cosines, of position * 10000^-(i / n) (diffusers, get_2d_sincos_pos_embed). Positions run
    over the base of a 128 x 128 latent however large the table is.
    """
    side, count = config.table_side, config.width // 4
    positions = [i * (SAMPLE_SIZE // config.patch) / side for i in range(side)]
    frequencies = [10000 ** -(i / count) for i in range(count)]
    angles = [[p * f for f in frequencies] for p in positions]
    waves = [[math.sin(a) for a in row] + [math.cos(a) for a in row] for row in angles]
    table = bfloat16_bits(np.array(waves))
    for row in table:
        yield np.concatenate([table, np.broadcast_to(row, table.shape)], 1)


# Files.


def _shards(tensors: Sequence[Planned]) -> list[list[Planned]]:
    """Tensors in order, in runs of at most SHARD_BYTES (or one tensor that is larger)."""
    shards: list[list[Planned]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.bytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.bytes
    return shards


def _write_part(folder: Path, part: Part, preset: Preset, seed: int, progress: Progress) -> None:
    """A component: ``config.json``, one safetensors file or shards with their index."""
    folder.mkdir()
    _write_json(folder / "config.json", part.config)
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
        _write_json(folder / f"{stem}.safetensors.index.json", {**index, "weight_map": places})


def _write_tensors(file: Path, tensors: Sequence[Planned], preset: Preset, seed: int) -> None:
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
    _write_json(folder / "model_index.json", dict(sorted(index.items())))
    (folder / "scheduler").mkdir()
    scheduler = {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "_diffusers_version": "0.42.1",
        "num_train_timesteps": 1000,
        "shift": 3.0,
    }
    _write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    for name, pad in (("tokenizer", CLIP_END), ("tokenizer_2", "!")):
        _write_clip_tokenizer(folder / name, pad)
    if with_t5:
        _write_t5_tokenizer(folder / "tokenizer_3")
    (folder / "LICENSE").write_text(LICENCE, encoding="utf-8")


def _write_json(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


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


# Tokenizers: of the true sizes, with letters in place of learned words.


def clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Ids of CLIP's 49,408 symbols and its 48,894 merges, first merge first.

    Bytes, bytes that end a word, then merges into two, three and four letters, and the two
    special tokens; "!" has id 0, as in CLIP's own. A word costs about a third of its letters.
    """
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) for b in shown] + [chr(256 + i) for i in range(256 - len(shown))]
    symbols = letters + [letter + "</w>" for letter in letters]
    twos = [a + b for a, b in PAIRS]
    merges = [*PAIRS, *((a, b + "</w>") for a, b in PAIRS)]
    merges += [(two, letter + "</w>") for letter in LETTERS for two in twos]
    # Four letters as two pairs, of the 160 most frequent pairs.
    doubles = itertools.product(twos[:160], repeat=2)
    fours = ((a, b + end) for a, b in doubles for end in ("", "</w>"))
    merges += itertools.islice(fours, CLIP_IDS - 2 - len(symbols) - len(merges))
    symbols += [a + b for a, b in merges] + [CLIP_START, CLIP_END]
    return {symbol: i for i, symbol in enumerate(symbols)}, merges


def _write_clip_tokenizer(folder: Path, pad: str) -> None:
    """``vocab.json`` and ``merges.txt``, the files that Stable Diffusion 3.5 has."""
    folder.mkdir()
    vocabulary, merges = clip_vocabulary()
    _write_json(folder / "vocab.json", vocabulary)
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = {
        "bos_token": CLIP_START,
        "eos_token": CLIP_END,
        "model_max_length": 77,
        "pad_token": pad,
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": CLIP_END,
    }
    _write_json(folder / "tokenizer_config.json", config)


def t5_pieces() -> list[tuple[str, float]]:
    """T5's 32,100 pieces and their log probabilities; the longer a piece, the better it pays.

    Three special tokens, single characters, one to three letters within and at the start of a
    word, and at the end the 100 that T5 was pretrained with and no prompt uses.
    """
    specials = ["<pad>", "</s>", "<unk>"]
    letters = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256))]
    pieces = [SPACE, *letters, *(SPACE + letter for letter in LETTERS)]
    twos = [a + b for a, b in PAIRS]
    threes = [two + letter for letter in LETTERS for two in twos]
    pieces += [start + two for start in ("", SPACE) for two in twos]
    pieces += [start + three for three in threes for start in ("", SPACE)]
    count = T5_PIECES - len(specials) - T5_EXTRA_PIECES
    scored = [(piece, -8.0 - 4.0 * i / count) for i, piece in enumerate(pieces[:count])]
    extras = [(f"<extra_id_{i}>", 0.0) for i in reversed(range(T5_EXTRA_PIECES))]
    return [(special, 0.0) for special in specials] + scored + extras


def _write_t5_tokenizer(folder: Path) -> None:
    folder.mkdir()
    pieces = t5_pieces()
    tokens = Tokens(models.Unigram(pieces, unk_id=2))
    extras = [piece for piece, _ in pieces[-T5_EXTRA_PIECES:]]
    specials = ["<pad>", "</s>", "<unk>", *extras]
    tokens.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in specials])
    tokens.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(SPACE, "always")]
    )
    tokens.post_processor = processors.TemplateProcessing("$A </s>", None, [("</s>", 1)])
    (folder / "tokenizer.json").write_text(tokens.to_str() + "\n", encoding="utf-8")
    config = {
        "eos_token": "</s>",
        "extra_ids": T5_EXTRA_PIECES,
        "model_max_length": 512,
        "pad_token": "<pad>",
        "tokenizer_class": "T5Tokenizer",
        "unk_token": "<unk>",
    }
    _write_json(folder / "tokenizer_config.json", config)

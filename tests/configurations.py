"""Tiny checkpoints over everything that their configurations may say, for hypothesis to draw from.

Weights are random with gains at which every part of the network has its say in the picture: linear
layers and convolutions keep the size of what they get, norms are near 1, biases small.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn

from exporter.network.cut import Cut
from exporter.package.manifest import Guidance, Mode
from tests.conftest import SHAPES

CLIP_IDS, START, END = 700, 656, 657  # a vocabulary of so many, and ids of shapes-flash's tokenizer
PIXELS = 8  # of a latent's value, in each direction


@dataclass(frozen=True)
class Clip:
    """A CLIP text encoder's ``config.json``. ``eos`` 2 means the highest id, others themselves."""

    heads: int
    head_width: int
    intermediate: int
    layers: int
    activation: str
    projection: int
    eos: int

    @property
    def width(self) -> int:
        return self.heads * self.head_width

    def module(self) -> nn.Module:
        from transformers import CLIPTextConfig, CLIPTextModelWithProjection

        config = CLIPTextConfig(
            vocab_size=CLIP_IDS,
            hidden_size=self.width,
            intermediate_size=self.intermediate,
            projection_dim=self.projection,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            hidden_act=self.activation,
            eos_token_id=self.eos,
        )
        made: nn.Module = CLIPTextModelWithProjection(config)
        return made


@dataclass(frozen=True)
class T5:
    """A T5 encoder's ``config.json``; as wide as the transformer's context."""

    feed_forward: int
    heads: int
    head_width: int
    layers: int
    buckets: int
    max_distance: int

    def module(self, width: int) -> nn.Module:
        from transformers import T5Config, T5EncoderModel

        config = T5Config(
            vocab_size=1000,
            d_model=width,
            d_ff=self.feed_forward,
            d_kv=self.head_width,
            num_heads=self.heads,
            num_layers=self.layers,
            relative_attention_num_buckets=self.buckets,
            relative_attention_max_distance=self.max_distance,
            feed_forward_proj="gated-gelu",
        )
        made: nn.Module = T5EncoderModel(config)
        return made


@dataclass(frozen=True)
class Transformer:
    """The transformer's ``config.json``, but for what other parts decide."""

    layers: int
    heads: int
    head_width: int
    patch: int
    dual: tuple[int, ...]
    qk_norm: str | None
    spare: int  # rows of the positional table beyond what the picture needs

    @property
    def width(self) -> int:
        return self.heads * self.head_width


@dataclass(frozen=True)
class Vae:
    """The autoencoder's ``config.json``."""

    channels: tuple[int, int, int, int]
    groups: int
    layers: int
    latent_channels: int
    scaling: float
    shift: float
    mid_attention: bool

    def module(self) -> nn.Module:
        from diffusers import AutoencoderKL

        made: nn.Module = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=self.channels,
            latent_channels=self.latent_channels,
            norm_num_groups=self.groups,
            layers_per_block=self.layers,
            use_quant_conv=False,
            use_post_quant_conv=False,
            scaling_factor=self.scaling,
            shift_factor=self.shift,
            mid_block_add_attention=self.mid_attention,
        )
        return made


@dataclass(frozen=True)
class Configuration:
    """A checkpoint and what is drawn with it."""

    clip_l: Clip
    clip_g: Clip
    t5: T5
    transformer: Transformer
    vae: Vae
    unused_context: int  # channels of the context that no CLIP encoder fills
    cut: Cut
    mode: Mode
    seed: int
    guidance: Guidance | None = None

    def modules(self) -> dict[str, nn.Module]:
        """The checkpoint's networks by folder, with random weights."""
        from diffusers import SD3Transformer2DModel

        torch.manual_seed(self.seed)
        shape, context = self.transformer, self.unused_context
        context += self.clip_l.width + self.clip_g.width
        side = max(self.cut.width_px, self.cut.height_px) // (PIXELS * shape.patch) + shape.spare
        found = {
            "text_encoder": self.clip_l.module(),
            "text_encoder_2": self.clip_g.module(),
            "text_encoder_3": self.t5.module(context),
            "transformer": SD3Transformer2DModel(
                sample_size=8,
                patch_size=shape.patch,
                in_channels=self.vae.latent_channels,
                out_channels=self.vae.latent_channels,
                num_layers=shape.layers,
                attention_head_dim=shape.head_width,
                num_attention_heads=shape.heads,
                joint_attention_dim=context,
                caption_projection_dim=shape.width,
                pooled_projection_dim=self.clip_l.projection + self.clip_g.projection,
                pos_embed_max_size=side,
                dual_attention_layers=shape.dual,
                qk_norm=shape.qk_norm,
            ),
            "vae": self.vae.module(),
        }
        for module in found.values():
            for name, parameter in module.named_parameters():
                _fill(name, parameter)
        return {name: module.eval() for name, module in found.items()}

    def write(self, folder: Path) -> dict[str, Any]:
        """Write the checkpoint; returns its networks by folder."""
        found = self.modules()
        for name, module in found.items():
            module.save_pretrained(folder / name)  # type: ignore[operator]
        for name in ("tokenizer", "tokenizer_2", "tokenizer_3"):
            shutil.copytree(SHAPES / name, folder / name)
        shutil.copyfile(SHAPES / "model_index.json", folder / "model_index.json")
        return found


def _fill(name: str, parameter: nn.Parameter) -> None:
    if parameter.ndim == 1:
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        nn.init.normal_(parameter, centre, 0.1)
    elif "embedding" in name or "shared" in name or "relative" in name:
        nn.init.normal_(parameter, 0.0, 1.0)
    else:
        nn.init.normal_(parameter, 0.0, parameter[0].numel() ** -0.5)


def widths(*heads: int) -> st.SearchStrategy[tuple[int, int]]:
    """Heads and their width: with products that groups of 16 to 128 divide, and others."""
    return st.tuples(st.sampled_from(heads), st.sampled_from((16, 8, 20, 12, 32)))


@st.composite
def clips(draw: st.DrawFn) -> Clip:
    heads, head_width = draw(widths(2, 1, 3))
    return Clip(
        heads=heads,
        head_width=head_width,
        intermediate=draw(st.sampled_from((64, 40, 100))),
        layers=draw(st.integers(1, 5)),
        activation=draw(st.sampled_from(("gelu", "quick_gelu"))),
        projection=draw(st.sampled_from((32, 24, 50))),
        eos=draw(st.sampled_from((END, 2, START, CLIP_IDS - 1))),
    )


@st.composite
def t5s(draw: st.DrawFn) -> T5:
    heads, head_width = draw(widths(2, 1, 3))
    return T5(
        feed_forward=draw(st.sampled_from((64, 72, 100))),
        heads=heads,
        head_width=head_width,
        layers=draw(st.integers(1, 3)),
        buckets=draw(st.sampled_from((32, 8))),
        max_distance=draw(st.sampled_from((128, 20))),
    )


@st.composite
def transformers(draw: st.DrawFn) -> Transformer:
    layers = draw(st.integers(1, 5))
    heads, head_width = draw(widths(2, 1, 3, 5))
    some = st.sets(st.integers(0, layers - 1)).map(lambda found: tuple(sorted(found)))
    return Transformer(
        layers=layers,
        heads=heads,
        head_width=head_width,
        patch=draw(st.sampled_from((2, 1))),
        dual=draw(st.one_of(st.sampled_from(((), tuple(range(layers)))), some)),
        qk_norm=draw(st.sampled_from((None, "rms_norm"))),
        spare=draw(st.integers(0, 3)),
    )


@st.composite
def vaes(draw: st.DrawFn) -> Vae:
    groups = draw(st.sampled_from((4, 1, 8)))
    channels = st.sampled_from((16, 8, 24, 40))
    return Vae(
        channels=draw(st.tuples(channels, channels, channels, channels)),
        groups=groups,
        layers=draw(st.integers(1, 2)),
        latent_channels=draw(st.sampled_from((16, 4, 6))),
        scaling=draw(st.sampled_from((1.5305, 0.7, 1.0))),
        shift=draw(st.sampled_from((0.0609, 0.0, -0.2))),
        mid_attention=draw(st.booleans()),
    )


def guidances() -> st.SearchStrategy[Guidance | None]:
    """Often none; negative prompts that are fixed, the empty one too, and others."""
    texts = st.sampled_from((None, "", "a blue square, blurred"))
    return st.one_of(st.none(), st.builds(Guidance, st.sampled_from((1.5, 4.5, 7.0)), texts))


@st.composite
def configurations(draw: st.DrawFn) -> Configuration:
    """Everything at once."""
    transformer = draw(transformers())
    sizes = st.integers(2, 5).map(lambda count: count * PIXELS * transformer.patch)
    between = st.sets(st.integers(1, 99), min_size=0, max_size=7)
    sigmas = (1.0, *(s / 100 for s in sorted(draw(between), reverse=True)), 0.0)
    return Configuration(
        clip_l=draw(clips()),
        clip_g=draw(clips()),
        t5=draw(t5s()),
        transformer=transformer,
        vae=draw(vaes()),
        unused_context=draw(st.sampled_from((0, 24, 10))),
        cut=Cut(
            sigmas=sigmas,
            width_px=draw(sizes),
            height_px=draw(sizes),
            t5=draw(st.booleans()),
            t5_tokens=draw(st.sampled_from((16, 2, 77, 130))),
        ),
        mode=draw(st.sampled_from(("euler", "renoise"))),
        seed=draw(st.integers(0, 99)),
        guidance=draw(guidances()),
    )

"""The networks of shapes-flash: SD3.5's classes and options at a few million parameters.

    python -m benchmarks.shapes_flash.networks --out DIR    # untrained, with tokenizers

Widths: the CLIP hidden states (64 + 64 channels) stand side by side and fill T5's 128; the pooled
embedding is their projections, 64 + 64 = 128.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from benchmarks.shapes_flash.shapeeval import T5_TOKENS
from benchmarks.shapes_flash.text import CLIP_TOKENS, save_tokenizers

JOINT_WIDTH = 128
LATENT_SIDE = 16
LATENT_CHANNELS = 16


def build_transformer() -> SD3Transformer2DModel:
    """MMDiT-X of width 128: 2 heads x 64, 6 layers, the first two with a second attention."""
    return SD3Transformer2DModel(
        sample_size=LATENT_SIDE,
        patch_size=2,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=6,
        attention_head_dim=64,
        num_attention_heads=2,
        joint_attention_dim=JOINT_WIDTH,
        caption_projection_dim=128,
        pooled_projection_dim=128,
        pos_embed_max_size=24,
        dual_attention_layers=(0, 1),
        qk_norm="rms_norm",
    )


def build_clip(
    tokenizer: CLIPTokenizer, width: int, activation: str
) -> CLIPTextModelWithProjection:
    """CLIP text encoder of 3 layers; `eos_token_id` 2 makes it pool at the argmax of the ids."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=3,
        num_attention_heads=width // 32,
        max_position_embeddings=CLIP_TOKENS,
        hidden_act=activation,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=2,
    )
    return CLIPTextModelWithProjection(config)


def build_t5(tokenizer: T5TokenizerFast) -> T5EncoderModel:
    """T5 encoder of 2 layers and width 128 with gated GELU."""
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=JOINT_WIDTH,
        d_kv=64,
        d_ff=256,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        tie_word_embeddings=False,
    )
    return T5EncoderModel(config)


def build_vae() -> AutoencoderKL:
    """Autoencoder from 128 x 128 px to 16 channels of 16 x 16, without quant convolutions."""
    blocks = 4
    return AutoencoderKL(
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        sample_size=128,
        scaling_factor=1.0,
        shift_factor=0.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


@dataclass(frozen=True)
class Ids:
    """Token ids of a batch of prompts, each (B, tokens)."""

    clip_l: Tensor
    clip_g: Tensor
    t5: Tensor

    def take(self, rows: Tensor) -> Ids:
        """The prompts of the given rows."""
        return Ids(self.clip_l[rows], self.clip_g[rows], self.t5[rows])

    def cut(self, tokens: int | None) -> Ids:
        """Only the first tokens of each; None keeps all."""
        return Ids(self.clip_l[:, :tokens], self.clip_g[:, :tokens], self.t5[:, :tokens])

    def to(self, device: torch.device) -> Ids:
        """The same ids on another device."""
        return Ids(self.clip_l.to(device), self.clip_g.to(device), self.t5.to(device))

    def where(self, mask: Tensor, other: Ids) -> Ids:
        """`other` where mask (B,) is true."""
        rows = mask[:, None]
        return Ids(
            torch.where(rows, other.clip_l, self.clip_l),
            torch.where(rows, other.clip_g, self.clip_g),
            torch.where(rows, other.t5, self.t5),
        )


@dataclass(frozen=True)
class Condition:
    """What the transformer is told: context (B, CLIP + T5 tokens, 128), pooled (B, 128)."""

    context: Tensor
    pooled: Tensor


class TextEncoders(nn.Module):
    """The three encoders, joined as StableDiffusion3Pipeline joins them."""

    def __init__(
        self,
        clip_l: CLIPTextModelWithProjection,
        clip_g: CLIPTextModelWithProjection,
        t5: T5EncoderModel,
    ) -> None:
        super().__init__()
        self.clip_l, self.clip_g, self.t5 = clip_l, clip_g, t5

    def forward(self, ids: Ids, null: Tensor) -> Condition:
        """Encode prompts; rows where `null` (B,) is true get zero tokens in T5's place."""
        left = self.clip_l(ids.clip_l.long(), output_hidden_states=True)
        right = self.clip_g(ids.clip_g.long(), output_hidden_states=True)
        clip = torch.cat([left.hidden_states[-2], right.hidden_states[-2]], dim=-1).float()
        clip = nn.functional.pad(clip, (0, JOINT_WIDTH - clip.shape[-1]))
        t5 = self.t5(ids.t5.long())[0].float() * ~null[:, None, None]
        pooled = torch.cat([left.text_embeds, right.text_embeds], dim=-1).float()
        return Condition(torch.cat([clip, t5], dim=1), pooled)


@dataclass(frozen=True)
class Tokenizers:
    """The three tokenizers, read from a checkpoint folder."""

    clip_l: CLIPTokenizer
    clip_g: CLIPTokenizer
    t5: T5TokenizerFast

    @staticmethod
    def load(folder: Path) -> Tokenizers:
        """Read `tokenizer`, `tokenizer_2` and `tokenizer_3`."""
        return Tokenizers(
            CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
            T5TokenizerFast.from_pretrained(folder / "tokenizer_3"),
        )

    def ids(self, texts: list[str]) -> Ids:
        """Padded and truncated token ids: (B, 77) for CLIP, (B, 32) for T5."""

        def encode(tokenizer: Any, length: int) -> Tensor:
            padded = tokenizer(texts, padding="max_length", max_length=length, truncation=True)
            return torch.tensor(padded.input_ids, dtype=torch.int16)

        return Ids(
            encode(self.clip_l, CLIP_TOKENS),
            encode(self.clip_g, CLIP_TOKENS),
            encode(self.t5, T5_TOKENS),
        )


def build_text_encoders(tokenizers: Tokenizers) -> TextEncoders:
    """Untrained encoders for these vocabularies."""
    return TextEncoders(
        build_clip(tokenizers.clip_l, 64, "quick_gelu"),
        build_clip(tokenizers.clip_g, 64, "gelu"),
        build_t5(tokenizers.t5),
    )


def save_pipeline(
    folder: Path,
    transformer: SD3Transformer2DModel,
    encoders: TextEncoders,
    vae: AutoencoderKL,
) -> None:
    """Write a diffusers checkpoint around the tokenizers already in `folder`.

    The networks are turned into float16 in place.
    """
    tokenizers = Tokenizers.load(folder)
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0),
        vae=vae,
        text_encoder=encoders.clip_l,
        tokenizer=tokenizers.clip_l,
        text_encoder_2=encoders.clip_g,
        tokenizer_2=tokenizers.clip_g,
        text_encoder_3=encoders.t5,
        tokenizer_3=tokenizers.t5,
    )
    pipeline.to(torch.float16).save_pretrained(folder)


def main() -> None:
    """Write an untrained checkpoint of the final architecture, tokenizers included."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    save_tokenizers(args.out)
    encoders = build_text_encoders(Tokenizers.load(args.out))
    save_pipeline(args.out, build_transformer(), encoders, build_vae())


if __name__ == "__main__":
    main()

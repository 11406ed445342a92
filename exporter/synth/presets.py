"""The shapes of checkpoints that can be synthesized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from exporter.errors import InputError, known
from exporter.network import clip, denoiser, t5, vae

SAMPLE_SIZE = 128  # latents of 128 x 128: the position table counts 64 patches as its base

CLIP_IDS = 49408


@dataclass(frozen=True)
class Preset:
    """The shapes of a checkpoint, as the graphs read them from its configurations."""

    transformer: denoiser.TransformerConfig
    clip_l: clip.ClipConfig
    clip_g: clip.ClipConfig
    t5: t5.T5Config
    vae: vae.VaeConfig


# Stable Diffusion 3.5 Medium, of whose architecture Flash and Medium Turbo are: stabilityai's
# config.json files.
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
# Stable Diffusion 3 Medium: before the norms of queries and keys, and the second attention.
SD3 = replace(FLASH.transformer, table_side=192, dual_layers=(), qk_norm=False)
# Stable Diffusion 3.5 Large and Large Turbo.
LARGE = replace(FLASH.transformer, layers=38, heads=38, table_side=192, dual_layers=())
# A twin has every part of a network, but narrow and in few layers: it is built in seconds.
TWIN = Preset(
    replace(
        FLASH.transformer,
        layers=2,
        heads=2,
        context_width=256,
        pooled_width=192,
        dual_layers=(0,),
    ),
    replace(FLASH.clip_l, hidden=64, intermediate=256, layers=2, heads=1, projection=64),
    replace(FLASH.clip_g, hidden=128, intermediate=512, layers=2, heads=2, projection=128),
    replace(FLASH.t5, width=256, feed_forward=512, heads=4, layers=2),
    replace(FLASH.vae, channels=(32, 32, 64, 64), layers=1, groups=8),
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
    "sd3-medium": replace(FLASH, transformer=SD3),
    "sd3.5-large-turbo": replace(FLASH, transformer=LARGE),
    "sd3.5-flash-twin": TWIN,
    "sd3-medium-twin": replace(
        TWIN,
        transformer=replace(TWIN.transformer, table_side=192, dual_layers=(), qk_norm=False),
    ),
    "sd3.5-large-turbo-twin": replace(
        TWIN,
        transformer=replace(TWIN.transformer, layers=3, heads=3, table_side=192, dual_layers=()),
    ),
}


def find_preset(name: str) -> Preset:
    """A preset by its name; raises InputError that lists the known ones."""
    if name not in PRESETS:
        raise InputError(known("preset", name, PRESETS))
    return PRESETS[name]

"""Whatever a checkpoint's configurations say, packages draw what diffusers draws."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from hypothesis import HealthCheck, Phase, example, given, settings
from transformers.models.t5.modeling_t5 import T5Attention

from exporter import backends
from exporter.build.pipeline import build
from exporter.checkpoint.open import open_checkpoint
from exporter.drawing.loop import Image, Request, generate
from exporter.errors import InputError
from exporter.network.assemble import cut_graphs
from exporter.network.cut import Cut
from exporter.network.t5 import position_buckets
from exporter.package.manifest import Guidance
from exporter.recipe.recipe import read_recipe
from exporter.runtime.package import open_package
from tests.configurations import END, T5, Clip, Configuration, Transformer, Vae, configurations
from tests.conftest import ROOT, SHAPES, SMALL, edit_json, needs

PROMPT, SHIFT = "two red circles left of a blue square", 3.0
EXACT = ("onnx", "openvino")  # backends that compute in float32

# In every choice another one than the checkpoint that the other tests know.
OTHER = Configuration(
    clip_l=Clip(3, 12, 40, 1, "gelu", 24, END),
    clip_g=Clip(1, 20, 100, 5, "quick_gelu", 50, END),
    t5=T5(100, 3, 12, 1, 8, 20),
    transformer=Transformer(4, 3, 20, 1, (), None, 0),
    vae=Vae((40, 24, 8, 16), 4, 2, 6, 0.7, -0.2, False),
    unused_context=10,
    cut=Cut((1.0, 0.3, 0.0), 40, 24, t5=False, t5_tokens=130),
    mode="renoise",
    seed=0,
    guidance=Guidance(4.5, "a blue square"),
)


# The network of Stable Diffusion 3.5 Large: norms of queries and keys, no second attention. (That
# of 3 Medium, without either, is OTHER's.)
LARGE = replace(
    OTHER,
    transformer=Transformer(3, 5, 16, 2, (), "rms_norm", 2),
    cut=replace(OTHER.cut, width_px=48, height_px=32),
)


@cache
def tokenizers() -> dict[str, Any]:
    pipe = StableDiffusion3Pipeline.from_pretrained(SHAPES)
    return {name: getattr(pipe, name) for name in ("tokenizer", "tokenizer_2", "tokenizer_3")}


def by_diffusers(configuration: Configuration, modules: dict[str, Any]) -> np.ndarray:
    """What diffusers draws: (H, W, 3) uint8."""
    cut, guidance = configuration.cut, configuration.guidance
    parts = {**modules, **tokenizers()}
    if not cut.t5:
        parts["text_encoder_3"] = None
    scheduler = FlowMatchEulerDiscreteScheduler(
        shift=SHIFT, stochastic_sampling=configuration.mode == "renoise"
    )
    pipe = StableDiffusion3Pipeline(scheduler=scheduler, **parts)
    pipe.set_progress_bar_config(disable=True)
    torch.manual_seed(configuration.seed)
    (picture,) = pipe(
        PROMPT,
        width=cut.width_px,
        height=cut.height_px,
        guidance_scale=guidance.scale if guidance else 1.0,
        negative_prompt=guidance.negative_prompt if guidance else None,
        sigmas=[s / (SHIFT - (SHIFT - 1) * s) for s in cut.sigmas[:-1]],  # undoes the shift
        max_sequence_length=cut.t5_tokens,
    ).images
    np.testing.assert_allclose(scheduler.sigmas.numpy(), cut.sigmas, atol=1e-6)
    return np.asarray(picture)


def check(configuration: Configuration, others: Sequence[str]) -> None:
    """fp32 packages against diffusers; int4 ones against their program, of ONNX and others."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        theirs = by_diffusers(configuration, configuration.write(folder / "checkpoint"))
        assert theirs.std() > 10, "a picture that shows nothing"
        recipe = read_recipe(ROOT / "recipes" / "shapes-flash.toml")
        choices = [
            replace(choice, schemes=("fp32", "int4") if choice.name in EXACT else ("int4",))
            for choice in recipe.choices
        ]
        recipe = replace(
            recipe,
            checkpoint=str(folder / "checkpoint"),
            cut=configuration.cut,
            mode=configuration.mode,
            choices=tuple(choices),
            prompts=("a red circle",),
            calibration=replace(recipe.calibration, methods=()),
        ).with_guidance(configuration.guidance)
        # A package that is not what its program computes does not verify, and is not built.
        for built in build(recipe, folder / "out", ["onnx", *others]):
            if built.scheme != "fp32":
                continue
            player = open_package(built.path).player()
            events = generate(player, [Request(PROMPT, configuration.seed)])
            (image,) = [event for event in events if isinstance(event, Image)]
            apart = np.abs(image.pixels.astype(int) - theirs.astype(int)).max()
            assert apart <= 1, built.backend


QUICK = settings(
    derandomize=True,
    database=None,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),  # a smaller example is not worth the minutes
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


CUT = pytest.mark.filterwarnings("ignore::exporter.drawing.text.PromptCut")  # by few T5 tokens


@pytest.fixture(scope="module")
def turns() -> Iterator[str]:
    """The backends other than ONNX that are installed, one after the other and again."""
    return itertools.cycle(others())


def others() -> list[str]:
    able = [name for name in backends.names() if not backends.missing(needs(name))]
    return [name for name in able if name != "onnx"]


@CUT
@settings(QUICK, max_examples=6)
@example(configuration=OTHER)
@example(configuration=LARGE)
@given(configuration=configurations())
def test_some_configurations(turns: Iterator[str], configuration: Configuration) -> None:
    check(configuration, list(itertools.islice(turns, 1)))


@pytest.mark.full
@CUT
@settings(QUICK, max_examples=60)
@given(configuration=configurations())
def test_many_configurations(configuration: Configuration) -> None:
    check(configuration, others())


@pytest.mark.parametrize(
    ("buckets", "distance"),
    [(32, 128), (8, 20), (64, 256), (18, 128), (20, 160), (38, 196), (5, 2)],
)
def test_positions_fall_into_the_buckets_of_transformers(buckets: int, distance: int) -> None:
    """Also where the logarithm of a distance falls on an edge."""
    tokens = 512
    found = position_buckets(tokens, buckets, distance)
    apart = torch.arange(tokens)[None, :] - torch.arange(tokens)[:, None]
    expected = T5Attention._relative_position_bucket(apart, True, buckets, distance)
    np.testing.assert_array_equal(found, expected.numpy())


@pytest.mark.parametrize(
    ("component", "key", "value", "words"),
    [
        ("text_encoder", "hidden_act", "relu", "hidden_act = 'relu' is not supported"),
        ("text_encoder", "eos_token_id", None, "'eos_token_id' is null"),
        ("text_encoder_2", "num_attention_heads", 5, "hidden_size = 48 is no multiple"),
        ("text_encoder_2", "max_position_embeddings", 64, "supported: 77"),
        ("text_encoder_3", "feed_forward_proj", "relu", "supported: 'gated-gelu'"),
        ("text_encoder_3", "feed_forward_proj", "gated-silu", "supported: 'gated-gelu'"),
        ("text_encoder_3", "relative_attention_max_distance", 8, "a whole number from 9"),
        ("text_encoder_3", "d_model", 64, "d_model = 64"),
        ("transformer", "qk_norm", "layer_norm", "supported: 'rms_norm', None"),
        ("transformer", "out_channels", 8, "out_channels = 8 is not supported"),
        ("transformer", "joint_attention_dim", 64, "64"),
        ("transformer", "pooled_projection_dim", 64, "pooled_projection_dim = 64"),
        ("vae", "block_out_channels", [16, 16, 32], "four entries"),
        ("vae", "block_out_channels", [16, 16, 32, 32, 32], "four entries"),
        ("vae", "block_out_channels", [16, 16, 36, 32], "36 is no multiple"),
        ("vae", "latent_channels", 4, "latent_channels = 4"),
        ("vae", "scaling_factor", 0, "scaling_factor = 0"),
        ("vae", "use_quant_conv", True, "use_quant_conv = True is not supported"),
        ("vae", "act_fn", "gelu", "act_fn = 'gelu' is not supported"),
    ],
)
def test_what_cannot_be_expressed_is_refused_in_one_line(
    component: str, key: str, value: object, words: str, tiny_copy: Path
) -> None:
    edit_json(tiny_copy / component / "config.json", **{key: value})
    with pytest.raises(InputError) as refused:
        cut_graphs(open_checkpoint(str(tiny_copy)), SMALL)
    assert words in str(refused.value) and "\n" not in str(refused.value)

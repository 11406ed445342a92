"""The folded graphs equal the diffusers pipeline: 1e-5 in float32, 1e-9 in float64."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Img2ImgPipeline, StableDiffusion3Pipeline
from torch import Tensor

from exporter.build.reference import reference_player
from exporter.calibrate.weights import Weights
from exporter.checkpoint.open import Checkpoint, open_checkpoint
from exporter.drawing.loop import Image, Request, generate
from exporter.network.assemble import cut_graphs
from exporter.network.conditioner import timestep_sinusoids
from exporter.network.cut import Cut
from exporter.package.manifest import Mode, Schedule
from exporter.package.measures import relative_error
from exporter.package.pixels import from_pixels
from exporter.program.program import Constant, Program
from exporter.program.run import run
from exporter.program.trace import trace
from exporter.quantize.program import QuantizedProgram, unquantized
from tests.conftest import SHAPES, SIGMAS

PROMPT = "two red circles left of a blue square"
CUTS = {
    "T5": Cut(SIGMAS, 128, 128, t5=True, t5_tokens=77),
    "T5, wide": Cut(SIGMAS, 128, 64, t5=True, t5_tokens=32),
    "256 null tokens": Cut(SIGMAS, 64, 64, t5=False, t5_tokens=256),
    "77 null tokens, tall": Cut(SIGMAS, 64, 96, t5=False, t5_tokens=77),
    "two steps": Cut((1.0, 0.75, 0.0), 64, 64, t5=False, t5_tokens=77),
}


@pytest.fixture(scope="module", params=["tiny", "shapes-flash"])
def folder(request: pytest.FixtureRequest, tiny_folder: Path) -> Path:
    return tiny_folder if request.param == "tiny" else SHAPES


@cache
def pipeline(folder: Path, dtype: torch.dtype) -> Any:
    pipe = StableDiffusion3Pipeline.from_pretrained(folder).to(dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@cache
def programs(folder: Path, cut: Cut) -> dict[str, QuantizedProgram]:
    checkpoint = open_checkpoint(str(folder))
    return {g.name: unquantized(trace(g)) for g in cut_graphs(checkpoint, cut)}


def encoders(pipe: Any, cut: Cut) -> dict[str, Any]:
    """Each text encoder's tokenizer as a function from a prompt to ids (1, tokens)."""
    parts = {"clip_l": pipe.tokenizer, "clip_g": pipe.tokenizer_2}
    lengths = {"clip_l": 77, "clip_g": 77}
    if cut.t5:
        parts["t5"], lengths["t5"] = pipe.tokenizer_3, cut.t5_tokens

    def encode(name: str) -> Any:
        return lambda prompt: parts[name](
            prompt, padding="max_length", max_length=lengths[name], truncation=True
        )["input_ids"]

    return {
        name: (lambda prompt, name=name: np.array([encode(name)(prompt)], dtype=np.int32))
        for name in parts
    }


@pytest.mark.parametrize("mode", ["euler", "renoise"])
@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS.keys())
def test_float32_pipeline(folder: Path, cut: Cut, mode: Mode) -> None:
    """The runtime's loop over folded graphs against StableDiffusion3Pipeline as it stands."""
    checkpoint = open_checkpoint(str(folder))
    parts = dict(pipeline(folder, torch.float32).components)
    if not cut.t5:
        parts["text_encoder_3"] = None
    config = {**parts["scheduler"].config, "stochastic_sampling": mode == "renoise"}
    parts["scheduler"] = type(parts["scheduler"]).from_config(config)
    pipe = StableDiffusion3Pipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    torch.manual_seed(11)
    expected = pipe(
        PROMPT,
        width=cut.width_px,
        height=cut.height_px,
        guidance_scale=1.0,
        sigmas=[s / (3 - 2 * s) for s in cut.sigmas[:-1]],  # undoes the scheduler's shift of 3
        max_sequence_length=cut.t5_tokens,
        output_type="latent",
    ).images
    np.testing.assert_allclose(pipe.scheduler.sigmas.numpy(), cut.sigmas, atol=1e-7)

    player = reference_player(
        programs(folder, cut), Weights(checkpoint), Schedule(mode, cut.sigmas), encoders(pipe, cut)
    )
    (image,) = [e for e in generate(player, [Request(PROMPT, 11)]) if isinstance(e, Image)]
    assert relative_error(image.latent, expected.numpy()) <= 1e-5


def test_image_to_image(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Image to image enters the schedule where diffusers does, from the posterior's mean."""
    module = "diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3_img2img"
    monkeypatch.setattr(f"{module}.retrieve_latents", lambda out, **_: out.latent_dist.mode())
    cut = CUTS["two steps"]
    parts = {**pipeline(folder, torch.float32).components, "text_encoder_3": None}
    pipe = StableDiffusion3Img2ImgPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    expected = pipe(
        PROMPT,
        image=torch.from_numpy(from_pixels(pixels)) / 2 + 0.5,
        strength=0.5,
        width=64,
        height=64,
        guidance_scale=1.0,
        sigmas=[s / (3 - 2 * s) for s in cut.sigmas[:-1]],
        max_sequence_length=cut.t5_tokens,
        generator=torch.Generator().manual_seed(4),
        output_type="latent",
    ).images
    player = reference_player(
        programs(folder, cut),
        Weights(open_checkpoint(str(folder))),
        Schedule("euler", cut.sigmas),
        encoders(pipe, cut),
    )
    events = generate(player, [Request(PROMPT, 4, pixels, strength=0.5)])
    (image,) = [e for e in events if isinstance(e, Image)]
    assert relative_error(image.latent, expected.numpy()) <= 1e-5


@contextmanager
def lifted_casts() -> Iterator[None]:
    """Let every cast to float32 inside diffusers and transformers mean float64."""
    single, to_single = torch.float32, Tensor.float
    try:
        torch.float32 = torch.float64
        Tensor.float = Tensor.double  # type: ignore[method-assign]
        with torch.no_grad():
            yield
    finally:
        torch.float32 = single
        Tensor.float = to_single  # type: ignore[method-assign]


def exact_sinusoids(program: Program, cut: Cut) -> Program:
    """The conditioner with sinusoids in double precision, not rounded as diffusers rounds."""
    rounded = timestep_sinusoids(cut.sigmas[:-1], np.float32)
    exact = timestep_sinusoids(cut.sigmas[:-1], np.float64)
    swapped = {
        place: Constant(exact)
        if isinstance(s, Constant) and np.array_equal(s.value, rounded)
        else s
        for place, s in program.tensors.items()
    }
    assert sum(s is not program.tensors[p] for p, s in swapped.items()) == 1
    return replace(program, tensors=swapped)


@pytest.mark.parametrize("mode", ["euler", "renoise"])
@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS.keys())
def test_float64_graphs(folder: Path, cut: Cut, mode: Mode) -> None:
    """Every graph, and the whole rollout, against diffusers' modules in float64."""
    checkpoint = open_checkpoint(str(folder))
    weights = Weights(checkpoint, torch.float64)
    ours = programs(folder, cut)
    pipe = pipeline(folder, torch.float64)
    ids = {n: torch.from_numpy(e(PROMPT)) for n, e in encoders(pipe, cut).items()}

    def compare(found: Tensor, expected: Tensor) -> None:
        assert found.dtype == expected.dtype == torch.float64
        assert relative_error(found.numpy(), expected.numpy()) <= 1e-9

    states: dict[str, Tensor] = {}
    for name, encoder in (("clip_l", pipe.text_encoder), ("clip_g", pipe.text_encoder_2)):
        out = run(ours[name], weights.read, {"ids": ids[name]})
        with lifted_casts():
            theirs = encoder(ids[name].long(), output_hidden_states=True)
        compare(out["hidden"], theirs.hidden_states[-2])
        compare(out["pooled"], theirs.text_embeds)
        states |= {f"{port}_{name[-1]}": value for port, value in out.items()}
    if cut.t5:
        states["hidden_t5"] = run(ours["t5"], weights.read, {"ids": ids["t5"]})["hidden"]
        with lifted_casts():
            tail = pipe.text_encoder_3(ids["t5"].long())[0]
        compare(states["hidden_t5"], tail)
    else:
        width = pipe.transformer.config.joint_attention_dim
        tail = torch.zeros(1, cut.t5_tokens, width, dtype=torch.float64)
    clip = torch.cat([states["hidden_l"], states["hidden_g"]], 2)
    clip = torch.nn.functional.pad(clip, (0, tail.shape[2] - clip.shape[2]))
    text = torch.cat([clip, tail], 1)
    pooled = torch.cat([states["pooled_l"], states["pooled_g"]], 1)

    conditioned = run(exact_sinusoids(ours["conditioner"], cut), weights.read, states)
    generator = torch.Generator().manual_seed(3)
    shape = ours["denoiser"].inputs[0].shape
    x = y = torch.randn(shape, generator=generator, dtype=torch.float64)
    for step, (sigma, following) in enumerate(pairwise(cut.sigmas)):
        row = conditioned["modulation"][step : step + 1]
        inputs = {"latent": x, "context": conditioned["context"], "modulation": row}
        v = run(ours["denoiser"], weights.read, inputs)["velocity"]
        time = torch.tensor([1000 * sigma], dtype=torch.float64)
        with lifted_casts():
            w = pipe.transformer(y, text, pooled, time, return_dict=False)[0]
        if mode == "euler":
            x, y = x + (following - sigma) * v, y + (following - sigma) * w
        else:
            noise = torch.randn(shape, generator=generator, dtype=torch.float64)
            x, y = (
                (1 - following) * (z - sigma * u) + following * noise for z, u in ((x, v), (y, w))
            )
        compare(x, y)

    vae = pipe.vae.config
    image = run(ours["vae_decoder"], weights.read, {"latent": x})["image"]
    latent = run(ours["vae_encoder"], weights.read, {"image": image})["latent"]
    with lifted_casts():
        compare(image, pipe.vae.decode(x / vae.scaling_factor + vae.shift_factor).sample)
        mean = pipe.vae.encode(image).latent_dist.mean
    compare(latent, (mean - vae.shift_factor) * vae.scaling_factor)


def test_null_tokens_matter(tiny: Checkpoint, tiny_folder: Path) -> None:
    """The comparison above can fail: another number of null tokens is another picture."""
    cuts = [replace(CUTS["256 null tokens"], t5_tokens=n) for n in (256, 77)]
    torch.manual_seed(0)
    latents = []
    for cut in cuts:
        denoiser = programs(tiny_folder, cut)["denoiser"]
        torch.manual_seed(0)
        inputs = {p.name: torch.randn(p.shape) for p in denoiser.inputs}
        latents.append(run(denoiser, Weights(tiny).read, inputs)["velocity"].numpy())
    assert relative_error(latents[0], latents[1]) > 1e-3

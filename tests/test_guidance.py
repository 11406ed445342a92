"""Guidance: pictures are diffusers', packages say how they are drawn, and nothing runs in vain."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import StableDiffusion3Pipeline
from PIL import Image as Picture
from safetensors.numpy import load, save

from exporter import backends
from exporter.build.model import Model, trace_model
from exporter.build.negative import BITS, fixed_states, rounded
from exporter.build.pipeline import Built, build
from exporter.build.reference import reference_player
from exporter.calibrate.equalize import find_sites
from exporter.calibrate.trajectories import call_counts
from exporter.cli import main
from exporter.drawing.loop import Conditioned, Image, Player, Request, Step, condition, generate
from exporter.drawing.text import PromptCut
from exporter.errors import InputError
from exporter.package.manifest import Guidance, Mode
from exporter.package.measures import relative_error
from exporter.program.program import Folded
from exporter.progress import Progress
from exporter.quantize.formats import FORMATS, Rule
from exporter.quantize.program import unquantized
from exporter.recipe.recipe import Recipe
from exporter.runtime.package import open_package
from exporter.runtime.vectors import compare
from exporter.runtime.verify import verify
from tests.conftest import needs, previewed, seal

PROMPT, NEGATIVE = "two red circles", "a blue square, blurred"
SCALE, KEEP = 4.5, 1 << 30
Models = Callable[[str | None, bool], Model]
OF_4_0 = {"once per prompt", "each step", "once"}  # when a stage may run, as format 4.0 has it


@pytest.fixture(scope="module")
def pipeline(tiny_folder: Path) -> Any:
    return StableDiffusion3Pipeline.from_pretrained(tiny_folder)


def recipe_of(tiny_recipe: Recipe, fixed: str | None, t5: bool = True) -> Recipe:
    cut = replace(tiny_recipe.cut, t5=t5, sigmas=(1.0, 0.75, 0.0), image_to_image=fixed is None)
    return replace(tiny_recipe, cut=cut).with_guidance(Guidance(SCALE, fixed))


def by_diffusers(pipeline: Any, recipe: Recipe, negative: str) -> np.ndarray:
    """(H, W, 3) uint8 of ``PROMPT`` with seed 3."""
    parts, cut = dict(pipeline.components), recipe.cut
    if not cut.t5:
        parts["text_encoder_3"] = None
    config = {**parts["scheduler"].config, "stochastic_sampling": recipe.mode == "renoise"}
    parts["scheduler"] = type(parts["scheduler"]).from_config(config)
    pipe = StableDiffusion3Pipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    torch.manual_seed(3)
    (picture,) = pipe(
        PROMPT,
        negative_prompt=negative,
        width=cut.width_px,
        height=cut.height_px,
        guidance_scale=SCALE,
        sigmas=[s / (3 - 2 * s) for s in cut.sigmas[:-1]],  # undoes the scheduler's shift of 3
        max_sequence_length=cut.t5_tokens,
    ).images
    found = np.asarray(picture)
    assert found.std() > 10, "a picture that shows nothing"
    return found


def levels_apart(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def images(player: Player, requests: Sequence[Request]) -> list[Image]:
    return [event for event in generate(player, requests) if isinstance(event, Image)]


def in_torch(model: Model) -> Player:
    encoders = {name: file.encoder(name) for name, file in model.tokenizers.items()}
    return reference_player(model.unrounded, model.weights, model.schedule, encoders)


@pytest.fixture(scope="module")
def models(tiny_recipe: Recipe) -> Models:
    """Traced, by the fixed negative prompt and by whether T5 is there."""
    return cache(lambda fixed, t5: trace_model(recipe_of(tiny_recipe, fixed, t5), KEEP, Progress()))


FULL = [("", False, "renoise"), (NEGATIVE, False, "renoise"), (None, False, "renoise")]


@pytest.mark.parametrize(
    ("fixed", "t5", "mode"),
    [(NEGATIVE, True, "euler"), *(pytest.param(*full, marks=pytest.mark.full) for full in FULL)],
)
def test_programs_draw_what_diffusers_draws(
    pipeline: Any, models: Models, fixed: str | None, t5: bool, mode: Mode
) -> None:
    model = models(fixed, t5)
    recipe = replace(model.recipe, mode=mode)
    player = in_torch(replace(model, recipe=recipe))
    asked = ["", NEGATIVE] if fixed is None else [None]
    for image in images(player, [Request(PROMPT, 3, negative=text) for text in asked]):
        text = image.request.negative if fixed is None else fixed
        expected = by_diffusers(pipeline, recipe, text or "")
        assert levels_apart(image.pixels, expected) <= 1
        other = by_diffusers(pipeline, recipe, "another text")
        assert levels_apart(image.pixels, other) > 1, "the negative prompt is not seen"


@pytest.fixture(scope="module")
def free(tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """An fp32 package whose negative prompt each request may name."""
    (built,) = build(
        recipe_of(tiny_recipe, None), tmp_path_factory.mktemp("free"), ["onnx"], ["fp32"]
    )
    return built


@pytest.fixture(scope="module")
def fixed(tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A package in int8, some of its activations too, whose negative prompt is fixed."""
    recipe = recipe_of(tiny_recipe, NEGATIVE, t5=False)
    rule = Rule("denoiser", "transformer_blocks.1.*", FORMATS["w8a8"], ("linear",))
    calibration = replace(recipe.calibration, prompts=("a red circle",))
    recipe = replace(recipe, overrides=(rule,), calibration=calibration)
    (built,) = build(recipe, tmp_path_factory.mktemp("fixed"), ["onnx"], ["int8"])
    return built


def test_a_package_draws_what_diffusers_draws(
    pipeline: Any, tiny_recipe: Recipe, free: Built
) -> None:
    """Several prompts with several negative ones at once, and from a picture."""
    recipe, source = recipe_of(tiny_recipe, None), np.zeros((48, 64, 3), np.uint8)
    requests = [
        Request(PROMPT, 3, negative=NEGATIVE),
        Request("a star", 1, negative=PROMPT),
        Request(PROMPT, 3),
        Request(PROMPT, 3, source, 0.5, negative=NEGATIVE),
    ]
    with open_package(free.path).player() as player:
        events = list(generate(player, requests))
    assert events[0] == Conditioned(4)  # two prompts, "" and NEGATIVE
    found = [event.pixels for event in events if isinstance(event, Image)]
    assert levels_apart(found[0], by_diffusers(pipeline, recipe, NEGATIVE)) <= 1
    assert levels_apart(found[2], by_diffusers(pipeline, recipe, "")) <= 1
    assert levels_apart(found[0], found[2]) > 1 < levels_apart(found[0], found[3])
    steps = [event for event in events if isinstance(event, Step)]
    assert [event.step for event in steps] == [1, 2, 1, 2, 1, 2, 2]
    assert all(previewed(event).any() for event in steps)


def test_a_free_package_says_what_runs_and_when(free: Built) -> None:
    manifest = open_package(free.path).manifest
    assert manifest.schedule.guidance == Guidance(SCALE, None)
    step = manifest.stage("denoiser")
    assert step is not None and step.runs == "twice each step"
    assert {s.kind for s in step.negative_inputs.values()} == {"latent", "negative output"}
    graphs = {graph.graph: graph.calls for graph in free.report.graphs}
    assert graphs == {
        "clip_l": 2, "clip_g": 2, "t5": 2, "conditioner": 2, "denoiser": 4,
        "vae_encoder": 1, "vae_decoder": 1,
    }  # fmt: skip


def test_a_fixed_negative_prompt_is_a_constant(fixed: Built) -> None:
    """No text encoder runs for it: the conditioner gives its conditions without being told."""
    package = open_package(fixed.path)
    assert package.manifest.schedule.guidance == Guidance(SCALE, NEGATIVE)
    step, conditioner = (package.manifest.stage(n) for n in ("denoiser", "conditioner"))
    assert step is not None and conditioner is not None
    assert step.negative_inputs["context"].port == "negative_context"
    assert {s.kind for s in step.negative_inputs.values()} == {"latent", "output"}
    assert {*conditioner.inputs} == {"hidden_l", "hidden_g", "pooled_l", "pooled_g"}
    calls = {graph.graph: graph.calls for graph in fixed.report.graphs}
    assert (calls["clip_l"], calls["conditioner"], calls["denoiser"]) == (1, 1, 4)
    assert fixed.report.ok and verify(package).ok
    assert "guidance 4.5, negative prompt 'a blue square, blurred'" in said("inspect", fixed.path)


def test_rounding_stands_out_more_where_guidance_multiplies_it(fixed: Built, free: Built) -> None:
    """By independent errors of both calls, added up in numbers; only where inputs are rounded."""
    random = np.random.default_rng(0)
    v, n = random.normal(size=(2, 100_000))
    noise_db = 10 * np.log10((n + SCALE * (v - n)).var() / v.var())
    manifest = open_package(fixed.path).manifest
    allowed = {graph.name: graph.tolerance.image_psnr_db for graph in manifest.graphs}
    assert allowed["denoiser"] == pytest.approx(45 - noise_db, abs=0.2)
    assert allowed["vae_decoder"] == allowed["conditioner"] == 40
    manifest = open_package(free.path).manifest
    assert {graph.tolerance.image_psnr_db for graph in manifest.graphs} == {40}


def said(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


def test_readers_of_4_0_refuse_what_they_would_draw_unguided(
    free: Built, fixed: Built, tiny_package: Path
) -> None:
    for package in (free.path, fixed.path):
        raw = json.loads((package / "manifest.json").read_text())
        assert {stage["runs"] for stage in raw["stages"]} - OF_4_0 == {"twice each step"}
    raw = json.loads((tiny_package / "manifest.json").read_text())
    assert "guidance" not in raw["schedule"]
    assert all("negative_inputs" not in stage for stage in raw["stages"])


def test_a_step_is_made_of_both_recorded_velocities(free: Built) -> None:
    """By the page of the format: the difference, times the scale, plus the negative prompt's."""
    package = open_package(free.path)
    tensors = load(package.read(package.manifest.golden.pictures[0].tensors))
    for step, (sigma, following) in enumerate(itertools.pairwise((1.0, 0.75, 0.0))):
        v, n = (tensors[f"denoiser/{2 * step + k}/out/velocity"] for k in (0, 1))
        assert not np.array_equal(v, n)
        led = n + np.float32(SCALE) * (v - n)
        before = tensors[f"latent/{step}"] if step else tensors["noise/0"]
        after = before + (np.float32(following) - np.float32(sigma)) * led
        np.testing.assert_array_equal(after, tensors[f"latent/{step + 1}"])


@pytest.mark.parametrize("tensor", ["denoiser/1/out/velocity", "clip_l/1/in/ids"])
def test_verify_compares_what_belongs_to_the_negative_prompt(
    free: Built, tensor: str, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(free.path, tmp_path / "package"))
    raw = json.loads((copy / "manifest.json").read_text())
    name = raw["golden"]["pictures"][0]["tensors"]
    tensors = load((copy / name).read_bytes())
    tensors[tensor] = tensors[tensor][..., ::-1].copy()
    (copy / name).write_bytes(save(tensors))
    (entry,) = (f for f in raw["files"] if f["path"] == name)
    entry["sha256"] = hashlib.sha256((copy / name).read_bytes()).hexdigest()
    seal(copy, raw)
    package = open_package(copy)
    failures = [v.what for v in compare(package, package.player()) if not v.same]
    assert len(failures) == 1 and ("step 1 differs" in failures[0] or "clip_l" in failures[0])


def test_what_a_request_says_in_vain_is_refused(
    free: Built, fixed: Built, tiny_package: Path, tmp_path: Path
) -> None:
    player = open_package(fixed.path).player()
    with pytest.raises(InputError, match=f"negative: .*is fixed: '{NEGATIVE}'; build without"):
        next(generate(player, [Request(PROMPT, negative="")]))
    for package, words in (
        (tiny_package, "--negative: this package draws without guidance"),
        (fixed.path, f"--negative: the negative prompt of this package is fixed: '{NEGATIVE}'"),
    ):
        line = said("run", package, PROMPT, "--negative", "x", "--out", tmp_path / "a.png", code=2)
        assert words in line and line.count("\n") == 1
        assert not (tmp_path / "a.png").exists()
    pictures = []
    for more in ([], ["--negative", ""], ["--negative", NEGATIVE]):
        said("run", free.path, PROMPT, "--out", tmp_path / "a.png", *more)
        with Picture.open(tmp_path / "a.png") as picture:
            pictures.append(picture.tobytes())
            assert picture.info.get("negative") == (more[1] if more else None)
    assert pictures[0] == pictures[1] != pictures[2]


def test_inspect_and_report_say_it(free: Built, tiny_package: Path) -> None:
    assert "negative prompt as run --negative gives it, else empty" in said("inspect", free.path)
    assert "guidance" not in said("inspect", tiny_package)
    said("report", free.path.parent)
    page = (free.path.parent / "report" / "index.html").read_text()
    assert "4.5, away from an empty prompt" in page


def test_what_is_folded_is_what_encoders_give(models: Models) -> None:
    """The conditions of a fixed negative prompt are those of the prompt itself."""
    found = condition(in_torch(models(NEGATIVE, True)), [NEGATIVE])[NEGATIVE]
    for port in ("context", "modulation"):
        ours, direct = (found["conditioner", f"{prefix}{port}"] for prefix in ("negative_", ""))
        assert relative_error(ours, direct) < 1e-4


def test_bytes_are_predicted_without_running_an_encoder(models: Models) -> None:
    conditioner = models(NEGATIVE, True).programs["conditioner"]
    folded = [s for s in conditioner.tensors.values() if isinstance(s, Folded)]
    names = ["hidden_l", "hidden_g", "pooled_l", "pooled_g", "hidden_t5"]
    assert len(folded) == 5 and [p.name for p in conditioner.inputs] == names

    def run(source: Folded) -> Folded:
        return replace(source, compute=lambda: pytest.fail("an encoder ran"))

    unread = {n: run(s) if isinstance(s, Folded) else s for n, s in conditioner.tensors.items()}
    without = {n: s for n, s in conditioner.tensors.items() if not isinstance(s, Folded)}
    held, plain = (
        unquantized(replace(conditioner, tensors=tensors)).stored_bytes()
        for tensors in (unread, without)
    )
    assert held - plain == 4 * (77 * (32 + 48) + 32 + 48 + 24 * 96)


def test_rounding_to_few_bits() -> None:
    values = np.random.default_rng(0).normal(size=1000) * 10.0 ** np.arange(-5, 5).repeat(100)
    found = rounded(values)
    assert found.dtype == np.float32 and np.array_equal(rounded(found.astype(float)), found)
    assert (np.abs(found - values) <= np.abs(values) * 2.0**-BITS).all()
    assert np.array_equal(rounded(values * (1 + 1e-14)), found)
    assert np.array_equal(rounded(np.array([0.0, -1.0])), [0, -1])


def test_a_fixed_prompt_that_is_cut_is_said_when_it_is_encoded(models: Models) -> None:
    model = models(NEGATIVE, True)
    encoders = {name: file.encoder(name) for name, file in model.tokenizers.items()}
    states = fixed_states(model.checkpoint, model.programs, encoders, "red " * 100)
    with pytest.warns(PromptCut, match="clip_l reads 77 tokens; not read"):
        states("clip_l", "pooled")


@pytest.mark.parametrize("fixed", [None, NEGATIVE])
def test_trajectories_have_both_calls_of_a_step(models: Models, fixed: str | None) -> None:
    model = models(fixed, True)
    calibration = replace(model.recipe.calibration, prompts=("a star", ""))
    model = replace(model, recipe=replace(model.recipe, calibration=calibration))
    calls = model.trajectories.calls
    assert len(calls["denoiser"]) == call_counts(2, model.schedule)["denoiser"] == 2 * 2 * 2
    latents = [call["latent"] for call in calls["denoiser"]]
    contexts = [call["context"] for call in calls["denoiser"]]
    for i in range(0, len(latents), 2):
        assert np.array_equal(latents[i], latents[i + 1])
        same = np.array_equal(contexts[i], contexts[i + 1])
        assert same == (fixed is None and i >= 4)  # the second prompt is empty itself
    assert len(calls["clip_l"]) == len(calls["conditioner"]) == (4 if fixed is None else 2)
    if fixed is None:
        assert calls["clip_l"][1] is calls["clip_l"][2] is calls["clip_l"][3]


def test_equalization_acts_where_it_does_without_guidance(models: Models) -> None:
    def sites(fixed: str | None) -> list[object]:
        found = find_sites(models(fixed, True).programs)
        return [(s.writers[0].layer, s.writers[0].start, s.readers) for s in found]

    assert sites(NEGATIVE) == sites(None) and len(sites(None)) > 10


@pytest.mark.full
@pytest.mark.parametrize("backend", backends.names())
@pytest.mark.parametrize("fixed", [None, NEGATIVE])
@pytest.mark.parametrize("methods", [(), ("equalize", "feedback", "bias")], ids=str)
def test_every_scheme_of_every_backend_takes_guidance(
    tiny_recipe: Recipe, tmp_path: Path, backend: str, fixed: str | None, methods: tuple[str, ...]
) -> None:
    """A package that is not what its program computes does not verify, and is not built."""
    if backends.missing(needs(backend)):
        pytest.skip(f"{backend} is not installed")
    recipe = recipe_of(tiny_recipe, fixed)
    prompts = ("a red circle", "a star")
    calibration = replace(recipe.calibration, prompts=prompts, methods=methods)
    able = backends.expressible_schemes(backends.load(backend), recipe.backend(backend).choices)
    built = build(replace(recipe, calibration=calibration), tmp_path, [backend], able)
    assert len(built) == len(able) >= 4
    assert all(one.report.ok for one in built)

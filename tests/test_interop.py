"""Clients of others in environments of their own, which ``make interop`` makes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from exporter.build.pipeline import build
from exporter.package.measures import psnr_db, snr_db
from exporter.recipe.recipe import Recipe
from tests.conftest import ROOT, SHAPES
from tests.test_layouts import diffusers_latents

PACK = ROOT / "exporter" / "plugins" / "comfyui"
BARS = {"fp32": (60, 50), "int8": (35, 48), "int4": (22, 42)}  # dB of latents, of the picture
CLIENTS = {"optimum-intel": "openvino", "optimum-onnx": "onnx"}
SHIFT = 2.004020116745039  # with the last sigma given, exactly the recipe's
PROMPT, SEED = "two red circles left of a blue square", 7
REQUESTS = json.dumps([[PROMPT, SEED]])


def python_of(peer: str) -> str:
    """The interpreter of a peer's environment; skips a test where there is none."""
    place = ROOT / f".venv-{peer}" / "bin" / "python"
    if not place.is_file():
        pytest.skip("make interop")
    return str(place)


def told_by(*command: str, **environment: str) -> dict[str, object]:
    """The JSON that a program ends its output with."""
    offline = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **offline, **environment}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, object] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def folders(shapes_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = build(shapes_recipe, tmp_path_factory.mktemp("interop"), [*CLIENTS.values()], [*BARS])
    return {f"{one.backend}-{one.scheme}": one.path for one in found}


@pytest.fixture(scope="module")
def shapes_recipe() -> Recipe:
    from exporter.recipe.recipe import read_recipe

    recipe = read_recipe(ROOT / "recipes" / "shapes-flash.toml")
    calibration = replace(recipe.calibration, methods=())
    return replace(
        recipe, checkpoint=str(SHAPES), layouts=("diffusers",), prompts=(), calibration=calibration
    )


@pytest.fixture(scope="module")
def right() -> tuple[list[np.ndarray], np.ndarray]:
    return diffusers_latents(str(SHAPES), PROMPT, (128, 128), 32, SEED)


@pytest.fixture(scope="module")
def started(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, list[np.ndarray], np.ndarray]:
    """A picture to start from, and what diffusers makes of it in float32."""
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Img2ImgPipeline

    start = tmp_path_factory.mktemp("start") / "start.png"
    levels = np.indices((128, 128)).sum(0).astype(np.uint8)
    Picture.fromarray(np.stack([levels, 255 - levels, levels // 2], 2)).save(start)
    pipeline = StableDiffusion3Img2ImgPipeline.from_pretrained(SHAPES, torch_dtype=torch.float32)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(1000, SHIFT, shift_terminal=0.5)
    encode, latents = pipeline.vae.encode, list[np.ndarray]()
    pipeline.vae.encode = lambda image: SimpleNamespace(latents=encode(image).latent_dist.mode())

    def note(_: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        latents.append(values["latents"].numpy().copy())
        return values

    with Picture.open(start) as image:
        found = pipeline(
            PROMPT, image=image, strength=0.5, num_inference_steps=4, guidance_scale=1.0,
            max_sequence_length=32, generator=torch.Generator().manual_seed(SEED),
            output_type="np", callback_on_step_end=note,
        ).images[0]  # fmt: skip
    return start, latents, np.round(found * 255).astype(np.uint8)


@pytest.mark.parametrize("scheme", BARS)
@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_draws_what_diffusers_draws(
    client: str, scheme: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Called with nothing but steps and guidance, latent by latent."""
    python = python_of(client)
    folder = request.getfixturevalue("folders")[f"{CLIENTS[client]}-{scheme}"]
    latents, picture = request.getfixturevalue("right")
    out = tmp_path / "out.npz"
    script = str(ROOT / "tests" / "interop" / "draw.py")
    told_by(python, script, client, str(folder), REQUESTS, "4", str(out))
    found = np.load(out)
    latent_db, picture_db = BARS[scheme]
    measured = [snr_db(a, b) for a, b in zip(found["latents"][0], latents, strict=True)]
    assert min(measured) >= latent_db, measured
    assert psnr_db(found["pictures"][0], picture) >= picture_db


# Of each: schemes or a plan, whether T5 is on board, dB of latents, of the picture.
VARIANTS = {
    "without T5": ("int8", False, 35, 48),
    "int8-w8a8": ("int8-w8a8", True, 22, 42),
    "a plan": (str(ROOT / "recipes" / "plans" / "mixed-4.5.toml"), True, 22, 42),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_clients_draw_with_other_schemes(
    variant: str, shapes_recipe: Recipe, tmp_path: Path
) -> None:
    """Without T5, with rounded inputs, with a plan's formats: all clients, bare calls."""
    scheme, t5, latent_db, picture_db = VARIANTS[variant]
    clients = {"genai": "optimum-intel", **{name: name for name in CLIENTS}}
    pythons = {client: python_of(peer) for client, peer in clients.items()}
    recipe = replace(shapes_recipe, cut=replace(shapes_recipe.cut, t5=t5))
    built = build(recipe, tmp_path, [*CLIENTS.values()], [scheme])
    folders = {one.backend: one.path for one in built}
    absent = {} if t5 else {"text_encoder_3": None, "tokenizer_3": None}
    latents, picture = diffusers_latents(str(SHAPES), PROMPT, (128, 128), 32, SEED, **absent)
    script, out = str(ROOT / "tests" / "interop" / "draw.py"), tmp_path / "out.npz"
    for client, python in pythons.items():
        folder = str(folders[CLIENTS.get(client, "openvino")])
        told_by(python, script, client, folder, REQUESTS, "4", str(out))
        found = np.load(out)
        measured = [snr_db(a, b) for a, b in zip(found["latents"][0], latents, strict=True)]
        assert min(measured) >= latent_db, (client, measured)
        assert psnr_db(found["pictures"][0], picture) >= picture_db, client


@pytest.mark.parametrize("client", CLIENTS)
def test_a_wrong_number_of_steps_is_black(
    client: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """And not a wrong picture; ``test_layouts`` has GenAI's."""
    python, out = python_of(client), tmp_path / "out.npz"
    folder = request.getfixturevalue("folders")[f"{CLIENTS[client]}-int8"]
    script = str(ROOT / "tests" / "interop" / "draw.py")
    told_by(python, script, client, str(folder), REQUESTS, "7", str(out))
    assert not np.load(out)["pictures"].any()


@pytest.mark.parametrize("client", ["genai", *CLIENTS])
def test_a_client_starts_from_a_picture(
    client: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Half of the steps, from the middle of what diffusers' encoder gives, latent by latent."""
    python = python_of({"genai": "optimum-intel"}.get(client, client))
    folder = request.getfixturevalue("folders")[f"{CLIENTS.get(client, 'openvino')}-fp32"]
    start, latents, picture = request.getfixturevalue("started")
    script, out = str(ROOT / "tests" / "interop" / "draw.py"), tmp_path / "out.npz"
    given = ["--start", str(start), "--strength", "0.5"]
    told_by(python, script, client, str(folder), REQUESTS, "4", str(out), *given)
    found = np.load(out)
    measured = [snr_db(a, b) for a, b in zip(found["latents"][0], latents, strict=True)]
    assert len(measured) == 2 and min(measured) >= 60, measured
    assert psnr_db(found["pictures"][0], picture) >= 50


def test_comfyui_draws_what_the_command_line_draws(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The pack's own workflow, a batch, a start from a picture, previews, an interrupted run."""
    python = python_of("comfy")
    package = request.getfixturevalue("tiny_package")
    out, image = tmp_path / "out.npz", tmp_path / "out.png"
    told = told_by(
        python, str(ROOT / "tests" / "interop" / "comfy.py"), str(PACK), str(package), str(out)
    )
    command = [sys.executable, "-m", "exporter", "run", str(package), PROMPT]
    drawn = subprocess.run([*command, "--seed", str(SEED), "--out", str(image)], cwd=ROOT)
    assert drawn.returncode == 0
    found = np.load(out)
    with Picture.open(image) as right:
        assert np.array_equal(found["picture"], np.asarray(right.convert("RGB")))
    assert np.array_equal(found["batch"][1], found["second"][0])
    assert np.array_equal(found["plain"], found["again"])
    assert not np.array_equal(found["plain"], found["started"])
    assert told["interrupted"] == "InterruptProcessingException"
    assert told["after"] == 2 + 4  # shown of the run that was stopped, and of the next
    assert "sigmas 1, 0.9, 0.75, 0.5, 0" in str(told["about"])


@pytest.mark.parametrize("peer", CLIENTS)
def test_optimum_cli_builds(
    peer: str, tiny_folder: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """In optimum 2.3 and 2.1; a mistake ends with fourstep's own line and exit code."""
    python = python_of(peer)
    recipe = tmp_path / "small.toml"
    recipe.write_text(
        f'[model]\ncheckpoint = "{tiny_folder}"\n[schedule]\nsigmas = [1.0, 0.5, 0.0]\n'
        "[image]\nwidth_px = 64\nheight_px = 64\n[text]\nt5 = false\n"
        '[weights]\nscheme = "int8"\n[golden]\nprompts = []\n'
    )
    program = Path(python).with_name("optimum-cli")
    environment = {"FOURSTEP": f"{sys.executable} -m exporter", "PYTHONPATH": str(ROOT)}
    given = ["export", "fourstep", str(recipe), "--backend", "onnx", "--json", "--out"]
    done = subprocess.run(
        [program, *given, str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (row,) = json.loads(done.stdout[done.stdout.index("[") :])
    assert row["layout"] == "diffusers" and Path(row["path"]).is_dir()
    recipe.write_text("[modl]\n")
    done = subprocess.run(
        [program, *given, str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert done.returncode == 2 and "unknown section 'modl'" in done.stderr

"""Every shipped recipe: its sigmas are what it says, it builds, and its package draws."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from safetensors.torch import save_file

from exporter.checkpoint.open import open_checkpoint
from exporter.cli import main
from exporter.network.assemble import components_of, cut_graphs
from exporter.recipe.recipe import read_recipe
from exporter.runtime.package import open_package
from exporter.synth.presets import find_preset
from exporter.synth.write import synthesize
from tests.conftest import ROOT

# The preset of a recipe's network; with "-twin" its narrow twin.
PRESETS = {
    "sd3.5-flash": "sd3.5-flash",
    "sd3.5-large-turbo": "sd3.5-large-turbo",
    "sd3.5-medium-turbo": "sd3.5-flash",
    "sd3.5-swd-6": "sd3.5-flash",
}
BY_PRESET = sorted(PRESETS, key=PRESETS.__getitem__)
TWIN_PX = 128


def text_of(name: str) -> str:
    return (ROOT / "recipes" / f"{name}.toml").read_text()


def test_every_full_size_recipe_is_tested_here() -> None:
    shipped = {file.stem for file in (ROOT / "recipes").glob("*.toml")}
    assert shipped == {*PRESETS, "shapes-flash", "shapes-flash-tiny", "shapes-flash-filtered"}


def shifted(time: float) -> float:
    return 3 * time / (1 + 2 * time)


def scheduled(steps: int) -> list[float]:
    """As recipes say it: even times from 1 to shift(0.001), each shifted, then 0."""
    last = shifted(0.001)
    times = [1 + (last - 1) * i / (steps - 1) for i in range(steps)]
    return [*map(shifted, times), 0.0]


@pytest.mark.parametrize("steps", [4, 8, 28])
def test_the_formula_is_the_scheduler_of_diffusers(steps: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(steps)
    assert scheduled(steps) == pytest.approx(scheduler.sigmas.tolist(), abs=1e-6)


def test_sigmas_are_what_recipes_say() -> None:
    whole = scheduled(28)
    expected = {
        "sd3.5-flash": [*(shifted(1 - i / 4) for i in range(4)), 0.0],
        "sd3.5-large-turbo": scheduled(4),
        "sd3.5-medium-turbo": scheduled(4),
        "sd3.5-swd-6": [*(round(whole[i], 4) for i in (0, 4, 7, 12, 14, 18)), 0.0],
    }
    for name, sigmas in expected.items():
        recipe = read_recipe(ROOT / "recipes" / f"{name}.toml")
        assert list(recipe.cut.sigmas) == [round(s, 6) for s in sigmas], name
        assert recipe.mode == ("renoise" if name == "sd3.5-swd-6" else "euler")


def test_medium_turbo_shows_eight_steps(tmp_path: Path) -> None:
    """As a line that takes the place of the one above it."""
    text = text_of("sd3.5-medium-turbo")
    four = re.search(r"^sigmas = .*\n", text, re.MULTILINE)
    assert four is not None
    file = tmp_path / "eight.toml"
    file.write_text(text.replace(four[0], "", 1).replace("\n# sigmas =", "\nsigmas =", 1))
    assert list(read_recipe(file).cut.sigmas) == [round(s, 6) for s in scheduled(8)]


def fourstep(*arguments: object) -> str:
    found = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.stdout


def adapt(checkpoint: Path, folder: Path) -> None:
    """A LoRA for a checkpoint's transformer, as PEFT saves one."""
    folder.mkdir()
    generator, tensors = torch.Generator().manual_seed(1), {}
    for name, source in open_checkpoint(str(checkpoint)).component("transformer").tensors.items():
        if name.endswith(("attn.to_q.weight", "attn.to_v.weight", "proj_out.weight")):
            out, inner = source.shape
            layer = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{layer}.lora_A.weight"] = torch.randn((4, inner), generator=generator)
            tensors[f"{layer}.lora_B.weight"] = torch.randn((out, 4), generator=generator) / 1000
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8})
    (folder / "adapter_config.json").write_text(settings)


def build_and_draw(name: str, checkpoint: Path, folder: Path, px: int | None = None) -> Path:
    """Build a shipped recipe with a checkpoint in the place that it names, and draw."""
    text = text_of(name)
    if px is not None:
        text = re.sub(r"^(width|height)_px = \d+$", rf"\1_px = {px}", text, flags=re.MULTILINE)
    file = folder / "recipes" / f"{name}.toml"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    recipe = read_recipe(file)
    Path(recipe.checkpoint).resolve().symlink_to(checkpoint)
    for lora in recipe.loras:
        adapt(checkpoint, lora.file.resolve())
    built = fourstep("build", file, "--no-golden", "--json", "--out", folder / "out")
    (package,) = [Path(row["path"]) for row in json.loads(built)]
    picture = folder / "fox.png"
    fourstep("run", package, "a red fox reading a newspaper", "--seed", 7, "--out", picture)
    pixels = np.asarray(Image.open(picture))
    assert pixels.shape == (recipe.cut.height_px, recipe.cut.width_px, 3)
    assert pixels.std() > 5, "a picture that shows nothing"
    manifest = open_package(package).manifest
    assert manifest.schedule.sigmas == recipe.cut.sigmas
    assert [lora.weight for lora in manifest.origin.loras] == [1.0] * (name == "sd3.5-swd-6")
    assert len(manifest.parts("denoiser")) == recipe.denoiser_parts
    return package


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("twins")
    names = [f"{name}-twin" for name in ("sd3-medium", *sorted({*PRESETS.values()}))]
    return {
        name: synthesize(find_preset(name), folder / name, with_t5=False).path for name in names
    }


@pytest.mark.parametrize("name", PRESETS)
def test_a_recipe_builds_and_draws_on_its_twin(
    name: str, twins: dict[str, Path], tmp_path: Path
) -> None:
    build_and_draw(name, twins[f"{PRESETS[name]}-twin"], tmp_path, TWIN_PX)


def test_stable_diffusion_3_medium_is_read_with_a_configuration_of_its_time(
    twins: dict[str, Path], tmp_path: Path
) -> None:
    """Which knew neither norms of queries and keys nor second attentions."""
    checkpoint = Path(shutil.copytree(twins["sd3-medium-twin"], tmp_path / "sd3-medium"))
    file = checkpoint / "transformer" / "config.json"
    config = json.loads(file.read_text())
    assert config.pop("qk_norm") is None and config.pop("dual_attention_layers") == []
    file.write_text(json.dumps(config))
    cut = read_recipe(ROOT / "recipes" / "sd3.5-medium-turbo.toml").cut
    graphs = cut_graphs(open_checkpoint(str(checkpoint), components_of(cut)), cut)
    assert [graph.name for graph in graphs] == [
        "clip_l", "clip_g", "conditioner", "denoiser", "vae_decoder",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("full")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.full
@pytest.mark.parametrize("name", BY_PRESET)
def test_a_recipe_builds_and_draws_at_full_size(name: str, full_size: Path, tmp_path: Path) -> None:
    """7 GB, 18 GB for Large Turbo, one checkpoint at a time; they do not outlive the tests."""
    preset = PRESETS[name]
    for other in full_size.iterdir():
        if other.name != preset:
            shutil.rmtree(other)
    checkpoint = full_size / preset
    if not checkpoint.exists():
        synthesize(find_preset(preset), checkpoint, with_t5=False)
    build_and_draw(name, checkpoint, tmp_path)
    shutil.rmtree(tmp_path / "out")

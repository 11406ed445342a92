"""``recipe`` and ``inspect`` of whatever is there: folders, single files, LoRAs, hub ids."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from exporter.build.model import open_asked
from exporter.checkpoint.component import CheckpointRemark
from exporter.cli import main
from exporter.network.assemble import cut_graphs
from exporter.recipe.draft import diffusers_sigmas, schedule_of
from exporter.recipe.recipe import Recipe, read_recipe
from tests.conftest import edit_json

LORA = {
    "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": (4, 96),
    "transformer.transformer_blocks.0.attn.to_q.lora_B.weight": (96, 4),
    "lora_unet_joint_blocks_1_x_block_attn_qkv.lora_down.weight": (8, 96),
    "lora_unet_joint_blocks_1_x_block_attn_qkv.lora_up.weight": (288, 8),
    "lora_unet_joint_blocks_1_x_block_attn_qkv.alpha": (),
}


def fourstep(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(main, list(arguments))
    return done.exit_code, done.stdout, done.stderr


def written(place: Path, file: Path) -> Recipe:
    code, told, wrong = fourstep("recipe", str(place), "-o", str(file))
    assert (code, told) == (0, f"{file}\n"), wrong
    return read_recipe(file)


def test_a_recipe_of_a_folder_fits_it(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "my recipes").mkdir()
    recipe = written(tiny_folder, tmp_path / "my recipes" / "mine.toml")
    text = (tmp_path / "my recipes" / "mine.toml").read_text("utf-8")
    assert Path(recipe.checkpoint).samefile(tiny_folder) and str(tiny_folder) in text
    assert (recipe.cut.width_px, recipe.cut.t5, recipe.mode) == (64, True, "euler")
    assert recipe.cut.sigmas == diffusers_sigmas(4, 3.0)
    assert "shift = 3 (from scheduler/scheduler_config.json)" in text
    assert cut_graphs(open_asked(recipe), recipe.cut)


def test_a_recipe_of_a_folder_without_t5(tiny_copy: Path, tmp_path: Path) -> None:
    shutil.rmtree(tiny_copy / "text_encoder_3")
    for name in ("transformer", "vae"):
        file = tiny_copy / name / "diffusion_pytorch_model.safetensors"
        shutil.copyfile(file, file.with_name("diffusion_pytorch_model.fp16.safetensors"))
        file.rename(file.with_name("diffusion_pytorch_model.bf16.safetensors"))
    code, _, wrong = fourstep("recipe", str(tiny_copy))
    assert code == 2 and "variants bf16, fp16" in wrong
    code, text, _ = fourstep("recipe", str(tiny_copy), "--variant", "fp16")
    file = tmp_path / "r.toml"
    file.write_text(text.replace('checkpoint = "', f'checkpoint = "{Path.cwd()}/'))
    recipe = read_recipe(file)
    assert code == 0 and recipe.variant == "fp16" and not recipe.cut.t5
    with pytest.warns(CheckpointRemark, match="text_encoder_2: no weights of variant"):
        assert cut_graphs(open_asked(recipe), recipe.cut)


def test_nothing_is_written_over(tiny_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("mine")
    code, _, wrong = fourstep("recipe", str(tiny_folder), "-o", str(file))
    assert code == 2 and "is there already; choose another name, or add --replace" in wrong
    assert file.read_text() == "mine"
    assert fourstep("recipe", str(tiny_folder), "-o", str(file), "--replace")[0] == 0
    read_recipe(file)


def test_what_a_recipe_needs_and_is_not_there(tiny_copy: Path, tmp_path: Path) -> None:
    shutil.rmtree(tiny_copy / "vae")
    shutil.rmtree(tiny_copy / "tokenizer_2")
    code, told, wrong = fourstep("recipe", str(tiny_copy), "-o", str(tmp_path / "x.toml"))
    assert code == 2 and not told and "nothing builds without vae, tokenizer_2;" in wrong
    assert wrong.count("\n") == 1 and not (tmp_path / "x.toml").exists()
    code, _, wrong = fourstep("recipe", "no/body")
    assert code == 2 and "fourstep fetch no/body" in wrong


def test_a_single_file_takes_what_lies_near_it(tiny_copy: Path) -> None:
    """A file of every component in ComfyUI's folders, and the tokenizers beside them."""
    models = tiny_copy / "models"
    places = {
        "transformer/diffusion_pytorch_model": "checkpoints/sd3_x",
        "text_encoder/model": "text_encoders/clip_l",
        "text_encoder_2/model": "text_encoders/clip_g_fp16",
        "vae/diffusion_pytorch_model": "vae/sd3_vae",
    }
    for source, target in places.items():
        place, component = models / f"{target}.safetensors", Path(source).parent.name
        (place.parent / component).mkdir(parents=True)
        shutil.copyfile(tiny_copy / f"{source}.safetensors", place)
        config = tiny_copy / component / "config.json"  # shapes alone do not tell the tiny one's
        shutil.copyfile(config, place.parent / component / "config.json")
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(tiny_copy / name, models / name)
    recipe = written(models / "checkpoints" / "sd3_x.safetensors", tiny_copy / "mine.toml")
    assert recipe.parts.keys() == {"text_encoder", "text_encoder_2", "vae"} and not recipe.cut.t5
    assert Path(recipe.tokenizers or "").samefile(models)
    assert cut_graphs(open_asked(recipe), recipe.cut)


@pytest.mark.parametrize(("shift", "steps"), [(3.0, 4), (1.0, 8), (2.5, 2), (3.0, 28)])
def test_sigmas_are_those_of_diffusers(shift: float, steps: int) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    ours = diffusers_sigmas(steps, shift)
    assert ours == pytest.approx(scheduler.sigmas.tolist(), abs=2e-6)


@pytest.mark.parametrize(
    ("place", "mode", "first", "said"),
    [
        ("x/sd3.5-flash", "euler", [1.0, 0.9], "not public"),
        ("yresearch/swd-medium-6-steps", "renoise", [1.0, 0.9454], "SwD's authors"),
        ("me/sd3.5-large-turbo", "euler", [1.0, 0.857692], "diffusers computes for 4 steps"),
        ("me/sd3.5-medium", "euler", [1.0, 0.857692], "does not say that it draws in few steps"),
    ],
)
def test_schedules_of_names(place: str, mode: str, first: list[float], said: str) -> None:
    found = schedule_of(place, {"shift": 3.0})
    assert found.mode == mode and list(found.sigmas[:2]) == first
    assert said in " ".join(found.lines)


def test_a_lora_is_told(tmp_path: Path) -> None:
    file = tmp_path / "style.safetensors"
    save_file({key: torch.zeros(shape) for key, shape in LORA.items()}, file)
    code, told, _ = fourstep("inspect", str(file))
    assert (code, told) == (0, f"{file}  LoRA, rank 4, 8, 2 layers\n")
    code, told, _ = fourstep("inspect", str(file), "--json")
    assert json.loads(told) == {"layout": "LoRA", "layers": 2, "ranks": [4, 8], "dora": False}
    code, _, wrong = fourstep("recipe", str(file))
    assert code == 2 and "is a LoRA (rank 4, 8, 2 layers) and changes" in wrong
    assert f'[[lora]] file = "{file}"' in wrong


def test_inspect_says_what_is_there_and_what_is_missing(tiny_copy: Path) -> None:
    shutil.rmtree(tiny_copy / "vae")
    edit_json(tiny_copy / "model_index.json", controlnet=["diffusers", "SD3ControlNetModel"])
    file = tiny_copy / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["proj_out.bias"] = tensors["proj_out.bias"].half()
    save_file(tensors, file)
    code, told, wrong = fourstep("inspect", str(tiny_copy))
    assert code == 0, wrong
    lines = told.splitlines()
    assert lines[0] == f"{tiny_copy}  diffusers folder, MMDiT-X of 3 layers, 96 wide"
    values = sum(tensor.numel() for tensor in tensors.values())
    assert f"transformer {values:>19,}  1 F16, {len(tensors) - 1} F32" in " ".join(lines[1:])
    assert lines[-2:] == ["  missing: vae", "  not used: controlnet"]
    code, told, _ = fourstep("inspect", str(tiny_copy), "--json")
    assert json.loads(told)["missing"] == ["vae"] and "graphs" not in json.loads(told)

"""Checkpoints of files that are no diffusers folder: single files, parts from elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from exporter.checkpoint.open import Checkpoint, open_checkpoint
from exporter.errors import InputError
from exporter.recipe.recipe import read_recipe
from tests.conftest import ROOT, SHAPES


def test_a_part_from_another_folder_is_the_checkpoints_own(
    tiny: Checkpoint, tiny_folder: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_folder, tmp_path / "base"))
    shutil.rmtree(base / "vae")
    shutil.rmtree(base / "text_encoder_3")
    with pytest.raises(InputError, match=r"'vae' \(AutoencoderKL\) is missing; name its file or"):
        open_checkpoint(str(base))
    parts = {name: str(tiny_folder / name) for name in ("vae", "text_encoder_3")}
    assert open_checkpoint(str(base), parts=parts).digest == tiny.digest


def test_tokenizers_from_another_folder(
    tiny: Checkpoint, tiny_folder: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_folder, tmp_path / "base"))
    for name in ("tokenizer", "tokenizer_2", "tokenizer_3"):
        shutil.rmtree(base / name)
    with pytest.raises(InputError, match="'tokenizer' is missing; name the folder .* tokenizers"):
        open_checkpoint(str(base)).tokenizer_folder("tokenizer")
    opened = open_checkpoint(str(base), tokenizers=str(SHAPES))
    assert opened.digest == tiny.digest
    assert opened.tokenizer_folder("tokenizer_2") == SHAPES / "tokenizer_2"


def test_a_part_that_is_not_used_is_refused(tiny_folder: Path) -> None:
    parts = {"text_encoder_3": str(tiny_folder / "text_encoder_3")}
    with pytest.raises(InputError, match="text_encoder_3: given as text_encoder_3, which is not"):
        open_checkpoint(str(tiny_folder), ("transformer", "vae"), parts=parts)


def recipe_with(folder: Path, lines: str, t5: bool = True) -> Path:
    """shapes-flash's recipe with more keys in ``[model]``."""
    recipe = (ROOT / "recipes" / "shapes-flash.toml").read_text(encoding="utf-8")
    recipe = recipe.replace('"../artifacts/shapes-flash"', f"'{SHAPES.as_posix()}'\n{lines}\n")
    recipe = recipe.replace('"shapes-flash.prompts.txt"', '["a red circle"]')
    file = folder / "r.toml"
    file.write_text(recipe.replace("t5 = true", f"t5 = {str(t5).lower()}"), encoding="utf-8")
    return file


def test_parts_of_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "enc").mkdir()
    read = read_recipe(recipe_with(tmp_path, "clip_l = 'enc'\ntokenizers = 'enc'"))
    assert read.parts == {"text_encoder": str(tmp_path / "enc")}
    assert read.tokenizers == str(tmp_path / "enc")
    plain = read_recipe(recipe_with(tmp_path, ""))
    assert read.digest("onnx") == plain.digest("onnx")  # where weights lie decides no bytes


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("vae = 'no.safetensors'", "[model] vae: {}/no.safetensors: no such file or folder"),
        ("tokenizers = 'no'", "[model] tokenizers: {}/no: no such file or folder"),
        ("vae = ''", "[model] vae is empty"),
        ("vae = 3", "[model] vae = 3: must be a string"),
    ],
)
def test_a_recipes_parts_that_are_not_there(tmp_path: Path, lines: str, said: str) -> None:
    file = recipe_with(tmp_path, lines)
    with pytest.raises(InputError) as error:
        read_recipe(file)
    assert str(error.value) == f"{file}: {said.format(tmp_path)}"


def test_a_recipe_without_t5_refuses_a_t5(tmp_path: Path) -> None:
    file = recipe_with(tmp_path, "t5 = 'r.toml'", t5=False)
    with pytest.raises(InputError, match=r"\[model\] t5 is given, and \[text\] t5 = false"):
        read_recipe(file)

"""What decides whether a package is kept: every file that a build reads or copies, and no other."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from exporter import backends
from exporter.backends.contract import Backend
from exporter.build import pipeline, resume
from exporter.build.write import Origin
from exporter.checkpoint.open import open_checkpoint
from exporter.files.staging import remove
from exporter.network.assemble import components_of
from exporter.progress import Progress
from exporter.recipe.plan import read_plan, write_plan
from exporter.recipe.recipe import Recipe, read_recipe
from tests.conftest import edit_json
from tests.test_package import digests

USED = ("text_encoder", "text_encoder_2", "transformer", "vae", "tokenizer", "tokenizer_2")
T5 = ("text_encoder_3", "tokenizer_3")


def basis(folder: Path, recipe: Recipe, plan: Path | None = None, name: str = "onnx") -> str:
    """What the reuse of a package is decided by."""
    checkpoint = open_checkpoint(str(folder), components_of(recipe.cut))
    found = read_plan(plan) if plan else None
    origin = Origin(found.scheme if found else recipe.scheme("int4"), found, {}, None)
    return resume.basis_of(recipe, checkpoint, backends.load(name), origin)


def change(file: Path) -> None:
    """Another byte at the end, which leaves every kind of file readable."""
    content = file.read_bytes()
    is_text = file.suffix in (".json", ".txt", ".toml", "")
    file.write_bytes(content + b"\n" if is_text else content[:-1] + bytes([content[-1] ^ 1]))


def changed(folder: Path, files: Iterable[Path], recipe: Recipe) -> dict[str, bool]:
    """Whether another byte in a file builds the package again, by the file's path."""
    before, found = basis(folder, recipe), {}
    for file in files:
        content = file.read_bytes()
        change(file)
        found[file.relative_to(folder).as_posix()] = basis(folder, recipe) != before
        file.write_bytes(content)
    assert basis(folder, recipe) == before
    return found


@pytest.mark.parametrize("t5", [True, False])
def test_every_file_that_is_read_or_copied_counts(
    tiny_copy: Path, tiny_recipe: Recipe, t5: bool
) -> None:
    """Of every file of a checkpoint; where there is no tokenizer.json, what it is made of too."""
    (tiny_copy / "NOTICE.txt").write_text("test weights")
    (tiny_copy / "README.md").write_text("read by nobody")
    (tiny_copy / "tokenizer" / "tokenizer.json").unlink()
    recipe = replace(tiny_recipe, cut=replace(tiny_recipe.cut, t5=t5))
    found = changed(tiny_copy, sorted(f for f in tiny_copy.rglob("*") if f.is_file()), recipe)
    unread = {"tokenizer_2/vocab.json", "tokenizer_2/merges.txt"}
    folders = USED + (T5 if t5 else ())
    expected = {
        name: (name.partition("/")[0] in folders and name not in unread)
        or name in ("LICENSE", "NOTICE.txt")
        for name in found
    }
    assert found == expected
    assert sum(found.values()) == (19 if t5 else 15)


def test_the_index_does_not_count(tiny_copy: Path, tiny_recipe: Recipe) -> None:
    """What it says is the same for every checkpoint that is not refused."""
    before = basis(tiny_copy, tiny_recipe)
    edit_json(tiny_copy / "model_index.json", vae=None, feature_extractor=None)
    assert basis(tiny_copy, tiny_recipe) == before


def test_a_licence_more_or_fewer_counts(tiny_copy: Path, tiny_recipe: Recipe) -> None:
    found = {basis(tiny_copy, tiny_recipe)}
    shutil.copyfile(tiny_copy / "LICENSE", tiny_copy / "LICENCE.txt")
    found.add(basis(tiny_copy, tiny_recipe))
    (tiny_copy / "LICENSE").unlink()
    found.add(basis(tiny_copy, tiny_recipe))
    assert len(found) == 3


def test_both_files_of_a_plan_count(tiny_folder: Path, tiny_recipe: Recipe, tmp_path: Path) -> None:
    file = tmp_path / "small.toml"
    write_plan(file, {"base": "int8"}, {"denoiser": {"*": "int4"}}, {"weights": []})
    found = {basis(tiny_folder, tiny_recipe, file)}
    for part in (file, file.with_suffix(".json")):
        change(part)
        found.add(basis(tiny_folder, tiny_recipe, file))
    file.with_suffix(".json").unlink()
    found.add(basis(tiny_folder, tiny_recipe, file))
    assert len(found) == 4


RECIPE = """
[model]
checkpoint = "{folder}"
[schedule]
sigmas = [1.0, 0.0]
[image]
width_px = 64
height_px = 64
[weights]
scheme = "int4"
[calibration]
prompts = "prompts.txt"
"""


def test_a_file_of_prompts_counts(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(RECIPE.format(folder=tiny_folder))
    found = set()
    for prompts in ("a circle", "a square"):
        (tmp_path / "prompts.txt").write_text(prompts)
        found.add(basis(tiny_folder, read_recipe(tmp_path / "tiny.toml")))
    assert len(found) == 2


def test_a_backend_of_another_distribution_counts_with_its_code(
    tiny_folder: Path, tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a working copy of it changes."""
    monkeypatch.syspath_prepend(tmp_path)
    onnx, found = type(backends.load("onnx")), set()
    for line in ("version = 1", "version = 2"):
        (tmp_path / "vendors_backend.py").write_text(line)
        __import__("vendors_backend")
        theirs: Backend = type("Theirs", (onnx,), {"__module__": "vendors_backend"})()
        monkeypatch.setattr(backends, "load", lambda _, theirs=theirs: theirs)
        resume._code_digest.cache_clear()
        found.add(basis(tiny_folder, tiny_recipe))
    resume._code_digest.cache_clear()
    assert len(found) == 2


def test_a_build_follows(tiny_copy: Path, tiny_recipe: Recipe, tmp_path: Path) -> None:
    """T5 changes and goes, unused: kept. A licence changes: built again, with the new one."""
    recipe = replace(
        tiny_recipe, checkpoint=str(tiny_copy), prompts=(), cut=replace(tiny_recipe.cut, t5=False)
    )

    def built() -> tuple[Path, bool]:
        lines: list[str] = []
        progress = Progress(lambda line, *_: lines.append(line))
        (found,) = pipeline.build(recipe, tmp_path / "out", ["onnx"], ["int4"], progress)
        return found.path, "onnx-int4 is whole already" in lines

    package, _ = built()
    before = digests(package)
    (tiny_copy / "text_encoder_3" / "model.safetensors").write_bytes(b"damaged")
    assert built() == (package, True)
    for folder in T5:
        remove(tiny_copy / folder)
    assert built() == (package, True) and digests(package) == before
    (tiny_copy / "LICENSE").write_text("other terms\n")
    assert built() == (package, False)
    assert (package / "LICENSE").read_text() == "other terms\n"

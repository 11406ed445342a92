"""The folder of statistics: whole or absent, used again only where it fits."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from exporter.build import model as model_module
from exporter.build.model import Model, calibrate, trace_model
from exporter.calibrate.inputs import gather
from exporter.calibrate.store import INDEX, Provenance, obtain, open_statistics
from exporter.calibrate.trajectories import Trajectories, travel
from exporter.calibrate.weights import Weights
from exporter.checkpoint.open import open_checkpoint
from exporter.drawing.loop import Player
from exporter.errors import InputError
from exporter.package.manifest import Guidance
from exporter.package.names import MMDIT
from exporter.program.program import Stored, linears
from exporter.progress import Progress
from exporter.recipe.recipe import CalibrationChoice, Recipe
from tests.conftest import edit_json


@pytest.fixture(scope="module")
def recipe(tiny_recipe: Recipe) -> Recipe:
    few = CalibrationChoice(("a red circle", "two stars"), 5, ("feedback",))
    cut = replace(tiny_recipe.cut, sigmas=(1.0, 0.5, 0.0))
    return replace(tiny_recipe, cut=cut, calibration=few, prompts=())


@pytest.fixture(scope="module")
def model(recipe: Recipe) -> Model:
    return trace_model(recipe, 1 << 30, Progress())


@pytest.fixture(scope="module")
def written(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with statistics of the MMDiT. Copy them before damaging them."""
    folder = tmp_path_factory.mktemp("out") / "statistics"
    calibrate(model, MMDIT, folder, Progress())
    return folder


@pytest.fixture
def copied(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "statistics"))


def inside(folder: Path) -> Path:
    """The statistics of the one provenance that a folder has."""
    (place,) = folder.iterdir()
    return place


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """The prompts of every drawing in torch from here on."""
    seen: list[Sequence[str]] = []

    def counted(player: Player, prompts: Sequence[str], seed: int) -> Trajectories:
        seen.append(prompts)
        return travel(player, prompts, seed)

    monkeypatch.setattr(model_module, "travel", counted)
    return seen


def content(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_what_was_measured_is_read_again(model: Model, written: Path) -> None:
    found, count = open_statistics(inside(written)), 0

    def compare(weights: Sequence[Stored], inputs: object) -> None:
        nonlocal count
        for weight in weights:
            layer = found.layer(weight)
            assert layer is not None and layer.tokens == inputs.tokens  # type: ignore[attr-defined]
            assert torch.equal(layer.mean, inputs.mean)  # type: ignore[attr-defined]
            assert torch.equal(layer.covariance, inputs.covariance)  # type: ignore[attr-defined]
            count += 1

    for graph in MMDIT:
        calls = model.trajectories.calls[graph]
        gather(model.programs[graph], model.weights.read, calls, compare)
    assert count == len(found.files) == sum(len(linears(model.programs[g])) for g in MMDIT)
    assert found.layer(Stored("text_encoder", "x.weight", (1, 1))) is None
    assert found.provenance.graphs == MMDIT and found.provenance.prompts == 2
    assert found.scalings


def test_layers_that_read_the_same_share_a_file(written: Path) -> None:
    files = open_statistics(inside(written)).files
    names = [f"transformer_blocks.0.attn.to_{x}.weight" for x in "qkv"]
    assert len({files["transformer", name] for name in names}) == 1
    assert len(set(files.values())) < len(files)


def test_the_same_measurement_gives_the_same_files(
    model: Model, written: Path, tmp_path: Path
) -> None:
    again = calibrate(replace(model), MMDIT, tmp_path / "new" / "statistics", Progress())
    assert again.sha256 == open_statistics(inside(written)).sha256
    assert content(tmp_path / "new" / "statistics") == content(written)
    assert [f.name for f in (tmp_path / "new").iterdir()] == ["statistics"]


def test_statistics_that_fit_are_used_without_the_model(
    model: Model, copied: Path, drawn: list[Sequence[str]]
) -> None:
    before = content(copied)
    for graphs in (MMDIT, ("denoiser",)):
        found = calibrate(replace(model), graphs, copied, Progress())
        assert set(found.provenance.graphs) == set(MMDIT)
    assert not drawn and content(copied) == before


def changed(recipe: Recipe, **changes: object) -> Recipe:
    return replace(recipe, calibration=replace(recipe.calibration, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("what", ["prompts", "order", "seed", "cut", "mode", "guidance", "graphs"])
def test_statistics_of_anything_else_are_measured_anew(
    model: Model, copied: Path, drawn: list[Sequence[str]], what: str
) -> None:
    recipe = model.recipe
    other, graphs = {
        "prompts": (changed(recipe, prompts=("a red circle", "a star")), MMDIT),
        "order": (changed(recipe, prompts=recipe.calibration.prompts[::-1]), MMDIT),
        "seed": (changed(recipe, seed=6), MMDIT),
        "cut": (replace(recipe, cut=replace(recipe.cut, sigmas=(1.0, 0.6, 0.0))), MMDIT),
        "mode": (replace(recipe, mode="renoise"), MMDIT),
        "guidance": (recipe.with_guidance(Guidance(4.5)), MMDIT),
        "graphs": (recipe, ("clip_l", *MMDIT)),
    }[what]
    place, whole = inside(copied), content(copied)
    before = open_statistics(place)
    found = calibrate(replace(model, recipe=other), graphs, copied, Progress())
    assert drawn == [other.calibration.prompts]
    assert found.sha256 != before.sha256 and found.provenance.graphs == graphs
    assert not found.provenance.covers(before.provenance) or what == "graphs"
    assert [f.name for f in copied.parent.iterdir()] == ["statistics"]
    # What took long to measure is still there, and serves who asks for it.
    assert content(copied).items() > whole.items() and len(list(copied.iterdir())) == 2
    assert calibrate(replace(model), MMDIT, copied, Progress()).provenance.covers(before.provenance)
    assert len(drawn) == 1


def test_another_checkpoint_is_measured_anew(
    model: Model, copied: Path, tiny_copy: Path, drawn: list[Sequence[str]]
) -> None:
    file = tiny_copy / "transformer" / "diffusion_pytorch_model.safetensors"
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.write_bytes(damaged)
    other = open_checkpoint(str(tiny_copy))
    before = open_statistics(inside(copied)).provenance
    moved = replace(model, checkpoint=other, weights=Weights(other))
    found = calibrate(moved, MMDIT, copied, Progress())
    assert len(drawn) == 1
    assert found.provenance == replace(before, checkpoint_sha256=other.digest) != before


REMEDY = "delete the folder, and the next build measures anew"


def test_damaged_statistics_are_one_line(copied: Path) -> None:
    copied = inside(copied)

    def refused(message: str) -> None:
        with pytest.raises(InputError, match=message) as found:
            open_statistics(copied)
        line = str(found.value)
        assert line.startswith(str(copied)) and line.endswith(REMEDY) and "\n" not in line

    file, index = copied / "0000.safetensors", copied / INDEX
    whole, text = file.read_bytes(), index.read_text()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused("0000.safetensors: is damaged")
    file.unlink()
    refused("not a folder of statistics .*No such file")
    file.write_bytes(whole)
    for damage in (text[: len(text) // 2], "[]", "{}", '{"format_version": 1}', "\x00"):
        index.write_text(damage)
        refused("not a folder of statistics")
    index.write_text(text)
    edit_json(index, format_version=7)
    refused("statistics of format 7, this fourstep reads 1")
    index.unlink()
    refused("not a folder of statistics")


def test_damaged_statistics_are_not_measured_over(model: Model, copied: Path) -> None:
    (inside(copied) / "0000.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="0000.safetensors: is damaged; delete the folder"):
        calibrate(model, MMDIT, copied, Progress())
    (inside(copied) / INDEX).write_text("{")
    with pytest.raises(InputError, match="not a folder of statistics .* delete the folder"):
        calibrate(model, MMDIT, copied, Progress())


def test_damaged_statistics_of_another_provenance_are_not_looked_into(
    model: Model, copied: Path
) -> None:
    other = replace(model, recipe=changed(model.recipe, seed=6))
    (inside(copied) / INDEX).write_text("{")
    assert calibrate(other, MMDIT, copied, Progress()).provenance.seed == 6


def test_statistics_of_an_earlier_version_lie_in_the_folder_itself(
    model: Model, written: Path, tmp_path: Path, drawn: list[Sequence[str]]
) -> None:
    """They are used where they fit, and stay where they do not."""
    flat = Path(shutil.copytree(inside(written), tmp_path / "statistics"))
    whole = content(flat)
    assert calibrate(replace(model), MMDIT, flat, Progress()).folder == flat and not drawn
    other = replace(model, recipe=changed(model.recipe, seed=6))
    assert calibrate(other, MMDIT, flat, Progress()).folder.parent == flat
    assert len(drawn) == 1 and content(flat).items() > whole.items()


def test_what_a_kill_has_left_is_removed(model: Model, tmp_path: Path) -> None:
    folder = tmp_path / "statistics"
    (folder / ".0123456789abcdef.partial").mkdir(parents=True)
    (folder / ".fourstep.lock").write_text("")
    calibrate(model, MMDIT, folder, Progress())
    assert [f.name for f in folder.iterdir()] == [model.provenance(MMDIT).key]


def provenance() -> Provenance:
    return Provenance("a", "b", "c", 1, 0, MMDIT)


def test_a_measurement_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def measure(folder: Path) -> None:
        (folder / "0000.safetensors").write_bytes(b"x")
        raise InputError("no more")

    with pytest.raises(InputError, match="no more"):
        obtain(tmp_path / "new" / "statistics", provenance(), measure, print)
    assert list(tmp_path.iterdir()) == []


def test_a_measurement_that_fails_leaves_the_old_statistics(copied: Path) -> None:
    before = content(copied)

    def measure(folder: Path) -> None:
        (folder / "0000.safetensors").write_bytes(b"x")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    message = "the disk is full; free space or choose another folder for statistics$"
    with pytest.raises(InputError, match=message):
        obtain(copied, provenance(), measure, print)
    assert content(copied) == before
    assert [f.name for f in copied.parent.iterdir()] == ["statistics"]


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    def measure(folder: Path) -> None:
        raise AssertionError("measured")

    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("all of it")
    for place in (precious, precious / "thesis.txt"):
        message = "is there and holds no statistics; choose another folder for statistics$"
        with pytest.raises(InputError, match=message):
            obtain(place, provenance(), measure, print)
    assert content(tmp_path) == {"precious/thesis.txt": b"all of it"}


def test_an_empty_folder_is_taken(model: Model, tmp_path: Path) -> None:
    folder = tmp_path / "statistics"
    folder.mkdir()
    calibrate(model, MMDIT, folder, Progress())
    assert open_statistics(inside(folder)).provenance.graphs == MMDIT

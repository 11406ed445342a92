"""A package is built again from what it holds, and every byte is compared."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from exporter.build import rebuild as again
from exporter.build.pipeline import Built
from exporter.build.rebuild import differing, rebuild
from exporter.errors import CheckFailed, InputError
from exporter.marking.key import MarkKey
from exporter.package.read import read_manifest, write_manifest
from exporter.recipe.again import Givens, loras_of, mark_of, recipe_again
from exporter.recipe.recipe import MarkChoice, Recipe
from exporter.runtime.package import open_package
from tests.conftest import KEY_OF_MARKS, ROOT, SHAPES, seal
from tests.test_cli import fourstep

KEY = KEY_OF_MARKS
OLD = ROOT / "tests" / "packages" / "4.0" / "onnx-int8"


def no_build(*_: object, **__: object) -> list[Built]:
    raise AssertionError("something is built")


def test_it_is_the_same(stability: Path, stability_folder: Path, tmp_path: Path) -> None:
    """In another folder, with one thread, another hash seed, HOME and LANG.

    The package has a mark and a notice.
    """
    key = tmp_path / "mark.key"
    key.write_text(KEY_OF_MARKS.secret.hex())
    key.chmod(0o600)
    changed = {
        "HOME": str(tmp_path),
        "LANG": "tr_TR.UTF-8",
        "OMP_NUM_THREADS": "1",
        "PYTHONHASHSEED": "7",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-W", "ignore", "-m", "exporter", "rebuild", str(stability)]
    done = subprocess.run(
        [*command, "--checkpoint", str(stability_folder), "--mark-key", str(key), "--json"],
        env=os.environ | changed,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert row["same"] and row["differences"] == [] and row["tools"] == {}
    assert row["files"] == len([f for f in stability.rglob("*") if f.is_file()])
    assert [*tmp_path.iterdir()] == [key]


def test_what_differs_is_named(
    tiny_package: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tools first, then files, with the first key or byte."""
    there = Path(shutil.copytree(tiny_package, tmp_path / "there"))
    manifest = read_manifest(there)
    tools = manifest.origin.tools | {"onnx": "1.0.0"}
    write_manifest(there, replace(manifest, origin=replace(manifest.origin, tools=tools)))
    built = Path(shutil.copytree(tiny_package, tmp_path / "out" / tiny_package.name))
    with (built / "golden" / "0.png").open("r+b") as file:
        file.seek(5)
        file.write(b"\xff")
    (built / "recipe.json").unlink()
    row = Built(built, "onnx", "int4", 0, None)  # type: ignore[arg-type]
    monkeypatch.setattr(again, "build", lambda *_, **__: [row])
    found = rebuild(open_package(there), Givens(str(tiny_folder)), tmp_path / "out")
    assert not found.same
    assert found.tools == {"onnx": ("1.0.0", manifest.origin.tools["onnx"])}
    said = {difference.path: difference.where for difference in found.differences}
    assert said.keys() == {"golden/0.png", "manifest.json", "manifest.sha256", "recipe.json"}
    assert said["golden/0.png"].startswith("from byte 5, of ")
    assert said["manifest.json"].startswith("origin.tools.onnx: from byte ")
    assert said["recipe.json"] == "is not there when it is built again"
    shown = fourstep("rebuild", there, "--checkpoint", tiny_folder)
    assert shown.exit_code == 1
    first, *_ = shown.stdout.splitlines()
    assert first == f"onnx: 1.0.0 then, {manifest.origin.tools['onnx']} now"
    assert "4 of 27 files differ; tools of other versions: onnx" in shown.stderr


def test_another_checkpoint_is_refused_before_anything_is_built(
    tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(again, "build", no_build)
    done = fourstep("rebuild", tiny_package, "--checkpoint", SHAPES)
    assert done.exit_code == 2 and done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert f"{SHAPES}: another checkpoint than the package was built from (SHA-256 " in line


def test_a_damaged_package_is_refused(tiny_package: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_package, tmp_path / "copy"))
    (copy / "LICENSE").write_text("other")
    done = fourstep("rebuild", copy, "--checkpoint", SHAPES)
    assert done.exit_code == 2 and "LICENSE: damaged" in done.stderr


def test_a_recipe_comes_back_whole(tiny_package: Path, tiny_folder: Path) -> None:
    manifest = read_manifest(tiny_package)
    where = tiny_package / "recipe.json"
    given = Givens(str(tiny_folder))
    found = recipe_again(where.read_text(), where, tiny_package, manifest, given)
    assert found.digest("onnx") == manifest.origin.recipe_sha256
    assert found.checkpoint == str(tiny_folder) and found.backends == ("onnx",)
    with pytest.raises(InputError, match="places: unknown key of .model. 'vea'; known: .*vae"):
        recipe_again(
            where.read_text(), where, tiny_package, manifest, replace(given, places={"vea": "x"})
        )


CHANGES: dict[str, dict[str, Any]] = {
    "later": {"later": True},
    "spelled": {"seed": 1.0},
    "a list": {},
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_recipe_that_is_not_understood_is_not_built(name: str, tiny_package: Path) -> None:
    where = tiny_package / "recipe.json"
    raw = json.loads(where.read_text()) | CHANGES[name]
    text = json.dumps([] if name == "a list" else raw, sort_keys=True)
    with pytest.raises(CheckFailed, match=r"recipe\.json: "):
        recipe_again(text, where, tiny_package, read_manifest(tiny_package), Givens("x"))


def test_every_choice_of_a_recipe_comes_back(tiny_recipe: Recipe, tiny_package: Path) -> None:
    """Of what the shipped recipes do not use: guidance, parts, overrides, a licence, a target."""
    from exporter.network.cut import Ends
    from exporter.package.manifest import Guidance
    from exporter.package.sizes import PictureSize
    from exporter.quantize.formats import FORMATS, Rule, roles_for

    manifest = read_manifest(tiny_package)
    mark = MarkChoice(7, KEY)
    form = replace(FORMATS["int4"], group_size=32, symmetric=False)
    recipe = replace(
        tiny_recipe,
        licence="LicenseRef-mine",
        denoiser_parts=2,
        device_memory_bytes=1 << 40,
        group_size=32,
        overrides=(Rule("denoiser", "*.ff.*", form, roles_for(form)),),
        cut=replace(tiny_recipe.cut, ends=Ends("tiny", "tiny", "tiny")),
        further_sizes=(PictureSize(96, 64),),
        calibration=replace(tiny_recipe.calibration, size=PictureSize(96, 64)),
        mark=mark,
        choices=tuple(
            replace(c, choices={"target": "web"}) if c.name == "onnx" else c
            for c in tiny_recipe.choices
        ),
    ).with_guidance(Guidance(4.5, "text, blur"))
    text = recipe.normal_form("onnx")
    marked = replace(manifest, mark=mark.entry)
    given = Givens("there", {"tiny_decoder": "d", "vae": "v", "config": "c"}, (), KEY)
    found = recipe_again(text, Path("recipe.json"), tiny_package, marked, given)
    assert found.normal_form("onnx") == text
    assert (found.tiny.decoder, found.parts, found.config) == ("d", {"vae": "v"}, "c")
    assert found.cut == recipe.cut and found.overrides == recipe.overrides
    assert found.sizes == recipe.sizes and found.calibrated_size == PictureSize(96, 64)


def test_the_key_of_a_mark_has_to_be_given() -> None:
    entry = MarkChoice(7, KEY).entry
    assert mark_of(entry, KEY) == MarkChoice(7, KEY) and mark_of(None, None) is None
    with pytest.raises(InputError, match="mark_key: pictures are marked with key .* give its file"):
        mark_of(entry, None)
    with pytest.raises(InputError, match="mark_key: is key .*, and pictures are marked with key"):
        mark_of(entry, MarkKey(bytes(32)))
    with pytest.raises(InputError, match="mark_key: is given, and the package has no mark"):
        mark_of(None, KEY)


def test_loras_have_to_be_given(tiny_package: Path) -> None:
    from exporter.package.manifest import LoraEntry

    manifest = read_manifest(tiny_package)
    with pytest.raises(InputError, match="loras: 0 LoRAs were merged, and 1 are given"):
        loras_of(manifest, [Path("a")])
    origin = replace(manifest.origin, loras=(LoraEntry("ab" * 32, 0.5),))
    (lora,) = loras_of(replace(manifest, origin=origin), [Path("a")])
    assert (lora.file, lora.weight) == (Path("a"), 0.5)


def test_a_package_without_a_recipe_asks_for_one(tmp_path: Path) -> None:
    done = fourstep("rebuild", OLD, "--checkpoint", SHAPES)
    assert done.exit_code == 2 and "--recipe: " in done.stderr and "holds no recipe" in done.stderr
    other = ROOT / "recipes" / "shapes-flash.toml"
    done = fourstep("rebuild", OLD, "--checkpoint", SHAPES, "--recipe", other)
    assert done.exit_code == 2 and "is not the recipe that the package was built" in done.stderr


@pytest.mark.parametrize("part", ["vae", "=x", "vae=", ""])
def test_a_part_is_a_key_and_a_place(part: str, tiny_package: Path) -> None:
    done = fourstep("rebuild", tiny_package, "--checkpoint", SHAPES, "--part", part)
    assert done.exit_code == 2 and "a key of [model] and a place are expected" in done.stderr


def test_tools_that_came_or_went() -> None:
    then, now = {"a": "1", "b": "1", "c": "1"}, {"b": "2", "c": "1", "d": "1"}
    assert differing(then, now) == {"a": ("1", ""), "b": ("1", "2"), "d": ("", "1")}


def test_a_file_that_only_one_has(tiny_package: Path, tmp_path: Path) -> None:
    """Strays beside a package are not compared, and neither is who signed it."""
    copy = Path(shutil.copytree(tiny_package, tmp_path / "copy"))
    (copy / ".gitattributes").write_text("x")
    (copy / "model.sig").write_text("x")
    manifest = json.loads((copy / "manifest.json").read_text())
    seal(copy, manifest)
    listed = again._listed(open_package(copy), tiny_package)
    assert not {".gitattributes", "model.sig"} & listed and "recipe.json" in listed


def assert_rebuilt(built: Built, place: Path) -> None:
    """A package of shapes-flash, with one thread, another hash seed, HOME and LANG."""
    changed = {"HOME": str(place), "LANG": "C", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "3"}
    command = [sys.executable, "-W", "ignore", "-m", "exporter", "rebuild", str(built.path)]
    done = subprocess.run(
        [*command, "--checkpoint", str(SHAPES), "--statistics", str(place / "statistics")],
        env=os.environ | changed | {"PYTHONPATH": str(ROOT)},
        cwd=place,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (built.path.name, done.stdout, done.stderr)


def test_shapes_flash_is_the_same(shapes_packages: dict[str, Built], tmp_path: Path) -> None:
    assert_rebuilt(shapes_packages["onnx-int8"], tmp_path)


@pytest.mark.full
def test_every_package_of_shapes_flash_is_the_same(
    shapes_packages: dict[str, Built], tmp_path: Path
) -> None:
    for built in shapes_packages.values():
        assert_rebuilt(built, tmp_path)

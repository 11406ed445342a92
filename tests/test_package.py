"""Packages: whole or absent, the same bytes every time, and a changed byte is found."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from exporter.backends.onnx import BACKEND as backend
from exporter.build import golden, shared
from exporter.build.pipeline import build
from exporter.drawing.loop import Image, Request, generate
from exporter.errors import CheckFailed, InputError
from exporter.quantize.formats import FORMATS, Rule
from exporter.recipe.recipe import Recipe
from exporter.runtime.package import open_package
from exporter.runtime.verify import verify
from tests.conftest import opened_by, seal


def digests(folder: Path) -> dict[str, str]:
    return {
        f.relative_to(folder).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in sorted(folder.rglob("*"))
        if f.is_file()
    }


@pytest.fixture
def package(tiny_package: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_package, tmp_path / "package"))


def test_what_is_inside(tiny_package: Path) -> None:
    manifest = open_package(tiny_package).manifest
    assert [g.name for g in manifest.graphs] == [
        "clip_l",
        "clip_g",
        "t5",
        "conditioner",
        "denoiser",
        "vae_decoder",
        "vae_encoder",
    ]
    listed = {f.path for f in manifest.files} | {f.path for g in manifest.graphs for f in g.files}
    assert listed | {"manifest.json", "manifest.sha256"} == set(digests(tiny_package))
    assert (tiny_package / "LICENSE").read_text() == "test weights\n"
    assert manifest.origin.licence == "LICENSE"
    denoiser = manifest.graph("denoiser")
    assert denoiser is not None and denoiser.formats["int4-g32"] > 100_000
    # Widths of 96 are not divided by groups of 64: each is listed with what it got.
    assert {(a.asked, a.used) for a in denoiser.adjusted} >= {("int4-g64", "int4-g32")}
    peak = manifest.device.predicted_peak_bytes
    assert peak is not None and peak > manifest.graphs[0].bytes


def test_graphs_can_stay_open_between_pictures(tiny_package: Path) -> None:
    requests = [Request("a red circle", seed=7)]
    package = open_package(tiny_package)
    opened = {}
    for keep in (True, False):
        player = package.player(keep=keep)
        first, again = (list(generate(player, requests))[-1] for _ in range(2))
        assert isinstance(first, Image) and isinstance(again, Image)
        assert np.array_equal(first.pixels, again.pixels)
        opened[keep] = player.open("denoiser") is player.open("denoiser")
    assert opened == {True: True, False: False}


def test_graphs_that_stay_open_are_opened_ahead(
    tiny_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the one that few pictures need, and none twice."""
    opened = opened_by(monkeypatch)
    package = open_package(tiny_package)
    names = [graph.name for graph in package.manifest.graphs]
    ahead = [name for name in names if name != "vae_encoder"]
    assert len(ahead) == len(names) - 1
    player = package.player(keep=True)
    player.open(ahead[-1])
    for name in ahead:
        player.open(name)
    assert sorted(opened) == sorted(ahead)
    assert player.open("vae_encoder") is player.open("vae_encoder")
    assert sorted(opened) == sorted(names)


def test_damaged_weights_are_named_before_they_are_used(tiny_package: Path, tmp_path: Path) -> None:
    """Their digests are taken while the graph is opened; their sizes before."""
    shutil.copytree(tiny_package, tmp_path / "package")
    package = open_package(tmp_path / "package")
    weights = package.folder / "graphs" / "denoiser" / "denoiser.onnx.data"
    content = bytearray(weights.read_bytes())
    content[1000] ^= 1
    weights.write_bytes(content)
    for player in (package.player(), package.player(keep=True)):
        with pytest.raises(CheckFailed, match=r"denoiser\.onnx\.data: damaged: SHA-256"):
            player.open("denoiser")
    weights.write_bytes(content[:-1])
    with pytest.raises(CheckFailed, match=r"denoiser\.onnx\.data: damaged: .* bytes where"):
        package.session("denoiser")


def test_two_builds_give_the_same_bytes(
    tiny_recipe: Recipe, tiny_package: Path, tmp_path: Path
) -> None:
    (again,) = build(tiny_recipe, tmp_path / "deep" / "er", ["onnx"], ["int4"])
    assert digests(again.path) == digests(tiny_package)


def test_verify_passes(tiny_package: Path) -> None:
    report = verify(open_package(tiny_package))
    assert report.ok and len(report.graphs) == 7
    assert all(g.calls > 0 and g.exact <= 1e-4 for g in report.graphs)
    assert all(i.exact_db >= 40 for i in report.images)
    assert report.vectors == 3 + 9 + 3 + 1 + 4 + 4 + 1  # ids, noise; a picture's own
    json.loads(report.to_json())


@pytest.mark.parametrize(
    "file",
    [
        "graphs/denoiser/denoiser.onnx",
        "graphs/denoiser/denoiser.onnx.data",
        "tokenizer/clip_l.json",
        "golden/0.safetensors",
        "golden/tokens.json",
        "golden/noise.safetensors",
        "LICENSE",
    ],
)
def test_a_changed_byte_is_found(package: Path, file: str) -> None:
    data = bytearray((package / file).read_bytes())
    data[len(data) // 2] ^= 1
    (package / file).write_bytes(data)
    with pytest.raises(CheckFailed, match=rf"{file}: damaged: SHA-256 differs"):
        verify(open_package(package))


def test_a_truncated_file_is_found(package: Path) -> None:
    file = package / "graphs/vae_decoder/vae_decoder.onnx.data"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckFailed, match="bytes where the manifest says"):
        open_package(package).session("vae_decoder")


def test_a_missing_file_is_found(package: Path) -> None:
    (package / "graphs/t5/t5.onnx").unlink()
    with pytest.raises(CheckFailed, match="t5.onnx: cannot be read"):
        verify(open_package(package))


def test_wrong_numbers_fail_parity(package: Path) -> None:
    """A package whose files match its manifest but whose graph computes something else."""
    manifest = json.loads((package / "manifest.json").read_text())
    graph = next(g for g in manifest["graphs"] if g["name"] == "vae_decoder")
    file = package / "graphs/vae_decoder/vae_decoder.onnx.data"
    data = bytearray(file.read_bytes())
    data[:4000] = bytes(4000)
    file.write_bytes(data)
    entry = next(f for f in graph["files"] if f["path"].endswith(".data"))
    entry["sha256"] = hashlib.sha256(data).hexdigest()
    seal(package, manifest)
    report = verify(open_package(package))
    assert not report.ok
    assert any(f.startswith("vae_decoder: relative error") for f in report.failures)


def test_not_a_package(tmp_path: Path, tiny_package: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        open_package(tmp_path / "none")
    with pytest.raises(InputError, match="not a package .*; packages in it: onnx-int4"):
        open_package(tiny_package.parent)


def fail(error: Exception) -> object:
    def emit(*_: object) -> None:
        raise error

    return emit


def test_a_full_disk_leaves_nothing(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(type(backend), "emit", fail(full))
    with pytest.raises(InputError, match="the disk is full; free space or choose another place"):
        build(tiny_recipe, tmp_path / "out", ["onnx"], ["int4"])
    assert list(tmp_path.iterdir()) == []


def test_a_failure_keeps_the_older_package(
    tiny_recipe: Recipe, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = package.parent
    older = package.rename(out / "onnx-int4")
    before = digests(older)
    monkeypatch.setattr(type(backend), "emit", fail(KeyboardInterrupt()))  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        build(tiny_recipe, out, ["onnx"], ["int4"])
    assert digests(older) == before
    assert [f.name for f in out.iterdir()] == ["onnx-int4"]


def test_a_disk_that_is_too_small_is_refused_before_the_start(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(InputError, match=r"needs \d MB and 0 MB are free; free space or choose"):
        build(tiny_recipe, tmp_path / "out", ["onnx"], ["int4"])
    assert not (tmp_path / "out").exists()


def test_a_read_only_folder_is_refused(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is traced."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(shared, "trace_model", lambda *_: pytest.fail("traced"))
    with pytest.raises(InputError, match="cannot be written; choose another place"):
        build(tiny_recipe, tmp_path / "out", ["onnx"], ["int4"])
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file(tiny_recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="choose another place"):
        build(tiny_recipe, tmp_path / "file", ["onnx"], ["int4"])


def test_a_pattern_that_matches_nothing_is_refused(tiny_recipe: Recipe, tmp_path: Path) -> None:
    rule = Rule("denoiser", "transfomer_blocks.*", FORMATS["int8"], ("linear",))
    with pytest.raises(InputError, match=r"matches 'transfomer_blocks\.\*', such as '"):
        build(replace(tiny_recipe, overrides=(rule,)), tmp_path / "out", ["onnx"], ["int4"])
    assert not (tmp_path / "out").exists()


def test_a_format_that_a_backend_cannot_express_is_refused(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        type(backend), "refuse", lambda _, form, __: "no 4 bits" if form.bits == 4 else None
    )
    drawn: list[object] = []
    monkeypatch.setattr(golden.Painter, "draw", lambda *a: drawn.append(a))
    with pytest.raises(InputError, match=r"onnx cannot express scheme int4 .*: no 4 bits"):
        build(tiny_recipe, tmp_path / "out", ["onnx"], ["int8", "int4"])
    assert not drawn  # refused before anything is computed

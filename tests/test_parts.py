"""A graph in consecutive parts computes what the whole one computes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from exporter import backends
from exporter.build.pipeline import build
from exporter.calibrate.weights import Weights
from exporter.checkpoint.open import Checkpoint
from exporter.drawing.loop import Image, Request, Session, generate
from exporter.errors import InputError
from exporter.network.assemble import cut_graphs
from exporter.program.run import run
from exporter.program.trace import trace
from exporter.quantize.program import QuantizedProgram, quantize_all
from exporter.quantize.schemes import load_scheme
from exporter.quantize.split import split
from exporter.recipe.recipe import Recipe, read_recipe
from exporter.report import diagrams
from exporter.runtime.package import Package, open_package
from tests.conftest import ROOT, SMALL, needs, random_inputs


@pytest.fixture(scope="module", params=["fp32", "int4"])
def programs(request: pytest.FixtureRequest, tiny: Checkpoint) -> dict[str, QuantizedProgram]:
    found = {g.name: trace(g) for g in cut_graphs(tiny, SMALL)}
    return quantize_all(found, load_scheme(request.param))


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("name", ["t5", "vae_decoder"])
def test_parts_in_turn_are_the_whole(
    programs: dict[str, QuantizedProgram], tiny: Checkpoint, name: str, count: int
) -> None:
    whole, weights = programs[name], Weights(tiny)
    inputs = random_inputs(whole)
    expected = run(whole, weights.read, inputs)
    for part in split(whole, count):
        assert [p.name for p in part.inputs] == list(inputs)
        inputs = run(part, weights.read, inputs)
        assert {p.name: p.shape for p in part.outputs} == {k: v.shape for k, v in inputs.items()}
    for port, value in expected.items():
        assert torch.equal(inputs[port], value)


def test_parts_share_the_weights_evenly(programs: dict[str, QuantizedProgram]) -> None:
    whole = programs["t5"]
    first, second = split(whole, 2)
    assert (first.name, second.name) == ("t5-1", "t5-2")
    assert 0.4 < first.stored_bytes() / whole.stored_bytes() < 0.7
    both = {*first.stored()} & {*second.stored()}
    assert both == {"encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"}
    assert {*first.stored()} | {*second.stored()} == {*whole.stored()}
    adjusted = {a.weight for part in (first, second) for a in part.adjusted}
    assert adjusted == {a.weight for a in whole.adjusted}


def test_too_many_parts(programs: dict[str, QuantizedProgram]) -> None:
    with pytest.raises(InputError, match=r"t5 can be cut into at most \d+ parts"):
        split(programs["t5"], 60)
    with pytest.raises(InputError, match="clip_g can be cut into at most 1 parts"):
        split(programs["clip_g"], 2)


@pytest.mark.parametrize("name", ["clip_g", "t5", "conditioner", "denoiser", "vae_decoder"])
def test_a_part_that_holds_nothing_is_refused(
    programs: dict[str, QuantizedProgram], name: str
) -> None:
    """Also where there are places enough: as many parts as are of use can be had, and no more."""
    most = 1
    for count in range(2, 16):
        try:
            parts = split(programs[name], count)
        except InputError as error:
            assert f"{name} can be cut into at most {most} parts: " in str(error)
            continue
        most = count
        share = sum(part.stored_bytes() for part in parts) / count
        assert all(part.stored_bytes() > 0.09 * share for part in parts)
    assert (most > 2) == (name in ("t5", "vae_decoder"))


def drawn(package: Package) -> tuple[list[str], list[np.ndarray]]:
    """Which graphs are opened for two prompts, and the two pictures."""
    opened: list[str] = []
    player = package.player(backends.SessionOptions("float32"))

    def noted(name: str) -> Session:
        opened.append(name)
        return player.open(name)

    prompts = [Request("a red circle"), Request("a blue square")]
    events = generate(replace(player, open=noted), prompts)
    return opened, [e.pixels for e in events if isinstance(e, Image)]


@pytest.mark.parametrize("backend", backends.names())
def test_a_package_with_t5_in_parts(tiny_recipe: Recipe, tmp_path: Path, backend: str) -> None:
    """It verifies, says what it holds, opens each part once and draws the same picture."""
    if backends.missing(needs(backend)):
        pytest.skip(f"pip install '{backends.load(backend).to_build.install}'")
    pixels = []
    for count in (1, 3):
        recipe = replace(tiny_recipe, t5_parts=count)
        (built,) = build(recipe, tmp_path / str(count), [backend], ["int8"])
        assert built.report.ok
        package = open_package(built.path)
        assert [g.graph for g in built.report.graphs] == list(package.manifest.names)
        assert all(g.calls for g in built.report.graphs)
        opened, pictures = drawn(package)
        pixels.append(pictures)
    assert [name for name in opened if name.startswith("t5")] == ["t5-1", "t5-2", "t5-3"]
    assert [g.name for g in package.manifest.parts("t5")] == ["t5-1", "t5-2", "t5-3"]
    for whole, in_parts in zip(*pixels, strict=True):
        assert np.abs(whole.astype(int) - in_parts).max() <= 1
    row = SimpleNamespace(manifest=package.manifest)
    sizes = [g.bytes for g in package.manifest.graphs if g.name.startswith("t5-")]
    assert diagrams._graph_bytes(row, "t5") == sum(sizes) > max(sizes)  # type: ignore[arg-type]
    log = json.loads((built.path.parent / f"{built.path.name}.log.json").read_text())
    assert log["verify"]["ok"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("t5 = false\nt5_parts = 2", r"\[text\] t5_parts = 2: needs t5 = true"),
        ("t5_parts = 0", r"\[text\] t5_parts = 0: must be from 1 to 64"),
        ('t5_parts = "2"', r"\[text\] t5_parts = '2': must be a whole number"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "recipe.toml"
    shipped = (ROOT / "recipes" / "shapes-flash.toml").read_text()
    head, _, tail = shipped.partition("[text]\n")
    tail = "\n".join(line for line in tail.splitlines() if not line.startswith("t5"))
    file.write_text(f"{head}[text]\n{text}\n{tail}\n")
    with pytest.raises(InputError, match=message):
        read_recipe(file)


def test_too_many_parts_are_refused_before_anything_is_written(
    tiny_recipe: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="t5 can be cut into at most"):
        build(replace(tiny_recipe, t5_parts=50), tmp_path / "out", ["onnx"], ["int8"])
    assert not (tmp_path / "out").exists()

"""A graph in consecutive parts computes what the whole one computes."""

from __future__ import annotations

import itertools
import json
import operator
import statistics
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from exporter import backends
from exporter.bench.process import Clock
from exporter.build.pipeline import build
from exporter.calibrate.weights import Weights
from exporter.checkpoint.open import Checkpoint
from exporter.drawing.loop import Image, Request, Session, generate
from exporter.errors import InputError
from exporter.network.assemble import cut_graphs
from exporter.program.run import run
from exporter.program.trace import trace
from exporter.quantize.program import QuantizedProgram, quantize_all
from exporter.quantize.rounded import ROUND_INPUT, asked, ranging, round_inputs
from exporter.quantize.schemes import load_scheme
from exporter.quantize.split import split
from exporter.recipe.recipe import Recipe, read_recipe
from exporter.report import diagrams
from exporter.runtime.package import Package, open_package
from tests.conftest import ROOT, SMALL, needs, opened_by, random_inputs


@pytest.fixture(scope="module", params=["fp32", "int4"])
def programs(request: pytest.FixtureRequest, tiny: Checkpoint) -> dict[str, QuantizedProgram]:
    found = {g.name: trace(g) for g in cut_graphs(tiny, SMALL)}
    return quantize_all(found, load_scheme(request.param))


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("name", ["t5", "vae_decoder", "denoiser"])
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


def test_parts_of_rounded_inputs_in_turn_are_the_whole(tiny: Checkpoint) -> None:
    found = {g.name: trace(g) for g in cut_graphs(tiny, SMALL)}
    program = quantize_all(found, load_scheme("int8-w8a8"))["denoiser"]
    shapes = {name: program.stored()[name].shape[1] for name in asked(program)}
    factors = {width: 1 + torch.arange(width) / width for width in {*shapes.values()}}
    chosen = {name: ranging(-3.0, 4.0, factors[width]) for name, width in shapes.items()}
    whole, weights = round_inputs(program, chosen), Weights(tiny)
    inputs = random_inputs(whole)
    expected = run(whole, weights.read, inputs)
    for part in split(whole, 3):
        assert any(node.target is ROUND_INPUT for node in part.nodes())
        inputs = run(part, weights.read, inputs)
    assert torch.equal(inputs["velocity"], expected["velocity"])


def test_parts_of_the_denoiser_hand_on_tokens_and_modulation(
    programs: dict[str, QuantizedProgram],
) -> None:
    """Each weight is in one part alone, and so is each vector of the modulation."""
    whole, parts = programs["denoiser"], split(programs["denoiser"], 3)
    assert [part.name for part in parts] == ["denoiser-1", "denoiser-2", "denoiser-3"]
    assert parts[0].inputs == whole.inputs and parts[-1].outputs == whole.outputs
    held = [name for part in parts for name in part.stored()]
    assert sorted(held) == sorted(whole.stored())
    width, row = whole.inputs[1].shape[2], whole.inputs[2].shape[1]
    for before, after in itertools.pairwise(parts):
        assert before.outputs == after.inputs
        assert [port.shape[-1] for port in before.outputs] == [row, width, width]
    taken = [n.name for part in parts for n in part.nodes() if n.target is operator.getitem]
    assert sorted(taken) == sorted(n.name for n in whole.nodes() if n.target is operator.getitem)


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
    assert (most > 2) == (name in ("t5", "vae_decoder", "denoiser"))


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


def test_parts_stay_open_with_the_graphs_that_do(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what a step takes holds the opening of its parts where each step opens them."""
    recipe = replace(tiny_recipe, denoiser_parts=2, prompts=())
    (built,) = build(recipe, tmp_path, ["onnx"], ["int4"])
    for keep in (False, True):
        clock, opened = Clock(), opened_by(monkeypatch)
        with clock.watch(open_package(built.path).player(keep=keep)) as player:
            assert list(generate(player, [Request("a red circle")]))
            opens = clock.opens_s["denoiser-2"]
            assert len(opens) == SMALL.steps
            again = statistics.median(clock.opens_s["denoiser-1"]) + statistics.median(opens)
            assert clock.reopened_s(player) == pytest.approx(again)
        assert opened.count("denoiser-2") == (1 if keep else SMALL.steps)


@pytest.mark.parametrize("backend", backends.names())
def test_a_package_in_parts(tiny_recipe: Recipe, tmp_path: Path, backend: str) -> None:
    """It verifies, says what it holds, opens one part at a time and draws the same picture."""
    if backends.missing(needs(backend)):
        pytest.skip(f"pip install '{backends.load(backend).to_build.install}'")
    pixels, manifests = [], []
    for count in (1, 3):
        recipe = replace(tiny_recipe, t5_parts=count, denoiser_parts=count)
        (built,) = build(recipe, tmp_path / str(count), [backend], ["int8"])
        assert built.report.ok
        package = open_package(built.path)
        assert [g.graph for g in built.report.graphs] == list(package.manifest.names)
        assert all(g.calls for g in built.report.graphs)
        opened, pictures = drawn(package)
        pixels.append(pictures)
        manifests.append(package.manifest)
    for graph, turns in (("t5", 1), ("denoiser", 2 * SMALL.steps)):
        names = [f"{graph}-{i}" for i in (1, 2, 3)]
        assert [name for name in opened if name.startswith(graph)] == turns * names
        (whole,), parts = (manifest.parts(graph) for manifest in manifests)
        assert [part.name for part in parts] == names
        row = SimpleNamespace(manifest=manifests[1])
        sizes = [part.bytes for part in parts]
        assert diagrams._graph_bytes(row, graph) == sum(sizes) > max(sizes)  # type: ignore[arg-type]
        assert sum(sizes) == pytest.approx(whole.bytes, rel=0.2)
        assert (
            whole.run_bytes is None or max(part.run_bytes or 0 for part in parts) < whole.run_bytes
        )
    for one, in_parts in zip(*pixels, strict=True):
        assert np.abs(one.astype(int) - in_parts).max() <= 1
    log = json.loads((built.path.parent / f"{built.path.name}.log.json").read_text())
    assert log["verify"]["ok"]


@pytest.mark.full
@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_a_package_of_rounded_inputs_in_parts(
    tiny_recipe: Recipe, tmp_path: Path, backend: str
) -> None:
    """Ranges are chosen for the whole; the parts round alike and draw the same picture."""
    calibration = replace(tiny_recipe.calibration, prompts=("a blue square",))
    pixels = []
    for count in (1, 3):
        recipe = replace(tiny_recipe, denoiser_parts=count, calibration=calibration)
        (built,) = build(recipe, tmp_path / str(count), [backend], ["int8-w8a8"])
        assert built.report.ok
        pixels.append(drawn(open_package(built.path))[1])
    for one, in_parts in zip(*pixels, strict=True):
        assert np.abs(one.astype(int) - in_parts).max() <= 1


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("denoiser_parts = 0", r"\[build\] denoiser_parts = 0: must be from 1 to 64"),
        ("denoiser_parts = 2.5", r"\[build\] denoiser_parts = 2.5: must be a whole number"),
        ("most_file_bytes = 0", r"\[build\] most_file_bytes = 0: must be from 1 to"),
    ],
)
def test_mistakes_in_build(tmp_path: Path, key: str, message: str) -> None:
    file = tmp_path / "recipe.toml"
    shipped = (ROOT / "recipes" / "shapes-flash.toml").read_text()
    file.write_text(shipped.replace("[build]", f"[build]\n{key}", 1))
    with pytest.raises(InputError, match=message):
        read_recipe(file)


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
    with pytest.raises(InputError, match="denoiser can be cut into at most"):
        build(replace(tiny_recipe, denoiser_parts=50), tmp_path / "out", ["onnx"], ["int8"])
    with pytest.raises(InputError, match="more than most_file_bytes = 500,000; what would fit: "):
        build(replace(tiny_recipe, most_file_bytes=500_000), tmp_path / "out", ["onnx"], ["int8"])
    assert not (tmp_path / "out").exists()

"""Small graphs are opened with their weights decoded, where their device has the memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.memory import random_inputs
from exporter import backends
from exporter.backends.contract import SessionOptions
from exporter.build.model import traced
from exporter.build.pipeline import build
from exporter.checkpoint.open import Checkpoint
from exporter.package.measures import relative_error
from exporter.package.read import read_manifest
from exporter.predict.checkpoint import sizes
from exporter.predict.graph import is_widened, run_bytes
from exporter.program.program import Program
from exporter.quantize import widened
from exporter.quantize.program import quantize_all
from exporter.quantize.schemes import load_scheme
from exporter.quantize.widened import widened_bytes
from exporter.recipe.recipe import Recipe
from tests.conftest import SMALL

ONNX = backends.load("onnx")
FLOAT32 = SessionOptions("float32")


@pytest.fixture(scope="module")
def programs(tiny: Checkpoint) -> dict[str, Program]:
    return traced(tiny, SMALL)


def of(programs: dict[str, Program], scheme: str) -> dict[str, int]:
    """Bytes that would be decoded, by graph."""
    found = quantize_all(programs, load_scheme(scheme))
    return {name: widened_bytes(program) for name, program in found.items()}


def test_layers_of_small_graphs_count(
    programs: dict[str, Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not tables, and no layer whose input is rounded."""
    none = dict.fromkeys(programs, 0)
    int8, int4, rounded = (of(programs, name) for name in ("int8", "int4", "int8-w8a8"))
    assert int8 == int4 and all(int8.values())
    assert rounded["denoiser"] < int8["denoiser"] and rounded["clip_l"] == int8["clip_l"]
    assert of(programs, "fp32") == of(programs, "fp16") == none
    assert of(programs, "w8a16")["denoiser"] == 0
    clip = programs["clip_l"]
    layers = {s.name: s.shape for s in quantize_all({"clip_l": clip}, load_scheme("int8"))["clip_l"]
              .stored().values() if len(s.shape) == 2 and "embedding" not in s.name}  # fmt: skip
    assert int8["clip_l"] == 4 * sum(n * k for n, k in layers.values())
    monkeypatch.setattr(widened, "MOST_BYTES", int8["denoiser"] - 1)
    assert of(programs, "int8")["denoiser"] == 0 < of(programs, "int8")["clip_l"]
    monkeypatch.setattr(widened, "MOST_SIDE", min(min(shape) for shape in layers.values()) - 1)
    assert of(programs, "int8")["clip_l"] == 0


def test_they_are_decoded_where_that_fits(programs: dict[str, Program]) -> None:
    graph, costs = quantize_all(programs, load_scheme("int8"))["denoiser"], ONNX.costs
    assert costs is not None
    whole = run_bytes(graph, costs, is_widened=True)
    assert whole - run_bytes(graph, costs) == pytest.approx(
        costs.widened * widened_bytes(graph), abs=1
    )
    assert is_widened(graph, costs, None) and is_widened(graph, costs, whole)
    assert not is_widened(graph, costs, whole - 1)
    assert not is_widened(graph, None, None) and not is_widened(
        graph, replace(costs, widened=0), None
    )


def test_a_package_says_which_are(
    programs: dict[str, Program], tiny_recipe: Recipe, tmp_path: Path
) -> None:
    """And what they take then; a session computes in float32 as it runs, from the same files."""
    recipe = replace(tiny_recipe, prompts=())
    (built,) = build(recipe, tmp_path / "any", ["onnx"], ["int8"])
    any_ = read_manifest(built.path)
    assert {"widened" in graph.session for graph in any_.graphs} == {True}
    limit = max(graph.run_bytes or 0 for graph in any_.graphs) - 1
    (built,) = build(
        replace(recipe, device_memory_bytes=limit), tmp_path / "some", ["onnx"], ["int8"]
    )
    some = {graph.name: graph for graph in read_manifest(built.path).graphs}
    for graph in any_.graphs:
        other = some[graph.name]
        assert graph.run_bytes is not None and other.run_bytes is not None
        assert ("widened" in other.session) == (graph.run_bytes <= limit), graph.name
        assert other.run_bytes <= min(graph.run_bytes, limit) and other.files == graph.files
    assert {"widened" in graph.session for graph in some.values()} == {True, False}
    choices = {"onnx": recipe.backend("onnx").choices}
    found = sizes(programs, choices, {"int8": recipe.scheme("int8")}, {}, {}, most_bytes=limit)
    assert {one.graph: one.run_bytes for one in found} == {
        g.name: g.run_bytes for g in some.values()
    }
    graph = next(graph for graph in some.values() if "widened" not in graph.session)
    given = random_inputs(graph.inputs)

    def output(settings: dict[str, str], options: SessionOptions) -> np.ndarray:
        session = ONNX.open_graph(built.path / graph.entry, settings, options)
        return session(given)[graph.outputs[0].name]

    right = output(graph.session, FLOAT32)
    decoded = output(graph.session | {"widened": "1"}, SessionOptions())
    assert (
        relative_error(decoded, right)
        < 1e-5
        < relative_error(output(graph.session, SessionOptions()), right)
    )

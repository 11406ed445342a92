"""What is predicted of a graph before it is built."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.memory import flat, measured, predicted
from exporter import backends
from exporter.build.model import traced
from exporter.build.pipeline import Built, build
from exporter.calibrate.activations import RUNNING, bytes_to_choose
from exporter.checkpoint.open import Checkpoint, open_checkpoint
from exporter.cli import main
from exporter.errors import InputError
from exporter.network.cut import Cut
from exporter.predict.checkpoint import sizes
from exporter.predict.fit import file_limit, memory_limit, refuse_too_large
from exporter.predict.graph import DERIVED, build_bytes, file_bytes, patch_bytes, run_bytes
from exporter.program import aten
from exporter.program.sizes import activation_bytes
from exporter.quantize.program import QuantizedProgram, quantize_all
from exporter.quantize.schemes import load_scheme
from exporter.quantize.split import split
from exporter.recipe.recipe import Recipe, read_recipe
from exporter.runtime.package import open_package
from tests.conftest import ROOT, SMALL, needs

COSTS = backends.MeasuredCosts(
    process_bytes=1000,
    node_bytes=10,
    held={"linear int4": 3.0, "embedding int8": 0.0},
    activations={"t5": 2.0, "": 1.0},
    patches=0.0,
    build_process_bytes=500,
    build_weight={"": 2.0, "fp32": 1.0},
    build_node_bytes=0,
    node_file_bytes=7,
)


def programs(checkpoint: Checkpoint, cut: Cut, scheme: str) -> dict[str, QuantizedProgram]:
    return quantize_all(traced(checkpoint, cut), load_scheme(scheme))


def test_what_a_graph_holds_is_counted_by_kind_and_format(tiny: Checkpoint) -> None:
    t5 = programs(tiny, SMALL, "int8")["t5"]
    table_bytes = t5.formats["shared.weight"].stored_bytes((1000, 96))
    free = replace(COSTS, held={"embedding int8": 0.0})
    whole = replace(COSTS, held={})
    assert run_bytes(t5, whole) - run_bytes(t5, free) == table_bytes
    twice = replace(whole, activations={"": 4.0})
    assert run_bytes(t5, twice) - run_bytes(t5, whole) == run_bytes(
        t5, replace(whole, activations={"": 2.0})
    ) - run_bytes(t5, replace(whole, activations={"": 0.0}))
    nodes = len(t5.nodes())
    assert run_bytes(t5, replace(whole, node_bytes=11)) - run_bytes(t5, whole) == nodes
    assert file_bytes(t5, COSTS) == t5.stored_bytes() + 7 * nodes
    assert build_bytes(t5, COSTS, 0) == 500 + 2 * 4 * 1000 * 96  # the embedding is the largest


def test_parts_count_as_their_graph_does(tiny: Checkpoint) -> None:
    t5 = programs(tiny, SMALL, "int8")["t5"]
    none = replace(COSTS, activations={"t5": 0.0, "": 100.0})
    for part in split(t5, 2):
        assert run_bytes(part, none) < run_bytes(part, COSTS)


def test_choosing_how_activations_are_rounded_counts(
    tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call more takes its activations as long as all fit side by side, then its inputs alone."""
    denoiser = programs(tiny, SMALL, "int8-w8a8")["denoiser"]
    one = activation_bytes(denoiser)
    inputs = sum(4 * math.prod(port.shape) for port in denoiser.inputs)
    monkeypatch.setattr("exporter.calibrate.activations.MOST_BYTES", 2 * one + 1)
    taken = [bytes_to_choose(denoiser, calls) for calls in (1, 2, 3, 4)]
    more = [b - a for a, b in itertools.pairwise(taken)]
    assert more == pytest.approx([RUNNING * one + inputs, inputs, inputs], abs=1)
    assert taken[0] > RUNNING * one + inputs
    assert build_bytes(denoiser, COSTS, 4) == COSTS.build_process_bytes + taken[3]
    plain = programs(tiny, SMALL, "int8")["denoiser"]
    assert bytes_to_choose(plain, 4) == 0
    assert build_bytes(plain, COSTS, 4) == build_bytes(plain, COSTS, 0)


def test_patches_of_rounded_convolutions_count(tiny: Checkpoint) -> None:
    plain, rounded = (programs(tiny, SMALL, name)["vae_decoder"] for name in ("int8", "int8-w8a8"))
    assert patch_bytes(plain) == 0 < patch_bytes(rounded)
    reading = [
        math.prod(aten.shape(node.args[1])[1:]) * math.prod(aten.shape(node)[2:])
        for node in rounded.nodes()
        if "conv2d" in str(node.target)
    ]
    assert max(reading) >= patch_bytes(rounded) and patch_bytes(rounded) in reading
    more = run_bytes(rounded, replace(COSTS, patches=2.0)) - run_bytes(rounded, COSTS)
    assert more == 2 * patch_bytes(rounded)


def test_weights_that_are_computed_take_more(tiny: Checkpoint) -> None:
    """The kernels that doublings are folded into, which are larger than those of the checkpoint."""
    decoder = programs(tiny, SMALL, "int8")["vae_decoder"]
    sizes = {
        name: 4 * math.prod(source.shape)
        for name, source in decoder.stored().items()
        if source.derivation is not None
    }
    largest = max(4 * math.prod(source.shape) for source in decoder.stored().values())
    assert sizes and max(sizes.values()) == largest
    assert build_bytes(decoder, COSTS, 0) == 500 + (2 + DERIVED) * largest


def test_prompts_of_the_recipe_count(shapes: Checkpoint, tmp_path: Path) -> None:
    """What choosing roundings takes is predicted for as many calls as they make."""
    shipped = (ROOT / "recipes" / "shapes-flash.toml").read_text()
    found = []
    for prompts in (["a"], [f"{i} red stars" for i in range(200)]):
        file = tmp_path / "recipe.toml"
        file.write_text(
            shipped.replace('prompts = "shapes-flash.prompts.txt"', f"prompts = {prompts}")
        )
        run = CliRunner().invoke(
            main, ["inspect", str(shapes.folder), "--recipe", str(file), "--json"]
        )
        graphs = json.loads(run.stdout)["graphs"]
        found.append({(g["backend"], g["scheme"], g["graph"]): g["build_bytes"] for g in graphs})
    grew = {key for key, size in found[1].items() if size > found[0][key]}
    everywhere = {key for key in grew if key[1] in ("w8a16", "w4a16")}
    assert {scheme for _, scheme, _ in grew - everywhere} == {"int8-w8a8", "int4-a8"}
    assert {graph for _, _, graph in grew - everywhere} == {"denoiser", "vae_decoder"}
    assert {graph for _, _, graph in everywhere} >= {"denoiser", "vae_decoder"}


def test_smaller_formats_and_pictures_take_less(tiny: Checkpoint) -> None:
    onnx = backends.load("onnx").costs
    assert onnx is not None
    large = programs(tiny, replace(SMALL, width_px=80, height_px=80), "int8")
    small, least = programs(tiny, SMALL, "int8"), programs(tiny, SMALL, "int4")
    for name in ("denoiser", "vae_decoder"):
        assert run_bytes(large[name], onnx) > run_bytes(small[name], onnx)
    assert run_bytes(small["denoiser"], onnx) > run_bytes(least["denoiser"], onnx)
    parts = [run_bytes(part, onnx) for part in split(small["t5"], 2)]
    assert max(parts) < run_bytes(small["t5"], onnx)


def test_files_are_as_large_as_predicted(
    shapes: Checkpoint, shapes_packages: Mapping[str, Built]
) -> None:
    recipe = read_recipe(ROOT / "recipes" / "shapes-flash.toml")
    seen = 0
    for built in shapes_packages.values():
        manifest = open_package(built.path).manifest
        peak = manifest.device.predicted_peak_bytes
        assert peak == max(g.run_bytes or 0 for g in manifest.graphs)
        if manifest.origin.plan_sha256 or manifest.origin.methods:
            continue
        found = sizes(
            traced(shapes, recipe.cut),
            {built.backend: recipe.backend(built.backend).choices},
            {built.scheme: recipe.scheme(built.scheme)},
            recipe.graph_parts,
            {},
        )
        for size in found:
            entry = manifest.graph(size.graph)
            assert entry is not None
            assert size.bytes == pytest.approx(entry.bytes, rel=0.1), (built.path.name, size.graph)
            assert size.run_bytes == entry.run_bytes
            seen += 1
    assert seen


def test_a_build_that_would_not_fit_is_refused(tiny_recipe: Recipe, tmp_path: Path) -> None:
    schemes = {"int4": tiny_recipe.scheme("int4")}
    programs = traced(open_checkpoint(tiny_recipe.checkpoint), tiny_recipe.cut)
    given = {"onnx": tiny_recipe.backend("onnx").choices}, schemes, tiny_recipe.graph_parts
    peak = max(size.run_bytes or 0 for size in sizes(programs, *given, {}, most_bytes=0))
    recipe = replace(tiny_recipe, device_memory_bytes=peak)
    build(recipe, tmp_path / "just", ["onnx"], ["int4"])
    out = tmp_path / "out"
    message = (
        rf"onnx-fp32 is predicted to take [\d,]+ bytes \(\w+\), more than device_memory_bytes = "
        rf"{peak:,}; what would fit: .*int4 \({peak:,}\)"
    )
    with pytest.raises(InputError, match=message):
        build(recipe, out, ["onnx"], ["fp32"])
    with pytest.raises(InputError, match=r"nothing fits; the least is \S+ \([\d,]+\); make the"):
        build(replace(recipe, device_memory_bytes=1000), out, ["onnx"], ["int4"])
    assert not out.exists()


def test_parts_of_t5_are_proposed(tiny: Checkpoint) -> None:
    """Where T5 alone is too large, and its parts are not."""
    onnx, t5 = backends.load("onnx"), programs(tiny, SMALL, "int8")["t5"]
    assert onnx.costs is not None
    whole, others = run_bytes(t5, onnx.costs), {"int8": {"t5": t5}}
    for count in (2, 3):
        limit = max(run_bytes(part, onnx.costs) for part in split(t5, count))
        assert limit < whole
        remedy = rf"what would fit: int8 with t5_parts = {count} \({limit:,}\)$"
        with pytest.raises(InputError, match=remedy):
            refuse_too_large([memory_limit(limit)], onnx, "int8", [t5], lambda: others)
    refuse_too_large([memory_limit(whole)], onnx, "int8", [t5], lambda: {})


def test_parts_of_the_denoiser_are_proposed(tiny: Checkpoint) -> None:
    """Under either limit, and those that hold under both."""
    onnx, graphs = backends.load("onnx"), programs(tiny, SMALL, "int8")
    t5, whole = graphs["t5"], graphs["denoiser"]
    assert onnx.costs is not None
    for limit_of, size_of in ((memory_limit, run_bytes), (file_limit, file_bytes)):
        limit = limit_of(max(size_of(part, onnx.costs) for part in split(whole, 3)))
        message = (
            rf"onnx-int8 is predicted to (take|have files of) [\d,]+ bytes \(denoiser\), more than "
            rf"{limit.key} = {limit.most_bytes:,}; what would fit: int8 with denoiser_parts = 3 "
        )
        with pytest.raises(InputError, match=message):
            refuse_too_large([limit], onnx, "int8", [whole], lambda: {"int8": {"denoiser": whole}})
    both = [file_limit(limit.most_bytes), memory_limit(1 << 40)]
    with pytest.raises(InputError, match=r"int8 with .*denoiser_parts = 3 \("):
        others = {"int8": {"t5": t5, "denoiser": whole}}
        refuse_too_large(both, onnx, "int8", [whole], lambda: others)
    with pytest.raises(InputError, match=r"nothing fits; the least is .*; allow larger files$"):
        refuse_too_large([file_limit(9)], onnx, "int8", [whole], lambda: {"int8": graphs})


@pytest.mark.parametrize(
    ("value", "message"),
    [("0", "device_memory_bytes = 0: must be from 1"), ('"3GB"', "must be a whole number")],
)
def test_mistakes(tmp_path: Path, value: str, message: str) -> None:
    file = tmp_path / "recipe.toml"
    shipped = (ROOT / "recipes" / "shapes-flash.toml").read_text()
    file.write_text(shipped.replace("[build]", f"[build]\ndevice_memory_bytes = {value}", 1))
    found = CliRunner().invoke(main, ["build", str(file)])
    assert found.exit_code == 2 and message in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_the_benchmark_measures_what_is_predicted(backend: str) -> None:
    if backends.missing(needs(backend)):
        pytest.skip(f"pip install '{backends.load(backend).to_build.install}'")
    recipe = ROOT / "recipes" / "shapes-flash.toml"
    expected = predicted(recipe)[backend, "int8", "denoiser"]
    found = measured(recipe, backend, "int8", "denoiser")
    assert found.keys() == expected.keys() == {"bytes", "build", "run"}
    for kind, value in found.items():
        assert value == pytest.approx(expected[kind], rel=0.35), kind
    names = {"backend": backend, "scheme": "int8", "graph": "denoiser"}
    row = flat({**names, "predicted": expected, "measured": found})
    assert row["run_predicted"] == expected["run"] / 1e6
    assert row["run_measured"] == found["run"] / 1e6 and row["error"] is None


def test_what_was_not_measured_is_not_predicted(tiny_recipe: Recipe, tmp_path: Path) -> None:
    recipe = replace(tiny_recipe, device_memory_bytes=1 << 40)
    message = (
        r"^\[build\] device_memory_bytes: what reference takes has not been measured and cannot be "
        "predicted; leave it out, or reference out of the backends$"
    )
    with pytest.raises(InputError, match=message):
        build(recipe, tmp_path / "out", ["reference"], ["int8"])
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="^--memory: what reference takes has not been measured"):
        backends.costs_of(backends.load("reference"), "--memory")

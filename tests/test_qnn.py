"""Qualcomm's NPU: packages for it, graphs in processes that may crash, contexts for chips."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper

from benchmarks import figures, tables
from exporter import backends
from exporter.backends.contract import (
    Compiled,
    CompiledGraph,
    GraphFiles,
    SessionOptions,
    Traffic,
)
from exporter.backends.onnx.qnn import compile as compiling
from exporter.backends.onnx.qnn import process, provider, socs
from exporter.backends.onnx.qnn.check import check_context
from exporter.backends.onnx.qnn.compile import compile_bytes
from exporter.backends.onnx.qnn.log import float_islands, traffic
from exporter.backends.onnx.qnn.process import Order, Refused, Worker, opened
from exporter.backends.onnx.qnn.session import fitting, refuse_qairt, worded
from exporter.backends.onnx.qnn.socs import SOCS
from exporter.build.chips import compiled
from exporter.build.layout import refuse_unfit
from exporter.build.pipeline import build
from exporter.build.write import WholeGraph
from exporter.bundle.target import targets
from exporter.cli import main
from exporter.errors import CheckFailed, InputError
from exporter.network.cut import Cut
from exporter.package.manifest import (
    ContextEntry,
    FileEntry,
    NpuEntry,
    Port,
    Tolerance,
    version_of,
)
from exporter.package.measures import relative_error
from exporter.package.read import DIGEST, MANIFEST, digest_line
from exporter.package.sizes import PictureSize, context_files
from exporter.program.sizes import value_bytes
from exporter.recipe.recipe import Recipe, read_recipe
from exporter.report.chips import CompileStep, chips_of
from exporter.report.chips import compiled as compiled_page
from exporter.report.make import _compiled
from exporter.runtime.package import open_package
from exporter.runtime.verify import GraphParity, _explained, golden_calls, verify
from tests.conftest import SHAPES

EMULATED = pytest.mark.skipif(
    bool(backends.missing(provider.REQUIRED.modules)) or not socs.is_emulated(),
    reason="pip install 'fourstep[qnn]'",
)
HERE = "2.51.0"
PORTS = (Port("x", (1, 4)),), (Port("y", (1, 4)),)


def context(soc: str = "8elite", qairt: str = HERE) -> ContextEntry:
    chip, path = SOCS[soc], f"graphs/g/{soc}/g.onnx"
    return ContextEntry(
        soc, chip.soc_model, chip.htp_arch, qairt, path, (path, f"graphs/g/{soc}/g_qnn.bin")
    )


def for_npu(recipe: Recipe, chips: str = "") -> Recipe:
    """A recipe with target = "qnn", calibrated on one prompt."""
    choices = tuple(
        replace(c, choices={"target": "qnn", "socs": chips}) if c.name == "onnx" else c
        for c in recipe.choices
    )
    few = replace(recipe.calibration, prompts=recipe.calibration.prompts[:1])
    return replace(recipe, choices=choices, calibration=few)


# Recipes.


def recipe_of(tmp_path: Path, lines: str) -> Recipe:
    file = tmp_path / "own.toml"
    file.write_text(
        f'[model]\ncheckpoint = "{SHAPES.as_posix()}"\n[schedule]\nsigmas = [1.0, 0.0]\n'
        f'[image]\nwidth_px = 128\nheight_px = 128\n[weights]\nscheme = "w8a16"\n[onnx]\n{lines}\n'
    )
    return read_recipe(file)


def test_a_recipe_names_chips(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, 'target = "qnn"\nsocs = ["8gen2", "8elite", "8gen2"]')
    chosen = {"target": "qnn", "contexts": "beside", "socs": "8gen2,8elite"}
    assert recipe.backend("onnx").choices == chosen
    every = 'socs = ["8gen2", "8gen3", "8elite", "8elite5", "xelite"]'
    assert recipe_of(tmp_path, f'target = "qnn"\n{every}').backend("onnx").choices["socs"]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('target = "qnn"\nsocs = ["8gen1"]', r"\[onnx\] socs: unknown soc '8gen1'; known: 8elite"),
        ('socs = ["8gen2"]', r'\[onnx\] socs: needs target = "qnn"; it is "native"'),
        ('target = "qnn"\nsocs = 3', r"\[onnx\] socs: a name or a list of names"),
        ('target = "qnn"\ncontexts = "instead"', r'\[onnx\] contexts: "instead" needs chips'),
        (
            'target = "qnn"\ncontexts = "none"',
            r"contexts: unknown value 'none'; known: beside, ins",
        ),
        ('target = "htp"', r"\[onnx\] target: unknown value 'htp'; known: native, qnn, web"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path: Path, lines: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        recipe_of(tmp_path, lines)


def test_recipes_without_chips_keep_their_digest(tmp_path: Path) -> None:
    options = json.loads(recipe_of(tmp_path, "").normal_form("onnx"))["options"]
    assert options == {}
    options = json.loads(recipe_of(tmp_path, 'target = "qnn"').normal_form("onnx"))["options"]
    assert options == {"target": "qnn"}
    chosen = recipe_of(tmp_path, 'target = "qnn"\nsocs = "xelite"')
    assert json.loads(chosen.normal_form("onnx"))["options"]["socs"] == "xelite"


@pytest.mark.parametrize(
    ("scheme", "said"),
    [
        ("int8", "denoiser has no weights in w8a16 or w4a16; build one of these schemes"),
        ("int4", "onnx cannot express scheme int4 .* an NPU, .* can: w4a16, w8a16$"),
    ],
)
def test_other_schemes_are_refused(
    tiny_recipe: Recipe, tmp_path: Path, scheme: str, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        build(for_npu(tiny_recipe), tmp_path / "out", ["onnx"], [scheme])


def test_a_layout_for_clients_of_others_holds_no_contexts(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, 'target = "qnn"\nsocs = "8gen2"')
    with pytest.raises(InputError, match=r"\[onnx\] socs does not go with \[build\] layout"):
        refuse_unfit(recipe, "diffusers", ("onnx",))


def without(module: str) -> Any:
    """Finds every module but one."""
    found = importlib.util.find_spec
    return lambda name, *rest: None if name == module else found(name, *rest)


def test_without_the_library_chips_are_refused_before_anything_is_computed(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", without("onnxruntime_qnn"))
    with pytest.raises(
        InputError, match=r"onnxruntime-qnn is not installed: pip install 'fou.*qnn"
    ):
        build(for_npu(tiny_recipe, "8gen2"), tmp_path / "out", ["onnx"], ["w8a16"])
    assert not list((tmp_path / "out").glob("onnx*"))


# Processes.


@pytest.fixture
def crashing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "MODULE", "tests.crashing")


@pytest.mark.usefixtures("crashing")
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("crashes", r"crashed \(SIGSEGV\) while it opened the graph$"),
        ("leaves", "ended with code 7 while it opened the graph$"),
    ],
)
def test_a_crash_is_one_line(kind: str, said: str) -> None:
    with pytest.raises(Refused, match=f"^graphs/{kind}.onnx: Qualcomm's provider {said}") as found:
        opened(Order(f"graphs/{kind}.onnx", "8gen2"))
    assert found.value.crashed and "\n" not in str(found.value)


@pytest.mark.usefixtures("crashing")
def test_a_graph_runs_in_its_process_and_ends_with_it() -> None:
    worker = Worker(Order("whole.onnx", "8gen2"))
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    for _ in range(2):
        np.testing.assert_array_equal(worker({"x": x})["y"], 2 * x)
    assert worker.peak_bytes == 12 and worker.outputs == ["y"]
    child = worker._process
    del worker
    assert child.poll() == 0
    dying = Worker(Order("dies.onnx", "8gen2"))
    with pytest.raises(
        CheckFailed,
        match=r"crashed \(SIGABRT, as when memory or time runs out\) while it ran the graph",
    ):
        dying({"x": x})


@pytest.mark.usefixtures("crashing")
def test_a_process_that_takes_too_long_is_ended() -> None:
    with pytest.raises(Refused, match="SIGKILL, as when memory or time runs out"):
        Worker(Order("waits.onnx", "8gen2", most_s=0.01))


@pytest.mark.usefixtures("crashing")
def test_operators_that_the_npu_lacks_are_named_with_their_graph() -> None:
    with pytest.raises(Refused) as found:
        opened(Order("graphs/lacks.onnx", "8gen2"))
    assert found.value.nodes == {"a": "MatMul", "c": "Pad"}
    said = worded(Path("graphs/lacks.onnx"), found.value)
    assert said.startswith("graphs/lacks.onnx: graph lacks: the NPU lacks MatMul 'a', Pad 'c'; ")


def test_floats_between_whole_numbers_are_found_in_the_dump(tmp_path: Path) -> None:
    whole, half = {"data_type": 0x416}, {"data_type": 0x216}

    def node(kind: str, *ports: str) -> dict[str, Any]:
        return {"type": kind, "input_names": ports[:1], "output_names": ports[1:]}

    graph = {
        "tensors": {"a": whole, "b": half, "c": half, "d": whole},
        "nodes": {"q": node("Dequantize", "a", "b"), "n": node("LayerNorm", "b", "c"),
                  "p": node("Quantize", "c", "d"), "m": node("MatMul", "a", "d")},
    }  # fmt: skip
    (tmp_path / "x.json").write_text(json.dumps({"graph": graph}))
    (tmp_path / "x_tensor_log.json").write_text('{"graph_name": "x"}')
    assert float_islands(tmp_path) == {"n": "LayerNorm"}


# Contexts.


def test_a_context_is_chosen_by_the_chip(monkeypatch: pytest.MonkeyPatch) -> None:
    there = (context("8gen2"), context("8elite"))
    monkeypatch.setattr(provider, "require", lambda: provider.Versions("2.7.0", HERE))
    assert fitting(NpuEntry(Tolerance(5e-3, 45.0), there), "HTP:8elite") == there[1]
    assert fitting(NpuEntry(Tolerance(5e-3, 45.0)), "HTP:8elite") is None
    with pytest.raises(InputError, match=r"compiled for xelite; it has 8gen2, 8elite; add xelite"):
        fitting(NpuEntry(Tolerance(5e-3, 45.0), there), "HTP:xelite")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert fitting(NpuEntry(Tolerance(5e-3, 45.0), there), "HTP") is None  # the emulator compiles


def test_on_a_device_linux_names_the_chip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "soc_id"
    monkeypatch.setattr(socs, "SOC_ID", place)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    monkeypatch.setattr(provider, "require", lambda: provider.Versions("2.7.0", HERE))
    there = (context("8gen2"), context("8elite"))
    assert (
        fitting(NpuEntry(Tolerance(5e-3, 45.0), there), "HTP") is None
    )  # not a Snapdragon that says so
    place.write_text("618\n")
    assert fitting(NpuEntry(Tolerance(5e-3, 45.0), there), "HTP") == there[1]
    place.write_text("557\n")
    with pytest.raises(InputError, match="nothing in the package was compiled for 8gen3"):
        fitting(NpuEntry(Tolerance(5e-3, 45.0), there), "HTP")


@pytest.mark.parametrize("made", ["2.51.1", "2.60.0", "3.0.0", "1.99.9"])
def test_a_context_of_another_qairt_is_refused(made: str) -> None:
    with pytest.raises(InputError, match=rf"QAIRT {made}, and QAIRT 2.51.0 .*build the package"):
        refuse_qairt(context(qairt=made), HERE)


def test_contexts_of_earlier_qairt_are_read() -> None:
    for made in (HERE, "2.50.9", "2.9.1"):
        refuse_qairt(context(qairt=made), HERE)


def ep_context(**attributes: object) -> bytes:
    said: dict[str, Any] = {
        "main_context": 1, "ep_cache_context": "g_qnn.bin", "embed_mode": 0,
        "source": "QNNExecutionProvider", "partition_name": "p",
    }  # fmt: skip
    kind = str(attributes.pop("kind", "EPContext"))
    node = helper.make_node(kind, ["x"], ["y"], domain="com.microsoft", **(said | attributes))
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in "xy"]
    data: bytes = helper.make_model(
        helper.make_graph([node], "g", ports[:1], ports[1:])
    ).SerializeToString()
    return data


def files_of(data: bytes) -> GraphFiles:
    entry, binary = context().files
    return GraphFiles(
        entry, *PORTS, {}, {entry: len(data), binary: 5}, {entry: memoryview(data)}, True, True
    )


def test_a_compiled_graph_opens_its_binary() -> None:
    assert check_context(files_of(ep_context())) == {context().files[1]: 5}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"ep_cache_context": "../../other.bin"}, "none of its files"),
        ({"ep_cache_context": "/etc/passwd"}, "none of its files"),
        ({"ep_cache_context": ""}, "none of its files"),
        ({"ep_cache_context": "g.onnx"}, "none of its files"),
        ({"embed_mode": 1}, "embed_mode = 1"),
        ({"source": "Other"}, "not for QNNExecutionProvider"),
        ({"kind": "Identity"}, "in place of EPContext"),
    ],
)
def test_other_compiled_graphs_are_refused(changed: Mapping[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_context(files_of(ep_context(**changed)))


# Packages.


def compiler(asked: list[str], most: int = 1000) -> Any:
    """Stands for Qualcomm's: notes what it is asked for; stopped after the first ``most``."""

    def compile_graph(entries: Sequence[Path], chip: str, most_bytes: int) -> Compiled:
        if len(asked) == most:
            raise KeyboardInterrupt
        first = entries[0]
        asked.append(f"{first.stem} {chip}")
        place = first.parent / chip
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        binary = place / f"{first.stem}_qnn.bin"
        binary.write_bytes(chip.encode())
        graphs = tuple(written(entry, place / entry.name, binary) for entry in entries)
        soc = SOCS[chip]
        return Compiled(graphs, soc.soc_model, soc.htp_arch, HERE, 1.5, 0.5, 7)

    def written(entry: Path, target: Path, binary: Path) -> CompiledGraph:
        model = onnx.load(str(entry), load_external_data=False)
        inputs, outputs = (
            [p.name for p in side] for side in (model.graph.input, model.graph.output)
        )
        node = helper.make_node(
            "EPContext", inputs, outputs, domain="com.microsoft", main_context=1, embed_mode=0,
            ep_cache_context=binary.name, source="QNNExecutionProvider",
        )  # fmt: skip
        graph = helper.make_graph([node], "g", model.graph.input, model.graph.output)
        target.write_bytes(helper.make_model(graph).SerializeToString())
        return CompiledGraph(target, (target, binary))

    return compile_graph


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What a compiler that is none was asked for."""
    found: list[str] = []
    monkeypatch.setattr(provider, "require", lambda: provider.Versions("2.7.0", HERE))
    monkeypatch.setattr(compiling, "compile_graph", compiler(found))
    yield found


def small(recipe: Recipe, chips: str) -> Recipe:
    """Without golden pictures, and without what only longer models have."""
    cut = replace(recipe.cut, t5=False, t5_tokens=8, image_to_image=False)
    return for_npu(replace(recipe, cut=cut, prompts=()), chips)


CHIPS = "8gen2,8gen3,8elite,8elite5,xelite"
GRAPHS = ("clip_l", "clip_g", "conditioner", "denoiser", "vae_decoder")


def test_a_killed_build_for_five_chips_compiles_nothing_twice(
    tiny_recipe: Recipe, tmp_path: Path, pretended: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, whole = small(tiny_recipe, CHIPS), len(GRAPHS) * 5
    monkeypatch.setattr(compiling, "compile_graph", compiler(pretended, most=7))
    with pytest.raises(KeyboardInterrupt):
        build(recipe, tmp_path, ["onnx"], ["w8a16"])
    (tmp_path / ".onnx-w8a16.partial/graphs/clip_g/8elite").mkdir()  # begun when it was killed
    monkeypatch.setattr(compiling, "compile_graph", compiler(pretended))
    (built,) = build(recipe, tmp_path, ["onnx"], ["w8a16"])
    assert sorted(pretended) == sorted(f"{g} {c}" for g in GRAPHS for c in CHIPS.split(","))
    (again,) = build(recipe, tmp_path, ["onnx"], ["w8a16"])
    assert len(pretended) == whole and again.path == built.path
    log = json.loads((tmp_path / "onnx-w8a16.log.json").read_text())["compiled"]
    assert len(log) == whole - 7 and log[0]["seconds"] == 1.5 and log[0]["peak_bytes"] == 7
    manifest = open_package(built.path).manifest
    assert manifest.format_version == version_of(manifest) == "4.3"
    assert manifest.origin.tools["onnxruntime-qnn"] == "2.7.0"
    for graph in manifest.graphs:
        assert graph.npu is not None
        found = [(c.soc, c.htp_arch, c.soc_model, c.qairt) for c in graph.npu.contexts]
        assert found == [(n, SOCS[n].htp_arch, SOCS[n].soc_model, HERE) for n in CHIPS.split(",")]
    assert len(context_files(manifest)) == 2 * whole
    chips = chips_of(manifest, ())
    assert [c.soc for c in chips] == CHIPS.split(",") and chips[0].seconds is None
    assert chips[0].graphs == len(GRAPHS) and chips[0].bytes > 0
    done = CliRunner().invoke(main, ["inspect", str(built.path)])
    assert "whole on an NPU, error at most 5.0e-03; compiled for 8gen2 (v73, QAIRT" in done.output
    refuse_another_context(built.path)


def test_contexts_in_place_of_graphs(
    tiny_recipe: Recipe, tmp_path: Path, pretended: list[str]
) -> None:
    """The processor's graphs are gone, of every size; without an NPU one line says so."""
    recipe = small(tiny_recipe, "8gen2,8elite")
    recipe = replace(recipe, cut=replace(recipe.cut, width_px=64, height_px=48))
    recipe = replace(recipe, further_sizes=(PictureSize(48, 64),))
    choices = tuple(
        replace(c, choices={**c.choices, "contexts": "instead"}) if c.name == "onnx" else c
        for c in recipe.choices
    )
    (built,) = build(replace(recipe, choices=choices), tmp_path, ["onnx"], ["w8a16"])
    assert len(pretended) == 2 * len(GRAPHS)  # all sizes of a graph at once
    assert not list(built.path.rglob("*.data"))
    package = open_package(built.path)
    assert package.manifest.format_version == "4.4"
    (entry,) = package.manifest.sizes
    first = package.graph("denoiser")
    (other,) = (graph for graph in entry.graphs if graph.name == "denoiser")
    assert first.entry == "graphs/denoiser/8gen2/denoiser.onnx"
    assert other.entry == "graphs/denoiser/8gen2/denoiser-48x64.onnx"
    assert first.npu is not None and first.npu.alone and first.npu.contexts[0].shared
    there = {p.relative_to(built.path).as_posix() for p in built.path.glob("graphs/*/*/*")}
    assert there == context_files(package.manifest)
    said = r"has contexts in place of its graphs and draws on an NPU alone \(8gen2, 8elite\): say"
    for size in package.sizes:
        with pytest.raises(InputError, match=said):
            package.at(size).session("denoiser")
    for command in (["run", str(built.path), "a cat"], ["verify", str(built.path)]):
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 2 or command[0] == "verify", done.output
    for target, engine in targets().items():
        if "onnx" in engine.backends:
            place = tmp_path / "bundle"
            done = CliRunner().invoke(
                main, ["bundle", str(built.path), "--for", target, "-o", str(place)]
            )
            assert done.exit_code == 2 and len(done.stderr.strip().splitlines()) == 1
            said = rf"has contexts in place of its graphs \(8gen2, 8elite\), .* --for {target} does"
            assert re.search(said, done.stderr) and not place.exists()
    done = CliRunner().invoke(main, ["inspect", str(built.path)])
    assert "on an NPU alone, error at most 5.0e-03; compiled for 8gen2" in done.output
    assert "MB for all sizes)" in done.output


def test_contexts_stand_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The emulator opens the first of them, and none whose weights sizes share."""
    monkeypatch.setattr(provider, "require", lambda: provider.Versions("2.7.0", HERE))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    alone = NpuEntry(Tolerance(5e-3, 45.0), (context("8elite"), context("8gen2")), alone=True)
    assert fitting(alone, "HTP") == alone.contexts[0]
    assert fitting(alone, "HTP:8gen2") == alone.contexts[1]
    shared = replace(context("8elite"), shared=True)
    with pytest.raises(InputError, match='emulator cannot open; .* contexts = "beside" in'):
        fitting(replace(alone, contexts=(shared,)), "HTP")
    with pytest.raises(InputError, match=r"emulator cannot open; .*, say --device HTP$"):
        fitting(NpuEntry(alone.tolerance, (shared,)), "HTP:8elite")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    monkeypatch.setattr(socs, "SOC_ID", Path("none"))
    with pytest.raises(InputError, match="compiled for this chip; it has 8elite, 8gen2"):
        fitting(alone, "HTP")


def refuse_another_context(package: Path) -> None:
    """A package whose context opens something else is refused."""
    manifest = open_package(package).manifest
    path = manifest.graph("clip_l").npu.contexts[0].entry  # type: ignore[union-attr]
    data = ep_context(ep_cache_context="../clip_l.onnx.data")
    (package / path).write_bytes(data)
    raw = json.loads((package / MANIFEST).read_text())
    (entry,) = (f for f in raw["files"] if f["path"] == path)
    entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (package / MANIFEST).write_text(json.dumps(raw))
    (package / DIGEST).write_bytes(digest_line((package / MANIFEST).read_bytes()))
    with pytest.raises(CheckFailed, match=r"8gen2/clip_l.onnx: refused: "):
        open_package(package)


def test_the_report_shows_what_compiling_took() -> None:
    steps = (
        CompileStep("8gen2", 1.5, 10, 20),
        CompileStep("8gen2", 2.0, 30, 40),
        CompileStep("8elite", 1.0, 1, 2),
    )
    graph = NpuEntry(Tolerance(5e-3, 45.0), (context("8gen2"), context("8elite")))
    files = tuple(FileEntry(p, 100, "0" * 64) for c in graph.contexts for p in c.files)
    names = ("denoiser", "vae_decoder")
    graphs = (*(SimpleNamespace(name=n, npu=graph) for n in names), SimpleNamespace(npu=None))
    manifest: Any = SimpleNamespace(graphs=graphs, sizes=(), all_files=files)
    first, second = chips_of(manifest, steps)
    assert (first.graphs, first.bytes, first.seconds) == (2, 200, 3.5)
    assert (first.peak_bytes, first.predicted_peak_bytes) == (30, 40)
    assert second.seconds is None  # the log has one of its two: the build had been interrupted
    page = compiled_page({"onnx-w8a16": (first, second)})
    assert "8elite" in page and "v79" in page and "Nothing here was measured on a device" in page
    assert first.step is None and "puts aside" not in page  # a compiler that does not say


def test_the_report_shows_the_traffic_that_the_compiler_predicts() -> None:
    graph, chips = NpuEntry(Tolerance(5e-3, 45.0), (context("8gen2"),)), dict[str, Any]()
    names = ["denoiser-1", "denoiser-2", "vae_decoder"]
    files = tuple(FileEntry(p, 100, "0" * 64) for p in graph.contexts[0].files)
    graphs = [SimpleNamespace(name=name, npu=graph) for name in names]
    manifest: Any = SimpleNamespace(graphs=graphs, sizes=(), all_files=files)
    said = Traffic(3_000_000, 2_000_000, 1_000_000, 1_500_000)
    steps = [CompileStep("8gen2", 1.0, 1, 2, 2, name, (said, None)) for name in names]
    for missing in (None, 0, 2):  # of an interrupted build the log has only what came after
        kept = tuple(step for i, step in enumerate(steps) if i != missing)
        (chips[str(missing)],) = chips_of(manifest, kept)
    assert chips["None"].step == Traffic(6_000_000, 4_000_000, 2_000_000, 3_000_000)
    assert chips["None"].decoding == said
    assert chips["0"].step is None and chips["0"].decoding == said
    assert chips["2"].step is not None and chips["2"].decoding is None
    page = compiled_page({"onnx-w8a16": (chips["0"],)})
    assert "Predicted by Qualcomm" in page and "measured nowhere" in page
    assert "<td>3.0</td><td>2.0</td><td>1.0</td></tr>" in page


def test_the_traffic_is_read_from_what_the_compiler_prints() -> None:
    told = """
        [V:onnxruntime:Default, QnnLogging] options.cc:150:Option: report_bytes=7
        ====== DDR bandwidth summary ======

        2026-12-01 [V:onnxruntime:Default, QnnLogging] spill_bytes=19988480
        2026-12-01 [V:onnxruntime:Default, QnnLogging] fill_bytes=19988481
        2026-12-01 [V:onnxruntime:Default, QnnLogging] write_total_bytes=20199936
        2026-12-01 [V:onnxruntime:Default, QnnLogging] read_total_bytes=21186816
        ====== DDR bandwidth summary ======
        spill_bytes=0
    """
    assert traffic(told.splitlines()) == [Traffic(21186816, 20199936, 19988480, 19988481)]


def test_more_memory_than_there_is_is_refused(
    tiny_package: Path, pretended: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exporter.build.chips.available_bytes", lambda: 1000)
    backend = backends.load("onnx")
    assert isinstance(backend, backends.ForNpu)
    whole = WholeGraph(open_package(tiny_package).graph("denoiser"))
    part = replace(whole, graph=replace(whole.graph, name="denoiser-2"))
    other = WholeGraph(open_package(tiny_package).graph("clip_l"))
    for graph, remedy in (
        (whole, "denoiser_parts in"),
        (part, "denoiser_parts in"),
        (other, "build where"),
    ):
        said = f"compiling {graph.name} for 8gen2 is predicted .* are free; .*{remedy}"
        with pytest.raises(InputError, match=said):
            compiled(backend, tiny_package, graph, "8gen2", 0)
    assert not pretended


COMPILED = [
    pytest.param(row, id=f"{file.stem}-{row['graph']}-{row['size']}-{row['scheme']}")
    for file in sorted(tables.RESULTS.glob("npu-*.json"))
    for row in figures.read(file).rows
    if "peak_gb" in row
]


@pytest.mark.parametrize("row", COMPILED)
def test_what_compiling_takes_is_predicted_above_what_was_measured(row: figures.Row) -> None:
    codes, *rest = (round(1e6 * row[key]) for key in ("codes_mb", "values_mb", "activations_mb"))
    predicted = compile_bytes(len(row["size"].split(",")) * codes, *rest)
    assert row["peak_gb"] <= predicted / 1e9 <= 1.5 * row["peak_gb"]
    assert row["predicted_gb"] == predicted / 1e9


def test_all_values_of_a_program_are_counted_once() -> None:
    class Twice(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x + 1).reshape(6) * 2

    exported = torch.export.export(Twice(), (torch.zeros(2, 3),))
    found: Any = SimpleNamespace(
        nodes=lambda: [n for n in exported.graph.nodes if n.op == "call_function"]
    )
    assert value_bytes(found) == 2 * 6 * 4  # what is added to, and what is multiplied; no view


def test_a_package_that_is_not_for_an_npu_is_not_run_on_one(tiny_package: Path) -> None:
    said = r'--device: onnx-int4 has no graph for HTP; build it with target = "qnn" in \[onnx\]'
    for command in (["verify", str(tiny_package)], ["run", str(tiny_package), "a cat"]):
        done = CliRunner().invoke(main, [*command, "--device", "HTP"])
        assert done.exit_code == 2
    with pytest.raises(InputError, match=said.removeprefix("--device: ")):
        open_package(tiny_package).player(SessionOptions(device="HTP"))
    with pytest.raises(InputError, match="onnx has no HTP:8gen1; it has CPU, HTP, HTP:8gen2"):
        open_package(tiny_package).player(SessionOptions(device="HTP:8gen1"))


def test_doctor_shows_the_emulator_or_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def row() -> dict[str, Any]:
        done = CliRunner().invoke(main, ["doctor", "--json"])
        return next(r for r in json.loads(done.output) if r["name"] == "run onnx on HTP")

    if not backends.missing(provider.REQUIRED.modules):
        assert "QAIRT" in row()["version"] and row()["get"] == ""
    monkeypatch.setattr(backends, "missing", lambda modules: [*modules.values()])
    assert row()["get"] == "pip install 'fourstep[qnn]'"


# The emulator.


def package_of(recipe: Recipe, cut: Cut, place: Path) -> Path:
    """A package of the tiny checkpoint for the NPU, of one step, compiled for one chip."""
    recipe = for_npu(replace(recipe, cut=cut), "8elite")
    (built,) = build(recipe, place, ["onnx"], ["w8a16"])
    return built.path


@pytest.fixture(scope="module")
def emulated(tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cut = Cut((1.0, 0.0), 64, 48, t5=False, t5_tokens=8, image_to_image=False)
    return package_of(tiny_recipe, cut, tmp_path_factory.mktemp("npu"))


@EMULATED
@pytest.mark.parametrize("name", ["clip_l", "conditioner", "denoiser", "vae_decoder"])
def test_the_emulator_computes_what_the_program_computes(emulated: Path, name: str) -> None:
    """A graph whole on the NPU, constants beside values and zeros among what it computes.

    The decoder's first values are 6 high: there the compiler's own SiLU gives a constant.
    """
    package = open_package(emulated)
    npu = package.graph(name).npu
    assert npu is not None and npu.tolerance.graph_relative == 5e-3
    ((inputs, expected),) = golden_calls(package, package.manifest.golden.pictures[0], name)
    found = package.session(name, SessionOptions(device="HTP"))(inputs)
    for port, value in expected.items():
        assert 0 < relative_error(found[port], value) <= 5e-3


@EMULATED
@pytest.mark.full
def test_two_sizes_share_the_weights_of_one_context(tiny_recipe: Recipe, tmp_path: Path) -> None:
    cut = Cut((1.0, 0.0), 64, 48, t5=False, t5_tokens=8, image_to_image=False)
    recipe = replace(for_npu(replace(tiny_recipe, cut=cut), "8elite"), prompts=())
    sizes = []
    for name, further in (("one", ()), ("two", (PictureSize(48, 64),))):
        both = replace(recipe, further_sizes=further)
        (built,) = build(both, tmp_path / name, ["onnx"], ["w8a16"])
        binary = built.path / "graphs/denoiser/8elite/denoiser_qnn.bin"
        sizes.append(binary.stat().st_size)
        log = json.loads(built.path.with_name(f"{built.path.name}.log.json").read_text())
        (step,) = (step for step in log["compiled"] if step["graph"] == "denoiser")
        moved = [traffic["read_bytes"] for traffic in step["traffic"]]
        assert len(moved) == step["sizes"] == len(sizes) and min(moved) > 0
    assert sizes[0] < sizes[1] < 1.25 * sizes[0]


@EMULATED
@pytest.mark.full
def test_pictures_of_the_emulator_are_those_of_the_processor(
    tiny_recipe: Recipe, tmp_path: Path
) -> None:
    cut = Cut((1.0, 0.0), 96, 96, t5=False, t5_tokens=8, image_to_image=False)
    package = open_package(package_of(tiny_recipe, cut, tmp_path))
    report = verify(package, options=SessionOptions(device="HTP"))
    assert report.ok, report.failures
    assert {g.graph for g in report.graphs} == {*GRAPHS} and report.device == "HTP"
    on_cpu = verify(package)
    for npu, cpu in zip(report.images, on_cpu.images, strict=True):
        assert abs(npu.loss_db - cpu.loss_db) < 0.3


@EMULATED
def test_the_operator_is_named_from_which_on_a_graph_is_off(emulated: Path) -> None:
    """Held to less than the emulator has: the one that adds most is named."""
    package = open_package(emulated)
    parity = GraphParity("clip_l", 1, 1.0, 1.0, "", 1e-5)
    said = _explained(package, parity, SessionOptions(device="HTP")).culprit
    assert re.fullmatch(r"off from \w+ '\w+' on: \S+, and \S+ in what it reads", said), said
    assert _explained(package, parity, SessionOptions()).culprit == ""


@EMULATED
def test_what_was_compiled_runs_and_compiles_to_the_same_bytes(
    emulated: Path, tmp_path: Path
) -> None:
    package = open_package(emulated)
    graph = package.graph("denoiser")
    ((inputs, expected),) = golden_calls(package, package.manifest.golden.pictures[0], "denoiser")
    found = package.session("denoiser", SessionOptions(device="HTP:8elite"))(inputs)
    assert relative_error(found["velocity"], expected["velocity"]) <= 5e-3
    shutil.copytree(emulated / "graphs" / "denoiser", tmp_path / "else")
    done = compiling.compile_graph([tmp_path / "else" / "denoiser.onnx"], "8elite", 10**9)
    assert graph.npu is not None
    assert done.qairt == graph.npu.contexts[0].qairt
    for path in graph.npu.contexts[0].files:
        made = done.graphs[0].entry.parent / Path(path).name
        assert made.read_bytes() == (emulated / path).read_bytes()
    assert {path.suffix for path in done.graphs[0].files} == {".onnx", ".bin"}
    moved = done.graphs[0].traffic
    assert moved is not None and moved.read_bytes > sum(v.nbytes for v in inputs.values())
    log = json.loads(emulated.with_name(f"{emulated.name}.log.json").read_text())["compiled"]
    said = next(step for step in log if step["graph"] == "denoiser")
    assert said["traffic"] == [asdict(moved)]
    assert said["peak_bytes"] <= said["predicted_peak_bytes"]
    steps = {step.graph: step for step in _compiled(package)}  # as the report reads it
    assert steps["denoiser"].traffic == (moved,)

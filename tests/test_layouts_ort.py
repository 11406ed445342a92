"""onnxruntime's model package: the schema, shared weights, onnxruntime's own reader."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from click.testing import CliRunner

from exporter.backends.onnx.model_package import API_VERSION, read_model_package
from exporter.build.pipeline import build
from exporter.cli import main
from exporter.errors import CheckFailed
from exporter.layouts.ort_package import (
    MANIFEST,
    WEIGHTS_FOLDER,
    NativePackage,
    asset_folder,
    check_package,
    manifest_text,
    write_graphs,
)
from exporter.package.layout import check_layout
from exporter.package.manifest import ContextEntry, NpuEntry, Tolerance
from exporter.package.read import read_manifest
from exporter.recipe.recipe import Recipe


@pytest.fixture(scope="module")
def built(tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint in two schemes, and both of them gathered."""
    recipe = replace(tiny_recipe, layouts=("ort-package",), prompts=())
    out = tmp_path_factory.mktemp("ort")
    *natives, gathered = build(recipe, out, ["onnx", "openvino"], ["int8", "int8-w8a8"])
    assert [one.layout for one in natives] == ["native"] * 2
    assert gathered.path == out / f"{recipe.name}.ortpackage"
    assert gathered.layout == "ort-package" and gathered.scheme == "int8, int8-w8a8"
    return gathered.path


def test_onnxruntime_reads_it_and_opens_every_graph(built: Path) -> None:
    found = read_model_package(built)
    assert found is not None, f"onnxruntime {ort.__version__} has no interface {API_VERSION}"
    graphs = read_manifest(built.parent / "onnx-int8").graphs
    assert {graph.name: len(graph.inputs) for graph in graphs} == {
        name: component.inputs for name, component in found.items()
    }
    cpu = {"int8": "CPUExecutionProvider", "int8-w8a8": "CPUExecutionProvider"}
    assert all(one.providers == cpu and one.chosen == "int8" for one in found.values())


def test_weights_that_variants_share_are_there_once(built: Path) -> None:
    """What no input is rounded for is the same in both schemes: one asset for two variants."""
    told = json.loads((built / MANIFEST).read_text())
    used: dict[str, set[str]] = {}
    for name, component in told["components"].items():
        variants = component["variants"].values()
        used[name] = {
            v["executor_info"]["ort"]["session_options"][WEIGHTS_FOLDER] for v in variants
        }
    assert len(used["clip_l"]) == 1 and len(used["denoiser"]) == 2
    assert {asset_folder(built, uri) for uris in used.values() for uri in uris} == set(
        (built / "shared_assets").iterdir()
    )
    natives = [read_manifest(built.parent / f"onnx-{s}") for s in ("int8", "int8-w8a8")]
    apart = sum(graph.bytes for manifest in natives for graph in manifest.graphs)
    graphs = [f for f in built.rglob("*") if f.suffix in (".onnx", ".data")]
    assert sum(file.stat().st_size for file in graphs) < apart


def test_a_variant_computes_what_the_native_graph_computes(built: Path) -> None:
    """Opened as its manifest says: the graph in its folder, the weights in the asset's."""
    told = json.loads((built / MANIFEST).read_text())["components"]["denoiser"]["variants"]
    for scheme, variant in told.items():
        body = variant["executor_info"]["ort"]
        options = ort.SessionOptions()
        for key, value in body["session_options"].items():
            is_uri = key == WEIGHTS_FOLDER
            options.add_session_config_entry(
                key, str(asset_folder(built, value)) if is_uri else value
            )
        graph = built / variant["variant_directory"] / body["model_file"]
        native = next(
            g for g in read_manifest(built.parent / f"onnx-{scheme}").graphs if g.name == "denoiser"
        )
        random = np.random.default_rng(0)
        given = {p.name: random.standard_normal(p.shape, np.float32) for p in native.inputs}
        right = ort.SessionOptions()
        right.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "4")
        right.add_session_config_entry("session.disable_quant_qdq", "1")  # it is small
        entry = str(built.parent / f"onnx-{scheme}" / native.entry)
        (found,) = ort.InferenceSession(str(graph), options).run(None, given)
        (expected,) = ort.InferenceSession(entry, right).run(None, given)
        assert np.array_equal(found, expected)


def test_it_says_how_it_draws(built: Path) -> None:
    told = json.loads((built / MANIFEST).read_text())["additional_metadata"]["fourstep"]
    assert told["schedule"]["sigmas"] == [1.0, 0.9, 0.75, 0.5, 0.0]
    named = {part for stage in told["stages"] for part in stage["parts"]}
    assert named == set(json.loads((built / MANIFEST).read_text())["components"])
    for tokenizer in told["text"]["tokenizers"].values():
        assert (built / tokenizer["path"]).is_file()


def test_it_is_kept_and_checked(built: Path, tiny_recipe: Recipe, tmp_path: Path) -> None:
    recipe = replace(tiny_recipe, layouts=("ort-package",), prompts=())
    before = (built / "fourstep.json").stat().st_mtime_ns
    build(recipe, built.parent, ["onnx"], ["int8", "int8-w8a8"])
    assert (built / "fourstep.json").stat().st_mtime_ns == before
    assert check_layout(built).schedule.sigmas[0] == 1.0
    for command in (["verify"], ["inspect"]):
        result = CliRunner().invoke(main, [*command, str(built)])
        assert result.exit_code == 0 and "onnxruntime's model package reader" in result.output
    result = CliRunner().invoke(main, ["run", str(built), "a red circle"])
    assert result.exit_code == 2 and "in ort-package layout" in result.output
    damaged = Path(shutil.copytree(built, tmp_path / "damaged.ortpackage"))
    weights = next((damaged / "shared_assets").rglob("*.data"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(CheckFailed, match="has not the content that it is called by"):
        check_package(damaged)
    result = CliRunner().invoke(main, ["verify", str(damaged)])
    assert result.exit_code == 1 and weights.name in result.output


FAULTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "the schema has no 'extra'": lambda told: told.update(extra=1),
    "of schema 2.0": lambda told: told.update(schema_version="2.0"),
    "its layout is not portable": lambda told: told.update(layout="installed"),
    "leads out": lambda told: first_variant(told).update(variant_directory="../elsewhere"),
    "has no else.onnx": lambda told: first_variant(told)["executor_info"]["ort"].update(
        model_file="else.onnx"
    ),
    "is no shared asset": lambda told: first_variant(told)["executor_info"]["ort"].update(
        session_options={WEIGHTS_FOLDER: "sha256:" + "0" * 64}
    ),
    "not as the schema has it": lambda told: first_variant(told).pop("executor_info"),
}


def first_variant(told: dict[str, Any]) -> dict[str, Any]:
    (variant, *_) = told["components"]["clip_l"]["variants"].values()
    found: dict[str, Any] = variant
    return found


@pytest.mark.parametrize("reason", FAULTS)
def test_what_the_schema_does_not_have_is_found(built: Path, tmp_path: Path, reason: str) -> None:
    folder = tmp_path / "copy.ortpackage"
    shutil.copytree(built, folder)
    told = json.loads((folder / MANIFEST).read_text())
    FAULTS[reason](told)
    (folder / MANIFEST).write_text(json.dumps(told))
    with pytest.raises(CheckFailed, match=reason):
        check_package(folder)


def test_onnxruntime_refuses_what_we_refuse(built: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(built, tmp_path / "copy.ortpackage"))
    told = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(told | {"extra": 1}))
    with pytest.raises(CheckFailed, match="onnxruntime's reader: .*unknown field 'extra'"):
        read_model_package(folder)


def test_what_is_rounded_to_16_bits_is_for_an_npu_too(built: Path, tmp_path: Path) -> None:
    manifest = read_manifest(built.parent / "onnx-int8")
    graphs = tuple(replace(graph, formats={"w8a16": 1}) for graph in manifest.graphs)
    source = NativePackage(built.parent / "onnx-int8", replace(manifest, graphs=graphs), "native")
    variants = write_graphs([source], tmp_path)["components"]["denoiser"]["variants"]
    assert {name: body["ep"] for name, body in variants.items()} == {
        "int8": "CPUExecutionProvider",
        "int8-qnn": "QNNExecutionProvider",
    }


def test_what_was_compiled_for_a_chip_is_a_variant_behind_the_graph(
    built: Path, tmp_path: Path
) -> None:
    """Each chip's two files lie beside each other; what any chip takes is chosen first."""
    native, manifest = tmp_path / "native", read_manifest(built.parent / "onnx-int8")
    shutil.copytree(built.parent / "onnx-int8", native)
    graphs = []
    for graph in manifest.graphs:
        files = (f"npu/{graph.name}_ctx.onnx", f"npu/{graph.name}_qnn.bin")
        for path in files:
            (native / path).parent.mkdir(exist_ok=True)
            (native / path).write_bytes(path.encode())
        context = ContextEntry("sm8750", 69, 79, "2.48.40", files[0], files)
        npu = NpuEntry(Tolerance(5e-3, 40.0), (context,))
        graphs.append(replace(graph, formats={"w8a16": 1}, npu=npu))
    source = NativePackage(native, replace(manifest, graphs=tuple(graphs)), "qnn")
    folder = tmp_path / "chips.ortpackage"
    told = write_graphs([source], folder)
    (folder / MANIFEST).write_text(manifest_text(told))
    check_package(folder)
    variants = told["components"]["denoiser"]["variants"]
    assert list(variants) == ["int8", "int8-qnn", "int8-sm8750"]
    chip = variants["int8-sm8750"]
    assert (chip["ep"], chip["device"]) == ("QNNExecutionProvider", "npu")
    assert "soc=sm8750;soc_model=69;htp_arch=79;qairt=2.48.40" in chip["compatibility_string"]
    place = folder / chip["variant_directory"]
    assert chip["executor_info"]["ort"] == {"model_file": "denoiser_ctx.onnx"}
    assert sorted(p.name for p in place.iterdir()) == ["denoiser_ctx.onnx", "denoiser_qnn.bin"]
    found = read_model_package(folder)
    assert found is None or found["denoiser"].providers["int8-sm8750"] == chip["ep"]
    assert found is None or found["denoiser"].chosen == "int8"


def test_graphs_for_the_web_are_variants_of_two_providers(built: Path, tmp_path: Path) -> None:
    """WebGPU has no kernel for rounded inputs: those are for the CPU alone."""
    natives = [built.parent / f"onnx-{scheme}" for scheme in ("int8", "int8-w8a8")]
    sources = [NativePackage(folder, read_manifest(folder), "web") for folder in natives]
    told = write_graphs(sources, tmp_path)
    (tmp_path / MANIFEST).write_text(manifest_text(told))
    check_package(tmp_path)
    variants = told["components"]["denoiser"]["variants"]
    assert list(variants) == ["int8", "int8-webgpu", "int8-w8a8"]
    gpu = variants["int8-webgpu"]
    assert (gpu["ep"], gpu["device"]) == ("WebGpuExecutionProvider", "gpu")
    assert gpu["variant_directory"] == variants["int8"]["variant_directory"]
    found = read_model_package(tmp_path)
    assert found is None or found["denoiser"].providers["int8-webgpu"] == gpu["ep"]

"""The ONNX backend: onnxruntime runs the fast kernels, files are packed and hold no traces."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from exporter.backends.contract import EmitOptions, Emitted, SessionOptions
from exporter.backends.onnx import BACKEND as backend
from exporter.backends.onnx import ROUNDED_TOLERANCE, ops
from exporter.backends.onnx.session import open_graph
from exporter.calibrate.activations import choose
from exporter.calibrate.weights import Weights
from exporter.checkpoint.open import Checkpoint
from exporter.network.assemble import cut_graphs
from exporter.package.measures import relative_error
from exporter.program.program import Program
from exporter.program.trace import trace
from exporter.quantize.program import QuantizedProgram, quantize
from exporter.quantize.rounded import round_inputs
from exporter.recipe.recipe import Recipe
from tests.conftest import SMALL, random_inputs, scheme_of

NOTHING = EmitOptions({})


@pytest.fixture(scope="module")
def denoiser(tiny: Checkpoint) -> Program:
    return next(trace(g) for g in cut_graphs(tiny, SMALL) if g.name == "denoiser")


def emitted(
    program: Program, tiny: Checkpoint, folder: Path, scheme: str, symmetric: bool = True
) -> tuple[QuantizedProgram, Emitted]:
    quantized = quantize(program, scheme_of(scheme, symmetric).format_of)
    return quantized, backend.emit(quantized, Weights(tiny).read, folder, NOTHING)


SYMMETRIC = [("int8", True), ("int4", True), ("int4", False), ("int2", True), ("int2", False)]


@pytest.mark.parametrize(("scheme", "symmetric"), SYMMETRIC)
def test_onnxruntime_runs_matmulnbits(
    denoiser: Program, tiny: Checkpoint, tmp_path: Path, scheme: str, symmetric: bool
) -> None:
    """After onnxruntime's own optimization every linear layer is a MatMulNBits."""
    quantized, files = emitted(denoiser, tiny, tmp_path, scheme, symmetric)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(str(files.entry), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(tmp_path / "optimized.onnx").graph.node
    kinds = [n.op_type for n in nodes]
    linear = sum(str(n.target) == "aten.linear.default" for n in quantized.nodes())
    assert kinds.count("MatMulNBits") == linear > 40
    assert not {"MatMul", "Gemm", "Cast"} & set(kinds)
    assert kinds.count("DequantizeLinear") == kinds.count("Conv") == 1  # the patch embedding
    bits = Counter(a.i for n in nodes for a in n.attribute if a.name == "bits")
    assert bits[int(scheme[3])] >= 41
    assert kinds.count("MultiHeadAttention") == 5  # three joint and two dual
    assert kinds.count("SimplifiedLayerNormalization") == 16


def test_onnxruntime_multiplies_rounded_inputs_in_8_bits(
    denoiser: Program, tiny: Checkpoint, tmp_path: Path
) -> None:
    """Layers with one input share its codes, and none is widened to float32 before its product."""
    quantized = quantize(denoiser, scheme_of("int8-w8a8").format_of)
    random = np.random.default_rng(0)
    call = {p.name: random.standard_normal(p.shape, np.float32) for p in denoiser.inputs}
    read = Weights(tiny).read
    rounded = round_inputs(quantized, choose(quantized, read, [call]))
    files = backend.emit(rounded, read, tmp_path, NOTHING)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(str(files.entry), options, providers=["CPUExecutionProvider"])
    kinds = Counter(n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node)
    linear = sum(str(n.target) == "aten.linear.default" for n in quantized.nodes())
    assert kinds["MatMulIntegerToFloat"] == 41 == linear - kinds["MatMulNBits"]
    assert 20 < kinds["QuantizeLinear"] < 35
    assert kinds["DequantizeLinear"] == kinds["Conv"] == 1  # the patch embedding
    assert not {"MatMul", "Gemm", "MatMulInteger"} & kinds.keys()
    assert files.tolerance == ROUNDED_TOLERANCE and not files.adjusted
    assert files.remarks == (
        "inputs not rounded to 8 bits: pos_embed.proj.weight, proj_out.weight",
    )


def test_files_hold_no_traces_of_this_machine(
    denoiser: Program, tiny: Checkpoint, tmp_path: Path
) -> None:
    _, files = emitted(denoiser, tiny, tmp_path, "int4")
    text = files.entry.read_bytes()
    for word in (
        b"/work",
        b"/home",
        b"/tmp",
        b".py",
        b"torch",
        b"site-packages",
        b"stack",
        b"meta",
    ):
        assert word not in text, word


@pytest.mark.parametrize(("scheme", "symmetric"), SYMMETRIC[1:])
def test_weights_are_packed(
    denoiser: Program, tiny: Checkpoint, tmp_path: Path, scheme: str, symmetric: bool
) -> None:
    """Two or four codes to a byte, scales in fp16: what the formats say, to page alignment."""
    quantized, files = emitted(denoiser, tiny, tmp_path, scheme, symmetric)
    shapes = {s.of.name: s.of.shape for s in quantized.tensors.values() if hasattr(s, "of")}
    expected = sum(quantized.formats[n].stored_bytes(shape) for n, shape in shapes.items())
    model = onnx.load(files.entry, load_external_data=False)
    stored = 0
    for tensor in model.graph.initializer:
        if any(k in tensor.name for k in ("_values", "_scale", "_zero_point")):
            length = {e.key: e.value for e in tensor.external_data}.get("length")
            stored += int(length) if length else len(tensor.raw_data)
    assert stored == expected


@pytest.mark.parametrize(("scheme", "opset"), [("int8", 21), ("int4", 21), ("int2", 25)])
def test_a_graph_asks_for_no_newer_opset_than_its_weights_do(
    denoiser: Program, tiny: Checkpoint, tmp_path: Path, scheme: str, opset: int
) -> None:
    _, files = emitted(denoiser, tiny, tmp_path, scheme)
    model = onnx.load(files.entry, load_external_data=False)
    assert {o.domain: o.version for o in model.opset_import} == {"": opset, "com.microsoft": 1}


def anonymous_mb() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("RssAnon"))


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's /proc")
def test_a_session_keeps_no_activations(tmp_path: Path) -> None:
    """The full-size VAE would hold a gigabyte more."""
    graph = onnx.parser.parse_graph("""
        wide (float[1] x) => (float[1] y)
        <int64[1] size = {50000000}, float two = {2}> {
            large = Expand(x, size)
            doubled = Mul(large, two)
            y = ReduceMax<keepdims = 1>(doubled)
        }
    """)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)])
    model.ir_version = 10
    onnx.save(model, tmp_path / "wide.onnx")
    session = open_graph(tmp_path / "wide.onnx", {}, SessionOptions())
    before_mb = anonymous_mb()
    assert session({"x": np.ones(1, np.float32)})["y"] == 2
    assert anonymous_mb() - before_mb < 100  # of 400 that it took


WEB = EmitOptions({"target": "web"})


@pytest.mark.parametrize("scheme", ["int4", "int8-w8a8"])
@pytest.mark.parametrize("name", ["denoiser", "vae_decoder", "t5"])
def test_the_form_for_the_web_computes_the_same(
    tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, scheme: str
) -> None:
    """Nothing is cut or joined in more than 7 at a time, and attention runs over a few queries."""
    monkeypatch.setattr(ops, "WASM_SIZES", 2048)
    program = next(trace(g) for g in cut_graphs(tiny, SMALL) if g.name == name)
    quantized, read = quantize(program, scheme_of(scheme).format_of), Weights(tiny).read
    if scheme == "int8-w8a8" and name != "t5":
        call = {port: values.numpy() for port, values in random_inputs(program).items()}
        quantized = round_inputs(quantized, choose(quantized, read, [call]))
    found = {}
    for form, options in (("native", NOTHING), ("web", WEB)):
        (tmp_path / form).mkdir()
        files = backend.emit(quantized, read, tmp_path / form, options)
        session = open_graph(files.entry, {}, SessionOptions())
        inputs = {port: values.numpy() for port, values in random_inputs(program).items()}
        found[form] = session(inputs)
    nodes = onnx.load(tmp_path / "web" / f"{name}.onnx", load_external_data=False).graph.node
    assert all(len(n.output) <= 7 for n in nodes if n.op_type == "Split")
    assert all(len(n.input) <= 7 for n in nodes if n.op_type == "Concat")
    once = onnx.load(tmp_path / "native" / f"{name}.onnx", load_external_data=False).graph.node
    attentions = [[n for n in some if n.op_type == "MultiHeadAttention"] for some in (nodes, once)]
    assert len(attentions[0]) >= 2 * len(attentions[1]) > 0
    for port, values in found["native"].items():
        assert relative_error(found["web"][port], values) < 1e-6, port


def test_runs_of_queries_fit_into_32_bits() -> None:
    """At full size: the VAE at 512 and 1024 px is cut, the denoiser and small graphs are not."""
    assert ops.run_of_queries(512, 4096, 4096) == 256
    assert ops.run_of_queries(512, 16384, 16384) == 64
    assert ops.run_of_queries(64, 4096, 4250) == 256
    assert ops.run_of_queries(64, 1024, 1178) == 1024
    assert ops.run_of_queries(512, 256, 256) == 256


def test_a_recipe_without_a_target_keeps_its_digest(tiny_recipe: Recipe) -> None:
    """Packages from before there was one are not built again; those for the web are others."""

    def digest(**choices: str) -> str:
        chosen = [
            replace(c, choices=choices) if c.name == "onnx" else c for c in tiny_recipe.choices
        ]
        return replace(tiny_recipe, choices=tuple(chosen)).digest("onnx")

    assert digest() == digest(target="native") != digest(target="web")

"""The ONNX backend: onnxruntime runs the fast kernels, files are packed and hold no traces."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime as ort
import pytest

from exporter.backends import Emitted, Order
from exporter.backends import onnx as backend
from exporter.checkpoint import Checkpoint
from exporter.graphs import cut_graphs
from exporter.quantize import QuantizedProgram, Weights, quantize
from exporter.recipe import Recipe
from exporter.trace import Program, trace
from tests.conftest import SMALL

NOTHING = Order({}, lambda graph: [])


@pytest.fixture(scope="module")
def denoiser(tiny: Checkpoint) -> Program:
    return next(trace(g) for g in cut_graphs(tiny, SMALL) if g.name == "denoiser")


def emitted(
    program: Program, tiny: Checkpoint, recipe: Recipe, scheme: str, folder: Path
) -> tuple[QuantizedProgram, Emitted]:
    quantized = quantize(program, recipe.scheme(scheme).format_of)
    return quantized, backend.emit(quantized, Weights(tiny).read, folder, NOTHING)


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_onnxruntime_runs_matmulnbits(
    denoiser: Program, tiny: Checkpoint, tiny_recipe: Recipe, tmp_path: Path, scheme: str
) -> None:
    """After onnxruntime's own optimization every linear layer is a MatMulNBits."""
    quantized, files = emitted(denoiser, tiny, tiny_recipe, scheme, tmp_path)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(str(files.entry), options, providers=["CPUExecutionProvider"])
    kinds = [n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node]
    linear = sum(str(n.target) == "aten.linear.default" for n in quantized.nodes())
    assert kinds.count("MatMulNBits") == linear > 40
    assert "MatMul" not in kinds and "Gemm" not in kinds
    assert kinds.count("MultiHeadAttention") == 5  # three joint and two dual
    assert kinds.count("SimplifiedLayerNormalization") == 16


def test_files_hold_no_traces_of_this_machine(
    denoiser: Program, tiny: Checkpoint, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    _, files = emitted(denoiser, tiny, tiny_recipe, "int4", tmp_path)
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


def test_int4_weights_are_packed(
    denoiser: Program, tiny: Checkpoint, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    """Two codes to a byte: the data file is what the formats say, to page alignment."""
    quantized, files = emitted(denoiser, tiny, tiny_recipe, "int4", tmp_path)
    shapes = {s.of.name: s.of.shape for s in quantized.tensors.values() if hasattr(s, "of")}
    expected = sum(quantized.formats[n].stored_bytes(shape) for n, shape in shapes.items())
    model = onnx.load(files.entry, load_external_data=False)
    stored = 0
    for tensor in model.graph.initializer:
        if any(k in tensor.name for k in ("_values", "_scale")):
            length = {e.key: e.value for e in tensor.external_data}.get("length")
            stored += int(length) if length else len(tensor.raw_data)
    assert stored == expected

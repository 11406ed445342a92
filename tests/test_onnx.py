"""The ONNX backend: graphs equal torch, the kernels are the fast ones, no traces in files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from exporter.backends import Emitted
from exporter.backends import onnx as backend
from exporter.checkpoint import Checkpoint
from exporter.errors import InputError
from exporter.formats import scheme_names
from exporter.graphs import cut_graphs
from exporter.quantize import QuantizedProgram, Weights, quantize
from exporter.recipe import Recipe
from exporter.trace import Program, run, trace
from exporter.verify import relative_error
from tests.conftest import SMALL


@pytest.fixture(scope="module")
def programs(tiny: Checkpoint) -> list[Program]:
    plain = [trace(g) for g in cut_graphs(tiny, SMALL)]
    without = [trace(g) for g in cut_graphs(tiny, replace(SMALL, t5=False))]
    return plain + [p for p in without if p.name in ("conditioner", "denoiser")]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("scheme", scheme_names())
def test_every_graph_equals_torch(
    programs: list[Program],
    tiny: Checkpoint,
    tiny_recipe: Recipe,
    tmp_path: Path,
    scheme: str,
    symmetric: bool,
) -> None:
    rules = replace(tiny_recipe, symmetric=symmetric).scheme(scheme)
    weights = Weights(tiny)
    torch.manual_seed(3)
    for program in programs:
        quantized = quantize(program, rules.format_of)
        inputs = {
            p.name: torch.randint(0, 200, p.shape, dtype=torch.int32)
            if p.dtype == "int32"
            else torch.randn(p.shape)
            for p in program.inputs
        }
        expected = run(quantized, weights.read, inputs)
        emitted = backend.emit(quantized, weights.read, tmp_path)
        session = backend.session(emitted.entry, emitted.session, exact=True)
        found = session({name: value.numpy() for name, value in inputs.items()})
        for port, value in expected.items():
            assert relative_error(found[port], value.numpy()) <= 1e-4, (program.name, port)


def emitted(
    program: Program, tiny: Checkpoint, recipe: Recipe, scheme: str, folder: Path
) -> tuple[QuantizedProgram, Emitted]:
    quantized = quantize(program, recipe.scheme(scheme).format_of)
    return quantized, backend.emit(quantized, Weights(tiny).read, folder)


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_onnxruntime_runs_matmulnbits(
    programs: list[Program], tiny: Checkpoint, tiny_recipe: Recipe, tmp_path: Path, scheme: str
) -> None:
    """After onnxruntime's own optimization every linear layer is a MatMulNBits."""
    (denoiser, *_) = [p for p in programs if p.name == "denoiser"]
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
    programs: list[Program], tiny: Checkpoint, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    _, files = emitted(programs[4], tiny, tiny_recipe, "int4", tmp_path)
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
    programs: list[Program], tiny: Checkpoint, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    """Two codes to a byte: the data file is what the formats say, to page alignment."""
    quantized, files = emitted(programs[4], tiny, tiny_recipe, "int4", tmp_path)
    shapes = {s.of.name: s.of.shape for s in quantized.tensors.values() if hasattr(s, "of")}
    expected = sum(quantized.formats[n].stored_bytes(shape) for n, shape in shapes.items())
    model = onnx.load(files.entry, load_external_data=False)
    stored = 0
    for tensor in model.graph.initializer:
        if any(k in tensor.name for k in ("_values", "_scale")):
            length = {e.key: e.value for e in tensor.external_data}.get("length")
            stored += int(length) if length else len(tensor.raw_data)
    assert stored == expected


def test_unknown_operator_is_refused_by_name(tiny: Checkpoint, tmp_path: Path) -> None:
    program = trace(cut_graphs(tiny, SMALL)[0])
    for node in program.nodes():
        if str(node.target) == "aten.layer_norm.default":
            node.target = torch.ops.aten.cumsum.default
    quantized = quantize(program, lambda *_: __import__("exporter.formats").formats.FORMATS["fp32"])
    with pytest.raises(InputError, match=r"clip_l: operator aten.cumsum.default has no ONNX"):
        backend.emit(quantized, Weights(tiny).read, tmp_path)


def test_large_activations_stay_exact(
    programs: list[Program], tiny: Checkpoint, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    (decoder,) = [p for p in programs if p.name == "vae_decoder"]
    quantized, files = emitted(decoder, tiny, tiny_recipe, "fp32", tmp_path)
    latent = {"latent": 30 * torch.randn(decoder.inputs[0].shape)}
    expected = run(quantized, Weights(tiny).read, latent)["image"].numpy()
    session = backend.session(files.entry, files.session)
    found = session({"latent": latent["latent"].numpy()})["image"]
    assert relative_error(found, expected) <= 1e-4
    assert np.isfinite(found).all()

"""The comparison with peers' quantizers: bytes by hand, both ways to run, one row of each kind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.fidelity.__main__ import Bench, prepare, resume, table
from benchmarks.fidelity.graphs import constant_bytes, session, transplant
from benchmarks.fidelity.nncf_peer import compress
from benchmarks.fidelity.onnxruntime_peer import blockwise, matmul_nbits
from benchmarks.fidelity.variant import GRAPHS, Quantize, Samples, Variant
from benchmarks.shapes_flash.shapeeval import evaluation_prompts
from exporter.backends.contract import Session
from exporter.package.measures import SAME_DB, relative_error
from exporter.recipe.recipe import Recipe


@pytest.fixture(scope="module")
def bench(tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    few = replace(tiny_recipe.calibration, prompts=tiny_recipe.calibration.prompts[:2])
    recipe = replace(tiny_recipe, calibration=few)
    folder = tmp_path_factory.mktemp("fidelity")
    return prepare(recipe, evaluation_prompts(1), 3, folder, ["openvino"])


def write_onnx(file: Path, *tensors: onnx.TensorProto) -> Path:
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    onnx.save(helper.make_model(helper.make_graph([], "g", [], [output], tensors)), file)
    return file


def test_bytes_of_an_onnx_graph(tmp_path: Path) -> None:
    file = write_onnx(
        tmp_path / "g.onnx",
        helper.make_tensor("scale", TensorProto.FLOAT16, [3, 2], bytes(12), raw=True),
        helper.make_tensor("bias", TensorProto.FLOAT, [5], bytes(20), raw=True),
        helper.make_tensor("codes", TensorProto.INT4, [3, 3], bytes(5), raw=True),
        helper.make_tensor("packed", TensorProto.UINT8, [7], bytes(7), raw=True),
        helper.make_tensor("shape", TensorProto.INT64, [2], bytes(16), raw=True),
    )
    assert constant_bytes("onnx", file) == {"float": 20, "float16": 12, "int4": 5, "uint8": 7}


def test_bytes_of_an_openvino_graph(tmp_path: Path) -> None:
    ov = pytest.importorskip("openvino")
    from openvino import opset15 as op

    codes = ov.Tensor(np.zeros(6, np.uint8), ov.Shape([3, 4]), ov.Type.u4)
    scale = op.constant(np.ones((3, 1), np.float16))
    weight = op.convert(op.multiply(op.convert(op.constant(codes), "f16"), scale), "f32")
    x = op.parameter([1, 4], ov.Type.f32, name="x")
    y = op.reshape(op.matmul(x, weight, False, True), op.constant(np.array([3], np.int64)), False)
    file = tmp_path / "g.xml"
    ov.save_model(ov.Model([op.result(y)], [x], "g"), file, compress_to_fp16=False)
    assert constant_bytes("openvino", file) == {"f16": 6, "u4": 6}


def test_a_weight_is_found_either_way_round_by_resemblance(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 8, 8)).astype(np.float32)
    plain = write_onnx(
        tmp_path / "g.onnx", numpy_helper.from_array(a, "a"), numpy_helper.from_array(b, "b")
    )
    rounded = [np.round(b.T * 2) / 2, np.round(a * 2) / 2]
    folder = tmp_path / "out"
    folder.mkdir()
    tensors = onnx.load(transplant(rounded, plain, folder)).graph.initializer
    found = {t.name: numpy_helper.to_array(t) for t in tensors}
    np.testing.assert_array_equal(found["a"], rounded[1])
    np.testing.assert_array_equal(found["b"], rounded[0].T)
    with pytest.raises(LookupError, match="no weight resembles b"):
        transplant(rounded[1:], plain, folder)


def test_unquantized_rows_lose_nothing(bench: Bench) -> None:
    row = bench.measure("onnx", bench.files["onnx"])
    assert row["latent_snr_db"] == SAME_DB and row["psnr_db"] == SAME_DB
    assert row["bits"] == pytest.approx(32, abs=0.1)
    assert bench.measure("openvino", bench.files["openvino"])["latent_snr_db"] > 90


@pytest.mark.parametrize(
    ("backend", "quantize", "least_bits", "most_bits"),
    [
        ("openvino", compress("INT4_SYM", group_size=16), 4, 9),
        ("onnx", blockwise(8, 32, symmetric=True), 9, 14),
    ],
)
def test_a_row_of_a_peer(
    bench: Bench, backend: str, quantize: Quantize, least_bits: float, most_bits: float
) -> None:
    row = bench.quantize(Variant("it", "numpy", backend, quantize))
    assert least_bits < row["bits"] < most_bits
    assert 5 < row["latent_snr_db"] < 60
    assert row["latent_snr_db_se"] > 0 and row["quantize_cpu_s"] > 0
    assert f"| it | {row['bytes']:,} |" in table({"it": row})


def test_a_peer_that_fails_is_a_row(bench: Bench) -> None:
    row = bench.quantize(
        Variant("it", "numpy", "onnx", matmul_nbits("HQQ", 32, config={"bits": 3}))
    )
    assert row["error"].startswith("AssertionError: Only support 2, 4 or 8 bits")
    assert row["error"] in table({"it": row})


def test_a_graph_of_nncf_computes_what_its_weights_say(bench: Bench, tmp_path: Path) -> None:
    """In its own runtime as by transplanting its decompressed weights into our ONNX graph."""
    ov = pytest.importorskip("openvino")
    from openvino.passes import ConstantFolding, Manager

    for graph in GRAPHS:
        plain, samples = bench.files["onnx"][graph], bench.samples[graph]
        (tmp_path / graph).mkdir()
        quantize = compress("INT4_ASYM", group_size=16)
        file = quantize(bench.files["openvino"][graph], samples, tmp_path)
        model = ov.Core().read_model(file)
        folding = Manager()
        folding.register_pass(ConstantFolding())
        folding.run_passes(model)
        weights = [
            node.data.astype(np.float32)
            for node in model.get_ordered_ops()
            if node.get_type_name() == "Constant" and node.get_element_type() == ov.Type.f32
        ]
        weights += _left_alone(plain)
        other = transplant([w for w in weights if w.ndim > 1], plain, tmp_path / graph)
        _assert_same(
            session("openvino", file, plain, tmp_path), session("onnx", other, plain, tmp_path),
            samples,
        )  # fmt: skip


def _left_alone(plain: Path) -> list[np.ndarray]:
    """What NNCF does not see: the constants and weights of the time embedding."""
    return [
        numpy_helper.to_array(t) for t in onnx.load(plain).graph.initializer if "timestep" in t.name
    ]


def _assert_same(first: Session, second: Session, samples: Samples) -> None:
    for inputs in samples[:2]:
        expected = second(inputs)
        for port, value in first(inputs).items():
            assert relative_error(value, expected[port]) < 1e-5


@pytest.mark.full
def test_a_row_of_core_ml(tiny_recipe: Recipe, tmp_path: Path) -> None:
    from benchmarks.fidelity.coremltools_peer import palettize

    bench = prepare(tiny_recipe, evaluation_prompts(1), 3, tmp_path, ["coreml"])
    row = bench.quantize(Variant("it", "coremltools", "coreml", palettize(nbits=4)))
    assert 4 < row["bits"] < 6 and 5 < row["latent_snr_db"] < 60
    assert bench.measure("coreml", bench.files["coreml"])["latent_snr_db"] > 60


def test_only_rows_of_the_same_settings_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text('{"settings": {"per_category": 2}, "rows": {"a": {"bits": 4}}}')
    assert resume(file, {"per_category": 2}) == {"a": {"bits": 4}}
    assert resume(file, {"per_category": 3}) == resume(None, {}) == {}

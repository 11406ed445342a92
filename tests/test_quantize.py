"""Codes are a library's codes; programs in formats compute with them."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantFormat
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.quantization.quant_utils import quantize_data

from exporter.checkpoint import Checkpoint
from exporter.cut import Cut
from exporter.errors import InputError
from exporter.formats import FORMATS, Format, Rule, Scheme, fit, load_scheme, scheme_names
from exporter.graphs import cut_graphs
from exporter.quantize import Weights, encode, quantize, roles
from exporter.trace import Program, Stored, run, trace
from tests.conftest import SMALL


@pytest.fixture(autouse=True)
def silent_oracle() -> Iterator[None]:
    logging.disable(logging.INFO)
    yield
    logging.disable(logging.NOTSET)


def weight(seed: int, rows: int = 48, columns: int = 256) -> np.ndarray:
    values = np.random.default_rng(seed).normal(0, 0.05, (rows, columns)).astype(np.float32)
    values[3, :128] = 0  # groups without a largest value
    values[5] = np.abs(values[5])  # a row of one sign
    return values


def onnxruntime_codes(values: np.ndarray, form: Format) -> list[np.ndarray]:
    """Codes, scales and zero points of onnxruntime's own 4-bit block quantizer, as (N, ...)."""
    stored = np.ascontiguousarray(values.T)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    ports = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, s])
        for n, s in zip("xy", stored.shape, strict=True)
    ]
    graph = helper.make_graph(
        [node], "g", ports[:1], ports[1:], [numpy_helper.from_array(stored, "w")]
    )
    quantizer = MatMulNBitsQuantizer(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]),
        block_size=form.group_size,
        is_symmetric=form.symmetric,
        quant_format=QuantFormat.QDQ,
    )
    quantizer.process()
    model: onnx.ModelProto = quantizer.model.model
    tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    (dequantize,) = [n for n in model.graph.node if n.op_type == "DequantizeLinear"]
    return [tensors[name].T for name in dequantize.input]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_int4_codes_equal_onnxruntimes(group_size: int, symmetric: bool) -> None:
    form = Format("int4", group_size, symmetric)
    for seed in range(4):
        expected = onnxruntime_codes(weight(seed), form)
        ours = encode(torch.from_numpy(weight(seed)), form)
        assert ours.scale is not None
        np.testing.assert_array_equal(ours.values.numpy().astype(int), expected[0].astype(int))
        np.testing.assert_array_equal(ours.scale.numpy(), expected[1])
        if ours.zero_point is not None:
            np.testing.assert_array_equal(
                ours.zero_point.numpy().astype(int), expected[2].astype(int)
            )


def test_int8_codes_equal_onnxruntimes() -> None:
    for seed in range(4):
        values = weight(seed)
        ours = encode(torch.from_numpy(values), FORMATS["int8"])
        assert ours.scale is not None
        for row in range(len(values)):
            *_, scale, codes = quantize_data(values[row], TensorProto.INT8, True)
            assert float(scale) == ours.scale[row, 0].item()
            np.testing.assert_array_equal(ours.values[row].numpy(), np.asarray(codes))


@pytest.mark.parametrize("form", [FORMATS["int8"], Format("int4", 32), Format("int4", 32, False)])
def test_slabs_change_nothing(form: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = encode(torch.from_numpy(weight(0)), form)
    monkeypatch.setattr("exporter.quantize.SLAB_VALUES", 1000)
    slabs = encode(torch.from_numpy(weight(0)), form)
    for part in ("values", "scale", "zero_point"):
        one, other = getattr(whole, part), getattr(slabs, part)
        assert (one is None and other is None) or torch.equal(one, other)


def test_convolutions_have_one_scale_per_output_channel() -> None:
    values = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    encoded = encode(values, FORMATS["int8"])
    assert encoded.scale is not None and encoded.scale.shape == (8, 1)
    largest = values.flatten(1).abs().amax(1)
    torch.testing.assert_close(encoded.scale[:, 0], largest / 127)


def test_non_finite_weights_are_refused() -> None:
    values = torch.ones(4, 32)
    values[1, 2] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        encode(values, FORMATS["int4"])
    values[1, 2] = 70000
    with pytest.raises(ValueError, match="beyond fp16's 65504"):
        encode(values, FORMATS["fp16"])


@pytest.mark.parametrize(
    ("width", "expected"),
    [(1536, "int4-g128"), (192, "int4-g64"), (96, "int4-g32"), (48, "int4-g16"), (40, "int8")],
)
def test_widths_that_a_group_does_not_divide(width: int, expected: str) -> None:
    assert str(fit(Format("int4", 128), (7, width))) == expected


def test_channels_that_a_palette_does_not_divide() -> None:
    assert str(fit(Format("pal4", 16), (24, 96))) == "pal4-g8"
    assert fit(FORMATS["pal6"], (7, 5)) == FORMATS["pal6"]


def test_the_last_rule_wins() -> None:
    scheme = Scheme(
        "s", (Rule("*", "*", FORMATS["int8"]), Rule("denoiser", "a.*", FORMATS["fp16"]))
    )
    assert scheme.format_of("denoiser", "a.weight", "linear").name == "fp16"
    assert scheme.format_of("denoiser", "b.weight", "linear").name == "int8"
    assert load_scheme("fp32").format_of("denoiser", "a.weight", "linear").name == "fp32"


@pytest.fixture(scope="module")
def programs(tiny: Checkpoint) -> dict[str, Program]:
    return {g.name: trace(g) for g in cut_graphs(tiny, SMALL)}


def test_roles(programs: dict[str, Program]) -> None:
    """Roles come from use, not from names."""

    def role(graph: str, name: str) -> str:
        program = programs[graph]
        (place,) = [
            p for p, s in program.tensors.items() if isinstance(s, Stored) and s.name == name
        ]
        return roles(program)[place]

    assert role("clip_l", "text_model.embeddings.token_embedding.weight") == "embedding"
    assert role("clip_l", "text_model.embeddings.position_embedding.weight") == "table"
    assert role("denoiser", "pos_embed.pos_embed") == "table"
    assert role("denoiser", "pos_embed.proj.weight") == "conv"
    assert role("denoiser", "proj_out.weight") == "linear"
    assert role("denoiser", "transformer_blocks.0.attn.norm_q.weight") == "vector"
    bias_table = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    assert role("t5", bias_table) == "table"


def test_int4_defaults(programs: dict[str, Program]) -> None:
    """Embeddings, norms, biases, patch and output projections, encoders: 8 bits or more."""
    scheme = load_scheme("int4")
    formats = {n: quantize(p, scheme.format_of).formats for n, p in programs.items()}
    low = {(g, w) for g, fs in formats.items() for w, f in fs.items() if f.bits < 8}
    assert {g for g, _ in low} == {"denoiser", "conditioner"}
    assert not [w for _, w in low if "embed" in w or "proj_out" in w or w.endswith("bias")]
    assert ("denoiser", "transformer_blocks.0.attn.to_q.weight") in low
    assert ("conditioner", "transformer_blocks.0.norm1.linear.weight") in low


@pytest.mark.parametrize("name", scheme_names())
def test_quantized_programs_run_in_torch(
    programs: dict[str, Program], tiny: Checkpoint, name: str
) -> None:
    """A quantized program equals the plain one with rounded weights put in its place."""
    scheme, weights = load_scheme(name), Weights(tiny)
    plain = programs["denoiser"]
    torch.manual_seed(2)
    inputs = {p.name: torch.randn(p.shape) for p in plain.inputs}
    quantized = quantize(plain, scheme.format_of)

    def rounded(source: object) -> torch.Tensor:
        value = weights.read(source)
        if not isinstance(source, Stored) or quantized.formats[source.name].name == "fp32":
            return value
        encoded = encode(value, quantized.formats[source.name])
        if encoded.palette is not None:
            rows = len(encoded.palette)
            pairs = zip(encoded.values.chunk(rows), encoded.palette, strict=True)
            return torch.cat([table[codes.long()] for codes, table in pairs])
        if encoded.scale is None:
            return encoded.values.float()
        block = value.shape[1] // encoded.scale.shape[1]
        scale = encoded.scale.repeat_interleave(block, 1)
        return encoded.values.float() * scale.reshape(*scale.shape, *(1,) * (value.ndim - 2))

    found = run(quantized, weights.read, inputs)["velocity"]
    expected = run(plain, rounded, inputs)["velocity"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    if name != "fp32":
        exact = run(plain, weights.read, inputs)["velocity"]
        assert not torch.equal(found, exact)


def test_damaged_weights_are_named(tiny: Checkpoint) -> None:
    class Damaged(Weights):
        def _stored(self, source: Stored) -> torch.Tensor:
            return super()._stored(source) * float("nan")

    program = quantize(
        trace(cut_graphs(tiny, Cut((1.0, 0.0), 64, 64, t5=False))[0]), load_scheme("int8").format_of
    )
    with pytest.raises(
        InputError, match=r"text_encoder: tensor 'text_model.*' has a value that is not"
    ):
        run(program, Damaged(tiny).read, {"ids": torch.zeros(1, 77, dtype=torch.int32)})

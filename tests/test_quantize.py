"""Codes are a library's codes; programs in formats compute with them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from onnx import TensorProto
from onnxruntime.quantization import matmul_nbits_quantizer
from onnxruntime.quantization.quant_utils import quantize_data

from exporter.calibrate.weights import Weights
from exporter.checkpoint.open import Checkpoint
from exporter.errors import InputError
from exporter.network.assemble import cut_graphs
from exporter.network.cut import Cut
from exporter.program.program import Program, Stored
from exporter.program.run import run
from exporter.program.trace import trace
from exporter.quantize.formats import FORMATS, GROUP_SIZES, Format, Rule, Scheme, fitting_format
from exporter.quantize.nearest import decode, encode
from exporter.quantize.packing import narrowed, pack
from exporter.quantize.program import Unrounded, quantize, quantize_all, roles
from exporter.quantize.schemes import load_scheme, scheme_names
from tests.conftest import SMALL, slow_ones


def weight(seed: int, rows: int = 48, columns: int = 256) -> np.ndarray:
    values = np.random.default_rng(seed).normal(0, 0.05, (rows, columns)).astype(np.float32)
    values[3, :128] = 0  # groups without a largest value
    values[5] = np.abs(values[5])  # a row of one sign
    return values


def onnxruntime_codes(values: np.ndarray, form: Format) -> tuple[np.ndarray, ...]:
    """Codes, scales and zero points of onnxruntime's own block quantizers, (N, ...).

    Of 4 bits the one for QuantizeLinear's layout (K, N), of 2 bits that for MatMulNBits' (N, K):
    the former aborts on 2 bits, the latter rounds its sum with the zero point.
    """
    (rows, columns), size, bits = values.shape, form.group_size, form.bits
    assert size is not None
    blocks, stored = columns // size, np.ascontiguousarray(values.T)
    codes = np.zeros((rows, blocks, size * bits // 8), np.uint8)
    zero_points = np.zeros((rows, -(-blocks * bits // 8)), np.uint8)
    if bits == 2:
        scales = np.zeros((rows, blocks), np.float32)
        call = (codes, stored, scales, zero_points, size, rows, columns, form.symmetric)
        matmul_nbits_quantizer.quantize_matmul_2bits(*call)
        found, zeros = unpacked(codes, 2), unpacked(zero_points, 2)[:, :blocks]
        return found - 2 if form.symmetric else found, scales, zeros
    codes, zero_points = codes.reshape(-1), zero_points.reshape(-1)
    scales = np.zeros((blocks, rows), np.float32)
    call = (codes, stored, scales, zero_points, size, rows, columns, form.symmetric)
    matmul_nbits_quantizer.quantize_qdq_matmul_4bits(*call)
    found = unpacked(codes, 4).reshape(columns, rows).T
    zeros = unpacked(zero_points, 4).reshape(-1)[: blocks * rows].reshape(blocks, rows).T
    return (found ^ 8) - 8 if form.symmetric else found, scales.T, zeros


def unpacked(packed: np.ndarray, bits: int) -> np.ndarray:
    """Codes from bytes (N, ...), the first in the low bits, as (N, codes)."""
    places = [packed >> (bits * i) & (2**bits - 1) for i in range(8 // bits)]
    return np.stack(places, -1).reshape(len(packed), -1).astype(int)


GROUPED = [
    Format(name, size, symmetric)
    for name in ("int4", "int2")
    for size in GROUP_SIZES
    for symmetric in (True, False)
]


@pytest.mark.parametrize("form", GROUPED, ids=str)
def test_codes_equal_onnxruntimes(form: Format) -> None:
    """onnxruntime does not round scales; nor do we where fp16 cannot hold one of them."""
    for seed in range(4):
        values = weight(seed)
        values[7] *= 1e-5
        codes, scale, zero_point = onnxruntime_codes(values, form)
        ours = encode(torch.from_numpy(values), form)
        assert ours.scale is not None
        np.testing.assert_array_equal(ours.values.numpy(), codes)
        np.testing.assert_array_equal(ours.scale.numpy(), scale)
        if ours.zero_point is not None:
            np.testing.assert_array_equal(ours.zero_point.numpy(), zero_point)


@pytest.mark.parametrize("form", [f for f in GROUPED if f.symmetric], ids=str)
def test_codes_of_rounded_scales_equal_onnxruntimes(form: Format) -> None:
    """A weight whose extreme values stand where fp16's scales put them has the same codes."""
    for seed in range(4):
        values = weight(seed)
        moved = values.reshape(len(values), -1, form.group_size or 0)
        extreme = np.abs(moved).argmax(2, keepdims=True)
        np.put_along_axis(moved, extreme, 1.01 * np.take_along_axis(moved, extreme, 2), 2)
        ours = encode(torch.from_numpy(values), form)
        assert ours.scale is not None
        lowest = -(2 ** (form.bits - 1)) * ours.scale.numpy()
        np.put_along_axis(moved, extreme, lowest[:, :, None], 2)
        codes, scale, _ = onnxruntime_codes(values, form)
        np.testing.assert_array_equal(ours.scale.numpy(), scale)
        np.testing.assert_array_equal(ours.values.numpy(), codes)


@pytest.mark.parametrize("form", GROUPED, ids=str)
def test_scales_of_groups_are_fp16s_and_codes_the_nearest(form: Format) -> None:
    for seed in range(4):
        values = torch.from_numpy(weight(seed))
        ours = encode(values, form)
        assert ours.scale is not None and ours.scale.dtype == torch.float32
        assert torch.equal(ours.scale.half().float(), ours.scale)
        exact = torch.from_numpy(onnxruntime_codes(weight(seed), form)[1])
        assert torch.equal(ours.scale, exact.half().float()) and not torch.equal(ours.scale, exact)
        lowest = -(2 ** (form.bits - 1)) if form.symmetric else 0
        allowed = torch.arange(lowest, lowest + 2**form.bits, dtype=torch.float32)
        zero = torch.zeros_like(ours.scale) if ours.zero_point is None else ours.zero_point
        levels = (allowed - zero[:, :, None]) * ours.scale[:, :, None]
        groups = values.reshape(*levels.shape[:2], -1, 1)
        codes = ours.values.reshape(groups.shape).float()
        found = (codes - zero[:, :, None, None]) * ours.scale[:, :, None, None]
        best = (groups - levels[:, :, None]).abs().amin(3)
        torch.testing.assert_close((groups - found).abs()[..., 0], best, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("size", "is_half"),
    [(8 * 2.0**-14, True), (7.9 * 2.0**-14, False), (8 * 65504.0, True), (8 * 65530.0, False)],
)
def test_scales_outside_fp16s_normal_range_stay_float32(size: float, is_half: bool) -> None:
    """One such scale keeps all of a weight's as they are, in whichever slab it is."""
    values = torch.from_numpy(weight(0))
    values[-1, 0:32] = torch.linspace(0, size, 32)
    scale = encode(values, Format("int4", 32)).scale
    assert scale is not None
    assert torch.equal(scale.half().float(), scale) == is_half
    assert scale[-1, 0] == size / -8
    assert narrowed(scale.numpy()).dtype == (np.float16 if is_half else np.float32)


def test_codes_are_packed_the_first_lowest() -> None:
    assert pack(np.array([[1, 2], [-1, -8], [7, 0]], np.int8), 4).tolist() == [0x21, 0x8F, 0x07]
    assert pack(np.array([-2, -1, 0, 1, 1], np.int8), 2).tolist() == [0b01_00_11_10, 0b01]
    assert pack(np.array([3], np.uint8), 2).tolist() == [3]


@pytest.mark.parametrize(
    ("form", "bits_per_value"),
    [
        (FORMATS["int8"], 8 + 32 / 128),
        (Format("int4", 64), 4 + 16 / 64),
        (Format("int4", 32, False), 4 + 20 / 32),
        (FORMATS["int2"], 2 + 16 / 64),
        (Format("int2", 16), 2 + 16 / 16),
        (Format("int2", 64, False), 2 + 18 / 64),
    ],
    ids=str,
)
def test_stored_bytes(form: Format, bits_per_value: float) -> None:
    """Codes, a scale in 2 bytes for each group or in 4 for each channel, packed zero points."""
    assert form.stored_bytes((256, 128)) == 256 * 128 * bits_per_value / 8


def test_int8_codes_equal_onnxruntimes() -> None:
    for seed in range(4):
        values = weight(seed)
        ours = encode(torch.from_numpy(values), FORMATS["int8"])
        assert ours.scale is not None
        for row in range(len(values)):
            *_, scale, codes = quantize_data(values[row], TensorProto.INT8, True)
            assert float(scale) == ours.scale[row, 0].item()
            np.testing.assert_array_equal(ours.values[row].numpy(), np.asarray(codes))


SLABBED = [FORMATS["int8"], Format("int4", 32), Format("int4", 32, False), Format("int2", 16)]


@pytest.mark.parametrize("form", SLABBED, ids=str)
@pytest.mark.parametrize("smallest", [1, 1e-5])
def test_slabs_change_nothing(
    form: Format, smallest: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = torch.from_numpy(weight(0))
    values[-1] *= smallest  # its scales decide on those of all rows
    whole = encode(values, form)
    monkeypatch.setattr("exporter.quantize.nearest.SLAB_VALUES", 1000)
    slabs = encode(values, form)
    for part in ("values", "scale", "zero_point"):
        one, other = getattr(whole, part), getattr(slabs, part)
        assert (one is None and other is None) or torch.equal(one, other)


def test_convolutions_have_one_scale_per_output_channel() -> None:
    values = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    encoded = encode(values, FORMATS["int8"])
    assert encoded.scale is not None and encoded.scale.shape == (8, 1)
    largest = values.flatten(1).abs().amax(1)
    torch.testing.assert_close(encoded.scale[:, 0], largest / 127)


def products_in_16_bits(codes: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """(N, K) times (M, K), as processors without 8-bit dot products compute it: neighbours are
    multiplied and added in 16 bits, which clip, and these sums are added in 32."""
    each = levels[:, None].int() * codes[None].int()
    pairs: torch.Tensor = each[..., ::2] + each[..., 1::2]
    return pairs.clamp(-(2**15), 2**15 - 1).sum(-1)


def test_products_with_levels_of_8_bits_fit_into_16_bits() -> None:
    """For the loudest inputs that there are; int8's codes do not fit, and lose little less."""
    values = torch.from_numpy(weight(0))
    values[7] = 0.2  # all at the end of the range
    levels = torch.randint(256, (16, 256), generator=torch.Generator().manual_seed(0))
    levels[0] = 255
    errors = {}
    for name in ("w8a8", "int8"):
        found = encode(values, FORMATS[name])
        exact = levels @ found.values.T.long()
        assert torch.equal(products_in_16_bits(found.values, levels), exact) is (name == "w8a8")
        errors[name] = float((decode(found) - values).norm())
    assert errors["int8"] < errors["w8a8"] < 1.6 * errors["int8"]


@pytest.mark.parametrize("channels", [1, 3, 6])
def test_neighbours_of_a_kernel_are_its_input_channels(channels: int) -> None:
    """Whether taps or channels are multiplied first: with an odd number no two of all are above."""
    kernel = torch.randn(5, channels, 3, 3, generator=torch.Generator().manual_seed(0))
    codes = encode(kernel, FORMATS["w8a8"]).values.int()
    one, other = (codes[:, ::2], codes[:, 1::2]) if channels == 6 else (codes, codes)
    assert int((one.clamp(min=0) + other.clamp(min=0)).max()) <= 128
    assert int((one.clamp(max=0) + other.clamp(max=0)).min()) >= -128
    assert codes.abs().flatten(1).amax(1).min() > 50  # and the range is used


def test_non_finite_weights_are_refused() -> None:
    values = torch.ones(4, 64)
    for form in FORMATS.values():
        for wrong in ("nan", "inf", "-inf"):
            values[1, 2] = float(wrong)
            with pytest.raises(ValueError, match="not finite"):
                encode(values, form)
    values[1, 2] = 70000
    with pytest.raises(ValueError, match="beyond fp16's 65504"):
        encode(values, FORMATS["fp16"])


@pytest.mark.parametrize(
    ("width", "expected"),
    [(1536, "int4-g128"), (192, "int4-g64"), (96, "int4-g32"), (48, "int4-g16"), (40, "int8")],
)
def test_widths_that_a_group_does_not_divide(width: int, expected: str) -> None:
    assert str(fitting_format(Format("int4", 128), (7, width))) == expected
    assert str(fitting_format(Format("int2", 128), (7, width))) == expected.replace("int4", "int2")


def test_channels_that_a_palette_does_not_divide() -> None:
    assert str(fitting_format(Format("pal4", 16), (24, 96))) == "pal4-g8"
    assert fitting_format(FORMATS["pal6"], (7, 5)) == FORMATS["pal6"]


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


@pytest.mark.parametrize("name", slow_ones(scheme_names()))
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


@pytest.mark.parametrize("name", scheme_names())
def test_methods_are_for_codes(programs: dict[str, Program], name: str) -> None:
    """What has no codes to choose needs no statistics, and its biases no rows for the steps."""
    plain, methods = load_scheme(name), ("feedback", "bias")
    scheme = replace(plain, methods=methods)
    assert scheme.used_methods == (() if name in ("fp32", "fp16") else methods)
    before, after = (quantize_all(programs, s) for s in (plain, scheme))
    for graph, program in after.items():
        rows = [s for s in program.tensors.values() if isinstance(s, Unrounded) and s.rows > 1]
        assert all(s.format is not None and s.format.takes_methods for s in rows)
        grown = program.stored_bytes() - before[graph].stored_bytes()
        assert grown == sum(4 * (s.rows - 1) * s.of.shape[0] for s in rows)
        eight_bits = ("int8", "int8-w8a8", "int4", "int4-a8", "w8a16", "w4a16")
        adaln = graph == "conditioner" and name in eight_bits
        assert bool(rows) == (adaln or (graph == "conditioner" and name.startswith("pal")))


def test_weights_are_decoded_where_they_are_first_used(programs: dict[str, Program]) -> None:
    """Run in torch, a program holds a few of its weights in float32, and not all of them."""
    program = quantize(programs["denoiser"], load_scheme("int8").format_of)
    nodes = program.nodes()
    places = {node: place for place, node in enumerate(nodes)}
    decoded = [node for node in nodes if "dequantize" in str(node.target)]
    assert len(decoded) > 20
    for node in decoded:
        first = min(places[user] for user in node.users)
        between = nodes[places[node] + 1 : first]
        assert all("dequantize" in str(other.target) for other in between), node


def test_damaged_weights_are_named(tiny: Checkpoint) -> None:
    class Damaged(Weights):
        def _raw(self, source: Stored) -> torch.Tensor:
            return super()._raw(source) * float("nan")

    program = quantize(
        trace(cut_graphs(tiny, Cut((1.0, 0.0), 64, 64, t5=False))[0]), load_scheme("int8").format_of
    )
    with pytest.raises(
        InputError, match=r"text_encoder: tensor 'text_model.*' has a value that is not"
    ):
        run(program, Damaged(tiny).read, {"ids": torch.zeros(1, 77, dtype=torch.int32)})


@pytest.mark.parametrize("name", ["fp32", "fp16", "int8", "int4", "int2", "pal4"])
def test_a_bfloat16_weight_is_encoded_as_its_float32_values(name: str) -> None:
    weight = torch.randn(70, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    one, other = encode(weight, FORMATS[name]), encode(weight.float(), FORMATS[name])
    for part in ("values", "scale", "zero_point", "palette"):
        found, expected = getattr(one, part), getattr(other, part)
        assert (found is None) == (expected is None), part
        assert found is None or (found.dtype == expected.dtype and torch.equal(found, expected))
    assert torch.equal(weight.float(), weight.clone().float())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["fp32", "fp16", "int8", "int4", "pal4"])
def test_values_that_are_not_finite_are_refused(name: str, value: float) -> None:
    weight = torch.ones(70, 128)
    weight[69, 127] = value
    with pytest.raises(ValueError, match="not finite"):
        encode(weight, FORMATS[name])


WIDEN = """
import sys, torch
from pathlib import Path
from exporter.quantize.formats import FORMATS
from exporter.quantize.nearest import encode
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024
weight = torch.ones(1 << 16, 1 << 10, dtype=torch.bfloat16)
encode(weight[:64], FORMATS[sys.argv[1]])
before = peak()
encode(weight, FORMATS[sys.argv[1]])
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's /proc")
def test_a_weight_is_not_widened_as_a_whole() -> None:
    """64 Mi values: their codes are 64 MiB, float32 would be 256."""
    run = [sys.executable, "-c", WIDEN, "int8"]
    found = subprocess.run(run, check=True, capture_output=True, text=True).stdout
    assert 60 < int(found) < 120


def test_what_the_names_of_formats_stand_for() -> None:
    """Kind, bits and what shares a scale; what is asked of a format follows from them."""
    for name, form in FORMATS.items():
        assert form.bits == form.storage.bits > 0
        assert form.is_integer == (form.storage.kind == "integer") == name.startswith(("int", "w"))
        assert form.is_grouped == (form.group_size is not None)
        assert form.rounds_inputs == (form.storage.inputs == 8) == (name == "w8a8")
    shared = {name: form.granularity for name, form in FORMATS.items()}
    assert (shared["fp16"], shared["int8"], shared["int4"]) == ("value", "channel", "group")
    assert (shared["pal4"], Format("pal4", 16).granularity) == ("weight", "channels")

"""The OpenVINO backend: weights stay compressed, norms and attention are fused, devices agree."""

# ruff: noqa: RUF001  (prompts hold characters that look alike)

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from benchmarks.shapes_flash.shapeeval import evaluation_prompts
from exporter import backends
from exporter.backends import openvino
from exporter.backends.contract import EmitOptions, Emitted, Precision, SessionOptions
from exporter.backends.openvino import session
from exporter.backends.openvino.half import halve_attention
from exporter.build.model import token_counts
from exporter.build.pipeline import build
from exporter.calibrate.activations import choose
from exporter.calibrate.weights import Weights
from exporter.checkpoint.open import Checkpoint
from exporter.checkpoint.tokenizers import TokenizerFile, tokenizer_files
from exporter.cli import main
from exporter.drawing.text import PromptCut
from exporter.errors import CheckFailed, InputError
from exporter.files.cache import DamagedCache
from exporter.network import denoiser
from exporter.network.assemble import cut_graphs
from exporter.network.cut import Cut
from exporter.package.measures import relative_error
from exporter.program.program import Constant, Program, Stored
from exporter.program.trace import trace
from exporter.quantize.formats import FORMATS, Format
from exporter.quantize.nearest import encode
from exporter.quantize.program import Part, QuantizedProgram, quantize, unquantized
from exporter.quantize.rounded import asked, round_inputs
from exporter.quantize.schemes import load_scheme
from exporter.recipe.recipe import Recipe
from tests.conftest import ROOT, SMALL, needs, random_inputs, scheme_of, seal

backend = backends.load("openvino")
if backends.missing(needs("openvino")):
    pytest.skip(f"pip install '{backend.to_build.install}'", allow_module_level=True)

import openvino as ov  # noqa: E402

Inputs = dict[str, np.ndarray]
LINEAR = torch.ops.aten.linear.default
ATTENTION = torch.ops.fourstep.attention.default
RMS_NORM = torch.ops.aten.rms_norm.default
LAYER_NORM = torch.ops.aten.layer_norm.default


@dataclass(frozen=True)
class Case:
    """One emitted graph and inputs for it."""

    program: QuantizedProgram
    emitted: Emitted
    inputs: Inputs

    def run(
        self,
        precision: Precision = "packaged",
        device: str | None = None,
        cache: Path | None = None,
    ) -> Inputs:
        options = SessionOptions(precision, device, cache)
        return backend.open_graph(self.emitted.entry, self.emitted.session, options)(self.inputs)


def inputs_of(program: Program) -> Inputs:
    return {name: value.numpy() for name, value in random_inputs(program).items()}


@pytest.fixture(scope="module")
def programs(tiny: Checkpoint) -> dict[str, Program]:
    return {g.name: trace(g) for g in cut_graphs(tiny, SMALL)}


@pytest.fixture(scope="module")
def cases(
    programs: dict[str, Program], tiny: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], Case]:
    """Every graph as int8 and int4, some as int2 and int8-w8a8, by scheme and graph."""
    found, weights = {}, Weights(tiny)
    wanted = [(s, g) for s in ("int8", "int4") for g in programs]
    rounded = [("int8-w8a8", g) for g in ("denoiser", "vae_decoder")]
    for scheme, graph in [*wanted, ("int2", "denoiser"), *rounded]:
        program = quantize(programs[graph], scheme_of(scheme).format_of)
        folder, inputs = tmp_path_factory.mktemp("graph"), inputs_of(program)
        if asked(program):
            program = round_inputs(program, choose(program, weights.read, [inputs]))
        emitted = backend.emit(program, weights.read, folder, EmitOptions({}))
        found[scheme, graph] = Case(program, emitted, inputs)
    return found


def property_of(node: Any, key: str) -> str:
    return str(node.get_rt_info()[key].value)


@dataclass(frozen=True)
class Layer:
    """A node that multiplies by a weight, as it runs: precisions of its input and its weight."""

    kind: str
    input: str
    weight_from: str
    weight: str


@dataclass(frozen=True)
class Running:
    """What the CPU plugin made of a graph: how many nodes of each kind, and its weights."""

    kinds: Counter[str]
    attentions: int
    layers: tuple[Layer, ...]

    def count(self, **wanted: str) -> int:
        return sum(all(getattr(x, k) == v for k, v in wanted.items()) for x in self.layers)


def running(entry: Path) -> Running:
    compiled = ov.Core().compile_model(str(entry), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    kinds, attentions, layers = Counter[str](), 0, []
    for node in compiled.get_runtime_model().get_ordered_ops():
        kind = property_of(node, "layerType")
        kinds[kind] += 1
        # The plugin compiles one node of an attention's products, scale and softmax.
        attentions += "scaleddotproductattention" in property_of(node, "originalLayersNames")
        if kind in ("FullyConnected", "Convolution", "MatMul"):
            source, weight = (node.input_value(i).get_node() for i in (0, 1))
            precisions = property_of(source, "outputPrecisions").split(",")
            precision = precisions[node.input_value(0).get_index() % len(precisions)]
            stored = property_of(weight, "outputPrecisions")
            layers.append(Layer(kind, precision, property_of(weight, "layerType"), stored))
    return Running(kinds, attentions, tuple(layers))


def targets(program: Program) -> Counter[object]:
    return Counter(n.target for n in program.nodes())


def linear_formats(program: QuantizedProgram) -> Counter[str]:
    """How many linear layers have a weight in each format."""
    count: Counter[str] = Counter()
    for node in program.nodes():
        if node.target is LINEAR:
            weight: Any = node.args[1]
            part = program.tensors[weight.args[0].name]
            assert isinstance(part, Part)
            count[part.format.name] += 1
    return count


PRECISIONS = {"int8": "i8", "int4": "i4", "int2": "u2"}


@pytest.mark.parametrize("scheme", PRECISIONS)
def test_weights_stay_compressed_while_the_denoiser_runs(
    cases: dict[tuple[str, str], Case], scheme: str
) -> None:
    """Every linear layer reads its codes; the patch embedding, a convolution, is decompressed."""
    case = cases[scheme, "denoiser"]
    found, expected = running(case.emitted.entry), linear_formats(case.program)
    assert expected.total() == found.kinds["FullyConnected"] == 42
    for name, precision in PRECISIONS.items():
        kept = found.count(kind="FullyConnected", weight_from="Const", weight=precision)
        assert kept == expected[name], name
    assert expected[scheme] >= 41 and "MatMul" not in found.kinds
    assert found.count(kind="Convolution", weight="f32") == found.kinds["Convolution"] == 1


@pytest.mark.parametrize("graph", ["clip_l", "clip_g", "t5", "conditioner", "vae_decoder"])
def test_weights_stay_compressed_elsewhere(cases: dict[tuple[str, str], Case], graph: str) -> None:
    """All linear layers but the conditioner's first, a weight times constants (its time features):
    its codes are decompressed at each call. Convolutions are decompressed when compiled, those of
    one pixel at each call."""
    case = cases["int8", graph]
    found = running(case.emitted.entry)
    linear = targets(case.program)[LINEAR]
    assert found.count(kind="FullyConnected") == linear
    kept = found.count(kind="FullyConnected", weight_from="Const", weight="i8")
    assert kept == linear - (graph == "conditioner")
    convolutions = found.count(kind="Convolution")
    assert found.count(kind="Convolution", weight="f32") == convolutions
    assert found.count(kind="Convolution", weight_from="Subgraph") == (graph == "vae_decoder")


def test_norms_and_attention_are_fused(cases: dict[tuple[str, str], Case]) -> None:
    """One node per attention and per norm; a layer norm's modulation is one node behind it."""
    for scheme, graph in (("int8", "denoiser"), ("int4", "denoiser"), ("int8", "t5")):
        case = cases[scheme, graph]
        found, written = running(case.emitted.entry), targets(case.program)
        assert found.attentions == written[ATTENTION] > 0
        assert found.kinds["RMS"] == written[RMS_NORM] > 0
        assert "Softmax" not in found.kinds
    case = cases["int4", "denoiser"]
    kinds = running(case.emitted.entry).kinds
    # Blocks with dual attention norm the image once for both: MVN has no weights of its own.
    dual = 2
    assert kinds["MVN"] == targets(case.program)[LAYER_NORM] - dual


class RandomWeights:
    """Reads as ``Weights`` does, without a checkpoint."""

    def read(self, source: object) -> torch.Tensor:
        if isinstance(source, Constant):
            return torch.from_numpy(source.value).float()
        stored = source.of if isinstance(source, Part) else source
        assert isinstance(stored, Stored)
        values = torch.randn(stored.shape, generator=torch.Generator().manual_seed(0)) * 0.02
        if not isinstance(source, Part):
            return values
        part: torch.Tensor = getattr(encode(values, source.format), source.part)
        return part


@pytest.mark.parametrize("scheme", PRECISIONS)
def test_full_widths_run_compressed_too(tmp_path: Path, scheme: str) -> None:
    """One block of SD3.5 Medium's widths."""
    config = denoiser.TransformerConfig(1, 24, 64, 16, 2, 4096, 2048, 384, (), True)
    graph = denoiser.cut(config, Cut((1.0, 0.0), 64, 64, t5=False, t5_tokens=256))
    program = quantize(trace(graph), scheme_of(scheme).format_of)
    emitted = backend.emit(program, RandomWeights().read, tmp_path, EmitOptions({}))
    found, expected = running(emitted.entry), linear_formats(program)
    for name, precision in PRECISIONS.items():
        kept = found.count(kind="FullyConnected", weight_from="Const", weight=precision)
        assert kept == expected[name], name
    assert expected[scheme] > 0 and found.kinds["RMS"] == 4 and found.attentions == 1


def test_shapes_and_types(cases: dict[tuple[str, str], Case]) -> None:
    for case in cases.values():
        model = ov.Core().read_model(case.emitted.entry)
        for ports, described in (
            (model.inputs, case.program.inputs),
            (model.outputs, case.program.outputs),
        ):
            assert [(p.any_name, tuple(p.shape)) for p in ports] == [
                (d.name, tuple(d.shape)) for d in described
            ]
            kinds = {"float32": ov.Type.f32, "int32": ov.Type.i32}
            assert [p.element_type for p in ports] == [kinds[d.dtype] for d in described]
            assert not any(p.partial_shape.is_dynamic for p in ports)
        assert case.emitted.session["INFERENCE_PRECISION_HINT"] == "f32"


def test_t5_is_scaled_down_where_fp16_computes(cases: dict[tuple[str, str], Case]) -> None:
    path = ["runtime_options", "ACTIVATIONS_SCALE_FACTOR"]
    for (_, graph), case in cases.items():
        model = ov.Core().read_model(case.emitted.entry)
        factor = model.get_rt_info(path).astype(str) if model.has_rt_info(path) else None
        assert factor == ("8.0" if graph == "t5" else None)
        assert case.emitted.session.get("ACTIVATIONS_SCALE_FACTOR") == factor


@pytest.mark.parametrize("scheme", ["int4", "int2"])
def test_weights_are_packed(cases: dict[tuple[str, str], Case], scheme: str) -> None:
    """Two or four codes to a byte, scales in fp16: the data file is what the formats say."""
    case = cases[scheme, "denoiser"]
    expected = case.program.stored_bytes()
    assert expected <= case.emitted.files[1].stat().st_size <= 1.05 * expected
    constants = Counter(
        o.get_element_type()
        for o in ov.Core().read_model(case.emitted.entry).get_ordered_ops()
        if o.get_type_name() == "Constant"
    )
    assert constants[ov.Type.f16] == linear_formats(case.program)[scheme]


@pytest.mark.parametrize("scheme", PRECISIONS)
@pytest.mark.parametrize("precision", ["float32", "packaged"])
def test_npuw_computes_what_the_processor_does(
    cases: dict[tuple[str, str], Case], scheme: str, precision: Precision
) -> None:
    """The NPU's own compilation path, with the processor behind it."""
    for case in (c for (s, _), c in cases.items() if s == scheme):
        expected, found = case.run(precision), case.run(precision, device="NPUW")
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5)


def test_npuw_rounds_activations_alike(cases: dict[tuple[str, str], Case]) -> None:
    case = cases["int8-w8a8", "denoiser"]
    np.testing.assert_allclose(
        case.run(device="NPUW")["velocity"], case.run()["velocity"], rtol=1e-5, atol=1e-5
    )


class NpuWithADriver:
    """What a machine with an NPU tells of it."""

    def get_property(self, device: str, name: str) -> list[str]:
        assert (device, name) == ("NPU", "SUPPORTED_PROPERTIES")
        return ["CACHE_DIR", "INFERENCE_PRECISION_HINT"]


def test_an_npu_is_not_told_to_compute_in_f32(tmp_path: Path) -> None:
    """OpenVINO 2026.4.1's plugin refuses the value; an NPU computes in float16."""
    settings = {"INFERENCE_PRECISION_HINT": "f32", "ACTIVATIONS_SCALE_FACTOR": "8.0"}
    found = session._config(
        NpuWithADriver(), "NPU", settings, SessionOptions("float32", cache=tmp_path)
    )
    assert found == {"CACHE_DIR": str(tmp_path)}


@pytest.mark.parametrize(
    ("device", "able", "kind"),
    [
        ("CPU", ["FP32", "INT8", "BF16"], "bf16"),
        ("GPU", ["FP32", "FP16"], "f16"),
        ("CPU", ["FP32", "FP16", "INT8"], ""),
    ],
)
def test_16_bits_are_those_that_a_device_computes_in(
    device: str, able: list[str], kind: str
) -> None:
    class Machine:
        def get_property(self, name: str, what: str) -> list[str]:
            assert name == device
            return able if what == "OPTIMIZATION_CAPABILITIES" else ["INFERENCE_PRECISION_HINT"]

    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    if kind:
        found = session._config(Machine(), device, settings, SessionOptions("half"))
        assert found == {"INFERENCE_PRECISION_HINT": kind}
    else:
        with pytest.raises(CheckFailed, match="half: this machine's CPU computes in float32"):
            session._config(Machine(), device, settings, SessionOptions("half"))


def test_16_bits_are_close_to_32(cases: dict[tuple[str, str], Case]) -> None:
    case, able = (
        cases["int8", "denoiser"],
        ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
    )
    if "BF16" not in able:
        with pytest.raises(CheckFailed, match="half: this machine's CPU computes in float32"):
            case.run("half")
        return
    whole, half = case.run()["velocity"], case.run("half")["velocity"]
    assert 1e-4 < relative_error(half, whole) < 0.05


def test_an_absent_device_is_named(cases: dict[tuple[str, str], Case]) -> None:
    present = ov.Core().available_devices
    absent = next(d for d in ("GPU", "NPU", "none") if d not in present)
    if absent == "none":
        pytest.skip("this machine has every device")
    with pytest.raises(CheckFailed, match=f"this machine has no {absent} for .* from: .*CPU"):
        cases["int8", "clip_l"].run(device=absent)


def test_compiled_graphs_are_kept(cases: dict[tuple[str, str], Case], tmp_path: Path) -> None:
    case = cases["int4", "denoiser"]
    first = case.run(cache=tmp_path)
    assert any(f.stat().st_size > 0 for f in tmp_path.rglob("*.blob"))
    written = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*")}
    np.testing.assert_array_equal(case.run(cache=tmp_path)["velocity"], first["velocity"])
    assert {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*.*")} == {
        f: time for f, time in written.items() if f.is_file()
    }


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_flipped_bit_in_the_cache_is_seen(
    cases: dict[tuple[str, str], Case], tmp_path: Path, place: float
) -> None:
    """OpenVINO would compute with it; the graph is compiled anew, and the cache is good again."""
    case = cases["int4", "denoiser"]
    first = case.run(cache=tmp_path)["velocity"]
    (blob,) = tmp_path.rglob("*.blob")
    whole = blob.read_bytes()
    damaged = bytearray(whole)
    damaged[int(len(damaged) * place)] ^= 16
    blob.write_bytes(damaged)
    with pytest.warns(DamagedCache, match=rf"{blob.name}: is not as it was written"):
        np.testing.assert_array_equal(case.run(cache=tmp_path)["velocity"], first)
    np.testing.assert_array_equal(case.run(cache=tmp_path)["velocity"], first)


def test_what_a_kill_leaves_in_the_cache_is_not_used(
    cases: dict[tuple[str, str], Case], tmp_path: Path
) -> None:
    """Half a blob, which no list names."""
    case = cases["int8", "clip_l"]
    first = case.run(cache=tmp_path)
    (folder,) = tmp_path.iterdir()
    (blob,) = folder.glob("*.blob")
    blob.write_bytes(blob.read_bytes()[:5000])
    (folder / "digests.json").unlink()
    with pytest.warns(DamagedCache):
        again = case.run(cache=tmp_path)
    for name, value in first.items():
        np.testing.assert_array_equal(again[name], value)


def test_exactly_the_asked_layers_round_their_input(cases: dict[tuple[str, str], Case]) -> None:
    case = cases["int8-w8a8", "denoiser"]
    found, asked = running(case.emitted.entry), linear_formats(case.program)
    assert asked == {"w8a8": 41, "int8": 1}  # proj_out
    rounded = sum(found.count(kind="FullyConnected", input=i, weight="i8") for i in ("i8", "u8"))
    assert rounded == 41
    assert found.count(kind="FullyConnected", input="f32", weight="i8") == 1
    assert found.attentions == 5 and case.emitted.adjusted == ()
    model = ov.Core().read_model(case.emitted.entry)
    roundings = [n for n in model.get_ordered_ops() if n.get_type_name() == "FakeQuantize"]
    readers = {
        reader.get_node().get_type_name()
        for node in roundings
        for reader in node.output(0).get_target_inputs()
    }
    assert readers <= {"MatMul", "Reshape"}
    lowest = [node.input_value(3).get_node().data.item() for node in roundings]
    assert lowest and not any(lowest)  # else opening multiplies zero points by the weights


def test_the_vaes_convolutions_round_their_input(cases: dict[tuple[str, str], Case]) -> None:
    """All but the first and the last one, with hardly another picture."""
    case = cases["int8-w8a8", "vae_decoder"]
    forms = [
        case.program.formats[name].name
        for name, source in case.program.stored().items()
        if len(source.shape) == 4
    ]
    assert forms.count("int8") == 2 and forms.count("w8a8") > 10
    compiled = ov.Core().compile_model(
        str(case.emitted.entry), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    kinds = Counter(
        property_of(node, "runtimePrecision") in ("i8", "u8")
        for node in compiled.get_runtime_model().get_ordered_ops()
        if property_of(node, "layerType") == "Convolution"
    )
    assert kinds == {True: forms.count("w8a8"), False: 2}
    rounded, whole = case.run()["image"], cases["int8", "vae_decoder"].run()["image"]
    assert 1e-4 < relative_error(rounded, whole) < 0.05


def test_halved_attention_leaves_8_bit_products(cases: dict[tuple[str, str], Case]) -> None:
    """OpenVINO's bfloat16 would multiply compressed weights in 16 bits."""
    if "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("needs a processor with bfloat16")
    for scheme in ("int4", "int8-w8a8"):
        case = cases[scheme, "denoiser"]
        assert case.emitted.session["half"] == "attention"
        model = ov.Core().read_model(str(case.emitted.entry))
        halve_attention(model)
        compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        attentions, products = set(), set()
        for node in compiled.get_runtime_model().get_ordered_ops():
            if "scaleddotproductattention" in property_of(node, "originalLayersNames"):
                attentions.add(property_of(node, "runtimePrecision"))
            if property_of(node, "layerType") == "FullyConnected":
                products.add("bf16" in property_of(node, "primitiveType"))
        assert attentions == {"bf16"}
        assert products == {False}
        whole, half = case.run()["velocity"], case.run("half")["velocity"]
        assert 1e-5 < relative_error(half, whole) < 0.02
    assert "half" not in cases["int8-w8a8", "vae_decoder"].emitted.session


@pytest.mark.parametrize("half", [False, True])
def test_only_half_halves_and_only_attention(
    cases: dict[tuple[str, str], Case], monkeypatch: pytest.MonkeyPatch, half: bool
) -> None:
    """A graph of linear layers is told float32 all the same; the VAE is told the 16-bit type."""
    if "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("needs a processor with bfloat16")
    halved: list[str] = []
    told: list[str] = []

    class Core(ov.Core):  # type: ignore[misc]
        def compile_model(self, model: Any, device: str, config: dict[str, Any]) -> Any:
            told.append(config["INFERENCE_PRECISION_HINT"])
            return super().compile_model(model, device, config)

    monkeypatch.setattr(ov, "Core", Core)
    monkeypatch.setattr(
        "exporter.backends.openvino.half.halve_attention",
        lambda model: halved.append(model.get_friendly_name()),
    )
    for graph in ("denoiser", "vae_decoder"):
        cases["int8-w8a8", graph].run("half" if half else "packaged")
    assert halved == (["denoiser"] if half else [])
    assert told == (["f32", "bf16"] if half else ["f32", "f32"])


def test_activations_share_scales_in_groups_of_64(
    programs: dict[str, Program], cases: dict[tuple[str, str], Case], tmp_path: Path
) -> None:
    """Of fewer where weights have smaller groups; the runtime's default below 32."""
    group = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
    assert cases["int8", "denoiser"].emitted.session[group] == "64"
    assert cases["int4", "denoiser"].emitted.session[group] == "32"  # widths of 96 have no more

    def groups_of_16(graph: str, weight: str, role: str) -> Format:
        return Format("int4", 16) if role == "linear" else FORMATS["fp32"]

    narrow = quantize(programs["conditioner"], groups_of_16)
    assert group not in openvino._products(narrow)
    whole = quantize(programs["conditioner"], load_scheme("fp16").format_of)
    assert openvino._products(whole) == {}


@pytest.mark.parametrize(("scheme", "told"), [("int8", None), ("int4", "32")])
def test_a_clients_graph_says_its_group_where_weights_have_groups(
    programs: dict[str, Program], tiny: Checkpoint, tmp_path: Path, scheme: str, told: str | None
) -> None:
    """Elsewhere OpenVINO's default, which loses less than 64."""
    program = quantize(programs["denoiser"], scheme_of(scheme).format_of)
    options = EmitOptions({}, is_foreign=True)
    emitted = backend.emit(program, Weights(tiny).read, tmp_path, options)
    path = ["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"]
    model = ov.Core().read_model(emitted.entry)
    found = model.get_rt_info(path).astype(str) if model.has_rt_info(path) else None
    assert found == told


def test_a_clients_text_encoder_is_stored_in_fp16_where_that_is_exact(
    programs: dict[str, Program], tiny: Checkpoint, tmp_path: Path
) -> None:
    """The same numbers in half the bytes; a tensor with one value between fp16's stays."""
    program, weights = unquantized(programs["clip_l"]), Weights(tiny)
    large = [n for n, p in program.stored().items() if 4 * math.prod(p.shape) >= 4096]

    def read(source: object) -> Tensor:
        value = weights.read(source)
        if isinstance(source, Stored):
            value = value.half().float()
            if source.name == large[-1]:
                value[0, 0] = 1 / 3
        return value

    found, bytes_ = [], []
    for is_foreign in (False, True):
        folder = tmp_path / str(is_foreign)
        folder.mkdir()
        emitted = backend.emit(program, read, folder, EmitOptions({}, is_foreign=is_foreign))
        session = backend.open_graph(emitted.entry, emitted.session, SessionOptions("float32"))
        found.append(session(inputs_of(program)))
        bytes_.append(emitted.files[1].stat().st_size)
        model = ov.Core().read_model(emitted.entry)
        halved = [
            o for o in model.get_ordered_ops()
            if o.get_type_name() == "Constant" and o.get_element_type() == ov.Type.f16
        ]  # fmt: skip
        assert len(halved) >= len(large) - 1 if is_foreign else not halved
    assert all(np.array_equal(found[0][name], found[1][name]) for name in found[0])
    assert bytes_[1] < 0.75 * bytes_[0]


LISTEN = """
import sys
from pathlib import Path

def listen(event, _):
    if event.startswith(("socket.", "urllib.", "os.fork", "subprocess.")) and "name" not in event:
        print(event, flush=True)

sys.addaudithook(listen)
from exporter.backends.contract import Precision, SessionOptions
from exporter.backends.openvino import BACKEND
BACKEND.open_graph(Path(sys.argv[1]), {}, SessionOptions())
import exporter.quantize
from exporter.backends.openvino import tokenizers, writer
"""


def test_openvino_reports_nothing(cases: dict[tuple[str, str], Case], tmp_path: Path) -> None:
    """Left alone, each import of OpenVINO sends an event and keeps an id in the home folder."""
    entry = cases["int8", "clip_l"].emitted.entry
    environment = {k: v for k, v in os.environ.items() if k != "CI"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LISTEN, str(entry)],
        env={**environment, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == ""
    assert not (tmp_path / "intel").exists()


def refuse_connections(*_: object) -> None:
    raise AssertionError("a connection was opened")


def digests(folder: Path) -> dict[str, str]:
    return {
        f.relative_to(folder).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in sorted(folder.rglob("*"))
        if f.is_file()
    }


def built(recipe: Recipe, out: Path) -> Path:
    """``out`` with a package in int4 and one in int8-w8a8, of two steps."""
    few = replace(recipe.calibration, prompts=recipe.calibration.prompts[:2])
    recipe = replace(
        recipe,
        calibration=few,
        cut=replace(recipe.cut, sigmas=(1.0, 0.75, 0.0), image_to_image=False),
    )
    build(recipe, out, ["openvino"], ["int4", "int8-w8a8"])
    return out


@pytest.fixture(scope="module")
def packages(tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tiny_recipe, tmp_path_factory.mktemp("out"))


@pytest.fixture
def package(packages: Path, tmp_path: Path) -> Path:
    """A copy of the int4 package that a test may damage."""
    return Path(shutil.copytree(packages / "openvino-int4", tmp_path / "package"))


def test_two_builds_give_the_same_bytes_and_no_noise(
    tiny_recipe: Recipe,
    packages: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With calibration, without a connection, without a word on stdout."""
    monkeypatch.setattr(socket.socket, "connect", refuse_connections)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse_connections)
    again = built(tiny_recipe, tmp_path / "deep" / "er")
    assert capsys.readouterr().out == ""
    for name in ("openvino-int4", "openvino-int8-w8a8"):
        expected = digests(packages / name)
        assert {"tokenizer/clip_g.xml", "graphs/denoiser/denoiser.bin"} < set(expected)
        assert digests(again / name) == expected


def test_files_hold_no_traces_of_this_machine(packages: Path) -> None:
    words = (b"/work", b"/tmp", b"/home", b"site-packages", b"torch", str(ROOT).encode())
    for file in (f for f in packages.glob("*/*/**/*") if f.is_file()):
        data = file.read_bytes()
        for word in words:
            assert word not in data, (file, word)


def test_the_manifest_tells_of_calibration(packages: Path) -> None:
    manifest = json.loads((packages / "openvino-int8-w8a8" / "manifest.json").read_text())
    rounded = next(g for g in manifest["graphs"] if g["name"] == "denoiser")
    assert rounded["formats"]["w8a8"] > 100_000 and rounded["adjusted"] == []
    (remark,) = rounded["remarks"]
    assert remark == "inputs not rounded to 8 bits: pos_embed.proj.weight, proj_out.weight"
    shown = CliRunner().invoke(main, ["inspect", str(packages / "openvino-int8-w8a8")])
    assert remark in shown.output
    # What the program itself moves by, and not what rounding loses.
    assert 1e-3 <= rounded["tolerance"]["graph_relative"] <= 0.05
    assert rounded["tolerance"]["image_psnr_db"] == 45


def fourstep(*arguments: object) -> tuple[int, str]:
    """Exit code and the last line on stderr of a command."""
    result = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    assert "Traceback" not in result.output
    return result.exit_code, result.stderr.strip().splitlines()[-1]


def test_unknown_devices_are_refused(packages: Path, tmp_path: Path) -> None:
    message = "device: openvino has no TPU; it has CPU, GPU, NPU, NPUW"
    with pytest.raises(InputError, match=message):
        backends.check_session("openvino", SessionOptions(device="TPU"))
    place = tmp_path / "p.png"
    found = fourstep("run", packages / "openvino-int4", "x", "--device", "TPU", "--out", place)
    assert found == (2, f"fourstep: --{message}")


def cut_in_half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip_a_byte(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize("file", ["graphs/clip_l/clip_l.xml", "graphs/clip_l/clip_l.bin"])
@pytest.mark.parametrize("damage", [cut_in_half, flip_a_byte])
def test_damaged_files_are_named(
    package: Path, tmp_path: Path, file: str, damage: Callable[[bytes], bytes]
) -> None:
    (package / file).write_bytes(damage((package / file).read_bytes()))
    for expected, command in (
        (2, ("run", package, "x", "--out", tmp_path / "p.png")),
        (1, ("verify", package)),
    ):
        code, line = fourstep(*command)
        assert code == expected and f"{file}: damaged" in line


@pytest.mark.parametrize("file", ["graphs/clip_l/clip_l.xml", "graphs/clip_l/clip_l.bin"])
def test_shortened_files_that_the_manifest_believes(
    package: Path, tmp_path: Path, file: str
) -> None:
    """Noticed when it is opened: a constant would lie behind the end of the file."""
    data = cut_in_half((package / file).read_bytes())
    (package / file).write_bytes(data)
    manifest = json.loads((package / "manifest.json").read_text())
    for graph in manifest["graphs"]:
        for entry in graph["files"]:
            if entry["path"] == file:
                entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    seal(package, manifest)
    for expected, command in (
        (2, ("run", package, "x", "--out", tmp_path / "p.png")),
        (1, ("verify", package)),
    ):
        code, line = fourstep(*command)
        assert code == expected and "clip_l.xml: refused: " in line


PROMPTS = """\
a red circle|A Red CIRCLE|  spaces at both ends  |two  spaces|three   spaces|ALL CAPITALS|Camel
naïve café|cafe\u0301|Å|A\u030a|e\u0323\u0302|ﬁne ligature|½ of ¼|x²|①②|Ⅷ|ﾊﾝｶｸ ｶﾞ
ｆｕｌｌ ｗｉｄｔｈ|１２３|한국어 프롬프트|\u1112\u1161\u11ab|日本語のプロンプト
中文提示|русский КРУГ|Ελληνικά ΚΥΚΛΟΙ|עברית|עִבְרִית|العربية|हिन्दी में|ไทย|தமிழ்|བོད་ཡིག
ქართული|ᲥᲐᲠᲗᲣᲚᲘ|հայերեն|አማርኛ|ខ្មែរ|မြန်မာ|𝔊𝔬𝔱𝔥|𐐀𐐨|𠜎|ß STRASSE ẞ|Ω Å K|ΟΔΌΣ
😀|👩‍👩‍👧‍👦|👍🏽|🇫🇷🇩🇪|❤️|☺︎|1️⃣|🏳️‍🌈 flag|emoji😀stuck
\ue000 private|\U000f0000|\ufffd|\u0378|\u0301alone|!|!!|!!!|hello!|wow! such! art!|a ! b|! ! !
!a|?!?!|...|--|—|“quotes”|'s 're it's don't I'LL|we've'd|a,b;c:d|(round) [square] {curly}
#hash @at $100 50% ^ & * _ + = ~ ` \\ /|3.14 1,000|2024-01-01|abc123def|under_score
</s>|<pad>|<unk>|a </s> b|<extra_id_0>|<extra_id_99> x|</w>|a</w>|!</w>|▁|a▁b
"""
SPECIAL = (
    *(
        "",
        " ",
        "   ",
        "\t",
        "\n",
        "tab\there",
        "new\nline",
        "crlf\r\nline",
        "vt\x0bff\x0c",
        "\t \n",
    ),
    *("no\u00a0break", "\u00a0", "thin\u2009space", "wide\u3000space", " \u3000 a", "a \n b"),
    *("line\u2028end", "paragraph\u2029end", "\u0085next", "a\u0085b", "zero\u200bwidth"),
    *("join\u200der", "non\u200cjoiner", "\ufeffmark", "a\ufeffb", "soft\u00adhyphen"),
    *("right\u202eto left", "mark\u200e", "word\u2060joiner", "null\x00byte", "bell\x07"),
    *("escape\x1b[0m", "delete\x7f", "c1\x9f", "<|endoftext|>", "<|startoftext|>"),
    *("a <|endoftext|> b", "<|ENDOFTEXT|>", "<|startoftext|><|endoftext|>", "x<|endoftext|>y"),
    *("a" * 400, "a red circle and " * 40, "! " * 100, "!" * 90, "😀" * 60, "漢" * 100),
    *("a\u0301" * 100, *("word " * n for n in range(70, 80)), "supercalifragilistic" * 20),
)
# OpenVINO folds case where the tokenizer lowers it: characters whose simple case folding is not
# their lower case, and İ, which only lower case makes two characters.
FOLDED = ("µ", "ς", "ſ", "ͅ", "ẛ", "ϐϑϕϖϰϱϵ", "ᏣᎳᎩ", "ꮳꮃꭹ", "İstanbul")
# It composes characters but does not put marks into the canonical order first, and U+180E is white
# space to it.
COMPOSED = ("e\u0301\u0327", "x\u0344", "a\u180eb")
CLIP_DIFFERS = (*FOLDED, *COMPOSED)
# '▁' stands for a space inside the T5 tokenizer; OpenVINO takes several in the prompt for one.
T5_DIFFERS = ("▁▁ x", "a\u180eb")


def all_prompts() -> list[str]:
    shipped = [p.text for p in evaluation_prompts(30)]
    for file in sorted((ROOT / "recipes").glob("*.prompts.txt")):
        shipped += file.read_text(encoding="utf-8").splitlines()
    written = [p for line in PROMPTS.splitlines() for p in line.split("|")]
    return list(dict.fromkeys([*shipped, *written, *SPECIAL]))


@pytest.fixture(scope="module")
def tokenizers(tiny: Checkpoint, programs: dict[str, Program]) -> dict[str, TokenizerFile]:
    return tokenizer_files(tiny, token_counts(programs))


Tokenize = Callable[[str], list[int]]


def both(packages: Path, files: Mapping[str, TokenizerFile], name: str) -> tuple[Tokenize, ...]:
    """The runtime's own encoder and the package's tokenizer model, from a prompt to ids."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import openvino_tokenizers  # noqa: F401  (registers its operators)

    encode_prompt = files[name].encoder(name)
    entry = packages / "openvino-int4" / "tokenizer" / f"{name}.xml"
    model = ov.Core().compile_model(str(entry), "CPU")

    def own(prompt: str) -> list[int]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PromptCut)
            return [int(i) for i in encode_prompt(prompt)[0]]

    def openvinos(prompt: str) -> list[int]:
        return [int(i) for i in model([prompt])["input_ids"][0]]

    return own, openvinos


@pytest.mark.parametrize("name", ["clip_l", "clip_g", "t5"])
def test_tokenizer_models_give_the_same_ids(
    packages: Path, tokenizers: dict[str, TokenizerFile], name: str
) -> None:
    own, openvinos = both(packages, tokenizers, name)
    prompts = all_prompts()
    assert len(prompts) >= 300
    assert [p for p in prompts if own(p) != openvinos(p)] == []
    assert len(own("")) == tokenizers[name].entry.tokens


@pytest.mark.parametrize(
    ("name", "prompts"), [("clip_l", CLIP_DIFFERS), ("clip_g", CLIP_DIFFERS), ("t5", T5_DIFFERS)]
)
def test_known_differences_of_tokenizer_models(
    packages: Path, tokenizers: dict[str, TokenizerFile], name: str, prompts: tuple[str, ...]
) -> None:
    """Not wanted; a prompt that no longer differs moves to the list above."""
    own, openvinos = both(packages, tokenizers, name)
    assert [p for p in prompts if own(p) == openvinos(p)] == []

"""Programs that round every value to 16 bits, and the graphs that onnxruntime opens of them."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor, fx

from benchmarks.npu import stated
from exporter import backends
from exporter.build.pipeline import Built, build
from exporter.calibrate.activations import bytes_to_choose, rounder
from exporter.calibrate.codes import best_codes
from exporter.calibrate.layer_inputs import LayerInputs
from exporter.calibrate.ranges import choose_all
from exporter.calibrate.weights import Weights
from exporter.checkpoint.open import Checkpoint
from exporter.errors import InputError
from exporter.network.assemble import cut_graphs
from exporter.package.measures import relative_error
from exporter.package.names import graph_of
from exporter.program.program import Program
from exporter.program.run import run
from exporter.program.trace import trace
from exporter.quantize.everywhere import (
    MIDDLE,
    MOVES,
    round_everything,
    rounds_everything,
    to_round,
)
from exporter.quantize.formats import FORMATS, Format, Rule, parse_format
from exporter.quantize.nearest import decode, encode, row_unit
from exporter.quantize.primitives import LEAST_MASK, expanded
from exporter.quantize.program import QuantizedProgram, quantize_all, unquantized
from exporter.quantize.rounded import ROUND_INPUT, rounding_node
from exporter.quantize.schemes import load_scheme
from exporter.quantize.split import split
from exporter.recipe.recipe import Recipe
from exporter.runtime.package import open_package
from tests.conftest import SMALL, random_inputs

ATEN = torch.ops.aten
AGREES = 1e-3  # what a package's manifest allows a graph that rounds its values
ONNX = backends.load("onnx")
OPTIONS = backends.EmitOptions(backends.default_choices(ONNX))
Read = Callable[[object], Tensor]


@pytest.fixture(scope="module")
def traced(tiny: Checkpoint) -> dict[str, Program]:
    return {graph.name: trace(graph) for graph in cut_graphs(tiny, SMALL)}


def inputs_of(program: Program) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in random_inputs(program).items()}


def rounded(program: QuantizedProgram, read: Read) -> QuantizedProgram:
    return round_everything(program, choose_all(program, read, [inputs_of(program)]))


def outputs(program: QuantizedProgram, read: Read) -> dict[str, np.ndarray]:
    given = {name: torch.from_numpy(v) for name, v in inputs_of(program).items()}
    return {name: value.numpy() for name, value in run(program, read, given).items()}


def test_an_expanded_program_computes_what_it_did(
    traced: dict[str, Program], tiny: Checkpoint
) -> None:
    read = Weights(tiny).read
    for plain in traced.values():
        program = unquantized(plain)
        expected, found = outputs(program, read), outputs(expanded(program), read)
        for name, value in expected.items():
            assert relative_error(found[name], value) < 2e-6, (plain.name, name)


def test_a_causal_mask_leaves_levels_to_the_logits(traced: dict[str, Program]) -> None:
    program = expanded(unquantized(traced["clip_l"]))
    masks = [s.value for n, s in program.tensors.items() if "mask" in n]  # type: ignore[attr-defined]
    assert [float(mask.min()) for mask in masks] == [LEAST_MASK]


@pytest.mark.parametrize("scheme", ["w8a16", "w4a16"])
def test_onnxruntime_computes_what_the_program_computes(
    traced: dict[str, Program], tiny: Checkpoint, tmp_path: Path, scheme: str
) -> None:
    read = Weights(tiny).read
    for name, program in quantize_all(traced, load_scheme(scheme)).items():
        if scheme == "w4a16" and name not in ("conditioner", "denoiser"):
            continue
        final = rounded(program, read)
        emitted = ONNX.emit(final, read, tmp_path, OPTIONS)
        session = ONNX.open_graph(emitted.entry, emitted.session, backends.SessionOptions())
        found = session(inputs_of(program))
        for port, value in outputs(final, read).items():
            assert relative_error(found[port], value) < AGREES, (name, port)
        assert emitted.session == {}  # nothing else rounds


def test_every_value_is_rounded_once(traced: dict[str, Program], tiny: Checkpoint) -> None:
    for plain in quantize_all(traced, load_scheme("w8a16")).values():
        program = rounded(plain, Weights(tiny).read)
        varying = program.varying()
        for node in program.nodes():
            value = node.meta["val"]
            floats = isinstance(value, Tensor) and value.dtype == torch.float32
            if node in varying and floats and node.target not in (ROUND_INPUT, *MOVES):
                assert [user.target for user in node.users] == [ROUND_INPUT], node.name
            if node.target in MOVES and node in varying and floats:
                assert all(user.target is not ROUND_INPUT for user in node.users), node.name
        assert all(_made(node).target is ROUND_INPUT for node in program.results())


def test_second_factors_are_symmetric(traced: dict[str, Program], tiny: Checkpoint) -> None:
    (plain,) = quantize_all({"denoiser": traced["denoiser"]}, load_scheme("w8a16")).values()
    program = rounded(plain, Weights(tiny).read)
    products = [node for node in program.nodes() if node.target is ATEN.matmul.default]
    assert products
    for node in products:
        found = rounding_node(_made(node.args[1]))
        assert found is not None and found.zero_point == MIDDLE


def _made(value: Any) -> fx.Node:
    """What a value is moved from."""
    node: fx.Node = value
    while node.target in MOVES:
        node = node.args[0]  # type: ignore[assignment]
    return node


def test_a_graph_is_quantized_from_end_to_end(
    traced: dict[str, Program], tiny: Checkpoint, tmp_path: Path
) -> None:
    """What computes reads DequantizeLinear alone, and goes into a QuantizeLinear."""
    (plain,) = quantize_all({"denoiser": traced["denoiser"]}, load_scheme("w4a16")).values()
    read = Weights(tiny).read
    entry = ONNX.emit(rounded(plain, read), read, tmp_path, OPTIONS).entry
    graph = onnx.load(str(entry), load_external_data=False).graph
    made = {output: node.op_type for node in graph.node for output in node.output}
    ports = {port.name for port in graph.input}
    stored = {tensor.name for tensor in graph.initializer}
    moves = {"QuantizeLinear", "DequantizeLinear"}
    for node in (n for n in graph.node if n.op_type not in moves):
        kinds = {made[name] for name in node.input if name not in stored}
        assert kinds == {"DequantizeLinear"}, node.name
        for output in node.output:
            readers = {n.op_type for n in graph.node if output in n.input}
            assert readers == {"QuantizeLinear"}, node.name
    for node in (n for n in graph.node if n.op_type == "QuantizeLinear"):
        assert node.input[0] in ports or made[node.input[0]] != "QuantizeLinear"
    floats = [t for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    scales = {name for n in graph.node if n.op_type in moves for name in n.input[1:2]}
    assert {tensor.name for tensor in floats} <= scales  # no weight and no vector is left


def test_scales_of_blocks_are_multiples_of_their_rows() -> None:
    weight = torch.randn(24, 96, generator=torch.Generator().manual_seed(0))
    weight[3] *= 1e-6
    weight[5] = 0
    form = Format("w4a16", group_size=32)
    encoded = encode(weight, form)
    assert encoded.scale is not None
    unit = row_unit(encoded.scale.amax(1), 15)
    counts = encoded.scale / torch.where(unit > 0, unit, torch.ones(()))[:, None]
    assert torch.equal(counts, counts.round()) and counts.max() == 15
    assert encoded.values.min() >= -8 and encoded.values.max() <= 7
    plain = decode(encode(weight, Format("int4", group_size=32)))
    error, other = (float((d - weight).square().mean()) for d in (decode(encoded), plain))
    assert error < 2 * other  # int4's scales may be negative, and are as fine as fp16


def test_feedback_keeps_to_the_multiples() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    rows = torch.randn(256, 64, generator=torch.Generator().manual_seed(2))
    inputs = LayerInputs(rows.mean(0, keepdim=True), torch.cov(rows.T)[None], 256)
    form = Format("w4a16", group_size=16)
    for methods in ({"feedback"}, {"scales", "feedback"}):
        _, grid = best_codes(weight, form, inputs, frozenset(methods))
        unit = row_unit(grid.scale.float().amax(1), 15).double()
        counts = grid.scale / unit[:, None]
        assert torch.equal(counts, counts.round())


def test_layers_that_cannot_stand_beside_16_bits_are_refused(traced: dict[str, Program]) -> None:
    for name in ("int4", "pal6", "fp16"):
        rule = Rule("denoiser", "*ff*", FORMATS[name], ("linear",))
        scheme = load_scheme("w8a16").with_rules((rule,))
        programs = quantize_all({"denoiser": traced["denoiser"]}, scheme)
        with pytest.raises(InputError, match=r"denoiser: '.*ff.*' is .*w8a16, int8, w4a16 or fp32"):
            backends.refuse_inexpressible(ONNX, OPTIONS.choices, "mixed", programs)


def test_a_layer_in_fp32_beside_them_has_16_bits(
    traced: dict[str, Program], tiny: Checkpoint, tmp_path: Path
) -> None:
    scheme = load_scheme("w8a16").with_rules((Rule("*", "proj_out.*", FORMATS["fp32"]),))
    (plain,) = quantize_all({"denoiser": traced["denoiser"]}, scheme).values()
    read = Weights(tiny).read
    program = rounded(plain, read)
    emitted = ONNX.emit(program, read, tmp_path, OPTIONS)
    session = ONNX.open_graph(emitted.entry, {}, backends.SessionOptions())
    found, expected = session(inputs_of(plain)), outputs(program, read)
    assert relative_error(found["velocity"], expected["velocity"]) < AGREES


def test_ranges_of_another_size_are_refused(traced: dict[str, Program], tiny: Checkpoint) -> None:
    (plain,) = quantize_all({"denoiser": traced["denoiser"]}, load_scheme("w8a16")).values()
    chosen = choose_all(plain, Weights(tiny).read, [inputs_of(plain)])
    chosen.pop(next(iter(chosen)))
    with pytest.raises(InputError, match="build this size alone"):
        round_everything(plain, chosen)


def test_ranges_have_room_beyond_what_was_met(traced: dict[str, Program], tiny: Checkpoint) -> None:
    (plain,) = quantize_all({"denoiser": traced["denoiser"]}, load_scheme("w8a16")).values()
    given = inputs_of(plain)
    chosen = choose_all(plain, Weights(tiny).read, [given])
    latent = chosen[plain.feeds()[0].name]
    met = float(given[plain.inputs[0].name].max() - given[plain.inputs[0].name].min())
    assert (2**16 - 1) * latent.step == pytest.approx(1.25 * met, rel=1e-3)
    shares = [
        chosen[n.name] for n in to_round(plain).values if n.target is torch.ops.aten.softmax.int
    ]
    assert shares and all((2**16 - 1) * found.step <= 1.0 for found in shares)
    assert not any(found.zero_point for found in shares)  # else compiling takes 40 times as long


def test_ranges_that_are_stated_are_shares_too(
    traced: dict[str, Program], tiny: Checkpoint
) -> None:
    (plain,) = quantize_all({"denoiser": traced["denoiser"]}, load_scheme("w8a16")).values()
    asked, found = to_round(plain), stated(plain, Weights(tiny))
    shares = [n.name for n in asked.values if n.target is torch.ops.aten.softmax.int]
    assert shares and not any(found[name].zero_point for name in shares)
    assert all(found[name].step == pytest.approx(1 / (2**16 - 1)) for name in shares)
    assert len({levels.step for levels in found.values()}) > len(asked.values) / 2
    round_everything(plain, found)


def test_parts_compute_what_the_whole_does(
    traced: dict[str, Program], tiny: Checkpoint, tmp_path: Path
) -> None:
    (plain,) = quantize_all({"denoiser": traced["denoiser"]}, load_scheme("w8a16")).values()
    whole, read = round_everything(plain, stated(plain, Weights(tiny))), Weights(tiny).read
    given = inputs_of(whole)
    exact = run(whole, read, {n: torch.from_numpy(v) for n, v in given.items()})
    torch_values, values = {n: torch.from_numpy(v) for n, v in given.items()}, given
    for part in split(whole, 2):
        torch_values = run(part, read, torch_values)
        entry = ONNX.emit(part, read, tmp_path, OPTIONS).entry
        nodes = onnx.load(str(entry), load_external_data=False).graph.node
        read_names = {name for node in nodes for name in node.input}
        for node in nodes:
            unread = {*node.output} - read_names - {port.name for port in part.outputs}
            assert not unread, node.name  # the NPU would compute it in floats
        values = ONNX.open_graph(entry, {}, backends.SessionOptions())(values)
    (name,) = values
    assert torch.equal(torch_values[name], exact[name])
    assert relative_error(values[name], exact[name].numpy()) < AGREES


def test_a_value_that_is_not_finite_is_named(traced: dict[str, Program], tiny: Checkpoint) -> None:
    (plain,) = quantize_all({"t5": traced["t5"]}, load_scheme("w8a16")).values()
    read = Weights(tiny).read

    def broken(source: object) -> Tensor:
        value = read(source)
        return value * torch.inf if value.shape == (96,) else value

    with pytest.raises(InputError, match="t5: on the calibration prompts .* not finite"):
        choose_all(plain, broken, [inputs_of(plain)])


def test_ranges_are_chosen_once_and_memory_is_predicted(
    traced: dict[str, Program], tiny: Checkpoint
) -> None:
    programs = quantize_all({"clip_l": traced["clip_l"]}, load_scheme("w8a16"))
    asked: list[str] = []

    def calls(name: str) -> list[dict[str, np.ndarray]]:
        asked.append(name)
        return [inputs_of(programs[name])]

    program = rounder(programs, Weights(tiny).read, calls)("clip_l")
    assert asked == ["clip_l"] and rounds_everything(program)
    assert bytes_to_choose(programs["clip_l"], 4) > 4 * bytes_to_choose(programs["clip_l"], 1) / 2
    assert bytes_to_choose(quantize_all(traced, load_scheme("int8"))["clip_l"], 4) == 0


def test_formats_by_name() -> None:
    assert parse_format("w4a16-g32") == Format("w4a16", group_size=32)
    assert str(parse_format("w8a16")) == "w8a16"
    with pytest.raises(InputError, match="w4a16 has no zero points"):
        parse_format("w4a16-asym")
    assert load_scheme("w4a16").with_groups(32, False).rules[1].format == parse_format("w4a16-g32")
    assert FORMATS["w4a16"].stored_bytes((8, 64)) == 8 * 32 + 8 + 4 * 8


def test_sources_of_second_factors_are_marked(traced: dict[str, Program]) -> None:
    (plain,) = quantize_all({"t5": traced["t5"]}, load_scheme("w8a16")).values()
    found = to_round(plain)
    names = {node.name for node in found.symmetric}
    assert names and all(operator.contains(name, "linear") for name in names)
    assert replace(found, symmetric=frozenset()).values == found.values


@pytest.fixture(scope="module")
def built(tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A package of w4a16 with one golden picture, its denoiser in two parts."""
    recipe = replace(tiny_recipe, prompts=tiny_recipe.prompts[:1], denoiser_parts=2)
    (found,) = build(recipe, tmp_path_factory.mktemp("integers"), ["onnx"], ["w4a16"])
    return found


def test_a_package_is_built_and_verified(built: Built) -> None:
    """Every graph of it: also those that read ids, and the encoder, which no prompt runs."""
    assert built.report.ok
    graphs = open_package(built.path).manifest.graphs
    assert {"denoiser-1", "denoiser-2"} <= {graph.name for graph in graphs}
    for graph in graphs:
        assert "w8a16" in graph.formats and graph.tolerance.graph_relative < 0.1


EXACTLY = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}


@pytest.mark.parametrize(("device", "bound"), [("CPU", 5e-3), ("NPUW", 0.05)])
def test_openvino_computes_the_same_form(built: Built, device: str, bound: float) -> None:
    """On its processor, and in half precision on its path for NPUs: of what golden pictures met."""
    openvino = pytest.importorskip("openvino")
    from exporter.backends.openvino.session import NPUW

    config = EXACTLY if device == "CPU" else NPUW
    package = open_package(built.path)
    (golden,) = package.manifest.golden.pictures
    tensors = load_file(package.folder / golden.tensors)
    between: dict[str, np.ndarray] = {}  # of a part, what the next one reads
    for graph in package.manifest.graphs:
        place = f"{graph_of(graph.name)}/0/in"
        given = {
            p.name: tensors.get(f"{place}/{p.name}", between.get(p.name)) for p in graph.inputs
        }
        model = openvino.Core().read_model(package.folder / graph.entry)
        found = openvino.Core().compile_model(model, device[:3], config)(given)
        between = package.session(graph.name)(given)
        for name, expected in between.items():
            assert relative_error(np.asarray(found[name]), expected) < bound


def test_no_constant_is_joined_to_a_value(tiny: Checkpoint, tmp_path: Path) -> None:
    """Qualcomm's compiler takes its codes for those of another scale; of Pad's zeros too."""
    cut = replace(SMALL, t5=False, t5_tokens=8)
    (graph,) = (g for g in cut_graphs(tiny, cut) if g.name == "conditioner")
    plain, read = unquantized(trace(graph)), Weights(tiny).read
    kinds = {node.target for node in plain.nodes()}
    assert {ATEN.pad.default, ATEN.cat.default} <= kinds
    (program,) = quantize_all({"conditioner": trace(graph)}, load_scheme("w8a16")).values()
    final = rounded(program, read)
    varying = final.varying()
    for node in final.nodes():
        assert node.target is not ATEN.pad.default
        if node.target is ATEN.cat.default and node in varying:
            assert {*node.args[0]} <= varying  # type: ignore[misc]
            levels = [rounding_node(user) for user in node.users]
            assert len(levels) == 1
    expected, found = outputs(plain, read), outputs(expanded(plain), read)
    for name, value in expected.items():
        assert relative_error(found[name], value) < 2e-6
    onnx_outputs = ONNX.open_graph(
        ONNX.emit(final, read, tmp_path, OPTIONS).entry, {}, backends.SessionOptions()
    )(inputs_of(program))
    for name, value in outputs(final, read).items():
        assert relative_error(onnx_outputs[name], value) < AGREES

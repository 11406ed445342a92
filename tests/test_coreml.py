"""The Core ML backend: Apple's loader takes its files, fp16 is used knowingly, Mac code runs.

Parity of every graph in every scheme is in ``test_backends``, the evaluator in ``test_evaluator``.
"""

from __future__ import annotations

import enum
import hashlib
import importlib.util
import json
import os
import re
import runpy
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

if importlib.util.find_spec("coremltools") is None:
    pytest.skip("pip install 'fourstep[build,coreml]'", allow_module_level=True)

from exporter import backends
from exporter.backends.contract import EmitOptions, Emitted, SessionOptions, Sizing
from exporter.backends.coreml import BACKEND as backend
from exporter.backends.coreml import TOLERANCE, emitter, library, lint, writer
from exporter.backends.coreml import session as session_module
from exporter.backends.coreml.evaluator.program import BLOB_HEADER, open_program
from exporter.backends.coreml.predictor import open_model
from exporter.build.pipeline import build
from exporter.calibrate.weights import Weights
from exporter.checkpoint.open import Checkpoint
from exporter.errors import CheckFailed, InputError
from exporter.files.cache import DamagedCache
from exporter.network.assemble import cut_graphs
from exporter.network.graph import Graph
from exporter.network.layers import RMSNorm, attend
from exporter.package.manifest import Port
from exporter.package.measures import relative_error
from exporter.program.program import Constant, Program, Stored
from exporter.program.run import run
from exporter.program.trace import trace
from exporter.quantize.formats import FORMATS, Format
from exporter.quantize.nearest import encode
from exporter.quantize.program import Part, QuantizedProgram, quantize
from exporter.quantize.schemes import load_scheme, scheme_names
from exporter.recipe.recipe import Recipe, read_recipe
from exporter.runtime.package import open_package
from exporter.runtime.verify import verify
from tests.conftest import ROOT, SMALL, random_inputs, scheme_of, seal, slow_ones
from tests.test_cli import RECIPE, fourstep, mistake

Read = Callable[[object], Tensor]
OLDEST = backend.options["target"][0]
EXPRESSIBLE = backends.expressible_schemes(backend, {"target": OLDEST})


# What a package holds.


def inside(package: Path) -> Path:
    return package / "Data" / "com.apple.CoreML"


def specification(package: Path) -> Any:
    data = (inside(package) / "model.mlmodel").read_bytes()
    return library.model_messages().Model.FromString(data)


def opset(package: Path) -> str:
    return str(specification(package).mlProgram.functions["main"].opset)


def operations(package: Path) -> Any:
    function = specification(package).mlProgram.functions["main"]
    return function.block_specializations[function.opset].operations


def element(kind: Any) -> str:
    """A tensor type's element, as coremltools writes it."""
    name = str(library.program_messages().DataType.Name(kind.tensorType.dataType)).lower()
    return {"float16": "fp16", "float32": "fp32"}.get(name, name)


def declared(package: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Element type and shape of every operation's outputs, by name."""
    return {
        o.name: (element(o.type), tuple(d.constant.size for d in o.type.tensorType.dimensions))
        for operation in operations(package)
        for o in operation.outputs
    }


def blobs(package: Path) -> dict[str, list[tuple[str, int]]]:
    """Element type and bytes of each tensor in the weight file, by the parameter that it is."""
    data = (inside(package) / "weights" / "weight.bin").read_bytes()
    kinds = {e.blob: name for name, e in library.ELEMENTS.items()}
    found: dict[str, list[tuple[str, int]]] = {}
    for operation in operations(package):
        values = {name: [value] for name, value in operation.attributes.items()}
        values |= {name: [b.value for b in a.arguments] for name, a in operation.inputs.items()}
        for name, listed in values.items():
            for value in listed:
                if value.WhichOneof("value") == "blobFileValue":
                    header = BLOB_HEADER.unpack_from(data, value.blobFileValue.offset)
                    found.setdefault(name, []).append((kinds[header[1]], header[2]))
    return found


def in_blocks(count: int) -> int:
    """Bytes as the weight file aligns them."""
    return -(-count // library.BLOB_ALIGN_BYTES) * library.BLOB_ALIGN_BYTES


def histogram(package: Path) -> Counter[str]:
    return Counter(operation.type for operation in operations(package))


# Writing and running graphs.


@pytest.fixture(scope="module")
def programs(tiny: Checkpoint) -> dict[str, Program]:
    """All graphs, and both that differ when T5's null tokens are collapsed."""
    found = {g.name: trace(g) for g in cut_graphs(tiny, SMALL)}
    without = [trace(g) for g in cut_graphs(tiny, replace(SMALL, t5=False))]
    differ = {f"{p.name}_without_t5": p for p in without if p.name in ("conditioner", "denoiser")}
    return found | differ


@pytest.fixture(scope="module")
def weights(tiny: Checkpoint) -> Weights:
    return Weights(tiny)


def emit(program: QuantizedProgram, read: Read, folder: Path, target: str = OLDEST) -> Emitted:
    folder.mkdir(parents=True)
    return backend.emit(program, read, folder, EmitOptions({"target": target}))


def evaluated(emitted: Emitted, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return open_program(emitted.entry)({name: value.numpy() for name, value in inputs.items()})


def error_of(
    program: QuantizedProgram, read: Read, emitted: Emitted, inputs: Mapping[str, Tensor]
) -> float:
    """Largest relative error of an emitted graph's outputs against torch."""
    expected = run(program, read, inputs)
    found = evaluated(emitted, inputs)
    return max(relative_error(found[name], value.numpy()) for name, value in expected.items())


class Normed(nn.Module):
    """A linear layer behind an RMSNorm, as in the denoiser and in T5."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = RMSNorm(64, 1e-6)
        self.out = nn.Linear(64, 32)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.out(self.norm(x)),)


class Attending(nn.Module):
    """Attention over two heads of 32."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(64, 64, bias=False)

    def forward(self, x: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor]:
        return (attend(self.q(x), k, v, 2, 32**-0.5),)


def traced(module: type[nn.Module], inputs: Mapping[str, tuple[int, ...]], width: int) -> Program:
    """A graph named small of a module whose output has as many tokens as its first input."""
    with torch.device("meta"):
        made = module()
    ports = tuple(Port(name, shape) for name, shape in inputs.items())
    output = Port("y", (*ports[0].shape[:2], width))
    return trace(Graph("small", "transformer", made, ports, (output,), {}))


@pytest.fixture(scope="module")
def normed() -> Program:
    return traced(Normed, {"x": (1, 8, 64)}, 32)


def values_of(size: float = 0.1) -> dict[str, Tensor]:
    """Values for ``Normed`` with weights of a size."""
    torch.manual_seed(4)
    return {
        "norm.weight": 0.5 + torch.rand(64),
        "out.weight": size * torch.randn(32, 64),
        "out.bias": size * torch.randn(32),
    }


def reader(values: Mapping[str, Tensor]) -> Read:
    """Reads a program's tensors from values by name, as ``Weights.read`` does from a checkpoint."""

    def read(source: object) -> Tensor:
        if isinstance(source, Part):
            part = getattr(encode(values[source.of.name], source.format), source.part)
            assert isinstance(part, Tensor)
            return part
        assert isinstance(source, Stored)
        return values[source.name]

    return read


def scaled(read: Read, factors: Mapping[str, float]) -> Read:
    """A reader that multiplies the 8-bit weights whose names end so."""

    def read_scaled(source: object) -> Tensor:
        value = read(source)
        if isinstance(source, Part) and source.part == "scale":
            for end, factor in factors.items():
                value = value * factor if source.of.name.endswith(end) else value
        return value

    return read_scaled


# Apple's own loader.


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("scheme", [*slow_ones(EXPRESSIBLE), "int2"])
def test_apples_loader_infers_what_is_declared(
    programs: dict[str, Program], weights: Weights, tmp_path: Path, scheme: str, symmetric: bool
) -> None:
    with library.quiet():
        from coremltools.converters.mil.frontend.milproto.load import load
        from coremltools.converters.mil.mil import types
    rules = scheme_of(scheme, symmetric)
    if not symmetric and rules == scheme_of(scheme):
        return  # no groups in it
    for name, program in programs.items():
        quantized = quantize(program, rules.format_of)
        package = emit(quantized, weights.read, tmp_path / name).entry
        spec = specification(package)
        with library.quiet():
            loaded = load(spec, spec.specificationVersion, str(inside(package) / "weights"))
        found = {
            value.name: (types.builtin_to_string(value.dtype), tuple(value.shape))
            for operation in loaded.functions["main"].operations
            for value in operation.outputs
        }
        wanted = declared(package)
        assert {n: found[n] for n in wanted} == wanted, name
        ends = {o.name: tuple(o.shape) for o in loaded.functions["main"].outputs}
        assert ends == {p.name: p.shape for p in program.outputs}, name


# Targets.


@pytest.mark.parametrize(
    ("scheme", "target", "version", "kinds", "attention"),
    [
        ("int8", "iOS17", 8, {"constexpr_affine_dequantize"}, "softmax"),
        ("pal4", "iOS17", 8, {"constexpr_affine_dequantize", "constexpr_lut_to_dense"}, "softmax"),
        ("int8", "iOS18", 9, {"constexpr_blockwise_shift_scale"}, "scaled_dot_product_attention"),
        (
            "pal4",
            "iOS18",
            9,
            {"constexpr_blockwise_shift_scale", "constexpr_lut_to_dense"},
            "scaled_dot_product_attention",
        ),
    ],
)
def test_targets(
    programs: dict[str, Program],
    weights: Weights,
    tiny_recipe: Recipe,
    tmp_path: Path,
    scheme: str,
    target: str,
    version: int,
    kinds: set[str],
    attention: str,
) -> None:
    """Up to iOS 17 constexpr operators have attributes, since iOS 18 inputs; so Apple writes."""
    program = quantize(programs["denoiser"], tiny_recipe.scheme(scheme).format_of)
    emitted = emit(program, weights.read, tmp_path / "graph", target)
    assert emitted.session == {"target": target}
    assert specification(emitted.entry).specificationVersion == version
    assert opset(emitted.entry) == {"iOS17": "CoreML7", "iOS18": "CoreML8"}[target]
    found = histogram(emitted.entry)
    assert {k for k in found if k.startswith("constexpr")} == kinds
    both = {"softmax", "scaled_dot_product_attention"}
    assert {k for k in found if k in both} == {attention}
    for operation in operations(emitted.entry):
        if operation.type.startswith("constexpr"):
            parameters = set(operation.attributes) - {"name"}
            assert bool(parameters) == (target == "iOS17")
            assert bool(operation.inputs) == (target == "iOS18")
    if scheme == "pal4":
        (kind,) = {kind for kind, _ in blobs(emitted.entry)["indices"]}
        assert kind == {"iOS17": "uint8", "iOS18": "uint4"}[target]
    assert error_of(program, weights.read, emitted, random_inputs(program)) <= 5e-3


def test_the_oldest_target_that_has_the_weights(
    programs: dict[str, Program], weights: Weights, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    chosen = {
        scheme: emit(
            quantize(programs["conditioner"], tiny_recipe.scheme(scheme).format_of),
            weights.read,
            tmp_path / scheme,
        ).session["target"]
        for scheme in EXPRESSIBLE
    }
    new = ("int4", "pal4-grouped")
    assert chosen == {s: "iOS18" if s in new else "iOS17" for s in EXPRESSIBLE}
    rounded = {"int8-w8a8", "int4-a8", "w8a16", "w4a16"}  # which Core ML has no operators for
    assert set(EXPRESSIBLE) == set(scheme_names()) - rounded


@pytest.mark.parametrize("target", backend.options["target"])
def test_what_is_refused(target: str) -> None:
    options = {"target": target}
    refused = backend.refuse(FORMATS["w8a8"], options)
    assert refused is not None and "on a Mac" in refused
    for form in (FORMATS["int4"], FORMATS["int2"], Format("pal4", group_size=16)):
        reason = backend.refuse(form, options)
        if target == "iOS17":
            assert reason is not None and 'say target = "iOS18" in [coreml]' in reason
        else:
            assert reason is None
    for name in ("fp32", "fp16", "int8", "pal4", "pal6"):
        assert backend.refuse(FORMATS[name], options) is None


@pytest.mark.parametrize(
    ("name", "scheme", "table", "words"),
    [
        ("coreml", "int8-w8a8", "", ("as w8a8", "on a Mac", "pal4, pal4-grouped, pal6")),
        ("onnx", "pal4", "", ("as pal4", "onnx can: fp16, fp32, int4, int4-a8, int8, int8-w8a8")),
        (
            "coreml",
            "int4",
            '[coreml]\ntarget = "iOS17"\n',
            ("as int4", 'say target = "iOS18" in [coreml]', "can: fp16, fp32, int8, pal4, pal6"),
        ),
    ],
)
def test_a_build_of_what_cannot_be_is_refused_in_one_line(
    tiny_folder: Path, tmp_path: Path, name: str, scheme: str, table: str, words: tuple[str, ...]
) -> None:
    recipe = tmp_path / "small.toml"
    text = RECIPE.format(checkpoint=tiny_folder, width=64) + table
    recipe.write_text(text.replace('backends = ["onnx"]', 'backends = ["onnx", "coreml"]'))
    out = tmp_path / "out"
    result = fourstep("build", recipe, "--backend", name, "--scheme", scheme, "--out", out)
    mistake(result, f"{name} cannot express scheme {scheme}", *words)
    assert result.stderr.count("fourstep: ") == 1
    assert sorted(tmp_path.iterdir()) == [recipe]


@pytest.mark.parametrize("symmetric", [True, False])
def test_codes_of_2_bits_are_looked_up_and_then_scaled(
    normed: Program, tmp_path: Path, symmetric: bool
) -> None:
    """The chain that coremltools writes for a palette with scales, in iOS 18."""
    form = Format("int2", 16, symmetric)
    program = quantize(normed, lambda _, __, role: form if role == "linear" else FORMATS["fp32"])
    emitted = emit(program, reader(values_of()), tmp_path / "graph")
    assert emitted.session == {"target": "iOS18"}
    table, steps = (o for o in operations(emitted.entry) if o.type.startswith("constexpr"))
    assert (table.type, steps.type) == ("constexpr_lut_to_dense", "constexpr_blockwise_shift_scale")
    (indices,), (lut,) = (table.inputs[n].arguments for n in ("indices", "lut"))
    assert element(indices.value.type) == "uint2" and element(lut.value.type) == "fp16"
    numbers = np.frombuffer(lut.value.immediateValue.tensor.bytes.values, np.float16)
    assert numbers.tolist() == ([-2, -1, 0, 1] if symmetric else [0, 1, 2, 3])
    assert steps.inputs["data"].arguments[0].name == table.outputs[0].name
    assert ("offset" in steps.inputs) == (not symmetric)
    assert declared(emitted.entry)[steps.outputs[0].name] == ("fp16", (32, 64))
    assert error_of(program, reader(values_of()), emitted, {"x": torch.randn(1, 8, 64)}) <= 1e-3


# Sizes.


@pytest.mark.parametrize(
    ("scheme", "parameter", "kind"),
    [
        ("int4", "data", "int4"),
        ("int2", "indices", "uint2"),
        ("pal4", "indices", "uint8"),
        ("pal6", "indices", "uint8"),
    ],
)
def test_codes_take_the_bits_of_their_format(
    programs: dict[str, Program],
    weights: Weights,
    tmp_path: Path,
    scheme: str,
    parameter: str,
    kind: str,
) -> None:
    program = quantize(programs["denoiser"], scheme_of(scheme).format_of)
    package = emit(program, weights.read, tmp_path / "graph").entry
    expected = codes = 0
    for name, source in program.stored().items():
        form = program.formats[name]
        values = torch.Size(source.shape).numel()
        blocks = source.shape[0] * (source.shape[1] // form.group_size if form.group_size else 1)
        if form.name == scheme:
            codes += values * form.bits // 8
        extra = 2**form.bits if form.is_palette else blocks if form.is_integer else 0
        expected += 2 * values if form.name == "fp32" else values * form.bits // 8 + 2 * extra
    constants = [c.value.size for c in program.tensors.values() if isinstance(c, Constant)]
    expected += 2 * sum(constants)
    found = blobs(package)
    assert sum(size for stored, size in found[parameter] if stored == kind) == codes > 100_000
    sizes = [size for listed in found.values() for _, size in listed]
    assert sum(sizes) == pytest.approx(expected, rel=0.05)
    file = inside(package) / "weights" / "weight.bin"
    header = library.BLOB_ALIGN_BYTES  # of the file, and of each tensor
    aligned = header + sum(header + in_blocks(size) for size in sizes)
    assert 0 <= aligned - file.stat().st_size < library.BLOB_ALIGN_BYTES


# fp16, knowingly.


@pytest.mark.parametrize("size", [3000.0, 8000.0])
def test_rms_norm_of_large_values(normed: Program, tmp_path: Path, size: float) -> None:
    program = quantize(normed, load_scheme("fp16").format_of)
    values = values_of()
    x = size * torch.randn(1, 8, 64)
    half = x.half()
    naive = half * torch.rsqrt(half.square().mean(-1, keepdim=True) + 1e-6)
    expected = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
    assert half.isfinite().all() and half.square().isinf().any()
    assert not relative_error(naive.float().numpy(), expected.numpy()) < 0.5
    emitted = emit(program, reader(values), tmp_path / "graph")
    assert error_of(program, reader(values), emitted, {"x": x}) <= 1e-3


@pytest.mark.parametrize(
    ("graph", "factors"),
    [
        ("t5", {"shared.weight": 1e6, ".o.weight": 1e6, "wo.weight": 1e6}),
        ("t5", {"wi_0.weight": 1e3, "wi_1.weight": 1e3, "wo.weight": 1e-6}),
        ("vae_decoder", {"conv_in.weight": 1e6}),
        ("vae_encoder", {"conv_in.weight": 1e6}),
    ],
)
def test_graphs_that_leave_the_range_of_fp16_compute_in_float32(
    programs: dict[str, Program],
    weights: Weights,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    graph: str,
    factors: dict[str, float],
) -> None:
    program = quantize(programs[graph], load_scheme("int8").format_of)
    read = scaled(weights.read, factors)
    inputs = random_inputs(program)
    emitted = emit(program, read, tmp_path / "graph")
    assert error_of(program, read, emitted, inputs) <= 1e-5
    monkeypatch.setattr(emitter, "FLOAT32_GRAPHS", ())
    naive = emit(program, read, tmp_path / "naive")
    assert not error_of(program, read, naive, inputs) <= 5e-3


@pytest.mark.parametrize("scheme", ["fp16", "int8"])
@pytest.mark.parametrize("graph", emitter.FLOAT32_GRAPHS)
def test_float32_graphs_have_no_value_in_fp16(
    programs: dict[str, Program], weights: Weights, tmp_path: Path, graph: str, scheme: str
) -> None:
    program = quantize(programs[graph], load_scheme(scheme).format_of)
    package = emit(program, weights.read, tmp_path / "graph").entry
    kinds = {kind for kind, _ in declared(package).values()}
    assert "fp32" in kinds and "fp16" not in kinds


@pytest.mark.parametrize("target", ["iOS17", "iOS18"])
@pytest.mark.parametrize("graph", ["clip_l", "clip_g"])
def test_clips_mask_has_no_infinity(
    programs: dict[str, Program], weights: Weights, tmp_path: Path, graph: str, target: str
) -> None:
    """The mask's -1e9 would be -inf in fp16."""
    program = quantize(programs[graph], load_scheme("fp16").format_of)
    mask = min(c.value.min() for c in program.tensors.values() if isinstance(c, Constant))
    assert mask < -65504
    emitted = emit(program, weights.read, tmp_path / "graph", target)
    data = library.blob_reader(inside(emitted.entry) / "weights" / "weight.bin")
    lowest = 0.0
    for operation in operations(emitted.entry):
        value = operation.attributes["val"]
        if value.WhichOneof("value") == "blobFileValue" and element(value.type) == "fp16":
            array = data.read_fp16_data(value.blobFileValue.offset).view(np.float16)
            assert np.isfinite(array).all()
            lowest = min(lowest, float(array.min()))
    assert lowest == np.float16(-4e4)
    assert not any("finite" in remark for remark in emitted.remarks)
    assert error_of(program, weights.read, emitted, random_inputs(program)) <= 5e-3


@pytest.mark.parametrize(
    ("target", "size", "allowed"),
    [
        ("iOS17", 4, 5e-3),
        ("iOS17", 10, 2e-2),
        ("iOS17", 16, 2e-2),
        ("iOS18", 4, 1e-3),
        ("iOS18", 10, 1e-3),
        ("iOS18", 16, 1e-3),
    ],
)
def test_large_attention_logits(tmp_path: Path, target: str, size: float, allowed: float) -> None:
    """Largest logits of about 60, 360 and 900.

    On iOS 17 logits are products in fp16, whose steps widen with them: 0.25 at 360. The softmax
    itself is in float32 on both.
    """
    shapes = {"x": (1, 16, 64), "k": (1, 24, 64), "v": (1, 24, 64)}
    program = quantize(traced(Attending, shapes, 64), load_scheme("fp16").format_of)
    torch.manual_seed(5)
    factors = {"x": size, "k": size, "v": 1}
    inputs = {n: (factors[n] * torch.randn(shape)).half().float() for n, shape in shapes.items()}
    read = reader({"q.weight": torch.eye(64)})
    emitted = emit(program, read, tmp_path / "graph", target)
    assert error_of(program, read, emitted, inputs) <= allowed


INTEGERS = [FORMATS["int8"], FORMATS["int4"], FORMATS["int2"], Format("int2", 16, False)]
LINEAR = [*INTEGERS, FORMATS["pal4"], Format("pal4", 16), FORMATS["pal6"]]


@pytest.mark.parametrize("form", LINEAR, ids=str)
@pytest.mark.parametrize(("size", "kind"), [(1e-5, "fp32"), (1e5, "fp32"), (0.1, "fp16")])
def test_weights_outside_fp16s_normal_range_are_multiplied_in_float32(
    normed: Program, tmp_path: Path, form: Format, size: float, kind: str
) -> None:
    program = quantize(normed, lambda _, __, role: form if role == "linear" else FORMATS["fp32"])
    values = values_of(size)
    values["out.bias"] = torch.zeros(32)
    values["norm.weight"] = torch.full((64,), 0.1 / size)  # so that results are of size 1
    emitted = emit(program, reader(values), tmp_path / "graph")
    (linear,) = (o for o in operations(emitted.entry) if o.type == "linear")
    assert element(linear.outputs[0].type) == kind
    assert error_of(program, reader(values), emitted, {"x": torch.randn(1, 8, 64)}) <= 1e-3


def test_a_bias_beyond_fp16_is_refused(normed: Program, tmp_path: Path) -> None:
    program = quantize(normed, load_scheme("fp16").format_of)
    values = values_of() | {"out.bias": torch.full((32,), -1e5)}
    message = r"^small: a value of 100000 is beyond fp16's 65504; build scheme fp32 for Core ML$"
    with pytest.raises(InputError, match=message):
        emit(program, reader(values), tmp_path / "graph")


@pytest.mark.parametrize("at", [0, 31])
def test_a_bias_that_is_no_number_is_refused(normed: Program, tmp_path: Path, at: int) -> None:
    program = quantize(normed, load_scheme("fp16").format_of)
    values = values_of()
    values["out.bias"][at] = torch.nan
    with pytest.raises(InputError, match=r"^small: a value of nan is beyond fp16's 65504"):
        emit(program, reader(values), tmp_path / "graph")


# The lint.


@pytest.mark.parametrize("scheme", ["fp16", "int8", "pal4"])
@pytest.mark.parametrize(
    ("target", "share", "entry"),
    [
        ("iOS17", 100.0, "small-12.mlmodel.diff"),
        ("iOS18", 0.01, "small-12.mlmodel.diff"),
        ("iOS18", 100.0, "small.mlpackage"),
    ],
)
def test_a_further_size_is_a_function_where_that_is_little_beside_the_weights(
    normed: Program,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
    target: str,
    share: float,
    entry: str,
) -> None:
    """Either way the first size's operators are what they are alone, and results those alone."""
    monkeypatch.setattr(writer, "FUNCTION_SHARE", share)
    sizes = {"small": normed, "small-12": traced(Normed, {"x": (1, 12, 64)}, 32)}
    programs = {name: quantize(p, load_scheme(scheme).format_of) for name, p in sizes.items()}
    (tmp_path / "both").mkdir()
    options = EmitOptions({"target": target})
    assert isinstance(backend, Sizing)
    found = backend.emit_sizes(programs, reader(values_of()), tmp_path / "both", options)
    assert found["small-12"].entry.name == entry
    weights = (inside(found["small"].entry) / "weights" / "weight.bin").read_bytes()
    for name, program in programs.items():
        alone = emit(program, reader(values_of()), tmp_path / name, target)
        x = np.random.default_rng(0).standard_normal(program.inputs[0].shape).astype(np.float32)
        session = backend.open_graph(found[name].entry, found[name].session, SessionOptions())
        assert np.array_equal(session({"x": x})["y"], open_program(alone.entry)({"x": x})["y"])
        assert (inside(alone.entry) / "weights" / "weight.bin").read_bytes() == weights
        read_by_apple = library.coremltools().models.MLModel
        if share == 100.0 and target == "iOS18":
            function = "main" if name == "small" else name
            loaded = read_by_apple(
                str(found[name].entry), skip_model_load=True, function_name=function
            )
            assert [one.name for one in loaded.get_spec().description.functions] == [
                "main",
                "small-12",
            ]
    if entry.endswith(".diff"):
        assert specification(found["small"].entry) == specification(
            tmp_path / "small" / "small.mlpackage"
        )


@pytest.fixture
def small_package(normed: Program, tmp_path: Path) -> Path:
    """A package without findings but RMSNorm's, to add operators to."""
    program = quantize(normed, load_scheme("fp16").format_of)
    return emit(program, reader(values_of()), tmp_path / "graph").entry


def add_operation(
    package: Path, kind: str, dtype: str, shape: tuple[int | None, ...], value: bytes = b""
) -> None:
    """Append an operator named odd; None is a size that is not known."""
    spec = specification(package)
    function = spec.mlProgram.functions["main"]
    operation = function.block_specializations[function.opset].operations.add(type=kind)
    output = operation.outputs.add(name="odd")
    tensor = output.type.tensorType
    tensor.dataType = library.program_messages().DataType.Value(dtype)
    tensor.rank = len(shape)
    for size in shape:
        dimension = tensor.dimensions.add()
        if size is None:
            dimension.unknown.SetInParent()
        else:
            dimension.constant.size = size
    if value:
        operation.attributes["val"].immediateValue.tensor.bytes.values = value
    (inside(package) / "model.mlmodel").write_bytes(spec.SerializeToString())


def half(*values: float) -> bytes:
    return np.array(values, np.float16).tobytes()


@pytest.mark.parametrize(
    ("kind", "dtype", "shape", "value", "reason"),
    [
        ("reshape", "FLOAT16", (1, 1, 2, 2, 2, 2), b"", "rank 6; at most 5"),
        ("reduce_mean", "FLOAT16", (1, 8, 1), b"", "its last axis has one value, padded"),
        ("const", "FLOAT16", (2,), half(1, -np.inf), "a constant that is not finite"),
        ("const", "FLOAT16", (), half(np.nan), "a constant that is not finite"),
        ("sin", "FLOAT16", (1, 8), b"", "a sinusoid in fp16"),
        ("cos", "FLOAT16", (1, 8), b"", "a sinusoid in fp16"),
        ("add", "FLOAT16", (1, None), b"", "its size is not fixed"),
    ],
)
def test_lint_names_the_operator(
    small_package: Path,
    kind: str,
    dtype: str,
    shape: tuple[int | None, ...],
    value: bytes,
    reason: str,
) -> None:
    before = lint.lint(small_package, "small")
    add_operation(small_package, kind, dtype, shape, value)
    found = [f for f in lint.lint(small_package, "small") if f not in before]
    (finding,) = found
    assert (finding.graph, finding.operator, finding.output) == ("small", kind, "odd")
    assert str(finding).startswith(f"Neural Engine: small: {kind} odd: {reason}")


@pytest.mark.parametrize(
    ("kind", "dtype", "shape", "value"),
    [
        ("reshape", "FLOAT16", (1, 2, 2, 2, 2), b""),
        ("cast", "FLOAT32", (1, 8, 1), b""),
        ("const", "FLOAT16", (2,), half(1, 65504)),
        ("const", "FLOAT16", (8, 1), b""),
        ("add", "FLOAT16", (1, 1), b""),
        ("const", "INT32", (3,), b""),
    ],
)
def test_lint_is_silent_about_what_the_engine_takes(
    small_package: Path, kind: str, dtype: str, shape: tuple[int, ...], value: bytes
) -> None:
    before = lint.lint(small_package, "small")
    add_operation(small_package, kind, dtype, shape, value)
    assert lint.lint(small_package, "small") == before


class Masked(nn.Module):
    """Adds a mask that is too long to stand in the message."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(64, 1024)
        self.mask = nn.Parameter(torch.zeros(1024))

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.out(x) + self.mask,)


@pytest.mark.parametrize("value", [-np.inf, np.inf, np.nan])
def test_lint_reads_the_weight_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    masked = traced(Masked, {"x": (1, 8, 64)}, 1024)
    program = quantize(masked, load_scheme("fp16").format_of)
    values = {"out.weight": torch.randn(1024, 64), "out.bias": torch.randn(1024)}
    read = reader(values | {"mask": torch.full((1024,), -4e4)})
    assert emit(program, read, tmp_path / "finite").remarks == ()
    monkeypatch.setattr(emitter.Emitter, "_half", lambda _, array: array.astype(np.float16))
    read = reader(values | {"mask": torch.full((1024,), value)})
    emitted = emit(program, read, tmp_path / "graph")
    assert blobs(emitted.entry)["val"].count(("fp16", 2 * 1024)) == 2  # the bias and the mask
    (remark,) = emitted.remarks
    assert remark.startswith("Neural Engine: small: const constant_")
    assert remark.endswith(": a constant that is not finite")


def test_lint_of_size_and_of_float32(small_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_operation(small_package, "softmax", "FLOAT32", (1, 8))
    monkeypatch.setattr(lint, "LARGEST_GRAPH_BYTES", 1000)
    large, wide = (str(f) for f in lint.lint(small_package, "small"))
    assert large == "Neural Engine: small: graph: 0.0 GB of weights; at most 1 GB"
    assert wide.startswith("Neural Engine: small: graph: 6 operators compute in float32, where")
    assert wide.endswith(": 2 mul, 1 reduce_mean, 1 rsqrt, 1 softmax, 1 square")


@pytest.mark.parametrize("scheme", ["fp16", "int8", "int4", "pal4"])
def test_the_shipped_recipes_graphs_have_no_other_finding_than_float32(
    shapes_programs: dict[str, Program], shapes: Checkpoint, tmp_path: Path, scheme: str
) -> None:
    recipe = read_recipe(ROOT / "recipes" / "shapes-flash.toml")
    read = Weights(shapes).read
    remarks = {
        name: emit(
            quantize(program, recipe.scheme(scheme).format_of), read, tmp_path / name
        ).remarks
        for name, program in shapes_programs.items()
    }
    assert remarks.pop("conditioner") == ()
    for name, found in remarks.items():
        (remark,) = found
        start = rf"Neural Engine: {name}: graph: \d+ operators compute in float32, where fp16 would"
        assert re.match(start, remark), remark
    allowed = {"mul", "reduce_mean", "rsqrt", "square", "softmax"}  # RMSNorm, attention on iOS 17
    for name in ("clip_l", "clip_g", "denoiser"):
        listed = remarks[name][0].rpartition(": ")[2]
        assert {entry.split()[1] for entry in listed.split(", ")} <= allowed, listed


@pytest.fixture(scope="module")
def shapes_programs(shapes: Checkpoint) -> dict[str, Program]:
    recipe = read_recipe(ROOT / "recipes" / "shapes-flash.toml")
    return {g.name: trace(g) for g in cut_graphs(shapes, recipe.cut)}


# Packages.


SCHEMES = ("int4", "pal4")


@pytest.fixture(scope="module")
def small_recipe(tiny_recipe: Recipe) -> Recipe:
    return replace(tiny_recipe, cut=replace(SMALL, sigmas=(1.0, 0.5, 0.0)))


@pytest.fixture(scope="module")
def built(small_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Packages of the tiny checkpoint, by scheme. Copy one before damaging it."""
    out = tmp_path_factory.mktemp("coreml")
    return {b.scheme: b.path for b in build(small_recipe, out, ["coreml"], SCHEMES)}


@pytest.fixture
def package(built: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(built["int4"], tmp_path / "package"))


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        f.relative_to(folder).as_posix(): f.read_bytes()
        for f in sorted(folder.rglob("*"))
        if f.is_file()
    }


def test_two_builds_give_the_same_bytes_without_traces_of_this_machine(
    small_recipe: Recipe, built: dict[str, Path], tmp_path: Path
) -> None:
    again = build(small_recipe, tmp_path / "deep" / "er", ["coreml"], SCHEMES)
    for other in again:
        files = files_of(built[other.scheme])
        assert files == files_of(other.path)
        for name, data in files.items():
            for word in (b"/work", b"/tmp", b"/home", b"site-packages", bytes(tmp_path.parent)):
                assert word not in data, (name, word)
            if name.endswith((".mlmodel", "Manifest.json")):
                for word in (b".py", b"torch", b"stack"):
                    assert word not in data, (name, word)


@pytest.mark.parametrize("known", [False, True], ids=["digests-kept", "digests-updated"])
@pytest.mark.parametrize(
    ("file", "damage", "words"),
    [
        (
            "Data/com.apple.CoreML/weights/weight.bin",
            "truncated",
            r"a constant takes 4,928 bytes, and \d",
        ),
        (
            "Data/com.apple.CoreML/weights/weight.bin",
            "missing",
            "a constant at 64 .* not in its weights",
        ),
        ("Data/com.apple.CoreML/model.mlmodel", "garbage", "a field that ends behind its message"),
        ("Data/com.apple.CoreML/model.mlmodel", "truncated", "a field that ends behind its mess"),
        ("Data/com.apple.CoreML/model.mlmodel", "missing", "it is not one .mlpackage with a model"),
        ("Manifest.json", "garbage", "Manifest.json: not valid JSON: it is no text"),
        ("Manifest.json", "truncated", "Manifest.json: not valid JSON: Expecting"),
        ("Manifest.json", "missing", "it is not one .mlpackage with a model"),
    ],
)
def test_a_damaged_graph_is_one_line(
    package: Path, tmp_path: Path, file: str, damage: str, words: str, known: bool
) -> None:
    """``known``: the package's manifest says what the damaged file is, so that only who reads the
    graph can notice."""
    graph = "graphs/clip_l/clip_l.mlpackage"
    place = package / graph / file
    whole = place.read_bytes()
    place.unlink()
    if damage != "missing":
        place.write_bytes(whole[: len(whole) // 2] if damage == "truncated" else b"{\xff no graph")
    if known:
        describe(package, f"{graph}/{file}")
        expected = rf"{graph}: .*{words}"
    else:
        expected = rf"{graph}/{file}: (damaged: .* copy or build|cannot be read: No such file)"
    check = fourstep("verify", package)
    assert check.exit_code == 1 and check.stdout == ""
    picture = tmp_path / "picture.png"
    draw = fourstep("run", package, "a red circle", "--out", picture)
    mistake(draw)
    for result in (check, draw):
        assert re.search(expected, result.stderr.splitlines()[-1]), result.stderr
        assert result.stderr.count("fourstep: ") == 1
    assert not picture.exists()


def describe(package: Path, path: str) -> None:
    """Enter a file as it is into the package's manifest; take it out when it is missing."""
    manifest = json.loads((package / "manifest.json").read_text())
    for graph in manifest["graphs"]:
        for entry in [e for e in graph["files"] if e["path"] == path]:
            if not (package / path).exists():
                graph["files"].remove(entry)
                continue
            data = (package / path).read_bytes()
            entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    seal(package, manifest)


# On a Mac, with a Core ML that is not there.


class ComputeUnit(enum.Enum):
    ALL = 1
    CPU_AND_GPU = 2
    CPU_ONLY = 3
    CPU_AND_NE = 4


Change = Callable[[np.ndarray], np.ndarray]


class FakeCoreML:
    """What a Mac's coremltools does, done by the evaluator; results pass through ``change``."""

    def __init__(self, change: Change = lambda value: value) -> None:
        self.change, self.compiled, self.units = change, list[str](), list[ComputeUnit]()
        self.ComputeUnit = ComputeUnit
        self.models = SimpleNamespace(
            utils=SimpleNamespace(compile_model=self.compile),
            MLModel=lambda path, compute_units: self.open(path, compute_units),
            CompiledMLModel=self.open_compiled,
        )

    def compile(self, model: str, destination_path: str) -> str:
        assert model.endswith(".mlpackage") and destination_path.endswith(".mlmodelc")
        moved = Path(f"{destination_path}.made")
        shutil.copytree(model, moved)
        shutil.move(moved, destination_path)  # as Apple does: into a folder that is there
        self.compiled.append(destination_path)
        return destination_path

    def open_compiled(self, path: str, compute_units: ComputeUnit) -> Any:
        assert path.endswith(".mlmodelc")
        return self.open(path, compute_units)

    def open(self, path: str, compute_units: ComputeUnit) -> Any:
        assert isinstance(path, str) and isinstance(compute_units, ComputeUnit)
        self.units.append(compute_units)
        try:
            evaluate = open_program(Path(path))
        except CheckFailed as error:
            raise RuntimeError(f"Error compiling model:\n{error}") from None
        return SimpleNamespace(
            predict=lambda inputs: {n: self.change(v) for n, v in evaluate(inputs).items()}
        )


def check_on_mac(
    package: Path, fake: FakeCoreML, monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> int:
    """Run the package's script as ``python check_on_mac.py`` does; returns its exit code."""
    library.model_messages(), library.program_messages(), library.coremltools()
    monkeypatch.chdir(package)
    monkeypatch.setitem(sys.modules, "coremltools", fake)
    monkeypatch.setattr(sys, "argv", ["check_on_mac.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path("check_on_mac.py", run_name="__main__")
    monkeypatch.undo()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_the_script_for_a_mac(
    package: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake, kept = FakeCoreML(), tmp_path / "kept"
    options = ("--units", "CPU_AND_NE", "--compiled", kept)
    assert check_on_mac(package, fake, monkeypatch, *options) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["graph", "relative", "error", "allowed", "ms", "on", "CPU_AND_NE"]
    graphs = [g.name for g in open_package(package).manifest.graphs]
    assert [row.split()[0] for row in rows] == graphs
    for row in rows:
        _, error, allowed, milliseconds = row.split()
        assert 0 <= float(error) <= float(allowed) == 5e-3 and float(milliseconds) > 0
    assert set(fake.units) == {ComputeUnit.CPU_AND_NE}
    assert sorted(f.name for f in kept.iterdir()) == sorted(f"{g}.mlmodelc" for g in graphs)
    assert all(len(list(f.glob("*.mlmodelc*"))) == 0 for f in kept.iterdir())
    # Once more, in the same folder: what was compiled earlier is not taken for the new model.
    assert check_on_mac(package, fake, monkeypatch, *options) == 0
    assert sorted(f.name for f in kept.iterdir()) == sorted(f"{g}.mlmodelc" for g in graphs)
    assert all(len(list(f.glob("*.mlmodelc*"))) == 0 for f in kept.iterdir())


@pytest.mark.parametrize(
    "change",
    [lambda value: 1.01 * value, np.zeros_like, lambda value: np.full_like(value, np.nan)],
    ids=["other", "zero", "nan"],
)
def test_the_script_for_a_mac_finds_wrong_values(
    package: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: Change,
) -> None:
    assert check_on_mac(package, FakeCoreML(change), monkeypatch) == 1
    _, *rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 7 and all(row.endswith("  FAILED") for row in rows)


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> FakeCoreML:
    """This machine as a Mac, with a Core ML that is a hundredth off."""
    fake = FakeCoreML(lambda value: 1.01 * value)
    monkeypatch.setattr(library, "coremltools", lambda: fake)
    monkeypatch.setattr(session_module, "ON_A_MAC", True)
    units = tuple(u.name for u in ComputeUnit)
    monkeypatch.setattr(session_module, "COMPUTE_UNITS", units)
    monkeypatch.setattr(type(backend), "devices", (*units, session_module.EVALUATOR))
    monkeypatch.setattr(type(backend), "caching_devices", units)
    return fake


@pytest.fixture
def clip(package: Path) -> Path:
    return package / "graphs" / "clip_l" / "clip_l.mlpackage"


IDS = {"ids": np.arange(77, dtype=np.int32)[None]}


def test_a_model_is_compiled_once_into_the_cache(
    clip: Path, tmp_path: Path, mac: FakeCoreML
) -> None:
    exact = open_program(clip)(IDS)
    cache = tmp_path / "deep" / "cache"
    for _ in range(2):
        found = open_model(clip, "CPU_ONLY", cache)(IDS)
        for name, value in exact.items():
            np.testing.assert_allclose(found[name], 1.01 * value, rtol=1e-6)
    assert mac.units == [ComputeUnit.CPU_ONLY] * 2 and len(mac.compiled) == 1
    assert [f.name for f in cache.iterdir()] == [Path(mac.compiled[0]).parent.name]


def test_a_damaged_model_in_the_cache_is_compiled_anew(
    clip: Path, tmp_path: Path, mac: FakeCoreML
) -> None:
    expected = open_model(clip, "CPU_ONLY", tmp_path)(IDS)
    file = max(Path(mac.compiled[0]).rglob("*"), key=lambda f: f.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.warns(DamagedCache, match=rf"{file.name}: is not as it was written"):
        found = open_model(clip, "CPU_ONLY", tmp_path)(IDS)
    assert len(mac.compiled) == 2
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


def test_another_model_of_the_same_name_is_compiled_anew(
    built: dict[str, Path], tmp_path: Path, mac: FakeCoreML
) -> None:
    """Copies from an archive may share their names and ages."""
    for scheme in SCHEMES:
        source = built[scheme] / "graphs" / "denoiser" / "denoiser.mlpackage"
        place = Path(shutil.copytree(source, tmp_path / scheme / source.name))
        os.utime(place, (0, 0))
        open_model(place, "ALL", tmp_path / "cache")
    assert len(set(mac.compiled)) == 2


def test_without_a_cache_nothing_is_compiled_to_keep(clip: Path, mac: FakeCoreML) -> None:
    assert set(open_model(clip, "CPU_AND_GPU", None)(IDS)) == {"hidden", "pooled"}
    assert mac.compiled == [] and mac.units == [ComputeUnit.CPU_AND_GPU]


def test_core_mls_refusal_is_one_line(clip: Path, tmp_path: Path, mac: FakeCoreML) -> None:
    (clip / "Manifest.json").write_text("")
    for cache in (None, tmp_path / "cache"):
        with pytest.raises(CheckFailed) as refused:
            open_model(clip, "ALL", cache)
        message = str(refused.value)
        assert message.startswith(f"{clip}: Core ML cannot open it: Error compiling model: ")
        assert "\n" not in message


def test_a_call_that_core_ml_refuses_is_one_line(clip: Path, mac: FakeCoreML) -> None:
    call = open_model(clip, "ALL", None)
    with pytest.raises(CheckFailed, match=rf"^{clip}: Core ML cannot run it: .*'ids' is missing"):
        call({})


def test_a_mac_runs_core_ml_unless_told_otherwise(clip: Path, mac: FakeCoreML) -> None:
    off = {
        device: bool(session_error(clip, SessionOptions(device=device)) > 5e-3)
        for device in (None, "ALL", "CPU_AND_NE", "EVALUATOR")
    }
    assert off == {None: True, "ALL": True, "CPU_AND_NE": True, "EVALUATOR": False}
    assert mac.units[0] == ComputeUnit[session_module.COMPUTE_UNITS[0]]
    assert session_error(clip, SessionOptions("float32")) == 0
    assert session_error(clip, SessionOptions("float32", device="ALL")) == 0


def test_the_evaluator_keeps_nothing_in_a_cache(
    package: Path, tmp_path: Path, mac: FakeCoreML
) -> None:
    cache = tmp_path / "cache"
    options = SessionOptions(device=session_module.EVALUATOR, cache=cache)
    with pytest.raises(InputError, match="cache: coreml keeps no compiled graphs on EVALUATOR"):
        open_package(package).session("clip_l", options)
    assert not cache.exists()
    open_package(package).session("clip_l", SessionOptions(cache=cache))
    assert [f.name for f in cache.iterdir()] == [Path(mac.compiled[0]).parent.name]


def test_elsewhere_the_evaluator_runs(
    clip: Path, mac: FakeCoreML, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "ON_A_MAC", False)
    assert session_error(clip, SessionOptions()) == 0
    assert mac.units == []


def session_error(package: Path, options: SessionOptions) -> float:
    """How far a session is from the evaluator."""
    found = session_module.open_graph(package, {}, options)(IDS)
    return max(relative_error(found[n], v) for n, v in open_program(package)(IDS).items())


def test_verify_on_a_mac_reports_both(package: Path, mac: FakeCoreML) -> None:
    """The program by its own types decides; what Core ML makes of it is shown beside it."""
    report = verify(open_package(package))
    assert report.ok
    for graph in report.graphs:
        assert (
            graph.exact <= TOLERANCE.graph_relative < graph.as_run == pytest.approx(0.01, rel=0.5)
        )

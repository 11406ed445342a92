"""What rounding does to the final latent: gradients against autograd, noise against drawing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx
from torch.nn import functional as F

from exporter.build.model import Model, trace_model
from exporter.calibrate.weights import Weights
from exporter.checkpoint.open import Checkpoint
from exporter.network.assemble import cut_graphs
from exporter.network.graph import Graph
from exporter.package.manifest import Guidance, Port
from exporter.plan import sensitivity
from exporter.plan.candidates import CandidateChanges, candidates, chosen_ranges, parse_formats
from exporter.plan.sensitivity import Noise, measure
from exporter.program import differentiate
from exporter.program.differentiate import pull_back, segments
from exporter.program.program import Program, Stored
from exporter.program.trace import trace
from exporter.progress import Progress
from exporter.quantize.formats import parse_format
from exporter.quantize.program import NEAREST, quantize
from exporter.quantize.rounded import round_inputs
from exporter.recipe.recipe import CalibrationChoice, read_recipe
from tests.conftest import ROOT, SHAPES, SMALL, random_inputs

GRAPHS = ("clip_l", "clip_g", "t5", "conditioner", "denoiser")
SIZES = (1, 20_000, 1 << 20, 1 << 40)  # of segments, in bytes: each operator one ... all one


@pytest.fixture(scope="module")
def programs(tiny: Checkpoint) -> dict[str, Program]:
    return {g.name: trace(g) for g in cut_graphs(tiny, SMALL)}


@pytest.fixture(scope="module")
def weights(tiny: Checkpoint) -> Weights:
    return Weights(tiny, torch.float64)


def doubled(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n: v.double() if v.is_floating_point() else v for n, v in inputs.items()}


def by_autograd(
    program: Program, weights: Weights, sample: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[object, Tensor]]:
    """Gradients by float inputs and stored tensors, of the whole program at once."""
    inputs = [sample[p.name].detach().clone() for p in program.inputs]
    sources = list(program.tensors.values())
    values = [weights.read(source).detach().clone() for source in sources]
    asked = [v.requires_grad_() for v in (*inputs, *values) if v.is_floating_point()]
    module = fx.GraphModule(torch.nn.Module(), program.graph)
    outputs = fx.Interpreter(module).run(*inputs, *values)
    pairs = zip(program.outputs, outputs, strict=True)
    total = torch.stack([(value * given[port.name]).sum() for port, value in pairs]).sum()
    found = dict(
        zip(map(id, asked), torch.autograd.grad(total, asked, allow_unused=True), strict=True)
    )
    by_input = {
        p.name: found[id(v)] for p, v in zip(program.inputs, inputs, strict=True) if id(v) in found
    }
    stored = zip(sources, values, strict=True)
    return by_input, {s: found[id(v)] for s, v in stored if found.get(id(v)) is not None}


@pytest.mark.parametrize("name", GRAPHS)
def test_segments_give_the_gradients_of_the_whole(
    programs: dict[str, Program], weights: Weights, name: str
) -> None:
    program = programs[name]
    sample = doubled(random_inputs(program))
    samples = [sample, {n: v if v.dtype == torch.int32 else 0.5 * v for n, v in sample.items()}]
    generator = torch.Generator().manual_seed(1)
    shapes = {p.name: p.shape for p in program.outputs}
    cotangents = [
        {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in shapes.items()}
        for _ in samples
    ]
    expected = [
        by_autograd(program, weights, s, c) for s, c in zip(samples, cotangents, strict=True)
    ]
    counts = [len(segments(program, size)) for size in SIZES]
    assert counts == sorted(counts, reverse=True) and counts[0] > 10 and counts[-1] == 1
    for size in SIZES:
        found: dict[object, Sequence[Tensor | None]] = {}
        back = pull_back(
            program,
            weights.read,
            samples,
            cotangents,
            lambda source: isinstance(source, Stored),
            found.__setitem__,
            size,
        )
        for i, (by_input, by_tensor) in enumerate(expected):
            assert back[i].keys() == by_input.keys()
            for key, value in by_input.items():
                torch.testing.assert_close(back[i][key], value, rtol=1e-9, atol=1e-9)
            stored = {s: g for s, g in by_tensor.items() if isinstance(s, Stored)}
            assert {s for s, given in found.items() if given[i] is not None} == stored.keys()
            for source, value in stored.items():
                torch.testing.assert_close(found[source][i], value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", SIZES)
def test_gradients_of_a_few_tensors(
    programs: dict[str, Program], weights: Weights, size: int
) -> None:
    """What constants alone make, such as T5's position bias here, has no gradient to take."""
    program = programs["t5"]
    last = [s for s in program.tensors.values() if isinstance(s, Stored) and "block.1" in s.name]
    sample = random_inputs(program)
    given = {p.name: torch.ones(p.shape, dtype=torch.float64) for p in program.outputs}
    _, expected = by_autograd(program, weights, sample, given)
    found: dict[object, Sequence[Tensor | None]] = {}
    call = (program, weights.read, [sample], [given], last.__contains__, found.__setitem__, size)
    assert pull_back(*call) == [{}]
    assert found.keys() == set(last)
    for source in last:
        torch.testing.assert_close(found[source][0], expected[source], rtol=1e-9, atol=1e-9)


def test_free_memory_goes_back_after_each_segment(
    programs: dict[str, Program], weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, calls = programs["clip_l"], list[int]()
    monkeypatch.setattr(differentiate, "release", lambda: calls.append(1))
    sample = doubled(random_inputs(program))
    given = {p.name: torch.ones(p.shape, dtype=torch.float64) for p in program.outputs}
    pull_back(program, weights.read, [sample], [given], lambda _: False, print, 20_000)
    assert len(calls) == len(segments(program, 20_000)) > 3


def held_bytes(program: Program, nodes: Sequence[fx.Node]) -> int:
    """Of the values that some operators make, of their tensors and of those tensors' gradients."""
    tensors = {n for node in nodes for n in node.all_input_nodes if n.name in program.tensors}
    made = [n.meta["val"] for n in nodes if isinstance(n.meta["val"], Tensor)]
    read = [n.meta["val"] for n in tensors]
    numbers: list[int] = [v.numel() for v in (*made, *read, *read)]
    return 4 * sum(numbers)


@pytest.mark.parametrize("name", GRAPHS)
def test_no_segment_holds_more_than_it_may(programs: dict[str, Program], name: str) -> None:
    """But for single operators: a narrow layer's weights can be larger than its values."""
    program = programs[name]
    for size in (20_000, 200_000, 1 << 20):
        for part in segments(program, size):
            assert len(part.nodes) == 1 or held_bytes(program, part.nodes) <= size


class Split(torch.nn.Module):
    """A list of tensors that is alive over many operators."""

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(x, 3)
        total = parts[0]
        for part in parts[1:]:
            total = torch.sin(total) + part
        return total


def test_no_cut_where_a_list_is_alive() -> None:
    ports = Port("x", (12,)), Port("y", (3,))
    program = trace(Graph("split", "transformer", Split(), ports[:1], ports[1:], {}))
    for size in (1, 16, 32, 1000):
        parts = segments(program, size)
        assert [n for part in parts for n in part.nodes] == program.nodes()
        for part in parts:
            own = set(part.nodes)
            for node in program.nodes():
                if isinstance(node.meta["val"], Tensor):
                    continue
                assert node in own or not own & set(node.users)


def heads(x: Tensor, count: int) -> Tensor:
    return x.reshape(*x.shape[:2], count, -1).transpose(1, 2)


@pytest.mark.parametrize("bias", [None, (1, 2, 3, 5), (1, 1, 1, 5)], ids=str)
@pytest.mark.parametrize("width", [4, 7])
def test_attention_is_differentiated_as_torchs(bias: tuple[int, ...] | None, width: int) -> None:
    """With a bias and without, values as wide as keys and wider."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 3, 8), (1, 5, 8), (1, 5, 2 * width), *([bias] if bias else [])]
    given = [
        torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes
    ]

    def ours(q: Tensor, k: Tensor, v: Tensor, *bias: Tensor) -> Tensor:
        out: Tensor = torch.ops.fourstep.attention(q, k, v, 2, 0.7, bias[0] if bias else None)
        return out

    assert torch.autograd.gradcheck(ours, given)
    q, k, v = (heads(t, 2) for t in given[:3])
    mask = given[3] if bias else None
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.7)
    expected = mixed.transpose(1, 2).flatten(2)
    cotangent = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    pairs = zip(
        torch.autograd.grad(ours(*given), given, cotangent),
        torch.autograd.grad(expected, given, cotangent),
        strict=True,
    )
    for found, wanted in pairs:
        torch.testing.assert_close(found, wanted)


@pytest.fixture(scope="module")
def traced() -> Model:
    """shapes-flash with two calibration prompts."""
    recipe = read_recipe(ROOT / "recipes" / "shapes-flash.toml")
    few = CalibrationChoice(recipe.calibration.prompts[:2], 1000, ())
    recipe = replace(recipe, checkpoint=str(SHAPES), calibration=few)
    return trace_model(recipe, 1 << 30, Progress())


@pytest.fixture(scope="module", params=["euler", "renoise"])
def model(request: pytest.FixtureRequest, traced: Model) -> Model:
    return replace(traced, recipe=replace(traced.recipe, mode=request.param))


@pytest.fixture(scope="module", params=["", None], ids=["fixed", "free"])
def guided(request: pytest.FixtureRequest, traced: Model) -> Model:
    """With guidance away from the empty prompt, folded and encoded as the others are."""
    recipe = traced.recipe.with_guidance(Guidance(3.0, request.param))
    if request.param is None:
        return replace(traced, recipe=recipe)
    return trace_model(recipe, 1 << 30, Progress())


class Moved(Weights):
    """Weights of which one is moved."""

    def __init__(self, checkpoint: Checkpoint, moved: Stored, by: Tensor) -> None:
        super().__init__(checkpoint)
        self._moved, self._by = moved, by

    def _raw(self, source: Stored) -> Tensor:
        value = super()._raw(source)
        return value + self._by if source == self._moved else value


CHECKED = (
    ("denoiser", "transformer_blocks.0.attn.to_v.weight"),
    ("denoiser", "transformer_blocks.2.ff.net.2.weight"),
    ("conditioner", "transformer_blocks.1.norm1.linear.weight"),
    ("clip_l", "text_model.encoder.layers.0.mlp.fc1.weight"),
)
PROBES = 6


class Halved:
    """Half of what rounding some weights to 4 bits changes: more of the first order, less else."""

    def __init__(self, model: Model) -> None:
        asked = candidates(model.programs, GRAPHS, parse_formats(["int4-g32"]))
        self.rounding = CandidateChanges({k: asked[k] for k in CHECKED}, model.weights)
        self.sources = {k: asked[k].source for k in CHECKED}

    def asks(self, graph: str, source: object) -> bool:
        return self.rounding.asks(graph, source)

    def rounds(self, graph: str, source: object) -> bool:
        return False

    def output(
        self, graph: str, source: object, layer: object, arguments: Sequence[Any]
    ) -> tuple[str, Mapping[str, Tensor]]:
        raise AssertionError("no input is rounded")

    def of(self, graph: str, source: object) -> tuple[str, Mapping[str, Tensor]]:
        name, changes = self.rounding.of(graph, source)
        return name, {form: change / 2 for form, change in changes.items()}


def noises(model: Model, seed: int, probes: int) -> Noise:
    given = model.unrounded, model.weights.read, model.trajectories, model.schedule
    return measure(*given, Halved(model), seed, probes)


def moved(model: Model) -> dict[tuple[str, str], np.ndarray]:
    """For each of the weights how its change moves the latents, (prompts, C, h, w)."""

    def latents(source: Stored, by: Tensor) -> np.ndarray:
        found = model.travel(model.unrounded, Moved(model.checkpoint, source, by))
        return np.concatenate(found.latents).astype(np.float64)

    found, changes = {}, Halved(model)
    for key, source in changes.sources.items():
        by = changes.of(key[0], source)[1]["int4-g32"]
        found[key] = (latents(source, by) - latents(source, -by)) / 2
    return found


def test_noise_is_what_moved_weights_do_to_the_latent(model: Model) -> None:
    compare_noise(model)


@pytest.mark.full
def test_noise_counts_both_calls_of_guidance(guided: Model) -> None:
    compare_noise(guided)


def compare_noise(model: Model) -> None:
    """Along the very directions that were drawn to 2 %; from all, their mean ratio, to 50 %.

    One standard error of a weight's noise is 40 % with 2 prompts and 6 probes.
    """
    seed, latents = 3, np.concatenate(model.trajectories.latents).astype(np.float64)
    found, away = noises(model, seed, PROBES), moved(model)
    assert found.keys() == set(CHECKED)
    power = np.sum(latents**2) / len(latents)
    generator = torch.Generator().manual_seed(seed)
    shape = (1, *latents.shape[1:])
    drawn = [torch.randn(shape, generator=generator) for _ in range(PROBES * len(latents))]
    probed = torch.cat(drawn).reshape(PROBES, *latents.shape).double().numpy()
    ratios = []
    for key in CHECKED:
        products = np.einsum("npchw,pchw->np", probed, away[key])
        expected = np.mean(products**2) / power
        assert found[key]["int4-g32"] == pytest.approx(expected, rel=0.02), key
        ratios.append(found[key]["int4-g32"] / (np.sum(away[key] ** 2) / len(latents) / power))
    assert 1 / 1.5 < np.mean(ratios) < 1.5


ROUNDED = ("transformer_blocks.0.attn.to_v.weight", "transformer_blocks.2.ff.net.2.weight")


def test_noise_of_rounded_inputs_is_what_one_rounded_layer_does(model: Model) -> None:
    """Of a layer whose input and weight are in 8 bits, along the very directions, to a half.

    The input that it meets in later steps is another by then, and falls to other levels: what is
    drawn is another sample of the same errors, of 2 prompts.
    """
    seed, latents = 3, np.concatenate(model.trajectories.latents).astype(np.float64)
    asked = candidates(model.programs, ["denoiser"], parse_formats(["w8a8", "int8"]))
    some = {("denoiser", name): asked["denoiser", name] for name in ROUNDED}
    methods = dict.fromkeys(model.programs, NEAREST)
    calls = model.trajectories.calls
    ranges = chosen_ranges(some, model.programs, methods, model.weights.read, calls)
    assert ranges.keys() == some.keys()
    changes = CandidateChanges(some, model.weights, ranges)
    given = model.unrounded, model.weights.read, model.trajectories, model.schedule
    found = measure(*given, changes, seed, PROBES)
    power = np.sum(latents**2) / len(latents)
    generator = torch.Generator().manual_seed(seed)
    shape = (1, *latents.shape[1:])
    drawn = [torch.randn(shape, generator=generator) for _ in range(PROBES * len(latents))]
    probed = torch.cat(drawn).reshape(PROBES, *latents.shape).double().numpy()
    for key in some:
        program = quantize(
            model.programs["denoiser"],
            lambda graph, weight, role, key=key: parse_format(  # type: ignore[misc]
                "w8a8" if weight == key[1] else "fp32"
            ),
        )
        rounded = round_inputs(program, {key[1]: ranges[key]})
        travelled = model.travel({**model.unrounded, "denoiser": rounded}, model.weights)
        away = np.concatenate(travelled.latents).astype(np.float64) - latents
        products = np.einsum("npchw,pchw->np", probed, away)
        assert found[key]["w8a8"] == pytest.approx(np.mean(products**2) / power, rel=0.5), key
        assert found[key]["w8a8"] > 1.5 * found[key]["int8"], key  # the input's part


def test_inputs_are_rounded_where_a_scheme_may(model: Model) -> None:
    """In linear layers of the denoiser alone."""
    asked = candidates(model.programs, GRAPHS, parse_formats(["w8a8", "int8"]))
    rounding = {key for key, a in asked.items() if "w8a8" in [str(f) for f in a.formats]}
    assert {graph for graph, _ in rounding} == {"denoiser"}
    assert ("denoiser", "pos_embed.proj.weight") in asked.keys() - rounding


FORMATS = ("int2-g32", "int4-g32", "int8", "fp16")


@pytest.fixture(scope="module")
def noise(traced: Model) -> Noise:
    """Of all weights, each rounded to nearest."""
    asked = candidates(traced.programs, GRAPHS, parse_formats(FORMATS))
    rounding = CandidateChanges(asked, traced.weights)
    given = traced.unrounded, traced.weights.read, traced.trajectories, traced.schedule
    return measure(*given, rounding, 0)


def test_every_weight_has_a_noise_for_each_of_its_formats(traced: Model, noise: Noise) -> None:
    """Less with every bit; none in fp16, which this checkpoint is in."""
    asked = candidates(traced.programs, GRAPHS, parse_formats(FORMATS))
    assert {key: set(row) for key, row in noise.items()} == {
        key: {str(f) for f in weight.formats} for key, weight in asked.items()
    }
    linear = [row for row in noise.values() if "int2-g32" in row]
    total = {form: sum(row[form] for row in linear) for form in FORMATS}
    assert total["int2-g32"] > 4 * total["int4-g32"] > 80 * total["int8"] > total["fp16"] == 0


def test_a_weight_that_nothing_hangs_on_has_no_noise(noise: Noise) -> None:
    """The last block's queries of the prompt: what they ask for is thrown away."""
    blocks = [int(w.split(".")[1]) for g, w in noise if g == "denoiser" and "add_q_proj" in w]
    unused = ("denoiser", f"transformer_blocks.{max(blocks)}.attn.add_q_proj.weight")
    assert set(noise[unused].values()) == {0.0}
    assert noise["denoiser", "transformer_blocks.0.attn.add_q_proj.weight"]["int4-g32"] > 0


def test_few_prompts_at_a_time_give_the_same_noise(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    together, lines = noises(model, 0, 1), list[str]()
    monkeypatch.setattr(sensitivity, "KEPT_BYTES", 1)
    given = model.unrounded, model.weights.read, model.trajectories, model.schedule
    one_by_one = measure(*given, Halved(model), 0, 1, lines.append)
    assert lines[:2] == [f"sensitivity 1 of 1: denoiser, prompt {n} of 2" for n in (1, 2)]
    assert one_by_one.keys() == together.keys()
    for key, row in together.items():
        assert one_by_one[key] == pytest.approx(row, rel=1e-9)


def test_the_same_seed_gives_the_same_noise(model: Model) -> None:
    first, again, other = (noises(model, seed, 1) for seed in (0, 0, 1))
    assert first == again != other

"""8-bit activations: ranges and factors for each layer's input."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from exporter import backends
from exporter.backends.contract import Backend, EmitOptions, SessionOptions
from exporter.calibrate import activations
from exporter.calibrate.activations import choose, rounder
from exporter.calibrate.weights import Weights
from exporter.checkpoint.open import Checkpoint
from exporter.errors import InputError
from exporter.network.assemble import cut_graphs
from exporter.network.graph import Graph
from exporter.package.manifest import Port
from exporter.program.program import Constant, Program, Stored
from exporter.program.run import Observe, run, run_all
from exporter.program.sizes import activation_bytes
from exporter.program.trace import trace
from exporter.quantize.formats import FORMATS
from exporter.quantize.nearest import Encoded, decode, encode
from exporter.quantize.program import Part, QuantizedProgram, Unrounded, quantize
from exporter.quantize.rounded import (
    RoundedInput,
    along,
    ranging,
    round_inputs,
    rounding_node,
)
from exporter.quantize.schemes import load_scheme
from tests.conftest import SMALL, needs

WIDTH = 48
GENERATOR = torch.Generator().manual_seed(1)
WEIGHTS = {
    name: 0.1 * torch.randn(WIDTH, WIDTH, generator=GENERATOR)
    for name in ("first.weight", "second.weight", "third.weight")
}


class Layers(nn.Module):
    """Two layers that read the input, and one that reads what they make."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in "123")

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.third(torch.sigmoid(self.first(x) + self.second(x)))
        return y


def layers(form: str = "w8a8") -> QuantizedProgram:
    with torch.device("meta"):
        module = Layers()
    ports = Port("x", (1, 32, WIDTH)), Port("y", (1, 32, WIDTH))
    program = trace(Graph("denoiser", "transformer", module, ports[:1], ports[1:], {}))
    return quantize(program, lambda *_: FORMATS[form])


def read(source: object) -> Tensor:
    if isinstance(source, Unrounded):
        return WEIGHTS[source.of.name]
    if isinstance(source, Constant):
        return torch.from_numpy(source.value)
    assert isinstance(source, Part)
    return part_of(source, WEIGHTS)


def part_of(source: Part, weights: Mapping[str, Tensor]) -> Tensor:
    """A part of a weight, its columns in the units of its layer's rounded input."""
    weight = weights[source.of.name]
    if source.columns is not None:
        weight = weight * along(torch.from_numpy(source.columns.value), weight.ndim, 1)
    found: Tensor = getattr(encode(weight, source.format), source.part)
    return found


def loud(channels: int, seed: int = 0, by: float = 40.0) -> dict[str, np.ndarray]:
    """Inputs with channels that are louder than the others."""
    x = torch.randn(1, 32, WIDTH, generator=torch.Generator().manual_seed(seed))
    x[..., :channels] *= by
    return {"x": x.numpy()}


def output_error(rounding: RoundedInput, x: Tensor, weight: Tensor) -> float:
    stored = decode(encode(weight * rounding.factor, FORMATS["w8a8"]))
    exact = x @ weight.T
    return float((rounding.rounded(x) @ stored.T - exact).norm() / exact.norm())


def test_layers_with_one_input_share_a_rounding() -> None:
    found = choose(layers(), read, [loud(2)])
    assert {*found} == {*WEIGHTS}
    assert found["first.weight"] is found["second.weight"] is not found["third.weight"]


def test_zero_is_a_level_and_ranges_need_not_be_symmetric() -> None:
    found = choose(layers(), read, [loud(2)])
    for rounding in found.values():
        assert float(rounding.rounded(torch.zeros(WIDTH)).abs().max()) == 0
        assert (-rounding.low / rounding.step) == pytest.approx(
            round(-rounding.low / rounding.step), abs=1e-6
        )
    assert found["third.weight"].low == 0 < found["third.weight"].high  # behind a sigmoid
    assert found["first.weight"].low < 0


def test_loud_channels_hand_their_range_to_the_weight() -> None:
    inputs = loud(2)
    x = torch.from_numpy(inputs["x"]).reshape(-1, WIDTH)
    found = choose(layers(), read, [inputs])["first.weight"]
    end = float(x.abs().max())
    plain = ranging(-end, end, torch.ones(WIDTH))
    error, before = (output_error(r, x, WEIGHTS["first.weight"]) for r in (found, plain))
    assert error < 0.4 * before
    assert found.factor[:2].mean() > 5 * found.factor[2:].mean()


def test_a_single_far_value_is_given_up() -> None:
    inputs = loud(0)
    inputs["x"][0, 0, 7] = 30.0
    calls = [inputs, *(loud(0, seed) for seed in range(1, 40))]
    found = choose(layers(), read, calls)["first.weight"]
    assert found.high * float(found.factor[7]) < 28


def test_every_call_has_its_say() -> None:
    quiet, noisy = loud(0), {"x": 5 * loud(0, seed=3)["x"]}
    alone = choose(layers(), read, [quiet])["first.weight"]
    both = choose(layers(), read, [quiet, noisy])["first.weight"]
    assert both.high > 2 * alone.high * float((alone.factor / both.factor).median())


def test_the_same_inputs_give_the_same_roundings() -> None:
    one, two = (choose(layers(), read, [loud(2), loud(1, 4)]) for _ in range(2))
    for name, rounding in one.items():
        assert (rounding.low, rounding.high) == (two[name].low, two[name].high)
        assert torch.equal(rounding.factor, two[name].factor)


def test_of_many_outputs_some_are_tried_and_every_weight_is_read_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What they say holds for all; a column's largest weight is looked for in all rows."""
    weights = WEIGHTS | {"second.weight": WEIGHTS["second.weight"].clone()}
    weights["second.weight"][47, 5] = 30.0  # a row that is not tried
    monkeypatch.setattr("tests.test_activations.WEIGHTS", weights)
    x = torch.from_numpy(loud(2)["x"]).reshape(-1, WIDTH)
    whole = choose(layers(), read, [loud(2)])["first.weight"]
    tried: list[int] = []
    stored = RoundedInput.stored

    def spy(self: RoundedInput, weight: Tensor) -> Encoded:
        tried.append(len(weight))
        return stored(self, weight)

    monkeypatch.setattr(RoundedInput, "stored", spy)
    monkeypatch.setattr(activations, "TRIED_OUTPUTS", 16)
    asked: list[object] = []

    def listening(source: object) -> Tensor:
        asked.append(source)
        return read(source)

    some = choose(layers(), listening, [loud(2)])["first.weight"]
    assert {*tried} == {16}
    assert len([s for s in asked if isinstance(s, Unrounded)]) == 3
    errors = [output_error(r, x, weights["first.weight"]) for r in (whole, some)]
    assert errors[1] < 1.2 * errors[0]
    assert some.factor[5] < some.factor[6:].median()


def test_what_layers_met_is_let_go_with_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else all inputs that are tried lie in memory at the end."""
    chosen: list[weakref.ref[object]] = []
    best = activations._best

    def spy(group: activations._Group, weights: Iterator[Tensor]) -> RoundedInput:
        assert all(before() is None for before in chosen)
        chosen.append(weakref.ref(group))
        return best(group, weights)

    monkeypatch.setattr(activations, "_best", spy)
    choose(layers(), read, [loud(2), loud(1)])
    assert len(chosen) == 2


def test_silent_channels_keep_their_factor() -> None:
    silent = {"x": loud(0)["x"] * (np.arange(WIDTH) > 3)}
    found = choose(layers(), read, [silent])["first.weight"]
    assert found.factor.isfinite().all() and (found.factor > 0).all()
    nothing = choose(layers(), read, [{"x": np.zeros((1, 32, WIDTH), np.float32)}])
    for rounding in nothing.values():
        assert rounding.high - rounding.low > 0
        assert not rounding.rounded(torch.zeros(WIDTH)).any()


class Strips(nn.Module):
    """A convolution that works on two halves of a map, and one that reads a half again."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(8, 6, 3, bias=False)
        self.second = nn.Conv2d(8, 4, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        top, bottom = x[:, :, :6], x[:, :, 4:] * 2
        ends = [nn.functional.conv2d(part, self.first.weight, None, 1, 1) for part in (top, bottom)]
        y: Tensor = torch.cat(ends, 2).mean() + self.second(bottom)
        return y


KERNELS = {
    "first.weight": 0.1 * torch.randn(6, 8, 3, 3, generator=GENERATOR),
    "second.weight": 0.1 * torch.randn(4, 8, 1, 1, generator=GENERATOR),
}


def test_strips_of_a_map_share_a_rounding_and_zeros_around_it_count() -> None:
    with torch.device("meta"):
        module = Strips()
    ports = Port("x", (1, 8, 10, 5)), Port("y", (1, 4, 6, 5))
    program = trace(Graph("vae_decoder", "vae", module, ports[:1], ports[1:], {}))
    quantized = quantize(program, lambda *_: FORMATS["w8a8"])

    def read_kernel(source: object) -> Tensor:
        assert isinstance(source, Part | Unrounded)
        kernel = KERNELS[source.of.name]
        return kernel if isinstance(source, Unrounded) else part_of(source, KERNELS)

    x = torch.rand(1, 8, 10, 5, generator=GENERATOR) + 1
    found = choose(quantized, read_kernel, [{"x": x.numpy()}])
    first, second = found["first.weight"], found["second.weight"]
    assert first is second  # both read the lower half
    assert first.low == 0  # all inputs lie above 1, but for the zeros around the map
    ends = 2 * x[:, :, 4:].amax((0, 2, 3)) / first.factor
    assert 0.45 * float(ends.max()) < first.high <= 1.01 * float(ends.max())
    patch = x[:, :, :3, :3]
    exact = (patch * KERNELS["first.weight"]).flatten(1).sum(1)
    stored = decode(first.stored(KERNELS["first.weight"])).reshape(6, 8, 3, 3)
    rounded = (first.rounded(patch, 1) * stored).flatten(1).sum(1)
    assert float((rounded - exact).norm()) < 0.03 * float(exact.norm())


def test_of_too_many_calls_some_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [loud(1, seed) for seed in range(12)]
    monkeypatch.setattr(activations, "MOST_BYTES", 5 * activation_bytes(layers()))
    seen: list[int] = []

    def counting(
        program: Program,
        read: Callable[[object], Tensor],
        samples: Sequence[Mapping[str, Tensor]],
        observe: Observe,
    ) -> list[dict[str, Tensor]]:
        seen.append(len(samples))
        return run_all(program, read, samples, observe)

    monkeypatch.setattr("exporter.calibrate.activations.run_all", counting)
    one, two = choose(layers(), read, calls), choose(layers(), read, calls)
    assert seen == [5, 5]
    assert one["first.weight"].high == two["first.weight"].high


def test_backends_share_what_was_chosen() -> None:
    """Once for a graph, however many backends ask."""
    asked: list[str] = []

    def calls(graph: str) -> list[dict[str, np.ndarray]]:
        asked.append(graph)
        return [loud(1)]

    rounded = rounder({"denoiser": layers(), "t5": layers("int8")}, read, calls)
    assert rounded("denoiser") is rounded("denoiser")
    assert rounded("t5").graph.nodes and asked == ["denoiser"]


def test_the_program_holds_the_rounding() -> None:
    """One node for layers that share an input, in front of them; what runs is rounded."""
    program, inputs = layers(), loud(2)
    chosen = choose(program, read, [inputs])
    rounded = round_inputs(program, chosen)
    nodes = [n for n in rounded.nodes() if rounding_node(n)]
    assert [len(n.users) for n in nodes] == [2, 1]
    x = torch.from_numpy(inputs["x"])

    def layer(x: Tensor, name: str) -> Tensor:
        stored = decode(encode(WEIGHTS[name] * chosen[name].factor, FORMATS["w8a8"]))
        return chosen[name].rounded(x) @ stored.T

    hidden = torch.sigmoid(layer(x, "first.weight") + layer(x, "second.weight"))
    found = run(rounded, read, {"x": x})["y"]
    torch.testing.assert_close(found, layer(hidden, "third.weight"), rtol=0, atol=1e-5)
    assert rounded.adjusted == () and rounded.formats == program.formats


def test_a_layer_without_a_range_is_int8_and_listed() -> None:
    program = layers()
    chosen = choose(program, read, [loud(2)])
    rounded = round_inputs(program, {n: r for n, r in chosen.items() if n != "third.weight"})
    assert rounded.formats["third.weight"].name == "int8"
    assert [(a.weight, a.asked, a.used) for a in rounded.adjusted] == [
        ("third.weight", "w8a8", "int8")
    ]


@pytest.mark.parametrize("bits", [8, 16])
def test_levels_are_those_of_onnxruntime(bits: int) -> None:
    """Bit for bit, halves to even; values beyond the ends become the ends."""
    rounding = ranging(-1.5, 4.0, torch.ones(3), bits)
    x = torch.linspace(-3, 6, 30_000).reshape(-1, 3)
    levels = np.rint(x.numpy() / np.float32(rounding.step)) + rounding.zero_point
    expected = (levels.clip(0, 2**bits - 1) - rounding.zero_point) * np.float32(rounding.step)
    assert np.array_equal(rounding.rounded(x).numpy(), expected.astype(np.float32))
    assert rounding.low == pytest.approx(-1.5, abs=rounding.step)
    assert rounding.high == pytest.approx(4.0, abs=rounding.step)


def test_other_formats_are_left_alone() -> None:
    assert choose(layers("int8"), read, [loud(1)]) == {}


def test_a_value_that_is_not_finite_is_named() -> None:
    inputs = loud(0)
    inputs["x"][0, 3, 3] = np.inf
    with pytest.raises(InputError, match=r"transformer: .* layer of 'first.weight' meets values"):
        choose(layers(), read, [inputs])


@pytest.fixture(params=["onnx", "openvino"])
def backend(request: pytest.FixtureRequest) -> Backend:
    found = backends.load(request.param)
    if backends.missing(needs(request.param)):
        pytest.skip(f"{request.param}: pip install '{found.to_build.install}'")
    return found


def emitted_values(
    backend: Backend,
    program: QuantizedProgram,
    read: Callable[[object], Tensor],
    folder: Path,
    inputs: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """What a backend computes with a program that holds its roundings."""
    emitted = backend.emit(program, read, folder, EmitOptions({}))
    found: dict[str, np.ndarray] = backend.open_graph(
        emitted.entry, emitted.session, SessionOptions("float32")
    )(inputs)
    return found


def test_a_rounding_is_what_backends_compute(backend: Backend, tmp_path: Path) -> None:
    program, inputs = layers(), loud(3)
    rounded = round_inputs(program, choose(program, read, [inputs]))
    found = emitted_values(backend, rounded, read, tmp_path, inputs)["y"]
    expected = run(rounded, read, {"x": torch.from_numpy(inputs["x"])})["y"].numpy()
    difference = np.abs(found - expected)
    assert np.quantile(difference, 0.99) < 1e-5  # a value between two levels may fall either way
    exact = run(program, read, {"x": torch.from_numpy(inputs["x"])})["y"].numpy()
    assert np.linalg.norm(found - exact) < 0.02 * np.linalg.norm(exact)


def test_16_bits_are_what_backends_compute(backend: Backend, tmp_path: Path) -> None:
    """No layer multiplies such codes: they are levels of float32."""
    program, inputs = layers(), loud(3)
    chosen = choose(program, read, [inputs])
    fine = {n: ranging(2 * r.low, 2 * r.high, r.factor, 16) for n, r in chosen.items()}
    rounded = round_inputs(program, fine)
    found = emitted_values(backend, rounded, read, tmp_path, inputs)["y"]
    expected = run(rounded, read, {"x": torch.from_numpy(inputs["x"])})["y"].numpy()
    assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected)
    coarse = run(round_inputs(program, chosen), read, {"x": torch.from_numpy(inputs["x"])})["y"]
    assert np.linalg.norm(coarse.numpy() - expected) > 1e-3 * np.linalg.norm(expected)


def test_a_layer_whose_range_was_not_chosen_is_refused(backend: Backend, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no range was chosen for the input of '\w+\.weight'"):
        backend.emit(layers(), read, tmp_path, EmitOptions({}))


class Convolutions(nn.Module):
    """Kernels of several sizes on one map: padded and not, with and without a bias, in steps."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(8, 6, (3, 2), padding=(1, 0))
        self.single = nn.Conv2d(8, 4, 1, bias=False)
        self.step = nn.Conv2d(8, 5, 3, stride=2)
        self.skip = nn.Conv2d(8, 4, 1, stride=2)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.wide(x), self.single(x), self.step(x), self.skip(x)


def test_a_rounded_convolution_is_what_backends_compute(backend: Backend, tmp_path: Path) -> None:
    with torch.device("meta"):
        module = Convolutions()
    values = {
        name: 0.1 * torch.randn(p.shape, generator=GENERATOR)
        for name, p in module.named_parameters()
    }
    shapes = {
        "wide": (1, 6, 10, 6),
        "single": (1, 4, 10, 7),
        "step": (1, 5, 4, 3),
        "skip": (1, 4, 5, 4),
    }
    inputs = (Port("x", (1, 8, 10, 7)),)
    outputs = tuple(Port(name, shape) for name, shape in shapes.items())
    graph = Graph("vae_decoder", "vae", module, inputs, outputs, {})
    program = quantize(
        trace(graph), lambda g, w, role: FORMATS["w8a8" if role == "conv" else "fp32"]
    )

    def read_value(source: object) -> Tensor:
        if isinstance(source, Constant):
            return torch.from_numpy(source.value)
        if isinstance(source, Part):
            return part_of(source, values)
        assert isinstance(source, Stored | Unrounded)
        return values[source.name if isinstance(source, Stored) else source.of.name]

    x = torch.randn(1, 8, 10, 7, generator=GENERATOR) + 0.5
    x[:, 3] *= 30
    chosen = choose(program, read_value, [{"x": x.numpy()}])
    rounding = chosen["wide.weight"]
    assert rounding.low < 0 < rounding.high and float(rounding.factor[3]) != 1
    rounded = round_inputs(program, chosen)
    found = emitted_values(backend, rounded, read_value, tmp_path, {"x": x.numpy()})
    expected = run(rounded, read_value, {"x": x})
    for name, value in expected.items():
        difference = np.abs(found[name] - value.numpy())
        assert np.quantile(difference, 0.9) < 1e-5 * float(value.abs().max()), name


def test_the_denoisers_layers_all_round(tiny: Checkpoint) -> None:
    graph = next(g for g in cut_graphs(tiny, SMALL) if g.name == "denoiser")
    program = quantize(trace(graph), load_scheme("int8-w8a8").format_of)
    asked = {name for name, form in program.formats.items() if form.name == "w8a8"}
    given = {
        port.name: torch.randn(port.shape, generator=GENERATOR).numpy() for port in program.inputs
    }
    found = choose(program, Weights(tiny).read, [given])
    assert {*found} == asked and len(asked) == 41
    for name, rounding in found.items():
        assert rounding.factor.shape == (program.stored()[name].shape[1],)

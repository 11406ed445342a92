"""Codes chosen for what a layer puts out: what each method promises, and inputs of every kind."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from exporter.build.model import token_counts
from exporter.build.reference import reference_player
from exporter.calibrate.codes import best_codes, damped, searched_grid
from exporter.calibrate.inputs import gather
from exporter.calibrate.layer_inputs import LayerInputs
from exporter.calibrate.store import Calibration, Provenance
from exporter.calibrate.trajectories import travel
from exporter.calibrate.weights import Weights, calibrated
from exporter.checkpoint.open import Checkpoint
from exporter.checkpoint.tokenizers import tokenizer_files
from exporter.errors import InputError
from exporter.network.assemble import cut_graphs
from exporter.network.graph import Graph
from exporter.package.manifest import Port, Schedule
from exporter.program.program import Program, Stored, linears
from exporter.program.run import run
from exporter.program.trace import trace
from exporter.quantize.formats import FORMATS, METHODS, Format
from exporter.quantize.nearest import decode, encode
from exporter.quantize.packing import narrowed
from exporter.quantize.program import Part, QuantizedProgram, quantize, unquantized
from tests.conftest import SIGMAS, SMALL

FORMS = [
    FORMATS["int8"],
    Format("int4", 32),
    Format("int4", 64, False),
    Format("int2", 16),
    Format("int2", 32, False),
]
BITS4 = Format("int4", 32)
EVERY = frozenset(METHODS)
NONE: frozenset[str] = frozenset()


def weight(seed: int = 0, rows: int = 24, columns: int = 128) -> Tensor:
    return 0.05 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def correlated(seed: int = 0, columns: int = 128, tokens: int = 1000) -> LayerInputs:
    """Inputs that a quarter as many causes make, with channels of unequal size and a mean."""
    generator = torch.Generator().manual_seed(seed)
    causes = torch.randn(tokens, columns // 4, generator=generator)
    mix = torch.randn(columns // 4, columns, generator=generator)
    sizes = torch.logspace(-1, 1, columns)[torch.randperm(columns, generator=generator)]
    noise = 0.3 * torch.randn(tokens, columns, generator=generator)
    return inputs_of((causes @ mix + noise + 2) * sizes)


def inputs_of(x: Tensor) -> LayerInputs:
    mean = x.mean(0, keepdim=True)
    away = x - mean
    return LayerInputs(mean, (away.T @ away / len(x))[None], len(x))


def chosen(values: Tensor, form: Format, inputs: LayerInputs, *methods: str) -> Tensor:
    """The weight that is stored, float64."""
    codes, grid = best_codes(values, form, inputs, frozenset(methods))
    assert codes.min() >= grid.low and codes.max() <= grid.high
    assert torch.equal(codes, codes.round())
    return grid.values(codes.reshape(*grid.scale.shape, -1), slice(None)).flatten(1)


def output_error(found: Tensor, values: Tensor, moment: Tensor) -> float:
    """tr((Q - W) C (Q - W)^T)."""
    away = found - values.double()
    return float(torch.einsum("ni,ij,nj->", away, moment.double(), away))


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_without_methods_codes_are_those_of_rounding_to_nearest(form: Format) -> None:
    """But for ties, which round to even here: within a thousandth of half a step."""
    values = weight()
    values[3, :64] = 0
    codes, grid = best_codes(values, form, correlated(), NONE)
    plain = encode(values, form)
    assert plain.scale is not None
    used = plain.values.reshape(*grid.scale.shape, -1).double()
    nothing = grid.scale == 0  # a channel of zeros has any scale
    torch.testing.assert_close(grid.scale[~nothing].float(), plain.scale[~nothing], rtol=0, atol=0)
    if plain.zero_point is not None:
        assert torch.equal(grid.zero_point.to(torch.uint8), plain.zero_point)
    elsewhere = codes.reshape(used.shape) != used
    steps = values.reshape(used.shape).double() / torch.where(nothing, 1.0, grid.scale)[..., None]
    tie = ((steps - steps.floor()) - 0.5).abs() < 5e-4
    assert not (elsewhere & ~tie).any()
    assert elsewhere.double().mean() < 0.01


def by_one_column_at_a_time(values: Tensor, form: Format, moment: Tensor) -> Tensor:
    """Frantar et al.: round a column, and move the others where the output misses it least."""
    plain = encode(values, form)
    assert plain.scale is not None
    width = values.shape[1] // plain.scale.shape[1]
    left, found = values.double().clone(), torch.empty_like(values, dtype=torch.float64)
    for column in range(values.shape[1]):
        inverse = torch.linalg.inv(moment[column:, column:])
        scale = plain.scale[:, column // width].double()
        zero = 0 if plain.zero_point is None else plain.zero_point[:, column // width].double()
        low = 0 if plain.zero_point is not None else -(2 ** (form.bits - 1))
        low = -127 if form.name == "int8" else low
        high = low + 2**form.bits - (2 if form.name == "int8" else 1)
        code = ((left[:, column] / scale).round() + zero).clamp(low, high)
        found[:, column] = (code - zero) * scale
        error = (left[:, column] - found[:, column]) / inverse[0, 0]
        left[:, column:] -= error[:, None] * inverse[0]
    return found


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_feedback_is_column_by_column(form: Format) -> None:
    values, inputs = weight(), correlated()
    moment = damped(inputs.second_moment().double())[0]
    expected = by_one_column_at_a_time(values, form, moment)
    found = chosen(values, form, inputs, "feedback")
    assert ((found - expected).abs() > 1e-9).double().mean() < 0.01


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_feedback_lowers_the_error_of_outputs(form: Format) -> None:
    """To a half of what rounding to nearest leaves at least, to a third where steps are small."""
    factor = 2 if form.bits == 2 else 3
    for seed in range(3):
        values, inputs = weight(seed), correlated(seed)
        moment = inputs.second_moment()[0]
        plain = output_error(chosen(values, form, inputs), values, moment)
        assert (
            factor * output_error(chosen(values, form, inputs, "feedback"), values, moment) < plain
        )


def test_nothing_is_fed_back_between_channels_without_correlation() -> None:
    values = weight()
    white = LayerInputs(torch.zeros(1, 128), torch.eye(128)[None], 1000)
    assert torch.equal(chosen(values, BITS4, white, "feedback"), chosen(values, BITS4, white))


def test_blocks_of_channels_do_not_hear_of_each_other() -> None:
    values, whole = weight(), correlated()
    blocks = torch.stack([whole.covariance[0, :64, :64], whole.covariance[0, 64:, 64:]])
    diagonal: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    joined = LayerInputs(whole.mean, diagonal[None], 1000)
    cut = LayerInputs(whole.mean, blocks, 1000)
    found, expected = (chosen(values, BITS4, i, "feedback", "bias") for i in (cut, joined))
    assert ((found - expected).abs() > 1e-9).double().mean() < 0.01
    assert ((found - chosen(values, BITS4, whole, "feedback", "bias")).abs() > 1e-9).any()


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_searched_scales_never_count_more(form: Format) -> None:
    """Error by each channel's importance: in no group larger, and clearly less in all."""
    for seed in range(3):
        values, inputs = weight(seed), correlated(seed)
        importance = torch.diagonal(damped(inputs.second_moment().double())[0])
        groups = (len(values), 128 // (form.group_size or 128), -1)

        def loss(*methods: str) -> Tensor:
            away = chosen(values, form, inputs, *methods) - values.double()  # noqa: B023
            return (away.square() * importance).reshape(groups).sum(2)  # noqa: B023

        found, plain = loss("scales"), loss()
        assert (found <= plain).all()
        assert found.sum() < 0.9 * plain.sum()


@pytest.mark.parametrize("form", [f for f in FORMS if f.is_grouped], ids=str)
def test_searched_scales_take_no_more_bytes(form: Format) -> None:
    """A weight whose scales fp16 holds keeps them there, however near they are to its smallest."""
    values = weight()
    smallest = encode(values, form).scale
    assert smallest is not None
    values *= 1.01 * 2**-14 / smallest.abs().min()
    for methods in (EVERY, NONE):
        _, grid = best_codes(values, form, correlated(), methods)
        assert narrowed(grid.scale.float().numpy()).dtype == "float16"
        assert grid.scale.abs().min() >= 2**-14
    values[0] *= 0.5
    _, grid = best_codes(values, form, correlated(), EVERY)
    assert narrowed(grid.scale.float().numpy()).dtype == "float32"


def test_the_mean_counts_unless_a_bias_takes_it() -> None:
    values = weight()
    far = LayerInputs(torch.full((1, 128), 30.0), torch.eye(128)[None], 1000)
    held, free = (chosen(values, BITS4, far, "feedback", *bias) for bias in (("bias",), ()))
    assert torch.equal(held, chosen(values, BITS4, far))
    away = [((q - values.double()) @ far.mean[0].double()).square().mean() for q in (held, free)]
    assert away[1] < 0.02 * away[0]


class Layers(torch.nn.Module):
    """Two layers of tokens, with a bias and without, and one of a vector for each of 4 steps."""

    def __init__(self) -> None:
        super().__init__()
        self.held, self.bare = torch.nn.Linear(128, 24), torch.nn.Linear(128, 24, bias=False)
        self.steps = torch.nn.Linear(64, 24)

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.held(x), self.bare(x), self.steps(t)


@pytest.fixture(scope="module")
def program() -> Program:
    with torch.device("meta"):
        module = Layers()
    ports = [Port("x", (1, 50, 128)), Port("t", (4, 64))]
    outputs = [Port("held", (1, 50, 24)), Port("bare", (1, 50, 24)), Port("steps", (4, 24))]
    return trace(Graph("denoiser", "transformer", module, tuple(ports), tuple(outputs), {}))


class Values(Weights):
    """Weights of its own, in place of a checkpoint's."""

    def __init__(self, checkpoint: Checkpoint, calibration: Calibration, factor: float = 1) -> None:
        super().__init__(checkpoint, calibration=calibration)
        self._factor = factor

    def _raw(self, source: Stored) -> Tensor:
        seed = sum(map(ord, source.name))
        values = 0.1 * torch.randn(source.shape, generator=torch.Generator().manual_seed(seed))
        values.view(-1)[0] *= self._factor
        return values


def samples(count: int = 6) -> list[dict[str, Tensor]]:
    """Tokens about a mean, and steps each about its own."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(128, 128, generator=generator) / 8
    means = torch.randn(4, 64, generator=generator)
    return [
        {
            "x": 1 + torch.randn(1, 50, 128, generator=generator) @ mix,
            "t": means + 0.3 * torch.randn(4, 64, generator=generator),
        }
        for _ in range(count)
    ]


def known(inputs: Mapping[Stored, LayerInputs], folder: Path) -> Calibration:
    """Statistics of some layers, without scalings."""
    files = {}
    for i, (source, found) in enumerate(inputs.items()):
        files[source.component, source.name] = name = f"{i}.safetensors"
        tokens = torch.tensor(found.tokens)
        tensors = {"mean": found.mean, "covariance": found.covariance, "tokens": tokens}
        save_file({k: v.contiguous() for k, v in tensors.items()}, folder / name)
    return Calibration(folder, Provenance("", "", "", 0, 0, ()), files, {}, "")


def measured(
    program: Program, weights: Weights, given: list[dict[str, Tensor]]
) -> dict[Stored, LayerInputs]:
    found: dict[Stored, LayerInputs] = {}
    calls = [{name: value.numpy() for name, value in sample.items()} for sample in given]
    gather(program, weights.read, calls, lambda ws, i: found.update(dict.fromkeys(ws, i)))
    return found


@pytest.fixture(scope="module")
def weights(program: Program, tiny: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Values:
    empty = known({}, Path())
    inputs = measured(program, Values(tiny, empty), samples())
    return Values(tiny, known(inputs, tmp_path_factory.mktemp("statistics")))


def means(program: Program, weights: Weights, given: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """By output, the mean over samples: of tokens one row, of few rows each its own."""
    found = [run(program, weights.read, sample) for sample in given]
    total = {name: torch.stack([f[name] for f in found]).double().mean(0) for name in found[0]}
    return {n: t.flatten(0, -2) if t.shape[-2] <= 8 else t.mean((0, 1)) for n, t in total.items()}


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("methods", [frozenset({"bias"}), EVERY], ids=["bias", "all"])
def test_mean_outputs_are_those_of_the_unquantized_layer(
    program: Program, weights: Values, form: Format, methods: frozenset[str]
) -> None:
    """By the quantized program itself, each row of few; not without a bias to take the change."""
    expected = means(unquantized(program), weights, samples())
    found = means(quantize(program, partial(only, form), methods), weights, samples())
    plain = means(quantize(program, partial(only, form)), weights, samples())
    assert found["steps"].shape == (4, 24)
    for name in ("held", "steps"):
        size = expected[name].abs().max()
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-5 * float(size))
        assert (plain[name] - expected[name]).abs().max() > 2e-4 * size
    assert (found["bare"] - expected["bare"]).abs().max() > 1e-5


def only(form: Format, graph: str, name: str, role: str) -> Format:
    """The format for layers, float32 for biases."""
    return form if role == "linear" else FORMATS["fp32"]


def parts(program: QuantizedProgram, name: str) -> Part:
    found = (s for s in program.tensors.values() if isinstance(s, Part) and s.of.name == name)
    return next(part for part in found if part.part == "values")


def test_a_layer_without_bias_counts_the_mean(program: Program, weights: Values) -> None:
    quantized = quantize(program, partial(only, BITS4), EVERY)
    assert parts(quantized, "held.weight").methods == EVERY
    bare = parts(quantized, "bare.weight")
    assert bare.methods == EVERY - {"bias"}
    assert weights.calibration is not None
    inputs = weights.calibration.layer(bare.of)
    assert inputs is not None
    codes, _ = best_codes(weights.read(bare.of), BITS4, inputs, EVERY - {"bias"})
    assert torch.equal(weights.read(bare).double(), codes)


def test_a_row_for_each_step_counts_its_bytes(program: Program) -> None:
    plain, held = (quantize(program, partial(only, BITS4), m) for m in (NONE, EVERY))
    assert held.stored_bytes() - plain.stored_bytes() == 4 * 3 * 24


def test_adaln_of_a_model_keeps_each_steps_mean(tiny: Checkpoint, tmp_path: Path) -> None:
    """Layers that meet the steps' vectors of real prompts: a row of the modulation each."""
    programs = {g.name: trace(g) for g in cut_graphs(tiny, SMALL)}
    plain = {name: unquantized(program) for name, program in programs.items()}
    encoders = {n: f.encoder(n) for n, f in tokenizer_files(tiny, token_counts(programs)).items()}
    player = reference_player(plain, Weights(tiny), Schedule("euler", SIGMAS), encoders)
    calls = travel(player, ["a red circle", "two stars", "a square"], 0).calls["conditioner"]
    given = [{k: torch.from_numpy(v) for k, v in call.items()} for call in calls]
    program = programs["conditioner"]
    weights = Weights(tiny, calibration=known(measured(program, Weights(tiny), given), tmp_path))

    def form(graph: str, name: str, role: str) -> Format:
        return BITS4 if role == "linear" and "norm" in name else FORMATS["fp32"]

    adaln = [w for w in linears(program).values() if "norm" in w.name]
    assert len(adaln) >= 6
    expected = means(plain["conditioner"], weights, given)["modulation"]
    found = means(quantize(program, form, EVERY), weights, given)["modulation"]
    rounded = means(quantize(program, form), weights, given)["modulation"]
    assert expected.shape[0] == 4
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (rounded - expected).abs().max() > 1e-2


def constant() -> LayerInputs:
    return LayerInputs(torch.full((1, 128), 3.0), torch.zeros(1, 128, 128), 10)


def dead() -> LayerInputs:
    inputs = correlated()
    alive = torch.arange(128) % 3 > 0
    covariance = inputs.covariance * alive[:, None] * alive
    return LayerInputs(inputs.mean * alive, covariance, inputs.tokens)


def one_direction() -> LayerInputs:
    direction = torch.randn(128, generator=torch.Generator().manual_seed(0))
    return LayerInputs(torch.zeros(1, 128), 1e6 * torch.outer(direction, direction)[None], 10)


def zeros() -> Tensor:
    return torch.zeros(24, 128)


def zero_groups() -> Tensor:
    values = weight()
    values[:, 32:64] = 0
    values[5] = 0
    return values


INPUTS = {"constant": constant, "dead": dead, "one direction": one_direction, "any": correlated}
WEIGHTS = {"zeros": zeros, "zero groups": zero_groups, "any": weight}


@pytest.mark.parametrize("values", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("inputs", INPUTS.values(), ids=INPUTS)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_degenerate_layers(form: Format, inputs: object, values: object) -> None:
    assert callable(inputs) and callable(values)
    plain, met = values(), inputs()
    encoded = calibrated(plain, form, met, EVERY)
    found = decode(encoded)
    assert found.isfinite().all() and encoded.mean_change is not None
    assert encoded.mean_change.isfinite().all()
    change = met.mean.double() @ (found - plain).double().T
    torch.testing.assert_close(encoded.mean_change.double(), change, rtol=0, atol=1e-4)
    assert (found[plain.abs().amax(1) == 0] == 0).all()
    largest = plain.abs().max()
    assert (found - plain).abs().max() <= 2.3 * largest


@pytest.mark.parametrize("form", [FORMATS["int8"], BITS4], ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite(
    program: Program, weights: Values, tiny: Checkpoint, form: Format, bad: float
) -> None:
    assert weights.calibration is not None
    damaged = Values(tiny, weights.calibration, bad)
    quantized = quantize(program, partial(only, form), EVERY)
    message = f"transformer: tensor '.*weight' has a value that is not finite; .* as {form}$"
    with pytest.raises(InputError, match=message):
        run(quantized, damaged.read, samples()[0])


@pytest.mark.parametrize("form", [FORMATS["int8"], Format("int4", 64), Format("int2", 64)], ids=str)
def test_the_same_codes_on_one_core_and_on_two(form: Format) -> None:
    values, inputs = weight(0, 96, 512), correlated(0, 512, 2000)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(calibrated(values, form, inputs, EVERY))
    finally:
        torch.set_num_threads(before)
    one, two = found
    assert one.scale is not None and two.scale is not None
    assert torch.equal(one.values, two.values) and torch.equal(one.scale, two.scale)


def test_what_a_candidate_changes(program: Program, weights: Values) -> None:
    """Of a weight and of its layer's mean output; nothing in float32."""
    (source,) = (s for s in program.tensors.values() if getattr(s, "name", "") == "held.weight")
    assert isinstance(source, Stored) and weights.calibration is not None
    inputs = weights.calibration.layer(source)
    change = weights.change(source, BITS4, EVERY)
    assert inputs is not None and change.mean is not None
    expected = decode(calibrated(weights.read(source), BITS4, inputs, EVERY))
    assert torch.equal(change.weight, expected - weights.read(source))
    torch.testing.assert_close(change.mean, inputs.mean @ change.weight.T, atol=1e-5, rtol=0)
    kept = weights.change(source, FORMATS["fp32"], EVERY)
    assert kept.mean is None and not kept.weight.any()
    half = weights.change(source, FORMATS["fp16"], EVERY)
    assert torch.equal(half.weight, weights.read(source).half().float() - weights.read(source))


def test_searching_is_by_groups() -> None:
    """What is best for one group does not hang on another."""
    groups = weight().reshape(24, 4, 32).double()
    importance = torch.logspace(-2, 2, 128, dtype=torch.float64).reshape(1, 4, 32)
    whole = searched_grid(groups, BITS4, importance)
    for g in range(4):
        part = searched_grid(groups[:, g : g + 1], BITS4, importance[:, g : g + 1])
        assert torch.equal(whole.scale[:, g : g + 1], part.scale)

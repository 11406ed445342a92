"""What layers meet: means and covariances computed directly, and the calls of whole pictures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, fx

from exporter.build.model import token_counts
from exporter.build.reference import reference_player
from exporter.calibrate import inputs
from exporter.calibrate.inputs import gather
from exporter.calibrate.layer_inputs import LayerInputs
from exporter.calibrate.trajectories import Trajectories, call_counts, travel
from exporter.calibrate.weights import Weights
from exporter.checkpoint.open import Checkpoint
from exporter.checkpoint.tokenizers import tokenizer_files
from exporter.drawing.loop import Image, Player, Request, generate
from exporter.errors import InputError
from exporter.network.assemble import cut_graphs
from exporter.network.graph import Graph
from exporter.package.manifest import Port, Schedule
from exporter.program.program import Program, Stored, linears
from exporter.program.run import run, run_all
from exporter.program.trace import trace
from exporter.quantize.program import unquantized
from tests.conftest import SIGMAS, SMALL, random_inputs

SHAPES = {"q.weight": (24, 40), "q.bias": (24,), "k.weight": (24, 40)}
PROMPTS = ("a red circle", "two blue stars", "a red circle on white")


class Layers(torch.nn.Module):
    """Tokens that two layers read and a third one after them, and a vector for each of 4 steps."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = torch.nn.Linear(40, 24), torch.nn.Linear(40, 24, bias=False)
        self.out, self.steps = torch.nn.Linear(24, 40), torch.nn.Linear(12, 40)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        found: Tensor = self.out(torch.tanh(self.q(x) + self.k(x))) + self.steps(t).sum(0)
        return found


def layers() -> Program:
    with torch.device("meta"):
        module = Layers()
    ports = Port("x", (1, 30, 40)), Port("t", (4, 12)), Port("y", (1, 30, 40))
    return trace(Graph("layers", "transformer", module, ports[:2], ports[2:], {}))


def value(source: object) -> Tensor:
    """A value for each tensor, decided by its name."""
    assert isinstance(source, Stored)
    generator = torch.Generator().manual_seed(sum(map(ord, source.name)))
    return torch.randn(source.shape, generator=generator) / math.sqrt(source.shape[-1])


def calls(count: int = 5) -> list[dict[str, np.ndarray]]:
    """Tokens with a mean and correlated channels; each step's vector about a mean of its own."""
    draw = np.random.default_rng(0)
    mix, centre = draw.normal(size=(40, 40)), 10 * draw.normal(size=40)
    steps = 10 * draw.normal(size=(4, 12))
    return [
        {
            "x": (centre + draw.normal(size=(1, 30, 40)) @ mix).astype(np.float32),
            "t": (steps + draw.normal(size=(4, 12))).astype(np.float32),
        }
        for _ in range(count)
    ]


def gathered(
    program: Program, given: Sequence[Mapping[str, np.ndarray]]
) -> list[tuple[list[str], LayerInputs]]:
    found = []
    gather(program, value, given, lambda ws, i: found.append(([w.name for w in ws], i)))
    return found


def test_layers_that_read_the_same_are_measured_once() -> None:
    found = gathered(layers(), calls())
    assert [names for names, _ in found] == [
        ["q.weight", "k.weight"],
        ["out.weight"],
        ["steps.weight"],
    ]


def test_means_and_covariances_are_those_of_all_inputs() -> None:
    given = calls()
    (_, x), (_, hidden), (_, _) = gathered(layers(), given)
    rows = np.concatenate([c["x"][0] for c in given]).astype(np.float64)
    weights = {n: value(Stored("transformer", n, s)).double().numpy() for n, s in SHAPES.items()}
    inner = np.tanh(rows @ weights["q.weight"].T + weights["q.bias"] + rows @ weights["k.weight"].T)
    for seen, expected in ((x, rows), (hidden, inner)):
        assert seen.tokens == len(expected) == 150
        assert seen.mean.dtype == seen.covariance.dtype == torch.float32
        np.testing.assert_allclose(seen.mean, expected.mean(0, keepdims=True), atol=1e-4)
        covariance = np.cov(expected.T, bias=True)[None]
        np.testing.assert_allclose(seen.covariance, covariance, atol=1e-4 * covariance.max())
        moment = (expected.T @ expected / len(expected))[None]
        np.testing.assert_allclose(seen.second_moment(), moment, atol=1e-4 * moment.max())


def test_few_rows_have_a_mean_each() -> None:
    given = calls()
    *_, (_, steps) = gathered(layers(), given)
    rows = np.stack([c["t"] for c in given]).astype(np.float64)  # (calls, 4, 12)
    assert steps.tokens == 20
    np.testing.assert_allclose(steps.mean, rows.mean(0), atol=1e-4)
    away = (rows - rows.mean(0)).reshape(-1, 12)
    np.testing.assert_allclose(steps.covariance[0], away.T @ away / 20, atol=1e-4)
    moment = np.einsum("crk,crl->kl", rows, rows) / 20
    np.testing.assert_allclose(steps.second_moment()[0], moment, rtol=1e-4, atol=1e-3)


def test_channels_in_other_units() -> None:
    (_, plain), *_ = gathered(layers(), calls())
    factor = torch.linspace(0.5, 2, 40)
    found = plain.scaled(factor)
    torch.testing.assert_close(found.mean, plain.mean * factor)
    torch.testing.assert_close(
        found.second_moment()[0], torch.diag(factor) @ plain.second_moment()[0] @ torch.diag(factor)
    )


@pytest.mark.parametrize(("most", "blocks"), [(40, 1), (39, 2), (20, 2), (13, 4), (1, 40)])
def test_wide_layers_have_diagonal_blocks(
    monkeypatch: pytest.MonkeyPatch, most: int, blocks: int
) -> None:
    """The fewest equal ones; CLIP's 5120 channels are four of 1280."""
    (_, whole), *_ = gathered(layers(), calls())
    monkeypatch.setattr(inputs, "MOST_WIDTH", most)
    (_, cut), *_ = gathered(layers(), calls())
    assert cut.covariance.shape == (blocks, 40 // blocks, 40 // blocks)
    expected = torch.block_diag(*cut.covariance)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(torch.where(expected != 0, whole.covariance[0], 0.0), expected)
    torch.testing.assert_close(whole.mean, cut.mean)


@pytest.mark.parametrize(("width", "blocks"), [(1536, 1), (2048, 1), (5120, 4), (6144, 3)])
def test_blocks_of_true_widths(width: int, blocks: int) -> None:
    assert inputs._blocks(width) == blocks


def test_values_that_are_not_finite_name_the_layer() -> None:
    given = calls()
    given[3]["x"][0, 7, 2] = np.inf
    with pytest.raises(InputError, match=r"transformer: .* the layer of 'q.weight' meets values"):
        gathered(layers(), given)


@pytest.fixture(scope="module")
def programs(tiny: Checkpoint) -> dict[str, Program]:
    return {g.name: trace(g) for g in cut_graphs(tiny, SMALL)}


def test_every_linear_layer_of_a_model_is_measured(
    programs: dict[str, Program], tiny: Checkpoint
) -> None:
    """Each weight once, with inputs of its width."""
    for name in ("clip_l", "t5", "conditioner", "denoiser"):
        program, found = programs[name], list[Stored]()

        def keep(
            weights: Sequence[Stored], inputs: LayerInputs, found: list[Stored] = found
        ) -> None:
            assert all(w.shape[1] == inputs.mean.shape[1] for w in weights)
            found.extend(weights)

        given = {name: v.numpy() for name, v in random_inputs(program).items()}
        gather(program, Weights(tiny).read, [given], keep)
        assert Counter(found) == Counter(linears(program).values())
        assert len(found) == sum(n.target == torch.ops.aten.linear.default for n in program.nodes())


def test_samples_side_by_side_equal_samples_in_turn(
    programs: dict[str, Program], tiny: Checkpoint
) -> None:
    program, weights, read = programs["denoiser"], Weights(tiny), list[object]()
    first = random_inputs(program)
    samples = [{n: scale * v for n, v in first.items()} for scale in (1.0, 0.5, -2.0)]
    seen: list[fx.Node] = []

    def once(source: object) -> Tensor:
        read.append(source)
        return weights.read(source)

    found = run_all(program, once, samples, lambda node, _: seen.append(node))
    assert Counter(map(id, read)) == Counter(map(id, program.tensors.values()))
    assert seen == [node for node in program.nodes() for _ in samples]
    for sample, outputs in zip(samples, found, strict=True):
        expected = run(program, weights.read, sample)
        assert outputs.keys() == expected.keys()
        assert all(torch.equal(outputs[port], expected[port]) for port in expected)


@pytest.fixture(scope="module")
def player(programs: dict[str, Program], tiny: Checkpoint) -> Player:
    encoders = {n: f.encoder(n) for n, f in tokenizer_files(tiny, token_counts(programs)).items()}
    plain = {name: unquantized(program) for name, program in programs.items()}
    return reference_player(plain, Weights(tiny), Schedule("euler", SIGMAS), encoders)


@pytest.fixture(scope="module")
def trajectories(player: Player) -> Trajectories:
    return travel(player, PROMPTS, 5)


def test_every_call_on_the_way_to_the_latents_is_kept(trajectories: Trajectories) -> None:
    found = {name: len(given) for name, given in trajectories.calls.items()}
    rounded = {"denoiser": 12, "vae_decoder": 3}
    assert found == {"clip_l": 3, "clip_g": 3, "t5": 3, "conditioner": 3, **rounded}
    assert call_counts(3, Schedule("euler", SIGMAS)) == rounded
    for name, given in trajectories.calls.items():
        assert len({tuple(c) for c in given}) == 1, name
    for call, latent in zip(trajectories.calls["vae_decoder"], trajectories.latents, strict=True):
        assert call["latent"] is latent
    steps = trajectories.calls["denoiser"]
    for prompt in range(3):  # prompt by prompt: the context stays, the latent moves
        own = steps[4 * prompt : 4 * prompt + 4]
        assert all(c["context"] is own[0]["context"] for c in own)
        assert len({c["latent"].tobytes() for c in own}) == 4


def test_the_latents_are_those_of_the_pictures(player: Player, trajectories: Trajectories) -> None:
    requests = [Request(prompt, 5 + i) for i, prompt in enumerate(PROMPTS)]
    images = [e for e in generate(player, requests) if isinstance(e, Image)]
    assert len(trajectories.latents) == 3
    for image, latent in zip(images, trajectories.latents, strict=True):
        np.testing.assert_array_equal(image.latent, latent)

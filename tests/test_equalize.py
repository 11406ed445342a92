"""Equalization leaves the model as it is, finds every place it may act, and lowers errors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx

from exporter.calibrate import equalize
from exporter.calibrate.codes import damped
from exporter.calibrate.equalize import best_factors, find_sites, fold
from exporter.calibrate.layer_inputs import LayerInputs
from exporter.calibrate.weights import Weights
from exporter.checkpoint.open import Checkpoint
from exporter.network import conditioner, denoiser
from exporter.network.assemble import cut_graphs
from exporter.network.cut import Cut
from exporter.package.measures import relative_error
from exporter.program.program import Program, Stored
from exporter.program.run import run
from exporter.program.trace import trace
from exporter.quantize.formats import Format, fitting_format
from exporter.quantize.nearest import decode, encode
from exporter.synth import presets
from tests.conftest import SIGMAS, random_inputs

ATEN = torch.ops.aten
CUT = Cut(SIGMAS, 64, 64, t5=True, t5_tokens=24)
NO_T5 = replace(CUT, t5=False)
GRAPHS = ("conditioner", "denoiser")
INT4 = Format("int4", group_size=64)
Members = tuple[list[tuple[str, int]], list[str]]


def traced(checkpoint: Checkpoint, cut: Cut) -> dict[str, Program]:
    return {g.name: trace(g) for g in cut_graphs(checkpoint, cut) if g.name in GRAPHS}


@pytest.fixture(scope="module")
def programs(shapes: Checkpoint) -> dict[str, Program]:
    return traced(shapes, CUT)


def members(programs: Mapping[str, Program]) -> list[Members]:
    """Of each site, writers with their first row, and readers, without ``.weight``."""
    return [
        (
            [(w.layer.weight.name.removesuffix(".weight"), w.start) for w in site.writers],
            [reader.weight.name.removesuffix(".weight") for reader in site.readers],
        )
        for site in find_sites(programs)
    ]


def expected(layers: int, dual: int, width: int) -> list[Members]:
    """What ``members`` should be when the first ``dual`` layers attend twice."""

    def norm(name: str, scale: int, shift: int, *readers: str) -> Members:
        return [(f"{name}.linear", scale * width), (f"{name}.linear", shift * width)], [*readers]

    found = []
    for i in range(layers):
        block, last = f"transformer_blocks.{i}", i == layers - 1
        attn, attn2 = f"{block}.attn", f"{block}.attn2"
        text = (0, 1) if last else (1, 0)
        found.append(
            norm(f"{block}.norm1_context", *text, *(f"{attn}.add_{x}_proj" for x in "qkv"))
        )
        found.append(norm(f"{block}.norm1", 1, 0, *(f"{attn}.to_{x}" for x in "qkv")))
        if i < dual:
            found.append(norm(f"{block}.norm1", 7, 6, *(f"{attn2}.to_{x}" for x in "qkv")))
        values = [(f"{attn}.to_v", 0), (f"{attn}.add_v_proj", 0)]
        found.append((values, [f"{attn}.to_out.0", *([] if last else [f"{attn}.to_add_out"])]))
        if i < dual:
            found.append(([(f"{attn2}.to_v", 0)], [f"{attn2}.to_out.0"]))
        found.append(norm(f"{block}.norm1", 4, 3, f"{block}.ff.net.0.proj"))
        if not last:
            found.append(norm(f"{block}.norm1_context", 4, 3, f"{block}.ff_context.net.0.proj"))
    return [*found, norm("norm_out", 0, 1, "proj_out")]


def test_sites_of_shapes_flash(programs: dict[str, Program]) -> None:
    """Six layers, of which two attend twice: 34 sites, and scales are known by their 1."""
    assert members(programs) == expected(6, 2, 128)
    assert len(find_sites(programs)) == 34
    for site in find_sites(programs):
        for writer, added in zip(site.writers, (1.0, 0.0), strict=False):
            if writer.offset is not None:
                assert set(writer.offset[writer.start :][:128].tolist()) == {added}


def test_sites_of_full_width_without_t5() -> None:
    """The null token's extra channel of q and k is no obstacle."""
    preset = presets.find_preset("sd3.5-flash-mini")
    graphs = [
        denoiser.cut(preset.transformer, NO_T5),
        conditioner.cut(preset.transformer, preset.clip_l, preset.clip_g, NO_T5),
    ]
    assert members({g.name: trace(g) for g in graphs}) == expected(2, 1, 1536)


@pytest.mark.parametrize("cut", [CUT, NO_T5], ids=["T5", "null tokens"])
def test_model_stays_as_it_is(shapes: Checkpoint, cut: Cut) -> None:
    """Random factors at every site change no velocity and no context, in float64."""
    programs, weights = traced(shapes, cut), Weights(shapes, torch.float64)
    torch.manual_seed(0)
    sites = find_sites(programs)
    scalings = fold([(s, torch.randn(128, dtype=torch.float64).exp()) for s in sites])

    def read(source: object) -> Tensor:
        scaling = scalings.get(source) if isinstance(source, Stored) else None
        return scaling.apply(weights.read(source)) if scaling else weights.read(source)

    def outputs(reader: Callable[[object], Tensor]) -> list[Tensor]:
        given = {k: v.double() for k, v in random_inputs(programs["conditioner"]).items()}
        made = run(programs["conditioner"], reader, given)
        latent = random_inputs(programs["denoiser"])["latent"].double()
        inputs = [
            {"latent": latent, "context": made["context"], "modulation": row[None]}
            for row in made["modulation"]
        ]
        steps = [run(programs["denoiser"], reader, step)["velocity"] for step in inputs]
        return [made["modulation"], made["context"], *steps]

    plain, scaled = outputs(weights.read), outputs(read)
    assert relative_error(scaled[0].numpy(), plain[0].numpy()) > 0.1
    for found, wanted in zip(scaled[1:], plain[1:], strict=True):
        assert found.dtype == torch.float64
        assert relative_error(found.numpy(), wanted.numpy()) <= 1e-9


def changed(program: Program, change: Callable[[fx.Graph, dict[str, fx.Node]], None]) -> Program:
    """A copy of a program after ``change``, which gets the copied graph and its nodes by name."""
    graph = copy.deepcopy(program.graph)
    change(graph, {node.name: node for node in graph.nodes})
    return replace(program, graph=graph)


def with_reader(name: str) -> Callable[[fx.Graph, dict[str, fx.Node]], None]:
    """Let a layer that is not linear use a value too."""

    def change(graph: fx.Graph, nodes: dict[str, fx.Node]) -> None:
        with graph.inserting_before(next(iter(reversed(graph.nodes)))):
            graph.call_function(ATEN.relu.default, (nodes[name],))

    return change


NORM = "p_transformer_blocks_0_norm1_linear"
ATTN = "transformer_blocks.0.attn"
LOST = {  # what another layer uses, in which graph: first readers of the sites that go with it
    "layer_norm_1": ("denoiser", [f"{ATTN}.to_q"]),
    "getitem_1": ("denoiser", [f"{ATTN}.to_q"]),
    "linear_2": ("denoiser", [f"{ATTN}.to_out.0"]),
    "cat_2": ("denoiser", [f"{ATTN}.to_out.0"]),
    "attention": ("denoiser", [f"{ATTN}.to_out.0"]),
    "slice_1": ("denoiser", [f"{ATTN}.to_out.0"]),
    "p_transformer_blocks_0_attn_to_v_weight": ("denoiser", [f"{ATTN}.to_q", f"{ATTN}.to_out.0"]),
    "p_transformer_blocks_0_attn_to_v_bias": ("denoiser", [f"{ATTN}.to_q", f"{ATTN}.to_out.0"]),
    "linear_5": (
        "conditioner",
        [f"{ATTN}.to_q", f"{ATTN}2.to_q", "transformer_blocks.0.ff.net.0.proj"],
    ),
}


@pytest.mark.parametrize("used", LOST)
def test_other_users_keep_their_units(programs: dict[str, Program], used: str) -> None:
    """Where something else than a linear layer reads a value, its channels are left alone."""
    graph, lost = LOST[used]
    program = changed(programs[graph], with_reader(used))
    found = members({**programs, graph: program})
    assert found == [site for site in members(programs) if site[1][0] not in lost]
    assert len(members(programs)) - len(found) == len(lost)


def test_operators_that_mix_channels(programs: dict[str, Program]) -> None:
    """A slice of channels is not a slice of tokens; a norm by other vectors is no site."""

    def slice_channels(graph: fx.Graph, nodes: dict[str, fx.Node]) -> None:
        nodes["slice_1"].args = (nodes["attention"], 2, 0, 128)

    def same_vector_twice(graph: fx.Graph, nodes: dict[str, fx.Node]) -> None:
        norm = nodes["layer_norm_1"]
        norm.args = (*norm.args[:2], nodes["getitem"], *norm.args[3:])

    for change, lost in ((slice_channels, "to_out.0"), (same_vector_twice, "to_q")):
        found = members({**programs, "denoiser": changed(programs["denoiser"], change)})
        assert found == [s for s in members(programs) if s[1][0] != f"{ATTN}.{lost}"]


def layer(width: int, correlated: bool = True) -> tuple[Tensor, LayerInputs]:
    """A weight (96, K) and its inputs, with outliers in a few channels of each."""
    torch.manual_seed(1)
    mixing = torch.randn(width, width) / width**0.5 if correlated else torch.zeros(width, width)
    sizes, heights = torch.ones(width), torch.ones(width)
    sizes[::29], heights[7::31] = 20.0, 20.0
    covariance = (mixing @ mixing.T + torch.eye(width)) * sizes * sizes[:, None]
    return torch.randn(96, width) * heights, LayerInputs(torch.zeros(1, width), covariance[None], 9)


def output_error(weight: Tensor, inputs: LayerInputs, factors: Tensor, form: Format) -> float:
    """Mean square of what rounding to nearest of weight * factors changes in the layer's output."""
    scaled = (weight * factors).float()
    change = (
        decode(encode(scaled, fitting_format(form, weight.shape))) - scaled
    ).double() / factors
    return float(torch.einsum("ni,bij,nj->", change, inputs.covariance.double(), change))


def test_outliers_cost_less() -> None:
    """A twentieth of the error where channels differ 20-fold, in inputs and in weights."""
    weight, inputs = layer(256)
    factors = best_factors([weight], [inputs], INT4)
    before = output_error(weight, inputs, torch.ones(256), INT4)
    assert output_error(weight, inputs, factors, INT4) < before / 20
    assert factors[7] < 0.5 * factors[1] < 0.5 * 0.5 * factors[29]
    geometric = factors.log().reshape(4, 64).mean(1)
    torch.testing.assert_close(geometric, torch.zeros_like(geometric), atol=0.05, rtol=0)


@pytest.mark.parametrize(
    "form", [INT4, Format("int2", 32), Format("int4", 64, False), Format("int8")]
)
@pytest.mark.parametrize("width", [128, 48, 40])
def test_no_error_grows(form: Format, width: int) -> None:
    """Of independent channels, rounding to nearest never loses more; 48 gets groups of 16."""
    weight, inputs = layer(width, correlated=False)
    noisy = replace(inputs, covariance=damped(inputs.covariance))
    for rows in (weight, weight[:1], torch.zeros_like(weight)):
        factors = best_factors([rows], [inputs], form)
        assert output_error(rows, noisy, factors, form) <= output_error(
            rows, noisy, torch.ones(width), form
        )


def test_silent_channels() -> None:
    """Inputs that never change, dead channels and dead weights give finite factors."""
    weight, inputs = layer(64)
    weight[:, 3] = 0
    inputs.covariance[:, 5], inputs.covariance[:, :, 5] = 0, 0
    for known in (inputs, replace(inputs, covariance=torch.zeros(1, 64, 64))):
        factors = best_factors([weight], [known], INT4)
        assert ((factors >= 2**-6) & (factors <= 2**6)).all()


def test_scalings_of_the_model(shapes: Checkpoint, programs: dict[str, Program]) -> None:
    """Sites without statistics are left out; to_v is scaled on both sides; the rest keep bits."""
    weights = Weights(shapes)
    inputs = layer(128)[1]

    def known(weight: Stored) -> LayerInputs | None:
        return inputs if weight.name.startswith("transformer_blocks.0.attn.") else None

    scalings = equalize.equalize(programs, weights.read, known)
    by_name = {source.name: scaling for source, scaling in scalings.items()}
    names = {f"{ATTN}.{x}" for x in ("to_q", "to_k", "to_v", "to_out.0", "to_add_out")}
    names |= {f"{ATTN}.add_{x}_proj" for x in "qkv"}
    names |= {f"transformer_blocks.0.{x}.linear" for x in ("norm1", "norm1_context")}
    biases = {f"{n}.bias" for n in names if "norm1" in n or "_v" in n}
    assert set(by_name) == {f"{n}.weight" for n in names} | biases
    query, value, out = (by_name[f"{ATTN}.{x}.weight"] for x in ("to_q", "to_v", "to_out.0"))
    s, t = query.columns, out.columns
    assert s is not None and t is not None and query.rows is None and out.rows is None
    assert value.rows is not None and value.columns is not None
    assert torch.equal(value.columns, s) and torch.equal(value.rows, 1 / t)

    name = "transformer_blocks.0.norm1.linear.bias"
    (source,) = (s for s in scalings if s.name == name)
    before, after = weights.read(source), by_name[name].apply(weights.read(source))
    torch.testing.assert_close((after[:128] * s).float(), before[:128])
    torch.testing.assert_close(((after[128:256] + 1) * s).float(), before[128:256] + 1)
    assert torch.equal(after[256:], before[256:])
    assert after.dtype == torch.float32


def test_file(tmp_path: Path, programs: dict[str, Program]) -> None:
    """What is read is what was written, tensor by tensor."""
    scalings = fold([(s, torch.rand(128, dtype=torch.float64) + 1) for s in find_sites(programs)])
    equalize.save_scalings(scalings, tmp_path / "scalings")
    found = equalize.load_scalings(tmp_path / "scalings")
    assert set(found) == {(s.component, s.name) for s in scalings}
    for source, scaling in scalings.items():
        again = found[source.component, source.name]
        for part in ("rows", "columns", "offset"):
            one, other = getattr(scaling, part), getattr(again, part)
            assert (one is None and other is None) or torch.equal(one, other)

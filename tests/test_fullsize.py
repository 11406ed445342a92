"""The full-size model, traced from its shapes alone: no weights exist and none are needed here."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from exporter.network import clip, conditioner, denoiser, t5, vae
from exporter.network.cut import Cut
from exporter.network.graph import Graph
from exporter.network.strips import Doubling
from exporter.program.differentiate import SEGMENT_BYTES, kept_bytes, segments
from exporter.program.program import Program, Stored
from exporter.program.trace import trace
from exporter.quantize.program import quantize
from exporter.quantize.schemes import load_scheme
from exporter.recipe.recipe import read_recipe
from exporter.synth.presets import FLASH
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def cut() -> Cut:
    return read_recipe(Path(ROOT / "recipes" / "sd3.5-flash.toml")).cut


def mmdit(cut: Cut) -> tuple[Graph, Graph]:
    return (
        denoiser.cut(FLASH.transformer, cut),
        conditioner.cut(FLASH.transformer, FLASH.clip_l, FLASH.clip_g, cut),
    )


def parameters(program: Program) -> dict[str, int]:
    """How many values the checkpoint stores of each tensor; of a crop, those that are read."""
    sources = [s for s in program.tensors.values() if isinstance(s, Stored)]
    return {
        s.name: math.prod(
            s.derivation.stored_shape(s.shape) if isinstance(s.derivation, Doubling) else s.shape
        )
        for s in sources
    }


def test_mmdit_is_split_without_a_weight_lost(cut: Cut) -> None:
    """Published count: 2,243,171,520 weights, of which 762.5 M are adaLN inside the blocks."""
    core, once = (trace(graph) for graph in mmdit(cut))
    per_step, per_prompt = parameters(core), parameters(once)
    table = per_step.pop("pos_embed.pos_embed")
    assert table == (512 // 16) ** 2 * 1536  # cropped from 384 x 384 x 1536
    assert not set(per_step) & set(per_prompt)
    assert sum(per_step.values()) + sum(per_prompt.values()) == 2_243_171_520
    adaln = sum(n for name, n in per_prompt.items() if ".norm1" in name)
    assert adaln == 762_548_736
    assert (
        max(len(n.meta["val"].shape) for n in core.nodes() if hasattr(n.meta["val"], "shape")) <= 5
    )


def test_int4_mmdit_is_small(cut: Cut) -> None:
    """Codes and scales of both MMDiT graphs: under 1.3 GB."""
    total = 0
    for graph in mmdit(cut):
        program = quantize(trace(graph), load_scheme("int4").format_of)
        assert program.adjusted == ()  # every width is a multiple of the group
        stored = {s.of.name: s.of for s in program.tensors.values() if hasattr(s, "of")}
        total += sum(program.formats[n].stored_bytes(s.shape) for n, s in stored.items())
    assert total < 1.3e9


@pytest.mark.parametrize("name", ["clip_g", "conditioner", "denoiser"])
def test_sensitivities_are_measured_in_bounded_memory(cut: Cut, name: str) -> None:
    """Few tokens make small values beside large weights: what is held is little all the same."""
    core, once = mmdit(cut)
    graph = {
        "clip_g": clip.cut("clip_g", "text_encoder_2", FLASH.clip_g), "conditioner": once,
        "denoiser": core,
    }[name]  # fmt: skip
    program = trace(graph)
    tables = [0, *(n for source, n in parameters(program).items() if "embed" in source)]
    for part in segments(program):
        tensors = {n for node in part.nodes for n in node.all_input_nodes}
        read = sum(n.meta["val"].numel() for n in tensors if n.name in program.tensors)
        assert 8 * read <= max(SEGMENT_BYTES, 8 * max(tables))
    assert kept_bytes(program) < 1 << 30


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        (clip.cut("clip_l", "text_encoder", FLASH.clip_l), 123_650_304),
        (clip.cut("clip_g", "text_encoder_2", FLASH.clip_g), 694_659_840),
        (t5.cut(FLASH.t5, 256), 4_762_310_656),
        (vae.cut_decoder(FLASH.vae, Cut((1.0, 0.0), 512, 512)), 49_545_475),
        (vae.cut_encoder(FLASH.vae, Cut((1.0, 0.0), 512, 512)), 34_274_208),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_parameter_counts(graph: Graph, expected: int) -> None:
    assert sum(parameters(trace(graph)).values()) == expected

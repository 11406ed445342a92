"""Plans: a file that a person edits, the command that makes one, the packages that it decides."""

from __future__ import annotations

import json
import math
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.fidelity.graphs import constant_bytes
from exporter import backends
from exporter.build import model as model_module
from exporter.build.model import Model, trace_model
from exporter.build.pipeline import Built, build
from exporter.calibrate.store import Calibration as Statistics
from exporter.calibrate.store import open_statistics
from exporter.calibrate.weights import Weights
from exporter.checkpoint.open import Checkpoint
from exporter.errors import InputError
from exporter.network.assemble import cut_graphs
from exporter.package.manifest import Manifest
from exporter.package.measures import relative_error, snr_db
from exporter.package.names import MMDIT
from exporter.plan import road, search
from exporter.plan.allocate import Candidate, Choice
from exporter.predict.graph import run_bytes
from exporter.program.program import Program
from exporter.program.run import run
from exporter.program.trace import trace
from exporter.progress import Progress
from exporter.quantize.formats import METHODS, Format, Scheme, parse_format
from exporter.quantize.program import NEAREST, QuantizedProgram, quantize, quantize_all
from exporter.quantize.schemes import load_scheme
from exporter.quantize.split import split
from exporter.recipe.plan import is_plan, read_plan, scheme_of, write_plan
from exporter.recipe.recipe import DEFAULT_BACKENDS, Recipe, read_recipe
from exporter.runtime.package import open_package
from tests.conftest import SHAPES, SMALL, needs
from tests.test_cli import fourstep, mistake

RECIPE = """
[model]
checkpoint = "{checkpoint}"
[schedule]
sigmas = {sigmas}
[image]
width_px = {width}
height_px = 64
image_to_image = false
[text]
t5 = {t5}
t5_tokens = 24
[weights]
scheme = "int8"
[build]
backends = {backends}
[golden]
prompts = ["a red circle"]
[calibration]
prompts = {prompts}
methods = {methods}
"""
FORMATS = ("int2-g16", "int4-g32", "int8", "fp16")
GIVEN = [argument for name in FORMATS for argument in ("--format", name)]


def recipe_file(folder: Path, checkpoint: Path, **changes: object) -> Path:
    text = {
        "checkpoint": checkpoint,
        "sigmas": "[1.0, 0.75, 0.0]",
        "width": 64,
        "t5": "true",
        "backends": '["onnx"]',
        "prompts": '["a red circle", "two stars"]',
        "methods": "[]",
    }
    file = folder / "small.toml"
    file.write_text(RECIPE.format(**text | changes))
    return file


# The file.


@pytest.fixture(scope="module")
def programs(tiny: Checkpoint) -> dict[str, Program]:
    return {g.name: trace(g) for g in cut_graphs(tiny, SMALL)}


def chosen(programs: dict[str, Program], scheme: Scheme) -> dict[str, dict[str, str]]:
    """By graph and weight, without biases and norms."""
    quantized = quantize_all(programs, scheme)
    return {g: {w: str(f) for w, f in p.formats.items()} for g, p in quantized.items()}


def written(folder: Path, text: str) -> Path:
    file = folder / "plan.toml"
    file.write_text(text)
    return file


WEIGHT = "transformer_blocks.0.attn.to_q.weight"


def test_a_plan_that_was_written_is_read(programs: dict[str, Program], tmp_path: Path) -> None:
    file = tmp_path / "deep" / "quiet.toml"
    formats = {
        "denoiser": {WEIGHT: "int4-g16-asym", "pos_embed.pos_embed": "fp16"},
        "clip_l": {"text_model.embeddings.token_embedding.weight": "fp16"},
    }
    facts = {
        "base": "int4",
        "methods": ["scales"],
        "budget_bytes": 5,
        "floor_db": None,
        "recipe": "é𝄞",
    }
    write_plan(file, facts, formats, {"weights": []})
    plan = read_plan(file)
    assert plan.scheme == scheme_of("quiet", "int4", ("scales",), formats)
    assert (plan.scheme.name, plan.scheme.methods) == ("quiet", ("scales",))
    assert plan.facts == {k: v for k, v in facts.items() if v is not None}
    assert plan.text == file.read_text() and len(plan.sha256) == 64
    assert plan.details is not None and json.loads(plan.details) == {"weights": []}
    assert sorted(f.name for f in file.parent.iterdir()) == ["quiet.json", "quiet.toml"]
    found = chosen(programs, plan.scheme)
    assert all(found[g][w] == form for g, ws in formats.items() for w, form in ws.items())
    base = chosen(programs, load_scheme("int4"))
    listed = {(g, w) for g, ws in formats.items() for w in ws}
    assert all(
        found[g][w] == f for g, ws in base.items() for w, f in ws.items() if (g, w) not in listed
    )


def test_a_plan_as_a_person_edits_it(programs: dict[str, Program], tmp_path: Path) -> None:
    """Patterns, and later lines before earlier ones; norms and biases stay in float32."""
    file = written(
        tmp_path,
        '[plan]\nbase = "int8"\n[formats.denoiser]\n"*" = "fp16"\n"*.attn.*" = "int4-g32"\n'
        '"transformer_blocks.1.*" = "int8"\n"*.to_v.weight" = "int2-g16"\n',
    )
    plan = read_plan(file)
    assert (plan.facts, plan.details, plan.scheme.methods) == ({"base": "int8"}, None, ())
    found = chosen(programs, plan.scheme)["denoiser"]
    assert found["transformer_blocks.0.attn.to_q.weight"] == "int4-g32"
    assert found["transformer_blocks.1.attn.to_q.weight"] == "int8"
    assert found["transformer_blocks.1.attn.to_v.weight"] == "int2-g16"
    assert found["transformer_blocks.0.ff.net.2.weight"] == "fp16"
    assert found["pos_embed.pos_embed"] == found["pos_embed.proj.weight"] == "fp16"
    for name in ("attn.to_q.bias", "attn.norm_q.weight", "ff.net.2.bias"):
        assert found[f"transformer_blocks.1.{name}"] == "fp32"
    others = chosen(programs, plan.scheme)
    assert set(others["conditioner"].values()) == {"int8", "fp32"}


HEAD = '[plan]\nbase = "int8"\n'
MISTAKES = {
    "graph": (HEAD + '[formats.unet]\n"*" = "int8"', r"\[formats.unet\]: unknown graph 'unet'; kn"),
    "format": (
        HEAD + '[formats.denoiser]\n"a.*" = "int3"',
        r"\[formats.denoiser\] a.\*: unknown format 'int3'; known: fp16",
    ),
    "group": (HEAD + '[formats.denoiser]\n"a" = "int4-g48"', "unknown group size '48'; known"),
    "number": (HEAD + '[formats.denoiser]\n"a" = 4', "unknown format '4'"),
    "activations": (HEAD + '[formats.conditioner]\n"a" = "w8a8"', "w8a8 applies to denoiser and"),
    "method": (
        '[plan]\nmethods = ["magic"]',
        r"\[plan\] methods: unknown method 'magic'; known: b",
    ),
    "methods": ('[plan]\nmethods = "bias"', r"\[plan\] base and methods: a scheme and a list are"),
    "base": ('[plan]\nbase = "int5"', r"\[plan\] base: unknown scheme 'int5'; known: fp16"),
    "section": (HEAD + "[weights]", "unknown section 'weights'; known: formats, plan"),
    "no head": ('[formats.denoiser]\n"*" = "int8"', r"a table \[plan\] and tables \[formats.<g"),
    "no table": (HEAD + '[formats]\ndenoiser = "int8"', r"\[formats.denoiser\] must be a table"),
    "not TOML": ("[plan", "not valid TOML"),
}


@pytest.mark.parametrize(("text", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_in_a_plan(tmp_path: Path, text: str, message: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(InputError, match=message) as found:
        read_plan(file)
    assert str(found.value).startswith(f"{file}: ") and "\n" not in str(found.value)


def test_a_plan_that_is_not_there(tmp_path: Path) -> None:
    file = tmp_path / "none.toml"
    with pytest.raises(InputError) as found:
        read_plan(file)
    assert str(found.value) == (
        f"{file}: no such plan; make one: fourstep plan RECIPE --budget 1.2GB -o {file}"
    )
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_plan(tmp_path)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="none.toml: not UTF-8 text"):
        read_plan(file)
    assert is_plan("a.toml") and is_plan("b/c.toml") and not is_plan("int8")


def test_a_misspelt_weight_does_not_pass_for_a_wish(
    programs: dict[str, Program], tmp_path: Path
) -> None:
    plan = read_plan(written(tmp_path, HEAD + '[formats.denoiser]\n"*.to_z.weight" = "int4-g32"'))
    message = r"plan: no weight of denoiser that can be int4-g32 matches '\*.to_z.weight', such as"
    with pytest.raises(InputError, match=message):
        quantize_all(programs, plan.scheme)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weights": [1]}', '{"weights": [{}]}'])
def test_sensitivities_that_are_damaged(tmp_path: Path, text: str) -> None:
    file = written(tmp_path, HEAD)
    file.with_suffix(".json").write_text(text)
    with pytest.raises(InputError, match="plan.json: .*: not a plan's sensitivities; delete the"):
        read_plan(file)


def test_a_plan_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "plan.toml"
    file.mkdir()
    with pytest.raises(InputError, match="plan.toml: cannot be written: Is a directory"):
        write_plan(file, {}, {}, {})
    file.rmdir()
    write_plan(file, {"base": "int8"}, {}, {"old": 1})
    (tmp_path / ".plan.toml.partial").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        write_plan(file, {"base": "int4"}, {}, {"new": 1})
    assert read_text(file.with_suffix(".json")) == '{\n "old": 1\n}\n'
    assert read_plan_base(file) == "int8"


def read_text(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def read_plan_base(file: Path) -> str:
    return str(tomllib.loads(file.read_text())["plan"]["base"])


# The command.


@pytest.fixture(scope="module")
def small(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recipe_file(tmp_path_factory.mktemp("recipe"), tiny_folder)


@pytest.fixture(scope="module")
def traced(small: Path) -> Model:
    return trace_model(read_recipe(small), 1 << 30, Progress())


@pytest.fixture
def once(traced: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model is traced and drawn unquantized once for all tests."""
    monkeypatch.setattr(road, "trace_model", lambda *_: traced)


def planned(small: Path, file: Path, *arguments: object) -> dict[str, Any]:
    """What ``fourstep plan`` says of a plan of the tiny model, checked against what it wrote."""
    result = fourstep("plan", small, "-o", file, "--json", *GIVEN, *arguments)
    assert result.exit_code == 0, result.stderr
    row: dict[str, Any] = json.loads(result.stdout)
    assert row["path"] == str(file)
    facts = read_plan(file).facts
    assert facts["weight_bytes"] == row["weight_bytes"]
    assert facts["predicted_snr_db"] == round(row["predicted_snr_db"], 2)
    assert sorted(f.name for f in file.parent.iterdir()) == [f"{file.stem}.json", file.name]
    return row


def quantized(traced: Model, file: Path) -> dict[str, QuantizedProgram]:
    return quantize_all(traced.programs, read_plan(file).scheme)


def extreme_programs(traced: Model) -> list[dict[str, QuantizedProgram]]:
    """The programs with every weight in its smallest format, and in its largest."""
    smallest = {"*": "fp16", "?*": "int8", "??*": "int2-g16"}  # the last that suits a weight
    found = []
    for patterns in (smallest, {"*": "fp16"}):
        graphs = {name: patterns for name in traced.programs if name != "vae_decoder"}
        found.append(quantize_all(traced.programs, scheme_of("all", "int8", (), graphs)))
    return found


def extremes(traced: Model) -> list[dict[str, int]]:
    """Bytes by graph, smallest and largest."""
    return [
        {name: program.stored_bytes() for name, program in programs.items()}
        for programs in extreme_programs(traced)
    ]


def between(traced: Model, share: float) -> int:
    """A budget: this share of the way from the smallest formats to the largest."""
    low, high = (sum(sizes.values()) for sizes in extremes(traced))
    return int(low + share * (high - low))


@pytest.mark.usefixtures("once")
@pytest.mark.parametrize("share", [0.2, 0.7])
def test_a_budget_is_met_and_used(small: Path, traced: Model, tmp_path: Path, share: float) -> None:
    budget = between(traced, share)
    row = planned(small, tmp_path / "plan.toml", "--budget", budget)
    assert 0.98 * budget < row["weight_bytes"] <= budget
    found = quantized(traced, tmp_path / "plan.toml")
    assert row["weight_bytes"] == sum(p.stored_bytes() for p in found.values())
    values = sum(n for g in MMDIT for n in found[g].values_by_format().values())
    bits = 8 * sum(found[g].stored_bytes() for g in MMDIT) / values
    assert row["bits_per_weight"] == pytest.approx(bits)
    assert set(found["vae_decoder"].values_by_format()) == {"fp32", "int8"}
    assert read_plan(tmp_path / "plan.toml").facts["budget_bytes"] == budget


@pytest.mark.usefixtures("once")
def test_the_details_say_what_the_choice_was_made_from(
    small: Path, traced: Model, tmp_path: Path
) -> None:
    budget = between(traced, 0.5)
    row = planned(small, tmp_path / "plan.toml", "--budget", budget, "--no-draw")
    assert row["measured_snr_db"] is None
    details = json.loads(read_text(tmp_path / "plan.json"))
    assert details["budget_bytes"] == budget and details["scheme"] == "plan"
    found = quantized(traced, tmp_path / "plan.toml")
    noise = 0.0
    for weight in details["weights"]:
        program = found[weight["graph"]]
        assert str(program.formats[weight["weight"]]) == weight["chosen"]
        by_format = {c["format"]: c for c in weight["candidates"]}
        stored = program.stored()[weight["weight"]]
        assert by_format[weight["chosen"]]["bytes"] == program.formats[
            weight["weight"]
        ].stored_bytes(stored.shape)
        noise += by_format[weight["chosen"]]["noise"]
    assert row["predicted_snr_db"] == pytest.approx(-10 * np.log10(noise))


@pytest.mark.usefixtures("once")
def test_a_floor_is_met_with_few_bytes(small: Path, traced: Model, tmp_path: Path) -> None:
    first = tmp_path / "a" / "plan.toml"
    middle = planned(small, first, "--budget", between(traced, 0.6), "--probes", 8)
    floor = middle["measured_snr_db"] - 3
    row = planned(small, tmp_path / "b" / "plan.toml", "--floor", floor, "--from", first)
    assert floor <= row["measured_snr_db"] < floor + 1.5
    assert row["weight_bytes"] < middle["weight_bytes"]
    assert read_plan(tmp_path / "b" / "plan.toml").facts["floor_db"] == floor


CANDIDATE = [[Candidate(parse_format("int8"), 10 * i, 10.0**-i) for i in range(13)]]  # 0 to 120 dB


@pytest.mark.parametrize("floor", [0, 12, 57.3, 99, 104])
@pytest.mark.parametrize("slope", [0.4, 1, 2.5])
def test_a_floor_is_found_whatever_is_drawn(floor: float, slope: float) -> None:
    """Though drawing differs from the prediction by much, and more where there is more noise."""
    seen = []

    def draw(choice: Choice) -> float:
        seen.append(choice)
        return 5 + 100 * math.pow(choice[0] / 12, slope)

    found, drawn = search._above(CANDIDATE, floor, draw)
    fewest = next(i for i in range(13) if draw((i,)) >= floor)
    assert drawn == draw(found) >= floor and found == (fewest,)
    assert len(seen) <= search.MOST_TRIES + fewest + 2  # those of this test included


def test_a_floor_below_all_formats() -> None:
    for drawn in (0.0, 40.0, 1000.0):
        assert search._above(CANDIDATE, 0, lambda choice: drawn) == ((0,), drawn)  # noqa: B023


def test_a_floor_that_nothing_reaches() -> None:
    message = (
        "floor_db 106 dB: not met by any choice of these formats: the best reach 105.0 dB; give"
    )
    with pytest.raises(InputError, match=message):
        search._above(CANDIDATE, 106, lambda choice: 5 + 100 * choice[0] / 12)
    assert search._above(CANDIDATE, 119, None) == ((12,), None)
    with pytest.raises(InputError, match="the best reach 120.0 dB"):
        search._above(CANDIDATE, 121, None)


@pytest.mark.usefixtures("once")
def test_memory_bounds_every_graph(small: Path, traced: Model, tmp_path: Path) -> None:
    """Each graph on its own, on every backend: those that have room get their largest formats."""
    chosen = map(backends.load, read_recipe(small).backends)
    costs = [backends.costs_of(backend, "--memory") for backend in chosen]

    def peaks(programs: dict[str, QuantizedProgram]) -> dict[str, int]:
        return {n: max(run_bytes(p, c) for c in costs) for n, p in programs.items()}

    low, high = (peaks(programs) for programs in extreme_programs(traced))
    memory = (max(low.values()) + max(high.values())) // 2
    planned(small, tmp_path / "plan.toml", "--memory", memory, "--no-draw")
    programs = quantized(traced, tmp_path / "plan.toml")
    assert max(peaks(programs).values()) <= memory < max(high.values())
    largest = extremes(traced)[1]
    whole = {n for n, p in programs.items() if p.stored_bytes() == largest[n]}
    assert whole and whole < {*programs}
    result = fourstep("plan", small, "-o", tmp_path / "b.toml", "--memory", "20MB", *GIVEN)
    mistake(result, "--memory 20,000,000 bytes: ", "bytes too few for clip_l, with every weight")


def test_memory_bounds_the_parts_of_a_graph(traced: Model) -> None:
    """They are opened in turn, so that a graph that is cut may take more in the same memory."""
    costs = backends.costs_of(backends.load("onnx"), "--memory")
    low, high = (run_bytes(p["denoiser"], costs) for p in extreme_programs(traced))
    memory = (low + high) // 2
    aim, kept = search.Aim(memory_bytes=memory), []
    for count in (1, 3):
        recipe = replace(traced.recipe, denoiser_parts=count, backends=("onnx",))
        problem = search.problem_of(
            replace(traced, recipe=recipe), ["denoiser"], [*map(parse_format, FORMATS)]
        )
        noise = {
            key: {str(f): 1 / f.bits for f in weight.formats}
            for key, weight in problem.asked.items()
        }
        options = problem.options(noise)
        own: tuple[str, ...] = ("denoiser",)
        budgets = {own: search.budgets_of(problem, aim)[own]}
        choice, _ = search.choose(problem, options, budgets, aim, traced.weights, False, Progress())
        scheme = scheme_of("plan", "int8", (), problem.formats(choice))
        program = quantize_all(traced.programs, scheme)["denoiser"]
        assert max(run_bytes(part, costs) for part in split(program, count)) <= memory
        kept.append(program.stored_bytes())
    assert kept[1] > 1.2 * kept[0]


@pytest.mark.usefixtures("once")
def test_bits_of_the_mmdit(small: Path, traced: Model, tmp_path: Path) -> None:
    """On average over its tensors; the encoders are as the base scheme has them."""
    row = planned(small, tmp_path / "plan.toml", "--bits", 6, "--no-draw")
    assert 0.98 * 6 < row["bits_per_weight"] <= 6
    found = quantized(traced, tmp_path / "plan.toml")
    assert set(found["t5"].values_by_format()) == {"fp32", "int8"}
    assert set(tomllib.loads(read_text(tmp_path / "plan.toml"))["formats"]) == set(MMDIT)
    for bits, words in ((1.5, "bytes too few for conditioner and denoiser"), (33, "at most 32")):
        result = fourstep("plan", small, "-o", tmp_path / "b.toml", "--bits", bits, *GIVEN)
        mistake(result, f"--bits {bits}: ", words)
    result = fourstep("plan", small, "-o", tmp_path / "b.toml", "--bits", 6, "--graph", "t5")
    mistake(result, "--graph t5: bits per weight are about conditioner and denoiser alone")


@pytest.mark.usefixtures("once")
def test_a_plan_of_layers_that_round_their_input(
    small: Path, traced: Model, tmp_path: Path
) -> None:
    """Measured, and drawn, with the roundings in the program."""
    file = tmp_path / "plan.toml"
    given = ("--bits", 7.2, "--probes", 6, "--json", "-o", file)
    formats = ("--format", "int4-g32", "--format", "w8a8", "--format", "fp16")
    result = fourstep("plan", small, *given, *formats)
    assert result.exit_code == 0, result.stderr
    row = json.loads(result.stdout)
    noise: Counter[str] = Counter()
    for weight in json.loads(read_text(file.with_suffix(".json")))["weights"]:
        if len(weight["candidates"]) == 3:
            noise.update({c["format"]: c["noise"] for c in weight["candidates"]})
    assert 0 < noise["w8a8"] < noise["int4-g32"]
    chosen = {str(form) for form in quantized(traced, file)["denoiser"].formats.values()}
    assert {"w8a8", "int4-g32"} <= chosen
    assert abs(row["measured_snr_db"] - row["predicted_snr_db"]) < 4


@pytest.mark.usefixtures("once")
def test_sensitivities_are_used_again(
    small: Path, traced: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without measuring, and only of the same model, trajectories and methods."""
    first, again = tmp_path / "a" / "plan.toml", tmp_path / "b" / "plan.toml"
    budget = between(traced, 0.5)
    aim = ("--budget", budget, "--no-draw")
    row = planned(small, first, *aim, "--graph", "t5", "--probes", 2)
    monkeypatch.setattr(road, "measure", None)
    found = planned(small, again, *aim, "--graph", "t5", "--from", first)
    assert found == row | {"path": str(again)}
    assert read_text(again.with_suffix(".json")) == read_text(first.with_suffix(".json"))
    remedy = "without an earlier plan they are measured anew"

    def refused(*arguments: object, words: str, given: Path = first) -> None:
        result = fourstep("plan", small, "-o", again, *aim, *GIVEN, "--from", given, *arguments)
        mistake(result, f"--from {given}: ", words, remedy)

    refused(words="clip_l text_model.embeddings.token_embedding.weight was not measured as int8")
    details = json.loads(read_text(first.with_suffix(".json")))
    damaged = tmp_path / "c.toml"
    damaged.write_text(read_text(first))
    refused(words="no c.json beside it", given=damaged)
    for key, words in (
        ("checkpoint_sha256", "measured on another checkpoint"),
        ("trajectories_sha256", "measured on other prompts, steps or sizes"),
        ("methods", "measured on other methods"),
        ("statistics_sha256", "measured on other statistics"),
    ):
        damaged.with_suffix(".json").write_text(json.dumps(details | {key: ["x"]}))
        refused(words=words, given=damaged)
    del details["probes"]
    damaged.with_suffix(".json").write_text(json.dumps(details))
    result = fourstep("plan", small, "-o", again, *aim, *GIVEN, "--from", damaged)
    mistake(result, "c.json: ", "missing required field `probes`", remedy)


@pytest.mark.usefixtures("once")
def test_only_the_graphs_that_are_asked_for(small: Path, traced: Model, tmp_path: Path) -> None:
    budget = between(traced, 0.5)
    arguments = ("--budget", budget, "--graph", "denoiser", "--graph", "t5", "--no-draw")
    planned(small, tmp_path / "plan.toml", *arguments)
    assert set(tomllib.loads(read_text(tmp_path / "plan.toml"))["formats"]) == {"denoiser", "t5"}


@pytest.mark.usefixtures("once")
def test_what_cannot_be_met(small: Path, traced: Model, tmp_path: Path) -> None:
    """One line that says what could be; nothing is drawn for a budget, nothing is written."""
    low, file = between(traced, 0), tmp_path / "plan.toml"
    result = fourstep("plan", small, "-o", file, "--budget", low - 7, *GIVEN)
    mistake(result, f"--budget {low - 7:,} bytes: 7 bytes too few for clip_l and", "give more, or")
    assert "sensitivity" not in result.stderr
    result = fourstep("plan", small, "-o", file, "--floor", 150, "--format", "int8", "--no-draw")
    words = "--floor 150 dB: not met by any choice of these formats: the best reach "
    mistake(result, words, " dB; give a lower floor, or allow a better format")
    assert list(tmp_path.iterdir()) == []


def test_mistakes_before_anything_is_read(small: Path, tmp_path: Path) -> None:
    file = tmp_path / "out" / "plan.toml"

    def refused(*arguments: object) -> Callable[..., None]:
        result = fourstep("plan", small, "-o", file, *arguments)
        assert "trace" not in result.stderr and not file.parent.exists()
        return lambda *words: mistake(result, *words)

    refused()("give one of --budget 1.2GB, --memory 2GB, --bits 4.5 and --floor")
    refused("--budget", "1GB", "--floor", 30)("give one of --budget")
    for size in ("much", "1.2.3GB", "-5MB", "5 quarts", "MB"):
        refused("--budget", size)(f"--budget '{size}': a size is expected, such as 1.2GB or 900MB")
    refused("--memory", "lots")("--memory 'lots': a size is expected")
    for floor in ("nan", "inf", "-1"):
        refused("--floor", floor)(f"--floor {floor}: decibels from 0 to 200 are expected")
    for bits in ("nan", "inf", "0"):
        refused("--bits", bits)(f"--bits {bits}: more than 0 and at most 32 are expected")
    refused("--floor", 30, "--graph", "unet")("--graph: unknown graph 'unet'; known: clip_g")
    refused("--floor", 30, "--graph", "vae_decoder")("--graph: unknown graph 'vae_decoder'")
    refused("--floor", 30, "--format", "int3")("unknown format 'int3'; known: fp16")
    refused("--floor", 30, "--format", "pal4")("no format is left", "onnx, pal4: ONNX has no pal")


def test_places_that_cannot_be_written(small: Path, tmp_path: Path) -> None:
    def refused(file: Path, *words: str) -> None:
        result = fourstep("plan", small, "-o", file, "--floor", 30)
        mistake(result, *words)
        assert "trace" not in result.stderr

    refused(tmp_path / "plan.json", "plan.json: must end in .toml")
    refused(Path("/proc/none/plan.toml"), "/proc/none", "choose another place")
    refused(small / "plan.toml", "is not a folder; choose another place")
    (tmp_path / "folder.toml").mkdir()
    refused(tmp_path / "folder.toml", "folder.toml: is a folder; choose another file")
    mistake(fourstep("plan", tmp_path / "no.toml", "--floor", 30), "no.toml: no such recipe")


def test_prompts_that_are_not_there(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n \n")
    small = recipe_file(tmp_path, tiny_folder, prompts=json.dumps(str(tmp_path / "prompts.txt")))
    result = fourstep("plan", small, "--floor", 30)
    mistake(result, "[calibration] prompts", "holds no prompt; write one per line")


def test_a_graph_that_the_recipe_has_not(tiny_folder: Path, tmp_path: Path) -> None:
    small = recipe_file(tmp_path, tiny_folder, t5="false")
    result = fourstep("plan", small, "-o", tmp_path / "p.toml", "--floor", 30, "--graph", "t5")
    mistake(result, "--graph: unknown graph 't5'; known: clip_g, clip_l, conditioner")


# The packages.


PROBES = 4


@dataclass(frozen=True)
class Plant:
    """A plan of shapes-flash with all methods, made as a user makes it, and its packages."""

    recipe: Recipe
    file: Path
    row: dict[str, Any]
    statistics: Path
    built: dict[str, Built]


def installed() -> list[str]:
    return [name for name in backends.names() if not backends.missing(needs(name))]


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    folder = tmp_path_factory.mktemp("plant")
    file = recipe_file(
        folder,
        SHAPES,
        backends=json.dumps(installed()),
        prompts='["a triangle", "two blue stars", "a circle above a red square"]',
        methods='["equalize", "scales", "feedback", "bias"]',
        sigmas="[1.0, 0.9, 0.75, 0.5, 0.0]",
        t5="false",
    )
    formats = ("--format", "int2-g32", "--format", "int4-g32", "--format", "int8")
    place, statistics = folder / "quiet.toml", folder / "statistics"
    result = fourstep(
        "plan", file, "-o", place, "--bits", 4.6, *formats, "--probes", PROBES, "--statistics",
        statistics, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    recipe = read_recipe(file)
    built = build(recipe, folder / "out", scheme_names=[str(place)], statistics=statistics)
    yield Plant(
        recipe, place, json.loads(result.stdout), statistics, {b.path.name: b for b in built}
    )


@pytest.fixture(scope="module")
def model(plant: Plant) -> Model:
    return trace_model(plant.recipe, 1 << 30, Progress())


def manifest(plant: Plant, name: str) -> Manifest:
    return open_package(plant.built[f"{name}-quiet"].path).manifest


def test_packages_are_called_as_the_plan(plant: Plant) -> None:
    assert list(plant.built) == [f"{name}-quiet" for name in installed()]
    result = fourstep("verify", plant.built["onnx-quiet"].path)
    assert result.exit_code == 0 and result.stdout.strip().endswith("ok")
    for name, built in plant.built.items():
        assert built.scheme == "quiet" and built.path.name == name
        assert built.report.ok and built.report.images


def measured(plant: Plant) -> Statistics:
    """What the plan measured, and the build used again."""
    (place,) = plant.statistics.iterdir()
    return open_statistics(place)


@pytest.mark.parametrize("name", backends.names())
def test_a_package_says_what_it_was_built_from(plant: Plant, name: str) -> None:
    if name not in installed():
        pytest.skip(f"{name}: pip install '{backends.load(name).to_build.install}'")
    found, plan = manifest(plant, name), read_plan(plant.file)
    assert (found.backend, found.scheme) == (name, "quiet")
    assert found.origin.methods == ("equalize", "scales", "feedback", "bias")
    assert found.origin.statistics_sha256 == measured(plant).sha256
    assert found.origin.statistics_sha256 == plan.facts["statistics_sha256"]
    assert found.origin.plan_sha256 == plan.sha256
    folder = plant.built[f"{name}-quiet"].path
    assert {"plan.toml", "plan.json"} <= {f.path for f in found.files}
    assert read_text(folder / "plan.toml") == plan.text
    details = json.loads(read_text(folder / "plan.json"))
    assert details == json.loads(read_text(plant.file.with_suffix(".json")))


@pytest.mark.parametrize("name", backends.names())
def test_weights_are_stored_as_planned(plant: Plant, model: Model, name: str) -> None:
    if name not in installed():
        pytest.skip(f"{name}: pip install '{backends.load(name).to_build.install}'")
    planned = quantize_all(model.programs, read_plan(plant.file).scheme)
    found = manifest(plant, name)
    for graph in found.graphs:
        assert graph.formats == planned[graph.name].values_by_format()
    used = {form for g in MMDIT for form in planned[g].values_by_format()}
    assert used == {"fp32", "int8", "int4-g32", "int2-g32"}
    assert 0.98 * 4.6 < plant.row["bits_per_weight"] <= 4.6
    assert plant.row["weight_bytes"] == sum(p.stored_bytes() for p in planned.values())


@pytest.mark.parametrize("name", DEFAULT_BACKENDS)
def test_the_files_hold_as_many_bits_as_planned(plant: Plant, name: str) -> None:
    """All constants of the emitted MMDiT; Core ML stores in fp16 what the others do in float32.

    The reference, which stores a code to a byte, is none of these.
    """
    if name not in installed():
        pytest.skip(f"{name}: pip install '{backends.load(name).to_build.install}'")
    found, folder = manifest(plant, name), plant.built[f"{name}-quiet"].path
    graphs = [g for g in found.graphs if g.name in MMDIT]
    stored_bytes = sum(sum(constant_bytes(name, folder / g.entry).values()) for g in graphs)
    values = sum(sum(g.formats.values()) for g in graphs)
    operators = 1.002  # their own scalars
    least = 0.85 if name == "coreml" else 0.98
    assert least * 4.6 < 8 * stored_bytes / values <= operators * 4.6


def calibrated(plant: Plant, model: Model) -> Weights:
    return Weights(model.checkpoint, calibration=measured(plant))


def test_what_is_built_is_what_was_drawn(plant: Plant, model: Model) -> None:
    """The plan's figure, from the programs that the packages hold; 5 dB are the methods'."""

    def drawn_db(scheme: Scheme) -> float:
        programs = quantize_all(model.programs, scheme)
        found = model.travel(programs, calibrated(plant, model)).latents
        pairs = zip(found, model.trajectories.latents, strict=True)
        return float(-10 * np.log10(np.mean([10 ** (-snr_db(a, b) / 10) for a, b in pairs])))

    scheme = read_plan(plant.file).scheme
    assert drawn_db(scheme) == pytest.approx(plant.row["measured_snr_db"], abs=0.01)
    assert abs(plant.row["measured_snr_db"] - plant.row["predicted_snr_db"]) < 4
    assert drawn_db(replace(scheme, methods=())) < plant.row["measured_snr_db"] - 5


@pytest.mark.parametrize(
    ("graph", "weight", "form"),
    [
        ("denoiser", "pos_embed.proj.weight", "int8"),  # of no method
        ("denoiser", "transformer_blocks.0.attn.to_v.weight", "int8"),  # scaled by rows and columns
        ("denoiser", "transformer_blocks.2.ff.net.2.weight", "int8"),  # with one mean
        ("conditioner", "transformer_blocks.0.norm1.linear.weight", "int4-g32"),  # with one a step
    ],
)
def test_noise_with_methods_is_what_one_rounded_weight_does(
    plant: Plant, model: Model, graph: str, weight: str, form: str
) -> None:
    """Along the very directions that the plan was measured along, to a tenth."""
    rows = json.loads(read_text(plant.file.with_suffix(".json")))["weights"]
    (row,) = (r for r in rows if (r["graph"], r["weight"]) == (graph, weight))
    (noise,) = (c["noise"] for c in row["candidates"] if c["format"] == form)

    def format_of(in_graph: str, name: str, role: str) -> Format:
        return parse_format(form if (in_graph, name) == (graph, weight) else "fp32")

    methods = {name: frozenset(METHODS) if name in MMDIT else NEAREST for name in model.programs}
    programs = {n: quantize(p, format_of, methods[n]) for n, p in model.programs.items()}
    found = model.travel(programs, calibrated(plant, model)).latents
    latents = np.concatenate(model.trajectories.latents).astype(np.float64)
    away, generator = np.concatenate(found) - latents, torch.Generator().manual_seed(1000)
    shape = (1, *latents.shape[1:])
    drawn = [torch.randn(shape, generator=generator) for _ in range(PROBES * len(latents))]
    probed = torch.cat(drawn).reshape(PROBES, *latents.shape).double().numpy()
    products = np.einsum("npchw,pchw->np", probed, away)
    power = np.sum(latents**2) / len(latents)
    assert noise == pytest.approx(np.mean(products**2) / power, rel=0.1)


def test_activations_are_calibrated_in_the_units_of_the_methods(
    plant: Plant, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the calls that roundings are chosen on, the last steps' end in the model's own latents."""
    seen: list[Sequence[Mapping[str, np.ndarray]]] = []

    def ranges_of(
        programs: object, read: object, calls: Callable[[str], Sequence[Mapping[str, np.ndarray]]]
    ) -> None:
        seen.append(calls("denoiser"))
        raise InputError("seen enough")

    monkeypatch.setattr("exporter.build.draw.ranges_of", ranges_of)
    recipe, scheme = replace(plant.recipe, prompts=()), [str(plant.file)]
    with pytest.raises(InputError, match="seen enough"):
        build(recipe, tmp_path, ["onnx"], scheme, statistics=plant.statistics)
    program = model.programs["denoiser"]
    float32 = quantize(program, lambda *_: parse_format("fp32"), frozenset(METHODS))
    for call, latent in zip(seen[0][3::4], model.trajectories.latents, strict=True):
        given = {name: torch.from_numpy(value) for name, value in call.items()}
        velocity = run(float32, calibrated(plant, model).read, given)["velocity"].numpy()
        assert relative_error(call["latent"] - np.float32(0.5) * velocity, latent) < 1e-4


def test_the_same_plan_gives_the_same_bytes(plant: Plant, tmp_path: Path) -> None:
    recipe = replace(plant.recipe, prompts=())
    scheme = [str(plant.file)]
    (again,) = build(recipe, tmp_path, ["onnx"], scheme, statistics=plant.statistics)
    for one, other in zip(
        manifest(plant, "onnx").graphs, open_package(again.path).manifest.graphs, strict=True
    ):
        assert one.files == other.files
    assert [f.name for f in tmp_path.iterdir() if f.is_dir()] == ["onnx-quiet"]


@pytest.fixture
def nothing_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be drawn, measured or emitted."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was computed")

    for name in ("calibrate", "travel"):
        monkeypatch.setattr(model_module, name, refuse)
    monkeypatch.setattr(Weights, "read", refuse)


@pytest.mark.usefixtures("nothing_computed")
def test_a_plan_that_a_backend_cannot_express_is_refused_first(small: Path, tmp_path: Path) -> None:
    file = written(tmp_path, HEAD + '[formats.denoiser]\n"*.to_q.weight" = "pal4"\n')
    out = tmp_path / "out"
    mistake(
        fourstep("build", small, "--scheme", file, "--out", out),
        f"onnx cannot express scheme {file} (denoiser: transformer_blocks.0.attn.to_q.weight as",
        "ONNX has no palettes",
    )
    file.write_text(HEAD + '[formats.denoiser]\n"*.to_z.weight" = "int8"\n')
    mistake(
        fourstep("build", small, "--scheme", file, "--out", out),
        "plan: no weight of denoiser that can be int8 matches '*.to_z.weight', such as",
    )
    mistake(
        fourstep("build", small, "--scheme", tmp_path / "none.toml", "--out", out),
        "none.toml: no such plan; make one: fourstep plan RECIPE",
    )
    assert not out.exists()


@pytest.mark.usefixtures("nothing_computed")
def test_plans_of_one_name_are_refused(small: Path, tmp_path: Path) -> None:
    """They would be built into the same folder."""
    one, other = tmp_path / "plan.toml", tmp_path / "b" / "plan.toml"
    other.parent.mkdir()
    for file in (one, other):
        file.write_text(HEAD)
    result = fourstep("build", small, "--scheme", one, "--scheme", other, "--out", tmp_path / "out")
    mistake(result, f"{one} and {other} would be built into the same folder; rename one")


def test_a_recipe_names_a_plan(small: Path, tmp_path: Path) -> None:
    """As its scheme; without methods nothing is measured, and no statistics are named."""
    file = written(tmp_path, HEAD + '[formats.denoiser]\n"*.to_q.weight" = "int4-g32"\n')
    recipe = tmp_path / "named.toml"
    text = read_text(small).replace('scheme = "int8"', f'scheme = "{file}"')
    recipe.write_text(text.replace('["a red circle"]', "[]"))
    (built,) = build(read_recipe(recipe), tmp_path / "out")
    found = open_package(built.path).manifest
    assert built.path.name == "onnx-plan" and found.scheme == "plan"
    assert (found.origin.methods, found.origin.statistics_sha256) == ((), "")
    assert found.origin.plan_sha256 == read_plan(file).sha256
    assert (
        not (tmp_path / "out" / "statistics").exists() and not (built.path / "plan.json").exists()
    )
    denoiser = found.graph("denoiser")
    assert denoiser is not None and denoiser.formats["int4-g32"] > 0


def test_details_of_an_edited_plan_say_what_was_built(small: Path, tmp_path: Path) -> None:
    """Also where they speak of what the recipe has not."""
    file = written(tmp_path, HEAD + '[formats.denoiser]\n"*.to_q.weight" = "int4-g32"\n')
    rows = [
        {"graph": graph, "weight": name, "chosen": "int2-g32"}
        for graph, name in (("denoiser", WEIGHT), ("denoiser", "gone"), ("unet", "gone"))
    ]
    file.with_suffix(".json").write_text(json.dumps({"scheme": "old", "weights": rows}))
    recipe = replace(read_recipe(small), prompts=())
    (built,) = build(recipe, tmp_path / "out", scheme_names=[str(file)])
    details = json.loads(read_text(built.path / "plan.json"))
    assert details["scheme"] == "plan"
    assert [w["chosen"] for w in details["weights"]] == ["int4-g32", "int2-g32", "int2-g32"]

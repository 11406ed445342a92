"""The road to a plan: checkpoint -> graphs -> trace -> calibrate -> sensitivity -> plan."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from exporter.build.model import Model, calibrate, trace_model
from exporter.build.pipeline import STATISTICS
from exporter.calibrate.store import Calibration
from exporter.calibrate.weights import Weights
from exporter.errors import InputError, known
from exporter.files.read import convert, parse_json
from exporter.files.staging import refuse_place
from exporter.package.names import MMDIT, UPSTREAM
from exporter.plan.allocate import Choice, Options, total_bytes, total_noise
from exporter.plan.candidates import DEFAULT_FORMATS, CandidateChanges, chosen_ranges, parse_formats
from exporter.plan.search import (
    BASE,
    KEEP_BYTES,
    Aim,
    Problem,
    budgets_of,
    choose,
    decibels,
    expressible_formats,
    problem_of,
)
from exporter.plan.sensitivity import Noise, measure
from exporter.program.threads import fixed_threads
from exporter.progress import Progress
from exporter.quantize.formats import FORMATS
from exporter.quantize.program import Methods, methods_of, quantize_all
from exporter.recipe.plan import read_plan, scheme_of, write_plan
from exporter.recipe.recipe import Recipe


@dataclass(frozen=True)
class Planned:
    """A plan that was written.

    Attributes:
        weight_bytes: of all graphs, as the plan stores them.
        bits_per_weight: stored bytes of the MMDiT over its weights.
        predicted_snr_db: of the final latent, from the sensitivities.
        measured_snr_db: of the final latents of the calibration prompts, drawn in torch.
    """

    path: Path
    weight_bytes: int
    bits_per_weight: float
    predicted_snr_db: float
    measured_snr_db: float | None


@fixed_threads()
def plan(
    recipe: Recipe,
    file: Path,
    aim: Aim,
    formats: Sequence[str] = (),
    graphs: Sequence[str] = (),
    probes: int = 1,
    drawn: bool = True,
    earlier: Path | None = None,
    statistics: Path | None = None,
    progress: Progress | None = None,
) -> Planned:
    """Choose a format for every weight and write the plan: ``file``, and its .json beside it.

    Args:
        formats: that weights may get; those that a backend of the recipe refuses are left out.
        graphs: whose weights are planned; the others' are stored as the base scheme says.
        probes: random directions per prompt to measure sensitivities along.
        drawn: measure the plan by drawing the calibration prompts with it.
        earlier: a plan of the same model, whose sensitivities are used again.
        statistics: folder of calibration statistics; artifacts/<recipe>/statistics.

    Raises InputError for a budget or a floor that cannot be met, saying what can.
    """
    progress = progress or Progress()
    if file.is_dir():
        raise InputError(f"{file}: is a folder; choose another file")
    refuse_place(file.parent, 1 << 20, "choose another place")
    able = expressible_formats(recipe, parse_formats(formats or DEFAULT_FORMATS))
    # At one size, that of the build's own statistics: formats are of weights, which sizes share.
    model = trace_model(recipe.at(recipe.calibrated_size), KEEP_BYTES, progress)
    for graph in graphs:
        if graph not in model.programs:
            raise InputError(known("graph", graph, model.programs), field="graphs")
        if aim.bits_per_weight is not None and graph not in MMDIT:
            own = " and ".join(MMDIT)
            raise InputError(f"bits per weight are about {own} alone", field="graphs", given=graph)
    default = UPSTREAM if aim.bits_per_weight is None else MMDIT
    names = [g for g in model.programs if g in (graphs or default)]
    problem = problem_of(model, names, able)
    budgets = budgets_of(problem, aim)

    methods = {
        g: methods_of(g, able if g in names else [FORMATS[BASE]], recipe.calibration.methods)
        for g in model.programs
    }
    measured_graphs = [g for g in model.programs if methods[g]]
    calibration = None
    if measured_graphs:
        place = statistics or Path("artifacts") / recipe.name / STATISTICS
        calibration = calibrate(model, measured_graphs, place, progress)
    weights = Weights(model.checkpoint, keep_bytes=KEEP_BYTES, calibration=calibration)

    # Sensitivity: each candidate's own rounding errors, carried to the final latent.
    origin = _origin(model, calibration)
    if earlier is None:
        noise = _measured(problem, weights, probes, methods, progress)
    else:
        noise, probes = _known(problem, earlier, origin)

    # Allocate, and draw with the choice; a floor is tried again until what is drawn meets it.
    options = problem.options(noise)
    choice, measured = choose(problem, options, budgets, aim, weights, drawn, progress)
    return _write(problem, file, aim, options, choice, measured, origin | {"probes": probes})


def _origin(model: Model, calibration: Calibration | None) -> dict[str, Any]:
    """What sensitivities are measured on, as a plan says it."""
    given, drawn = model.recipe.calibration, model.provenance(())
    return {
        "checkpoint_sha256": model.checkpoint.digest,
        "statistics_sha256": calibration.sha256 if calibration else "",
        "trajectories_sha256": hashlib.sha256(json.dumps(asdict(drawn)).encode()).hexdigest(),
        "prompts": len(given.prompts),
        "seed": given.seed,
        "methods": list(given.methods),
    }


def _measured(
    problem: Problem,
    weights: Weights,
    probes: int,
    methods: Mapping[str, Methods],
    progress: Progress,
) -> Noise:
    model = problem.model
    float32 = model.adapted(methods)
    trajectories = model.trajectories_as(float32, weights)
    ranges = chosen_ranges(problem.asked, model.programs, methods, weights.read, trajectories.calls)
    progress("sensitivity: along the steps of the calibration prompts")
    return measure(
        float32, weights.read, trajectories, model.schedule,
        CandidateChanges(problem.asked, weights, ranges),
        model.recipe.calibration.seed, probes, progress,
    )  # fmt: skip


OTHER = {
    "checkpoint_sha256": "another checkpoint",
    "trajectories_sha256": "other prompts, steps or sizes",
    "methods": "other methods",
    "statistics_sha256": "other statistics",
}


@dataclass(frozen=True)
class _Candidate:
    format: str
    noise: float


@dataclass(frozen=True)
class _Weight:
    graph: str
    weight: str
    candidates: tuple[_Candidate, ...]


@dataclass(frozen=True)
class _Measured:
    """What a plan takes from an earlier plan's sensitivities."""

    probes: int
    weights: tuple[_Weight, ...]


def _known(problem: Problem, file: Path, origin: Mapping[str, Any]) -> tuple[Noise, int]:
    """The sensitivities beside an earlier plan, and how many probes they were measured along.

    Raises InputError if they were measured on anything else.
    """
    details = read_plan(file).details
    remedy = "without an earlier plan they are measured anew"
    if details is None:
        raise InputError(
            f"no {file.with_suffix('.json').name} beside it; {remedy}", field="earlier", given=file
        )
    beside = file.with_suffix(".json")

    def damaged(said: str) -> InputError:
        return InputError(f"{said}; {remedy}")

    raw = parse_json(details, beside, damaged)
    found = convert(raw, _Measured, beside, damaged)
    other = [words for key, words in OTHER.items() if raw.get(key) != origin[key]]
    probes = found.probes
    noise = {(w.graph, w.weight): {c.format: c.noise for c in w.candidates} for w in found.weights}
    if other:
        raise InputError(f"measured on {other[0]}; {remedy}", field="earlier", given=file)
    for key, weight in problem.asked.items():
        lacking = [str(f) for f in weight.formats if str(f) not in noise.get(key, {})]
        if lacking:
            raise InputError(
                f"{key[0]} {key[1]} was not measured as {lacking[0]}; {remedy}",
                field="earlier",
                given=file,
            )
    return noise, probes


def _write(
    problem: Problem,
    file: Path,
    aim: Aim,
    options: Options,
    choice: Choice,
    measured: float | None,
    origin: Mapping[str, Any],
) -> Planned:
    recipe, formats = problem.model.recipe, problem.formats(choice)
    scheme = scheme_of(file.stem, BASE, recipe.calibration.methods, formats)
    mmdit = [quantize_all(problem.model.programs, scheme)[graph] for graph in MMDIT]
    values = sum(sum(p.values_by_format().values()) for p in mmdit)
    done = Planned(
        file,
        sum(problem.rest_bytes.values()) + total_bytes(options, choice),
        8 * sum(p.stored_bytes() for p in mmdit) / values,
        decibels(total_noise(options, choice)),
        measured,
    )
    figures = {
        "weight_bytes": done.weight_bytes,
        "bits_per_weight": round(done.bits_per_weight, 3),
        "predicted_snr_db": round(done.predicted_snr_db, 2),
        "measured_snr_db": None if measured is None else round(measured, 2),
    }
    facts = {**asdict(aim), **figures, "recipe": recipe.name, **origin}
    details = {
        "format_version": 1,
        "scheme": scheme.name,
        **facts,
        "weights": [
            {
                "graph": graph,
                "weight": name,
                "values": math.prod(weight.source.shape),
                "chosen": str(weight.formats[i]),
                "candidates": [
                    {"format": str(c.format), "bytes": c.bytes, "noise": c.noise} for c in row
                ],
            }
            for ((graph, name), weight), row, i in zip(
                problem.asked.items(), options, choice, strict=True
            )
        ],
    }
    write_plan(file, {"base": BASE, **facts}, formats, details)
    return done

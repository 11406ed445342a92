"""The choice of formats that meets an aim."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from exporter import backends
from exporter.backends.contract import MeasuredCosts
from exporter.build.model import Model
from exporter.calibrate.activations import rounder
from exporter.calibrate.weights import Weights
from exporter.errors import InputError
from exporter.package.measures import snr_db
from exporter.package.names import MMDIT
from exporter.plan.allocate import (
    Candidate,
    Choice,
    Options,
    allocate,
    smallest,
    total_bytes,
    total_noise,
)
from exporter.plan.candidates import PlannedWeight, candidates
from exporter.plan.sensitivity import Noise
from exporter.predict.graph import fixed_bytes, run_bytes
from exporter.progress import Progress
from exporter.quantize.formats import Format
from exporter.quantize.program import QuantizedProgram, quantize_all
from exporter.quantize.schemes import load_scheme
from exporter.quantize.split import split
from exporter.recipe.plan import scheme_of
from exporter.recipe.recipe import Recipe

BASE = "int8"  # the scheme of weights that a plan does not list
KEEP_BYTES = 256 << 20  # of weights and of codes, so that a small model's are read once
MOST_TRIES = 8  # at meeting a floor
NEAR_DB = 0.25  # above a floor that needs no further try


@dataclass(frozen=True)
class Aim:
    """What a plan is to meet; one of these.

    Attributes:
        budget_bytes: that all weights may take.
        memory_bytes: that drawing may take, as predicted; graphs are opened in turn.
        bits_per_weight: of the MMDiT, all its tensors together; only its weights are planned.
        floor_db: the least signal-to-noise ratio of final latents, unquantized over difference.
    """

    budget_bytes: int | None = None
    memory_bytes: int | None = None
    bits_per_weight: float | None = None
    floor_db: float | None = None

    @property
    def given(self) -> tuple[str, str]:
        """The field that is given, and its value."""
        if self.budget_bytes is not None:
            return "budget_bytes", f"{self.budget_bytes:,} bytes"
        if self.memory_bytes is not None:
            return "memory_bytes", f"{self.memory_bytes:,} bytes"
        if self.bits_per_weight is not None:
            return "bits_per_weight", f"{self.bits_per_weight:g}"
        return "floor_db", f"{self.floor_db:g} dB"


@dataclass(frozen=True)
class Problem:
    """What is to be decided: weights, their candidates, and by graph the bytes of all else."""

    model: Model
    asked: Mapping[tuple[str, str], PlannedWeight]
    rest_bytes: Mapping[str, int]

    def options(self, noise: Noise) -> list[list[Candidate]]:
        return [
            [
                Candidate(f, f.stored_bytes(weight.source.shape), noise.get(key, {}).get(str(f), 0))
                for f in weight.formats
            ]
            for key, weight in self.asked.items()
        ]

    def parts(self, program: QuantizedProgram) -> tuple[QuantizedProgram, ...]:
        """What is emitted for a program: itself, unless the recipe has it cut."""
        return split(program, self.model.recipe.graph_parts.get(program.name, 1))

    def formats(self, choice: Choice) -> dict[str, dict[str, str]]:
        """By graph and weight."""
        found: dict[str, dict[str, str]] = {}
        for (key, weight), i in zip(self.asked.items(), choice, strict=True):
            found.setdefault(key[0], {})[key[1]] = str(weight.formats[i])
        return found


def expressible_formats(recipe: Recipe, formats: Sequence[Format]) -> list[Format]:
    """The formats that every backend of the recipe can express; raises InputError without any."""
    chosen = [(backends.load(n), recipe.backend(n).choices, n) for n in recipe.backends]
    refused = {f: [(n, b.refuse(f, choices)) for b, choices, n in chosen] for f in formats}
    able = [f for f, reasons in refused.items() if not any(reason for _, reason in reasons)]
    if not able:
        (name, reason) = next((n, r) for n, r in refused[formats[0]] if r)
        raise InputError(
            f"no format is left that every backend of the recipe can express; {name}, "
            f"{formats[0]}: {reason}",
            field="formats",
        )
    return able


def problem_of(model: Model, graphs: Sequence[str], formats: Sequence[Format]) -> Problem:
    asked = candidates(model.programs, graphs, formats)
    base = replace(load_scheme(BASE), methods=model.recipe.calibration.methods)
    rest_bytes = {}
    for graph, program in quantize_all(model.programs, base).items():
        own = [w.source for (g, _), w in asked.items() if g == graph]
        planned = sum(program.formats[s.name].stored_bytes(s.shape) for s in own)
        rest_bytes[graph] = program.stored_bytes() - planned
    return Problem(model, asked, rest_bytes)


def budgets_of(problem: Problem, aim: Aim) -> dict[tuple[str, ...], int]:
    """For each set of graphs that shares one, the bytes that its planned weights may take.

    Raises InputError for one that no choice meets.
    """
    every = tuple(problem.rest_bytes)
    if aim.budget_bytes is not None:
        found = {every: aim.budget_bytes - sum(problem.rest_bytes.values())}
    elif aim.bits_per_weight is not None:
        sources = (s for g in MMDIT for s in problem.model.unrounded[g].stored().values())
        values = sum(math.prod(s.shape) for s in sources)
        rest = sum(problem.rest_bytes[graph] for graph in MMDIT)
        found = {MMDIT: int(aim.bits_per_weight * values / 8) - rest}
    elif aim.memory_bytes is not None:
        costs = _costs(problem)
        found = {
            (graph,): sum(
                aim.memory_bytes - int(max(fixed_bytes(part, c) for c in costs))
                for part in problem.parts(problem.model.unrounded[graph])
            )
            for graph in problem.rest_bytes
        }
    else:
        return {}
    _refuse_too_little(problem, aim, found)
    return found


def _costs(problem: Problem) -> list[MeasuredCosts]:
    """Of the recipe's backends; raises InputError for one whose costs were not measured."""
    chosen = map(backends.load, problem.model.recipe.backends)
    return [backends.costs_of(backend, "memory_bytes") for backend in chosen]


def _refuse_too_little(problem: Problem, aim: Aim, budgets: Mapping[tuple[str, ...], int]) -> None:
    for graphs, budget_bytes in budgets.items():
        least = _least_bytes(problem, graphs)
        if budget_bytes < least:
            field, given = aim.given
            raise InputError(
                f"{least - budget_bytes:,} bytes too few for {' and '.join(graphs)}, with every "
                "weight in its smallest format; give more, or allow a smaller format",
                field=field,
                given=given,
            )


def _least_bytes(problem: Problem, graphs: Collection[str]) -> int:
    """Bytes of the planned weights of some graphs, each in its smallest format."""
    return sum(
        w.formats[0].stored_bytes(w.source.shape)
        for (graph, _), w in problem.asked.items()
        if graph in graphs
    )


def choose(
    problem: Problem,
    options: Options,
    budgets: Mapping[tuple[str, ...], int],
    aim: Aim,
    weights: Weights,
    drawn: bool,
    progress: Progress,
) -> tuple[Choice, float | None]:
    def draw(choice: Choice) -> float:
        progress("draw the calibration prompts with the plan")
        return drawn_snr_db(problem, choice, weights)

    if aim.floor_db is None:
        choice = _within(problem, options, budgets)
        if aim.memory_bytes is not None:
            choice = _fitting(problem, options, choice, budgets, aim, aim.memory_bytes)
        return choice, draw(choice) if drawn else None
    return _above(options, aim.floor_db, draw if drawn else None)


def _above(
    options: Options, floor_db: float, draw: Callable[[Choice], float] | None
) -> tuple[Choice, float | None]:
    """The fewest bytes that are drawn at ``floor_db`` or above; without ``draw``, predicted.

    What is drawn differs from what is predicted: the prediction that meets the floor is looked for,
    first where the last difference points to, then between the nearest ones.
    """
    best = tuple(min(range(len(c)), key=lambda i: (c[i].noise, c[i].bytes)) for c in options)
    least = [min(range(len(c)), key=lambda i: (c[i].bytes, c[i].noise)) for c in options]
    best_db, least_db = (decibels(total_noise(options, choice)) for choice in (best, least))
    if draw is None:
        if best_db < floor_db:
            raise _too_high(floor_db, best_db)
        return smallest(options, 10 ** (-floor_db / 10)), None
    drawn: dict[Choice, float] = {}
    target_db, missed_db, met_db = max(floor_db, least_db), -math.inf, math.inf
    for tries in range(1, 4 * MOST_TRIES):
        choice = smallest(options, 10 ** (-target_db / 10)) if target_db < best_db else best
        if choice not in drawn and len(drawn) == MOST_TRIES:
            break
        measured = drawn[choice] = drawn[choice] if choice in drawn else draw(choice)
        away_db = floor_db + NEAR_DB / 2 - measured
        if abs(away_db) <= NEAR_DB / 2 or (choice == best and measured < floor_db):
            break
        if measured < floor_db:
            missed_db = max(missed_db, target_db)
        else:
            met_db = min(met_db, target_db)
        if met_db - missed_db < NEAR_DB or met_db <= least_db:
            break
        between = math.isfinite(missed_db) and math.isfinite(met_db)
        target_db = (missed_db + met_db) / 2 if between else target_db + away_db * tries
        target_db = max(target_db, least_db)
    if max(drawn.values()) < floor_db and best not in drawn:
        drawn[best] = draw(best)
    if max(drawn.values()) < floor_db:
        raise _too_high(floor_db, max(drawn.values()))
    choice = min(
        (c for c, measured in drawn.items() if measured >= floor_db),
        key=lambda c: total_bytes(options, c),
    )
    return choice, drawn[choice]


def _too_high(floor_db: float, reached_db: float) -> InputError:
    return InputError(
        f"not met by any choice of these formats: the best reach {reached_db:.1f} dB; give a lower "
        "floor, or allow a better format",
        field="floor_db",
        given=f"{floor_db:g} dB",
    )


def _within(problem: Problem, options: Options, budgets: Mapping[tuple[str, ...], int]) -> Choice:
    chosen = [0] * len(options)
    for graphs, budget_bytes in budgets.items():
        own = [i for i, (graph, _) in enumerate(problem.asked) if graph in graphs]
        found = allocate([options[i] for i in own], budget_bytes)
        for i, candidate in zip(own, found, strict=True):
            chosen[i] = candidate
    return tuple(chosen)


def _fitting(
    problem: Problem,
    options: Options,
    choice: Choice,
    budgets: Mapping[tuple[str, ...], int],
    aim: Aim,
    memory_bytes: int,
) -> Choice:
    """Take bytes from graphs that are predicted to run in more memory, until none is.

    A byte takes more memory in some formats and layers than in others, so what a graph's weights
    may have is only known of a choice.
    """
    costs = _costs(problem)
    graphs = [graph for graph, _ in problem.asked]
    while True:
        scheme = scheme_of("plan", BASE, (), problem.formats(choice))
        over = {
            name: max(run_bytes(p, c) for p in problem.parts(program) for c in costs) - memory_bytes
            for name, program in quantize_all(problem.model.programs, scheme).items()
        }
        if max(over.values()) <= 0:
            return choice
        used: Counter[str] = Counter()
        for graph, found, chosen in zip(graphs, options, choice, strict=True):
            used[graph] += found[chosen].bytes
        cut = {graph: used[graph] - max(1, over[graph] // 2) for graph in over if over[graph] > 0}
        least = {graph: _least_bytes(problem, [graph]) for graph in cut}
        cut = {g: max(size, least[g]) if used[g] > least[g] else size for g, size in cut.items()}
        budgets = {**budgets, **{(graph,): size for graph, size in cut.items()}}
        _refuse_too_little(problem, aim, budgets)
        choice = _within(problem, options, budgets)


def drawn_snr_db(problem: Problem, choice: Choice, weights: Weights) -> float:
    """Signal-to-noise ratio of the final latents, by their mean share of noise."""
    model = problem.model
    scheme = scheme_of("plan", BASE, model.recipe.calibration.methods, problem.formats(choice))
    programs = quantize_all(model.programs, scheme)
    rounded = rounder(programs, weights.read, model.calls_as(programs, weights))
    found = model.travel({name: rounded(name) for name in programs}, weights)
    pairs = zip(found.latents, model.trajectories.latents, strict=True)
    return decibels(sum(10 ** (-snr_db(a, b) / 10) for a, b in pairs) / len(found.latents))


def decibels(noise: float) -> float:
    return -10 * math.log10(max(noise, 1e-30))

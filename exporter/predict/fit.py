"""What a device cannot hold, or a store not take, is refused, naming what would fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from exporter import backends
from exporter.backends.contract import Backend, MeasuredCosts
from exporter.errors import InputError
from exporter.predict.graph import file_bytes, run_bytes
from exporter.quantize.program import QuantizedProgram
from exporter.quantize.split import emitted, split
from exporter.recipe.recipe import Recipe

MOST_PARTS = 16  # of a graph, that a refusal proposes
KEYS = {"t5": "t5_parts", "denoiser": "denoiser_parts"}  # what cuts a graph
Programs = Mapping[str, QuantizedProgram]


@dataclass(frozen=True)
class Limit:
    """What each graph may take at most.

    Attributes:
        key: of ``[build]`` that says so.
        most_bytes: its value.
        predict: what a graph takes.
        takes: the words for it.
        otherwise: what to do where nothing fits.
    """

    key: str
    most_bytes: int
    predict: Callable[[QuantizedProgram, MeasuredCosts], int]
    takes: str
    otherwise: str


def limits_of(recipe: Recipe) -> tuple[Limit, ...]:
    """The limits that a recipe names."""
    limits = []
    if recipe.device_memory_bytes is not None:
        limits.append(memory_limit(recipe.device_memory_bytes))
    if recipe.most_file_bytes is not None:
        limits.append(file_limit(recipe.most_file_bytes))
    return tuple(limits)


def memory_limit(most_bytes: int) -> Limit:
    """Of the anonymous memory of a process that runs a graph."""
    return Limit(
        "device_memory_bytes", most_bytes, run_bytes, "take {} bytes", "make the picture smaller"
    )


def file_limit(most_bytes: int) -> Limit:
    """Of a graph's files."""
    return Limit(
        "most_file_bytes", most_bytes, file_bytes, "have files of {} bytes", "allow larger files"
    )


def refuse_too_large(
    limits: Sequence[Limit],
    backend: Backend,
    scheme: str,
    parts: Sequence[QuantizedProgram],
    others: Callable[[], Mapping[str, Programs]],
) -> None:
    """Raise InputError if a graph is predicted to pass a limit, naming what would not.

    Args:
        parts: what would be emitted.
        others: the programs of each scheme that the backend can express; asked for at need.
    """
    for limit in limits:
        costs = backends.costs_of(backend, f"[build] {limit.key}")
        needed = [(limit.predict(part, costs), part.name) for part in parts]
        most_bytes, worst = max(needed, key=lambda one: one[0])
        if most_bytes > limit.most_bytes:
            raise InputError(
                f"{backend.name}-{scheme} is predicted to "
                f"{limit.takes.format(f'{most_bytes:,}')} ({worst}), more than "
                f"{limit.key} = {limit.most_bytes:,}; {_remedy(limit, limits, costs, others())}"
            )


def _remedy(
    limit: Limit, limits: Sequence[Limit], costs: MeasuredCosts, others: Mapping[str, Programs]
) -> str:
    def fits(part: QuantizedProgram) -> bool:
        return all(each.predict(part, costs) <= each.most_bytes for each in limits)

    peaks, able = dict[str, int](), list[str]()
    for scheme, programs in others.items():
        counts = {g: _parts_that_fit(programs[g], fits) for g in KEYS if g in programs}
        graphs = emitted(programs, counts)
        cuts = [f"{KEYS[graph]} = {count}" for graph, count in counts.items() if count > 1]
        name = f"{scheme} with {' and '.join(cuts)}" if cuts else scheme
        peaks[name] = max(limit.predict(graph, costs) for graph in graphs)
        if all(map(fits, graphs)):
            able.append(f"{name} ({peaks[name]:,})")
    if able:
        return f"what would fit: {', '.join(able)}"
    least = min(peaks, key=lambda name: peaks[name])
    return f"nothing fits; the least is {least} ({peaks[least]:,}); {limit.otherwise}"


def _parts_that_fit(program: QuantizedProgram, fits: Callable[[QuantizedProgram], bool]) -> int:
    """The fewest parts that each fit, or 1 when no number is enough."""
    for count in range(1, MOST_PARTS + 1):
        try:
            parts = split(program, count)
        except InputError:
            break
        if all(map(fits, parts)):
            return count
    return 1

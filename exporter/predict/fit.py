"""What a device cannot hold is refused, naming what it could."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from exporter import backends
from exporter.backends.contract import Backend, MeasuredCosts
from exporter.errors import InputError
from exporter.predict.graph import run_bytes
from exporter.quantize.program import QuantizedProgram
from exporter.quantize.split import emitted, split

MOST_PARTS = 16  # of T5, that a refusal proposes


def refuse_too_large(
    limit_bytes: int,
    backend: Backend,
    scheme: str,
    parts: Sequence[QuantizedProgram],
    others: Callable[[], Mapping[str, Mapping[str, QuantizedProgram]]],
) -> None:
    """Raise InputError if a graph would not run in a device's memory, naming what would.

    Args:
        parts: what would be emitted.
        others: the programs of each scheme that the backend can express; asked for at need.
    """
    costs = backends.costs_of(backend, "[build] device_memory_bytes")
    needed = {part.name: run_bytes(part, costs) for part in parts}
    worst = max(needed, key=lambda name: needed[name])
    if needed[worst] <= limit_bytes:
        return
    raise InputError(
        f"{backend.name}-{scheme} is predicted to take {needed[worst]:,} bytes ({worst}), more "
        f"than device_memory_bytes = {limit_bytes:,}; {_remedy(limit_bytes, costs, others())}"
    )


def _remedy(
    limit_bytes: int, costs: MeasuredCosts, others: Mapping[str, Mapping[str, QuantizedProgram]]
) -> str:
    peaks: dict[str, int] = {}
    for scheme, programs in others.items():
        count = _parts_that_fit(programs, costs, limit_bytes)
        name = f"{scheme} with t5_parts = {count}" if count > 1 else scheme
        peaks[name] = max(run_bytes(part, costs) for part in emitted(programs, count))
    able = [f"{name} ({peak:,})" for name, peak in peaks.items() if peak <= limit_bytes]
    if able:
        return f"what would fit: {', '.join(able)}"
    least = min(peaks, key=lambda name: peaks[name])
    return f"nothing fits; the least is {least} ({peaks[least]:,}); make the picture smaller"


def _parts_that_fit(
    programs: Mapping[str, QuantizedProgram], costs: MeasuredCosts, limit_bytes: int
) -> int:
    """The fewest parts of T5 that each fit, or 1 when there is no T5 or no number is enough."""
    for count in range(1, MOST_PARTS + 1 if "t5" in programs else 1):
        try:
            parts = split(programs["t5"], count)
        except InputError:
            break
        if max(run_bytes(part, costs) for part in parts) <= limit_bytes:
            return count
    return 1

"""What processors took of energy, where the kernel tells (Linux's powercap, Intel's RAPL).

Counters are of the whole machine: whatever else runs is in them, and so is idling.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

ROOT = Path("/sys/class/powercap")


def counters(root: Path = ROOT) -> dict[str, tuple[int, int]]:
    """Of each processor package: microjoules until now, and those at which it begins again at 0.

    Empty where there is no such counter, or only root may read it.
    """
    found = {}
    for zone in sorted(root.glob("intel-rapl:*")):
        if zone.name.count(":") > 1:  # a part of a package: cores, memory
            continue
        try:
            now, most = (
                int((zone / name).read_text()) for name in ("energy_uj", "max_energy_range_uj")
            )
        except OSError:
            continue
        found[zone.name] = (now, most)
    return found


def joules(
    before: Mapping[str, tuple[int, int]], after: Mapping[str, tuple[int, int]]
) -> float | None:
    """Joules between two readings, none of which lasted twice around; None without counters."""
    if not before or before.keys() != after.keys():
        return None
    return sum((after[zone][0] - now) % most for zone, (now, most) in before.items()) / 1e6

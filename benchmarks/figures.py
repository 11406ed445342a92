"""Measured figures in a file of their own: what was measured, how, on what, when, and the rows.

A benchmark writes one with ``--json``; ``benchmarks/results/`` keeps those that the documentation
shows, and ``benchmarks.tables`` turns each into the table of its name. A file holds

    what        one sentence
    command     what measured it, and would again; null: nothing does it alone
    machine     processor, cores, features; null where it was not written down
    date        of the measurement
    columns     key, title and, for numbers, digits after the point
    rows        a value for each column; null, or no value: an empty cell
    remark      what a reader must know besides, or ""
    details     what the benchmark measured besides, as it left it
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
FEATURES = {  # flags of /proc/cpuinfo that decide which kernels run, by the names people know
    "avx2": "AVX2",
    "avx_vnni": "AVX-VNNI",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "bfloat16",
    "amx_int8": "AMX",
    "asimddp": "dot product",
    "i8mm": "i8mm",
}


@dataclass(frozen=True)
class Column:
    """One column: the key of its values in a row, its title, and digits of numbers."""

    key: str
    title: str
    digits: int = 0


@dataclass(frozen=True)
class Machine:
    """What figures were measured on; None where nobody wrote it down."""

    processor: str | None
    cores: int | None
    features: tuple[str, ...] = ()


@dataclass(frozen=True)
class Figures:
    """One file of figures."""

    what: str
    command: str | None
    machine: Machine
    date: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    remark: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


def this_machine() -> Machine:
    """The processor that this process runs on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text("utf-8").splitlines() if cpuinfo.is_file() else []
    told = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
    flags = told.get("flags", told.get("Features", "")).split()
    return Machine(
        told.get("model name") or platform.processor() or platform.machine(),
        os.cpu_count(),
        tuple(name for flag, name in FEATURES.items() if flag in flags),
    )


def this_command(file: Path) -> str:
    """The command line that is running, without the flag that says where figures go."""
    module = sys.modules["__main__"].__spec__
    name = module.name.removesuffix(".__main__") if module else Path(sys.argv[0]).stem
    arguments = sys.argv[1:]
    if str(file) in arguments:
        place = arguments.index(str(file))
        del arguments[place - 1 : place + 1]
    return shlex.join(["python", "-m", name, *arguments])


def write(
    file: Path, what: str, columns: Sequence[Column], rows: Sequence[Row], **details: Any
) -> None:
    """Write figures that this process measured just now."""
    today = date.today().isoformat()
    shown = tuple(with_values(columns, rows))
    found = Figures(
        what, this_command(file), this_machine(), today, shown, tuple(rows), details=details
    )
    file.write_text(json.dumps(asdict(found), indent=1, ensure_ascii=False) + "\n", "utf-8")


def with_values(columns: Sequence[Column], rows: Sequence[Row]) -> list[Column]:
    """The columns that some row has a value for."""
    return [c for c in columns if any(row.get(c.key) is not None for row in rows)]


def read(file: Path) -> Figures:
    """Figures from a file; raises TypeError or KeyError where it is not one."""
    found = json.loads(file.read_text("utf-8"))
    machine = found["machine"]
    return Figures(
        **{
            **found,
            "machine": Machine(**{**machine, "features": tuple(machine["features"])}),
            "columns": tuple(Column(**column) for column in found["columns"]),
            "rows": tuple(found["rows"]),
        }
    )


def markdown(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """A table; a column's numbers have its digits, and each list its values one after the other."""
    cells = [[c.title for c in columns]]
    cells += [[_cell(row.get(c.key), c.digits) for c in columns] for row in rows]
    lines = ["|" + "".join(f" {cell} |" if cell else " |" for cell in line) for line in cells]
    return "\n".join([lines[0], "|" + "---|" * len(columns), *lines[1:]])


def _cell(value: Any, digits: int) -> str:
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return ", ".join(_cell(one, digits) for one in value)
    if isinstance(value, int | float):
        return f"{value:,.{digits}f}"
    return str(value)


def provenance(figures: Figures) -> str:
    """Where figures come from, in one line: command, machine, date and remark."""
    machine = figures.machine
    cores = f"{machine.cores} cores" if machine.cores else ""
    command = f"`{figures.command}`" if figures.command else "measured by hand"
    told = [command, machine.processor or "", cores, *machine.features, figures.date]
    remark = f" {figures.remark}" if figures.remark else ""
    return f"{', '.join(part for part in told if part)}.{remark}"

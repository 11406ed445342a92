"""Figures in the documentation come from files, and those from commands that exist."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from pathlib import Path
from types import ModuleType

import click
import pytest

from benchmarks import figures, tables
from exporter.cli import main

FILES = sorted(tables.RESULTS.glob("*.json"))
WORKED_OUT = ("full-size-ratios", "step-floor")  # from rows of several runs
# A cell that is a number with or without a unit: a figure; between backticks it is a value of code.
FIGURE = re.compile(r"-?[\d,]+(\.\d+)?( ?(s|ms|MB|GB|MiB|GiB|dB|%|times|px))?")


@pytest.mark.parametrize("page", tables.pages(), ids=lambda page: page.name)
def test_tables_are_what_the_figures_give(page: Path) -> None:
    text = page.read_text("utf-8")
    assert tables.rewritten(text) == text, "python -m benchmarks.tables writes them"


def test_every_file_of_figures_is_shown_once() -> None:
    shown = [m["name"] for p in tables.pages() for m in tables.BLOCK.finditer(p.read_text("utf-8"))]
    assert sorted(shown) == sorted(file.stem for file in FILES)


@pytest.mark.parametrize("page", tables.pages(), ids=lambda page: page.name)
def test_no_table_of_figures_stands_elsewhere(page: Path) -> None:
    for line in tables.BLOCK.sub("", page.read_text("utf-8")).splitlines():
        if line.startswith("|"):
            cells = [cell.strip(" *") for cell in line.strip("|").split("|")]
            assert not any(FIGURE.fullmatch(cell) for cell in cells), line


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_files_of_figures_are_whole(file: Path) -> None:
    found = figures.read(file)
    assert found.what.endswith(".") and re.fullmatch(r"20\d\d-\d\d-\d\d", found.date)
    assert found.rows and set(figures.with_values(found.columns, found.rows)) == set(found.columns)
    text = {c.key for c in found.columns if isinstance(found.rows[0].get(c.key), str)}
    assert found.columns[0].key in text


@pytest.mark.parametrize("command", sorted({figures.read(f).command or "" for f in FILES} - {""}))
def test_commands_of_figures_exist(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each names a module that is there, and flags that it takes."""
    for part in command.split(" -- "):
        words = shlex.split(part)
        flags = {word for word in words if word.startswith("--")}
        if words[0] == "fourstep":
            given = main.commands[words[1]]
            taken = {flag for option in given.params for flag in option.opts}
            assert flags <= taken
            given.make_context(words[1], words[2:], parent=click.Context(main))
        elif words[0] == "python":
            assert flags <= flags_of(words[2], monkeypatch, capsys), part


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_measuring_again_gives_the_columns_that_are_shown(file: Path) -> None:
    """Benchmarks that write figures write under the keys that their files have."""
    found = figures.read(file)
    modules = re.findall(r"python -m ([\w.]+)", found.command or "")
    names = ("COLUMNS", "PAIRED")
    columns = [c for m in modules[-1:] for name in names for c in getattr(_module(m), name, ())]
    written = {column.key for column in columns}
    if written and file.stem not in WORKED_OUT:
        assert {column.key for column in found.columns} <= written


def _module(name: str) -> ModuleType:
    """What ``python -m NAME`` runs."""
    module = importlib.import_module(name)
    return importlib.import_module(f"{name}.__main__") if hasattr(module, "__path__") else module


def flags_of(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> set[str]:
    """What ``python -m NAME --help`` lists."""
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit):
        _module(name).main()
    return set(re.findall(r"--[\w-]+", capsys.readouterr().out))


def test_a_benchmark_writes_what_tables_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = [
        figures.Column("name", "name"),
        figures.Column("share", "share", 3),
        figures.Column("bytes", "bytes"),
        figures.Column("runs", "runs", 1),
        figures.Column("error", "error"),
    ]
    rows: list[figures.Row] = [
        {"name": "a", "share": 0.95, "bytes": 1234567, "runs": [1, 2.25]},
        {"name": "b", "share": None, "bytes": 7},
    ]
    monkeypatch.setattr("sys.argv", ["it", "--rounds", "3", "--json", str(tmp_path / "it.json")])
    figures.write(tmp_path / "it.json", "It.", columns, rows, raw={"seconds": 2})
    found = figures.read(tmp_path / "it.json")
    assert (found.what, found.rows, found.details) == ("It.", tuple(rows), {"raw": {"seconds": 2}})
    assert found.command is not None and found.command.endswith(" --rounds 3")
    assert found.machine == figures.this_machine() and found.machine.cores
    assert found.columns == tuple(columns[:4])  # nothing failed
    assert figures.markdown(found.columns, found.rows) == (
        "| name | share | bytes | runs |\n"
        "|---|---|---|---|\n"
        "| a | 0.950 | 1,234,567 | 1.0, 2.2 |\n"
        "| b | | 7 | |"
    )
    assert found.date in figures.provenance(found)


def test_provenance_says_who_measured_what() -> None:
    machine = figures.Machine("AMD EPYC", 2, ("AVX2",))
    found = figures.Figures("It.", "python -m it", machine, "2026-11-29", (), (), "Twice.")
    line = "`python -m it`, AMD EPYC, 2 cores, AVX2, 2026-11-29. Twice."
    assert figures.provenance(found) == line
    nobody = figures.Figures("It.", None, figures.Machine(None, None), "2026-11-29", (), ())
    assert figures.provenance(nobody) == "measured by hand, 2026-11-29."


def test_pages_are_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- table: it -->\nold\n<!-- end -->\nz\n")
    (tmp_path / "it.json").write_text(
        json.dumps({
            "what": "It.", "command": None, "date": "2026-11-29", "remark": "", "details": {},
            "machine": {"processor": None, "cores": None, "features": []},
            "columns": [{"key": "n", "title": "n", "digits": 0}], "rows": [{"n": "x"}],
        })
    )  # fmt: skip
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "pages", lambda: [page])
    for arguments, code in ((["--check"], 1), ([], 0), (["--check"], 0)):
        monkeypatch.setattr("sys.argv", ["tables", *arguments])
        with pytest.raises(SystemExit) as stopped:
            tables.main()
        assert stopped.value.code == code
    block = "<!-- table: it -->\n| n |\n|---|\n| x |\n\nmeasured by hand, 2026-11-29.\n<!-- end -->"
    assert page.read_text() == f"a\n{block}\nz\n"

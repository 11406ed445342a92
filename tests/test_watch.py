"""``run --watch``: a file of prompts is drawn again at every change."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from exporter.cli import main
from exporter.files import edits
from tests.conftest import opened_by
from tests.test_cli import mistake

Edit = Callable[[], object]


@pytest.fixture
def edited(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes edits, each when the command has waited for one some times, then ends it by Ctrl-C."""

    def prepare(*wanted: Edit) -> None:
        left = [edit for each in wanted for edit in (each, int, int)]

        def sleep(_: float) -> None:
            if not left:
                raise KeyboardInterrupt
            left.pop(0)()

        monkeypatch.setattr("exporter.files.edits.sleep", sleep)

    return prepare


def watch(package: Path, file: Path, out: Path, *options: object) -> Result:
    words = ["run", package, "--watch", file, "--out", out, *options]
    return CliRunner().invoke(main, [str(word) for word in words])


def said(result: Result) -> list[tuple[str, str]]:
    """The names of pictures and their prompts, in the order in which they were told."""
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    return [(Path(row["path"]).name, row["prompt"]) for row in rows]


def test_what_changes_is_drawn_again(
    tiny_package: Path, tmp_path: Path, edited: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing else; graphs are opened once, and the pictures are those of a plain run."""
    opened = opened_by(monkeypatch)
    file, out = tmp_path / "prompts.txt", tmp_path / "p.png"
    file.write_text("a star\na circle\n")
    edited(
        lambda: file.write_text("a star\na square\n"),
        lambda: os.utime(file, ns=(1, 1)),  # saved with nothing changed
        lambda: file.write_text("a square\na square\n"),
    )
    result = watch(tiny_package, file, out, "--seed", 3, "--json")
    assert result.exit_code == 130, result.output
    assert said(result) == [
        ("p-0.png", "a star"),
        ("p-1.png", "a circle"),
        ("p-1.png", "a square"),
        ("p-0.png", "a square"),
    ]
    assert len(opened) == len(set(opened))
    alone = tmp_path / "alone.png"
    words = ["run", tiny_package, "a square", "--seed", 3, "--out", alone]
    assert CliRunner().invoke(main, [str(word) for word in words]).exit_code == 0
    assert {(tmp_path / f"p-{i}.png").read_bytes() for i in (0, 1)} == {alone.read_bytes()}


def test_what_is_out_of_date_is_given_up(
    tiny_package: Path, tmp_path: Path, edited: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file changes while its picture is drawn: after the step the newer one is drawn."""
    file, out = tmp_path / "prompts.txt", tmp_path / "p.png"
    file.write_text("a star\n")
    asked = edits.Edits.is_stale
    looks = []

    def is_stale(self: edits.Edits) -> bool:
        looks.append(1)
        if len(looks) == 2:
            file.write_text("a green triangle\n")
        return asked(self)

    monkeypatch.setattr(edits.Edits, "is_stale", is_stale)
    edited()
    result = watch(tiny_package, file, out, "--json")
    assert result.exit_code == 130 and said(result) == []
    assert len(looks) == 2 and not out.exists()
    edited(int)
    looks.clear()
    file.write_text("a star\n")
    result = watch(tiny_package, file, out, "--json")
    assert said(result) == [("p.png", "a green triangle")]


def test_a_mistake_in_the_file_is_told_and_the_next_change_is_drawn(
    tiny_package: Path, tmp_path: Path, edited: Callable[..., None]
) -> None:
    file, out = tmp_path / "prompts.txt", tmp_path / "p.png"
    file.write_text("a star\n")
    edited(
        lambda: file.write_text("  \n"),
        lambda: file.write_text("x" * 1_000_000),
        file.unlink,  # as editors do before they write anew
        lambda: file.write_text("a circle\n"),
    )
    result = watch(tiny_package, file, out)
    assert [line.split("  ")[1] for line in result.stdout.splitlines()] == [
        "'a star'",
        "'a circle'",
    ]
    assert "fourstep: --watch: " in result.stderr and "holds no prompt" in result.stderr
    assert "line 1: " in result.stderr and "Traceback" not in result.output


def test_mistakes_at_first_end_the_command(tiny_package: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "prompts.txt", tmp_path / "p.png"
    mistake(watch(tiny_package, file, out), "--watch: ", "prompts.txt: cannot be read")
    file.write_text("\n")
    mistake(watch(tiny_package, file, out), "--watch: ", "holds no prompt")
    file.write_text("a star\n")
    mistake(watch(tiny_package, file, out, "--prompts", file), "--watch takes the place of prompts")
    mistake(watch(tiny_package, Path("-"), out), "standard input cannot be watched")
    mistake(watch(tiny_package, file, tmp_path / "none" / "a.png"), "none", "does not exist")
    mistake(watch(tmp_path, file, out), "not a package")
    assert not out.exists()

"""The command line on streams and in locales as people have them: a process for each."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

PROMPT = "a red circle"
ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


def started(*arguments: object, env: Mapping[str, str] | None = None, **streams: Any) -> Any:
    """A ``fourstep`` of its own; its streams are pipes unless others are given."""
    command: list[Any] = [sys.executable, "-m", "exporter", *arguments]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    return subprocess.Popen(command, env={**os.environ, **(env or {})}, **streams)


def one_line(said: bytes) -> str:
    """What was said last; there is no traceback, and no line of an interpreter's."""
    text = said.decode()
    assert "Traceback" not in text and "Error:" not in text
    return text.strip().splitlines()[-1]


@pytest.mark.parametrize("closed", ["2>&-", "1>&- 2>&-", "0<&- 2>&-"])
def test_closed_streams_cost_no_picture(tiny_package: Path, tmp_path: Path, closed: str) -> None:
    line = f'exec "$@" {closed}'
    command = ["sh", "-c", line, "sh", sys.executable, "-m", "exporter", "run", str(tiny_package)]
    picture = tmp_path / "drawn.png"
    found = subprocess.run([*command, PROMPT, "--out", str(picture)], check=False, timeout=120)
    assert found.returncode == 0
    assert picture.stat().st_size > 100
    assert [f.name for f in tmp_path.iterdir()] == ["drawn.png"]


def test_nobody_reads_stderr(tiny_package: Path, tmp_path: Path) -> None:
    """As behind ``2> >(head -1)``: the picture is drawn all the same."""
    reading, writing = os.pipe()
    os.close(reading)
    picture = tmp_path / "drawn.png"
    process = started("run", tiny_package, PROMPT, "--out", picture, stderr=writing)
    os.close(writing)
    shown, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and picture.is_file()
    assert shown.decode().startswith(str(picture))


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [(signal.SIGINT, 130, "stopped"), (signal.SIGTERM, 143, "told to stop")],
)
def test_stopped_while_drawing(
    tiny_package: Path, tmp_path: Path, number: signal.Signals, code: int, words: str
) -> None:
    seeds = [part for seed in range(500) for part in ("--seed", str(seed))]
    out = tmp_path / "drawn.png"
    process = started("run", tiny_package, PROMPT, *seeds, "--out", out)
    for line in process.stderr:
        if b"step" in line:
            break
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == code
    assert one_line(said) == f"fourstep: {words}"
    assert not [f for f in tmp_path.iterdir() if f.name.startswith(".")]


@pytest.mark.parametrize("prompt", ["ein Käfer", "赤い丸 🔴"])
@pytest.mark.parametrize("env", [ASCII, {"PYTHONIOENCODING": "cp1252"}])
def test_locales_that_cannot_write_a_prompt(
    tiny_package: Path, tmp_path: Path, prompt: str, env: dict[str, str]
) -> None:
    """It is drawn, and shown with what can be written."""
    picture = tmp_path / "drawn.png"
    process = started("run", tiny_package, prompt.encode(), "--out", picture, env=env)
    shown, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert picture.is_file() and b"Traceback" not in said
    assert str(picture).encode() in shown


@pytest.mark.parametrize("env", [ASCII, {"PYTHONIOENCODING": "cp1252"}])
def test_prompts_from_stdin_and_names_in_any_locale(
    tiny_package: Path, tmp_path: Path, env: dict[str, str]
) -> None:
    """Bytes are UTF-8, whatever the locale says; what is shown is readable where it can be."""
    picture = tmp_path / "Käfer.png"
    asked = ("run", tiny_package, "--prompts", "-", "--out", os.fsencode(picture), "--json")
    process = started(*asked, env=env, stdin=subprocess.PIPE)
    shown, said = process.communicate("ein Käfer 🔴\r\n".encode(), timeout=120)
    assert process.returncode == 0, said
    (row,) = json.loads(shown)
    assert row["prompt"] == "ein Käfer 🔴" and row["path"] == str(picture)
    with Image.open(picture) as drawn:
        assert drawn.text["prompt"] == "ein Käfer 🔴"  # type: ignore[attr-defined]


def test_prompts_from_a_closed_stdin(tiny_package: Path) -> None:
    command = [sys.executable, "-m", "exporter", "run", str(tiny_package), "--prompts", "-"]
    line = ["sh", "-c", 'exec "$@" <&-', "sh", *command]
    found = subprocess.run(line, check=False, capture_output=True, timeout=120)
    assert found.returncode == 2
    assert one_line(found.stderr) == "fourstep: --prompts: standard input is closed; name a file"


@pytest.mark.parametrize("env", [{}, ASCII])
def test_a_prompt_that_is_not_utf8(tiny_package: Path, tmp_path: Path, env: dict[str, str]) -> None:
    picture = tmp_path / "drawn.png"
    process = started("run", tiny_package, b"caf\xe9", "--out", picture, env=env)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 2, said
    assert "UTF-8" in one_line(said)
    assert not picture.exists()


def test_names_from_files_cannot_steer_a_terminal(tmp_path: Path) -> None:
    """Escape bytes in what a user names are shown, not sent."""
    place = tmp_path / "\x1b[31mred"
    process = started("inspect", place)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 2 and b"\x1b" not in said and b"\\x1b" in said


def test_a_full_disk_costs_a_picture_and_nothing_else(tiny_package: Path, tmp_path: Path) -> None:
    """The older picture stays whole, and the line says what to do."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "none", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        (disk / "drawn.png").write_bytes(b"older")
        process = started("run", tiny_package, PROMPT, "--out", disk / "drawn.png")
        _, said = process.communicate(timeout=120)
        assert process.returncode == 2
        assert "the disk is full; free space or choose" in one_line(said)
        assert [(f.name, f.read_bytes()) for f in disk.iterdir()] == [("drawn.png", b"older")]
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)

"""Builds that are killed, two builds into one place, and drawing with what is being replaced."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image as Picture

from exporter.build import resume, write
from exporter.cli import main
from exporter.errors import InputError
from exporter.files import lock, staging
from exporter.files.lock import LOCK, OWNER, alone, locked
from exporter.files.pictures import write_picture
from exporter.marking.key import make_key
from tests.conftest import ROOT
from tests.test_package import digests
from tests.test_resume import RECIPE

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def recipes(tiny_folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two recipes whose packages have the same name and other bytes, and few graphs."""
    text = RECIPE.format(checkpoint=tiny_folder).replace("t5_tokens = 8", "t5 = false")
    text = text.replace("[text]", "image_to_image = false\n[text]")
    for name, size in (("tiny", 32), ("older", 16)):
        (tmp_path / f"{name}.toml").write_text(text.replace("size = 32", f"size = {size}"))
    return tmp_path / "tiny.toml", tmp_path / "older.toml"


def killed(recipes: tuple[Path, Path], place: Path, *given: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "tests.killed_builds", *map(str, recipes), str(place), *given]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check_killed(rows: list[dict[str, Any]], count: int) -> None:
    assert len(rows) == count
    for row in rows:
        assert row["killed"] and row["again"] == 0 and row["same"], row
        assert row["beside"] == ["onnx-int4", "onnx-int4.log.json"], row


def test_a_package_is_always_there(recipes: tuple[Path, Path], tmp_path: Path) -> None:
    """Killed four times, and the next build ends in the same bytes with nothing beside."""
    rows = killed(recipes, tmp_path, "4")
    check_killed(rows, 4)
    assert all(row["present"] for row in rows) or not can_exchange(tmp_path)


@pytest.mark.full
def test_killed_at_sixty_moments(recipes: tuple[Path, Path], tmp_path: Path) -> None:
    rows = killed(recipes, tmp_path, "60")
    check_killed(rows, 60)
    assert all(row["present"] for row in rows) or not can_exchange(tmp_path)


@pytest.mark.full
def test_killed_where_two_folders_cannot_be_exchanged(
    recipes: tuple[Path, Path], tmp_path: Path
) -> None:
    """Then the older package lies aside for a moment, and the next build finds it there."""
    rows = killed(recipes, tmp_path, "20", "fallback")
    check_killed(rows, 20)
    assert all(row["present"] or row["aside"] for row in rows)


def can_exchange(place: Path) -> bool:
    for name in ("one", "other"):
        (place / name).mkdir(exist_ok=True)
    return staging.exchange(place / "one", place / "other")


def folder(place: Path, text: str) -> Path:
    place.mkdir()
    (place / "file").write_text(text)
    return place


@pytest.fixture(params=[True, False], ids=["exchanged", "renamed"])
def exchanging(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if not request.param:
        monkeypatch.setattr(staging, "_exchanging_rename", lambda: None)
    return bool(request.param)


def test_two_folders_change_places(tmp_path: Path) -> None:
    one, other = folder(tmp_path / "one", "1"), folder(tmp_path / "other", "2")
    if not staging.exchange(one, other):
        pytest.skip("this system cannot exchange folders")
    assert ((one / "file").read_text(), (other / "file").read_text()) == ("2", "1")
    with pytest.raises(FileNotFoundError):
        staging.exchange(one, tmp_path / "none")


@pytest.mark.parametrize(
    ("exchanging", "call"), [(True, 0), *((False, i) for i in range(4))], indirect=["exchanging"]
)
def test_ctrl_c_during_the_replacement_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanging: bool, call: int
) -> None:
    """Ahead of each move and removal from where the new package is whole."""
    target = folder(tmp_path / "target", "older")
    calls = iter(range(100))

    def stopping(original: Callable[..., Any]) -> Callable[..., Any]:
        def work(*given: object) -> object:
            if next(calls) == call:
                raise KeyboardInterrupt
            return original(*given)

        return work

    with pytest.raises(KeyboardInterrupt), staging.staging(target) as partial:
        (partial / "file").write_text("new")
        monkeypatch.setattr(Path, "rename", stopping(Path.rename))
        monkeypatch.setattr(staging, "remove", stopping(staging.remove))
    assert (target / "file").read_text() == ("new" if exchanging or call > 1 else "older")
    with pytest.raises(KeyError), staging.staging(target):
        raise KeyError
    assert (target / "file").read_text() in ("older", "new")
    assert [f.name for f in tmp_path.iterdir()] == ["target"]


def test_an_older_package_aside_is_put_back_by_the_next_build(tmp_path: Path) -> None:
    """As a kill between two renames leaves it; the build need not end well."""
    folder(tmp_path / ".target.old", "older")
    with pytest.raises(KeyError), staging.staging(tmp_path / "target"):
        raise KeyError
    assert (tmp_path / "target" / "file").read_text() == "older"
    assert [f.name for f in tmp_path.iterdir()] == ["target"]


def test_text_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file.json"
    staging.write_whole(file, "older")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        staging.write_whole(file, "newer")
    assert file.read_text() == "older" and [f.name for f in tmp_path.iterdir()] == ["file.json"]


def started(recipe: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "exporter", "build", str(recipe), "--backend", "onnx"]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*command, "--out", str(out)], env=ENVIRONMENT, stdout=pipe, stderr=pipe, text=True
    )


def test_two_builds_into_one_place(recipes: tuple[Path, Path], tmp_path: Path) -> None:
    """The second says whom it waits for, and then finds the package whole."""
    out = tmp_path / "out"
    both = [started(recipes[0], out) for _ in range(2)]
    said = [child.communicate(timeout=300)[1] for child in both]
    assert [child.returncode for child in both] == [0, 0], said
    first, second = sorted(said, key=lambda text: "onnx-int4 is whole already" in text)
    assert "is whole already" not in first and "onnx-int4 is whole already" in second
    waits = f"process {both[said.index(first)].pid} on {socket.gethostname()} has been working here"
    assert waits in second or "waiting for it" not in second
    assert sorted(f.name for f in out.iterdir()) == ["onnx-int4", "onnx-int4.log.json"]


@pytest.mark.full
def test_drawing_while_the_package_is_replaced(recipes: tuple[Path, Path], tmp_path: Path) -> None:
    """Each picture is of one package or the other, or there is one line and no picture."""
    out, pictures = tmp_path / "out", set[bytes]()

    def draw() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "exporter", "run", str(out / "onnx-int4"), "a circle"]
        return subprocess.run(
            [*command, "--out", str(tmp_path / "picture.png")],
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
        )

    def picture() -> bytes:
        return (tmp_path / "picture.png").read_bytes()

    for recipe in recipes:
        with started(recipe, out) as child:
            assert child.wait(300) == 0
        assert draw().returncode == 0
        pictures.add(picture())
    with started(recipes[0], out) as child:
        while child.poll() is None:
            done = draw()
            if done.returncode == 0:
                assert picture() in pictures
            else:
                last = done.stderr.splitlines()[-1]
                assert done.returncode == 2 and last.startswith("fourstep: ")
        assert child.returncode == 0 and digests(out / "onnx-int4")


@pytest.fixture(params=[True, False], ids=["locks", "no locks"])
def locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """With the system's locks, and on a file system that has none."""

    def none(_: int) -> bool:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    if not request.param:
        monkeypatch.setattr(lock, "_try_lock", none)
    return bool(request.param)


def test_one_at_a_time(tmp_path: Path, locks: bool) -> None:
    """Eight threads; no two inside at once, each that waits says so once, nothing stays."""
    place, inside, most, said = tmp_path / "deep" / "er", list[int](), list[int](), list[str]()

    def work(number: int) -> None:
        with locked(place, said.append):
            inside.append(number)
            time.sleep(0.01)
            most.append(len(inside))
            inside.remove(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == [1] * 8 and len(said) <= 7
    assert all(f"process {os.getpid()} on " in line for line in said)
    assert [f for f in tmp_path.rglob("*") if f.is_file()] == []


def test_one_at_a_time_at_a_file(tmp_path: Path, locks: bool) -> None:
    """Whoever writes beside it does not wait; names as long as a file system allows are locked."""
    one, other = tmp_path / ("n" * 250), tmp_path / "other"
    with alone(one, pytest.fail), alone(other, pytest.fail):
        said: list[str] = []
        waiting = threading.Thread(target=lambda: enter(alone(one, said.append)))
        waiting.start()
        waiting.join(1)
        assert waiting.is_alive() and "has been working here since" in said[0]
    waiting.join(60)
    assert not waiting.is_alive() and [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    "name", ["onnx-int4", "[a-z]*?", "n" * 240], ids=["plain", "signs", "long"]
)
def test_what_a_kill_leaves_beside_a_package_goes(tmp_path: Path, name: str) -> None:
    """Whatever it is called: a name may hold what a pattern means otherwise."""
    target = tmp_path / name
    for file in (write.log_of(target), resume.journal_of(target)):
        staging.part_of(file).write_text("half")
    assert resume.whole_package(target, "basis") is None
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    "command",
    [
        ("run", "{package}", "x", "--out", "{out}.png"),
        ("recipe", "{checkpoint}", "-o", "{out}.toml"),
        ("mark", "key", "{out}.key"),
        ("mark", "detector", "--key", "{key}", "-o", "{out}.onnx"),
    ],
    ids=lambda words: " ".join(words[:2]),
)
@pytest.mark.parametrize("room", ["absent", "none"])
def test_a_file_that_cannot_be_written_is_named(
    tiny_package: Path, tiny_folder: Path, tmp_path: Path, command: tuple[str, ...], room: str
) -> None:
    """In a folder that is not there, and on a full disk: by its own name, with what to do."""
    make_key(tmp_path / "a.key")
    place = tmp_path / "place"
    places = {"package": tiny_package, "checkpoint": tiny_folder, "key": tmp_path / "a.key"}
    words = [word.format(**places, out=place / "file") for word in command]
    if room == "none":
        place.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "none", str(place)]
        if subprocess.run(mount, check=False, capture_output=True).returncode:
            pytest.skip("needs the right to mount a file system")
        (place / "filling").write_bytes(bytes(4096))
    try:
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 2 and result.stderr.splitlines()
        last = result.stderr.splitlines()[-1]
        assert words[-1] in last and ".part" not in last and "Traceback" not in result.stderr
        remedy = "does not exist" if room == "absent" else "the disk is full; free space or"
        assert remedy in last
        assert (
            not place.exists()
            if room == "absent"
            else [f.name for f in place.iterdir()] == ["filling"]
        )
    finally:
        if room == "none":
            subprocess.run(["umount", "--lazy", str(place)], check=True)


def enter(block: AbstractContextManager[None]) -> None:
    with block:
        pass


def test_many_write_one_picture(tmp_path: Path) -> None:
    """Whose is last is chance; whole it is, and none of them fails."""
    greys = [np.full((40 + 8 * i, 64, 3), 20 * i, np.uint8) for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(lambda grey: write_picture(grey, tmp_path / "a.png"), greys * 4):
            with Picture.open(tmp_path / "a.png") as picture:
                found = np.asarray(picture)
            assert any(np.array_equal(found, grey) for grey in greys)
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_two_write_one_checkpoint(tmp_path: Path) -> None:
    """The second waits for the first, and then says that the folder is taken."""
    command = [sys.executable, "-m", "exporter", "synth", "sd3.5-flash-twin", str(tmp_path / "c")]
    children = [
        subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [child.communicate(timeout=300)[1] for child in children]
    assert sorted(child.returncode for child in children) == [0, 2]
    (refused,) = (text for text in said if "name another one" in text)
    assert "Traceback" not in refused
    assert [file.name for file in tmp_path.iterdir()] == ["c"]


HOLD = """
import sys, time
from pathlib import Path
from exporter.files.lock import locked
with locked(Path(sys.argv[1]), print):
    print("in", flush=True)
    time.sleep(600)
"""


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    child = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "in\n"
    said: list[str] = []
    killing = threading.Timer(0.3, child.kill)
    killing.start()
    with locked(tmp_path, said.append):
        assert child.wait(10) == -9
    assert len(said) == 1 and f"process {child.pid} on {socket.gethostname()} has been" in said[0]
    assert list(tmp_path.iterdir()) == []
    child.stdout.close()


@pytest.mark.parametrize("locks", [False], indirect=True)
def test_without_locks_a_process_that_is_gone_holds_nothing(tmp_path: Path, locks: bool) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    owner = {"pid": gone.pid, "host": socket.gethostname(), "since": "2026-01-01 00:00:00"}
    (tmp_path / OWNER).write_text(json.dumps(owner))
    with locked(tmp_path, lambda _: pytest.fail("waited")):
        assert json.loads((tmp_path / OWNER).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("locks", [False], indirect=True)
def test_without_locks_another_machine_cannot_be_asked(tmp_path: Path, locks: bool) -> None:
    owner = {"pid": 7, "host": "elsewhere", "since": "2026-01-01 00:00:00"}
    (tmp_path / OWNER).write_text(json.dumps(owner))
    message = r"process 7 on elsewhere has been working here since 2026.*delete .*\.fourstep\.owner"
    with pytest.raises(InputError, match=message), locked(tmp_path, print):
        pytest.fail("entered")
    assert (tmp_path / OWNER).exists() and not (tmp_path / LOCK).exists()


def test_a_place_that_cannot_be_locked_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match="cannot be written .*; choose another place"),
        locked(tmp_path / "file", print),
    ):
        pytest.fail("entered")

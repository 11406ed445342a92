"""``fourstep bench``: what it prints was measured, and how packages are drawn is what was asked."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from exporter import backends
from exporter.bench.bench import bench
from exporter.bench.process import STATUS, Asked, _status, draw, draw_apart, order_text, read_order
from exporter.build.pipeline import build
from exporter.cli import main
from exporter.errors import InputError
from exporter.recipe.recipe import Recipe
from exporter.runtime.package import Package, open_package
from tests.conftest import needs


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


def test_a_package_is_timed(tiny_package: Path) -> None:
    shown = invoke(tiny_package, "--prompt", "a red circle", "--json")
    assert shown.exit_code == 0, shown.output
    (row,) = json.loads(shown.stdout)
    assert row["package"] == tiny_package.name
    assert row["bytes"] == open_package(tiny_package).manifest.bytes
    graphs = {"clip_l", "clip_g", "t5", "conditioner", "denoiser", "vae_decoder"}
    assert set(row["loads_s"]) == graphs
    assert all(row[key] > 0 for key in ("step_s", "decode_s", "encode_s", "next_s"))
    assert 0 < sum(row["loads_s"].values()) < row["first_s"]  # each graph was opened for the first
    assert row["peak_rss_bytes"] > row["peak_anonymous_bytes"] > 10 << 20


def test_memory_is_read_where_there_is_no_proc(tmp_path: Path) -> None:
    """By psutil, about as much of a process at its peak; of one that has ended nothing."""
    code = "held = b'1' * (100 << 20); print(len(held), flush=True); input()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe) as child:
        assert child.stdout is not None and child.stdout.readline()
        usual, elsewhere = _status(child.pid), _status(child.pid, tmp_path)
        child.communicate(b"\n")
    assert set(usual) == set(elsewhere) == {*STATUS}
    assert elsewhere["VmHWM"] == pytest.approx(usual["VmHWM"], rel=0.5)
    assert elsewhere["RssAnon"] == pytest.approx(usual["RssAnon"], rel=0.5)
    assert min(usual["RssAnon"], elsewhere["RssAnon"]) > 100 << 20
    assert _status(2**22 + 1, tmp_path) == {}


def test_the_table_has_a_line_for_each(tiny_package: Path, tmp_path: Path) -> None:
    other = shutil.copytree(tiny_package, tmp_path / "other")
    shown = invoke(tiny_package, other)
    assert shown.exit_code == 0, shown.output
    head, *lines = shown.stdout.splitlines()
    assert "first s" in head and "next s" in head
    assert [line.split()[0] for line in lines] == [tiny_package.name, "other"]
    assert len({len(line) for line in (head, *lines)}) == 1


def test_packages_are_drawn_as_asked(
    tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half, device, cache and open graphs reach the player of the other process."""
    made: list[tuple[backends.SessionOptions, bool]] = []

    def player(package: Package, options: backends.SessionOptions, keep: bool) -> None:
        made.append((options, keep))
        raise InputError("seen")

    monkeypatch.setattr(Package, "player", player)
    pictures = [Asked("a red circle", 3), Asked("", 4)]
    wanted = [
        (backends.SessionOptions("half", "CPU", tmp_path), True),
        (backends.SessionOptions(), False),
    ]
    for options, keep in wanted:
        ordered = read_order(order_text(pictures, options, keep))
        assert ordered[0] == pictures
        with pytest.raises(InputError, match="seen"):
            draw(tiny_package, ordered[0], tmp_path, ordered[1], ordered[2])
    assert made == wanted


@pytest.mark.skipif(
    bool(backends.missing(needs("openvino"))), reason="pip install 'fourstep[build,openvino-build]'"
)
def test_a_cache_is_filled_then_used_then_removed(tiny_recipe: Recipe, tmp_path: Path) -> None:
    (built,) = build(tiny_recipe, tmp_path / "out", ["openvino"], ["int8"])
    cache, sizes = tmp_path / "cache", []

    def progress(line: str) -> None:
        sizes.append(sum(f.stat().st_size for f in cache.rglob("*") if f.is_file()))

    cache.mkdir()
    options = backends.SessionOptions(cache=cache)
    rows = list(bench([open_package(built.path)], Asked("a red circle", 0), progress, options))
    assert [row.name.partition(", ")[2] for row in rows] == ["filling the cache", "from the cache"]
    half = len(sizes) // 2
    assert sizes[half - 1] == sizes[-1] > 1 << 16  # compiled once
    assert list(cache.iterdir()) == []


def test_a_cache_without_room_is_refused(
    tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runtime would draw without a word, and the second row would not be from a cache."""
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("exporter.files.staging.shutil.disk_usage", lambda place: usage)
    options = backends.SessionOptions(cache=tmp_path)
    with pytest.raises(InputError, match="needs .* MB are free; free space or choose another cac"):
        list(bench([open_package(tiny_package)], Asked("x", 0), lambda line: None, options))
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_one_line(tiny_package: Path, tmp_path: Path) -> None:
    for arguments, code, words in (
        ((tmp_path / "none",), 2, "no such folder"),
        ((tiny_package, "--half"), 2, "--half: onnx computes on CPU as the package says"),
        ((tiny_package, "--cache", tmp_path / "c"), 2, "--cache: onnx keeps no compiled graphs"),
        ((tiny_package, "--device", "TPU"), 2, "--device: onnx has no TPU"),
        ((tiny_package, "--prompt", " "), 2, "the prompt is empty"),
    ):
        shown = invoke(*arguments)
        assert shown.exit_code == code and words in shown.stderr, shown.output
        assert shown.stdout == "" and len(shown.stderr.splitlines()) == 1


def test_a_damaged_package_is_named(tiny_package: Path, tmp_path: Path) -> None:
    package = shutil.copytree(tiny_package, tmp_path / "damaged")
    file = package / "graphs" / "denoiser" / "denoiser.onnx.data"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    shown = invoke(package)
    assert shown.exit_code == 1 and "damaged: SHA-256 differs" in shown.stderr
    assert "Traceback" not in shown.stderr and shown.stdout == ""


def test_the_working_folder_is_no_place_for_modules(
    tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packages are timed wherever one stands, beside a statistics.py too."""
    (tmp_path / "statistics.py").write_text("raise SystemExit('a file of the working folder')")
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "drawn"
    place.mkdir()
    drawn = draw_apart(tiny_package, [Asked("a red circle", 1)], place, lambda line: None)
    assert drawn.picture(0).ndim == 3

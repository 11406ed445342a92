"""Every command, as a user types it: results on stdout, one line for a mistake, exit codes."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from exporter import backends
from exporter.cli import main
from tests.conftest import ROOT

RECIPE = """
[model]
checkpoint = "{checkpoint}"
[schedule]
sigmas = [1.0, 0.5, 0.0]
[image]
width_px = {width}
height_px = 64
[text]
t5 = false
[weights]
scheme = ["int8", "int4"]
[build]
backends = ["onnx"]
[golden]
prompts = ["a red circle"]
"""


def fourstep(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    assert "Traceback" not in result.output
    return result


def mistake(result: Result, *words: str) -> None:
    """Exit code 2, nothing on stdout, a last line on stderr that has the words."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    last = result.stderr.strip().splitlines()[-1]
    for word in words:
        assert word in last, last


def read(file: Path) -> np.ndarray:
    with Image.open(file) as picture:
        return np.asarray(picture)


@pytest.fixture
def recipe(tiny_folder: Path, tmp_path: Path) -> Path:
    file = tmp_path / "small.toml"
    file.write_text(RECIPE.format(checkpoint=tiny_folder, width=64))
    return file


@pytest.mark.parametrize("command", sorted(main.commands))
def test_help(command: str) -> None:
    result = fourstep(command, "--help")
    assert result.exit_code == 0
    assert main.commands[command].help


def test_build_prints_json_and_draws_progress_on_stderr(recipe: Path, tmp_path: Path) -> None:
    result = fourstep("build", recipe, "--out", tmp_path / "out", "--scheme", "int8", "--json")
    assert result.exit_code == 0, result.stderr
    (row,) = json.loads(result.stdout)
    assert (row["backend"], row["scheme"]) == ("onnx", "int8")
    assert Path(row["path"]) == tmp_path / "out" / "onnx-int8"
    assert row["bytes"] > 100_000
    assert "trace denoiser" in result.stderr and "emit denoiser" in result.stderr
    log = json.loads((tmp_path / "out" / "onnx-int8.log.json").read_text())
    assert log["verify"]["ok"]


def test_build_writes_where_the_recipe_says(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = fourstep("build", recipe, "--scheme", "int4")
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "artifacts/small/onnx-int4/manifest.json").is_file()
    assert "dB from unquantized" in result.stdout


def test_build_without_golden_pictures(recipe: Path, tmp_path: Path) -> None:
    result = fourstep("build", recipe, "--scheme", "int8", "--no-golden", "--out", tmp_path)
    assert result.exit_code == 0, result.stderr
    assert "not verified" in result.stdout and "golden" not in result.stderr.split("verify")[0]
    verified = fourstep("verify", tmp_path / "onnx-int8")
    assert verified.exit_code == 0 and "no golden outputs to compare with" in verified.stdout
    out = tmp_path / "picture.png"
    drawn = fourstep("run", tmp_path / "onnx-int8", "a star", "--out", out, "--previews", tmp_path)
    assert drawn.exit_code == 0 and read(out).shape == (64, 64, 3)


def test_build_mistakes(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    mistake(fourstep("build", tmp_path / "no.toml"), "no.toml: no such recipe")
    mistake(fourstep("build", recipe, "--scheme", "int5"), "--scheme", "known: fp16, fp32, int4")
    mistake(
        fourstep("build", recipe, "--backend", "tf"), "--backend", "known: coreml, onnx, openvino"
    )
    odd = tmp_path / "odd.toml"
    odd.write_text(recipe.read_text().replace("width_px = 64", "width_px = 72"))
    mistake(fourstep("build", odd, "--out", out), "width_px = 72: must be a multiple of 16")
    large = tmp_path / "large.toml"
    large.write_text(recipe.read_text().replace("width_px = 64", "width_px = 512"))
    mistake(fourstep("build", large, "--out", out), "a multiple of 16 up to 160")
    lost = tmp_path / "lost.toml"
    lost.write_text(recipe.read_text().replace('checkpoint = "', 'checkpoint = "/nowhere'))
    mistake(fourstep("build", lost, "--out", out), "/nowhere", "no such folder")
    mistake(fourstep("build", recipe, "--out", "/proc/none"), "/proc/none")
    flash = ROOT / "recipes" / "sd3.5-flash.toml"
    mistake(fourstep("build", flash, "--out", out), "sd3.5-flash: no such folder; name one in")
    assert not out.exists()


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_out_of_memory_is_one_line(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("exporter.backends.onnx.Onnx.emit", fail)
    result = fourstep("build", recipe, "--out", tmp_path / "out", "--scheme", "int8")
    mistake(result, "out of memory", "choose a smaller size or scheme")
    assert not (tmp_path / "out").exists()


def test_a_defect_is_not_hidden(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("exporter.backends.onnx.Onnx.emit", fail)
    with pytest.raises(RuntimeError, match="a defect"):
        fourstep("build", recipe, "--out", recipe.parent / "out")


def test_run(tiny_package: Path, tmp_path: Path) -> None:
    out = tmp_path / "picture.png"
    result = fourstep(
        "run",
        tiny_package,
        "a red circle",
        "--seed",
        7,
        "--out",
        out,
        "--json",
        "--previews",
        tmp_path / "previews",
    )
    assert result.exit_code == 0, result.stderr
    (row,) = json.loads(result.stdout)
    assert row["path"] == str(out) and row["seed"] == 7 and row["prompt"] == "a red circle"
    assert read(out).shape == (48, 64, 3)
    assert sorted(p.name for p in (tmp_path / "previews").iterdir()) == [
        f"0-{i}.png" for i in (1, 2, 3, 4)
    ]
    assert "step 4 of 4" in result.stderr


def test_run_draws_the_golden_picture(tiny_package: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.png"
    assert (
        fourstep(
            "run", tiny_package, "a red circle", "--seed", 7, "--out", out, "--exact"
        ).exit_code
        == 0
    )
    found, golden = (read(f).astype(int) for f in (out, tiny_package / "golden/0.png"))
    assert np.abs(found - golden).max() <= 1


@pytest.mark.parametrize("command", ["run", "verify"])
def test_golden_files_that_were_deleted_are_asked_for(
    tiny_package: Path, tmp_path: Path, command: str
) -> None:
    """Every listed file is part of the package."""
    package = shutil.copytree(tiny_package, tmp_path / "package")
    shutil.rmtree(package / "golden")
    rest = ["a red circle", "--out", tmp_path / "p.png"] if command == "run" else []
    found = fourstep(command, package, *rest)
    assert found.exit_code == (2 if command == "run" else 1) and not (tmp_path / "p.png").exists()
    (line,) = found.stderr.strip().splitlines()
    assert "package/golden/" in line and line.endswith("copy the package again")


def test_graphs_opened_at_once_draw_the_same(tiny_package: Path, tmp_path: Path) -> None:
    one, other = tmp_path / "one.png", tmp_path / "other.png"
    for out, *options in ((one,), (other, "--at-once")):
        found = fourstep("run", tiny_package, "a red circle", "--out", out, *options)
        assert found.exit_code == 0, found.stderr
    assert one.read_bytes() == other.read_bytes()


def test_16_bits_are_refused_where_a_backend_has_none(tiny_package: Path) -> None:
    found = fourstep("run", tiny_package, "a red circle", "--half")
    mistake(found, "--half: onnx computes on CPU as the package says", "openvino")
    found = fourstep("run", tiny_package, "a red circle", "--half", "--exact")
    mistake(found, "--half and --exact ask for opposites")


def test_run_batches(tiny_package: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.png"
    result = fourstep("run", tiny_package, "one", "two", "--seed", 1, "--seed", 2, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert [p.name for p in sorted(tmp_path.iterdir())] == [f"p-{i}.png" for i in range(4)]
    pictures = [(tmp_path / f"p-{i}.png").read_bytes() for i in range(4)]
    assert len(set(pictures)) == 4


def test_run_image_to_image(tiny_package: Path, tmp_path: Path) -> None:
    start = tmp_path / "start.png"
    Image.new("RGB", (64, 48), (200, 30, 30)).save(start)
    out = tmp_path / "p.png"
    result = fourstep("run", tiny_package, "x", "--image", start, "--strength", 0.5, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert "step 3 of 4" in result.stderr and "step 2 of 4" not in result.stderr


def test_run_warns_of_a_long_prompt(tiny_package: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.png"
    result = fourstep("run", tiny_package, "a red circle and " * 40, "--out", out)
    assert result.exit_code == 0
    assert "warning: clip_l reads 77 tokens; not read:" in result.stderr


def test_run_mistakes(tiny_package: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.png"
    mistake(fourstep("run", tmp_path / "none", "x", "--out", out), "none: no such folder")
    mistake(fourstep("run", tiny_package.parent, "x", "--out", out), "not a package", "onnx-int4")
    mistake(fourstep("run", tiny_package, "  ", "--out", out), "the prompt is empty")
    mistake(fourstep("run", tiny_package, "x", "--out", tmp_path / "a/b.png"), "does not exist")
    mistake(fourstep("run", tiny_package, "x", "--out", tmp_path / "p.tiff"), "must end in .png")
    mistake(fourstep("run", tiny_package, "x", "--out", out, "--strength", 0.5), "--image only")
    mistake(fourstep("run", tiny_package, "x", "--image", tmp_path / "no.png"), "no such file")
    mistake(fourstep("run", tiny_package, "x", "--image", ROOT / "Makefile"), "not a picture")
    small = tmp_path / "small.png"
    Image.new("RGB", (32, 32)).save(small)
    mistake(fourstep("run", tiny_package, "x", "--image", small, "--out", out), "32 x 32 px; this")
    Image.new("RGB", (64, 48)).save(small)
    mistake(
        fourstep("run", tiny_package, "x", "--image", small, "--strength", 0, "--out", out),
        "above 0 and at most 1",
    )
    assert not out.exists()


def test_a_damaged_package(tiny_package: Path, tmp_path: Path) -> None:
    package = Path(shutil.copytree(tiny_package, tmp_path / "package"))
    file = package / "graphs/denoiser/denoiser.onnx.data"
    file.write_bytes(file.read_bytes()[:-8])
    mistake(
        fourstep("run", package, "x", "--out", tmp_path / "p.png"), "denoiser.onnx.data: damaged"
    )
    result = fourstep("verify", package)
    assert result.exit_code == 1
    assert "denoiser.onnx.data: damaged" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "p.png").exists()


def test_a_cache_is_refused_before_anything_is_opened(tiny_package: Path, tmp_path: Path) -> None:
    package = Path(shutil.copytree(tiny_package, tmp_path / "package"))
    (package / "tokenizer" / "clip_l.json").unlink()
    (package / "graphs/denoiser/denoiser.onnx.data").unlink()
    cache, out = tmp_path / "cache", tmp_path / "p.png"
    for command in (("run", package, "x", "--out", out), ("verify", package)):
        mistake(fourstep(*command, "--cache", cache), "--cache: onnx keeps no compiled graphs")
    assert not cache.exists()


def test_verify(tiny_package: Path) -> None:
    result = fourstep("verify", tiny_package, "--json")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["ok"] and {g["graph"] for g in report["graphs"]} >= {"denoiser", "vae_encoder"}
    assert fourstep("verify", tiny_package).stdout.strip().endswith("ok")


def test_inspect_package(tiny_package: Path) -> None:
    result = fourstep("inspect", tiny_package)
    assert result.exit_code == 0
    assert "onnx-int4" in result.stdout and "int4-g32 in place of int4-g64" in result.stdout
    assert json.loads(fourstep("inspect", tiny_package, "--json").stdout)["scheme"] == "int4"


def test_inspect_checkpoint(tiny_folder: Path) -> None:
    result = fourstep("inspect", tiny_folder)
    assert result.exit_code == 0
    for title in ("onnx: files, MB", "openvino: peak memory to run, MB", "coreml: peak memory to"):
        assert title in result.stdout
    found = json.loads(fourstep("inspect", tiny_folder, "--json").stdout)["graphs"]
    sizes = {(g["graph"], g["scheme"]): g["bytes"] for g in found if g["backend"] == "coreml"}
    large, middle, small = (sizes["denoiser", scheme] for scheme in ("fp32", "int8", "int4"))
    assert large > 3 * middle > 4 * small
    assert sizes["t5", "int4"] == sizes["t5", "int8"]
    assert {g["backend"] for g in found if g["scheme"] == "pal4"} == {"coreml"}
    assert all(g["run_bytes"] > 0 and g["build_bytes"] > 0 for g in found)
    mistake(fourstep("inspect", tiny_folder / "vae"), "model_index.json is missing")


def test_doctor() -> None:
    result = fourstep("doctor")
    assert result.exit_code == 0
    assert "run onnx" in result.stdout and "onnxruntime 1." in result.stdout
    rows = json.loads(fourstep("doctor", "--json").stdout)
    assert {r["name"] for r in rows} >= {"python", "numpy", "build", "build onnx", "run onnx"}


def test_missing_extras_name_the_pip_line(
    tiny_package: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "missing", lambda requires: list(requires.values()))
    result = fourstep("doctor")
    assert (
        "missing onnxruntime" in result.stdout and "pip install 'fourstep[onnx]'" in result.stdout
    )
    mistake(fourstep("build", recipe), "torch", "pip install 'fourstep[build]'")
    mistake(
        fourstep("run", tiny_package, "x", "--out", tmp_path / "p.png"),
        "onnxruntime is not installed: pip install 'fourstep[onnx]'",
    )


def test_bars_only_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from exporter.progress import Progress, bar_on_terminal

    progress = Progress(bar_on_terminal, expected=2)
    progress("first")
    assert capsys.readouterr().err == "first\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    progress("second")
    assert "[########################] 2/2 second" in capsys.readouterr().err

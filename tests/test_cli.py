"""Every command, as a user types it: results on stdout, one line for a mistake, exit codes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from exporter import __version__, backends
from exporter.cli import draw, main
from exporter.errors import InputError
from exporter.runtime import Image as Drawn
from exporter.runtime import PictureRemark, Request, generate, open_package
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
    """Under its name, which may have 250 letters."""
    monkeypatch.chdir(tmp_path)
    long = recipe.rename(tmp_path / f"{'r' * 250}.toml")
    long.write_bytes(b"\xef\xbb\xbf" + long.read_bytes().replace(b"\n", b"\r\n"))
    result = fourstep("build", long, "--scheme", "int4")
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "artifacts" / long.stem / "onnx-int4/manifest.json").is_file()
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
    mistake(fourstep("build", lost, "--out", out), "/nowhere", "no such file or folder")
    mistake(fourstep("build", recipe, "--out", "/proc/none"), "/proc/none")
    flash = ROOT / "recipes" / "sd3.5-flash.toml"
    mistake(fourstep("build", flash, "--out", out), "sd3.5-flash: no such file or folder; name")
    assert not out.exists()


OF_MEMORY = [
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    Exception("Non-zero status code returned while running Gelu node. std::bad_alloc"),
    RuntimeError("Exception from src/inference/src/cpp/infer_request.cpp: bad allocation"),
    OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
]


@pytest.mark.parametrize("error", OF_MEMORY, ids=str)
def test_a_run_out_of_memory_is_one_line(
    tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Whether a graph is opened or runs; engines have types and words of their own."""
    import onnxruntime

    class Opens:
        """A session of which each run fails."""

        def __init__(self, *_: object, **__: object) -> None:
            self.get_outputs = list[object]

        def run(self, *_: object) -> None:
            raise error

    def refuses(*_: object, **__: object) -> None:
        raise error

    for session in (Opens, refuses):
        monkeypatch.setattr(onnxruntime, "InferenceSession", session)
        result = fourstep("run", tiny_package, "a red circle", "--out", tmp_path / "a.png")
        mistake(result, "out of memory", "choose a smaller size or scheme")
        assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("least_mb", [150, 180, 210])
def test_memory_that_ends_anywhere_is_one_line(
    tiny_package: Path, tmp_path: Path, least_mb: int
) -> None:
    """Where libraries are loaded, threads begun, graphs opened or run: wherever the limit falls."""
    command = [sys.executable, "-m", "exporter", "run", str(tiny_package), "a red circle"]
    ended = subprocess.run(
        ["bash", "-c", f'ulimit -v {least_mb}000 && exec "$@"', "bash", *command],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    if ended.returncode == 0:
        return
    assert ended.returncode == 2 and "Traceback" not in ended.stderr, ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("fourstep: out of memory;")
    assert "EP Error" not in ended.stdout and not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize("error", OF_MEMORY, ids=str)
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


@pytest.mark.parametrize("fit", ["cover", "contain", "stretch"])
def test_a_picture_of_another_size(tiny_package: Path, tmp_path: Path, fit: str) -> None:
    """What is drawn is what the same picture brings in Python."""
    start, out = tmp_path / "start.png", tmp_path / "p.png"
    picture = Image.linear_gradient("L").resize((90, 30))
    picture.putalpha(Image.radial_gradient("L").resize((90, 30)))
    picture.save(start)
    asked = ("--image", start, "--strength", 0.5, "--fit", fit, "--background", "navy")
    result = fourstep("run", tiny_package, "x", *asked, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert ("50 of its 90 columns are cut off" in result.stderr) == (fit == "cover")
    with open_package(tiny_package).player() as player, warnings.catch_warnings():
        warnings.simplefilter("ignore", PictureRemark)
        request = Request("x", 0, Image.open(start), 0.5, fit, "navy")  # type: ignore[arg-type]
        (found,) = [e.pixels for e in generate(player, [request]) if isinstance(e, Drawn)]
    np.testing.assert_array_equal(found, read(out))


@pytest.mark.parametrize("flag", ["--prompts", "--out", "--image", "--device", "--fit"])
def test_an_option_given_twice_is_refused(tiny_package: Path, flag: str) -> None:
    """Click would drop the first without a word."""
    value = {"--fit": ("cover", "contain")}.get(flag, ("a", "b"))
    found = fourstep("run", tiny_package, "x", flag, value[0], f"{flag}={value[1]}")
    mistake(found, f"{flag} is given 2 times; give it once; see: ", "run --help")


def test_what_is_of_no_use_without_a_picture(tiny_package: Path) -> None:
    for flag, value in (("--fit", "contain"), ("--background", "red"), ("--strength", "0.5")):
        found = fourstep("run", tiny_package, "x", flag, value)
        mistake(found, f"{flag} applies to --image only")
        field = flag.removeprefix("--")
        request = Request("x", **{field: float(value) if field == "strength" else value})  # type: ignore[arg-type]
        with (
            open_package(tiny_package).player() as player,
            pytest.raises(InputError, match="applies only with a picture to start from") as error,
        ):
            next(generate(player, [request]))
        assert error.value.field == field


def test_pictures_say_what_they_show(tiny_package: Path, tmp_path: Path) -> None:
    out, previews = tmp_path / "p.png", tmp_path / "previews"
    prompt = "ein Käfer"
    asked = ("run", tiny_package, prompt, "--seed", 7, "--out", out)
    assert fourstep(*asked, "--previews", previews).exit_code == 0
    with Image.open(out) as picture:
        assert picture.text == {  # type: ignore[attr-defined]
            "prompt": prompt,
            "seed": "7",
            "package": "tiny onnx-int4",
            "version": __version__,
            "Software": f"fourstep {__version__}",
        }
    with Image.open(previews / "0-2.png") as preview:
        assert preview.text["step"] == "2 of 4"  # type: ignore[attr-defined]
    drawn = read(out)
    assert fourstep(*asked, "--no-metadata", "--previews", previews).exit_code == 0
    for file in (out, previews / "0-2.png"):
        with Image.open(file) as picture:
            assert not picture.text  # type: ignore[attr-defined]
    np.testing.assert_array_equal(read(out), drawn)
    mistake(
        fourstep("run", tiny_package, "x" * 70_000, "--out", "p.jpg"), "--out p.jpg: JPEG holds"
    )


def listed(*arguments: object, stdin: bytes = b"") -> Result:
    words = ["run", *(str(a) for a in arguments)]
    return CliRunner().invoke(main, words, input=stdin, catch_exceptions=False)


@pytest.mark.parametrize(
    "content",
    [
        b"a red circle\nein K\xc3\xa4fer\n",
        b"\xef\xbb\xbfa red circle\r\n\r\n  ein K\xc3\xa4fer  \r\n\t\r\n",
        b"\n\na red circle\rein K\xc3\xa4fer",
    ],
)
def test_prompts_from_a_file_and_from_stdin(
    tiny_package: Path, tmp_path: Path, content: bytes
) -> None:
    """As editors of every system write them."""
    file, out = tmp_path / "prompts.txt", tmp_path / "p.png"
    file.write_bytes(content)
    for asked, stdin in ((file, b""), ("-", content)):
        found = listed(tiny_package, "--prompts", asked, "--out", out, "--json", stdin=stdin)
        assert found.exit_code == 0, found.stderr
        rows = json.loads(found.stdout)
        assert [row["prompt"] for row in rows] == ["a red circle", "ein Käfer"]
        assert [Path(row["path"]).name for row in rows] == ["p-0.png", "p-1.png"]
    both = listed(tiny_package, "one", "--prompts", file, "--seed", 1, "--seed", 2, "--json",
                  "--out", out)  # fmt: skip
    assert [(r["prompt"], r["seed"]) for r in json.loads(both.stdout)] == [
        (prompt, seed) for prompt in ("one", "a red circle", "ein Käfer") for seed in (1, 2)
    ]


def test_lists_of_prompts_that_are_none(tiny_package: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "prompts.txt", tmp_path / "p.png"
    for content, words in (
        (b"caf\xe9\n", "not UTF-8 text (byte 3)"),
        ("a star".encode("utf-16"), "not UTF-8 text (byte 0)"),
        ("a star".encode("utf-16-le"), "holds zero characters, as UTF-16 does; save it as UTF-8"),
        (b"", "holds no prompt; write one per line"),
        (b"\xef\xbb\xbf \r\n\r\n", "holds no prompt; write one per line"),
        (b"a star\n\n" + b"x" * 100_001, "a prompt of 100001 characters"),
    ):
        file.write_bytes(content)
        place = f"--prompts: {file}"
        mistake(fourstep("run", tiny_package, "--prompts", file, "--out", out), place, words)
        found = listed(tiny_package, "--prompts", "-", "--out", out, stdin=content)
        mistake(found, "--prompts: ", words)
    mistake(
        fourstep("run", tiny_package, "--prompts", tmp_path / "no"), "--prompts: ", "no: cannot"
    )
    mistake(fourstep("run", tiny_package), "say what to draw: a prompt, or --prompts FILE")
    assert not out.exists()


def test_many_prompts_are_drawn_in_groups(
    tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draw, "GROUP", 2)
    out, previews = tmp_path / "p.png", tmp_path / "previews"
    prompts = ("one", "two", "one", "three", "four")
    found = fourstep("run", tiny_package, *prompts, "--out", out, "--previews", previews)
    assert found.exit_code == 0 and found.stderr.count("prompt(s) encoded") == 3
    pictures = [(tmp_path / f"p-{i}.png").read_bytes() for i in range(5)]
    assert pictures[0] == pictures[2] and len({*pictures}) == 4
    assert len(list(previews.iterdir())) == 5 * 4
    alone = tmp_path / "alone.png"
    fourstep("run", tiny_package, "four", "--out", alone)
    assert alone.read_bytes() == pictures[4]


def test_a_random_seed_is_printed_and_draws_the_same_again(
    tiny_package: Path, tmp_path: Path
) -> None:
    out, again = tmp_path / "p.png", tmp_path / "again.png"
    found = fourstep("run", tiny_package, "x", "--seed", "random", "--seed", "random", "--json",
                     "--out", out)  # fmt: skip
    one, other = [row["seed"] for row in json.loads(found.stdout)]
    assert one != other and min(one, other) >= 0 and max(one, other) < 2**32
    shown = fourstep("run", tiny_package, "x", "--seed", one, "--out", again)
    assert shown.stdout == f"{again}  'x'  seed {one}\n"
    assert again.read_bytes() == (tmp_path / "p-0.png").read_bytes()


def test_seeds_as_torch_takes_them(tiny_package: Path, tmp_path: Path) -> None:
    pictures = []
    for seed in (2**64 - 1, -1, 2**32 - 1, -(2**63), 2**63):
        out = tmp_path / "p.png"
        found = fourstep("run", tiny_package, "x", "--seed", seed, "--no-metadata", "--out", out)
        assert found.exit_code == 0 and f"seed {seed}" in found.stdout
        pictures.append(out.read_bytes())
    assert pictures[0] == pictures[1] == pictures[2] != pictures[3] == pictures[4]
    for word in (str(2**64), str(-(2**63) - 1), "1.5", "x", "", "9" * 5000, "Random"):
        found = fourstep("run", tiny_package, "x", f"--seed={word}")
        mistake(found, "a whole number from -2^63 to 2^64 - 1 is expected, or random")


def test_long_names(tiny_package: Path, tmp_path: Path) -> None:
    """A name may have the 255 bytes that file systems allow, also while it is written."""
    long = tmp_path / ("ä" * 125 + "x.png")
    assert fourstep("run", tiny_package, "x", "--out", long).exit_code == 0
    assert [f.name for f in tmp_path.iterdir()] == [long.name]
    several = fourstep("run", tiny_package, "x", "y", "--out", long)
    mistake(several, "File name too long; choose a shorter name")
    mistake(
        fourstep("run", tiny_package, "x", "--out", tmp_path / ("n" * 252 + ".png")),
        "--out",
        "long",
    )
    for command in (("run", "p" * 300, "x"), ("report", tiny_package.parent, "--out", "p" * 300)):
        mistake(fourstep(*command), "p" * 300, "File name too long; choose a shorter name")
    package = Path(shutil.copytree(tiny_package, tmp_path / ("p" * 250)))
    assert fourstep("verify", package).exit_code == 0


def test_home(tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``~`` where a shell leaves it: behind ``=``, and in quotes."""
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(tiny_package, tmp_path / "package")
    Image.new("RGB", (64, 48)).save(tmp_path / "start.png")
    (tmp_path / "prompts.txt").write_text("x\n")
    found = fourstep("run", "~/package", "--prompts=~/prompts.txt", "--image=~/start.png",
                     "--out=~/p.png", "--previews=~/steps")  # fmt: skip
    assert found.exit_code == 0, found.stderr
    assert (tmp_path / "p.png").is_file() and (tmp_path / "steps" / "0-1.png").is_file()
    mistake(fourstep("build", "~/no.toml"), str(tmp_path / "no.toml"), "no such recipe")
    recipe = ROOT / "recipes" / "shapes-flash.toml"
    mistake(
        fourstep("build", recipe, "--scheme=~/no.toml"), str(tmp_path / "no.toml"), "no such plan"
    )
    for command in (("verify", "~/package"), ("inspect", "~/package")):
        assert fourstep(*command).exit_code == 0


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
    mistake(fourstep("run", tiny_package, "x", "--out", tmp_path / "a/b.png"), "make it or")
    mistake(fourstep("run", tiny_package, "x", "--out", tmp_path / "p.txt"), "must end in .png")
    mistake(fourstep("run", tiny_package, "x", "--out", out, "--strength", 0.5), "--image only")
    mistake(fourstep("run", tiny_package, "x", "--image", tmp_path / "no.png"), "no such file")
    mistake(fourstep("run", tiny_package, "x", "--image", ROOT / "Makefile"), "not a picture")
    small = tmp_path / "small.png"
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
    data = package / "graphs/denoiser/denoiser.onnx.data"
    data.write_bytes(bytes(data.stat().st_size))
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
    assert {r["name"] for r in rows} >= {
        "python", "numpy", "build", "build onnx", "run onnx", "--cache s3://", "--on dask://"
    }  # fmt: skip


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

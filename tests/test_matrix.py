"""A matrix: its jobs, and what becomes of them on this machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

from exporter.build.pipeline import build
from exporter.cli import main
from exporter.errors import InputError
from exporter.files.memory import Free, free_memory
from exporter.matrix.ci import listed
from exporter.matrix.file import Job, Matrix, asked_recipe, read_matrix
from exporter.matrix.local import Local
from exporter.matrix.outcome import Assignment, Outcome
from exporter.matrix.page import page
from exporter.matrix.run import run
from exporter.progress import Progress
from exporter.recipe.recipe import read_recipe
from tests.test_package import digests

RECIPE = """
[model]
checkpoint = "{checkpoint}"
[schedule]
sigmas = [1.0, 0.0]
[image]
width_px = 32
height_px = 32
image_to_image = false
[text]
t5 = false
t5_tokens = 8
[weights]
scheme = ["fp16", "int4"]
group_size = 32
[build]
backends = ["onnx", "openvino"]
[golden]
prompts = []
"""
# Answers as a worker does, without building: it does what the job's scheme says.
FAKE = """
import json, os, signal, sys, time

for line in sys.stdin:
    raw = json.loads(line)
    job, forecast, part = raw["order"]["job"], raw["forecast"], raw["part"]
    name, what = job["name"], job["scheme"]
    log = os.path.join(raw["order"]["out"], "log")
    with open(log, "a") as out:
        out.write(raw["phase"] + " " + name + chr(10))
    begun = open(log).read().count(name)
    phase = open(log).read().splitlines().count(raw["phase"] + " " + name)
    if what == "dies" or what == "dies once" and begun == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "dies at b" and part and part["name"] == "b" and phase == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "falls":
        sys.exit("falls over")
    if part:
        answer = {"outcome": {"name": name, "state": "built", "emitted": [part["name"]],
                              "cpu_s": 1.0, "peak_bytes": 5, "predicted_bytes": 9}}
        if what == "wrong at a" and part["name"] == "a":
            answer = {"outcome": {"name": name, "state": "failed", "reason": "a is wrong"}}
    elif not forecast and " at " in what:
        parts = [{"name": n, "memory_bytes": 1, "disk_bytes": 0, "is_first": n == "statistics"}
                 for n in ("statistics", "a", "b")]
        answer = {"forecast": {"memory_bytes": 1, "disk_bytes": 0, "parts": parts}}
    elif not forecast and what.isdigit():
        answer = {"forecast": {"memory_bytes": int(what), "disk_bytes": 0}}
    else:
        answer = {"outcome": {"name": name, "state": "built", "worker": str(os.getpid())}}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def recipe(tiny_folder: Path, tmp_path: Path) -> Path:
    file = tmp_path / "tiny.toml"
    file.write_text(RECIPE.format(checkpoint=tiny_folder))
    return file


def matrix_of(folder: Path, text: str) -> Matrix:
    file = folder / "all.toml"
    file.write_text(text)
    return read_matrix(file)


def test_axes_are_crossed(recipe: Path) -> None:
    found = matrix_of(
        recipe.parent,
        """
        recipes = ["tiny.toml"]
        sizes = ["32x32", "64x32"]
        backends = ["onnx", "openvino"]
        schemes = ["fp16", "int8"]
        [[exclude]]
        size = "64x32"
        scheme = "int8"
        [[include]]
        recipe = "tiny.toml"
        backend = "onnx"
        scheme = "fp32"
        """,
    )
    assert found.names == [
        "tiny/32x32/onnx-fp16",
        "tiny/32x32/openvino-fp16",
        "tiny/32x32/onnx-int8",
        "tiny/32x32/openvino-int8",
        "tiny/64x32/onnx-fp16",
        "tiny/64x32/openvino-fp16",
        "tiny/onnx-fp32",
    ]
    assert {job.group: job.beside for job in found.jobs} == {
        "tiny/32x32": ("fp16", "int8"),
        "tiny/64x32": ("fp16",),
        "tiny": ("fp32",),
    }


def test_what_is_not_given_is_the_recipes(recipe: Path, tiny_copy: Path) -> None:
    found = matrix_of(recipe.parent, f'recipes = ["tiny.toml"]\ncheckpoints = ["{tiny_copy}"]')
    place = f"tiny/{tiny_copy.name}"
    assert found.names == [
        f"{place}/{backend}-{scheme}"
        for scheme in ("fp16", "int4")
        for backend in ("onnx", "openvino")
    ]
    assert {job.checkpoint for job in found.jobs} == {str(tiny_copy)}


def test_chips_are_an_axis_of_backends_that_compile_for_them(recipe: Path) -> None:
    recipe.write_text(recipe.read_text() + '[onnx]\ntarget = "qnn"\nsocs = ["8gen2"]\n')
    text = """
        recipes = ["tiny.toml"]
        socs = ["8gen3", "8elite", "8gen9"]
        backends = ["onnx", "openvino"]
        schemes = ["w8a16"]
        [[exclude]]
        soc = "8elite"
        """
    found = matrix_of(recipe.parent, text)
    assert [(job.name, job.soc) for job in found.jobs] == [
        ("tiny/8gen3/onnx-w8a16", "8gen3"),
        ("tiny/openvino-w8a16", ""),
    ]
    assert asked_recipe(found.jobs[0]).backend("onnx").choices["socs"] == "8gen3"
    (refused,) = found.refused
    assert refused.name == "tiny/8gen9/onnx-w8a16" and "unknown soc '8gen9'" in refused.reason
    alone = '[[include]]\nrecipe = "tiny.toml"\nbackend = "openvino"\nsoc = "8gen3"'
    (refused,) = matrix_of(recipe.parent, alone).refused
    assert refused.reason == "soc = '8gen3': openvino compiles for no chips; leave it out"
    with pytest.raises(InputError, match=r"socs: no job compiles for chips"):
        matrix_of(recipe.parent, text.replace('"onnx", ', ""))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "recipes: at least one is expected"),
        ('recipe = ["x"]', "unknown key 'recipe'; known: backends, "),
        ("recipes = []", "recipes: is empty"),
        ('recipes = "tiny.toml"', "recipes: a list of texts is expected"),
        ('recipes = ["tiny.toml"]\nexclude = 3', "exclude: tables are expected"),
        ('recipes = ["tiny.toml"]\n[[exclude]]\nshape = "x"', "unknown key 'shape'"),
        ('recipes = ["tiny.toml"]\n[[exclude]]\nsize = 3', "size: a text is expected"),
        ('recipes = ["tiny.toml"]\n[[exclude]]\nbackend = "onnx"\n[[exclude]]\nbackend = '
         '"openvino"', "no job is left"),
        ('[[include]]\nbackend = "onnx"', "recipe is missing"),
        ("recipes = [", "not valid TOML"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(recipe: Path, text: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        matrix_of(recipe.parent, text)
    assert str(error.value).startswith(f"{recipe.parent / 'all.toml'}: ")
    assert said in str(error.value)


def test_a_recipe_with_a_mistake_refuses_its_own_jobs(recipe: Path) -> None:
    (recipe.parent / "bad.toml").write_text("[model]\ncheckpoint = 3\n")
    found = matrix_of(
        recipe.parent,
        'recipes = ["tiny.toml", "bad.toml", "gone.toml"]\nbackends = ["onnx", "nosuch"]\n'
        'schemes = ["fp16", "int5"]',
    )
    assert found.names[0] == "tiny/onnx-fp16" and len(found.jobs) == 1
    reasons = {one.name: one.reason for one in found.refused}
    assert len(reasons) == 11 and all("\n" not in reason for reason in reasons.values())
    assert "bad.toml" in reasons["bad/onnx-fp16"]
    assert "unknown scheme 'int5'" in reasons["tiny/onnx-int5"]
    assert "nosuch" in reasons["tiny/nosuch-fp16"]


def fakes(
    folder: Path,
    schemes: Sequence[str],
    workers: int = 1,
    free: Callable[[], Free] = lambda: Free(None, None),
    **options: Any,
) -> tuple[list[Outcome], list[str], list[str]]:
    """Outcomes of jobs that a fake worker does, lines of progress, and what was begun."""
    (folder / "fake.py").write_text(FAKE)
    command = (sys.executable, str(folder / "fake.py"))
    jobs = [Job(f"g/{i}", "r", "", "", "onnx", scheme) for i, scheme in enumerate(schemes)]
    orders = [Assignment(job, "", "", {}, str(folder), "", "") for job in jobs]
    lines: list[str] = []
    runner = Local(workers, free=free, command=command, **options)
    found = list(runner.run(orders, Progress(lambda line, *_: lines.append(line))))
    log = folder / "log"
    return found, lines, log.read_text().splitlines() if log.exists() else []


def test_a_killed_worker_costs_its_job_alone(tmp_path: Path) -> None:
    found, lines, begun = fakes(tmp_path, ["a", "dies once", "b"])
    assert {o.name: (o.state, o.attempts) for o in found} == {
        "g/0": ("built", 1),
        "g/1": ("built", 2),
        "g/2": ("built", 1),
    }
    assert sorted(begun) == ["look up g/0", "look up g/1", "look up g/1", "look up g/2"]
    assert [line for line in lines if line.endswith("it is begun again")]


def test_a_split_job_makes_what_is_measured_then_graphs_then_the_rest(tmp_path: Path) -> None:
    """One of its graphs loses its worker: that graph alone is begun again."""
    (found,), lines, begun = fakes(tmp_path, ["dies at b"], workers=2)
    assert (found.state, found.attempts) == ("built", 2)
    assert sorted(found.emitted) == ["a", "b", "statistics"]
    assert found.cpu_s == 3.0 and found.peak_bytes == 5
    assert begun[:2] == ["look up g/0", "make statistics g/0"]
    assert sorted(begun[2:-1]) == ["make a g/0", "make b g/0", "make b g/0"]
    assert begun[-1] == "build g/0"
    assert [line.partition(" its")[0] for line in lines] == ["g/0: b:"]


def test_a_graph_that_cannot_be_made_fails_its_job_in_a_line(tmp_path: Path) -> None:
    (found,), _, begun = fakes(tmp_path, ["wrong at a"])
    assert (found.state, found.reason) == ("failed", "a is wrong")
    assert sorted(begun)[-1] == "make statistics g/0" and "make b g/0" in begun


def test_a_job_that_always_ends_its_worker_fails_in_a_line(tmp_path: Path) -> None:
    found, _, begun = fakes(tmp_path, ["dies", "falls", "a"], workers=2, retries=1)
    reasons = {o.name: o.reason for o in found if o.state == "failed"}
    assert reasons == {
        "g/0": "its worker was ended by signal 9, as when memory runs out, 2 times",
        "g/1": "its worker ended: falls over, 2 times",
    }
    assert [o.name for o in found if o.state == "built"] == ["g/2"]
    assert begun.count("look up g/0") == 2


def test_a_job_waits_until_what_it_may_take_is_free(tmp_path: Path) -> None:
    """Memory that is there only when the job has waited for it."""
    asked = 0

    def free() -> Free:
        nonlocal asked
        asked += 1
        return Free(10**12, 10**12 if asked > 12 or asked < 4 else 10**9)

    found, lines, begun = fakes(tmp_path, ["5000000000"], free=free)
    assert [o.state for o in found] == ["built"]
    assert lines == ["g/0: waits until 5,000 MB are free"]
    assert begun == ["look up g/0", "build g/0"]


def test_jobs_share_what_they_may_take_together(tmp_path: Path) -> None:
    """Two that fit one after the other alone: never at once, and both are built."""
    found, _, begun = fakes(
        tmp_path, ["5000000000", "5000000001"], workers=2, memory_bytes=8 * 10**9
    )
    assert [o.state for o in found] == ["built", "built"]
    assert sorted(begun) == ["build g/0", "build g/1", "look up g/0", "look up g/1"]


def test_what_there_is_not_at_all_fails_in_a_line(tmp_path: Path) -> None:
    found, _, _ = fakes(tmp_path, ["9000000000", "a"], free=lambda: Free(8 * 10**9, 8 * 10**9))
    reasons = {o.name: o.reason for o in found if o.state == "failed"}
    assert list(reasons) == ["g/0"]
    assert "9,000 MB of memory, and there are 8,000 MB at all" in reasons["g/0"]


def test_a_container_has_what_its_group_allows(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 8000 kB\nMemAvailable: 6000 kB\n")
    group = tmp_path / "group"
    group.mkdir()
    for name, text in (
        ("memory.max", "4096000"), ("memory.current", "2048000"),
        ("memory.stat", "anon 5\ninactive_file 1024000\n"),
    ):  # fmt: skip
        (group / name).write_text(text)
    none = tmp_path / "none"
    assert free_memory(tmp_path, group, none) == Free(4096000, 3072000)
    (group / "memory.max").write_text("max")
    assert free_memory(tmp_path, group, none) == Free(8192000, 6144000)


def test_the_page_says_what_was_built_reused_and_failed() -> None:
    outcomes = [
        Outcome("a/onnx-int4", "built", emitted=("denoiser",), taken=("clip_l",), seconds=3.0,
                peak_bytes=3 * 10**8, predicted_bytes=2 * 10**8),
        Outcome("a/onnx-int8", "failed", "<script> is no scheme"),
    ]  # fmt: skip
    text = page("all", outcomes, 4.0)
    assert "<script" not in text and "&lt;script&gt; is no scheme" in text
    assert "More memory than predicted" in text and "denoiser" in text


def test_a_job_over_its_own_prediction_is_reported(recipe: Path) -> None:
    class Over:
        def run(
            self, assignments: Sequence[Assignment], progress: Progress
        ) -> Generator[Outcome, None, None]:
            for one in assignments:
                yield Outcome(
                    one.job.name, "failed", "x", peak_bytes=3 * 10**8, predicted_bytes=2 * 10**8
                )

    matrix = matrix_of(recipe.parent, 'recipes = ["tiny.toml"]\nbackends = ["onnx"]')
    lines: list[str] = []
    run(matrix, recipe.parent / "out", Over(), "", Progress(), lines.append)
    assert [line for line in lines if line.startswith("warning: ")] == [
        f"warning: {name}: took 300 MB of memory, more than the 200 MB that were predicted"
        for name in matrix.names
    ]


def test_a_ci_reads_the_jobs(recipe: Path) -> None:
    found = matrix_of(recipe.parent, 'recipes = ["tiny.toml", "gone.toml"]\nschemes = ["int4"]')
    github = json.loads(listed(found, "github", "all.toml"))
    assert [row["job"] for row in github["include"]] == found.names
    gitlab = json.loads(listed(found, "gitlab", "all.toml"))
    assert [j["variables"]["JOB"] for n, j in gitlab.items() if n[0] != "."] == found.names
    with pytest.raises(InputError, match="unknown job 'x'"):
        found.only(["x"])
    assert found.only(found.names[-1:]).names == found.names[-1:]


def test_the_command_builds_what_a_build_builds(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a recipe that has a mistake in the middle: one line, and the rest goes on."""
    (tmp_path / "bad.toml").write_text("[model]\n")
    file = tmp_path / "all.toml"
    file.write_text(
        'recipes = ["bad.toml", "tiny.toml"]\nbackends = ["onnx"]\nschemes = ["fp16", "int4"]'
    )
    place = tmp_path / "out"
    whole = ["--workers", "1", "--json", "--split", "1"]  # every graph is a job of its own
    code, told, errors = ran(capsys, file, "--out", place, *whole)
    assert code == 2 and told["failed"] == 2 and told["built"] == 2
    assert all(job["emitted"] and not job["taken"] for job in told["jobs"] if job["bytes"])
    assert [line for line in errors if "taken from the cache" in line]
    assert len([line for line in errors if line.startswith("fourstep: bad/")]) == 2
    build(read_recipe(recipe), tmp_path / "plain", ["onnx"], ["fp16", "int4"])
    for name in ("onnx-fp16", "onnx-int4"):
        assert digests(place / "tiny" / name) == digests(tmp_path / "plain" / name)
    # Another machine with the same cache: nothing is traced.
    again = tmp_path / "again"
    cache = ["--cache", place / "cache", "--job", "tiny/onnx-int4", "--job", "tiny/onnx-fp16"]
    code, told, errors = ran(capsys, file, "--out", again, "--workers", "1", "--json", *cache)
    assert code == 0 and told["reused"] == 2
    assert not [line for line in errors if "trace" in line]
    assert digests(again / "tiny/onnx-int4") == digests(place / "tiny/onnx-int4")
    assert (again / "matrix.html").is_file()


@pytest.mark.full
def test_what_is_measured_is_the_same_apart_and_together(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two workers at once in one recipe, whose schemes ask for other graphs to be measured.

    Every graph is a job of its own, and what is measured for them another one.
    """
    override = '[[weights.override]]\ngraph = "denoiser"\nweight = "*"\nformat = "fp32"\n'
    text = RECIPE.replace("prompts = []", 'prompts = ["a red circle"]')
    text += '[calibration]\nprompts = ["a red circle"]\nmethods = ["feedback", "bias"]\n'
    folder = recipe.read_text().partition('checkpoint = "')[2].partition('"')[0]
    recipe.write_text(text.format(checkpoint=folder))
    file = tmp_path / "all.toml"
    file.write_text(
        'recipes = ["tiny.toml"]\nbackends = ["onnx", "openvino"]\n'
        'schemes = ["fp16", "int8", "int4"]'
    )
    split = ["--workers", "2", "--json", "--split", "1"]
    code, told, _ = ran(capsys, file, "--out", tmp_path / "out", *split)
    assert code == 0 and told["built"] == 6
    build(read_recipe(recipe), tmp_path / "plain", [], ["fp16", "int8", "int4"])
    for job in told["jobs"]:
        name = job["name"].rpartition("/")[2]
        assert digests(tmp_path / "out" / job["name"]) == digests(tmp_path / "plain" / name), name
    # The scheme of one graph changes, to what no other package has: that graph alone is emitted.
    recipe.write_text(recipe.read_text().replace("[build]", f"{override}[build]"))
    cache = ["--cache", tmp_path / "out/cache"]
    again = tmp_path / "again"
    code, told, _ = ran(capsys, file, "--out", again, *split, *cache)
    assert code == 0
    assert {name for job in told["jobs"] for name in job["emitted"]} == {"denoiser"}
    assert all(job["taken"] or job["state"] == "reused" for job in told["jobs"])


def ran(
    capsys: pytest.CaptureFixture[str], file: Path, *options: object
) -> tuple[int, dict[str, Any], list[str]]:
    with pytest.raises(SystemExit) as ended:
        main(["matrix", str(file), *map(str, options)])
    said = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, json.loads(said.out), said.err.splitlines()

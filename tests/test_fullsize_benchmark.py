"""The full-size benchmark: what it runs, what it counts, what it says of who fails."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.energy import counters, joules
from benchmarks.figures import markdown
from benchmarks.fullsize.__main__ import COLUMNS, again, flat, flattened, run, synthesize
from benchmarks.fullsize.contestants import Contestant, Model, contestants, write_recipe
from benchmarks.fullsize.draw_fourstep import timed
from benchmarks.fullsize.floor import step_flop
from benchmarks.fullsize.stages import stages
from exporter.recipe.recipe import read_recipe
from exporter.runtime.package import open_package
from tests.conftest import SHAPES, opened_by

PICTURE = {
    "picture_s": 2.0,
    "load_s": 0.5,
    "text_s": 0.25,
    "steps_s": [0.2, 0.3],
    "vae_s": 0.75,
    "pixels_std": 60.0,
}


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


@pytest.fixture
def contestant(tmp_path: Path) -> Contestant:
    package = tmp_path / "package"
    write = f"from pathlib import Path; p = Path({str(package)!r}); p.mkdir(); "
    return Contestant(
        "somebody",
        "",
        python(write + "(p / 'weights').write_bytes(bytes(3_000_000))"),
        package,
        python(
            "import time; time.sleep(0.3); print('hello'); "  # long enough for memory to be seen
            f"print({json.dumps([PICTURE, PICTURE])!r})"
        ),
    )


def test_stages_add_up() -> None:
    found = stages(5.0, 100.0, [103.0, 105.0, 107.5, 109.5], 110.0, 50.0)
    assert found == {
        "picture_s": 15.0,
        "load_s": 5.0,
        "text_s": 1.0,
        "steps_s": [2.0, 2.0, 2.5, 2.0],
        "vae_s": 0.5,
        "pixels_std": 50.0,
    }


@pytest.mark.parametrize("steps", [2, 4, 8])
def test_the_recipe_is_one(tmp_path: Path, steps: int) -> None:
    model = Model(tmp_path / "checkpoint", 768, steps, t5=True)
    recipe = read_recipe(write_recipe(model, tmp_path))
    assert recipe.cut.sigmas == model.sigmas and len(model.sigmas) == steps + 1
    assert (recipe.cut.width_px, recipe.cut.t5) == (768, True)
    layer = "encoder.block.0.layer.0.SelfAttention.q.weight"
    assert str(recipe.scheme("int8").format_of("t5", layer, "linear")) == "int4-g64"
    assert str(recipe.scheme("int8").format_of("t5", "shared.weight", "embedding")) == "int8"
    if steps == 4:
        shipped = read_recipe(Path(__file__).parents[1] / "recipes/sd3.5-flash.toml")
        assert model.sigmas == pytest.approx(shipped.cut.sigmas)


def test_everybody_gets_the_same_checkpoint_prompt_and_seed(tmp_path: Path) -> None:
    model = Model(tmp_path / "checkpoint", 512, 4, t5=False)
    everybody = contestants(model, tmp_path, {"optimum-intel": "/x/bin/python"}, ["int4"])
    assert len({c.name for c in everybody}) == len(everybody) == 17
    write_recipe(model, tmp_path)
    for one in everybody:
        assert "a red fox reading a newspaper in a cafe, morning light" in one.draw
        assert "7" in one.draw
        words = [*one.export, *one.draw]
        recipes = [Path(w).read_text() for w in words if w.endswith(".toml")]
        assert any(str(model.checkpoint) in text for text in (*words, *recipes))
    theirs = [c for c in everybody if "optimum-intel" in c.name or "GenAI" in c.name]
    assert {c.draw[0] for c in theirs} == {"/x/bin/python"}
    by_optimum = [c for c in theirs if c.draw[4:5] == ("openvino",)]
    assert [c.package.name for c in by_optimum] == ["openvino-int4-diffusers", "optimum-intel-int4"]


def test_variants_of_ours(tmp_path: Path) -> None:
    model = Model(tmp_path / "checkpoint", 512, 4, t5=False)
    found = {c.name: c for c in contestants(model, tmp_path, {}, ["int4"])}
    kept, half, cached = (
        found[f"fourstep openvino-int4, {name}"]
        for name in ("kept open", "kept open, bfloat16", "cached")
    )
    assert kept.draw[-1:] == ("--keep",) and half.draw[-2:] == ("--keep", "--half")
    assert "--cache" in cached.draw and cached.warm == cached.draw
    assert found["optimum-intel, OpenVINO GenAI int4, f32"].draw[-1] == "f32"


def test_every_scheme_of_ours_takes_part_where_it_can(tmp_path: Path) -> None:
    model = Model(tmp_path / "checkpoint", 512, 4, t5=False)
    found = {c.name for c in contestants(model, tmp_path, {}, ["int8-w8a8", "int4"])}
    for scheme in ("int8-w8a8", "int4"):
        assert {f"fourstep openvino-{scheme}", f"fourstep openvino-{scheme}, kept open"} <= found
        assert {f"fourstep onnx-{scheme}", f"fourstep onnx-{scheme}, kept open"} <= found


@pytest.mark.parametrize(("px", "teraflop"), [(512, 2.13), (768, 5.21), (1024, 10.78)])
def test_the_floor_counts_the_unfolded_step(px: int, teraflop: float) -> None:
    """Against a count of every product of the network itself, 154 text tokens."""
    assert step_flop(px) / 1e12 == pytest.approx(teraflop, abs=0.006)


def test_without_t5_xxl_the_checkpoint_has_a_small_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[object, ...]] = []

    def synth(*arguments: object) -> None:
        made.append(arguments)
        folder = Path(str(arguments[1]))
        (folder / "transformer").mkdir(parents=True)
        (folder / "model_index.json").write_text(str(arguments[0]))
        if "--no-t5" not in arguments:
            (folder / "text_encoder_3").mkdir()
            (folder / "tokenizer_3").mkdir()

    monkeypatch.setattr("benchmarks.fullsize.__main__._synth", synth)
    folder = synthesize(tmp_path, "sd3.5-flash", t5=False)
    assert [m[0] for m in made] == ["sd3.5-flash", "sd3.5-flash-mini"]
    assert {p.name for p in folder.iterdir()} == {
        "transformer", "model_index.json", "text_encoder_3", "tokenizer_3",
    }  # fmt: skip
    assert (folder / "model_index.json").read_text() == "sd3.5-flash-mini"
    synthesize(tmp_path, "sd3.5-flash", t5=False)
    assert len(made) == 2 and [p.name for p in tmp_path.iterdir()] == [folder.name]


def test_a_row_has_all_figures(contestant: Contestant) -> None:
    row = run(contestant, [])
    assert row["package_bytes"] == 3_000_000 and row["pictures"] == [PICTURE, PICTURE]
    assert row["export"]["seconds"] > 0 and row["draw"]["peak_rss_bytes"] > 1 << 20
    line = markdown(COLUMNS, [flat("somebody", row)]).splitlines()[-1]
    assert "| 3 | 2.0 | 2.0 | | | 0.5 | 0.2 | 0.20 | 0.8 |" in line
    assert row["draw"]["cpu_s"] > 0
    again = run(contestant, [])
    assert "export" not in again  # the package is there


def test_seconds_are_medians_of_rounds_and_tell_their_spread(contestant: Contestant) -> None:
    row = run(contestant, [])
    for seconds in (1.0, 6.0):
        slower = [{**PICTURE, "picture_s": seconds}, {**PICTURE, "picture_s": 2 * seconds}]
        code = f"print({json.dumps(slower)!r})"
        again(replace(contestant, draw=python(code)), row)
    found = flat("somebody", row)
    assert (found["first_s"], found["first_spread"]) == (2.0, 250)
    assert (found["next_s"], found["next_spread"]) == (2.0, 500)
    again(replace(contestant, draw=python("raise SystemExit(3)")), row)
    assert row["further_error"] == "draw: exit code 3" and len(row["further"]) == 2
    failed = {"error": "export: killed"}
    again(contestant, failed)
    assert failed == {"error": "export: killed"}


def test_energy_is_read_where_the_kernel_tells(tmp_path: Path) -> None:
    assert counters(tmp_path) == {} and joules({}, {}) is None
    for zone, now in (("intel-rapl:0", 900), ("intel-rapl:1", 50), ("intel-rapl:0:0", 7)):
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "energy_uj").write_text(f"{now}000000\n")
        (tmp_path / zone / "max_energy_range_uj").write_text("1000000000\n")
    before = counters(tmp_path)
    assert list(before) == ["intel-rapl:0", "intel-rapl:1"]
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("100000000\n")  # began again at 0
    assert joules(before, counters(tmp_path)) == pytest.approx(200)
    assert joules(before, {}) is None


def test_a_row_says_how_much_longer_genai_takes(contestant: Contestant) -> None:
    row = run(contestant, [])
    slower = {**row, "pictures": [{**PICTURE, "picture_s": 6.0}, {**PICTURE, "picture_s": 3.0}]}
    genai, size = "optimum-intel, OpenVINO GenAI int4", "512 px, 4 steps"
    rows = {f"a, {size}": row, f"{genai}, f32, {size}": row, f"{genai}, {size}": slower}
    found = flattened({**rows, f"b, {size}": {"error": "x"}, "a, 768 px, 4 steps": row})
    assert (found[0]["genai_first"], found[0]["genai_next"]) == (3.0, 1.5)
    assert ["genai_first" in row for row in found] == [True, True, False, False, False]


def test_everything_is_drawn_as_on_another_processor(contestant: Contestant) -> None:
    code = f"import os; os.environ['LEVEL']; print({json.dumps([PICTURE, PICTURE])!r})"
    one = replace(contestant, draw=python(code))
    assert "error" not in run(one, [], {"LEVEL": "avx2"})
    assert run(one, [])["error"] == "draw: exit code 1"


@pytest.mark.parametrize(
    ("code", "reason"),
    [("raise SystemExit(3)", "exit code 3"), ("import os; os.abort()", "killed")],
)
def test_who_fails_is_a_row_too(contestant: Contestant, code: str, reason: str) -> None:
    exported = run(replace(contestant, export=python(code)), [])
    assert exported == {"error": f"export: {reason}"}
    drawn = run(replace(contestant, draw=python(code)), [])
    assert drawn["error"] == f"draw: {reason}" and drawn["package_bytes"] == 3_000_000
    found = flattened({"a": exported, "b": drawn})
    assert found == [{"package": "a", "error": f"export: {reason}"},
                     {"package": "b", "error": f"draw: {reason}"}]  # fmt: skip


def test_a_package_of_ours_is_timed(tiny_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = opened_by(monkeypatch)
    player = open_package(tiny_package).player(keep=True)
    found = timed(player, "a red circle", 7)
    assert isinstance(found["steps_s"], list) and len(found["steps_s"]) == 4
    assert all(isinstance(found[k], float) and found[k] > 0 for k in ("load_s", "text_s", "vae_s"))
    kept = list(opened)
    again = timed(player, "a red circle", 7)
    assert again["pixels_sha256"] == found["pixels_sha256"]
    assert opened == kept != []


def test_diffusers_draws_two_pictures() -> None:
    """With the arguments that the contestant gives it, at the size of the model in the box."""
    model = Model(SHAPES, 128, 4, t5=True)
    (one,) = [c for c in contestants(model, SHAPES, {}, []) if c.name == "diffusers float32"]
    found = run(one, [])
    first, following = found["pictures"]
    assert first["load_s"] > 0 and following["load_s"] == 0
    assert len(first["steps_s"]) == len(following["steps_s"]) == 4
    assert (
        first["pixels_std"] == following["pixels_std"] > 1
    )  # the same picture, and not one colour

"""A filter of the user's: pictures that it rejects reach nobody, whatever draws them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper
from PIL import Image as Pictures

from benchmarks.shapes_flash import red_circles
from exporter import backends
from exporter.backends.contract import Operator
from exporter.build import golden
from exporter.build.filter import prepared
from exporter.build.pipeline import build
from exporter.build.write import write_filter
from exporter.cli import main
from exporter.drawing import loop
from exporter.drawing.judge import Glimpses, Judge, fed, is_rejected, score_of
from exporter.errors import CheckFailed, InputError
from exporter.network.cut import Cut
from exporter.package import consistent, pixels
from exporter.package.manifest import Manifest, Source, Stage
from exporter.package.read import read_manifest, write_manifest
from exporter.predict.classifier import activation_bytes
from exporter.recipe.again import Givens, recipe_again
from exporter.recipe.filter import FilterChoice
from exporter.recipe.recipe import Recipe, read_recipe
from exporter.runtime import (
    Conditioned,
    Event,
    Image,
    Rejected,
    Request,
    Step,
    generate,
    open_package,
    verify,
)
from tests.conftest import ROOT, SHAPES, needs

FILES = {
    "onnx": SHAPES / "filter/red_circles.onnx",
    "openvino": SHAPES / "filter/red_circles.xml",
    "coreml": SHAPES / "filter/red_circles.mlpackage",
}
ABLE = [name for name in FILES if not backends.missing(needs(name))]
ALWAYS, NEVER = -1.0, 2.0  # thresholds of a score from 0 to 1


def choice(threshold: float = 0.5, **changes: Any) -> FilterChoice:
    graphs = {name: str(file) for name, file in FILES.items()}
    return FilterChoice(graphs, threshold, label="red circle", **changes)


def with_filter(package: Path, place: Path, chosen: FilterChoice) -> Path:
    """A copy of a package with this filter, as a build would write it; without golden calls."""
    folder = Path(shutil.copytree(package, place))
    manifest = read_manifest(folder)
    found = prepared(chosen, backends.load(manifest.backend))
    ((graph, stage),) = write_filter(folder, found, manifest.graphs)
    changed = replace(
        manifest,
        format_version="4.1",
        graphs=(*manifest.graphs, graph),
        stages=(*manifest.stages, stage),
        filter=found.entry,
    )
    write_manifest(folder, changed)
    return folder


@pytest.fixture(scope="module")
def scores(tiny_package: Path) -> dict[int, float]:
    """Of pictures of the tiny model, by seed, as a filter that rejects none finds them."""
    found = prepared(choice(), backends.load("onnx"))
    with open_package(tiny_package).player() as player:
        images = [e for e in generate(player, requests(1, 2)) if isinstance(e, Image)]
    values = [
        score_of(found.session({"picture": fed(i.pixels, found.entry)})["red_circle"], found.entry)
        for i in images
    ]
    assert values[0] != values[1]
    return {1: values[0], 2: values[1]}


@pytest.fixture(scope="module")
def halfway(tiny_package: Path, scores: dict[int, float], tmp_path_factory: Any) -> Path:
    """The tiny package with a filter that rejects the picture of one of the seeds 1 and 2."""
    place = tmp_path_factory.mktemp("filtered") / "package"
    return with_filter(tiny_package, place, choice(sum(scores.values()) / 2))


def requests(*seeds: int) -> list[Request]:
    return [Request("a red circle", seed) for seed in seeds]


def bad_seed(scores: Mapping[int, float]) -> int:
    return max(scores, key=lambda seed: scores[seed])


def fourstep(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_what_passes_goes_on_and_what_does_not_is_not_handed_out(
    halfway: Path, scores: dict[int, float], tiny_package: Path
) -> None:
    with open_package(halfway).player() as player:
        events = list(generate(player, requests(1, 2)))
    with open_package(tiny_package).player() as plain:
        drawn = {
            e.request.seed: e.pixels
            for e in generate(plain, requests(1, 2))
            if isinstance(e, Image)
        }
    (rejected,) = [e for e in events if isinstance(e, Rejected)]
    (image,) = [e for e in events if isinstance(e, Image)]
    bad = bad_seed(scores)
    assert rejected.request.seed == bad and image.request.seed != bad
    assert rejected.score == pytest.approx(scores[bad]) and rejected.label == "red circle"
    assert image.score == pytest.approx(scores[image.request.seed])
    assert np.array_equal(image.pixels, drawn[image.request.seed])
    assert sum(isinstance(e, Step) for e in events) == 8
    assert not any(isinstance(e, Step) and e.latent is not None for e in events)
    assert not any(isinstance(e, Step) and e.step == 4 and e.preview is not None for e in events)


def test_nothing_of_a_rejected_picture_is_left(
    tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in what the loop computed nor in what the engine gave and was fed."""
    folder = with_filter(tiny_package, tmp_path / "package", choice(ALWAYS))
    made: list[np.ndarray] = []
    to_pixels = pixels.to_pixels

    def noted(*arguments: Any) -> np.ndarray:
        made.append(to_pixels(*arguments))
        return made[-1]

    monkeypatch.setattr(loop, "to_pixels", noted)
    with open_package(folder).player() as player:

        def opened(name: str) -> Callable[[Mapping[str, np.ndarray]], loop.Ports]:
            session = player.open(name)

            def run(inputs: Mapping[str, np.ndarray]) -> loop.Ports:
                outputs = session(inputs)
                if name == "vae_decoder":
                    made.extend([*inputs.values(), *outputs.values()])
                return outputs

            return run

        events: list[Event] = list(generate(replace(player, open=opened), requests(1)))
    assert [type(e) for e in events] == [Conditioned, *[Step] * 4, Rejected]
    assert len(made) == 3 and not any(array.any() for array in made)


def test_a_picture_that_cannot_be_judged_is_not_handed_out(
    tiny_package: Path, tmp_path: Path
) -> None:
    folder = with_filter(tiny_package, tmp_path / "package", choice(NEVER))
    with open_package(folder).player() as player:

        def opened(name: str) -> Callable[[Mapping[str, np.ndarray]], loop.Ports]:
            if name == "filter":
                return lambda inputs: {"red_circle": np.full((1, 1), np.nan, np.float32)}
            return player.open(name)

        drawing = generate(replace(player, open=opened), requests(1))
        with pytest.raises(CheckFailed, match="the filter: its output holds NaN"):
            list(drawing)


def test_previews_pass_the_filter_too(tiny_package: Path, tmp_path: Path) -> None:
    """Each while its step is the latest; past one that does not pass, none."""
    never = with_filter(tiny_package, tmp_path / "never", choice(NEVER))
    with open_package(never).player() as player:
        steps = []
        for event in generate(player, requests(1)):
            if isinstance(event, Step):
                steps.append(event)
                shown = event.preview() if event.preview else None
                assert (shown is None) == (event.step == 4)
        assert all(step.preview is None or step.preview() is None for step in steps)
    always = with_filter(tiny_package, tmp_path / "always", choice(ALWAYS))
    with open_package(always).player() as player:
        for event in generate(player, requests(1)):
            if isinstance(event, Step) and event.preview is not None:
                assert event.preview() is None


def test_past_a_preview_that_is_rejected_there_is_none() -> None:
    verdicts = iter([0.0, 1.0])

    def opened(name: str) -> loop.Session:
        return lambda inputs: {"y": np.array([next(verdicts)], np.float32)}

    stage = Stage(
        "filter", ("filter",), "for the filter", {"x": Source("picture")}, {"y": "scores"}
    )
    glimpses, grey = Glimpses(Judge(red_circles.ENTRY, stage, opened)), np.full((2, 2, 3), 9, "u1")
    first = glimpses.of(lambda: grey)
    assert first() is grey
    second = glimpses.of(lambda: grey)
    assert first() is None  # no longer the latest
    assert second() is None and not grey.any()
    assert glimpses.of(lambda: grey)() is None


def test_run_writes_nothing_of_what_is_rejected(
    halfway: Path, scores: dict[int, float], tmp_path: Path
) -> None:
    bad = bad_seed(scores)
    out, previews = tmp_path / "a.png", tmp_path / "previews"
    typed = ("run", halfway, "a red circle", "--seed", 1, "--seed", 2, "--out", out, "--json")
    result = fourstep(*typed, "--previews", previews)
    assert result.exit_code == 3, result.output
    said = "1 of 2 pictures were rejected by the package's filter (red circle); nothing was written"
    assert said in result.stderr and "rejected by the package's filter" in result.stderr
    rows = {row["seed"]: row for row in json.loads(result.stdout)}
    assert rows[bad]["rejected"] and rows[bad]["path"] is None
    assert rows[bad]["score"] == pytest.approx(scores[bad]) and rows[bad]["label"] == "red circle"
    good = 3 - bad
    assert not rows[good]["rejected"] and rows[good]["path"] == str(tmp_path / f"a-{good - 1}.png")
    names = {file.name for file in tmp_path.rglob("*.png")}
    assert f"a-{good - 1}.png" in names and f"a-{bad - 1}.png" not in names
    assert not [name for name in names if name.startswith(f"{bad - 1}-")]
    assert not [name for name in names if name.endswith("-4.png")]
    shown = fourstep("run", halfway, "a red circle", "--seed", bad, "--out", out)
    assert shown.exit_code == 3 and shown.stdout.startswith("rejected, score ") and not out.exists()


def test_an_older_picture_under_the_name_stays(
    halfway: Path, scores: dict[int, float], tmp_path: Path
) -> None:
    out = tmp_path / "a.png"
    Pictures.new("RGB", (1, 1)).save(out)
    before = out.read_bytes()
    seed = bad_seed(scores)
    assert fourstep("run", halfway, "a red circle", "--seed", seed, "--out", out).exit_code == 3
    assert out.read_bytes() == before


def test_inspect_says_what_is_rejected(halfway: Path, tiny_package: Path) -> None:
    assert "filter: none" in fourstep("inspect", tiny_package).stdout
    said = fourstep("inspect", halfway).stdout
    assert "filter: a picture is rejected that scores" in said and "for 'red circle'" in said
    entry = json.loads(fourstep("inspect", halfway, "--json").stdout)["filter"]
    assert entry["reject"] == "above" and entry["label"] == "red circle"


def test_readers_of_4_0_refuse_such_a_package(halfway: Path) -> None:
    """They know no stage that runs for a filter, and say so."""
    raw = json.loads((halfway / "manifest.json").read_text())
    known_by_4_0 = {"once per prompt", "each step", "once"}
    assert {s["runs"] for s in raw["stages"]} - known_by_4_0 == {"for the filter"}


def test_a_damaged_classifier_is_found(halfway: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(halfway, tmp_path / "package"))
    file = folder / "graphs/filter/filter.onnx"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    result = fourstep("run", folder, "a", "--out", tmp_path / "a.png")
    assert result.exit_code == 2 and "filter.onnx: damaged" in result.stderr
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: replace(m, filter=None), "filter: does not go with 1 stages"),
        (lambda m: replace(m, filter=replace(m.filter, index=1)), "filter.index: 1 is not in"),
        (lambda m: replace(m, filter=replace(m.filter, width_px=8)), "takes float32"),
        (lambda m: replace(m, filter=replace(m.filter, layout="NHWC")), "takes float32"),
        (lambda m: replace(m, stages=(m.stages[-1], *m.stages[:-1])), "does not run last"),
        (
            lambda m: replace(m, stages=(*m.stages[:-1], replace(m.stages[-1], runs="once"))),
            "does not give the scores",
        ),
    ],
)
def test_manifests_that_contradict_themselves(
    halfway: Path, change: Callable[[Manifest], Manifest], said: str
) -> None:
    manifest = read_manifest(halfway)
    consistent.check(manifest)
    with pytest.raises(ValueError) as raised:
        consistent.check(change(manifest))
    problems = [str(raised.value), *consistent._problems(change(manifest))]
    assert any(said in problem for problem in problems), problems


# The classifier, and how it is fed.


@pytest.mark.parametrize("name", ABLE)
def test_the_classifier_tells_red_circles_on_every_backend(name: str) -> None:
    found = prepared(choice(), backends.load(name))
    first = prepared(choice(), backends.load("onnx"))
    rng, wrong = Random(3), 0
    for _ in range(25):
        pixels, has_one = red_circles.example(rng)
        inputs = {"picture": fed(pixels, found.entry)}
        score = score_of(found.session(inputs)["red_circle"], found.entry)
        assert score == pytest.approx(float(first.session(inputs)["red_circle"].item()), abs=1e-4)
        wrong += is_rejected(score, found.entry) != has_one
    assert wrong == 0


def test_a_picture_is_fed_as_the_manifest_says() -> None:
    pixels = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3) * 5
    entry = replace(red_circles.ENTRY, width_px=4, height_px=4)
    unit = pixels.astype(np.float32) / 255
    np.testing.assert_allclose(fed(pixels, entry), unit.transpose(2, 0, 1)[None])
    there = replace(entry, layout="NHWC", channels="BGR", range="levels")
    np.testing.assert_allclose(fed(pixels, there), pixels[None, ..., ::-1], rtol=1e-6)
    scaled = replace(
        entry, layout="NHWC", range="signed", mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0)
    )
    expected = (unit * 2 - 1 - np.array([0.1, 0.2, 0.3])) / np.array([0.5, 1, 2])
    np.testing.assert_allclose(fed(pixels, scaled)[0], expected, rtol=1e-5, atol=1e-6)
    small = replace(entry, width_px=2, height_px=3, layout="NHWC", range="levels")
    resized = Pictures.fromarray(pixels).resize((2, 3), Pictures.Resampling.BILINEAR)
    np.testing.assert_allclose(fed(pixels, small)[0], np.asarray(resized), rtol=1e-6)


def test_scores() -> None:
    entry, values = red_circles.ENTRY, np.array([[-2000.0, 0.0, 2.0]], np.float32)
    assert score_of(values, replace(entry, index=2)) == 2
    assert score_of(values, replace(entry, index=1, activation="sigmoid")) == 0.5
    assert score_of(values, replace(entry, index=0, activation="sigmoid")) == 0
    soft = score_of(values, replace(entry, index=2, activation="softmax"))
    assert soft == pytest.approx(np.exp(2) / (1 + np.exp(2)))
    assert is_rejected(0.5, entry) and not is_rejected(0.4, entry)
    below = replace(entry, reject="below")
    assert is_rejected(0.5, below) and not is_rejected(0.6, below)
    with pytest.raises(CheckFailed, match="NaN"):
        score_of(np.array([np.nan]), entry)


def small_onnx(
    file: Path, shape: list[Any], kind: int = TensorProto.FLOAT, inputs: int = 1, outputs: int = 1
) -> Path:
    """A graph that gives the mean of its first input at each output."""
    nodes = [helper.make_node("Cast", ["x0"], ["f"], to=TensorProto.FLOAT)]
    for i in range(outputs):
        nodes.append(helper.make_node("ReduceMean", ["f"], [f"y{i}"], keepdims=1))
    ins = [helper.make_tensor_value_info(f"x{i}", kind, shape) for i in range(inputs)]
    outs = [
        helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, [1] * len(shape))
        for i in range(outputs)
    ]
    graph = helper.make_graph(nodes, "small", ins, outs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    file.write_bytes(model.SerializeToString())
    return file


def test_classifiers_that_cannot_be_filters(tmp_path: Path) -> None:
    backend = backends.load("onnx")

    def refused(file: Path, said: str, **changes: Any) -> None:
        with pytest.raises(InputError) as raised:
            prepared(FilterChoice({"onnx": str(file)}, 0.5, **changes), backend)
        assert said in str(raised.value), raised.value

    text = tmp_path / "text.onnx"
    text.write_text("hello")
    refused(text, "text.onnx: onnxruntime cannot open it")
    free = small_onnx(tmp_path / "free.onnx", [None, 3, None, None])
    refused(free, "[filter] height_px is missing: ")
    prepared(FilterChoice({"onnx": str(free)}, 0.5, width_px=8, height_px=8), backend)
    fixed = small_onnx(tmp_path / "fixed.onnx", [1, 8, 8, 3])
    assert prepared(FilterChoice({"": str(fixed)}, 0.5), backend).entry.layout == "NHWC"
    refused(fixed, "[filter] width_px = 4: ", width_px=4)
    refused(fixed, "[filter] layout = 'NCHW': the input of ", layout="NCHW")
    refused(fixed, "[filter] index = 1: ", index=1)
    refused(fixed, "[filter] output = 'z': ", output="z")
    refused(small_onnx(tmp_path / "a.onnx", [1, 3]), "its input is 1x3; one picture has 4 axes")
    refused(small_onnx(tmp_path / "b.onnx", [2, 3, 8, 8]), "its input is 2x3x8x8")
    refused(small_onnx(tmp_path / "c.onnx", [1, 3, 8, 8], TensorProto.UINT8), "is tensor(uint8)")
    refused(small_onnx(tmp_path / "d.onnx", [1, 3, 8, 8], inputs=2), "has inputs x0, x1; one")
    two = small_onnx(tmp_path / "e.onnx", [1, 3, 8, 8], outputs=2)
    refused(two, "[filter] output is missing: ")
    assert prepared(FilterChoice({"onnx": str(two)}, 0.5, output="y1"), backend).output.name == "y1"


def test_weights_beside_the_graph_are_copied(tmp_path: Path, tiny_package: Path) -> None:
    model = onnx.load(str(FILES["onnx"]))
    file = tmp_path / "large.onnx"
    onnx.save(
        model, str(file), save_as_external_data=True, location="large.bin", size_threshold=100
    )
    chosen = FilterChoice({"onnx": str(file)}, NEVER)
    folder = with_filter(tiny_package, tmp_path / "package", chosen)
    assert (folder / "graphs/filter/large.bin").is_file()
    assert open_package(folder).session("filter") is not None


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("graph = 'no.onnx'\nthreshold = 1", "[filter] graph: "),
        ("threshold = 1", "[filter] graph: a file is expected, or one for each backend"),
        ("graph = { tf = 'red.onnx' }\nthreshold = 1", "unknown backend 'tf'"),
        ("graph = 'red.onnx'", "[filter] threshold is missing"),
        ("graph = 'red.onnx'\nthreshold = 'a'", "[filter] threshold = 'a': must be a number"),
        ("graph = 'red.onnx'\nthreshold = 1\ncolour = 1", "unknown key in [filter] 'colour'"),
        ("graph = 'red.onnx'\nthreshold = 1\nreject = 'all'", "[filter] reject: unknown value"),
        ("graph = 'red.onnx'\nthreshold = 1\nindex = -1", "[filter] index = -1: must be a whole"),
        ("graph = 'red.onnx'\nthreshold = 1\nstd = 0", "[filter] std = [0.0, 0.0, 0.0]: must be"),
        ("graph = 'red.onnx'\nthreshold = 1\nmean = [1, 2]", "one for each channel"),
        ("graph = 'red.onnx'\nthreshold = 1\nlabel = ''", "[filter] label = ''"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, table: str, said: str) -> None:
    (tmp_path / "red.onnx").touch()
    file = tmp_path / "a.toml"
    text = (ROOT / "recipes/shapes-flash.toml").read_text().replace("../artifacts", f"{SHAPES}/..")
    text = text.replace('"plans/mixed-4.5.toml", ', "").replace(', "plans/mixed-4.5.toml"', "")
    text = text.replace('"shapes-flash.prompts.txt"', '["a"]')
    file.write_text(f"{text}\n[filter]\n{table}\n")
    with pytest.raises(InputError) as raised:
        read_recipe(file)
    assert said in str(raised.value), raised.value


def test_a_graph_of_another_kind_names_the_backend() -> None:
    one = FilterChoice({"": str(FILES["onnx"])}, 0.5)
    assert one.graph("onnx") == FILES["onnx"]
    with pytest.raises(InputError, match=r"is none that openvino opens, which ends in \.xml"):
        one.graph("openvino")
    with pytest.raises(InputError, match="names none for coreml; add coreml = "):
        FilterChoice({"onnx": "a.onnx"}, 0.5).graph("coreml")
    with pytest.raises(InputError, match="reference takes no classifier"):
        one.graph("reference")


# The whole road.


def recipe_with(recipe: Recipe, chosen: FilterChoice | None) -> Recipe:
    """The fastest recipe of the same road."""
    cut = Cut((1.0, 0.0), 32, 32, t5=False, t5_tokens=8, image_to_image=False)
    return replace(recipe, cut=cut, filter=chosen)


def test_a_build_copies_tries_and_verifies_it(tiny_recipe: Recipe, tmp_path: Path) -> None:
    recipe = recipe_with(tiny_recipe, choice(NEVER))
    (built,) = build(recipe, tmp_path / "a", ["onnx"], ["fp32"])
    parity = {graph.graph: graph for graph in built.report.graphs}
    assert built.report.ok and parity["filter"].calls == 1 and parity["filter"].exact < 1e-5
    manifest = read_manifest(built.path)
    assert manifest.filter is not None
    assert manifest.graph("filter") is not None
    (again,) = build(recipe, tmp_path / "a", ["onnx"], ["fp32"])  # whole: kept
    assert again.bytes == built.bytes
    where = built.path / "recipe.json"
    found = recipe_again(where.read_text(), where, built.path, manifest, Givens(recipe.checkpoint))
    assert found.normal_form("onnx") == where.read_text() and found.filter is not None
    assert found.filter.graph("onnx") == built.path / "graphs" / "filter" / "filter.onnx"
    assert recipe.digest("onnx") != replace(recipe, filter=choice(1.5)).digest("onnx")


def test_golden_pictures_have_to_pass() -> None:
    image = Image(0, Request("a red circle"), np.zeros((8, 8, 3), np.uint8), np.zeros(1))
    drawing = golden.Drawing(image, np.zeros(1), (), (), ())
    backend = backends.load("onnx")
    judged = prepared(choice(NEVER), backend).judged(golden.Pictures((drawing,), (drawing,)))
    assert [name for name, _, _ in judged.quantized[0].calls] == ["filter"]
    with pytest.raises(InputError, match="rejects the golden picture 'a red circle'"):
        prepared(choice(ALWAYS), backend).judged(golden.Pictures((drawing,), (drawing,)))


@pytest.mark.full
def test_shapes_flash_without_red_circles_on_every_backend(tmp_path: Path) -> None:
    recipe = read_recipe(ROOT / "recipes/shapes-flash-filtered.toml")
    assert recipe.filter is not None and set(recipe.filter.graphs) == set(FILES)
    asked = [Request("two red circles", 7), Request("a green triangle", 7)]
    for one in build(recipe, tmp_path, ABLE):
        with open_package(one.path).player() as player:
            first, second = (e for e in generate(player, asked) if isinstance(e, Image | Rejected))
        assert isinstance(first, Rejected) and first.score > 0.9
        assert isinstance(second, Image) and second.score is not None and second.score < 0.1
        assert verify(open_package(one.path)).ok


@pytest.mark.parametrize("backend", ABLE)
def test_what_a_filter_takes_is_predicted(backend: str) -> None:
    """From its graph: at least its input and first values, and its weights; the same each time."""
    loaded = backends.load(backend)
    found = prepared(choice(), loaded)
    operators = loaded.operators_of(found.classifier, found.input.shape)  # type: ignore[attr-defined]
    sizes = [size for one in operators for size in one.gives.values()]
    assert operators and all(size is not None for size in sizes)
    input_bytes = 4 * int(np.prod(found.input.shape))
    assert input_bytes + max(sizes) <= found.activation_bytes <= input_bytes + sum(sizes)
    assert loaded.costs is not None and found.run_bytes is not None
    files = sum(file.stat().st_size for file in found.classifier.files)
    assert found.run_bytes > loaded.costs.process_bytes + files


def test_values_are_alive_until_they_were_read() -> None:
    chain = [
        Operator(("x",), {"a": 100}),
        Operator(("a",), {"b": 10}),
        Operator(("b", "x"), {"c": None}),  # of an unknown size: as the largest
    ]
    assert activation_bytes(chain, 7) == 7 + 110
    assert activation_bytes([*chain, Operator(("c", "a"), {"d": 1})], 7) == 7 + 100 + 10 + 100

"""Several sizes in one package: weights once, pictures as those of a package of that size alone."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter import backends
from exporter.bom.check import disagreements
from exporter.build.pipeline import build
from exporter.cli import main
from exporter.drawing.loop import Conditioned, Image, Request, generate
from exporter.errors import CheckFailed, InputError
from exporter.files.differences import applied, differences
from exporter.package.manifest import Manifest
from exporter.package.read import MANIFEST
from exporter.package.sizes import PictureSize, manifest_at, parse_size, sizes_of
from exporter.package.strays import unlisted
from exporter.recipe.recipe import Recipe, read_recipe
from exporter.runtime.package import Package, open_package
from exporter.runtime.verify import check_files
from tests.conftest import ROOT, needs, seal

FIRST, WIDE, TALL = PictureSize(64, 48), PictureSize(80, 48), PictureSize(48, 64)
SCHEMES = ("fp32", "fp16", "int8", "int4", "int8-w8a8")


def with_sizes(recipe: Recipe, *further: PictureSize) -> Recipe:
    """The recipe for more sizes, layers measured at its first."""
    measured = replace(recipe.calibration, size=recipe.sizes[0], prompts=("a red circle",))
    return replace(recipe, further_sizes=further, calibration=measured)


@pytest.fixture(scope="module")
def package(tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Package:
    """Of three sizes, int8 for onnxruntime."""
    recipe = with_sizes(tiny_recipe, WIDE, TALL)
    (built,) = build(recipe, tmp_path_factory.mktemp("sizes"), ["onnx"], ["int8"])
    return open_package(built.path)


def picture(package: Package, size: PictureSize | None = None, keep: bool = False) -> np.ndarray:
    with package.player(keep=keep) as player:
        events = generate(player, [Request("two squares", 5, size=size)])
        (found,) = [event.pixels for event in events if isinstance(event, Image)]
    return found


def graph_bytes(manifest: Manifest) -> int:
    """Of everything but golden files."""
    return sum(f.bytes for f in manifest.all_files if not f.path.startswith("golden/"))


def test_weights_are_there_once(package: Package, tiny_recipe: Recipe, tmp_path: Path) -> None:
    """Of files that hold them each graph has one; the first size's is what it would be alone."""
    (alone,) = build(replace(tiny_recipe, prompts=()), tmp_path, ["onnx"], ["int8"])
    first = {f.path: f for f in open_package(alone.path).manifest.all_files}
    own = {f.path: f for f in package.manifest.all_files}
    shared = [path for path in first if path.startswith("graphs/") and path.endswith(".onnx")]
    assert shared and all(own[path] == first[path] for path in shared)
    data = [path for path in own if path.endswith(".data")]
    assert data == [path for path in first if path.endswith(".data")]
    for path in data:
        begins = (package.folder / path).read_bytes()[: first[path].bytes]
        assert begins == (alone.path / path).read_bytes()
        assert own[path].bytes - first[path].bytes < 0.1 * first[path].bytes + 100_000


def test_a_size_draws_what_a_package_of_it_alone_draws(
    package: Package, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    recipe = replace(with_sizes(tiny_recipe), prompts=())
    (alone,) = build(recipe.at(WIDE), tmp_path, ["onnx"], ["int8"])
    assert np.array_equal(picture(package, WIDE), picture(open_package(alone.path)))


def test_a_recipe_of_one_size_keeps_its_digest(tiny_recipe: Recipe) -> None:
    """Also where it says the size to measure at."""
    measured = replace(tiny_recipe.calibration, size=FIRST)
    assert replace(tiny_recipe, calibration=measured).digest("onnx") == tiny_recipe.digest("onnx")
    assert with_sizes(tiny_recipe, WIDE).digest("onnx") != tiny_recipe.digest("onnx")


def test_what_differs_is_listed(package: Package) -> None:
    manifest = package.manifest
    assert manifest.format_version == "4.2"
    assert package.sizes == (FIRST, WIDE, TALL)
    for size, entry in zip(package.sizes[1:], manifest.sizes, strict=True):
        assert [g.name for g in entry.graphs] == ["denoiser", "vae_decoder", "vae_encoder"]
        view = manifest_at(manifest, size)
        assert view.picture.latent == (1, 16, size.height_px // 8, size.width_px // 8)
        assert [p.image for p in view.golden.pictures] == [f"golden/{size}/0.png"]
    assert manifest_at(manifest, FIRST).graphs == manifest.graphs


def test_it_verifies_every_size(package: Package, capsys: pytest.CaptureFixture[str]) -> None:
    code, told, _ = run(capsys, "verify", str(package.folder))
    assert code == 0 and told.splitlines()[-1] == "ok"
    graphs = re.findall(r"^  (\w+)(?: at (\w+))? +(\d+) calls", told, re.MULTILINE)
    own = {"denoiser", "vae_decoder", "vae_encoder"}
    for size in (WIDE, TALL):
        assert {graph for graph, at, calls in graphs if at == str(size) and int(calls)} == own
    assert re.findall(r"^  'a red circle'(?: at (\w+))?:", told, re.MULTILINE) == [
        "",
        str(WIDE),
        str(TALL),
    ]


def test_a_reader_that_knows_no_sizes_draws_the_first(package: Package, tmp_path: Path) -> None:
    """All that it reads is of the first size, and every file is listed."""
    import shutil

    folder = tmp_path / "old"
    shutil.copytree(package.folder, folder)
    raw = json.loads((folder / MANIFEST).read_text())
    del raw["sizes"]
    seal(folder, raw)
    old = open_package(folder)
    assert check_files(old) == len(package.manifest.all_files)
    assert not unlisted(folder, old.manifest).strays
    assert np.array_equal(picture(old), picture(package, FIRST))


@pytest.mark.parametrize("keep", [False, True])
def test_requests_of_several_sizes_are_drawn_together(package: Package, keep: bool) -> None:
    """Text is encoded once; each event tells which request it is of."""
    sizes = [WIDE, None, "48x64", (80, 48)]
    requests = [Request("two squares", 5, size=size) for size in sizes]
    with package.player(keep=keep) as player:
        events = list(generate(player, requests))
    assert [e.prompts for e in events if isinstance(e, Conditioned)] == [1]
    drawn = {e.index: e.pixels for e in events if isinstance(e, Image)}
    assert [drawn[i].shape[1::-1] for i in range(4)] == [(80, 48), (64, 48), (48, 64), (80, 48)]
    assert np.array_equal(drawn[0], picture(package, WIDE))
    assert np.array_equal(drawn[0], drawn[3])


def test_another_picture_is_encoded_at_the_size(package: Package) -> None:
    source = np.full((32, 24, 3), 200, np.uint8)
    request = Request("two squares", 5, source, 0.5, size=TALL)
    with package.player() as player:
        (found,) = [e for e in generate(player, [request]) if isinstance(e, Image)]
    assert found.pixels.shape == (64, 48, 3)


@pytest.mark.parametrize("given", ["100x100", "64x64", (48, 48)])
def test_a_size_that_is_not_there_is_told_with_those_that_are(package: Package, given: Any) -> None:
    with package.player() as player, pytest.raises(InputError, match="64x48, 80x48, 48x64") as told:
        next(generate(player, [Request("a", size=given)]))
    assert "size: this package does not draw" in str(told.value)
    with pytest.raises(InputError, match="64x48, 80x48, 48x64"):
        package.player(size=given)


@pytest.mark.parametrize(
    "given", ["", "64", "x48", "64x48x3", 64, (64,), (64.0, 48), None, "a" * 99]
)
def test_what_is_no_size(given: Any) -> None:
    with pytest.raises(InputError, match="is no size; write one such as '768x512'"):
        parse_size(given)


def test_words_for_a_size() -> None:
    words = ("80x48", " 80 x 48", "80X48", "80\N{MULTIPLICATION SIGN}48", (80, 48), WIDE)
    assert {parse_size(given) for given in words} == {WIDE}


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    told = capsys.readouterr()
    return int(ended.value.code or 0), told.out, told.err


def test_the_commands_know_sizes(
    package: Package, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image as Pictures

    out, place = tmp_path / "a.png", str(package.folder)
    assert run(capsys, "run", place, "x", "--out", str(out), "--size", "80x48")[0] == 0
    with Pictures.open(out) as drawn:
        assert drawn.size == (80, 48)
    code, _, said = run(capsys, "run", place, "x", "--out", str(out), "--size", "81x48")
    assert code == 2 and said.splitlines()[-1].endswith("its sizes: 64x48, 80x48, 48x64")
    assert "--size: " in said
    _, told, _ = run(capsys, "inspect", place)
    assert "sizes: 64x48" in told and re.search(r"80x48 +[\d.]+ MB of its own: denoiser", told)
    _, told, _ = run(capsys, "inspect", place, "--json")
    assert [s["width_px"] for s in json.loads(told)["sizes"]] == [80, 48]
    code, _, said = run(capsys, "bench", place, "--size", "8x8")
    assert code == 2 and "its sizes: 64x48, 80x48, 48x64" in said


def recipe_with(folder: Path, image: str, more: str = "") -> Path:
    """The shipped recipe with other lines in ``[image]``."""
    text = (ROOT / "recipes" / "shapes-flash.toml").read_text("utf-8")
    text = text.replace("../artifacts", str(ROOT / "artifacts"))
    for name in ("plans/", "shapes-flash.prompts.txt"):
        text = text.replace(f'"{name}', f'"{ROOT / "recipes"}/{name}')
    text = re.sub(r"width_px = \d+\nheight_px = \d+\n", image + "\n", text)
    file = folder / "sized.toml"
    file.write_text(text + more, encoding="utf-8")
    return file


def test_a_recipe_names_sizes(tmp_path: Path) -> None:
    recipe = read_recipe(recipe_with(tmp_path, 'sizes = ["128x128", "192x128"]'))
    assert recipe.sizes == (PictureSize(128, 128), PictureSize(192, 128))
    one = read_recipe(recipe_with(tmp_path, 'sizes = ["128x128"]'))
    plain = read_recipe(ROOT / "recipes" / "shapes-flash.toml")
    one = replace(one, name=plain.name)  # packages are called by it
    assert one.digest("onnx") == plain.digest("onnx") != recipe.digest("onnx")


REFUSED = [
    ("", "image] width_px is missing"),
    ('sizes = ["128x128"]\nwidth_px = 128', "[image] width_px and sizes: the sizes say it"),
    ("sizes = []", "[image] sizes: 0 of them"),
    ('sizes = ["128x128", "160x96", "128X128"]', "[image] sizes: 128x128 is listed twice"),
    ('sizes = ["128"]', "[image] sizes: '128' is no size"),
    ("sizes = [[128, 128]]", "[image] sizes: [128, 128] is no size"),
    ('sizes = ["128x9999"]', "[image] sizes: 128x9999: each side must be from 16 to 8192"),
    ('sizes = "128x128"', "[image] sizes = '128x128': must be a list"),
]


@pytest.mark.parametrize(("image", "said"), REFUSED)
def test_a_recipe_is_refused(tmp_path: Path, image: str, said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)) as told:
        read_recipe(recipe_with(tmp_path, image))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("bad", [PictureSize(72, 48), PictureSize(4096, 48)])
def test_a_size_that_the_network_cannot_draw(
    tiny_recipe: Recipe, tmp_path: Path, bad: PictureSize
) -> None:
    """No multiple of its patches, or larger than its table of positions."""
    side = bad.width_px
    said = re.escape(f"[image] sizes: {bad}: width_px = {side}: must be a multiple of 16 up to 160")
    with pytest.raises(InputError, match=said):
        build(replace(tiny_recipe, further_sizes=(bad,)), tmp_path, ["onnx"], ["int8"])
    assert not list(tmp_path.iterdir()) or not (tmp_path / "onnx-int8").exists()


def test_a_backend_without_sizes_is_refused(
    tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exporter.build.asked.Sizing", type(None))
    with pytest.raises(InputError, match="onnx writes graphs of one size alone"):
        build(replace(tiny_recipe, further_sizes=(WIDE,)), tmp_path, ["onnx"], ["int8"])


def damaged(package: Package) -> Iterator[tuple[dict[str, Any], str]]:
    """Manifests that contradict themselves, and what is said of them."""

    def raw() -> dict[str, Any]:
        found: dict[str, Any] = json.loads((package.folder / MANIFEST).read_text())
        return found

    twice = raw()
    twice["sizes"][1] = twice["sizes"][0]
    yield twice, "80x48 is there already"
    unknown = raw()
    unknown["sizes"][0]["graphs"][0]["name"] = "other"
    yield unknown, "there is no graph 'other'"
    stranger = raw()
    stranger["sizes"][0]["graphs"][0]["files"].append("LICENSE")
    yield stranger, "'LICENSE'"
    shape = raw()
    shape["sizes"][0]["width_px"] = 96
    yield shape, "takes float32"
    golden = raw()
    golden["sizes"][0]["pictures"][0]["image"] = "golden/none.png"
    yield golden, "'golden/none.png' is not among files"
    weights = raw()
    weights["sizes"][0]["graphs"][0]["session"]["weights"] = "../../LICENSE"
    yield weights, "session.weights"


def test_a_manifest_that_contradicts_itself(package: Package, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(package.folder, tmp_path / "damaged"))
    for raw, said in damaged(package):
        seal(folder, raw)
        with pytest.raises(CheckFailed, match=re.escape(said)):
            open_package(folder)


@pytest.mark.full
def test_a_build_that_was_killed_goes_on(
    tiny_recipe: Recipe, package: Package, tmp_path: Path
) -> None:
    """With the graphs of all sizes that are whole, to the same bytes."""
    recipe = with_sizes(tiny_recipe, WIDE, TALL)
    said: list[str] = []

    def stop(line: str) -> None:
        said.append(line)
        if line == "emit vae_decoder" and said.count("emit vae_decoder") == 1:
            raise KeyboardInterrupt

    class Stopping:
        def __call__(self, line: str) -> None:
            stop(line)

        def expect(self, lines: int) -> None:
            pass

    with pytest.raises(KeyboardInterrupt):
        build(recipe, tmp_path, ["onnx"], ["int8"], Stopping())  # type: ignore[arg-type]
    (built,) = build(recipe, tmp_path, ["onnx"], ["int8"], Stopping())  # type: ignore[arg-type]
    assert "denoiser is whole already" in said
    assert said.count("emit denoiser") == 1
    assert (built.path / MANIFEST).read_bytes() == (package.folder / MANIFEST).read_bytes()


# Beside the common schemes: those of one backend, a plan, and Core ML of another target.
FURTHER = {
    "reference": ("pal4", "plan"),
    "onnx": ("plan",),
    "openvino": ("int4-a8", "plan"),
    "coreml": (
        *("pal6", "pal4", "pal4-grouped", "plan", "fp32 iOS18", "fp16 iOS18", "int8 iOS18"),
        *("pal6 iOS18", "pal4 iOS18"),
    ),
}
UNABLE = {("coreml", "int8-w8a8")}
PLAN = """
[plan]
base = "int8"
[formats.denoiser]
"*" = "int4-g64"
"transformer_blocks.1.*" = "int8"
[formats.vae_decoder]
"*" = "fp16"
"""


def matrix() -> list[tuple[str, str]]:
    names = [n for n in FURTHER if not backends.missing(needs(n))]
    return [(n, s) for n in names for s in (*SCHEMES, *FURTHER[n]) if (n, s) not in UNABLE]


def targeted(recipe: Recipe, backend: str, target: str) -> Recipe:
    """The recipe with another target of a backend's; with none, itself."""
    changed = [
        replace(one, choices={**one.choices, "target": target}) if one.name == backend else one
        for one in recipe.choices
    ]
    return replace(recipe, choices=tuple(changed)) if target else recipe


@pytest.mark.full
@pytest.mark.parametrize(("backend", "scheme"), matrix())
def test_every_backend_and_scheme(
    tiny_recipe: Recipe, tmp_path: Path, backend: str, scheme: str
) -> None:
    """Pictures are those of a package of a size alone, at less than its bytes again."""
    scheme, _, target = scheme.partition(" ")
    if scheme == "plan":
        (tmp_path / "plan.toml").write_text(PLAN)
        scheme = str(tmp_path / "plan.toml")
    recipe = targeted(replace(with_sizes(tiny_recipe, WIDE), prompts=()), backend, target)
    (built,) = build(recipe, tmp_path / "both", [backend], [scheme])
    both, bytes_of = open_package(built.path), []
    for size in recipe.sizes:
        (made,) = build(recipe.at(size), tmp_path / str(size), [backend], [scheme])
        alone = open_package(made.path)
        bytes_of.append(alone.manifest.bytes)
        assert np.array_equal(picture(both, size), picture(alone))
    assert both.manifest.bytes < 1.5 * max(bytes_of)  # weights are in it once


@pytest.mark.full
@pytest.mark.parametrize("scheme", ["fp32", "fp16", "int8", "int4", "pal6", "pal4", "pal4-grouped"])
def test_core_mls_functions_draw_what_packages_of_a_size_draw(
    tiny_recipe: Recipe, tmp_path: Path, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they are where weights are many; with the same weights as beside differences."""
    pytest.importorskip("coremltools")
    monkeypatch.setattr("exporter.backends.coreml.writer.FUNCTION_SHARE", 100.0)
    recipe = targeted(replace(with_sizes(tiny_recipe, WIDE), prompts=()), "coreml", "iOS18")
    (built,) = build(recipe, tmp_path / "both", ["coreml"], [scheme])
    both = open_package(built.path)
    entry = both.manifest.sizes[0].graphs[0]
    assert entry.session["function"] == "denoiser-80x48"
    for size in recipe.sizes:
        (made,) = build(recipe.at(size), tmp_path / str(size), ["coreml"], [scheme])
        assert np.array_equal(picture(both, size), picture(open_package(made.path)))


@pytest.mark.full
@pytest.mark.parametrize(
    ("scheme", "share"), [("int4", 100.0), ("int4", 0.01), ("int8", 100.0)], ids=str
)
def test_core_ml_packages_share_weights(
    tiny_recipe: Recipe,
    tmp_path: Path,
    scheme: str,
    share: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where weights are many, a package of iOS 18 has functions, as coremltools reads them."""
    ct = pytest.importorskip("coremltools")
    monkeypatch.setattr("exporter.backends.coreml.writer.FUNCTION_SHARE", share)
    recipe = replace(with_sizes(tiny_recipe, WIDE), prompts=())
    (built,) = build(recipe, tmp_path, ["coreml"], [scheme])
    places = sorted((built.path / "graphs" / "denoiser").glob("*.mlpackage"))
    weights = [place for place in places if list(place.rglob("weight.bin"))]
    assert [place.name for place in weights] == ["denoiser.mlpackage"]
    described = ct.utils.load_spec(str(weights[0])).description
    assert len(places) == 1
    (entry,) = (size.graphs[0].entry for size in open_package(built.path).manifest.sizes)
    if scheme == "int4" and share > 1:
        assert [f.name for f in described.functions] == ["main", "denoiser-80x48"]
        assert described.defaultFunctionName == "main"
        assert entry.endswith("/denoiser.mlpackage")
    else:
        assert not described.functions and entry.endswith("/denoiser-80x48.mlmodel.diff")


def test_the_bill_names_every_size(package: Package) -> None:
    """The files of every size are in it; golden ones of each may be left out."""
    raw = json.loads((package.folder / "sbom.cdx.json").read_text("utf-8"))
    facts = raw["metadata"]["component"]["properties"]
    named = [fact["value"] for fact in facts if fact["name"] == "fourstep:size_px"]
    assert {*named} == {*map(str, sizes_of(package.manifest))} and len(named) == 3
    metrics = raw["metadata"]["component"]["modelCard"]["quantitativeAnalysis"]
    slices = [metric["slice"] for metric in metrics["performanceMetrics"]]
    assert all(any(f", {size} px" in text for text in slices) for size in named)
    scopes = {part["name"]: part.get("scope") for part in raw["components"]}
    golden = {g.image for entry in package.manifest.sizes for g in entry.pictures}
    assert golden and {scopes[path] for path in golden} == {"optional"}
    content = (package.folder / "sbom.cdx.json").read_bytes()
    assert disagreements(content, package.manifest) == []


def test_a_file_is_what_differs_from_another() -> None:
    lines = [f"<dim>{i % 97}</dim>\n" for i in range(3000)]
    base = "".join(lines).encode()
    lines[5] = "<dim>1024</dim>\n"
    del lines[100:140]
    lines[2000:2000] = ["<port/>\n"] * 50
    content = "".join(lines).encode()
    edits = differences(content, base)
    assert applied(edits, base) == content and len(edits) < 1000
    for other in (b"", b"x", base + b"more", base[: len(base) // 2], base):
        assert applied(differences(other, base), base) == other
        assert applied(differences(base, other), other) == base


def test_differences_make_no_more_than_both_files() -> None:
    """Whatever they say: nothing of the base is there twice."""
    random, base = np.random.default_rng(0), bytes(1000)
    edits = differences(base[:700] + b"other" + base[:200], base)
    for _ in range(2000):
        hostile = bytearray(edits)
        hostile[random.integers(len(edits))] = random.integers(256)
        try:
            assert len(applied(bytes(hostile), base)) <= len(base) + len(edits)
        except ValueError as error:
            assert "differences that" in str(error)


def test_the_small_values_of_a_graph_are_there_once(package: Package) -> None:
    """Another size's graph reads them from the first's file."""
    import onnx

    folder = package.folder / "graphs" / "denoiser"
    model = onnx.load(str(folder / "denoiser-80x48.onnx"), load_external_data=False)
    places = {e.value for t in model.graph.initializer for e in t.external_data[:1]}
    assert places == {"denoiser.onnx", "denoiser.onnx.data"}
    first = (folder / "denoiser.onnx").stat().st_size
    assert (folder / "denoiser-80x48.onnx").stat().st_size < first / 2


def test_openvino_draws_a_size_that_is_kept_as_differences(
    sized: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    """The picture of a package of that size alone, at a tenth of the first graph's bytes."""
    both = open_package(sized)
    recipe = replace(with_sizes(tiny_recipe, WIDE), prompts=()).at(WIDE)
    (alone,) = build(recipe, tmp_path, ["openvino"], ["int4"])
    assert np.array_equal(picture(both, WIDE), picture(open_package(alone.path)))
    folder = sized / "graphs" / "denoiser"
    added = (folder / "denoiser-80x48.xml.diff").stat().st_size
    assert added < 0.1 * (folder / "denoiser.xml").stat().st_size


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ("../t5/t5.xml", "session.base"),
        ("denoiser.bin", "that it could differ from"),
        ("denoiser-80x48.xml.diff", "that it could differ from"),
    ],
)
def test_differences_from_another_file_are_refused(
    sized: Path, tmp_path: Path, base: str, said: str
) -> None:
    import shutil

    folder = Path(shutil.copytree(sized, tmp_path / "hostile"))
    manifest = json.loads((folder / MANIFEST).read_text())
    (graph,) = (g for g in manifest["sizes"][0]["graphs"] if g["name"] == "denoiser")
    graph["session"]["base"] = base
    seal(folder, manifest)
    with pytest.raises(CheckFailed, match=re.escape(said)) as told:
        open_package(folder)
    assert "\n" not in str(told.value)


def test_edits_that_do_not_fit_are_refused(sized: Path, tmp_path: Path) -> None:
    """With digests made right by the attacker, before anything is computed."""
    import shutil

    folder = Path(shutil.copytree(sized, tmp_path / "hostile"))
    path = "graphs/denoiser/denoiser-80x48.xml.diff"
    for edits in (b"\xff" * 9, b"\x00\x00\x7f", b"\xff\xff\xff\x7f\x00\x00", b""):
        (folder / path).write_bytes(edits)
        manifest = json.loads((folder / MANIFEST).read_text())
        for entry in manifest["files"]:
            if entry["path"] == path:
                entry |= {"bytes": len(edits), "sha256": hashlib.sha256(edits).hexdigest()}
        seal(folder, manifest)
        with pytest.raises(CheckFailed, match="refused: differences that"):
            open_package(folder)

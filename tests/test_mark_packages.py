"""Packages whose recipe has a [mark] table: every backend, scheme and decoder carries the mark."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner

from exporter import backends
from exporter.backends.contract import Session
from exporter.backends.onnx.qnn import provider, socs
from exporter.backends.onnx.qnn.process import Order, Worker
from exporter.build.pipeline import build
from exporter.calibrate.activations import rounder
from exporter.calibrate.ranges import choose_all
from exporter.calibrate.weights import Weights
from exporter.checkpoint.open import Checkpoint, open_checkpoint
from exporter.checkpoint.tiny import NAME, open_tiny
from exporter.cli import main
from exporter.errors import InputError
from exporter.layouts.apple_swift import OFFSET, SCALE
from exporter.layouts.ort_package import MANIFEST, WEIGHTS_FOLDER, asset_folder
from exporter.marking import embed, pattern
from exporter.marking.key import MarkKey, make_key
from exporter.marking.read import read_mark
from exporter.network.assemble import cut_graphs
from exporter.network.cut import Cut, Ends
from exporter.network.graph import Graph
from exporter.network.mark import Mark, marked
from exporter.package.manifest import Port
from exporter.package.measures import relative_error
from exporter.program.program import Constant, Program
from exporter.program.run import run
from exporter.program.trace import trace
from exporter.progress import Progress
from exporter.quantize.everywhere import kernel_levels, round_everything
from exporter.quantize.nearest import encode
from exporter.quantize.program import Part, QuantizedProgram, quantize, unquantized
from exporter.quantize.schemes import load_scheme
from exporter.recipe.recipe import MarkChoice, Recipe, read_recipe
from exporter.runtime.package import open_package
from tests.conftest import SHAPES, needs
from tests.test_marking import KEY, PAYLOAD, shapes
from tests.test_package import digests

MARK = MarkChoice(PAYLOAD, KEY)
EMULATED = pytest.mark.skipif(
    bool(backends.missing(provider.REQUIRED.modules)) or not socs.is_emulated(),
    reason="pip install 'fourstep[qnn]'",
)


class Given(torch.nn.Module):
    """A decoder that shows its input."""

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        return latent * 1.0


def value_of(source: object) -> torch.Tensor:
    """A constant's value, as ``Weights`` reads it."""
    assert isinstance(source, Constant)
    value = torch.from_numpy(source.value)
    return value if source.value.dtype.kind == "i" else value.float()


def test_the_graph_does_what_the_arithmetic_does() -> None:
    port = (1, 3, 128, 128)
    graph = Graph(
        "vae_decoder", "vae", Given(), (Port("latent", port),), (Port("image", port),), {}
    )
    tile = pattern.tile(KEY, PAYLOAD)
    program = trace(marked(graph, tile))
    values = {n: s.value for n, s in program.tensors.items() if isinstance(s, Constant)}
    assert sum(v.size for v in values.values()) < 3100  # of a picture of 49,152 values
    for picture in shapes()[:2]:
        image = torch.from_numpy(picture.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
        found = run(program, value_of, {"latent": image})
        levels = (found["image"][0].permute(1, 2, 0).numpy() + 1) * 127.5
        expected = embed.marked(picture.astype(np.float64), tile)
        assert np.abs(levels - expected).max() < 0.02


def test_all_that_a_decoder_gets_of_the_key_is_one_tile() -> None:
    with torch.device("meta"):
        mark = Mark(pattern.tile(KEY, PAYLOAD), 128, 128)
    held = mark.__dict__["constant_values"]
    with torch.device("meta"):
        other = Mark(pattern.tile(MarkKey(bytes(32)), 0), 128, 128)
    differ = [
        n for n, v in other.__dict__["constant_values"].items() if not np.array_equal(v, held[n])
    ]
    assert differ == ["signs"]
    assert np.array_equal(held["signs"][0, 0], pattern.tile(KEY, PAYLOAD))
    secret = KEY.secret.hex()
    assert secret not in repr(MARK)


SHAPES_CUT = Cut((1.0, 0.0), 128, 128)
FOR_NPU = ("w8a16", "w4a16")  # every value is rounded, the mark's too
QUICK = {("onnx", "int8-w8a8"), ("onnx", "w8a16"), ("openvino", "int4"), ("coreml", "int8")}
COMBINATIONS = [
    pytest.param(name, scheme, marks=() if (name, scheme) in QUICK else pytest.mark.full)
    for name in backends.names()
    for scheme in ("fp32", "int8", "int4", "int8-w8a8", *(FOR_NPU if name == "onnx" else ()))
]
EXACT = backends.SessionOptions("float32")


@pytest.fixture(scope="module")
def ends(shapes_checkpoint: Checkpoint) -> dict[str, Program]:
    """Encoder and decoders of shapes-flash, the decoders marked."""
    cut = replace(SHAPES_CUT, ends=Ends(previews="tiny"))
    graphs = cut_graphs(with_tiny(shapes_checkpoint), cut, MARK.tile)
    wanted = ("vae_encoder", "vae_decoder", "tiny_decoder")
    return {g.name: trace(g) for g in graphs if g.name in wanted}


@pytest.mark.parametrize("name", ["onnx", "openvino", "coreml"])
def test_half_a_percent_of_the_smallest_package_at_most(
    name: str, ends: dict[str, Program], shapes_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    backend = backends.load(name)
    if backends.missing(needs(name)):
        pytest.skip(f"{name}: pip install '{backend.to_build.install}'")
    choices, read = backends.default_choices(backend), Weights(shapes_checkpoint).read
    (plain,) = (g for g in cut_graphs(shapes_checkpoint, SHAPES_CUT) if g.name == "vae_decoder")
    sizes = []
    for place, program in (("plain", trace(plain)), ("marked", ends["vae_decoder"])):
        (tmp_path / place).mkdir()
        program_in_int4 = quantize(program, load_scheme("int4").format_of)
        backend.emit(program_in_int4, read, tmp_path / place, backends.EmitOptions(choices))
        sizes.append(sum(f.stat().st_size for f in (tmp_path / place).rglob("*") if f.is_file()))
    assert 0 < sizes[1] - sizes[0] < 0.005 * 8_900_000  # shapes-flash, openvino-int4: 9.0 MB


@pytest.fixture(scope="module")
def shapes_checkpoint() -> Checkpoint:
    return open_checkpoint(str(SHAPES))


def with_tiny(checkpoint: Checkpoint) -> Checkpoint:
    tiny = open_tiny(("decoder",), checkpoint.folder / NAME, None, 16)
    return replace(checkpoint, components={**checkpoint.components, NAME: tiny})


def pixels(image: np.ndarray) -> np.ndarray:
    levels = np.rint(np.clip(image[0].transpose(1, 2, 0) * 0.5 + 0.5, 0, 1) * 255)
    return np.asarray(levels.astype(np.uint8))


@pytest.fixture(scope="module")
def latent(ends: dict[str, Program], shapes_checkpoint: Checkpoint) -> np.ndarray:
    """Of a picture that shapes-flash drew."""
    image = torch.from_numpy(shapes()[0].astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    read = Weights(shapes_checkpoint).read
    found = run(unquantized(ends["vae_encoder"]), read, {"image": image})
    return found["latent"].numpy()


@pytest.mark.parametrize(("name", "scheme"), COMBINATIONS)
def test_every_backend_and_scheme_carries_the_mark(
    name: str,
    scheme: str,
    ends: dict[str, Program],
    shapes_checkpoint: Checkpoint,
    latent: np.ndarray,
    tmp_path: Path,
) -> None:
    backend = backends.load(name)
    if backends.missing(needs(name)):
        pytest.skip(f"{name}: pip install '{backend.to_build.install}'")
    choices = backends.default_choices(backend)
    read = Weights(with_tiny(shapes_checkpoint)).read
    if scheme in FOR_NPU:
        choices = {**choices, "target": "qnn"}
    for graph in ("vae_decoder", "tiny_decoder"):
        program = quantize(ends[graph], load_scheme(scheme).format_of)
        if any(backend.refuse(form, choices) for form in program.formats.values()):
            pytest.skip(f"{name} does not express {scheme}")
        program = rounder({graph: program}, read, lambda _: [{"latent": latent}])(graph)
        place = tmp_path / graph
        place.mkdir()
        emitted = backend.emit(program, read, place, backends.EmitOptions(choices))
        image = backend.open_graph(emitted.entry, emitted.session, EXACT)({"latent": latent})
        reading = read_mark(pixels(image["image"]), KEY)
        assert reading is not None and reading.found
        assert reading.payload == PAYLOAD


class Weighed(torch.nn.Module):
    """A decoder that shows its input, by a layer: its weight asks for values of 16 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 3, 1, bias=False)

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        shown: torch.Tensor = self.conv(latent)
        return shown


def value_or_part(source: object) -> torch.Tensor:
    """The same as ``value_of``; what is no constant is of the layer that shows its input."""
    if not isinstance(source, Part):
        return value_of(source)
    found = getattr(encode(torch.eye(3)[:, :, None, None], source.format), source.part)
    assert isinstance(found, torch.Tensor)
    return found


@pytest.fixture(scope="module")
def in_integers() -> QuantizedProgram:
    """A mark behind a decoder that shows its input, all of it rounded to 16 bits."""
    port = (1, 3, 128, 128)
    with torch.device("meta"):
        shown = Weighed()
    graph = Graph("vae_decoder", "vae", shown, (Port("latent", port),), (Port("image", port),), {})
    program = trace(marked(graph, pattern.tile(KEY, PAYLOAD)))
    plain = quantize(program, load_scheme("w8a16").format_of)
    calls = [{"latent": given(picture)} for picture in shapes()[:3]]
    return round_everything(plain, choose_all(plain, value_or_part, calls))


def given(picture: np.ndarray) -> np.ndarray:
    return (picture.astype(np.float32) / 127.5 - 1).transpose(2, 0, 1)[None]


def psnr_db(found: np.ndarray, picture: np.ndarray) -> float:
    error = float(((found.astype(np.float64) - picture) ** 2).mean())
    return 10 * math.log10(255**2 / error)


def test_a_mark_in_integers_is_the_mark(in_integers: QuantizedProgram, tmp_path: Path) -> None:
    """In what Qualcomm's NPU computes right: of a reciprocal it gives a third."""
    picture = shapes()[0]
    kinds = {node.target for node in in_integers.nodes()}
    assert not kinds & {torch.ops.aten.pad.default, torch.ops.aten.reciprocal.default}
    image = run(in_integers, value_or_part, {"latent": torch.from_numpy(given(picture))})["image"]
    onnx = backends.load("onnx")
    options = backends.EmitOptions({"target": "qnn"})
    emitted = onnx.emit(in_integers, value_or_part, tmp_path, options)
    session = onnx.open_graph(emitted.entry, emitted.session, EXACT)
    assert relative_error(session({"latent": given(picture)})["image"], image.numpy()) < 1e-3
    found = pixels(image.numpy())
    reading = read_mark(found, KEY)
    assert reading is not None and reading.found and reading.payload == PAYLOAD
    assert psnr_db(found, picture) > 42


@EMULATED
def test_the_emulator_draws_the_mark(in_integers: QuantizedProgram, tmp_path: Path) -> None:
    picture, onnx = shapes()[0], backends.load("onnx")
    options = backends.EmitOptions({"target": "qnn"})
    entry = onnx.emit(in_integers, value_or_part, tmp_path, options).entry
    worker = Worker(Order(str(entry), socs.soc_to_run("HTP")))
    found = pixels(worker({"latent": given(picture)})["image"])
    worker.close()
    reading = read_mark(found, KEY)
    assert reading is not None and reading.found and reading.payload == PAYLOAD
    assert psnr_db(found, picture) == pytest.approx(42.1, abs=0.2)


def test_codes_of_a_kernel_that_sums_to_nothing_do_so_too() -> None:
    """Else an even picture would hold something at every chip."""
    held = torch.from_numpy(embed.reader_filter())
    levels = kernel_levels(held)
    codes = torch.round(held / levels.step)
    assert int(codes.sum()) == 0 and 120 <= int(codes.abs().max()) <= 127
    assert relative_error((codes * levels.step).numpy(), held.numpy()) < 0.02
    ones = kernel_levels(torch.ones(1, 1, 3, 3))
    assert ones.step == pytest.approx(1 / 127) and ones.bits == 8


@pytest.fixture(scope="module")
def recipe(tiny_recipe: Recipe) -> Recipe:
    """The tiny recipe at a size that can carry a mark, for one package."""
    cut = replace(tiny_recipe.cut, width_px=64, height_px=64)
    return replace(tiny_recipe, cut=cut, mark=MARK)


EMITTED: list[str] = []  # what the build of the marked package showed


@pytest.fixture(scope="module")
def packages(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny checkpoint without a mark, and with one: built where the first lies."""
    plain, other = (tmp_path_factory.mktemp(name) for name in ("plain", "marked"))
    (before,) = build(replace(recipe, mark=None), plain, ["onnx"], ["int4"])
    shutil.copytree(plain, other, dirs_exist_ok=True)
    progress = Progress(lambda line, *_: EMITTED.append(line))
    (after,) = build(recipe, other, ["onnx"], ["int4"], progress)
    return {"plain": before.path, "marked": after.path}


def test_a_package_says_its_mark_and_nothing_of_its_key(packages: dict[str, Path]) -> None:
    manifest = open_package(packages["marked"]).manifest
    assert manifest.mark == MARK.entry
    assert (manifest.mark.payload, manifest.mark.key_id) == ("1a2b3c4d", KEY.id)
    for file in packages["marked"].rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert KEY.secret not in content and KEY.secret.hex().encode() not in content
    plain = open_package(packages["plain"]).manifest
    assert plain.mark is None
    assert b'"mark"' not in (packages["plain"] / "manifest.json").read_bytes()


def test_only_the_decoder_has_other_bytes(packages: dict[str, Path]) -> None:
    marked_graphs, plain = (
        {g.name: [f.sha256 for f in g.files] for g in open_package(packages[name]).manifest.graphs}
        for name in ("marked", "plain")
    )
    assert [n for n in plain if plain[n] != marked_graphs[n]] == ["vae_decoder"]


def test_another_mark_builds_the_decoder_alone(packages: dict[str, Path]) -> None:
    assert packages["marked"].is_dir()
    assert [line for line in EMITTED if line.startswith("emit ")] == ["emit vae_decoder"]


@pytest.mark.full
def test_it_has_the_bytes_of_a_build_of_its_own(
    packages: dict[str, Path], recipe: Recipe, tmp_path: Path
) -> None:
    (built,) = build(recipe, tmp_path, ["onnx"], ["int4"])
    assert digests(built.path) == digests(packages["marked"])


def test_inspect_says_whether_pictures_are_marked(packages: dict[str, Path]) -> None:
    runner = CliRunner()
    shown = runner.invoke(main, ["inspect", str(packages["marked"])]).output
    assert "pictures are marked: payload 1a2b3c4d, key " + KEY.id in shown
    assert (
        "pictures are not marked" in runner.invoke(main, ["inspect", str(packages["plain"])]).output
    )
    told = json.loads(runner.invoke(main, ["inspect", str(packages["marked"]), "--json"]).stdout)
    assert told["mark"] == {"scheme": "fourstep-1", "payload": "1a2b3c4d", "key_id": KEY.id}
    told = json.loads(runner.invoke(main, ["inspect", str(packages["plain"]), "--json"]).stdout)
    assert told["mark"] is None


IN_FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32"}  # what OpenVINO has to be told
LAYOUTS = ("diffusers", "apple-swift", "ort-package")


@pytest.fixture(scope="module")
def folders(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The marked tiny checkpoint in every layout that has a decoder, by what it is made of."""
    asked = replace(recipe, prompts=(), layouts=LAYOUTS)
    out = tmp_path_factory.mktemp("layouts")
    made = [name for name in ("onnx", "openvino", "coreml") if not backends.missing(needs(name))]
    built = build(asked, out, made, ["fp32"])
    found = {f"{one.layout}, {one.backend}": one.path for one in built if one.layout != "native"}
    checkpoint = open_checkpoint(recipe.checkpoint)
    (graph,) = (g for g in cut_graphs(checkpoint, recipe.cut) if g.name == "vae_decoder")
    plain = unquantized(trace(graph))
    for name in made:
        backend, place = backends.load(name), tmp_path_factory.mktemp(name)
        options = backends.EmitOptions(backends.default_choices(backend))
        emitted = backend.emit(plain, Weights(checkpoint).read, place, options)
        found[f"plain, {name}"] = emitted.entry
    return found


def opened(place: str, folder: Path) -> Session:
    """The decoder of a layout's folder, as its clients open it."""
    layout, name = place.split(", ")
    if layout == "ort-package":
        (variant,) = folder.glob("vae_decoder/*/*.onnx")
        return variant_session(folder, "vae_decoder", variant)
    (entry,) = (
        found
        for pattern in ("vae_decoder/*.onnx", "vae_decoder/*.xml", "VAEDecoder.mlpackage")
        for found in folder.glob(pattern)
    )
    return backends.load(name).open_graph(entry, IN_FLOAT32, EXACT)


def variant_session(folder: Path, graph: str, file: Path) -> Session:
    """A graph of onnxruntime's model package, whose weights lie elsewhere."""
    told = json.loads((folder / MANIFEST).read_text())["components"][graph]["variants"]
    (variant,) = told.values()
    options = onnxruntime.SessionOptions()
    for key, value in variant["executor_info"]["ort"]["session_options"].items():
        place = str(asset_folder(folder, value)) if key == WEIGHTS_FOLDER else value
        options.add_session_config_entry(key, place)
    opened = onnxruntime.InferenceSession(str(file), options)
    return lambda given: dict(
        zip([o.name for o in opened.get_outputs()], opened.run(None, dict(given)), strict=True)
    )


@pytest.mark.parametrize(
    "place",
    ["diffusers, onnx", "diffusers, openvino", "apple-swift, coreml", "ort-package, onnx"],
)
def test_every_layout_carries_the_mark(place: str, folders: dict[str, Path]) -> None:
    if place not in folders:
        pytest.skip(f"{place}: its backend's packages are missing")
    layout, name = place.split(", ")
    latent = np.random.default_rng(2).standard_normal((1, 16, 8, 8), np.float32)
    given = {"diffusers": "latent_sample", "apple-swift": "z", "ort-package": "latent"}[layout]
    as_given = latent / SCALE + OFFSET if layout == "apple-swift" else latent
    (image,) = opened(place, folders[place])({given: as_given.astype(np.float32)}).values()
    plain = backends.load(name).open_graph(folders[f"plain, {name}"], IN_FLOAT32, EXACT)
    (unmarked,) = plain({"latent": latent}).values()
    before, after = (127.5 * (x[0].transpose(1, 2, 0) + 1) for x in (unmarked, image))
    expected = embed.marked(before.astype(np.float64), MARK.tile) - before
    # The random decoder's pictures are all texture, in which none but its own mark is to be seen.
    assert np.abs(after - before - expected).max() < 0.1 < np.abs(expected).max() / 10


def test_what_decides_bytes(recipe: Recipe) -> None:
    digests = {
        replace(recipe, mark=mark).digest("onnx")
        for mark in (
            None,
            MARK,
            MarkChoice(PAYLOAD + 1, KEY),
            MarkChoice(PAYLOAD, MarkKey(bytes(32))),
        )
    }
    assert len(digests) == 4


HEAD = """
[model]
checkpoint = "."
[schedule]
sigmas = [1.0, 0.0]
[image]
width_px = {size}
height_px = 128
[weights]
scheme = "fp32"
[mark]
"""


def written(folder: Path, table: str, size: int = 128) -> Path:
    file = folder / "r.toml"
    file.write_text(HEAD.format(size=size) + table)
    return file


@pytest.mark.parametrize("payload", ['"1a2b3c4d"', "0x1a2b3c4d", "439041101"])
def test_a_recipe_names_payload_and_key(tmp_path: Path, payload: str) -> None:
    key = make_key(tmp_path / "mark.key")
    found = read_recipe(written(tmp_path, f'payload = {payload}\nkey_file = "mark.key"\n'))
    assert found.mark == MarkChoice(PAYLOAD, key)


def test_a_key_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARK_KEY", KEY.secret.hex())
    found = read_recipe(written(tmp_path, 'payload = 1\nkey_env = "MARK_KEY"\n'))
    assert found.mark == MarkChoice(1, KEY)


@pytest.mark.parametrize(
    ("table", "size", "said"),
    [
        ('key_file = "k"', 128, r"\[mark\] payload is missing"),
        ("payload = 1", 128, r"\[mark\]: give its key as key_file"),
        ('payload = 1\nkey_file = "k"\nkey_env = "K"', 128, r"\[mark\]: give its key"),
        ('payload = 4294967296\nkey_file = "k"', 128, r"\[mark\] payload = 4294967296: 32 bits"),
        ('payload = "123456789"\nkey_file = "k"', 128, r"\[mark\] payload = '123456789': 32 bits"),
        ("payload = true\nkey_file = 'k'", 128, r"\[mark\] payload = True: 32 bits"),
        ('payload = 1\nkey_file = "no.key"', 128, r"\[mark\] key_file: .*no.key: no such key"),
        ('payload = 1\nkey_file = "r.toml"', 128, r"\[mark\] key_file: .*r.toml: not a key"),
        ('payload = 1\nkey_env = "NO_SUCH"', 128, r"\[mark\] key_env: .* no variable NO_SUCH"),
        ('payload = 1\nkey_file = "k"', 48, "48 x 128 px is too small"),
        ('payload = 1\nkey = "k"', 128, r"unknown key in \[mark\] 'key'; known: key_env, key_file"),
    ],
)
def test_what_is_wrong_with_a_mark(tmp_path: Path, table: str, size: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_recipe(written(tmp_path, table, size))

"""The tiny autoencoder: read as people have it, the same as diffusers', drawn and shown with."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image as Picture
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.shapes_flash.shapeeval import evaluation_prompts
from exporter import backends
from exporter.backends.contract import EmitOptions, SessionOptions
from exporter.build.model import open_asked
from exporter.build.pipeline import build
from exporter.calibrate.weights import Weights
from exporter.checkpoint.tiny import open_tiny
from exporter.cli import main
from exporter.drawing.loop import Image, Player, Request, Session, Step, generate
from exporter.errors import CheckFailed, InputError
from exporter.network import strips
from exporter.network.assemble import cut_graphs
from exporter.network.cut import Ends
from exporter.package.measures import psnr_db, relative_error
from exporter.package.pixels import to_pixels
from exporter.program.run import run
from exporter.program.trace import trace
from exporter.quantize.program import quantize
from exporter.quantize.schemes import load_scheme
from exporter.recipe.recipe import Recipe, TinyFiles, read_recipe
from exporter.report.make import make
from exporter.runtime.package import Package, open_package
from tests.conftest import ROOT, SHAPES, SMALL, edit_json, needs, previewed, random_inputs, seal

CHANNELS = 16
EXACT = SessionOptions("float32")
TINY = Ends("tiny", "tiny", "tiny")
DRAWS_WITH_BOTH = Ends("full", "full", "tiny")


def autoencoder(
    width: int = 8,
    encodes: tuple[int, ...] = (1, 1, 2, 1),
    decodes: tuple[int, ...] = (1, 2, 0, 1),
    **more: Any,
) -> nn.Module:
    """diffusers' own, with weights that keep the size of what they get."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(5)
    made: nn.Module = AutoencoderTiny(
        latent_channels=CHANNELS,
        encoder_block_out_channels=(width,) * 4,
        decoder_block_out_channels=(width,) * 4,
        num_encoder_blocks=encodes,
        num_decoder_blocks=decodes,
        **more,
    )
    for parameter in made.parameters():
        share = 1.0 / (9 * parameter.shape[1]) ** 0.5 if parameter.ndim == 4 else 0.1
        nn.init.normal_(parameter, 0.0, share)
    return made.eval()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny autoencoder in diffusers' layout."""
    place = tmp_path_factory.mktemp("autoencoder")
    autoencoder().save_pretrained(place)  # type: ignore[operator]
    return place


@pytest.fixture
def tiny_ends(tiny_recipe: Recipe, folder: Path) -> Callable[[Ends], Recipe]:
    """The tiny recipe with these ends."""
    return lambda ends: replace(
        tiny_recipe, cut=replace(SMALL, ends=ends), tiny=TinyFiles(str(folder))
    )


def stored(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = load_file(folder / "diffusion_pytorch_model.safetensors")
    return found


def as_taesd(folder: Path, end: str, first: int) -> dict[str, Tensor]:
    """The tensors of an end as TAESD names them, its layers counted from ``first``."""
    found = {}
    for name, value in stored(folder).items():
        own, _, number, rest = name.split(".", 3)
        if own == end:
            found[f"{int(number) + first}.{rest}"] = value
    return found


def pixels(image: np.ndarray) -> np.ndarray:
    return to_pixels(image).astype(int)


# --- the same as diffusers' ---------------------------------------------------------------------

CONFIGURATIONS: list[dict[str, Any]] = [
    {},
    {"width": 4, "encodes": (0, 0, 0, 0), "decodes": (0, 0, 0, 0)},
    {"width": 12, "encodes": (2, 0, 1, 3), "decodes": (3, 1, 0, 2)},
    {"width": 6, "scaling_factor": 1.5305, "shift_factor": 0.0609},
]


@pytest.mark.parametrize(
    ("configuration", "strip_bytes"), [*((c, 1 << 26) for c in CONFIGURATIONS), ({}, 30_000)]
)
def test_graphs_are_diffusers(
    tiny_recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    configuration: dict[str, Any],
    strip_bytes: int,
) -> None:
    """In float32 within 1e-5, pictures within a grey level; also where maps are cut into strips."""
    monkeypatch.setattr(strips, "STRIP_BYTES", strip_bytes)
    theirs: Any = autoencoder(**configuration)
    theirs.save_pretrained(tmp_path)
    recipe = replace(
        tiny_recipe, cut=replace(SMALL, ends=TINY, t5=False), tiny=TinyFiles(str(tmp_path))
    )
    checkpoint = open_asked(recipe)
    graphs = {g.name: g for g in cut_graphs(checkpoint, recipe.cut)}
    read = Weights(checkpoint).read
    latent = 2 * torch.randn(1, CHANNELS, 6, 8)
    image = torch.rand(1, 3, 48, 64) * 2 - 1
    scale, shift = theirs.config.scaling_factor, theirs.config.shift_factor or 0.0
    with torch.inference_mode():
        picture = theirs.decode(latent / scale + shift).sample
        encoded = (theirs.encode(image).latents - shift) * scale
    drawn = run(trace(graphs["tiny_decoder"]), read, {"latent": latent})["image"]
    found = run(trace(graphs["tiny_encoder"]), read, {"image": image})["latent"]
    assert picture.std() > 0.1 and encoded.std() > 0.1
    assert relative_error(drawn.numpy(), picture.numpy()) < 1e-5
    assert relative_error(found.numpy(), encoded.numpy()) < 1e-5
    assert np.abs(pixels(drawn.numpy()) - pixels(picture.numpy())).max() <= 1
    assert "vae_decoder" not in graphs and "vae" not in checkpoint.components


@pytest.mark.parametrize("name", ["onnx", "openvino", "coreml", "reference"])
def test_every_backend_computes_it(
    tiny_ends: Callable[[Ends], Recipe], tmp_path: Path, name: str
) -> None:
    if backends.missing(needs(name)):
        pytest.skip(f"pip install '{backends.load(name).to_build.install}'")
    recipe = tiny_ends(TINY)
    checkpoint, backend = open_asked(recipe), backends.load(name)
    options = EmitOptions(backends.default_choices(backend))
    for graph in cut_graphs(checkpoint, recipe.cut):
        if graph.component != "vae_tiny":
            continue
        program = quantize(trace(graph), load_scheme("int8").format_of)
        inputs = random_inputs(program)
        read = Weights(checkpoint).read
        expected = run(program, read, inputs)
        place = tmp_path / graph.name
        place.mkdir()
        emitted = backend.emit(program, read, place, options)
        session = backend.open_graph(emitted.entry, emitted.session, EXACT)
        found = session({port: value.numpy() for port, value in inputs.items()})
        for port, value in expected.items():
            error = relative_error(found[port], value.numpy())
            assert error <= emitted.tolerance.graph_relative, graph.name


# --- as people have it --------------------------------------------------------------------------


def written(tensors: Mapping[str, Tensor], file: Path) -> Path:
    file.parent.mkdir(exist_ok=True)
    save_file({name: value.clone() for name, value in tensors.items()}, file)
    return file


def layouts(folder: Path, place: Path) -> dict[str, TinyFiles]:
    """The same weights in every layout that is read."""
    taesd = place / "taesd3"
    decoder = written(as_taesd(folder, "decoder", 1), taesd / "taesd3_decoder.safetensors")
    encoder = written(as_taesd(folder, "encoder", 0), taesd / "taesd3_encoder.safetensors")
    unclamped = written(as_taesd(folder, "decoder", 0), place / "unclamped.safetensors")
    both = {f"taesd_decoder.{k}": v for k, v in as_taesd(folder, "decoder", 1).items()}
    both |= {f"taesd_encoder.{k}": v for k, v in as_taesd(folder, "encoder", 0).items()}
    scales = {"vae_scale": torch.tensor(1.5305), "vae_shift": torch.tensor(0.0609)}
    combined = written(both | scales, place / "combined.safetensors")
    variant = Path(shutil.copytree(folder, place / "variant"))
    weights = variant / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".fp16.safetensors"))
    return {
        "file of diffusers": TinyFiles(str(folder / weights.name)),
        "variant": TinyFiles(str(variant)),
        "two files": TinyFiles(str(decoder), str(encoder)),
        "folder of two files": TinyFiles(str(taesd)),
        "layers without a clamp": TinyFiles(str(unclamped), str(encoder)),
        "both in a file": TinyFiles(str(combined)),
    }


def test_layouts_of_the_same_weights_are_the_same(
    tiny_ends: Callable[[Ends], Recipe], folder: Path, tmp_path: Path
) -> None:
    recipe = tiny_ends(TINY)
    expected = open_asked(recipe)
    for name, files in layouts(folder, tmp_path).items():
        found = open_asked(replace(recipe, tiny=files))
        assert found.digest == expected.digest, name
    bare = Path(shutil.copytree(folder, tmp_path / "named"))
    (bare / "config.json").unlink()  # a folder is either with its configuration or TAESD's
    with pytest.raises(InputError, match="without config.json, and there are none"):
        open_asked(replace(recipe, tiny=TinyFiles(str(bare))))


def test_it_may_lie_in_the_checkpoint(
    tiny_ends: Callable[[Ends], Recipe], tiny_copy: Path, folder: Path
) -> None:
    """And is neither opened nor part of the digest where nothing asks for it."""
    asks = replace(tiny_ends(TINY), checkpoint=str(tiny_copy), tiny=TinyFiles())
    plain = replace(asks, cut=SMALL)
    before = open_asked(plain).digest
    with pytest.raises(InputError, match="has no folder 'vae_tiny'; name a TAESD3 decoder"):
        open_asked(asks)
    shutil.copytree(folder, tiny_copy / "vae_tiny")
    assert open_asked(asks).digest != before == open_asked(plain).digest
    (tiny_copy / "vae_tiny" / "diffusion_pytorch_model.safetensors").write_bytes(b"damaged")
    assert open_asked(plain).digest == before
    with pytest.raises(InputError, match="not a whole safetensors file"):
        open_asked(asks)


def test_other_weights_are_another_package(
    tiny_ends: Callable[[Ends], Recipe], folder: Path, tmp_path: Path
) -> None:
    decoder = written(as_taesd(folder, "decoder", 1), tmp_path / "decoder.safetensors")
    recipe = replace(tiny_ends(DRAWS_WITH_BOTH), tiny=TinyFiles(str(decoder)))
    before = open_asked(recipe).digest
    changed = as_taesd(folder, "decoder", 1)
    changed["1.bias"] += 1
    written(changed, decoder)
    assert open_asked(recipe).digest != before


def test_an_encoder_that_is_not_used_is_not_read(
    tiny_ends: Callable[[Ends], Recipe], folder: Path, tmp_path: Path
) -> None:
    both = stored(folder)
    both["encoder.layers.0.weight"] = torch.zeros(1)
    file = written(both, tmp_path / "both.safetensors")
    found = open_asked(replace(tiny_ends(DRAWS_WITH_BOTH), tiny=TinyFiles(str(file))))
    assert not any(k.startswith("encoder") for k in found.component("vae_tiny").tensors)


Change = Callable[[dict[str, Tensor]], object]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("3.conv.0.weight"), "tensor '3.conv.0.weight' is missing"),
        (lambda t: t.pop("1.bias"), "tensor '1.bias' is missing"),
        (lambda t: t.pop("1.weight"), "tensor '1.weight' is missing"),
        (lambda t: t.update({"99.weight": t["1.bias"]}), "tensor '99.weight': .* has no such"),
        (lambda t: t.update({"5.bias": t["1.bias"]}), "tensor '5.bias': .* has no such"),
        (lambda t: t.update({"vae_scale": t["1.bias"]}), "tensor 'vae_scale' is none of a tiny"),
        (lambda t: t.update({"0.weight": t["1.weight"]}), "tensor '0.bias' is missing"),
        (
            lambda t: t.update({"3.conv.2.weight": t["3.conv.2.weight"][:, :4].clone()}),
            r"tensor '3.conv.2.weight' has shape \[8, 4, 3, 3\]; .* has \[8, 8, 3, 3\]",
        ),
        (
            lambda t: t.update({"1.weight": t["1.weight"][:, :4].clone()}),
            r"tensor '1.weight' has shape \[8, 4, 3, 3\]; .* for latents of 16 channels",
        ),
        (
            lambda t: t.update({"9.weights": t.pop("5.weight")}),
            "tensor '5.weight' is missing",
        ),
        (lambda t: t.update({"1.bias": t["1.bias"].int()}), "tensor '1.bias': unknown dtype 'I32'"),
    ],
)
def test_tensors_that_are_not_a_decoders_are_named(
    folder: Path, tmp_path: Path, change: Change, words: str
) -> None:
    tensors = as_taesd(folder, "decoder", 1)
    change(tensors)
    file = written(tensors, tmp_path / "decoder.safetensors")
    with pytest.raises(InputError, match=words) as error:
        open_tiny(["decoder"], file, None, CHANNELS)
    assert str(error.value).startswith(f"{file}: ")


def test_files_of_something_else_are_refused(folder: Path, tmp_path: Path) -> None:
    decoder = written(as_taesd(folder, "decoder", 1), tmp_path / "d" / "x.safetensors")
    encoder = written(as_taesd(folder, "encoder", 0), tmp_path / "e" / "x.safetensors")
    pickle = tmp_path / "taesd3_decoder.pth"
    pickle.write_bytes(b"")
    several = Path(shutil.copytree(decoder.parent, tmp_path / "several"))
    for name in ("a_decoder", "b_decoder"):
        shutil.copyfile(decoder, several / f"{name}.safetensors")
    half = written(
        {k: v for k, v in stored(folder).items() if k.startswith("decoder")},
        tmp_path / "half.safetensors",
    )
    for place, end, words in [
        (encoder, "decoder", "is no tiny decoder; name the file of the decoder"),
        (decoder, "encoder", "is no tiny encoder; name the file of the encoder"),
        (half, "encoder", "holds no encoder; name the file of the encoder"),
        (pickle, "decoder", "pickled weights can run code and are never opened"),
        (tmp_path / "none", "decoder", "no such file or folder"),
        (several, "decoder", "several: a_decoder.safetensors, b_decoder.safetensors"),
    ]:
        with pytest.raises(InputError, match=words):
            open_tiny([end], place, place, CHANNELS)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"act_fn": "silu"}, "act_fn = 'silu': 'relu' is supported"),
        ({"_class_name": "AutoencoderKL"}, "_class_name = 'AutoencoderKL'"),
        ({"num_decoder_blocks": [3, 3, 3, 1]}, r"\[1, 2, 0, 1\] is what the weights are"),
        ({"decoder_block_out_channels": [64] * 4}, "is what the weights are"),
        ({"upsampling_scaling_factor": 4}, "upsampling_scaling_factor = 4: 2 is supported"),
        ({"scaling_factor": "1"}, "scaling_factor = '1': a number is expected"),
    ],
)
def test_a_configuration_that_says_something_else_is_refused(
    folder: Path, tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    place = Path(shutil.copytree(folder, tmp_path / "autoencoder"))
    edit_json(place / "config.json", **changes)
    with pytest.raises(InputError, match=words):
        open_tiny(["decoder"], place, None, CHANNELS)


def test_a_configuration_may_leave_out_what_is_usual(folder: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(folder, tmp_path / "autoencoder"))
    (place / "config.json").write_text('{"_class_name": "AutoencoderTiny", "shift_factor": null}')
    found = open_tiny(["decoder"], place, None, CHANNELS)
    assert found.config == open_tiny(["decoder"], folder, None, CHANNELS).config


def test_two_ends_of_different_scales_are_refused(folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    edit_json(other / "config.json", scaling_factor=2.0)
    with pytest.raises(InputError, match="its scaling_factor is 2, and the decoder's is 1"):
        open_tiny(["decoder", "encoder"], folder, other, CHANNELS)


# --- recipes ------------------------------------------------------------------------------------

RECIPE = """
[model]
checkpoint = "{checkpoint}"
{model}
[schedule]
sigmas = [1.0, 0.5, 0.0]
[image]
width_px = 64
height_px = 48
{image}
[weights]
scheme = "int8"
"""


def recipe_of(folder: Path, tiny_folder: Path, model: str = "", image: str = "") -> Recipe:
    file = folder / "recipe.toml"
    file.write_text(RECIPE.format(checkpoint=tiny_folder, model=model, image=image))
    return read_recipe(file)


@pytest.mark.parametrize(
    ("image", "ends"),
    [
        ("", Ends()),
        ('decoder = "tiny"', TINY),
        ('decoder = "tiny"\nencoder = "full"', Ends("tiny", "full", "tiny")),
        ('decoder = "tiny"\npreviews = "linear"', Ends("tiny", "tiny", "linear")),
        ('previews = "tiny"', DRAWS_WITH_BOTH),
    ],
)
def test_a_recipe_says_what_stands_at_the_ends(
    tmp_path: Path, tiny_folder: Path, image: str, ends: Ends
) -> None:
    assert recipe_of(tmp_path, tiny_folder, image=image).cut.ends == ends


@pytest.mark.parametrize(
    ("model", "image", "words"),
    [
        ("", 'decoder = "small"', "unknown value 'small'; known: full, tiny"),
        ("", 'previews = "none"', "unknown value 'none'; known: linear, tiny"),
        ("", 'image_to_image = false\nencoder = "tiny"', "needs image_to_image = true"),
        (
            'vae = "."',
            'decoder = "tiny"',
            r"\[model\] vae is given, and \[image\] decoder = \"tiny\" does not use it",
        ),
        ('tiny_decoder = "x"', "", r"\[model\] tiny_decoder: nothing uses it; set decoder ="),
        ('tiny_encoder = "x"', 'previews = "tiny"', r"\[model\] tiny_encoder: nothing uses it"),
        ("tiny_decoder = 3", 'decoder = "tiny"', "must be a string"),
        ('tiny_decoder = ""', 'decoder = "tiny"', r"\[model\] tiny_decoder is empty"),
    ],
)
def test_keys_that_mean_nothing_are_refused(
    tmp_path: Path, tiny_folder: Path, model: str, image: str, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        recipe_of(tmp_path, tiny_folder, model, image)


def test_paths_are_relative_to_the_recipe(tmp_path: Path, tiny_folder: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.safetensors").touch()
    given = 'tiny_decoder = "a.safetensors"\ntiny_encoder = "b.safetensors"'
    found = recipe_of(tmp_path, tiny_folder, given, 'decoder = "tiny"').tiny
    assert found == TinyFiles(str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"))


def test_a_recipe_without_it_is_counted_as_before(tmp_path: Path, tiny_folder: Path) -> None:
    """Packages of recipes that say nothing of it keep their bytes."""
    plain = recipe_of(tmp_path, tiny_folder)
    decisive = asdict(replace(plain, checkpoint="", backends=(), choices=()))
    assert decisive.pop("layouts") == ("native",)
    decisive["layout"] = "native"
    places = ("revision", "variant", "parts", "tokenizers", "config", "tiny")
    for key in (
        *places,
        "most_file_bytes",
        "denoiser_parts",
        "loras",
        "guidance",
        "mark",
        "filter",
        "licence",
        "further_sizes",
    ):
        del decisive[key]
    del decisive["cut"]["ends"], decisive["cut"]["fixed_negative"], decisive["calibration"]["size"]
    options = dict(plain.backend("onnx").choices)
    assert options.pop("target") == "native"  # as it was before there was another
    assert options.pop("contexts") == "beside"  # and before there were the keys
    assert options.pop("socs") == ""
    decisive["options"] = options
    expected = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
    assert plain.digest("onnx") == expected
    other = recipe_of(tmp_path, tiny_folder, image='decoder = "tiny"')
    assert other.digest("onnx") != expected


# --- packages -----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def built(
    tiny_recipe: Recipe, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[Ends, Path]:
    """An int8 ONNX package that draws with it, and one that has it for previews alone."""
    found = {}
    for ends in (TINY, DRAWS_WITH_BOTH):
        cut = replace(SMALL, ends=ends, t5=False)
        recipe = replace(tiny_recipe, cut=cut, tiny=TinyFiles(str(folder)))
        (package,) = build(recipe, tmp_path_factory.mktemp("tiny"), ["onnx"], ["int8"])
        assert package.report.ok
        found[ends] = package.path
    return found


def test_a_package_that_draws_with_it_has_nothing_of_the_vae(built: dict[Ends, Path]) -> None:
    manifest = open_package(built[TINY]).manifest
    assert not any(name.startswith("vae") for name in manifest.names)
    assert manifest.stage("tiny_decoder").results == {"image": "image"}  # type: ignore[union-attr]
    assert manifest.stage("tiny_encoder").results == {"latent": "start"}  # type: ignore[union-attr]
    assert manifest.picture.preview_graph == "tiny_decoder"


def test_a_package_that_previews_with_it_says_so(built: dict[Ends, Path]) -> None:
    manifest = open_package(built[DRAWS_WITH_BOTH]).manifest
    stage = manifest.stage("tiny_decoder")
    assert stage is not None and stage.runs == "for previews"
    assert stage.results == {"image": "preview"} and manifest.picture.preview is not None
    assert manifest.stage("vae_decoder").results == {"image": "image"}  # type: ignore[union-attr]
    assert not manifest.graph("tiny_encoder")
    # The graph of previews is open beside the denoiser.
    alone = max(g.run_bytes or 0 for g in manifest.graphs)
    assert manifest.device.predicted_peak_bytes is not None
    assert manifest.device.predicted_peak_bytes > alone


def test_only_packages_that_have_it_name_it(built: dict[Ends, Path], tiny_package: Path) -> None:
    for package, has_one in ((tiny_package, False), *((p, True) for p in built.values())):
        manifest = json.loads((package / "manifest.json").read_text())
        assert ("preview_graph" in manifest["picture"]) == has_one


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("ends", [TINY, DRAWS_WITH_BOTH])
def test_previews_are_what_the_graph_draws_and_it_is_opened_once(
    built: dict[Ends, Path], ends: Ends, keep: bool
) -> None:
    package = open_package(built[ends])
    session = package.session("tiny_decoder")
    opens: list[str] = []
    with package.player(keep=keep) as player:
        watched = replace(player, open=_noting(player, opens))
        requests = [Request("a red circle", seed=seed) for seed in (1, 2)]
        for event in generate(watched, requests):
            if isinstance(event, Step):
                assert event.latent is not None
                expected = to_pixels(session({"latent": event.latent})["image"])
                assert previewed(event).shape == (48, 64, 3)
                assert np.array_equal(previewed(event), expected)
    # Where it draws too, it is opened again for that: it was closed with the steps.
    assert opens.count("tiny_decoder") == (2 if ends == TINY else 1)


def _noting(player: Player, opens: list[str]) -> Callable[[str], Session]:
    """Opens graphs as a player does, and notes their names."""

    def open_session(name: str) -> Session:
        opens.append(name)
        return player.open(name)

    return open_session


def test_it_is_not_opened_when_no_preview_is_asked_for(built: dict[Ends, Path]) -> None:
    opens: list[str] = []
    package = open_package(built[DRAWS_WITH_BOTH])
    for keep in (False, True):
        with package.player(keep=keep) as player:
            watched = replace(player, open=_noting(player, opens))
            events = list(generate(watched, [Request("a red circle")]))
        assert isinstance(events[-1], Image) and "tiny_decoder" not in opens


def test_a_preview_that_is_kept_opens_the_graph_again(built: dict[Ends, Path]) -> None:
    player = open_package(built[DRAWS_WITH_BOTH]).player()
    steps = [e for e in generate(player, [Request("a red circle")]) if isinstance(e, Step)]
    assert previewed(steps[-1]).shape == (48, 64, 3)


def test_a_preview_of_nothing_that_is_a_number_is_an_error(built: dict[Ends, Path]) -> None:
    player = open_package(built[DRAWS_WITH_BOTH]).player()

    def open_session(name: str) -> Any:
        session = player.open(name)
        if name != "tiny_decoder":
            return session
        return lambda inputs: {"image": session(inputs)["image"] * np.float32(np.nan)}

    events = generate(replace(player, open=open_session), [Request("a red circle")])
    step = next(e for e in events if isinstance(e, Step))
    assert step.preview is not None
    with pytest.raises(CheckFailed, match="tiny_decoder, preview of step 1 of 4: .*NaN"):
        step.preview()


def test_image_to_image_starts_from_the_tiny_encoder(built: dict[Ends, Path]) -> None:
    image = np.zeros((48, 64, 3), np.uint8)
    player = open_package(built[TINY]).player()
    request = Request("a red circle", image=image, strength=0.5)
    drawn = [e for e in generate(player, [request]) if isinstance(e, Image)]
    assert drawn[0].pixels.shape == (48, 64, 3)


def test_the_command_line_draws_full_previews(built: dict[Ends, Path], tmp_path: Path) -> None:
    arguments = [built[DRAWS_WITH_BOTH], "a red circle", "--out", tmp_path / "a.png"]
    command = ["run", *map(str, arguments), "--previews", str(tmp_path / "steps")]
    result = CliRunner().invoke(main, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = sorted((tmp_path / "steps").iterdir())
    assert len(found) == 4
    for file in found:
        with Picture.open(file) as picture:
            assert picture.size == (64, 48)


def test_a_bad_file_is_one_line_and_nothing_is_built(
    folder: Path, tmp_path: Path, tiny_folder: Path
) -> None:
    tensors = as_taesd(folder, "decoder", 1)
    del tensors["3.conv.0.weight"]
    written(tensors, tmp_path / "bad.safetensors")
    recipe_of(tmp_path, tiny_folder, 'tiny_decoder = "bad.safetensors"', 'previews = "tiny"')
    command = ["build", str(tmp_path / "recipe.toml"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(main, [*command, "--backend", "onnx"], catch_exceptions=False)
    assert result.exit_code == 2 and "'3.conv.0.weight' is missing" in result.stderr
    assert not (tmp_path / "out" / "onnx-int8").exists()


def test_inspect_predicts_it(folder: Path, tmp_path: Path, tiny_folder: Path) -> None:
    recipe_of(tmp_path, tiny_folder, f'tiny_decoder = "{folder}"', 'decoder = "tiny"')
    command = ["inspect", str(tiny_folder), "--recipe", str(tmp_path / "recipe.toml"), "--json"]
    result = CliRunner().invoke(main, command, catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    graphs = {row["graph"] for row in json.loads(result.stdout)["graphs"]}
    assert {"tiny_decoder", "tiny_encoder"} < graphs and "vae_decoder" not in graphs


Damage = Callable[[dict[str, Any]], object]


def stage_of(manifest: dict[str, Any], graph: str) -> dict[str, Any]:
    found: dict[str, Any] = next(s for s in manifest["stages"] if s["graph"] == graph)
    return found


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda m: m["picture"].update(preview_graph=""), "'tiny_decoder' gives the preview"),
        (
            lambda m: m["picture"].update(preview_graph="none"),
            "'none', and 'tiny_decoder' gives the preview",
        ),
        (lambda m: m["picture"].update(preview_graph="denoiser"), "'denoiser' gives no picture"),
        (
            lambda m: stage_of(m, "tiny_decoder").update(runs="once"),
            "'once' does not give the preview",
        ),
        (
            lambda m: stage_of(m, "vae_decoder").update(runs="for previews"),
            "'for previews' does not give the image",
        ),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    built: dict[Ends, Path], tmp_path: Path, damage: Damage, words: str
) -> None:
    package = Path(shutil.copytree(built[DRAWS_WITH_BOTH], tmp_path / "package"))
    manifest = json.loads((package / "manifest.json").read_text())
    damage(manifest)
    seal(package, manifest)
    with pytest.raises(CheckFailed, match=words):
        open_package(package)


def test_the_report_shows_both_decoders(built: dict[Ends, Path], tmp_path: Path) -> None:
    package = built[DRAWS_WITH_BOTH]
    made = make(package.parent, tmp_path / "report")
    (entry,) = made.packages
    assert entry.times is not None and entry.times.fastest_preview_s is not None
    assert len(entry.previews_db) == 1 and np.isfinite(entry.previews_db[0])
    page = (tmp_path / "report" / "index.html").read_text()
    for words in ("Two decoders on the same latents", "by the tiny decoder of onnx-int8"):
        assert words in page
    alone = make(built[TINY].parent, tmp_path / "alone")
    assert alone.packages[0].previews_db == ()
    assert "Two decoders" not in (tmp_path / "alone" / "index.html").read_text()


@pytest.mark.full
@pytest.mark.parametrize("ends", [TINY, DRAWS_WITH_BOTH, Ends("tiny", "full", "linear")])
def test_packages_of_every_backend_and_scheme_verify(
    tiny_ends: Callable[[Ends], Recipe], tmp_path: Path, ends: Ends
) -> None:
    names = ("onnx", "openvino", "coreml", "reference")
    able = [name for name in names if not backends.missing(needs(name))]
    for scheme in ("fp32", "fp16", "int8", "int4", "int8-w8a8"):
        chosen = [b for b in able if b not in ("coreml", "reference") or scheme != "int8-w8a8"]
        for package in build(tiny_ends(ends), tmp_path / scheme, chosen, [scheme]):
            assert package.report.ok, package.path.name


# --- the model in the box -----------------------------------------------------------------------

LEAST_DB, LEAST_TIMES_AS_FAST = 30.0, 5.0


@pytest.fixture(scope="session")
def shapes_both(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """shapes-flash by the shipped recipe, with its VAE's decoder and its tiny one."""
    recipe = read_recipe(ROOT / "recipes" / "shapes-flash-tiny.toml")
    recipe = replace(recipe, prompts=())  # nothing to verify with: tests below draw and compare
    (built,) = build(recipe, tmp_path_factory.mktemp("shapes"), ["onnx"], ["fp32"])
    return open_package(built.path)


def test_the_tiny_autoencoder_of_shapes_flash_is_small() -> None:
    files = [f for f in (SHAPES / "vae_tiny").iterdir() if f.is_file()]
    assert sum(f.stat().st_size for f in files) < 2_000_000
    ends = {name.partition(".")[0] for name in stored(SHAPES / "vae_tiny")}
    assert ends == {"decoder", "encoder"}


def test_shapes_flash_is_decoded_as_by_the_vae(shapes_both: Package) -> None:
    """Held-out prompts of every category: each picture, not only their mean."""
    prompts = evaluation_prompts(2)
    requests = [Request(p.text, p.seed) for p in prompts]
    previews, pictures = dict[int, np.ndarray](), dict[int, np.ndarray]()
    for event in generate(shapes_both.player(), requests):
        if isinstance(event, Step) and event.step == event.steps:
            previews[event.index] = previewed(event)
        elif isinstance(event, Image):
            pictures[event.index] = event.pixels
    assert len(pictures) == len(prompts) == 12
    for index, picture in pictures.items():
        away = psnr_db(previews[index], picture)
        assert away >= LEAST_DB, f"{prompts[index].text}: {away:.1f} dB"


@pytest.mark.full  # alone on the machine: it takes times
def test_it_takes_a_fifth_of_the_vaes_time_at_most(shapes_both: Package) -> None:
    """The fastest of several calls of either, in turn: other work on the machine slows both."""
    latent = {"latent": np.random.default_rng(0).standard_normal((1, 16, 16, 16), np.float32)}
    sessions = {name: shapes_both.session(name) for name in ("vae_decoder", "tiny_decoder")}
    fastest = dict.fromkeys(sessions, float("inf"))
    for _ in range(40):
        for name, session in sessions.items():
            started = time.perf_counter()
            session(latent)
            fastest[name] = min(fastest[name], time.perf_counter() - started)
    assert fastest["vae_decoder"] >= LEAST_TIMES_AS_FAST * fastest["tiny_decoder"]

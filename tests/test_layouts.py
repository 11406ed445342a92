"""Layouts for clients of others: the schedule, the graphs against diffusers, OpenVINO GenAI."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from exporter.build.layout import refuse_unfit
from exporter.build.model import Model, trace_model
from exporter.build.pipeline import build
from exporter.build.reference import torch_session
from exporter.calibrate.weights import Weights
from exporter.cli import main
from exporter.errors import InputError
from exporter.layouts import DIFFUSERS
from exporter.layouts.contract import ClientGraph
from exporter.layouts.diffusers import LAST, as_in_checkpoint, client_graphs
from exporter.layouts.schedule import client_schedule, client_sigmas
from exporter.package.layout import check_layout
from exporter.package.manifest import Guidance
from exporter.package.measures import psnr_db, relative_error, snr_db
from exporter.progress import Progress
from exporter.quantize.program import quantize_all
from exporter.recipe.recipe import MarkChoice, Recipe
from tests.conftest import KEY_OF_MARKS, SIGMAS

PROMPT = "two red circles left of a blue square"
LONG = "a red circle and a blue square " * 20
UNEVEN = (1.0, 0.93, 0.6, 0.31, 0.0)  # of no closed form


def shifted(shift: float, steps: int) -> tuple[float, ...]:
    """shift(1, (n - 1) / n, ... 1 / n), 0."""
    even = np.arange(steps, -1, -1) / steps
    return tuple(float(s) for s in shift * even / (1 + (shift - 1) * even))


@pytest.mark.parametrize(("shift", "steps"), [(3, 4), (3, 8), (5, 4), (2, 6), (1, 4), (1, 1)])
def test_a_closed_form_is_the_clients_own_schedule(shift: float, steps: int) -> None:
    sigmas = shifted(shift, steps)
    found = client_schedule(sigmas)
    assert found.is_exact and found.gains == (1.0,) * steps
    assert found.train_timesteps == shift * (steps - 1) + 1
    assert np.max(np.abs(np.subtract(found.sigmas, sigmas))) < 1e-7


def test_any_other_list_is_bent() -> None:
    """The client's steps times the gains are ours, whatever the list."""
    random = np.random.default_rng(0)
    for steps in range(1, 9):
        falling = np.sort(random.uniform(0.01, 1.0, steps))[::-1]
        sigmas = (*map(float, falling), 0.0)
        found = client_schedule(sigmas)
        walked = np.cumsum(np.diff(found.sigmas) * found.gains)
        assert np.max(np.abs(walked - (np.array(sigmas[1:]) - sigmas[0]))) < 1e-6
        assert 0 < found.tolerance < min(-np.diff((*found.timesteps, 0.0)))


@pytest.mark.parametrize("sigmas", [SIGMAS, UNEVEN, shifted(5, 4), (1.0, 0.0), (0.9, 0.3, 0.0)])
def test_diffusers_scheduler_feeds_these_timesteps(sigmas: tuple[float, ...]) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    told = client_schedule(sigmas)
    scheduler = FlowMatchEulerDiscreteScheduler(told.train_timesteps, told.shift)
    scheduler.set_timesteps(told.steps)
    away = np.abs(scheduler.timesteps.numpy() - np.array(told.timesteps))
    assert np.max(away) < told.tolerance / 10
    assert np.max(np.abs(scheduler.sigmas.numpy() - np.array(told.sigmas))) < 1e-6
    assert np.allclose(
        client_sigmas(told.shift, told.train_timesteps, told.steps), told.sigmas[:-1]
    )


Cutting = tuple[Model, dict[str, ClientGraph]]


def graphs_of(recipe: Recipe, backend: str = "openvino") -> Cutting:
    """The float32 graphs of the layout, by folder."""
    model = trace_model(recipe, 0, Progress())
    programs = quantize_all(model.programs, recipe.scheme("fp32"))
    entries = {name: file.entry for name, file in model.tokenizers.items()}
    schedule = client_schedule(recipe.cut.sigmas)
    found = client_graphs(programs, entries, schedule, DIFFUSERS.forms[backend].velocity)
    return model, {graph.folder: graph for graph in found}


def run(model: Model, graph: ClientGraph, **inputs: Any) -> dict[str, np.ndarray]:
    found = torch_session(graph.program, Weights(model.checkpoint))
    return found({k: np.asarray(v) for k, v in inputs.items()})


@pytest.fixture(scope="module")
def even(tiny_recipe: Recipe) -> Cutting:
    return graphs_of(tiny_recipe)


@pytest.fixture(scope="module")
def uneven(tiny_recipe: Recipe) -> Cutting:
    return graphs_of(replace(tiny_recipe, cut=replace(tiny_recipe.cut, sigmas=UNEVEN)))


@pytest.mark.parametrize("name", ["even", "uneven"])
def test_the_unfolded_mmdit_is_diffusers(name: str, request: pytest.FixtureRequest) -> None:
    """At a client's timesteps, with a client's text, times the gain; at any other NaN."""
    from diffusers import SD3Transformer2DModel

    model, graphs = request.getfixturevalue(name)
    recipe, sigmas = model.recipe, model.recipe.cut.sigmas
    told = client_schedule(sigmas)
    transformer = SD3Transformer2DModel.from_pretrained(f"{recipe.checkpoint}/transformer").eval()
    torch.manual_seed(5)
    states = torch.randn(1, 77 + recipe.cut.t5_tokens, 96)
    states[:, :77, 80:] = 0  # as a client pads
    given = {
        "hidden_states": torch.randn(1, 16, 6, 8),
        "encoder_hidden_states": states,
        "pooled_projections": torch.randn(1, 80),
    }
    for i, timestep in enumerate(told.timesteps):
        found = run(model, graphs["transformer"], **given, timestep=np.array([timestep], "f"))
        with torch.no_grad():
            right = transformer(**given, timestep=torch.tensor([1000 * sigmas[i]])).sample
        assert relative_error(found["out_sample"], right.numpy() * told.gains[i]) < 1e-5
    wrong = np.array([told.timesteps[1] * 0.97], "f")
    assert np.isnan(run(model, graphs["transformer"], **given, timestep=wrong)["out_sample"]).all()


@pytest.mark.filterwarnings("ignore::exporter.drawing.text.PromptCut")
def test_text_encoders_keep_the_end_of_a_long_prompt(even: Cutting) -> None:
    """Ids that a client cut off, and ids that it did not pad, are as the tokenizer gives them."""
    model, graphs = even
    for name, folder in (("clip_g", "text_encoder_2"), ("t5", "text_encoder_3")):
        file = model.tokenizers[name]
        right = file.encoder(name)(LONG)
        cut_off = right.copy()
        cut_off[:, -1] = 5  # a word in the place of the closing id
        outputs = [run(model, graphs[folder], input_ids=ids) for ids in (right, cut_off)]
        for port, value in outputs[0].items():
            assert np.array_equal(outputs[1][port], value)
    short = model.tokenizers["t5"].encoder("t5")("a red circle")
    for ids in (short, short[:, :9], np.pad(short, ((0, 0), (0, 300)))):
        found = run(model, graphs["text_encoder_3"], input_ids=ids)["last_hidden_state"]
        whole = run(model, graphs["text_encoder_3"], input_ids=short)["last_hidden_state"]
        assert np.array_equal(found, whole)


def test_without_t5_the_number_of_zero_tokens_is_ours(tiny_recipe: Recipe) -> None:
    recipe = replace(tiny_recipe, cut=replace(tiny_recipe.cut, t5=False))
    model, graphs = graphs_of(recipe)
    assert "text_encoder_3" not in graphs
    torch.manual_seed(5)
    clip = torch.randn(1, 77, 96)
    given = {
        "hidden_states": torch.randn(1, 16, 6, 8),
        "pooled_projections": torch.randn(1, 80),
        "timestep": np.array([10.0], np.float32),
    }
    found = [
        run(
            model,
            graphs["transformer"],
            **given,
            encoder_hidden_states=np.pad(clip, ((0, 0), (0, zeros), (0, 0))),
        )["out_sample"]
        for zeros in (77, 256)
    ]
    assert np.array_equal(found[0], found[1])


@pytest.fixture(scope="module")
def folders(tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny checkpoint in both layouts, by folder name."""
    recipe = replace(tiny_recipe, layouts=("native", "diffusers"))
    out = tmp_path_factory.mktemp("layouts")
    built = build(recipe, out, ["onnx"], ["int4"]) + build(recipe, out, ["openvino"], ["fp32"])
    assert all(one.report.ok and one.report.images for one in built)
    return {one.path.name: one.path for one in built}


def test_native_bytes_do_not_change(folders: dict[str, Path], tiny_package: Path) -> None:
    """A package that is built beside another layout is the one that is built alone."""
    digests = [(p / "manifest.json").read_bytes() for p in (folders["onnx-int4"], tiny_package)]
    assert digests[0] == digests[1]
    again = json.loads((folders["onnx-int4-diffusers"] / "fourstep.json").read_text())
    assert again["origin"]["recipe_sha256"] != json.loads(digests[0])["origin"]["recipe_sha256"]


def test_codes_are_the_same_in_both_layouts(folders: dict[str, Path]) -> None:
    """Every large weight of the native graphs lies in the other layout's, bit for bit."""
    import onnx

    def values(*files: Path) -> set[bytes]:
        models = [onnx.load(str(file)) for file in files]
        return {t.raw_data for m in models for t in m.graph.initializer if len(t.raw_data) > 999}

    native = folders["onnx-int4"] / "graphs"
    ours = values(*(native / n / f"{n}.onnx" for n in ("conditioner", "denoiser")))
    theirs = values(folders["onnx-int4-diffusers"] / "transformer" / "model.onnx")
    assert ours and ours <= theirs


def test_a_folder_is_signed_and_has_a_bill(folders: dict[str, Path], tmp_path: Path) -> None:
    """As a package is: verified here and by the library, opened by nobody when it was changed."""
    from tests.test_trust import fourstep, library, mistake, write_keys

    folder = Path(shutil.copytree(folders["openvino-fp32-diffusers"], tmp_path / "folder"))
    private, public = write_keys(tmp_path)
    mistake(fourstep("verify", folder, "--trusted", public), "is not signed", code=1)
    told = fourstep("sign", folder, "--key", private, "--json")
    assert json.loads(told.stdout)["files"] == len(check_layout(folder).files) + 1
    assert fourstep("verify", folder, "--trusted", public).exit_code == 0
    assert "package: signed by key " in fourstep("inspect", folder).stdout
    signature = folder / "model.sig"
    typed = ("verify", "key", folder, "--signature", signature, "--public_key", public)
    found = library(*typed)
    assert found.returncode == 0, found.stderr
    told = fourstep("bom", folder, "-o", tmp_path / "bill.json", "--json")
    raw = json.loads((tmp_path / "bill.json").read_text())
    digests = {c["name"]: c["hashes"][0]["content"] for c in raw["components"] if "hashes" in c}
    assert {f.path: f.sha256 for f in check_layout(folder).files}.items() <= digests.items()
    for file in ("fourstep.json", "model_index.json"):
        before = (folder / file).read_bytes()
        (folder / file).write_bytes(before + b" ")
        wrong = f"{file}: is not what was signed"
        mistake(fourstep("verify", folder, "--trusted", public), wrong, code=1)
        (folder / file).write_bytes(before)
    (folder / "more").write_bytes(b"")
    mistake(fourstep("verify", folder, "--trusted", public), "more: was not signed", code=1)
    mistake(fourstep("sign", folder, "--key", private), "more: is not in the manifest")


def test_a_folder_is_whole_and_says_so(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = folders["openvino-fp32-diffusers"]
    found = check_layout(folder)
    assert found.clients == ("OpenVINO GenAI", "optimum-intel")
    assert found.timesteps == pytest.approx((10, 9, 7.5, 5)) and found.starts_from_pictures
    listed = {file.path for file in found.files} | {"fourstep.json"}
    assert listed == {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert "LICENSE" in listed and "recipe.json" in listed
    result = CliRunner().invoke(main, ["verify", str(folder)])
    assert result.exit_code == 0 and "for OpenVINO GenAI, optimum-intel" in result.output

    damaged = Path(shutil.copytree(folder, tmp_path / "damaged"))
    values = damaged / "transformer" / "openvino_model.bin"
    content = bytearray(values.read_bytes())
    content[100] ^= 1
    values.write_bytes(content)
    result = CliRunner().invoke(main, ["verify", str(damaged)])
    assert result.exit_code == 1 and "openvino_model.bin" in result.output
    shown = CliRunner().invoke(main, ["inspect", str(folder)])
    assert shown.exit_code == 0 and "layout diffusers, for OpenVINO GenAI" in shown.output
    assert "pictures are not marked" in shown.output and "conditioner and denoiser" in shown.output


def test_what_is_for_native_packages_alone_says_so(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder, out = str(folders["openvino-fp32-diffusers"]), str(tmp_path / "out")
    commands = {
        "run": ["a red circle"],
        "bench": [],
        "bundle": ["--for", "web", "-o", out],
        "pack": ["--for", "ota", "-o", out],
    }
    for command, rest in commands.items():
        result = CliRunner().invoke(main, [command, folder, *rest])
        assert result.exit_code == 2, command
        assert "in diffusers layout, for OpenVINO GenAI" in result.output, command


def test_a_marked_folder_says_so(tiny_recipe: Recipe, tmp_path: Path) -> None:
    mark = MarkChoice(0x1A2B3C4D, KEY_OF_MARKS)
    recipe = replace(tiny_recipe, layouts=("diffusers",), prompts=(), mark=mark)
    (built,) = build(recipe, tmp_path, ["onnx"], ["int8"])
    assert check_layout(built.path).mark == mark.entry
    shown = CliRunner().invoke(main, ["inspect", str(built.path)])
    assert "pictures are marked: payload 1a2b3c4d" in shown.output


def test_a_folder_is_kept_and_has_the_same_bytes(
    folders: dict[str, Path], tiny_recipe: Recipe, tmp_path: Path
) -> None:
    recipe = replace(tiny_recipe, layouts=("diffusers",))
    folder = folders["openvino-fp32-diffusers"]
    before = (folder / "fourstep.json").stat().st_mtime_ns
    (kept,) = build(recipe, folder.parent, ["openvino"], ["fp32"])
    assert kept.path == folder and (folder / "fourstep.json").stat().st_mtime_ns == before
    (again,) = build(replace(recipe, prompts=()), tmp_path, ["openvino"], ["fp32"])
    first, second = check_layout(folder), check_layout(again.path)
    differing = {"recipe.json"}  # which names the golden prompts
    assert [f for f in first.files if f.path not in differing] == [
        f for f in second.files if f.path not in differing
    ]


def diffusers_latents(
    checkpoint: str,
    prompt: str,
    size: tuple[int, int],
    t5_tokens: int,
    seed: int,
    **components: None,
) -> tuple[list[np.ndarray], np.ndarray]:
    """The latents after each step and the picture of diffusers in float32, on SIGMAS."""
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    pipeline = StableDiffusion3Pipeline.from_pretrained(
        checkpoint, torch_dtype=torch.float32, **components
    )
    pipeline.set_progress_bar_config(disable=True)
    shift = 2.004020116745039  # with the last sigma given, exactly SIGMAS
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(1000, shift, shift_terminal=0.5)
    latents: list[np.ndarray] = []

    def note(_: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        latents.append(values["latents"].numpy().copy())
        return values

    picture = pipeline(
        prompt,
        num_inference_steps=4,
        guidance_scale=1.0,
        width=size[0],
        height=size[1],
        max_sequence_length=t5_tokens,
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
        callback_on_step_end=note,
    ).images[0]
    return latents, np.round(picture * 255).astype(np.uint8)


@pytest.mark.parametrize("prompt", [PROMPT, LONG])
def test_openvino_genai_draws_what_diffusers_draws(
    folders: dict[str, Path], tiny_folder: Path, prompt: str
) -> None:
    """Latent by latent, called with nothing but steps and guidance; long prompts keep their end."""
    genai = pytest.importorskip("openvino_genai", reason="pip install 'fourstep[clients]'")
    folder = folders["openvino-fp32-diffusers"]
    pipeline = genai.Text2ImagePipeline(str(folder), "CPU", INFERENCE_PRECISION_HINT="f32")
    latents: list[np.ndarray] = []

    def note(step: int, steps: int, latent: Any) -> bool:
        latents.append(np.array(latent.data))
        return False

    settings = {"num_inference_steps": 4, "guidance_scale": 1.0, "width": 64, "height": 48}
    found = pipeline.generate(
        prompt, **settings, generator=genai.TorchGenerator(3), callback=note
    ).data[0]
    right, picture = diffusers_latents(str(tiny_folder), prompt, (64, 48), 24, 3)
    assert [snr_db(a, b) >= 60 for a, b in zip(latents, right, strict=True)] == [True] * 4
    assert psnr_db(found, picture) >= 50
    other = pipeline.generate(prompt, **settings | {"num_inference_steps": 7}).data[0]
    assert not other.any()  # black, and not a wrong picture


@pytest.mark.parametrize("scheme", ["int8", "int8-w8a8", "fp16"])
def test_the_vaes_last_convolution_is_the_checkpoints_own(tiny_recipe: Recipe, scheme: str) -> None:
    """Every value of the picture comes from it; the other weights keep their codes."""
    model = trace_model(replace(tiny_recipe, cut=replace(tiny_recipe.cut, t5=False)), 0, Progress())
    native = quantize_all(model.programs, tiny_recipe.scheme(scheme))["vae_decoder"]
    spared = as_in_checkpoint(native, LAST)
    if scheme == "fp16":
        assert spared is native
        return
    assert native.formats[LAST].name == "int8" and spared.formats[LAST].name == "fp32"
    others = {name: form for name, form in native.formats.items() if name != LAST}
    assert others == {name: form for name, form in spared.formats.items() if name != LAST}
    kept = [source for source in native.tensors.values() if source in spared.tensors.values()]
    assert len(kept) == len(native.tensors) - 2  # its codes and its scales
    weights, latent = Weights(model.checkpoint), np.ones(native.inputs[0].shape, np.float32)
    plain = torch_session(model.unrounded["vae_decoder"], weights)({"latent": latent})["image"]
    errors = [
        relative_error(torch_session(program, weights)({"latent": latent})["image"], plain)
        for program in (native, spared)
    ]
    assert 0 < errors[1] < errors[0]


UNFIT = {
    "[schedule] mode": lambda r: replace(r, mode="renoise"),
    "[schedule] guidance": lambda r: r.with_guidance(Guidance(4.0)),
    "[build] denoiser_parts": lambda r: replace(r, denoiser_parts=2),
    "[text] t5_parts": lambda r: replace(r, t5_parts=2),
    "[image] sizes": lambda r: replace(r, further_sizes=(r.sizes[0],)),
}


@pytest.mark.parametrize("key", UNFIT)
def test_what_no_client_does_is_refused(tiny_recipe: Recipe, tmp_path: Path, key: str) -> None:
    recipe = UNFIT[key](replace(tiny_recipe, layouts=("diffusers",)))
    with pytest.raises(InputError) as raised:
        build(recipe, tmp_path, ["openvino"], ["int8"])
    assert key in str(raised.value) and "'diffusers'" in str(raised.value)


def test_a_layout_needs_a_backend_that_it_is_made_of(tiny_recipe: Recipe) -> None:
    with pytest.raises(InputError, match="made of graphs of openvino or onnx, not of coreml"):
        refuse_unfit(tiny_recipe, "diffusers", ("coreml",))


def test_an_uneven_schedule_starts_from_no_picture(even: Cutting, uneven: Cutting) -> None:
    """A client would add noise for its own sigmas: there is no encoder to do it with."""
    assert "vae_encoder" in even[1] and "vae_encoder" not in uneven[1]

"""The apple-swift layout: ports and files of Apple's pipeline, and its order of calls."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exporter.backends import load
from exporter.backends.contract import SessionOptions
from exporter.build.model import Model, trace_model
from exporter.build.pipeline import build
from exporter.drawing.text import PromptCut
from exporter.errors import InputError
from exporter.layouts import load_layout
from exporter.layouts.apple_swift import DECODER, MAKER, MMDIT, UNKNOWN
from exporter.package.layout import check_layout
from exporter.package.measures import psnr_db, snr_db
from exporter.package.pixels import to_pixels
from exporter.progress import Progress
from exporter.quantize.program import quantize_all
from exporter.recipe.recipe import Recipe

PROMPT, SEED = "two red circles left of a blue square", 7
Sizes = dict[str, tuple[int, ...]]
WIDE: dict[str, tuple[Sizes, Sizes]] = {  # as the pipeline has them, whatever the checkpoint
    "TextEncoder": (
        {"input_ids": (1, 77)},
        {"hidden_embeds": (1, 77, 768), "pooled_outputs": (1, 768)},
    ),
    "TextEncoder2": (
        {"input_ids": (1, 77)},
        {"hidden_embeds": (1, 77, 1280), "pooled_outputs": (1, 1280)},
    ),
    "TextEncoderT5": (
        {"input_ids": (1, 77), "attention_mask": (1, 77)},
        {"encoder_hidden_states": (1, 4096, 1, 77)},
    ),
    MMDIT: (
        {
            "latent_image_embeddings": (2, 16, 6, 8),
            "timestep": (2,),
            "token_level_text_embeddings": (2, 4096, 1, 154),
            "pooled_text_embeddings": (2, 2048, 1, 1),
        },
        {"denoiser_output": (2, 16, 6, 8)},
    ),
    DECODER: ({"z": (1, 16, 6, 8)}, {"image": (1, 3, 48, 64)}),
}


@pytest.fixture(scope="module")
def model(tiny_recipe: Recipe) -> Model:
    return trace_model(tiny_recipe, 0, Progress())


@pytest.fixture(scope="module")
def folder(tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = replace(tiny_recipe, layouts=("apple-swift",))
    (built,) = build(recipe, tmp_path_factory.mktemp("apple"), ["coreml"], ["fp32"])
    assert built.report.ok and built.report.images
    return built.path


def called(folder: Path, name: str, **given: Any) -> dict[str, np.ndarray]:
    """What a model gives, run by the evaluator."""
    backend = load("coreml")
    session = backend.open_graph(folder / f"{name}.mlpackage", {}, SessionOptions("float32"))
    return session({key: np.asarray(value, np.float32) for key, value in given.items()})


def test_the_files_are_those_that_the_pipeline_opens(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert {f"{name}.mlpackage" for name in WIDE} <= names
    assert {"vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"} <= names
    assert (folder / "merges.txt").read_text().endswith("\n")  # its reader drops the last line
    assert "coremlcompiler" in (folder / "compile_on_mac.sh").read_text()
    found = check_layout(folder)
    assert found.clients == ("Apple's StableDiffusion3Pipeline",)
    assert not found.starts_from_pictures
    assert found.timesteps == pytest.approx((1000, 857.69, 602.15, 8.93), abs=5e-3)


@pytest.mark.parametrize("name", WIDE)
def test_coremltools_reads_the_ports_of_the_pipeline(folder: Path, name: str) -> None:
    """Names, sizes, and float32 on either side: the pipeline feeds and reads no other type."""
    from coremltools.models import MLModel
    from coremltools.proto.FeatureTypes_pb2 import ArrayFeatureType

    spec = MLModel(str(folder / f"{name}.mlpackage"), skip_model_load=True).get_spec()
    for ports, wide in zip(
        (spec.description.input, spec.description.output), WIDE[name], strict=True
    ):
        arrays = {port.name: port.type.multiArrayType for port in ports}
        assert {key: tuple(array.shape) for key, array in arrays.items()} == wide
        assert all(array.dataType == ArrayFeatureType.FLOAT32 for array in arrays.values())


def test_coremltools_loads_the_program(folder: Path) -> None:
    from coremltools.converters.mil.frontend.milproto.load import load as load_program
    from coremltools.models import MLModel

    model = MLModel(str(folder / f"{MMDIT}.mlpackage"), skip_model_load=True)
    program = load_program(model.get_spec(), 8, model.weights_dir)
    assert set(program.functions["main"].inputs) == set(WIDE[MMDIT][0])


def test_apples_order_of_calls_draws_what_diffusers_draws(
    folder: Path, model: Model, tiny_folder: Path
) -> None:
    """Latent by latent, from the pipeline's noise: NumPy's generator of that seed."""
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    noise = np.random.RandomState(SEED).standard_normal((1, 16, 6, 8)).astype(np.float32)
    ids = {n: f.encoder(n)(PROMPT).astype(np.int32) for n, f in model.tokenizers.items()}
    schedule = MAKER.schedule(model.schedule.sigmas)
    entries = {name: file.entry for name, file in model.tokenizers.items()}
    programs = quantize_all(model.programs, model.recipe.scheme("fp32"))
    form = load_layout("apple-swift").forms["coreml"]
    graphs = MAKER.graphs(programs, entries, schedule, form)
    found = MAKER.draw(
        lambda name, given: called(folder, name, **given),
        {graph.folder: graph.program for graph in graphs},
        ids, noise, schedule,
    )  # fmt: skip
    pipeline = StableDiffusion3Pipeline.from_pretrained(str(tiny_folder), torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    shift = 2.004020116745039  # with the last sigma given, the recipe's sigmas
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(1000, shift, shift_terminal=0.5)
    right: list[np.ndarray] = []

    def note(_: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        right.append(values["latents"].numpy().copy())
        return values

    picture = pipeline(
        PROMPT, num_inference_steps=4, guidance_scale=1.0, width=64, height=48,
        max_sequence_length=24, latents=torch.from_numpy(noise), output_type="np",
        callback_on_step_end=note,
    ).images[0]  # fmt: skip
    assert min(map(snr_db, found.latents, right)) >= 60
    pixels = to_pixels(found.decoded, what="the picture")
    assert psnr_db(pixels, np.round(picture * 255).astype(np.uint8)) >= 50


def test_any_guidance_draws_the_prompt(folder: Path) -> None:
    """Both of two pictures are the first one's, whatever the second is given."""
    random = np.random.default_rng(0)
    given = {key: random.standard_normal(shape) for key, shape in WIDE[MMDIT][0].items()}
    schedule = MAKER.schedule((1.0, 0.9, 0.75, 0.5, 0.0))
    given["timestep"] = np.full(2, schedule.timesteps[1])
    found = called(folder, MMDIT, **given)["denoiser_output"]
    assert np.array_equal(found[0], found[1])
    other = {key: np.stack([value[0], -value[1]]) for key, value in given.items()}
    assert np.array_equal(called(folder, MMDIT, **other)["denoiser_output"], found)
    wrong = called(folder, MMDIT, **given | {"timestep": np.full(2, 700.0)})["denoiser_output"]
    assert np.abs(wrong).max() > UNKNOWN / 100  # noise, and not a wrong picture


def test_ids_come_as_floats(folder: Path, model: Model) -> None:
    """A graph in fp16 would round those above 2048."""
    ids = model.tokenizers["t5"].encoder("t5")("a red circle")
    padded = np.pad(ids, ((0, 0), (0, 77 - ids.shape[1])))
    masks = (np.zeros((1, 77)), np.ones((1, 77)))
    one, other = (
        called(folder, "TextEncoderT5", input_ids=padded, attention_mask=mask) for mask in masks
    )
    assert np.array_equal(one["encoder_hidden_states"], other["encoder_hidden_states"])
    states = one["encoder_hidden_states"]
    assert states[:, :96, 0, :24].any() and not states[:, 96:].any() and not states[..., 24:].any()


def test_a_graph_in_fp16_reads_ids_as_float32(tiny_recipe: Recipe, tmp_path: Path) -> None:
    recipe = replace(tiny_recipe, layouts=("apple-swift",), prompts=())
    recipe = replace(recipe, cut=replace(recipe.cut, t5=False))
    (built,) = build(recipe, tmp_path, ["coreml"], ["int8"])
    assert not (built.path / "TextEncoderT5.mlpackage").exists()
    from coremltools.models import MLModel

    spec = MLModel(str(built.path / "TextEncoder.mlpackage"), skip_model_load=True).get_spec()
    function = spec.mlProgram.functions["main"]
    first = next(
        o for o in function.block_specializations[function.opset].operations
        if any(a.name == "input_ids" for i in o.inputs.values() for a in i.arguments)
    )  # fmt: skip
    assert first.type == "cast" and first.outputs[0].type.tensorType.dataType == 23  # int32


@pytest.mark.filterwarnings(f"ignore::{PromptCut.__module__}.{PromptCut.__name__}")
def test_what_the_pipeline_has_no_place_for_is_refused(tiny_recipe: Recipe, tmp_path: Path) -> None:
    long = replace(tiny_recipe.cut, t5_tokens=100)
    recipe = replace(tiny_recipe, layouts=("apple-swift",), prompts=(), cut=long)
    with pytest.raises(InputError, match=r"\[text\] t5_tokens: the pipeline .* keeps 77 tokens"):
        build(recipe, tmp_path, ["coreml"], ["int8"])
    assert not list(tmp_path.glob("coreml-*"))

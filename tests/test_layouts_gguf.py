"""The gguf layout: which formats have a type of the same numbers, and what is read back."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize

from exporter.build.model import Model, trace_model
from exporter.build.pipeline import build
from exporter.build.reference import torch_session
from exporter.calibrate.weights import Weights
from exporter.checkpoint.names import mmdit_names
from exporter.checkpoint.single_file import Described, open_part
from exporter.cli import main
from exporter.errors import CheckFailed, InputError
from exporter.layouts.gguf import check_gguf, q4_0, refuse_formats, write_gguf
from exporter.package.layout import check_layout
from exporter.package.measures import relative_error
from exporter.package.names import MMDIT
from exporter.progress import Progress
from exporter.quantize.formats import parse_format
from exporter.quantize.nearest import decode, encode
from exporter.quantize.program import quantize_all
from exporter.recipe.recipe import MarkChoice, Recipe
from tests.conftest import KEY_OF_MARKS


@pytest.fixture(scope="module")
def wide(
    tiny_folder: Path, tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> Recipe:
    """A checkpoint of the widths that stable-diffusion.cpp has, in two layers."""
    from diffusers import SD3Transformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    folder = tmp_path_factory.mktemp("wide") / "checkpoint"
    shutil.copytree(tiny_folder, folder)
    torch.manual_seed(2)
    for name, width in (("text_encoder", 768), ("text_encoder_2", 1280)):
        config = CLIPTextConfig(
            vocab_size=1000, hidden_size=width, intermediate_size=32, projection_dim=width,
            num_hidden_layers=2, num_attention_heads=4, eos_token_id=2,
        )  # fmt: skip
        shutil.rmtree(folder / name)
        CLIPTextModelWithProjection(config).save_pretrained(folder / name)
    transformer = SD3Transformer2DModel(
        sample_size=8, num_layers=2, attention_head_dim=64, num_attention_heads=2,
        joint_attention_dim=4096, caption_projection_dim=128, pooled_projection_dim=2048,
        pos_embed_max_size=10, dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.05)
    shutil.rmtree(folder / "transformer")
    transformer.save_pretrained(folder / "transformer")
    cut = replace(tiny_recipe.cut, t5=False)
    plain = replace(tiny_recipe.calibration, methods=())
    return replace(
        tiny_recipe, checkpoint=str(folder), cut=cut, prompts=(), layouts=("gguf",),
        calibration=plain,
    )  # fmt: skip


@pytest.fixture(scope="module")
def model(wide: Recipe) -> Model:
    return trace_model(wide, 0, Progress())


@pytest.fixture(scope="module")
def folder(wide: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    (built,) = build(wide, tmp_path_factory.mktemp("gguf"), ["onnx"], ["int4"])
    assert built.layout == "gguf" and built.path.name == "gguf-int4"
    return built.path


@pytest.mark.parametrize("group", [32, 64, 128])
def test_int4_in_groups_is_q4_0_to_the_last_bit(group: int) -> None:
    torch.manual_seed(group)
    weight = torch.randn(24, 256) * torch.rand(24, 1)
    weight[3] = 0.0
    weight[5, :group] = -weight[5, :group].abs()  # its scale is above 0, others' below
    encoded = encode(weight, parse_format(f"int4-g{group}"))
    found = dequantize(q4_0(encoded), GGMLQuantizationType.Q4_0)
    assert np.array_equal(found, decode(encoded).numpy())


FITS = ("int4-g32", "int4-g64", "int4-g128", "fp16", "fp32")
OTHERS = ("int4-g16", "int4-g64-asym", "int8", "int2-g64", "pal4", "pal6", "w8a8")


@pytest.mark.parametrize("name", [*FITS, *OTHERS])
def test_what_fits_is_known_before_anything_is_computed(model: Model, name: str) -> None:
    """A scheme that gives the MMDiT's linear layers that format."""
    from exporter.quantize.formats import Rule, Scheme

    form = parse_format(name)
    rules = tuple(
        Rule(graph, "*", form, roles=("linear",))
        for graph in (("denoiser",) if form.rounds_inputs else MMDIT)
    )
    programs = quantize_all(model.programs, Scheme(name, rules))
    mmdit = {graph: programs[graph] for graph in MMDIT}
    if name in FITS:
        refuse_formats(name, mmdit)
        return
    with pytest.raises(InputError, match="GGUF has no type of the same numbers.*build int4"):
        refuse_formats(name, mmdit)


def test_the_file_has_stabilitys_names_and_the_codes(folder: Path, wide: Recipe) -> None:
    file = next(folder.glob("*.gguf"))
    tensors = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    assert set(tensors) <= set(mmdit_names(tensors).table)
    kinds = {name: tensor.tensor_type.name for name, tensor in tensors.items()}
    assert kinds["joint_blocks.0.x_block.attn.qkv.weight"] == "Q4_0"
    assert kinds["joint_blocks.1.context_block.adaLN_modulation.1.weight"] == "Q4_0"
    assert kinds["context_embedder.weight"] == kinds["pos_embed"] == "F32"
    assert list(tensors["pos_embed"].shape) == [128, 100, 1]
    found = check_layout(folder)
    assert found.clients == ("stable-diffusion.cpp", "ComfyUI-GGUF")
    result = CliRunner().invoke(main, ["inspect", str(folder)])
    assert result.exit_code == 0 and "conditioner and denoiser" in result.output


def test_read_back_it_computes_what_the_native_codes_compute(
    folder: Path, wide: Recipe, model: Model
) -> None:
    """The file as a checkpoint's transformer, in float32, against the native int4 program."""
    native = model
    quantized = quantize_all(native.programs, wide.scheme("int4"))
    file = next(folder.glob("*.gguf"))
    component = open_part(file, "transformer", Described(Path(wide.checkpoint), None))
    weights = Weights(native.checkpoint)
    parts = {**native.checkpoint.components, "transformer": component}
    again = Weights(replace(native.checkpoint, components=parts))
    random = np.random.default_rng(0)
    for name in MMDIT:
        given = {
            port.name: random.standard_normal(port.shape, np.float32)
            for port in native.programs[name].inputs
        }
        plain = quantize_all(native.programs, wide.scheme("fp32"))[name]
        expected = torch_session(quantized[name], weights)(given)
        found = torch_session(plain, again)(given)
        assert max(relative_error(found[key], expected[key]) for key in expected) < 1e-6


def test_a_damaged_file_is_read_back_as_other_numbers(
    wide: Recipe, model: Model, tmp_path: Path
) -> None:
    programs = quantize_all(model.programs, wide.scheme("int4"))
    file = tmp_path / "some.gguf"
    kept = write_gguf(file, {name: programs[name] for name in MMDIT}, Weights(model.checkpoint))
    check_gguf(file, kept)
    content = bytearray(file.read_bytes())
    content[-40] ^= 16
    file.write_bytes(content)
    with pytest.raises(CheckFailed, match="is read back as other numbers"):
        check_gguf(file, kept)


def test_what_it_has_no_place_for_is_refused(
    wide: Recipe, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="int8: .* GGUF has no type of the same numbers"):
        build(wide, tmp_path, ["onnx"], ["int8"])
    narrow, lines = replace(wide, checkpoint=tiny_recipe.checkpoint), list[str]()
    with pytest.raises(InputError, match="64 channels for each layer.*96 channels in 3 layers"):
        build(narrow, tmp_path, ["onnx"], ["int4"], Progress(lambda line, *_: lines.append(line)))
    assert not lines  # before anything was traced
    biased = replace(wide, calibration=replace(wide.calibration, methods=("bias",)))
    with pytest.raises(InputError, match="'bias' gives adaLN a bias for each step"):
        build(biased, tmp_path, ["onnx"], ["int4"])
    marked = replace(wide, mark=MarkChoice(7, KEY_OF_MARKS))
    with pytest.raises(InputError, match=r"\[mark\] does not go with .*'gguf': it has no decoder"):
        build(marked, tmp_path, ["onnx"], ["int4"])
    assert not list(tmp_path.glob("gguf-*"))

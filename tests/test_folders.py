"""Diffusers folders as people have them: variants, shards, links, pipelines, configurations."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from exporter.build.pipeline import build
from exporter.checkpoint.component import CheckpointRemark
from exporter.checkpoint.configs import decisive
from exporter.checkpoint.open import Checkpoint, open_checkpoint
from exporter.checkpoint.weights import choose, weight_sets
from exporter.cli import main
from exporter.errors import InputError
from exporter.network.assemble import cut_graphs
from exporter.recipe.recipe import Recipe
from tests.conftest import SMALL, edit_json

STEMS = {
    "transformer": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
    "text_encoder_3": "model",
}


def refused(folder: Path, message: str, variant: str | None = None) -> None:
    with pytest.raises(InputError, match=message) as caught:
        open_checkpoint(str(folder), variant=variant)
    assert "\n" not in str(caught.value)


def renamed(folder: Path, variant: str) -> None:
    """Every component's weights under a variant's name."""
    for name, stem in STEMS.items():
        file = folder / name / f"{stem}.safetensors"
        file.rename(file.with_name(f"{stem}.{variant}.safetensors"))


def sharded(folder: Path, variant: str, legacy: bool = False) -> None:
    """Every component's weights in two shards with an index, as diffusers and transformers do."""
    for name, stem in STEMS.items():
        file = folder / name / f"{stem}.safetensors"
        tensors, dot = load_file(file), f".{variant}" if variant else ""
        names = sorted(tensors)
        index: dict[str, str] = {}
        for part, keys in enumerate((names[::2], names[1::2]), 1):
            count = f"-{part:05}-of-00002"
            shard = f"{stem}{count}{dot}" if legacy else f"{stem}{dot}{count}"
            save_file({k: tensors[k] for k in keys}, file.with_name(f"{shard}.safetensors"))
            index |= dict.fromkeys(keys, f"{shard}.safetensors")
        end = f"safetensors{dot}.index.json" if legacy else f"safetensors.index{dot}.json"
        file.with_name(f"{stem}.{end}").write_text(json.dumps({"weight_map": index}))
        file.unlink()


def as_snapshot(folder: Path) -> None:
    """Every file a link to a blob, as in a hub's cache."""
    blobs = folder.parent / "blobs"
    blobs.mkdir()
    for number, file in enumerate(sorted(f for f in folder.rglob("*") if f.is_file())):
        blob = blobs / str(number)
        shutil.move(file, blob)
        file.symlink_to(blob)


def several(folder: Path) -> None:
    """Other variants beside the plain weights, which are the ones that count."""
    for name, stem in STEMS.items():
        file = folder / name / f"{stem}.safetensors"
        for variant, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
            tensors = {k: v.to(dtype) for k, v in load_file(file).items()}
            save_file(tensors, file.with_name(f"{stem}.{variant}.safetensors"))


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "variant": lambda folder: renamed(folder, "fp16"),
    "shards": lambda folder: sharded(folder, ""),
    "shards of a variant": lambda folder: sharded(folder, "fp16"),
    "shards of a variant, older": lambda folder: sharded(folder, "non_ema", legacy=True),
    "links": as_snapshot,
    "several variants": several,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_form_of_a_folder_is_the_same_checkpoint(
    tiny_copy: Path, tiny: Checkpoint, layout: str
) -> None:
    LAYOUTS[layout](tiny_copy)
    found = open_checkpoint(str(tiny_copy))
    assert found.digest == tiny.digest
    for name, component in tiny.components.items():
        other = found.component(name)
        assert other.config == component.config and set(other.tensors) == set(component.tensors)
        key = min(component.tensors)
        assert torch.equal(other.read(key), component.read(key))


def test_a_variant_in_shards_builds_the_same_bytes(
    tiny_copy: Path, tiny_recipe: Recipe, tiny_package: Path, tmp_path: Path
) -> None:
    sharded(tiny_copy, "fp16")
    for component in ("vae", "text_encoder"):  # of several, this one is asked for
        plain = tiny_copy / component / f"{STEMS[component]}.safetensors"
        save_file({"x": torch.zeros(1)}, plain)
    recipe = replace(tiny_recipe, checkpoint=str(tiny_copy), variant="fp16")
    (built,) = build(recipe, tmp_path / "out", ["onnx"], ["int4"])
    files = {f.relative_to(built.path): f for f in built.path.rglob("*") if f.is_file()}
    assert files and files.keys() == {
        f.relative_to(tiny_package) for f in tiny_package.rglob("*") if f.is_file()
    }
    for name, file in files.items():
        assert file.read_bytes() == (tiny_package / name).read_bytes(), name


def test_which_variant_is_meant(tiny_copy: Path) -> None:
    several(tiny_copy)
    transformer = tiny_copy / "transformer"
    stem = "diffusion_pytorch_model"

    def opened(variant: str | None = None) -> str:
        files = open_checkpoint(str(tiny_copy), variant=variant).component("transformer").files
        return ", ".join(file.name for file in files)

    assert opened() == f"{stem}.safetensors"
    assert opened("bf16") == f"{stem}.bf16.safetensors"
    refused(
        tiny_copy, "no component has weights of variant 'fp8'; variants here: bf16, fp16", "fp8"
    )
    (transformer / f"{stem}.safetensors").unlink()
    refused(tiny_copy, r'variants bf16, fp16; say .* in the recipe: \[model\] variant = "bf16"')
    assert opened("fp16") == f"{stem}.fp16.safetensors"
    (transformer / f"{stem}.bf16.safetensors").unlink()
    assert opened() == f"{stem}.fp16.safetensors"
    refused(
        tiny_copy, r"transformer: unknown variant 'bf16'; known: fp16; set it in \[model\]", "bf16"
    )


def test_a_component_without_the_variant_is_the_plain_one(tiny_copy: Path) -> None:
    """As in diffusers: T5 is often stored once, the others in several variants."""
    several(tiny_copy)
    (tiny_copy / "text_encoder_3" / "model.fp16.safetensors").unlink()
    said = "text_encoder_3: no weights of variant 'fp16'; the plain ones are read"
    with pytest.warns(CheckpointRemark, match=said):
        found = open_checkpoint(str(tiny_copy), variant="fp16")
    assert found.component("text_encoder_3").files[0].name == "model.safetensors"
    assert found.component("vae").files[0].name == "diffusion_pytorch_model.fp16.safetensors"
    shown = CliRunner().invoke(main, ["recipe", str(tiny_copy), "--variant", "fp16"])
    assert shown.exit_code == 0, shown.output
    (line,) = shown.stderr.splitlines()
    assert line.startswith("fourstep: warning: ") and said in line


def test_names_of_weights() -> None:
    names = [
        "model.fp16-00001-of-00002.safetensors",
        "model.fp16-00002-of-00002.safetensors",
        "model.safetensors.index.fp16.json",
        "model.safetensors",
        "model.fp16.bin",
        "config.json",
    ]
    found = {(s.variant, s.first, s.shards) for s in weight_sets(names)}
    assert found == {
        ("", "model.safetensors", ()),
        ("fp16", "model.safetensors.index.fp16.json", (names[0], names[1])),
    }
    assert choose(names, None, "here").first == "model.safetensors"


def test_shards_that_are_not_whole(tiny_copy: Path) -> None:
    sharded(tiny_copy, "fp16")
    index = tiny_copy / "vae" / "diffusion_pytorch_model.safetensors.index.fp16.json"
    shard = tiny_copy / "vae" / "diffusion_pytorch_model.fp16-00002-of-00002.safetensors"
    other = shard.with_name("diffusion_pytorch_model.fp16-00001-of-00002.safetensors")
    content = shard.read_bytes()
    shard.unlink()
    refused(tiny_copy, f"fp16.json: shard {shard.name} is missing; copy it here too")
    shutil.copyfile(other, shard)
    refused(tiny_copy, "is also in .*00001-of-00002.* the shards are not of one set")
    shard.write_bytes(content)
    index.unlink()
    refused(tiny_copy, "is one of several shards, and their index is missing")


def test_links_that_lead_nowhere(tiny_copy: Path) -> None:
    as_snapshot(tiny_copy)
    link = tiny_copy / "vae" / "diffusion_pytorch_model.safetensors"
    link.resolve().unlink()
    refused(tiny_copy, "diffusion_pytorch_model.safetensors: is a link to a file that is not there")


def test_what_git_leaves_in_place_of_weights(tiny_copy: Path) -> None:
    file = tiny_copy / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    refused(tiny_copy, "is a pointer of Git LFS and not the file itself: git lfs pull")


@pytest.mark.parametrize(
    "name",
    [
        "StableDiffusion3Img2ImgPipeline",
        "StableDiffusion3InpaintPipeline",
        "StableDiffusion3ControlNetPipeline",
        "StableDiffusion3ControlNetInpaintingPipeline",
        "StableDiffusion3PAGPipeline",
        "StableDiffusion3PAGImg2ImgPipeline",
        ["pipeline", "StableDiffusion3TurboPipeline"],
    ],
)
def test_other_pipelines_of_the_same_components(
    tiny_copy: Path, tiny: Checkpoint, name: object
) -> None:
    edit_json(
        tiny_copy / "model_index.json",
        _class_name=name,
        controlnet=["diffusers", "SD3ControlNetModel"],
        image_encoder=[None, None],
    )
    assert open_checkpoint(str(tiny_copy)).digest == tiny.digest


def test_every_pipeline_of_diffusers_with_these_components_is_known(tiny_copy: Path) -> None:
    import diffusers

    names = [n for n in dir(diffusers) if n.startswith("StableDiffusion3") and "Pipeline" in n]
    assert len(names) >= 7
    for name in names:
        edit_json(tiny_copy / "model_index.json", _class_name=name)
        open_checkpoint(str(tiny_copy), ["vae"])


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "StableDiffusion3", None, 3, [], [3]])
def test_pipelines_of_other_components(tiny_copy: Path, name: object) -> None:
    edit_json(tiny_copy / "model_index.json", _class_name=name)
    if name != "StableDiffusion3":
        refused(tiny_copy, "pipeline class .* is not supported; supported: 'StableDiffusion3Pipel")


@pytest.mark.parametrize(
    ("component", "name"),
    [
        ("text_encoder_3", "T5ForConditionalGeneration"),
        ("text_encoder_3", "MT5EncoderModel"),
        ("text_encoder", "CLIPTextModel"),
        ("text_encoder_2", "CLIPModel"),
    ],
)
def test_classes_that_hold_the_same(
    tiny_copy: Path, tiny: Checkpoint, component: str, name: str
) -> None:
    edit_json(tiny_copy / "model_index.json", **{component: ["transformers", name]})
    edit_json(tiny_copy / component / "config.json", architectures=[name])
    file = tiny_copy / component / "model.safetensors"
    more = "vision_model.x" if name == "CLIPModel" else "decoder.x"
    extra = {more: torch.zeros(1)} if component != "text_encoder" else {}
    save_file(load_file(file) | extra, file)
    found = open_checkpoint(str(tiny_copy))
    assert found.digest == tiny.digest
    cut_graphs(found, SMALL)


@pytest.mark.parametrize(
    ("component", "key", "value", "said"),
    [
        (
            "transformer",
            "_class_name",
            "FluxTransformer2DModel",
            "transformer is a FluxTransformer",
        ),
        ("vae", "_class_name", "AutoencoderDC", "vae is a AutoencoderDC; supported: AutoencoderKL"),
        ("text_encoder_3", "model_type", "umt5", "model_type = 'umt5': a T5 encoder is expected"),
        (
            "text_encoder_3",
            "quantization_config",
            {"quant_method": "bitsandbytes", "load_in_4bit": True},
            "quantization_config: bitsandbytes is not read; name the 16-bit checkpoint",
        ),
    ],
)
def test_configurations_of_other_networks(
    tiny_copy: Path, component: str, key: str, value: object, said: str
) -> None:
    edit_json(tiny_copy / component / "config.json", **{key: value})
    refused(tiny_copy, f"{component}.config.json: .*{said}")


def trimmed(folder: Path, component: str, drop: tuple[str, ...], **more: object) -> None:
    """Keys of a configuration left out, and others put in."""
    file = folder / component / "config.json"
    config = json.loads(file.read_text()) | more
    file.write_text(json.dumps({k: v for k, v in config.items() if k not in drop}))


def nested(folder: Path) -> None:
    """What transformers writes of a whole CLIP, of which a text encoder takes its part."""
    file = folder / "text_encoder" / "config.json"
    text = json.loads(file.read_text())
    file.write_text(json.dumps({"model_type": "clip", "projection_dim": 32, "text_config": text}))


FORMS: dict[str, Callable[[Path], None]] = {
    "older VAE": lambda f: trimmed(f, "vae", ("mid_block_add_attention", "latents_mean")),
    "older T5": lambda f: trimmed(f, "text_encoder_3", ("relative_attention_max_distance",)),
    "older CLIP": lambda f: trimmed(f, "text_encoder", ("max_position_embeddings", "hidden_act")),
    "out_channels": lambda f: trimmed(f, "transformer", (), out_channels=None),
    "newer keys": lambda f: trimmed(
        f, "text_encoder", ("torch_dtype",), dtype="bfloat16", rope_parameters=None
    ),
    "torch_dtype": lambda f: trimmed(f, "text_encoder_3", ("dtype",), torch_dtype="float16"),
    "marked defaults": lambda f: trimmed(
        f, "vae", (), mid_block_add_attention=7, _use_default_values=["mid_block_add_attention"]
    ),
    "aliases": lambda f: trimmed(f, "text_encoder_3", ("d_model",), hidden_size=96),
    "whole CLIP": nested,
    "a list of one id": lambda f: trimmed(f, "text_encoder", (), eos_token_id=[2]),
}


@pytest.mark.parametrize("form", FORMS)
def test_configurations_of_other_versions(tiny_copy: Path, tiny: Checkpoint, form: str) -> None:
    FORMS[form](tiny_copy)
    assert open_checkpoint(str(tiny_copy)).digest == tiny.digest


def test_a_nested_configuration_is_read_as_transformers_does() -> None:
    """Older ones leave out what is the class's default, and say the width of a CLIP outside."""
    from transformers import CLIPConfig, CLIPTextConfig

    plain = CLIPTextConfig().to_dict()
    text = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12)
    inside = {k: v for k, v in text.to_dict().items() if k not in plain or v != plain[k]}
    assert inside.keys() == {"hidden_size", "intermediate_size", "num_attention_heads"}
    whole = {"model_type": "clip", "projection_dim": 768, "text_config": inside}
    read = CLIPConfig.from_dict(dict(whole))
    found = decisive("CLIPTextModelWithProjection", whole)
    assert found.pop("projection_dim") == read.projection_dim == 768
    assert found == {key: getattr(read.text_config, key) for key in found}


def test_defaults_are_those_of_the_libraries() -> None:
    """What a key that is missing means, from the installed classes."""
    import inspect

    from diffusers import AutoencoderKL, SD3Transformer2DModel
    from transformers import CLIPTextConfig, T5Config

    from exporter.checkpoint.configs import KEYS, NESTED, REQUIRED

    for cls in (AutoencoderKL, SD3Transformer2DModel):
        defaults = {k: p.default for k, p in inspect.signature(cls).parameters.items()}
        for key, value in KEYS[cls.__name__].items():
            if value is not REQUIRED and key not in ("shift_factor", "out_channels"):
                assert value == (list(d) if isinstance(d := defaults[key], tuple) else d), key
    clip: dict[str, Any] = KEYS["CLIPTextModelWithProjection"] | NESTED  # type: ignore[operator]
    for config, values in ((CLIPTextConfig(), clip), (T5Config(), KEYS["T5EncoderModel"])):
        for key, value in values.items():
            if value is not REQUIRED:
                assert value == getattr(config, key), key


@pytest.mark.parametrize("shift", [None, "absent", 0.0])
def test_a_vae_without_a_shift(tiny_copy: Path, shift: object) -> None:
    drop = ("shift_factor",) if shift == "absent" else ()
    trimmed(tiny_copy, "vae", drop, shift_factor=shift)
    assert open_checkpoint(str(tiny_copy)).component("vae").number("shift_factor") == 0.0


@pytest.mark.parametrize("names", [("shared",), ("encoder.embed_tokens",), ("both",)])
def test_the_embedding_of_t5_under_either_name(
    tiny_copy: Path, tiny: Checkpoint, names: tuple[str, ...]
) -> None:
    file = tiny_copy / "text_encoder_3" / "model.safetensors"
    tensors = load_file(file)
    embedding = tensors.pop("shared.weight")
    if names != ("encoder.embed_tokens",):
        tensors["shared.weight"] = embedding
    if names != ("shared",):
        tensors["encoder.embed_tokens.weight"] = embedding.clone()
    save_file(tensors, file)
    assert open_checkpoint(str(tiny_copy)).digest == tiny.digest


ONE_OF_EACH = {
    "transformer": "transformer_blocks.0.attn.to_q.weight",
    "vae": "decoder.conv_in.weight",
    "text_encoder": "text_model.encoder.layers.0.mlp.fc1.weight",
    "text_encoder_2": "text_projection.weight",
    "text_encoder_3": "encoder.block.0.layer.0.SelfAttention.q.weight",
}


@pytest.mark.parametrize("form", ["plain", "shards of a variant"])
@pytest.mark.parametrize("component", ONE_OF_EACH)
@pytest.mark.parametrize("fault", ["too many", "too few", "another shape", "another name"])
def test_tensors_that_are_not_those_of_the_configuration(
    tiny_copy: Path, component: str, fault: str, form: str
) -> None:
    file, key = tiny_copy / component / f"{STEMS[component]}.safetensors", ONE_OF_EACH[component]
    tensors = load_file(file)
    value = tensors[key]
    if fault != "too many":
        del tensors[key]
    if fault == "another shape":
        tensors[key] = value[:-1].clone()
    if fault in ("too many", "another name"):
        tensors["proj.new"] = value.clone()
    save_file(tensors, file)
    if form != "plain":
        LAYOUTS[form](tiny_copy)
    with pytest.raises(InputError) as caught:
        cut_graphs(open_checkpoint(str(tiny_copy)), SMALL)
    said = str(caught.value)
    assert component in said and "\n" not in said and len(said) < 500
    assert ("proj.new" in said) == (fault in ("too many", "another name"))
    assert (f"'{key}'" in said) == (fault != "too many")


def test_several_mistakes_are_listed_shortly(tiny_copy: Path) -> None:
    file = tiny_copy / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    save_file({f"model.{key}": value for key, value in tensors.items()}, file)
    checkpoint = open_checkpoint(str(tiny_copy))
    with pytest.raises(InputError, match=r"tensor '\S+' is missing; .*; \d+ more are missing") as c:
        cut_graphs(checkpoint, SMALL)
    assert "it holds 'model.context_embedder.bias' and" in str(c.value)
    assert len(str(c.value)) < 500

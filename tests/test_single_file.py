"""Checkpoints of files that are no diffusers folder: single files, parts from elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from exporter.build.licence import licences_of
from exporter.build.pipeline import build
from exporter.checkpoint.component import COMPONENTS, CheckpointRemark
from exporter.checkpoint.configs import decisive
from exporter.checkpoint.infer import only_guessed
from exporter.checkpoint.open import Checkpoint, open_checkpoint
from exporter.errors import InputError
from exporter.files.read import read_json
from exporter.network.assemble import cut_graphs
from exporter.recipe.recipe import Recipe, read_recipe
from tests import single_files
from tests.conftest import ROOT, SHAPES, SMALL


def test_a_part_from_another_folder_is_the_checkpoints_own(
    tiny: Checkpoint, tiny_folder: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_folder, tmp_path / "base"))
    shutil.rmtree(base / "vae")
    shutil.rmtree(base / "text_encoder_3")
    with pytest.raises(InputError, match=r"'vae' \(AutoencoderKL\) is missing; name its file or"):
        open_checkpoint(str(base))
    parts = {name: str(tiny_folder / name) for name in ("vae", "text_encoder_3")}
    assert open_checkpoint(str(base), parts=parts).digest == tiny.digest


def test_tokenizers_from_another_folder(
    tiny: Checkpoint, tiny_folder: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_folder, tmp_path / "base"))
    for name in ("tokenizer", "tokenizer_2", "tokenizer_3"):
        shutil.rmtree(base / name)
    with pytest.raises(InputError, match="'tokenizer' is missing; name the folder .* tokenizers"):
        open_checkpoint(str(base)).tokenizer_folder("tokenizer")
    opened = open_checkpoint(str(base), tokenizers=str(SHAPES))
    assert opened.digest == tiny.digest
    assert opened.tokenizer_folder("tokenizer_2") == SHAPES / "tokenizer_2"


def test_licences_of_parts_travel_too(tiny_folder: Path, tmp_path: Path) -> None:
    """The checkpoint's own first; one that it has, whatever it is called, only once."""
    texts = {"a": "test weights\n", "b": "others\n"}
    parts = {}
    for (where, text), name in zip(texts.items(), ("text_encoder", "vae"), strict=True):
        shutil.copytree(tiny_folder / name, tmp_path / where / name)
        (tmp_path / where / "LICENSE").write_text(text)
        shutil.copyfile(tiny_folder / "model_index.json", tmp_path / where / "model_index.json")
        parts[name] = str(tmp_path / where / name)
    opened = open_checkpoint(str(tiny_folder), parts=parts)
    assert {name: file.read_text() for name, file in licences_of(opened).items()} == {
        "LICENSE": "test weights\n",
        "LICENSE-vae": "others\n",
    }
    alone = tmp_path / "b" / "vae" / "diffusion_pytorch_model.safetensors"
    (alone.parent / "NOTICE.md").write_text("more\n")
    opened = open_checkpoint(str(tiny_folder), parts={"vae": str(alone)})
    assert list(licences_of(opened)) == ["LICENSE", "NOTICE.md"]


def test_a_part_that_is_not_used_is_refused(tiny_folder: Path) -> None:
    parts = {"text_encoder_3": str(tiny_folder / "text_encoder_3")}
    with pytest.raises(InputError, match="text_encoder_3: given as text_encoder_3, which is not"):
        open_checkpoint(str(tiny_folder), ("transformer", "vae"), parts=parts)


def recipe_with(folder: Path, lines: str, t5: bool = True) -> Path:
    """shapes-flash's recipe with more keys in ``[model]``."""
    recipe = (ROOT / "recipes" / "shapes-flash.toml").read_text(encoding="utf-8")
    recipe = recipe.replace('"../artifacts/shapes-flash"', f"'{SHAPES.as_posix()}'\n{lines}\n")
    recipe = recipe.replace('"shapes-flash.prompts.txt"', '["a red circle"]')
    file = folder / "r.toml"
    file.write_text(recipe.replace("t5 = true", f"t5 = {str(t5).lower()}"), encoding="utf-8")
    return file


def test_parts_of_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "enc").mkdir()
    read = read_recipe(recipe_with(tmp_path, "clip_l = 'enc'\ntokenizers = 'enc'"))
    assert read.parts == {"text_encoder": str(tmp_path / "enc")}
    assert read.tokenizers == str(tmp_path / "enc")
    plain = read_recipe(recipe_with(tmp_path, ""))
    assert read.digest("onnx") == plain.digest("onnx")  # where weights lie decides no bytes


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("vae = 'no.safetensors'", "[model] vae: {}/no.safetensors: no such file or folder"),
        ("tokenizers = 'no'", "[model] tokenizers: {}/no: no such file or folder"),
        ("vae = ''", "[model] vae is empty"),
        ("vae = 3", "[model] vae = 3: must be a string"),
    ],
)
def test_a_recipes_parts_that_are_not_there(tmp_path: Path, lines: str, said: str) -> None:
    file = recipe_with(tmp_path, lines)
    with pytest.raises(InputError) as error:
        read_recipe(file)
    assert str(error.value) == f"{file}: {said.format(tmp_path)}"


def test_a_recipe_without_t5_refuses_a_t5(tmp_path: Path) -> None:
    file = recipe_with(tmp_path, "t5 = 'r.toml'", t5=False)
    with pytest.raises(InputError, match=r"\[model\] t5 is given, and \[text\] t5 = false"):
        read_recipe(file)


def save(tensors: single_files.Tensors, file: Path) -> Path:
    save_file({k: v.contiguous() for k, v in tensors.items()}, file)
    return file


@pytest.fixture(scope="module")
def whole(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint in one file."""
    return save(
        single_files.whole(tiny_folder), tmp_path_factory.mktemp("whole") / "all.safetensors"
    )


def test_one_file_holds_the_checkpoint(whole: Path, tiny: Checkpoint, tiny_folder: Path) -> None:
    one = open_checkpoint(str(whole), tokenizers=str(tiny_folder), config=str(tiny_folder))
    for name, component in tiny.components.items():
        other = one.component(name)
        assert set(other.tensors) == set(component.tensors)
        for key in component.tensors:
            assert torch.equal(other.read(key), component.read(key)), key
    assert one.digest == tiny.digest
    cut_graphs(one, SMALL)


def test_the_writer_of_these_tests_is_undone_by_diffusers(tiny_folder: Path) -> None:
    from diffusers.loaders.single_file_utils import (
        convert_ldm_vae_checkpoint,
        convert_sd3_transformer_checkpoint_to_diffusers,
    )

    transformer = single_files.tensors_of(tiny_folder, "transformer")
    vae = single_files.tensors_of(tiny_folder, "vae")
    config = read_json(tiny_folder / "vae" / "config.json")
    back = convert_sd3_transformer_checkpoint_to_diffusers(single_files.mmdit(transformer))
    vae_back = convert_ldm_vae_checkpoint(single_files.latent_diffusion(vae), config)
    for expected, found in ((transformer, back), (vae, vae_back)):
        assert set(found) == set(expected)
        assert all(torch.equal(found[key], expected[key]) for key in expected)


FORMS: dict[str, Callable[[Path], dict[str, single_files.Tensors]]] = {
    "stability": lambda f: {
        "transformer": {k: v for k, v in single_files.whole(f, False).items() if k[0] == "m"},
        "vae": {k: v for k, v in single_files.whole(f, False).items() if k[0] == "f"},
    },
    "bare": lambda f: {
        "transformer": single_files.mmdit(single_files.tensors_of(f, "transformer")),
        "vae": single_files.latent_diffusion(single_files.tensors_of(f, "vae")),
        **{name: single_files.tensors_of(f, name) for name in single_files.ENCODERS},
    },
    "diffusers": lambda f: {n: single_files.tensors_of(f, n) for n in ("transformer", "vae")},
    "flat": lambda f: {
        "text_encoder": {
            k.removeprefix("text_model."): v
            for k, v in single_files.tensors_of(f, "text_encoder").items()
        }
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_components_in_files_of_their_own(
    tiny: Checkpoint, tiny_folder: Path, tmp_path: Path, form: str
) -> None:
    parts = {
        name: str(save(tensors, tmp_path / f"{name}.safetensors"))
        for name, tensors in FORMS[form](tiny_folder).items()
    }
    assert open_checkpoint(str(tiny_folder), parts=parts).digest == tiny.digest


def test_a_file_without_encoders_says_what_to_write(
    whole: Path, tiny: Checkpoint, tiny_folder: Path, tmp_path: Path
) -> None:
    file = save(single_files.whole(tiny_folder, encoders=False), tmp_path / "mmdit.safetensors")
    given: dict[str, Any] = {"tokenizers": str(tiny_folder), "config": str(tiny_folder)}
    parts: dict[str, str] = {}
    for name, key in (("text_encoder", "clip_l"), ("text_encoder_2", "clip_g")):
        with pytest.raises(InputError, match=rf"mmdit.*: component '{name}' .* as {key} in \[mod"):
            open_checkpoint(str(file), parts=parts, **given)
        parts[name] = str(whole)
    assert not open_checkpoint(str(file), parts=parts, **given).has_t5
    parts["text_encoder_3"] = str(tiny_folder / "text_encoder_3")
    assert open_checkpoint(str(file), parts=parts, **given).digest == tiny.digest


def test_tokenizers_of_a_file_are_beside_it_or_named(whole: Path, tiny_folder: Path) -> None:
    one = open_checkpoint(str(whole), config=str(tiny_folder))
    with pytest.raises(InputError, match="folder 'tokenizer' is missing; name the folder that"):
        one.tokenizer_folder("tokenizer")


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()
    }


@pytest.mark.parametrize("form", ["one", pytest.param("several", marks=pytest.mark.full)])
def test_packages_have_the_bytes_of_the_folders(
    form: str,
    whole: Path,
    tiny_package: Path,
    tiny_folder: Path,
    tiny_recipe: Recipe,
    tmp_path: Path,
) -> None:
    """From one file, and from one without encoders and theirs; the licence lies beside it."""
    if form == "one":
        file, parts = Path(shutil.copyfile(whole, tmp_path / "m.safetensors")), {}
    else:
        file = save(single_files.whole(tiny_folder, encoders=False), tmp_path / "m.safetensors")
        parts = dict.fromkeys(single_files.ENCODERS, str(whole))
    shutil.copyfile(tiny_folder / "LICENSE", tmp_path / "LICENSE")
    there = str(tiny_folder)
    recipe = replace(tiny_recipe, checkpoint=str(file), parts=parts, tokenizers=there, config=there)
    (built,) = build(recipe, tmp_path / "out", ["onnx"], ["int4"])
    found, expected = files_of(built.path), files_of(tiny_package)
    assert len(expected) > 10
    assert found == expected


FAMILY: dict[str, dict[str, Any]] = {
    "sd3-medium": {"qk_norm": None, "dual_attention_layers": ()},
    "sd3.5-medium": {"qk_norm": "rms_norm", "dual_attention_layers": (0,)},
    "sd3.5-large": {"qk_norm": "rms_norm", "dual_attention_layers": ()},
}


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of SD3's configurations in all but widths and depths: text encoders and VAE."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    folder = tmp_path_factory.mktemp("narrow")

    def clip(width: int, activation: str) -> CLIPTextModelWithProjection:
        return CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=700,
                hidden_size=width,
                intermediate_size=96,
                projection_dim=width,
                num_hidden_layers=2,
                num_attention_heads=width // 64,
                hidden_act=activation,
                eos_token_id=2,
            )
        )

    ways = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    }
    modules = {
        "text_encoder": clip(64, "quick_gelu"),
        "text_encoder_2": clip(128, "gelu"),
        "text_encoder_3": T5EncoderModel(
            T5Config(
                vocab_size=160,
                d_model=64,
                d_kv=16,
                d_ff=80,
                num_layers=2,
                num_heads=3,
                feed_forward_proj="gated-gelu",
            )
        ),
        "vae": AutoencoderKL(
            **ways,
            block_out_channels=(32, 32, 64, 64),
            latent_channels=16,
            layers_per_block=2,
            use_quant_conv=False,
            use_post_quant_conv=False,
            scaling_factor=1.5305,
            shift_factor=0.0609,
        ),
    }
    for name, module in modules.items():
        module.save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize("model", FAMILY)
def test_configurations_are_told_by_shapes(model: str, narrow: Path, tmp_path: Path) -> None:
    from diffusers import SD3Transformer2DModel

    shutil.copytree(narrow, tmp_path / "true")
    SD3Transformer2DModel(
        num_layers=3,
        num_attention_heads=2,
        joint_attention_dim=64,
        caption_projection_dim=128,
        pooled_projection_dim=192,
        pos_embed_max_size=12,
        **FAMILY[model],
    ).save_pretrained(tmp_path / "true" / "transformer")
    (tmp_path / "one").mkdir()
    file = save(single_files.whole(tmp_path / "true"), tmp_path / "one" / "m.safetensors")
    with pytest.warns(CheckpointRemark) as found:
        opened = open_checkpoint(str(file))
    guessed = {
        "text_encoder": "num_attention_heads = 1",
        "text_encoder_2": "num_attention_heads = 2",
        "vae": "norm_num_groups = 32",
    } | ({"transformer": "attention_head_dim = 64"} if model == "sd3-medium" else {})
    assert sorted(str(w.message) for w in found) == [
        f"{file}: {name}: {what} is guessed: no shape tells it, and no model of SD3 is as wide; if "
        f"it is not so, name a folder with {name}/config.json as config in [model]"
        for name, what in sorted(guessed.items())
    ]
    for name, component in opened.components.items():
        said = read_json(tmp_path / "true" / name / "config.json")
        assert dict(component.config) == decisive(COMPONENTS[name], said)


def test_what_the_models_of_the_family_have_is_no_guess() -> None:
    clip = {"hidden_size": 1280}
    assert only_guessed("text_encoder_2", clip) is None
    assert only_guessed("text_encoder_2", {"hidden_size": 640}) == "num_attention_heads"
    for width, norm, key in ((1536, None, None), (2432, None, "attention_head_dim")):
        told = {"caption_projection_dim": width, "qk_norm": norm}
        assert only_guessed("transformer", told) == key
        assert only_guessed("transformer", told | {"qk_norm": "rms_norm"}) is None
    assert only_guessed("vae", {"block_out_channels": [128, 256, 512, 512]}) is None


def test_what_shapes_do_not_tell_is_asked_for(whole: Path, tiny_folder: Path) -> None:
    with pytest.raises(InputError, match=r"num_attention_heads is not told .* as config in \[mod"):
        open_checkpoint(str(whole), ("text_encoder",))
    with pytest.raises(InputError, match="norm_num_groups is not told .* vae/config.json as conf"):
        open_checkpoint(str(whole), ("vae",))
    with pytest.raises(InputError, match=r"shapes say num_layers = 3, and .*json says 6"):
        open_checkpoint(str(whole), ("transformer",), config=str(SHAPES))


def test_a_projection_that_is_left_out_changes_nothing(
    tiny: Checkpoint, tiny_folder: Path, tmp_path: Path
) -> None:
    key = "text_projection.weight"
    left_out = single_files.tensors_of(tiny_folder, "text_encoder")
    with_it = Path(shutil.copytree(tiny_folder, tmp_path / "with"))
    save(left_out | {key: torch.eye(32)}, with_it / "text_encoder" / "model.safetensors")
    del left_out[key]
    file = str(save(left_out, tmp_path / "clip_l.safetensors"))
    opened = open_checkpoint(str(tiny_folder), parts={"text_encoder": file})
    assert opened.digest == open_checkpoint(str(with_it)).digest != tiny.digest


PREFIX = "model.diffusion_model."
QKV = f"{PREFIX}joint_blocks.1.x_block.attn.qkv.weight"


def renamed(tensors: single_files.Tensors, old: str, new: str) -> None:
    tensors[new] = tensors.pop(old)


DAMAGES: dict[str, tuple[Callable[[single_files.Tensors], Any], str]] = {
    "too many": (
        lambda t: t.update({f"{PREFIX}joint_blocks.0.x_block.gate": torch.ones(2)}),
        f"tensor '{PREFIX}joint_blocks.0.x_block.gate' is none of SD3Transformer2DModel's",
    ),
    "of no component": (
        lambda t: t.update({"control.weight": torch.ones(2)}),
        "tensor 'control.weight' belongs to no component of SD3",
    ),
    "too few": (
        lambda t: t.pop(QKV),
        f"tensor '{QKV}' (read as 'transformer_blocks.1.attn.to_q.weight') is missing",
    ),
    "too few of those that tell": (
        lambda t: t.pop(f"{PREFIX}context_embedder.weight"),
        f"tensor '{PREFIX}context_embedder.weight' is missing",
    ),
    "of another shape": (
        lambda t: t.update({QKV: torch.ones(297, 96)}),
        f"tensor '{QKV}' (read as 'transformer_blocks.1.attn.to_q.weight') has shape [99, 96]; "
        "config.json implies [96, 96]",
    ),
    "of another shape than its bias": (
        lambda t: t.update({f"{PREFIX}context_embedder.weight": torch.ones(97, 96)}),
        f"tensor '{PREFIX}context_embedder.weight' has shape [97, 96], and "
        f"'{PREFIX}context_embedder.bias' has [96]",
    ),
    "of a shape that cannot be cut": (
        lambda t: t.update({QKV: torch.ones(289, 96)}),
        f"tensor '{QKV}' has shape [289, 96]",
    ),
    "under another name": (
        lambda t: renamed(t, QKV, QKV.replace("qkv", "kqv")),
        f"tensor '{QKV.replace('qkv', 'kqv')}' is none of SD3Transformer2DModel's",
    ),
    "of an encoder": (
        lambda t: t.update({"text_encoders.clip_l.transformer.more": torch.ones(2)}),
        "'text_encoders.clip_l.transformer.more'",
    ),
    "of a vae": (
        lambda t: renamed(t, "first_stage_model.decoder.conv_in.bias", "first_stage_model.bias"),
        "tensor 'first_stage_model.bias' is none of AutoencoderKL's",
    ),
    "twice": (
        lambda t: t.update({"vae.decoder.conv_in.bias": torch.ones(2)}),
        "is there under another name too",
    ),
    "a block that none has": (
        lambda t: t.update({f"{PREFIX}joint_blocks.99999999999.x_block.attn": torch.ones(2)}),
        "holds block 999999999; at most 1024 are read",
    ),
    "integers": (
        lambda t: t.update({QKV: torch.ones(288, 96, dtype=torch.int8)}),
        f"tensor '{QKV}': unknown dtype 'I8'; known: BF16, F16, F32, F64, F8_E4M3, F8_E5M2; quant",
    ),
    "nf4": (
        lambda t: t.update(
            {f"{QKV}.quant_state.bitsandbytes__nf4": torch.ones(2, dtype=torch.uint8)}
        ),
        "4-bit weights of bitsandbytes (nf4 or fp4) are not read",
    ),
    "bitsandbytes int8": (
        lambda t: t.update({QKV.replace("weight", "SCB"): torch.ones(2)}),
        "8-bit integers of bitsandbytes are not read",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_does_not_fit_is_refused(
    damage: str, whole: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    change, said = DAMAGES[damage]
    tensors = load_file(whole)
    change(tensors)
    file = save(tensors, tmp_path / "x.safetensors")
    with pytest.raises(InputError) as error:
        cut_graphs(open_checkpoint(str(file), config=str(tiny_folder)), SMALL)
    assert said in str(error.value) and str(error.value).startswith(str(file))
    assert "\n" not in str(error.value)


def test_what_is_not_read_of_a_file_changes_nothing(
    whole: Path, tiny: Checkpoint, tiny_folder: Path, tmp_path: Path
) -> None:
    """Schedules, tables of positions, temperatures, tied copies; a T5 that is not asked for."""
    tensors = load_file(whole)
    t5 = "text_encoders.t5xxl.transformer"
    tensors |= {
        "model_sampling.sigmas": torch.ones(9),
        "text_encoders.clip_l.logit_scale": torch.ones(1),
        "text_encoders.clip_g.transformer.text_model.embeddings.position_ids": torch.arange(77),
        f"{t5}.encoder.embed_tokens.weight": tensors[f"{t5}.shared.weight"].clone(),
    }
    given: dict[str, Any] = {"tokenizers": str(tiny_folder), "config": str(tiny_folder)}
    file = save(tensors, tmp_path / "more.safetensors")
    assert open_checkpoint(str(file), **given).digest == tiny.digest
    tensors = {k: v for k, v in tensors.items() if not k.startswith(t5) or k.endswith("wo.weight")}
    file = save(tensors, tmp_path / "less.safetensors")
    used = [name for name in tiny.components if name != "text_encoder_3"]
    assert set(open_checkpoint(str(file), used, **given).components) == set(used)


def test_parts_that_are_something_else(tiny_folder: Path, tmp_path: Path) -> None:
    vae = save(single_files.tensors_of(tiny_folder, "vae"), tmp_path / "vae.safetensors")
    wide = {"text_model.embeddings.token_embedding.weight": torch.ones(9, 1280)}
    others = {
        "text_encoder_3": (vae, "given as t5 in [model], and holds vae"),
        "text_encoder": (save(wide, tmp_path / "g.safetensors"), "given as clip_l, and is 1280 wi"),
        "vae": (tiny_folder / "LICENSE", "not a checkpoint: a .safetensors or .gguf file is ex"),
        "transformer": (
            save({"double_blocks.0.img_attn.weight": torch.ones(2)}, tmp_path / "f.safetensors"),
            "tensor 'double_blocks.0.img_attn.weight': not of SD3, but of FLUX",
        ),
        "text_encoder_2": (tmp_path / "no", "no: no such file or folder"),
    }
    lora = save(
        {"x.transformer_blocks.0.attn.to_q.lora_A.weight": torch.ones(2)},
        tmp_path / "l.safetensors",
    )
    with pytest.raises(InputError, match=r"lora_A.weight': a LoRA's; name its file in \[\[lo"):
        open_checkpoint(str(lora))
    with pytest.raises(InputError, match=r"no such file or folder; name a .safetensors or .gguf"):
        open_checkpoint("models/none.safetensors")
    pickle = tmp_path / "m.ckpt"
    pickle.write_bytes(b"no")
    with pytest.raises(InputError, match="m.ckpt: pickled weights can run code"):
        open_checkpoint(str(pickle))
    for name, (file, said) in others.items():
        with pytest.raises(InputError) as error:
            open_checkpoint(str(tiny_folder), parts={name: str(file)})
        assert said in str(error.value)


def test_rows_of_a_fused_tensor_are_mapped(whole: Path, tiny_folder: Path) -> None:
    component = open_checkpoint(str(whole), ("transformer",), config=str(tiny_folder))
    key = "transformer_blocks.0.attn.to_v.weight"
    value = component.component("transformer").read(key)
    assert value.is_contiguous() and value.storage_offset() == 2 * 96 * 96
    assert value.untyped_storage().nbytes() == 3 * 96 * 96 * 4  # the file's tensor, not a copy

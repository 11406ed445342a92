"""LoRAs are merged as diffusers and peft merge them, whatever their keys are called."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from exporter.checkpoint.lora import Lora
from exporter.checkpoint.open import Checkpoint, open_checkpoint
from exporter.cli import main
from exporter.errors import InputError
from exporter.package.read import read_manifest

RANK, ALPHA, WEIGHT = 4, 2.0, 0.7
TOLERANCE = 1e-6
USED = ("transformer", "text_encoder", "text_encoder_2", "vae")
CLIP_LAYERS = ("self_attn.q_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
Halves = Mapping[str, tuple[Tensor, Tensor]]  # a layer's name -> lora_A and lora_B


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative L2 error."""
    return float((found - expected).norm() / expected.norm())


def compare(checkpoint: Checkpoint, name: str, expected: Mapping[str, Tensor]) -> int:
    """Every tensor of a component is the expected one; how many differ from the base's."""
    component = checkpoint.component(name)
    assert set(component.tensors) <= set(expected)
    changed = 0
    for key in component.tensors:
        found = component.read(key)
        assert distance(found, expected[key]) <= TOLERANCE, key
        changed += type(component.tensors[key]).__name__ == "Merged"
    return changed


def stability_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The tensors of the tiny transformer as Stability names them, and their shapes."""
    stored = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    shape = {name: tuple(value.shape) for name, value in stored.items()}

    def of(name: str, times: int = 1) -> tuple[int, ...]:
        return (shape[name][0] * times, *shape[name][1:])

    found = {"pos_embed": shape["pos_embed.pos_embed"]}
    plain = {
        "x_embedder.proj": "pos_embed.proj",
        "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
        "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
        "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
        "context_embedder": "context_embedder",
        "final_layer.linear": "proj_out",
        "final_layer.adaLN_modulation.1": "norm_out.linear",
    }
    for kind in ("weight", "bias"):
        found |= {f"{ours}.{kind}": of(f"{theirs}.{kind}") for ours, theirs in plain.items()}
        for i in range(3):
            block, theirs = f"joint_blocks.{i}", f"transformer_blocks.{i}"
            last = i == 2
            found |= {
                f"{block}.x_block.attn.qkv.{kind}": of(f"{theirs}.attn.to_q.{kind}", 3),
                f"{block}.context_block.attn.qkv.{kind}": of(f"{theirs}.attn.add_q_proj.{kind}", 3),
                f"{block}.x_block.attn.proj.{kind}": of(f"{theirs}.attn.to_out.0.{kind}"),
                f"{block}.x_block.adaLN_modulation.1.{kind}": of(f"{theirs}.norm1.linear.{kind}"),
                f"{block}.context_block.adaLN_modulation.1.{kind}": of(
                    f"{theirs}.norm1_context.linear.{kind}"
                ),
                f"{block}.x_block.mlp.fc1.{kind}": of(f"{theirs}.ff.net.0.proj.{kind}"),
                f"{block}.x_block.mlp.fc2.{kind}": of(f"{theirs}.ff.net.2.{kind}"),
            }
            if not last:
                found |= {
                    f"{block}.context_block.attn.proj.{kind}": of(
                        f"{theirs}.attn.to_add_out.{kind}"
                    ),
                    f"{block}.context_block.mlp.fc1.{kind}": of(
                        f"{theirs}.ff_context.net.0.proj.{kind}"
                    ),
                    f"{block}.context_block.mlp.fc2.{kind}": of(
                        f"{theirs}.ff_context.net.2.{kind}"
                    ),
                    f"{block}.x_block.attn2.qkv.{kind}": of(f"{theirs}.attn2.to_q.{kind}", 3),
                    f"{block}.x_block.attn2.proj.{kind}": of(f"{theirs}.attn2.to_out.0.{kind}"),
                }
    for i in range(3):
        block, theirs = f"joint_blocks.{i}", f"transformer_blocks.{i}"
        for ours, name in (("ln_q", "norm_q"), ("ln_k", "norm_k")):
            found[f"{block}.x_block.attn.{ours}.weight"] = of(f"{theirs}.attn.{name}.weight")
            found[f"{block}.context_block.attn.{ours}.weight"] = of(f"{theirs}.attn.{name}.weight")
            if i != 2:
                found[f"{block}.x_block.attn2.{ours}.weight"] = of(f"{theirs}.attn2.{name}.weight")
    return found


def as_diffusers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Stability's names, queries, keys and values in one, to diffusers': its own converter."""
    from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers

    return dict(convert_sd3_transformer_checkpoint_to_diffusers(dict(tensors)))


@pytest.fixture(scope="session")
def stability(tiny_folder: Path) -> dict[str, tuple[int, ...]]:
    return stability_shapes(tiny_folder)


@pytest.fixture(scope="session")
def halves(stability: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[Tensor, Tensor]]:
    """A LoRA of every layer of the transformer, by Stability's names."""
    generator = torch.Generator().manual_seed(5)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.3

    found = {}
    for name, shape in stability.items():
        if name.endswith(".weight") and len(shape) > 1:
            out, *inner = shape
            found[name.removesuffix(".weight")] = (
                random(RANK, *inner),
                random(out, RANK, *[1] * (len(inner) - 1)),
            )
    return found


@pytest.fixture(scope="session")
def split(
    halves: Halves, stability: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[Tensor, Tensor]]:
    """The same LoRA by diffusers' names: its converter carries the rows of B and numbers of A."""
    rows = {name: torch.zeros(shape) for name, shape in stability.items()}
    numbers = dict(rows)
    for i, (name, (_, up)) in enumerate(halves.items()):
        rows[f"{name}.weight"] = up
        numbers[f"{name}.weight"] = torch.full((stability[f"{name}.weight"][0], 1), float(i))
    carried, downs = as_diffusers(numbers), [down for down, _ in halves.values()]
    return {
        name.removesuffix(".weight"): (downs[int(carried[name].flatten()[0])], up)
        for name, up in as_diffusers(rows).items()
        if name.endswith(".weight") and up.ndim > 1 and up.shape[1] == RANK
    }


@pytest.fixture(scope="session")
def clips(tiny: Checkpoint) -> dict[str, dict[str, tuple[Tensor, Tensor]]]:
    """LoRAs of both CLIP encoders, by their component and their layers' names."""
    generator = torch.Generator().manual_seed(6)
    found: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
    for component, layers in (("text_encoder", 2), ("text_encoder_2", 3)):
        own = found.setdefault(component, {})
        for name in (
            f"text_model.encoder.layers.{i}.{x}" for i in range(layers) for x in CLIP_LAYERS
        ):
            out, inner = tiny.component(component).info(f"{name}.weight").shape
            own[name] = (
                torch.randn((RANK, inner), generator=generator) * 0.3,
                torch.randn((out, RANK), generator=generator) * 0.3,
            )
    return found


def named(layers: Halves, prefix: str, style: str, flatten: bool = False) -> dict[str, Tensor]:
    """The keys of a style: ``A``, or ``down`` with an alpha."""
    found: dict[str, Tensor] = {}
    for name, (down, up) in layers.items():
        layer = prefix + (name.replace(".", "_") if flatten else name)
        if style == "A":
            found |= {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}
        else:
            found |= {f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up}
            found[f"{layer}.alpha"] = torch.tensor(ALPHA)
    return {key: value.clone() for key, value in found.items()}


@pytest.fixture(scope="session")
def diffusers_file(
    split: Halves, clips: Mapping[str, Halves], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """As ``save_lora_weights`` writes it, with the settings in the header."""
    from diffusers import StableDiffusion3Pipeline

    folder = tmp_path_factory.mktemp("diffusers")
    settings = {"r": RANK, "lora_alpha": ALPHA}

    def layers(name: str, own: Halves) -> dict[str, Any]:
        targets = [layer.removeprefix("text_model.") for layer in own]
        return {
            f"{name}_lora_layers": named(own, "", "A"),
            f"{name}_lora_adapter_metadata": settings | {"target_modules": targets},
        }

    StableDiffusion3Pipeline.save_lora_weights(
        folder,
        **layers("transformer", split),
        **layers("text_encoder", clips["text_encoder"]),
        **layers("text_encoder_2", clips["text_encoder_2"]),
    )
    return folder / "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="session")
def fused(
    tiny_folder: Path, diffusers_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Tensor]]:
    """What diffusers makes of the tiny checkpoint with the LoRA, by component."""
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection

    parts = {
        "transformer": SD3Transformer2DModel.from_pretrained(tiny_folder / "transformer"),
        **{
            name: CLIPTextModelWithProjection.from_pretrained(tiny_folder / name)
            for name in ("text_encoder", "text_encoder_2")
        },
    }
    others = ("scheduler", "vae", "tokenizer", "tokenizer_2", "tokenizer_3", "text_encoder_3")
    pipeline = StableDiffusion3Pipeline(**parts, **dict.fromkeys(others))
    pipeline.load_lora_weights(diffusers_file)
    pipeline.fuse_lora(lora_scale=WEIGHT)
    pipeline.unload_lora_weights()
    folder, found = tmp_path_factory.mktemp("fused"), {}
    for name in parts:
        getattr(pipeline, name).save_pretrained(folder / name)
        (file,) = (folder / name).glob("*.safetensors")
        found[name] = load_file(file)
    return found


def kohya_file(folder: Path, halves: Halves, clips: Mapping[str, Halves], split: Halves) -> Path:
    tensors = named(halves, "lora_unet_", "down", flatten=True)
    tensors |= named(clips["text_encoder"], "lora_te1_", "down", flatten=True)
    tensors |= named(clips["text_encoder_2"], "lora_te2_", "down", flatten=True)
    return saved(folder / "kohya.safetensors", tensors)


def comfyui_file(folder: Path, halves: Halves, clips: Mapping[str, Halves], split: Halves) -> Path:
    tensors = named(halves, "diffusion_model.", "A")
    tensors |= named(clips["text_encoder"], "text_encoders.clip_l.transformer.", "A")
    tensors |= named(clips["text_encoder_2"], "text_encoders.clip_g.transformer.", "A")
    layers = {key.partition(".lora_")[0] for key in tensors}
    tensors |= {f"{layer}.alpha": torch.tensor(ALPHA) for layer in layers}
    return saved(folder / "comfyui.safetensors", tensors)


def onetrainer_file(
    folder: Path, halves: Halves, clips: Mapping[str, Halves], split: Halves
) -> Path:
    tensors = named(split, "lora_transformer_", "down", flatten=True)
    tensors |= named(clips["text_encoder"], "text_encoder.", "down")
    tensors |= named(clips["text_encoder_2"], "text_encoder_2.", "down")
    return saved(folder / "onetrainer.safetensors", tensors)


def peft_folder(folder: Path, halves: Halves, clips: Mapping[str, Halves], split: Halves) -> Path:
    saved(folder / "adapter_model.safetensors", named(split, "base_model.model.", "A"))
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": int(ALPHA)}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def saved(file: Path, tensors: Mapping[str, Tensor]) -> Path:
    save_file({key: value.contiguous() for key, value in tensors.items()}, file)
    return file


@pytest.mark.parametrize("write", [kohya_file, comfyui_file, onetrainer_file, peft_folder, None])
def test_key_styles_are_merged_as_diffusers_fuses_them(
    write: Callable[..., Path] | None,
    tmp_path: Path,
    tiny_folder: Path,
    diffusers_file: Path,
    halves: Halves,
    clips: Mapping[str, Halves],
    split: Halves,
    fused: Mapping[str, Mapping[str, Tensor]],
) -> None:
    file = write(tmp_path, halves, clips, split) if write else diffusers_file
    found = open_checkpoint(str(tiny_folder), USED, loras=[Lora(file, WEIGHT)])
    assert compare(found, "transformer", fused["transformer"]) == len(split)
    names = () if write is peft_folder else ("text_encoder", "text_encoder_2")
    for name in names:
        assert compare(found, name, fused[name]) == len(clips[name])
    same = open_checkpoint(str(tiny_folder), USED, loras=[Lora(diffusers_file, WEIGHT)])
    if names:  # what is merged decides, not what the file calls it
        assert (found.digest, found.loras[0].digest) == (same.digest, same.loras[0].digest)
    else:
        assert found.digest != same.digest


PEFT_CONFIGS: dict[str, dict[str, Any]] = {
    "patterns": {
        "rank_pattern": {"attn.to_q": 2, r"transformer_blocks\.1\.attn\.to_v": 3},
        "alpha_pattern": {"proj_out": 7},
    },
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "biases": {"lora_bias": True},
    "half": {"dtype": torch.float16},
}
TARGETS = ["to_q", "to_v", "add_k_proj", "proj_out", "pos_embed.proj", "norm1.linear", "attn2.to_k"]


def adapter(folder: Path, tiny_folder: Path, config: Any, dtype: torch.dtype | None = None) -> Any:
    """A random adapter of the tiny transformer by peft, saved to a folder; the model."""
    from diffusers import SD3Transformer2DModel
    from peft import get_peft_model

    torch.manual_seed(8)
    model = get_peft_model(
        SD3Transformer2DModel.from_pretrained(tiny_folder / "transformer"), config
    )
    for name, parameter in model.named_parameters():
        if ("lora_" in name or "hada_" in name or "lokr_" in name) and "magnitude" not in name:
            torch.nn.init.normal_(parameter, 0.0, 0.3)
        elif "magnitude" in name:
            parameter.data *= 1.0 + 0.3 * torch.rand_like(parameter)
        if dtype is not None and "lora_" in name:
            parameter.data = parameter.data.to(dtype).float()
    model.save_pretrained(folder)
    if dtype is not None:
        file = folder / "adapter_model.safetensors"
        saved(file, {key: value.to(dtype) for key, value in load_file(file).items()})
    return model


@pytest.mark.filterwarnings("ignore:Adapter .* have invalid shape")  # biases have one axis
@pytest.mark.parametrize("kind", PEFT_CONFIGS)
def test_adapters_of_peft_are_merged_as_peft_merges_them(
    kind: str, tmp_path: Path, tiny_folder: Path
) -> None:
    from peft import LoraConfig

    options = dict(PEFT_CONFIGS[kind])
    dtype = options.pop("dtype", None)
    config = LoraConfig(r=RANK, lora_alpha=3, target_modules=TARGETS, **options)
    model = adapter(tmp_path, tiny_folder, config, dtype)
    for module in model.modules():
        if hasattr(module, "scale_layer"):
            module.scale_layer(WEIGHT)
    expected = model.merge_and_unload().state_dict()
    found = open_checkpoint(str(tiny_folder), USED, loras=[Lora(tmp_path, WEIGHT)])
    assert compare(found, "transformer", expected) > 10


@pytest.mark.parametrize("kind", ["LoHaConfig", "LoKrConfig", "LoKrConfig, whole"])
def test_lycoris_kinds_are_merged_as_peft_merges_them(
    kind: str, tmp_path: Path, tiny_folder: Path
) -> None:
    import peft

    name, _, whole = kind.partition(", ")
    config = getattr(peft, name)(
        r=64 if whole else RANK,
        alpha=3,
        target_modules=TARGETS,
        **({} if whole else {"use_effective_conv2d": True}),
    )
    expected = adapter(tmp_path, tiny_folder, config).merge_and_unload().state_dict()
    found = open_checkpoint(str(tiny_folder), USED, loras=[Lora(tmp_path)])
    assert compare(found, "transformer", expected) > 10


@pytest.mark.parametrize("dora", [False, True])
def test_several_are_merged_in_order_as_peft_merges_them(
    dora: bool, tmp_path: Path, tiny_folder: Path
) -> None:
    """One of them twice, and with a negative weight."""
    from diffusers import SD3Transformer2DModel
    from peft import LoraConfig, PeftModel

    folders = [tmp_path / name for name in ("one", "two", "one")]
    for i, folder in enumerate(folders[:2]):
        config = LoraConfig(r=2 + i, lora_alpha=3, target_modules=TARGETS, use_dora=dora)
        adapter(folder, tiny_folder, config)
    base = SD3Transformer2DModel.from_pretrained(tiny_folder / "transformer")
    model = PeftModel.from_pretrained(base, str(folders[0]), adapter_name="0")
    for i in (1, 2):
        model.load_adapter(str(folders[i]), adapter_name=str(i))
    weights = (0.5, -1.25, 0.75)
    scaled: list[Any] = [m for m in model.modules() if hasattr(m, "set_scale")]
    for module in scaled:
        for i, weight in enumerate(weights):
            module.set_scale(str(i), weight)
    expected = model.merge_and_unload(adapter_names=["0", "1", "2"]).state_dict()
    loras = [Lora(folder, weight) for folder, weight in zip(folders, weights, strict=True)]
    found = open_checkpoint(str(tiny_folder), USED, loras=loras)
    assert compare(found, "transformer", expected) > 10


def merged_with(folder: Path, file: Path, tensors: Mapping[str, Tensor]) -> Checkpoint:
    """The checkpoint with a LoRA of these tensors, at half its weight."""
    return open_checkpoint(str(folder), USED, loras=[Lora(saved(file, tensors), 0.5)])


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_a_convolution_in_three_is_merged(
    tiny: Checkpoint, tiny_folder: Path, tmp_path: Path
) -> None:
    """kohya's lora_mid: a convolution to the rank, one over the window, one to the outputs."""
    down, mid, up = random(3, 16, 1, 1), random(3, 3, 2, 2), random(96, 3, 1, 1)
    layer = "lora_unet_x_embedder_proj"
    tensors = {
        f"{layer}.lora_down.weight": down,
        f"{layer}.lora_mid.weight": mid,
        f"{layer}.lora_up.weight": up,
        f"{layer}.alpha": torch.tensor(6.0),
    }
    found = merged_with(tiny_folder, tmp_path / "a.safetensors", tensors).component("transformer")
    # As a convolution of an impulse in every input: what the three do one after another.
    impulse = torch.eye(16).reshape(16, 16, 1, 1)
    padded = torch.nn.functional.pad(torch.nn.functional.conv2d(impulse, down), (1, 1, 1, 1))
    response = torch.nn.functional.conv2d(torch.nn.functional.conv2d(padded, mid), up)
    delta = response.transpose(0, 1).flip(2, 3) * 0.5 * 6 / 3
    expected = tiny.component("transformer").read("pos_embed.proj.weight") + delta
    assert distance(found.read("pos_embed.proj.weight"), expected) <= TOLERANCE


def test_whole_differences_are_added(tiny: Checkpoint, tiny_folder: Path, tmp_path: Path) -> None:
    """Of a weight, a bias and a norm; halves are exchanged where diffusers exchanges them."""
    tensors = {
        "diffusion_model.final_layer.adaLN_modulation.1.diff": random(192, 96),
        "diffusion_model.final_layer.adaLN_modulation.1.diff_b": random(192),
        "diffusion_model.joint_blocks.1.x_block.attn.ln_q.diff": random(32),
        "lora_te2_text_model_final_layer_norm.w_norm": random(48),
        "lora_te2_text_model_final_layer_norm.b_norm": random(48),
    }
    first, second, third, fourth, fifth = tensors.values()
    found = merged_with(tiny_folder, tmp_path / "a.safetensors", tensors)
    for component, name, change in (
        ("transformer", "norm_out.linear.weight", torch.cat([first[96:], first[:96]])),
        ("transformer", "norm_out.linear.bias", torch.cat([second[96:], second[:96]])),
        ("transformer", "transformer_blocks.1.attn.norm_q.weight", third),
        ("text_encoder_2", "text_model.final_layer_norm.weight", fourth),
        ("text_encoder_2", "text_model.final_layer_norm.bias", fifth),
    ):
        expected = tiny.component(component).read(name) + change / 2
        assert distance(found.component(component).read(name), expected) <= TOLERANCE, name
    assert (
        sum(type(t).__name__ == "Merged" for t in found.component("transformer").tensors.values())
        == 3
    )


@pytest.mark.parametrize("by_input", [False, True])
def test_dora_of_lycoris(
    by_input: bool, tiny: Checkpoint, tiny_folder: Path, tmp_path: Path
) -> None:
    """Its lengths belong to outputs, or to inputs as its older versions kept them."""
    down, up, scale = (
        random(2, 96),
        random(96, 2),
        random(*((1, 96) if by_input else (96, 1))).abs(),
    )
    layer = "lora_unet_joint_blocks_0_x_block_attn_proj"
    tensors = {
        f"{layer}.lora_down.weight": down,
        f"{layer}.lora_up.weight": up,
        f"{layer}.dora_scale": scale,
    }
    found = merged_with(tiny_folder, tmp_path / "a.safetensors", tensors).component("transformer")
    name = "transformer_blocks.0.attn.to_out.0.weight"
    whole = tiny.component("transformer").read(name).double() + (up @ down).double() / 2
    expected = whole * scale / whole.norm(dim=0 if by_input else 1, keepdim=True)
    assert distance(found.read(name).double(), expected) <= TOLERANCE


def test_lycoris_on_queries_keys_and_values_in_one(
    tiny: Checkpoint, tiny_folder: Path, tmp_path: Path
) -> None:
    """A LoHa and a LoKr of rank 2, and a LoKr of whole factors, whose alpha says nothing."""
    block = "lycoris_joint_blocks_0"
    tensors = {
        **{f"{block}_x_block_attn_qkv.hada_w{i}_a": random(288, 2) for i in (1, 2)},
        **{f"{block}_x_block_attn_qkv.hada_w{i}_b": random(2, 96) for i in (1, 2)},
        f"{block}_x_block_attn_qkv.alpha": torch.tensor(1.0),
        f"{block}_context_block_attn_qkv.lokr_w1": random(3, 4),
        f"{block}_context_block_attn_qkv.lokr_w2_a": random(96, 2),
        f"{block}_context_block_attn_qkv.lokr_w2_b": random(2, 24),
        f"{block}_context_block_attn_qkv.alpha": torch.tensor(1.0),
        f"{block}_x_block_attn2_qkv.lokr_w1": random(4, 4),
        f"{block}_x_block_attn2_qkv.lokr_w2": random(72, 24),
        f"{block}_x_block_attn2_qkv.alpha": torch.tensor(1.0),
    }
    loha = (random(288, 2) @ random(2, 96)) ** 2 / 2
    lokr = torch.kron(random(3, 4), random(96, 2) @ random(2, 24)) / 2
    whole = torch.kron(random(4, 4), random(72, 24))
    found = merged_with(tiny_folder, tmp_path / "a.safetensors", tensors).component("transformer")
    for delta, names in (
        (loha, ("attn.to_q", "attn.to_k", "attn.to_v")),
        (lokr, ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")),
        (whole, ("attn2.to_q", "attn2.to_k", "attn2.to_v")),
    ):
        for part, name in zip(delta.chunk(3), names, strict=True):
            key = f"transformer_blocks.0.{name}.weight"
            expected = tiny.component("transformer").read(key) + part / 2
            assert distance(found.read(key), expected) <= TOLERANCE, key


def test_an_adapter_that_names_no_encoder_goes_where_it_fits(
    tiny: Checkpoint, tiny_folder: Path, tmp_path: Path
) -> None:
    """PEFT's keys of an encoder are the same for both; transformers 5 writes no ``text_model``."""
    layer = "base_model.model.encoder.layers.1.self_attn.q_proj"
    tensors = {f"{layer}.lora_A.weight": random(2, 48), f"{layer}.lora_B.weight": random(48, 2)}
    found = merged_with(tiny_folder, tmp_path / "a.safetensors", tensors)
    name = "text_model.encoder.layers.1.self_attn.q_proj.weight"
    expected = tiny.component("text_encoder_2").read(name) + random(48, 2) @ random(2, 48) / 2
    assert distance(found.component("text_encoder_2").read(name), expected) <= TOLERANCE
    assert (
        found.component("text_encoder").info(name).dtype
        == tiny.component("text_encoder").info(name).dtype
    )


def test_t5_is_merged_where_it_is_used(tiny: Checkpoint, tiny_folder: Path, tmp_path: Path) -> None:
    layer = "lora_te3_encoder_block_0_layer_0_SelfAttention_q"
    tensors = {f"{layer}.lora_down.weight": random(2, 96), f"{layer}.lora_up.weight": random(64, 2)}
    file = saved(tmp_path / "t5.safetensors", tensors)
    found = open_checkpoint(str(tiny_folder), loras=[Lora(file)]).component("text_encoder_3")
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    expected = tiny.component("text_encoder_3").read(name) + random(64, 2) @ random(2, 96)
    assert distance(found.read(name), expected) <= TOLERANCE
    with pytest.raises(InputError) as told:
        open_checkpoint(str(tiny_folder), USED, loras=[Lora(file)])
    assert str(told.value) == (
        f"{file}: 2 keys are for text_encoder_3, which is left out; set t5 = true in [text], or "
        f"take a LoRA without them: {layer}.lora_down.weight, {layer}.lora_up.weight"
    )


def test_half_and_eight_bits_are_computed_in_float32(
    tiny: Checkpoint, tiny_folder: Path, tmp_path: Path
) -> None:
    down, up = random(2, 96).to(torch.float8_e4m3fn), random(96, 2).to(torch.bfloat16)
    tensors = {"transformer.norm_out.linear.lora_A.weight": down}
    tensors["transformer.norm_out.linear.lora_B.weight"] = torch.cat([up, up])
    found = merged_with(tiny_folder, tmp_path / "a.safetensors", tensors).component("transformer")
    delta = torch.cat([up, up]).float() @ down.float()
    expected = tiny.component("transformer").read("norm_out.linear.weight") + delta / 2
    assert distance(found.read("norm_out.linear.weight"), expected) <= TOLERANCE
    assert found.read("norm_out.linear.weight").dtype == torch.float32


LAYER = "transformer.transformer_blocks.0.attn.to_q"
GOOD: dict[str, tuple[int, ...]] = {
    f"{LAYER}.lora_A.weight": (2, 96),
    f"{LAYER}.lora_B.weight": (96, 2),
}
FLUX = "transformer.single_transformer_blocks.0.attn.to_q"
REFUSED: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "nothing": ({}, "holds no tensor"),
    "another network": (
        {f"{FLUX}.lora_A.weight": (2, 96), f"{FLUX}.lora_B.weight": (96, 2)} | GOOD,
        f"2 of 4 keys match no tensor of the checkpoint: {FLUX}.lora_A.weight, "
        f"{FLUX}.lora_B.weight; it was made for FLUX",
    ),
    "a deeper network": (
        {
            f"lora_unet_joint_blocks_{i}_x_block_mlp_fc1.lora_up.weight": (2, 2)
            for i in range(30, 37)
        },
        "7 of 7 keys match no tensor of the checkpoint: "
        + ", ".join(
            f"lora_unet_joint_blocks_{i}_x_block_mlp_fc1.lora_up.weight" for i in range(30, 35)
        )
        + " and 2 more; it was made for SD3.5 Large",
    ),
    "an unknown ending": (
        GOOD | {f"{LAYER}.lora_C.weight": (2, 2)},
        f"1 of 3 keys match no tensor of the checkpoint: {LAYER}.lora_C.weight",
    ),
    "a wider network": (
        {f"{LAYER}.lora_A.weight": (2, 2432), f"{LAYER}.lora_B.weight": (2432, 2)},
        f"'{LAYER}.lora_A.weight' makes a change of 2432 x 2432, and "
        "'transformer/transformer_blocks.0.attn.to_q.weight' needs 96 x 96; it was made for "
        "another base model, SD3.5 Large",
    ),
    "half of it": (
        {f"{LAYER}.lora_A.weight": (2, 96)},
        f"'{LAYER}.lora_A.weight' has no 'up' beside it; copy it again",
    ),
    "two ranks": (
        {f"{LAYER}.lora_A.weight": (3, 96), f"{LAYER}.lora_B.weight": (96, 2)},
        "the shapes of a layer do not fit each other: "
        f"{{'{LAYER}.lora_A.weight': (3, 96), '{LAYER}.lora_B.weight': (96, 2)}}",
    ),
    "no axes": (
        {f"{LAYER}.lora_A.weight": (), f"{LAYER}.lora_B.weight": ()},
        "the shapes of a layer do not fit each other",
    ),
    "factors twice": (
        {f"{LAYER}.lokr_{w}": (4, 4) for w in ("w1", "w2", "w2_a", "w2_b")},
        f"'{LAYER}.lokr_w2' is there whole and as two factors",
    ),
    "an alpha alone": (
        GOOD | {"transformer.proj_out.alpha": ()},
        "'transformer.proj_out.alpha' has no LoRA that it belongs to",
    ),
    "two adapters": (
        GOOD | {f"{LAYER}.lora_A.other.weight": (2, 96)},
        f"'{LAYER}.lora_A.other.weight' and '{LAYER}.lora_A.weight' are two adapters in one file; "
        "save each to a file of its own",
    ),
    "one tensor twice": (
        GOOD
        | {
            "diffusion_model.joint_blocks.0.x_block.attn.qkv.lora_A.weight": (2, 96),
            "diffusion_model.joint_blocks.0.x_block.attn.qkv.lora_B.weight": (288, 2),
        },
        "changes tensor 'transformer/transformer_blocks.0.attn.to_q.weight', which other keys of "
        "the file change already",
    ),
    "a bias that is not there": (
        {"text_encoder.text_projection.diff_b": (32,)},
        "'text_encoder.text_projection.diff_b' matches no tensor of the checkpoint: text_encoder "
        "has no 'text_projection.bias'",
    ),
    "lengths of another shape": (
        GOOD | {f"{LAYER}.lora_magnitude_vector": (95,)},
        f"'{LAYER}.lora_magnitude_vector' has shape [95]; 96 lengths are expected",
    ),
    "lengths by input of a fused layer": (
        {
            "lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight": (2, 96),
            "lora_unet_joint_blocks_0_x_block_attn_qkv.lora_up.weight": (288, 2),
            "lora_unet_joint_blocks_0_x_block_attn_qkv.dora_scale": (1, 96),
        },
        "keeps lengths by input of queries, keys and values in one, which are apart here; train "
        "it with lengths by output",
    ),
    "an encoder that is not named": (
        {
            "text_model.encoder.layers.0.layer_norm1.lora_A.weight": (2, 1),
            "text_model.encoder.layers.0.layer_norm1.lora_B.weight": (7, 2),
        },
        "makes a change of 7 x 1, and 'text_encoder/text_model.encoder.layers.0.layer_norm1.weight'"
        " needs 32 x 1",
    ),
    "OpenCLIP's names": (
        {
            "lora_te2_transformer_resblocks_0_mlp_c_fc.lora_down.weight": (2, 48),
            "lora_te2_transformer_resblocks_0_mlp_c_fc.lora_up.weight": (96, 2),
        },
        "; it was made for OpenCLIP: give its layers the names of transformers (encoder.layers)",
    ),
    "weights": (
        {"model.diffusion_model.joint_blocks.0.x_block.attn.proj.weight": (96, 96)},
        "; it holds no LoRA's keys: a file of weights is named in [model]",
    ),
    "OFT": (
        {"lora_unet_joint_blocks_0_x_block_attn_proj.oft_blocks": (2, 2, 2)},
        "'lora_unet_joint_blocks_0_x_block_attn_proj.oft_blocks' is OFT, which is not merged; "
        "merged are LoRA, DoRA, LoHa, LoKr and full differences",
    ),
}

OURS = "lora_unet_joint_blocks_0_x_block_attn_proj"
PEFTS = "base_model.model.transformer_blocks.0.attn.to_q"
WORDS = "text_model.embeddings.token_embedding"
# What else people call a LoRA, by a key of each: what it is said to be.
NO_LORA = {
    f"{PEFTS}.oft_R.weight": "OFT",
    f"{PEFTS}.oft_R.default.weight": "OFT",
    f"{PEFTS}.oft_r": "OFT",
    f"{OURS}.oft_diag": "OFT",
    f"{PEFTS}.boft_R": "BOFT",
    f"{OURS}.b2.weight": "GLoRA",
    f"text_encoder.{WORDS}.lora_embedding_A": "a LoRA of an embedding",
    f"text_encoder.{WORDS}.lora_embedding_B.default": "a LoRA of an embedding",
    "emb_params": "a textual inversion",
    "clip_g": "a textual inversion",
    "<a-cat>": "a textual inversion",
    "bundle_emb.cat.clip_l": "a textual inversion",
    f"{PEFTS}.lora_E": "AdaLoRA",
    f"{PEFTS}.vera_lambda_b": "VeRA",
    f"{PEFTS}.fourierft_spectrum": "FourierFT",
    f"{PEFTS}.bone_": "MiSS",
    f"{PEFTS}.miss_block": "MiSS",
    f"{OURS}.on_input": "IA3",
    "diffusion_model.x_embedder.proj.reshape_weight": "a change of a layer's shape",
    "lora_controlnet": "a ControlNet",
}


@pytest.mark.parametrize("key", NO_LORA)
def test_what_is_no_lora_is_called_by_its_name(key: str, tiny_folder: Path, tmp_path: Path) -> None:
    file = saved(tmp_path / "a.safetensors", {key: torch.ones(2, 2)})
    with pytest.raises(InputError) as told:
        open_checkpoint(str(tiny_folder), USED, loras=[Lora(file)])
    assert str(told.value) == (
        f"{file}: '{key}' is {NO_LORA[key]}, which is not merged; merged are LoRA, DoRA, LoHa, "
        "LoKr and full differences"
    )


@pytest.mark.parametrize("layer", [f"text_encoder.{WORDS}", "lora_te1_" + WORDS.replace(".", "_")])
def test_a_product_for_an_embedding_is_refused_and_a_difference_is_not(
    layer: str, tiny_folder: Path, tmp_path: Path
) -> None:
    """Whether it is the table or the table turned round, files do not agree."""
    halves = {f"{layer}.lora_down.weight": (2, 32), f"{layer}.lora_up.weight": (1000, 2)}
    file = saved(tmp_path / "a.safetensors", {key: torch.ones(s) for key, s in halves.items()})
    with pytest.raises(InputError, match="is a LoRA of an embedding, which is not merged"):
        open_checkpoint(str(tiny_folder), USED, loras=[Lora(file)])
    whole = {f"{layer}.diff": torch.ones(1000, 32)}
    merged_with(tiny_folder, tmp_path / "b.safetensors", whole)


def test_endings_of_older_and_newer_versions_mean_the_same(
    tiny_folder: Path, tmp_path: Path
) -> None:
    endings = (
        (".lora_A.weight", ".lora_B.weight"),
        (".lora_A.default.weight", ".lora_B.default.weight"),
        (".lora.down.weight", ".lora.up.weight"),
        ("_lora.down.weight", "_lora.up.weight"),
        (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
        (".lora_down.weight", ".lora_up.weight"),
    )
    found = set()
    for down, up in endings:
        tensors = {f"{LAYER}{down}": random(2, 96), f"{LAYER}{up}": random(96, 2)}
        opened = merged_with(tiny_folder, tmp_path / "a.safetensors", tensors)
        found.add(opened.loras[0].digest)
    assert len(found) == 1


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_is_used_whole_or_refused(case: str, tiny_folder: Path, tmp_path: Path) -> None:
    shapes, message = REFUSED[case]
    file = saved(tmp_path / "a.safetensors", {key: torch.ones(s) for key, s in shapes.items()})
    with pytest.raises(InputError) as told:
        open_checkpoint(str(tiny_folder), USED, loras=[Lora(file)])
    assert str(told.value).startswith(f"{file}: ")
    assert message in str(told.value)


def test_values_that_are_not_finite_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    tensors = {key: torch.ones(shape) for key, shape in GOOD.items()}
    tensors[f"{LAYER}.lora_A.weight"][1, 5] = math.nan
    file = saved(tmp_path / "a.safetensors", tensors)
    with pytest.raises(InputError, match=r"lora_A.weight' holds values that are not finite"):
        open_checkpoint(str(tiny_folder), USED, loras=[Lora(file)])
    tensors[f"{LAYER}.lora_A.weight"][1, 5] = 3e38
    checkpoint = open_checkpoint(str(tiny_folder), USED, loras=[Lora(saved(file, tensors), 1e9)])
    with pytest.raises(InputError, match=r"a.safetensors: merged into 'transformer/.*to_q.weight'"):
        checkpoint.component("transformer").read("transformer_blocks.0.attn.to_q.weight")


def test_places_of_a_lora(tiny_folder: Path, tmp_path: Path) -> None:
    def refused(place: Path) -> str:
        with pytest.raises(InputError) as told:
            open_checkpoint(str(tiny_folder), USED, loras=[Lora(place)])
        return str(told.value)

    assert refused(tmp_path) == f"{tmp_path}: no .safetensors file; a LoRA is one"
    assert "from the hub: hf download OWNER/NAME" in refused(tmp_path / "swd")
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    assert f"{tmp_path / 'adapter_model.bin'}: pickled weights" in refused(tmp_path)
    assert "pickled weights" in refused(tmp_path / "old.ckpt")
    tensors = {key: torch.ones(shape) for key, shape in GOOD.items()}
    one, two = (saved(tmp_path / f"{name}.safetensors", tensors) for name in "ab")
    assert refused(tmp_path) == (
        f"{tmp_path}: several LoRAs: a.safetensors, b.safetensors; name one of them"
    )
    two.write_bytes(b"not one")
    assert refused(two).startswith(f"{two}: not a whole safetensors file")
    two.unlink()
    assert open_checkpoint(str(tiny_folder), USED, loras=[Lora(tmp_path)]).loras[0].file == one


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "OFT"}, "unknown peft_type 'OFT'; known: LOHA, LOKR, LORA"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base model too; convert it to a"),
        ({"modules_to_save": ["proj_out"]}, "modules_to_save = ['proj_out'] is not merged"),
        ({"r": 3}, "rank 3 of 'transformer_blocks.0.attn.to_q', and its tensors have 2"),
        ({"lora_alpha": "8"}, "lora_alpha = '8': a number but 0 is expected"),
        ({"alpha_pattern": {"(": 8}}, "pattern '('"),
        ({"rank_pattern": [2]}, "rank_pattern: an object of names and numbers is expected"),
        ({"use_dora": True}, "has no lora_magnitude_vector"),
    ],
)
def test_settings_that_are_not_merged_are_refused(
    settings: dict[str, Any], message: str, tiny_folder: Path, tmp_path: Path
) -> None:
    saved(tmp_path / "adapter_model.safetensors", {k: torch.ones(s) for k, s in GOOD.items()})
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"} | settings))
    with pytest.raises(InputError) as told:
        open_checkpoint(str(tiny_folder), USED, loras=[Lora(tmp_path)])
    assert message in str(told.value)
    assert str(tmp_path / "adapter_config.json") in str(told.value)


RECIPE = """
[model]
checkpoint = "{checkpoint}"
[schedule]
sigmas = [1.0, 0.5, 0.0]
[image]
width_px = 64
height_px = 48
image_to_image = false
[text]
t5 = false
[weights]
scheme = "fp32"
[build]
backends = ["onnx"]
"""


def test_a_recipe_with_a_lora_draws_as_diffusers_fused_checkpoint(
    tmp_path: Path,
    tiny_copy: Path,
    diffusers_file: Path,
    fused: Mapping[str, Mapping[str, Tensor]],
) -> None:
    def built(name: str, text: str) -> tuple[Path, Any]:
        (tmp_path / f"{name}.toml").write_text(RECIPE.format(checkpoint=tiny_copy) + text)
        out = str(tmp_path / name)
        result = CliRunner().invoke(main, ["build", str(tmp_path / f"{name}.toml"), "--out", out])
        assert result.exit_code == 0, result.output
        return tmp_path / name / "onnx-fp32", read_manifest(tmp_path / name / "onnx-fp32")

    shutil.copyfile(diffusers_file, tmp_path / "style.safetensors")
    one, manifest = built("one", f'[[lora]]\nfile = "style.safetensors"\nweight = {WEIGHT}\n')
    (lora,) = manifest.origin.loras
    assert lora.weight == WEIGHT
    inspected = CliRunner().invoke(main, ["inspect", str(one)])
    assert f"LoRA {lora.sha256[:12]} merged at weight {WEIGHT}" in inspected.output
    for name, tensors in fused.items():
        (file,) = (tiny_copy / name).glob("*.safetensors")
        saved(file, tensors)
    two, plain = built("two", "")
    assert plain.origin.loras == ()
    assert plain.origin.checkpoint_sha256 != manifest.origin.checkpoint_sha256
    pictures = [
        np.asarray(Image.open(folder / entry.golden.pictures[0].image), dtype=np.int64)
        for folder, entry in ((one, manifest), (two, plain))
    ]
    assert np.abs(pictures[0] - pictures[1]).max() <= 1
    assert pictures[0].std() > 1


def test_a_changed_file_is_another_checkpoint(tiny_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    tensors = {key: torch.ones(shape) for key, shape in GOOD.items()}

    def digest(weight: float = 1.0) -> str:
        saved(file, tensors)
        return open_checkpoint(str(tiny_folder), USED, loras=[Lora(file, weight)]).digest

    found = [digest(), digest(0.5), open_checkpoint(str(tiny_folder), USED).digest]
    tensors[f"{LAYER}.lora_A.weight"][0, 0] = 2
    found.append(digest())
    tensors["transformer.transformer_blocks.0.attn.to_q.alpha"] = torch.tensor(1.0)
    found.append(digest())
    assert len(set(found)) == 5

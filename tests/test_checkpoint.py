"""Checkpoints: whatever a user may hold, read or refused in one line."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from exporter.calibrate.weights import Weights
from exporter.checkpoint.open import READ_AT_ONCE, Checkpoint, open_checkpoint, tensor_digest
from exporter.checkpoint.sources import TensorSource
from exporter.errors import InputError
from exporter.network.assemble import components_of, cut_graphs
from exporter.program.run import run
from exporter.program.trace import trace
from tests.conftest import SMALL, edit_json

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"


def refused(folder: Path, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        open_checkpoint(str(folder))
    assert "\n" not in str(caught.value)


def test_components(tiny: Checkpoint) -> None:
    assert set(tiny.components) == {
        "transformer",
        "text_encoder",
        "text_encoder_2",
        "text_encoder_3",
        "vae",
    }
    assert tiny.has_t5
    tensor = tiny.component("transformer").read("proj_out.weight")
    assert tensor.shape == (64, 96) and tensor.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_as_float32(tiny_copy: Path, dtype: torch.dtype) -> None:
    file = tiny_copy / TRANSFORMER
    tensors = {k: v.to(dtype) for k, v in load_file(file).items()}
    save_file(tensors, file)
    checkpoint = open_checkpoint(str(tiny_copy))
    assert checkpoint.component("transformer").info("proj_out.weight").dtype in ("BF16", "F16")
    program = trace(cut_graphs(checkpoint, SMALL)[4])
    inputs = {p.name: torch.randn(p.shape) for p in program.inputs}
    out = run(program, Weights(checkpoint).read, inputs)["velocity"]
    assert out.dtype == torch.float32 and out.isfinite().all()


def test_shards(tiny_copy: Path, tiny: Checkpoint) -> None:
    file = tiny_copy / TRANSFORMER
    tensors = load_file(file)
    names = sorted(tensors)
    halves = {"a-1.safetensors": names[::2], "a-2.safetensors": names[1::2]}
    for shard, keys in halves.items():
        save_file({k: tensors[k] for k in keys}, file.parent / shard)
    index = {"weight_map": {k: shard for shard, keys in halves.items() for k in keys}}
    (file.parent / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    file.unlink()
    sharded = open_checkpoint(str(tiny_copy)).component("transformer")
    whole = tiny.component("transformer")
    assert set(sharded.tensors) == set(whole.tensors)
    for name in names[:5]:
        assert torch.equal(sharded.read(name), whole.read(name))
    (file.parent / "a-2.safetensors").unlink()
    refused(tiny_copy, "index.json: shard a-2.safetensors is missing")


def test_pickled_weights_are_refused_by_name(tiny_copy: Path) -> None:
    (tiny_copy / TRANSFORMER).unlink()
    (tiny_copy / "transformer" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04evil")
    refused(tiny_copy, r"diffusion_pytorch_model\.bin: pickled weights .* never opened")


def test_truncated_weights(tiny_copy: Path) -> None:
    file = tiny_copy / TRANSFORMER
    file.write_bytes(file.read_bytes()[:-100])
    refused(tiny_copy, "not a whole safetensors file .*; copy it again")


def test_wrong_dtype(tiny_copy: Path) -> None:
    file = tiny_copy / TRANSFORMER
    save_file({k: v.to(torch.int16) for k, v in load_file(file).items()}, file)
    refused(tiny_copy, "unknown dtype 'I16'; known: BF16, F16, F32")


@pytest.mark.parametrize("component", ["transformer", "vae", "text_encoder", "text_encoder_2"])
def test_missing_component(tiny_copy: Path, component: str) -> None:
    shutil.rmtree(tiny_copy / component)
    refused(tiny_copy, rf"component '{component}' \(.*\) is missing")


def test_without_t5(tiny_copy: Path) -> None:
    shutil.rmtree(tiny_copy / "text_encoder_3")
    checkpoint = open_checkpoint(str(tiny_copy))
    assert not checkpoint.has_t5
    with pytest.raises(InputError, match=r"'text_encoder_3' .* is missing; set t5 = false"):
        cut_graphs(checkpoint, SMALL)


@pytest.mark.parametrize("state", ["absent", "float8", "pickled", "damaged"])
def test_components_that_are_not_asked_for_are_not_opened(
    tiny_copy: Path, tiny: Checkpoint, state: str
) -> None:
    used = components_of(replace(SMALL, t5=False))
    before = open_checkpoint(str(tiny.folder), used)
    assert "text_encoder_3" not in before.components
    weights = tiny_copy / "text_encoder_3" / "model.safetensors"
    if state == "absent":
        shutil.rmtree(weights.parent)
    elif state == "float8":
        save_file({"x": torch.zeros(4).to(torch.float8_e4m3fn)}, weights)
    elif state == "damaged":
        weights.write_bytes(b"not weights")
        (weights.parent / "config.json").write_text("[]")
    else:
        weights.rename(weights.with_name("pytorch_model.bin"))
    after = open_checkpoint(str(tiny_copy), used)
    assert after.digest == before.digest != tiny.digest
    cut_graphs(after, replace(SMALL, t5=False))


def test_a_component_that_is_asked_for_must_be_there(tiny_copy: Path) -> None:
    shutil.rmtree(tiny_copy / "text_encoder_3")
    with pytest.raises(InputError, match=r"'text_encoder_3' .* is missing; set t5 = false"):
        open_checkpoint(str(tiny_copy), components_of(SMALL))


def test_weights_that_config_does_not_speak_of_are_refused(tiny_copy: Path) -> None:
    """diffusers writes qk_norm; without it the norms were left out of the picture, silently."""
    edit_json(tiny_copy / "transformer" / "config.json", qk_norm=None)
    with pytest.raises(InputError, match=r"does not speak of: '.*norm_added_k.*' and \d+ more"):
        cut_graphs(open_checkpoint(str(tiny_copy)), SMALL)


def test_weights_that_change_no_picture_are_passed_over(tiny_copy: Path) -> None:
    for component, name in (
        ("text_encoder", "text_model.embeddings.position_ids"),
        ("text_encoder", "logit_scale"),
        ("text_encoder_3", "encoder.embed_tokens.weight"),
        ("text_encoder_3", "decoder.block.0.layer.0.layer_norm.weight"),
        ("text_encoder_3", "lm_head.weight"),
    ):
        file = tiny_copy / component / "model.safetensors"
        save_file(load_file(file) | {name: torch.zeros(1)}, file)
    file = tiny_copy / "vae" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(file) | {"encoder.more": torch.zeros(1)}, file)
    checkpoint = open_checkpoint(str(tiny_copy))
    cut_graphs(checkpoint, replace(SMALL, image_to_image=False))
    with pytest.raises(InputError, match=r"does not speak of: 'encoder.more'; the picture"):
        cut_graphs(checkpoint, SMALL)


@pytest.mark.parametrize(
    ("component", "key", "value", "said"),
    [
        ("text_encoder", "num_attention_heads", 0, "a whole number from 1"),
        ("text_encoder", "hidden_size", "32", "a whole number from 1"),
        ("text_encoder", "num_attention_heads", 3, "hidden_size = 32 is no multiple of"),
        ("text_encoder", "layer_norm_eps", True, "a number from 0 to 1 is expected"),
        ("text_encoder_3", "num_layers", None, "key 'num_layers' is null"),
        ("text_encoder_3", "relative_attention_num_buckets", 0, "a whole number from 4"),
        ("transformer", "num_layers", 10**9, "a whole number from 1 to 256"),
        ("transformer", "dual_attention_layers", 3, "a list of whole numbers"),
        ("transformer", "patch_size", 2.0, "a whole number from 1"),
        ("vae", "block_out_channels", "x", "a list of whole numbers"),
        ("vae", "norm_num_groups", 7, "is no multiple of norm_num_groups = 7"),
        ("vae", "scaling_factor", 0, "a number from 1e-06"),
        ("vae", "latent_channels", 8, "transformer/config.json says in_channels = 16"),
        ("vae", "mid_block_add_attention", 1, "true or false is expected"),
    ],
)
def test_values_of_a_wrong_type_or_size(
    tiny_copy: Path, component: str, key: str, value: object, said: str
) -> None:
    edit_json(tiny_copy / component / "config.json", **{key: value})
    with pytest.raises(InputError, match=said) as caught:
        cut_graphs(open_checkpoint(str(tiny_copy)), SMALL)
    assert f"{component}/config.json: " in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (["diffusers"], "transformer: a list of library and class is expected"),
        ("SD3Transformer2DModel", "a list of library and class is expected"),
        (["diffusers", 7], "transformer is a 7; supported: SD3Transformer2DModel"),
    ],
)
def test_entries_of_model_index(tiny_copy: Path, entry: object, said: str) -> None:
    edit_json(tiny_copy / "model_index.json", transformer=entry)
    refused(tiny_copy, said)


def test_an_index_of_any_shape(tiny_copy: Path) -> None:
    index = tiny_copy / "transformer" / "x.safetensors.index.json"
    shapes: list[object] = [None, [], {}, {"a": 1}, {"a": None}]
    for weights in shapes:
        index.write_text(json.dumps({"weight_map": weights}))
        refused(tiny_copy, "index.json: weight_map must be an object of tensors and files")
    index.write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    refused(tiny_copy, "a shard lies outside its folder")
    index.write_text(json.dumps({"weight_map": {"a": 300 * "x"}}))
    refused(tiny_copy, "x.safetensors.index.json: shard x{300} is missing")


def test_which_weights_are_meant(tiny_copy: Path) -> None:
    """The plain name wins over a variant; shards without their index are not taken for a set."""
    file = tiny_copy / TRANSFORMER
    half = file.with_name("diffusion_pytorch_model.fp16.safetensors")
    shutil.copyfile(file, half)
    assert open_checkpoint(str(tiny_copy)).component("transformer").files == (file,)
    file.rename(file.with_name("other.safetensors"))
    refused(tiny_copy, "several sets of weights: diffusion_pytorch_model.fp16.* keep one of them")
    file.with_name("other.safetensors").unlink()
    assert open_checkpoint(str(tiny_copy)).component("transformer").files == (half,)
    half.rename(file.with_name("model-00001-of-00002.safetensors"))
    refused(tiny_copy, r"and their index is missing; copy the file \*.safetensors.index.json too")


def test_no_weights_at_all(tiny_copy: Path) -> None:
    (tiny_copy / TRANSFORMER).unlink()
    refused(tiny_copy, r"no \.safetensors file")


def test_not_a_checkpoint(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "no such file or folder")
    refused(tmp_path, "model_index.json is missing; name a folder in diffusers layout")


def test_other_pipeline(tiny_copy: Path) -> None:
    edit_json(tiny_copy / "model_index.json", _class_name="FluxPipeline")
    refused(tiny_copy, "'FluxPipeline' is not supported; supported: 'StableDiffusion3Pipeline'")


def test_broken_config(tiny_copy: Path) -> None:
    (tiny_copy / "vae" / "config.json").write_text("{")
    refused(tiny_copy, r"vae.config\.json: not valid JSON")


@pytest.mark.parametrize(
    ("component", "changes", "message"),
    [
        ("transformer", {"qk_norm": "layer_norm"}, "qk_norm = 'layer_norm' is not supported"),
        ("vae", {"use_quant_conv": True}, "use_quant_conv = True is not supported"),
        ("text_encoder", {"hidden_act": "relu"}, "hidden_act = 'relu' is not supported"),
        ("text_encoder_3", {"feed_forward_proj": "relu"}, "supported: 'gated-gelu'"),
        ("transformer", {"pooled_projection_dim": 7}, "pooled_projection_dim = 7"),
    ],
)
def test_unsupported_configurations(
    tiny_copy: Path, component: str, changes: dict[str, object], message: str
) -> None:
    edit_json(tiny_copy / component / "config.json", **changes)
    with pytest.raises(InputError, match=message):
        cut_graphs(open_checkpoint(str(tiny_copy)), SMALL)


def test_weights_that_do_not_fit_the_configuration(tiny_copy: Path) -> None:
    edit_json(tiny_copy / "transformer" / "config.json", joint_attention_dim=128)
    checkpoint = open_checkpoint(str(tiny_copy))
    with pytest.raises(InputError, match="d_model = 96; .* says joint_attention_dim = 128"):
        cut_graphs(checkpoint, SMALL)
    with pytest.raises(
        InputError, match=r"context_embedder.weight' has shape \[96, 96\]; .* \[96, 128\]"
    ):
        cut_graphs(checkpoint, replace(SMALL, t5=False))


def test_missing_tensor(tiny_copy: Path) -> None:
    file = tiny_copy / TRANSFORMER
    tensors = load_file(file)
    del tensors["proj_out.weight"]
    save_file(tensors, file)
    checkpoint = open_checkpoint(str(tiny_copy))
    with pytest.raises(InputError, match=r"tensor 'proj_out.weight' is missing"):
        cut_graphs(checkpoint, SMALL)


def test_a_revision_is_of_a_hub_id(tiny_folder: Path) -> None:
    with pytest.raises(InputError, match="is a folder; a revision applies to hub ids"):
        open_checkpoint(str(tiny_folder), revision="main")


def test_a_file_that_vanishes_under_the_digest_is_an_error(
    tiny: Checkpoint, tmp_path: Path
) -> None:
    shutil.copytree(tiny.folder, tmp_path / "copy")
    checkpoint = open_checkpoint(str(tmp_path / "copy"))
    (tmp_path / "copy" / TRANSFORMER).unlink()
    with pytest.raises(InputError, match=r"diffusion_pytorch_model\.safetensors: "):
        _ = checkpoint.digest


def test_the_digest_is_read_beside_by_few_threads(
    tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    inside: list[TensorSource] = []
    most: list[int] = []

    def slow(source: TensorSource) -> str:
        inside.append(source)
        most.append(len(inside))
        go.wait()
        inside.remove(source)
        return tensor_digest(source)

    monkeypatch.setattr("exporter.checkpoint.open.tensor_digest", slow)
    opened = open_checkpoint(str(tiny.folder))
    opened.begin_digest()  # does not wait
    go.set()
    assert opened.digest == tiny.digest
    assert len(most) > READ_AT_ONCE >= max(most)

"""Checkpoints: whatever a user may hold, read or refused in one line."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from exporter.calibrate.weights import Weights
from exporter.checkpoint.folder import READ_AT_ONCE, Checkpoint, open_checkpoint
from exporter.errors import InputError
from exporter.files.read import file_digest
from exporter.network.assemble import cut_graphs
from exporter.program.run import run
from exporter.program.trace import bind, trace
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
    save_file({k: v.to(torch.float64) for k, v in load_file(file).items()}, file)
    refused(tiny_copy, "unknown dtype 'F64'; known: BF16, F16, F32")


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


def test_no_weights_at_all(tiny_copy: Path) -> None:
    (tiny_copy / TRANSFORMER).unlink()
    refused(tiny_copy, r"no \.safetensors file")


def test_not_a_checkpoint(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "no such folder")
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
    graph = next(g for g in cut_graphs(checkpoint, SMALL) if g.name == "conditioner")
    with pytest.raises(
        InputError, match=r"context_embedder.weight' has shape \[96, 96\]; .* \[96, 128\]"
    ):
        bind(trace(graph), Weights(checkpoint).shape)


def test_missing_tensor(tiny_copy: Path) -> None:
    file = tiny_copy / TRANSFORMER
    tensors = load_file(file)
    del tensors["proj_out.weight"]
    save_file(tensors, file)
    checkpoint = open_checkpoint(str(tiny_copy))
    with pytest.raises(InputError, match=r"tensor 'proj_out.weight' is missing"):
        bind(trace(cut_graphs(checkpoint, SMALL)[4]), Weights(checkpoint).shape)


def test_a_hub_id_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def snapshot(place: str, local_files_only: bool = False, **_: object) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(InputError, match="the hub cannot be reached .* name its folder"):
        open_checkpoint("nobody/nothing")


def test_a_gated_hub_id(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    class GatedRepoError(Exception):
        pass

    def snapshot(place: str, local_files_only: bool = False, **_: object) -> str:
        raise GatedRepoError("403")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(InputError, match="gated; accept its licence there, then: hf auth login"):
        open_checkpoint("stabilityai/stable-diffusion-3.5-medium")


def test_a_hub_id_in_the_cache(monkeypatch: pytest.MonkeyPatch, tiny_folder: Path) -> None:
    import huggingface_hub

    def snapshot(place: str, local_files_only: bool = False, **_: object) -> str:
        assert local_files_only
        return str(tiny_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert open_checkpoint("someone/tiny").folder == tiny_folder


def test_a_file_that_vanishes_under_the_digest_is_an_error(
    tiny: Checkpoint, tmp_path: Path
) -> None:
    shutil.copytree(tiny.folder, tmp_path / "copy")
    checkpoint = open_checkpoint(str(tmp_path / "copy"))
    (tmp_path / "copy" / "vae" / "config.json").unlink()
    with pytest.raises(FileNotFoundError):
        _ = checkpoint.digest


def test_the_digest_is_read_beside_by_few_threads(
    tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    inside: list[Path] = []
    most: list[int] = []

    def slow(file: Path) -> str:
        inside.append(file)
        most.append(len(inside))
        go.wait()
        inside.remove(file)
        return file_digest(file)

    monkeypatch.setattr("exporter.checkpoint.folder.file_digest", slow)
    opened = open_checkpoint(str(tiny.folder))
    opened.begin_digest()  # does not wait
    go.set()
    assert opened.digest == tiny.digest
    assert len(most) > READ_AT_ONCE >= max(most)

"""The random checkpoint: true names and shapes, same bytes, sane activations, whole or absent."""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import fx

from exporter.build.model import token_counts
from exporter.build.pipeline import build
from exporter.calibrate.weights import Weights
from exporter.checkpoint.open import Checkpoint, open_checkpoint
from exporter.checkpoint.tokenizers import TokenizerFile, tokenizer_files
from exporter.cli import main
from exporter.drawing.text import PromptCut
from exporter.errors import InputError
from exporter.files.read import file_digest
from exporter.network import clip, denoiser, t5, vae
from exporter.network.assemble import cut_graphs
from exporter.network.cut import Cut
from exporter.package.manifest import Port
from exporter.program.program import Program
from exporter.program.run import run
from exporter.program.trace import trace
from exporter.progress import Progress
from exporter.recipe.recipe import read_recipe
from exporter.synth import presets, write
from exporter.synth.presets import Preset
from exporter.synth.values import POSITION_TABLE, TensorPlan, bfloat16_bits, blocks, draw_of
from exporter.synth.write import plan, synthesize
from tests.conftest import ROOT, SIGMAS

# Every kind of layer, in widths that take seconds; vocabularies of the true size.
SMALL = Preset(
    denoiser.TransformerConfig(3, 2, 64, 16, 2, 128, 128, 24, (0, 1), True),
    clip.ClipConfig(64, 256, 3, 2, "quick_gelu", 64, 77, 49408, 2, 1e-5),
    clip.ClipConfig(64, 256, 3, 2, "gelu", 64, 77, 49408, 2, 1e-5),
    t5.T5Config(128, 256, 64, 2, 2, 32128, 32, 128, 1e-6),
    vae.VaeConfig((32, 32, 64, 64), 16, 1, 8, 1.5305, 0.0609, True),
)
CUT = Cut(SIGMAS, 64, 64, t5=True, t5_tokens=32)
NO_T5 = replace(CUT, t5=False)
LONG = "a red fox reading a newspaper in a crowded cafe, morning light, " * 8


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesize(SMALL, tmp_path_factory.mktemp("synth") / "small").path


@pytest.fixture(scope="module")
def mini_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """1.9 GB, which do not outlive the tests: the true widths."""
    folder = tmp_path_factory.mktemp("mini") / "mini"
    yield synthesize(presets.find_preset("sd3.5-flash-mini"), folder).path
    shutil.rmtree(folder)


def digests(folder: Path) -> dict[str, str]:
    files = [f for f in folder.rglob("*") if f.is_file()]
    return {f.relative_to(folder).as_posix(): file_digest(f) for f in files}


def fourstep(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)


def test_half_has_half_of_the_blocks() -> None:
    half = plan(presets.find_preset("sd3.5-flash-half"))
    blocks = {t.name.split(".")[1] for t in half[0].tensors if "transformer_blocks" in t.name}
    assert len(blocks) == half[0].config["num_layers"] == 12


def test_full_size_has_the_published_counts() -> None:
    """reference/model.md 2.7: the MMDiT with its 226,492,416 positions; nothing is written."""
    parts = plan(presets.find_preset("sd3.5-flash"))
    assert {p.component: sum(t.values for t in p.tensors) for p in parts} == {
        "transformer": 2_243_171_520 + 384 * 384 * 1536,
        "text_encoder": 123_650_304,
        "text_encoder_2": 694_659_840,
        "text_encoder_3": 4_762_310_656,
        "vae": 34_274_208 + 49_545_475,
    }


def test_full_size_has_the_names_and_shapes_of_the_originals() -> None:
    """Every tensor and configuration against diffusers and transformers, on the meta device."""
    from diffusers import AutoencoderKL, SD3Transformer2DModel
    from transformers import (
        CLIPTextConfig,
        CLIPTextModelWithProjection,
        T5Config,
        T5EncoderModel,
    )

    config = {p.component: dict(p.config) for p in plan(presets.FLASH)}
    with torch.device("meta"):
        originals = {
            "transformer": SD3Transformer2DModel.from_config(config["transformer"]),
            "vae": AutoencoderKL.from_config(config["vae"]),
            "text_encoder": CLIPTextModelWithProjection(CLIPTextConfig(**config["text_encoder"])),
            "text_encoder_2": CLIPTextModelWithProjection(
                CLIPTextConfig(**config["text_encoder_2"])
            ),
            "text_encoder_3": T5EncoderModel(T5Config(**config["text_encoder_3"])),
        }
    for part in plan(presets.FLASH):
        state = originals[part.component].state_dict()
        state.pop("encoder.embed_tokens.weight", None)  # T5: tied to shared.weight, not stored
        expected = {name: tuple(value.shape) for name, value in state.items()}
        assert {t.name: t.shape for t in part.tensors} == expected


@pytest.mark.parametrize(
    ("name", "values"), [("sd3-medium", 2_028_328_000), ("sd3.5-large-turbo", 8_056_627_520)]
)
def test_other_networks_have_the_names_and_shapes_of_the_originals(name: str, values: int) -> None:
    """Against diffusers on the meta device: 2.03 and 8.06 billion weights and their positions."""
    from diffusers import SD3Transformer2DModel

    preset = presets.find_preset(name)
    (part,) = (p for p in plan(preset) if p.component == "transformer")
    with torch.device("meta"):
        original = SD3Transformer2DModel.from_config(dict(part.config))
    expected = {name: tuple(value.shape) for name, value in original.state_dict().items()}
    assert {t.name: t.shape for t in part.tensors} == expected
    width = preset.transformer.width
    assert sum(t.values for t in part.tensors) == values + 192**2 * width
    twin = presets.find_preset(f"{name}-twin").transformer
    full = preset.transformer
    assert (twin.qk_norm, bool(twin.dual_layers)) == (full.qk_norm, bool(full.dual_layers))


def load_all(folder: Path) -> None:
    """Load every model with diffusers and transformers; no key may be missing or unexpected."""
    from diffusers import AutoencoderKL, SD3Transformer2DModel
    from transformers import CLIPTextModelWithProjection, T5EncoderModel

    for name, kind in {
        "transformer": SD3Transformer2DModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModelWithProjection,
        "text_encoder_2": CLIPTextModelWithProjection,
        "text_encoder_3": T5EncoderModel,
    }.items():
        model, report = kind.from_pretrained(
            folder / name, output_loading_info=True, torch_dtype=torch.bfloat16
        )
        assert not any(report.values()), (name, report)
        assert all(torch.isfinite(p).all() for p in model.parameters())


def test_diffusers_and_transformers_load_it(small_folder: Path) -> None:
    load_all(small_folder)


def test_diffusers_draws_with_it(small_folder: Path) -> None:
    from diffusers import StableDiffusion3Pipeline

    pipeline = StableDiffusion3Pipeline.from_pretrained(small_folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        "a red circle", num_inference_steps=2, guidance_scale=1.0, width=64, height=64,
        max_sequence_length=32, output_type="np",
    ).images  # fmt: skip
    assert images.shape == (1, 64, 64, 3) and np.isfinite(images).all() and images.std() > 0.05


@pytest.mark.full
def test_diffusers_and_transformers_load_the_true_widths(mini_folder: Path) -> None:
    load_all(mini_folder)


def test_the_graphs_find_every_tensor(small_folder: Path) -> None:
    assert len(cut_graphs(open_checkpoint(str(small_folder)), CUT)) == 7


def test_same_bytes_and_another_seed_other_bytes(small_folder: Path, tmp_path: Path) -> None:
    again = synthesize(SMALL, tmp_path / "again").path
    assert digests(again) == digests(small_folder)
    other = digests(synthesize(SMALL, tmp_path / "other", seed=1).path)
    same = {name for name, digest in digests(again).items() if other[name] == digest}
    assert not any(name.endswith(".safetensors") for name in same)
    assert len(same) == len(other) - len(plan(SMALL))


def test_bytes_are_pinned() -> None:
    """What seed 0 gives on every machine, two tensors of the full size for example."""
    found = {}
    for part in plan(presets.FLASH):
        for tensor in part.tensors:
            if tensor.name in ("proj_out.weight", "decoder.conv_out.weight"):
                total = hashlib.sha256()
                for block in blocks(tensor, presets.FLASH, 0):
                    total.update(block.tobytes())
                found[tensor.name] = total.hexdigest()[:16]
    assert found == {
        "proj_out.weight": "aeab455f5d739760",
        "decoder.conv_out.weight": "8bc82e71edff4fce",
    }


def values(tensor: TensorPlan, preset: Preset = SMALL) -> np.ndarray:
    bits = np.concatenate([b.reshape(-1) for b in blocks(tensor, preset, 0)])
    return (bits.astype(np.uint32) << 16).view(np.float32).reshape(tensor.shape)


def test_values_are_drawn_as_said() -> None:
    weight = TensorPlan("transformer", "transformer_blocks.0.ff.net.0.proj.weight", (6000, 1500))
    draw, drawn = draw_of(weight, SMALL), values(weight)
    assert draw.deviation == pytest.approx(1500**-0.5)
    outputs, inputs = drawn.std(1) / draw.deviation, drawn.std(0) / draw.deviation
    assert np.sum(outputs > 3) == pytest.approx(12, abs=1)  # picks may coincide
    assert np.sum(inputs > 3) == pytest.approx(3, abs=1)
    assert drawn[outputs > 3].std() == pytest.approx(5 * draw.deviation, rel=0.05)
    plain = drawn[outputs < 3][:, inputs < 3] / draw.deviation
    assert plain.std() == pytest.approx(1, abs=0.003) and abs(plain.mean()) < 0.003
    assert np.abs(plain).max() < 4.4
    assert len(np.unique(values(replace(weight, name="other.weight")) == drawn)) == 2

    norm = values(TensorPlan("transformer", "norm_q.weight", (4096,)))
    assert norm.mean() == pytest.approx(1, abs=0.01) and 0.04 < norm.std() < 0.06
    bias = values(TensorPlan("transformer", "proj.bias", (4096,)))
    assert abs(bias.mean()) < 0.01 and 0.015 < bias.std() < 0.025


def test_bfloat16_rounds_as_torch_does() -> None:
    numbers = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    numbers[:3] = [1 + 2**-8, 1 + 3 * 2**-8, 0]  # halfway, to even
    expected = torch.from_numpy(numbers).to(torch.bfloat16).view(torch.uint16).numpy()
    assert np.array_equal(bfloat16_bits(numbers), expected)


def test_position_table_is_that_of_diffusers() -> None:
    from diffusers import SD3Transformer2DModel

    (part,) = (p for p in plan(SMALL) if p.component == "transformer")
    expected = SD3Transformer2DModel.from_config(dict(part.config)).pos_embed.pos_embed.numpy()
    (table,) = (t for t in part.tensors if t.name == POSITION_TABLE)
    assert np.abs(values(table) - expected).max() <= 2**-8


def probe(program: Program) -> list[float]:
    """Make every operator note the largest magnitude that it returns."""
    found: list[float] = []

    def noting(operator: Any, *args: Any, **kwargs: Any) -> Any:
        result = operator(*args, **kwargs)
        if isinstance(result, torch.Tensor) and result.is_floating_point():
            found.append(max(-result.min().item(), result.max().item()))
        return result

    for node in program.nodes():
        node.target = functools.partial(noting, node.target)
    return found


def activations(checkpoint: Checkpoint, cut: Cut) -> dict[str, tuple[float, float]]:
    """(largest magnitude inside, deviation of the first output) of each graph, in one chain."""
    weights, found = Weights(checkpoint), {}
    noise = torch.Generator().manual_seed(0)
    clip_ids = torch.tensor([[49406, *range(400, 440), *[49407] * 36]], dtype=torch.int32)
    t5_ids = torch.tensor([[*range(400, 420), 1, *[0] * 256]], dtype=torch.int32)
    known: dict[str, torch.Tensor] = {}
    for graph in cut_graphs(checkpoint, cut):
        program = trace(graph)
        inputs = {}
        for port in program.inputs:
            inputs[port.name] = known.get(port.name, torch.zeros(0))
            if port.name == "ids":
                ids = t5_ids if graph.name == "t5" else clip_ids
                inputs[port.name] = ids[:, : port.shape[1]]
            if port.name == "latent":
                inputs[port.name] = torch.randn(port.shape, generator=noise)
            if port.name == "modulation":
                inputs[port.name] = known["modulation"][:1]
        largest = probe(program)
        outputs = run(program, weights.read, inputs)
        assert np.isfinite(largest).all(), graph.name
        suffix = {"clip_l": "_l", "clip_g": "_g", "t5": "_t5"}.get(graph.name, "")
        known |= {name + suffix: value for name, value in outputs.items()}
        found[graph.name] = (max(largest), next(iter(outputs.values())).std().item())
    return found


def sane(found: Mapping[str, tuple[float, float]]) -> None:
    for graph, (largest, deviation) in found.items():
        assert largest < 3e4, graph
        assert 0.1 < deviation < 10, graph
    assert found["vae_decoder"][1] < 1


@pytest.mark.parametrize("cut", [CUT, NO_T5], ids=["t5", "no-t5"])
def test_activations_are_sane(small_folder: Path, cut: Cut) -> None:
    sane(activations(open_checkpoint(str(small_folder)), cut))


@pytest.mark.full
def test_activations_are_sane_at_the_true_widths(mini_folder: Path) -> None:
    sane(activations(open_checkpoint(str(mini_folder)), replace(CUT, width_px=128, height_px=128)))


def tokenizer_of(folder: Path) -> dict[str, TokenizerFile]:
    """The tokenizer of every text encoder, for 77 tokens."""
    port = Port("ids", (1, 77), "int32")
    programs = {n: Program(n, (port,), (), fx.Graph(), {}) for n in ("clip_l", "clip_g", "t5")}
    return tokenizer_files(open_checkpoint(str(folder)), token_counts(programs))


def test_tokenizers_are_read_alike_by_transformers(small_folder: Path) -> None:
    from transformers import CLIPTokenizer, T5TokenizerFast

    files = tokenizer_of(small_folder)
    kinds = {"clip_l": CLIPTokenizer, "clip_g": CLIPTokenizer, "t5": T5TokenizerFast}
    folders = {"clip_l": "tokenizer", "clip_g": "tokenizer_2", "t5": "tokenizer_3"}
    for name, file in files.items():
        original = kinds[name].from_pretrained(small_folder / folders[name])
        encode = file.encoder(name)
        for prompt in ("a red circle", "Reading the NEWSPAPER, 42 times.", "café — 日本", ""):
            expected = original(
                prompt, padding="max_length", max_length=77, truncation=True
            ).input_ids
            found = encode(prompt)[0].tolist()
            assert found == expected, (name, prompt)
            assert max(found) < 49408
        with pytest.warns(PromptCut, match=f"{name} reads 77 tokens"):
            assert encode(LONG).shape == (1, 77)
    assert files["clip_l"].entry.pad_id == 49407
    assert files["clip_g"].entry.pad_id == 0
    assert files["t5"].entry.pad_id == 0


def test_a_word_costs_a_few_tokens(small_folder: Path) -> None:
    """As in the real vocabularies, a sentence is shorter in tokens than in letters."""
    encode = tokenizer_of(small_folder)["clip_l"].encoder("clip_l")
    clip_ids = encode("reading a newspaper in the morning light")
    used = np.sum(clip_ids != 49407) - 1
    assert 7 <= used <= 20


def test_shards_and_their_index(
    small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut into shards, the same tensors; read by fourstep and by the originals."""
    monkeypatch.setattr(write, "SHARD_BYTES", 3_000_000)
    folder = synthesize(SMALL, tmp_path / "shards").path
    names = sorted(f.name for f in (folder / "transformer").iterdir())
    count = len(names) - 2
    assert count > 1
    assert names == sorted(
        [f"diffusion_pytorch_model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
        + ["config.json", "diffusion_pytorch_model.safetensors.index.json"]
    )
    assert (folder / "text_encoder" / "model.safetensors.index.json").is_file()
    whole, cut = (open_checkpoint(str(f)).components for f in (small_folder, folder))
    for name, component in cut.items():
        assert set(component.tensors) == set(whole[name].tensors)
        for tensor in component.tensors:
            assert torch.equal(component.read(tensor), whole[name].read(tensor))
    load_all(folder)


def test_full_size_is_cut_into_shards_of_two_gigabytes() -> None:
    shards = {p.component: write._shards(p.tensors) for p in plan(presets.FLASH)}
    assert {name: len(s) for name, s in shards.items()} == {
        "transformer": 3, "text_encoder": 1, "text_encoder_2": 1, "text_encoder_3": 5, "vae": 1,
    }  # fmt: skip
    sizes = [sum(t.bytes for t in s) for found in shards.values() for s in found]
    assert max(sizes) <= 2_000_000_000


def test_without_t5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(presets.PRESETS, "small", SMALL)
    result = fourstep("synth", "small", tmp_path / "s", "--no-t5", "--seed", 3, "--json")
    assert result.exit_code == 0, result.stderr
    row = json.loads(result.stdout)
    assert row["path"] == str(tmp_path / "s")
    files = [f for f in (tmp_path / "s").rglob("*") if f.is_file()]
    assert row["bytes"] == sum(f.stat().st_size for f in files)
    assert row["parameters"] == sum(t.values for p in plan(SMALL, False) for t in p.tensors)
    assert "transformer/diffusion_pytorch_model.safetensors" in result.stderr
    assert not (tmp_path / "s" / "text_encoder_3").exists()
    assert not (tmp_path / "s" / "tokenizer_3").exists()
    index = json.loads((tmp_path / "s" / "model_index.json").read_text())
    assert index["text_encoder_3"] == index["tokenizer_3"] == [None, None]
    checkpoint = open_checkpoint(str(tmp_path / "s"))
    assert not checkpoint.has_t5
    assert [g.name for g in cut_graphs(checkpoint, NO_T5)][2] == "conditioner"


def test_command_says_what_it_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(presets.PRESETS, "small", SMALL)
    (tmp_path / "empty").mkdir()
    result = fourstep("synth", "small", tmp_path / "empty")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith(str(tmp_path / "empty"))
    assert "parameters" in result.stdout and " MB" in result.stdout
    assert list(tmp_path.iterdir()) == [tmp_path / "empty"]


def test_mistakes_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mistake(folder: object, *words: str, preset: str = "sd3.5-flash-mini") -> None:
        result = fourstep("synth", preset, folder)
        assert (result.exit_code, result.stdout) == (2, "")
        (line,) = result.stderr.strip().splitlines()
        assert all(word in line for word in words), line

    mistake(
        tmp_path / "x",
        "unknown preset 'sd4'; known: sd3-medium, sd3-medium-twin, sd3.5-fl",
        preset="sd4",
    )
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    mistake(tmp_path / "taken", "taken: exists and is not an empty folder")
    mistake(tmp_path / "taken" / "file", "exists and is not an empty folder")
    mistake(tmp_path / "taken" / "file" / "x", "file is not a folder; name another folder")
    mistake("/proc/none", "/proc: ", "name another folder")
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    mistake(tmp_path / "x", "needs 1,942 MB and 1,000 MB are free")
    mistake(tmp_path / "x", "needs 16,276 MB and 1,000 MB are free", preset="sd3.5-flash")
    monkeypatch.setattr("os.access", lambda *_: False)
    mistake(tmp_path / "x", f"{tmp_path} cannot be written")
    assert list(tmp_path.iterdir()) == [tmp_path / "taken"]
    assert (tmp_path / "taken" / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("error", "raised", "words"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt, None),
        (SystemExit(143), SystemExit, None),  # SIGTERM
        (OSError(errno.ENOSPC, "No space left on device"), InputError, "free space or name"),
    ],
    ids=["ctrl-c", "sigterm", "disk-full"],
)
def test_an_interruption_leaves_nothing(
    tmp_path: Path, error: BaseException, raised: type[BaseException], words: str | None
) -> None:
    def show(line: str, done: int, expected: int) -> None:
        if done == 3:
            assert (tmp_path / "deep" / ".x.partial" / "transformer").is_dir()
            raise error

    with pytest.raises(raised, match=words):
        synthesize(SMALL, tmp_path / "deep" / "x", progress=Progress(show))
    assert list(tmp_path.iterdir()) == []


def test_progress_announces_its_lines(tmp_path: Path) -> None:
    lines = []
    progress = Progress(lambda line, done, expected: lines.append((line, done, expected)))
    synthesize(SMALL, tmp_path / "x", progress=progress)
    assert [done for _, done, _ in lines] == [1, 2, 3, 4, 5, 6]
    assert {expected for *_, expected in lines} == {6}
    assert fnmatchcase(lines[0][0], "transformer/diffusion_pytorch_model.safetensors * MB")


def test_it_becomes_a_package(small_folder: Path, tmp_path: Path) -> None:
    recipe = read_recipe(ROOT / "recipes" / "shapes-flash.toml")
    recipe = replace(recipe, checkpoint=str(small_folder), cut=CUT, prompts=("a red circle",))
    (built,) = build(recipe, tmp_path, ["onnx"], ["int4"])
    assert built.report.ok
    assert "random numbers" in (built.path / "LICENSE").read_text()

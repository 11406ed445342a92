"""Whatever files, flags and prompts hold: success, or one line of the project's own errors.

Inputs that are right are changed at random: a value of JSON or TOML for a hostile one, a byte, a
piece. ``make test`` tries a fixed thousand of them, ``make test-full`` twenty thousand.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import struct
import tomllib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save

from exporter.build.resume import journal_of, resuming, whole_package
from exporter.build.write import log_of
from exporter.calibrate.store import INDEX, SCALINGS, open_statistics
from exporter.checkpoint.open import open_checkpoint
from exporter.checkpoint.tokenizers import clip_tokenizer, tokenizer_files
from exporter.cli import main
from exporter.drawing.start import PictureRemark, start_picture
from exporter.drawing.text import PromptCut, load_tokenizer, prompt_encoder
from exporter.errors import UNPRINTABLE, CheckFailed, FourstepError
from exporter.files.prompts import read_prompts
from exporter.files.staging import partial_of
from exporter.files.tensors import read_header
from exporter.files.tokens import parse_tokenizer
from exporter.network.assemble import cut_graphs
from exporter.package.manifest import Tokenizer
from exporter.recipe.plan import read_plan
from exporter.recipe.recipe import calibration_prompts, read_recipe
from exporter.report.sensitivities import read_sensitivities
from exporter.runtime.golden import golden_pixels
from exporter.runtime.package import open_package
from exporter.runtime.verify import golden_calls
from tests.conftest import SHAPES, SMALL

QUICK, LONG = 1_000, 20_000  # inputs of all targets together
DEEP = "@deep@"  # becomes an array that is nested deeper than any parser follows
HOSTILE: list[Any] = [
    None, True, False, 0, 1, -1, 2, 7, 10**18, 10**400, 1e308, -0.5, "", "x", "\0", "a\nb\x1b[2J",
    "../../etc/passwd", "/dev/null", "x" * 5000, "\ud800", "\u202e", [], {}, [[]], [None],
    ["diffusers"], {"": None}, {"weight_map": None}, DEEP,
]  # fmt: skip
TOML_HOSTILE = [
    "true", "-1", "0", "1" + "0" * 400, "1e308", "nan", "-inf", '""', '"\\u0000"', '"\\u001b[2J"',
    '"../x"', '"~nobody/x"', "[]", "[[]]", "[1, 'a']", "{}", "{a = {b = 1}}", "[" * 5000,
    "1979-05-27", '"C:\\models"', "'''a\nb'''", "",
]  # fmt: skip


@dataclass(frozen=True)
class Target:
    """Something that reads: ``right`` is a good input, ``read`` is given one that was changed."""

    right: bytes
    read: Callable[[bytes], object]
    kind: str = "bytes"  # or "json", "toml", "tensors"


def paths(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value inside parsed JSON."""
    yield here
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value[:20])
        for key, below in items:
            yield from paths(below, (*here, key))


def replaced(value: Any, way: tuple[Any, ...], new: Any) -> Any:
    """Parsed JSON with another value at one place, or without it when that is Ellipsis."""
    if not way:
        return {} if new is ... else new
    copy = dict(value) if isinstance(value, dict) else list(value)
    if new is ... and len(way) == 1:
        del copy[way[0]]
    else:
        copy[way[0]] = replaced(value[way[0]], way[1:], new)
    return copy


def change_json(data: st.DataObject, text: bytes) -> bytes:
    value = json.loads(text)
    for _ in range(data.draw(st.integers(1, 3))):
        ways = list(paths(value))
        way = ways[data.draw(st.integers(0, len(ways) - 1))]
        value = replaced(value, way, data.draw(st.sampled_from([..., *HOSTILE])))
    changed = json.dumps(value)
    return changed.replace(f'"{DEEP}"', "[" * 20_000 + "]" * 20_000).encode()


def change_toml(data: st.DataObject, text: bytes) -> bytes:
    lines = text.decode().split("\n")
    for _ in range(data.draw(st.integers(1, 2))):
        at = data.draw(st.integers(0, len(lines) - 1))
        key, equals, _ = lines[at].partition("=")
        if equals:
            lines[at] = f"{key}= {data.draw(st.sampled_from(TOML_HOSTILE))}"
        else:
            lines[at] = data.draw(st.sampled_from(["", "[x]", "[model]", "a.b.c = 1", "\0", "="]))
    return "\n".join(lines).encode()


def change_bytes(data: st.DataObject, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(changed) - 1)))
        what = data.draw(st.sampled_from(["flip", "cut", "insert", "drop", "end"]))
        if what == "flip" and changed:
            changed[at] ^= 1 << data.draw(st.integers(0, 7))
        elif what == "cut":
            del changed[at:]
        elif what == "insert":
            changed[at:at] = data.draw(st.binary(max_size=20))
        elif what == "drop":
            del changed[at : at + data.draw(st.integers(1, 40))]
        else:
            changed += data.draw(st.binary(max_size=20))
    return bytes(changed)


def change_tensors(data: st.DataObject, content: bytes) -> bytes:
    """A safetensors file with another header."""
    size = int.from_bytes(content[:8], "little")
    header = change_json(data, content[8 : 8 + size])
    return struct.pack("<Q", len(header)) + header + content[8 + size :]


CHANGES = {"json": change_json, "toml": change_toml, "tensors": change_tensors}


def one_line(error: BaseException) -> None:
    said = str(error)
    assert said and not UNPRINTABLE.search(said), repr(said)


def hammer(target: Target, count: int) -> None:
    """Read ``count`` changed inputs; the same ones in every run."""

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def attack(data: st.DataObject) -> None:
        change = CHANGES.get(target.kind, change_bytes)
        if target.kind != "bytes" and data.draw(st.integers(0, 3)) == 0:
            change = change_bytes
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", PromptCut)
                target.read(change(data, target.right))
        except FourstepError as error:
            one_line(error)

    attack()


def into(file: Path, read: Callable[[], object]) -> Callable[[bytes], object]:
    """Give a reader its file with some content, and afterwards the file as it was."""
    before = file.read_bytes() if file.is_file() else b""

    def run(content: bytes) -> object:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        try:
            return read()
        finally:
            file.write_bytes(before)

    return run


PROMPTS = "a red circle\nein blauer Stern\n\U0001f98a fox"
RECIPE = (SHAPES.parent.parent / "recipes" / "shapes-flash.toml").read_bytes()
PLAN = b"""[plan]
base = "int8"
methods = ["equalize"]
budget_bytes = 1200
[formats.denoiser]
"*.ff.*" = "int4-g32"
"transformer_blocks.0.attn.to_q.weight" = "fp16"
"""
DETAILS = {
    "format_version": 1, "scheme": "p", "budget_bytes": 1200, "memory_bytes": None,
    "floor_db": None, "weight_bytes": 1000, "bits_per_weight": 4.5, "predicted_snr_db": 30.5,
    "measured_snr_db": 29.25, "checkpoint_sha256": "a", "statistics_sha256": "b", "prompts": 2,
    "seed": 1, "methods": ["equalize"], "probes": 1,
    "weights": [
        {"graph": "denoiser", "weight": "transformer_blocks.0.x.weight", "values": 10,
         "chosen": "int8", "candidates": [{"format": "int8", "bytes": 10, "noise": 0.1}]}
    ],
}  # fmt: skip


def encoded(value: object) -> bytes:
    return json.dumps(value).encode()


def checkpoint_targets(folder: Path) -> dict[str, Target]:
    def opened() -> object:
        checkpoint = open_checkpoint(str(folder))
        cut_graphs(checkpoint, SMALL)
        return tokenizer_files(checkpoint, {"clip_l": 77, "clip_g": 77, "t5": 24})

    found = {}
    for name in (
        "model_index.json",
        *(f"{c}/config.json" for c in ("transformer", "vae", "text_encoder", "text_encoder_3")),
        "tokenizer/tokenizer_config.json",
    ):
        file = folder / name
        found[name] = Target(file.read_bytes(), into(file, opened), "json")
    weights = folder / "text_encoder_2/model.safetensors"
    found["weights"] = Target(weights.read_bytes(), into(weights, opened), "tensors")
    index = folder / "vae" / "x.safetensors.index.json"
    shards = {"weight_map": {"a": "diffusion_pytorch_model.safetensors"}}

    def indexed(content: bytes) -> object:
        index.write_bytes(content)
        try:
            return open_checkpoint(str(folder))
        finally:
            index.unlink()

    found["shard index"] = Target(encoded(shards), indexed, "json")
    return found


def tokenizer_targets(folder: Path) -> dict[str, Target]:
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copyfile(SHAPES / "tokenizer" / name, folder / name)
    entry = Tokenizer("t.json", 24, 0)
    # A small one of each kind: a change hits what rules a tokenizer rather than its vocabulary.
    clip = json.loads((SHAPES / "tokenizer" / "tokenizer.json").read_bytes())
    clip["model"]["merges"] = clip["model"]["merges"][:5]
    words = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a": 2, "b": 3, "a</w>": 4}
    clip["model"] |= {"vocab": words, "merges": []}
    clip["added_tokens"] = clip["added_tokens"][:1]
    for token in clip["added_tokens"]:
        token["id"] = words[token["content"]]
    pieces = {
        "type": "Unigram", "unk_id": 2,
        "vocab": [["<pad>", 0.0], ["</s>", 0.0], ["<unk>", -1.0], ["\u2581a", -2.0]],
    }  # fmt: skip
    t5 = json.loads((SHAPES / "tokenizer_3" / "tokenizer.json").read_bytes())
    t5 |= {"model": pieces, "added_tokens": t5["added_tokens"][:1]}

    def encode(content: bytes) -> object:
        text = content.decode("utf-8", "replace")
        return prompt_encoder(parse_tokenizer(text, "t.json"), entry, "clip_l")("a Ba 7!")

    def built() -> object:
        return clip_tokenizer(folder).encode("a red circle").ids

    return {
        "clip tokenizer.json": Target(encoded(clip), encode, "json"),
        "t5 tokenizer.json": Target(encoded(t5), encode, "json"),
        "package's tokenizer": Target(
            encoded(clip),
            lambda content: load_tokenizer(folder / "t.json", content, entry, "t5")("a"),
            "json",
        ),
    } | {
        name: Target((folder / name).read_bytes(), into(folder / name, built), kind)
        for name, kind in (("vocab.json", "json"), ("merges.txt", "bytes"))
    }


def package_targets(package: Path) -> dict[str, Target]:
    manifest = package / "manifest.json"
    golden = open_package(package).manifest.golden.pictures[0]

    def calls() -> object:
        opened = open_package(package)
        return [golden_calls(opened, golden, name) for name in opened.manifest.names]

    def pixels() -> object:
        return golden_pixels(open_package(package), golden.image)

    target = package.parent / "built"
    listed = {"basis": "b", "graphs": json.loads(manifest.read_bytes())["graphs"][:1]}
    log = {"basis": "b", "manifest_sha256": "x", "verify": {"images": [], "ok": True}}

    def resumed() -> object:
        partial_of(target).mkdir(exist_ok=True)
        try:
            with resuming(target, "b", lambda line: None) as (_, whole):
                raise CheckFailed(f"{len(whole)} whole")
        finally:
            journal_of(target).touch()

    tensors, picture = package / golden.tensors, package / golden.image
    small = save({f"clip_l/0/in/{p}": np.zeros(2, np.float32) for p in "ab"})
    return {
        "manifest.json": Target(
            manifest.read_bytes(), into(manifest, lambda: open_package(package)), "json"
        ),
        "golden tensors": Target(small, into(tensors, calls), "tensors"),
        "golden picture": Target(picture.read_bytes(), into(picture, pixels)),
        "journal": Target(encoded(listed), into(journal_of(target), resumed), "json"),
        "log": Target(
            encoded(log), into(log_of(target), lambda: whole_package(target, "b")), "json"
        ),
    }


def statistics_target(folder: Path) -> dict[str, Target]:
    layer = save(
        {
            "mean": np.zeros((1, 4), np.float32),
            "covariance": np.zeros((1, 4, 4), np.float32),
            "tokens": np.array(3),
        }
    )
    scalings = save({"transformer/x/rows": np.ones(4, np.float32)})
    digests = {}
    for name, content in (("0000.safetensors", layer), (SCALINGS, scalings)):
        (folder / name).write_bytes(content)
        digests[name] = hashlib.sha256(content).hexdigest()
    provenance = {
        "checkpoint_sha256": "a", "cut_sha256": "b", "prompts_sha256": "c", "prompts": 1,
        "seed": 0, "graphs": ["denoiser"],
    }  # fmt: skip
    index = {
        "format_version": 1,
        "provenance": provenance,
        "layers": [["transformer", "x.weight", "0000.safetensors"]],
        "sha256": digests,
    }
    read = into(folder / INDEX, lambda: open_statistics(folder))
    return {"statistics index": Target(encoded(index), read, "json")}


def started(file: Path) -> np.ndarray:
    """The pixels that a picture starts with, without what is said of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PictureRemark)
        return start_picture(file, 64, 48)


def text_targets(folder: Path) -> dict[str, Target]:
    recipe, plan, prompts = folder / "r.toml", folder / "p.toml", folder / "p.txt"
    plan.write_bytes(PLAN)
    (folder / "shapes-flash.prompts.txt").write_bytes(PROMPTS.encode())
    picture = io.BytesIO()
    Image.new("RGB", (16, 8), (9, 99, 199)).save(picture, "PNG")
    place = folder / "p.png"
    header = save({"a": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.int32)})
    encode = prompt_encoder(
        parse_tokenizer((SHAPES / "tokenizer/tokenizer.json").read_text(), "t"),
        Tokenizer("t", 77, 0),
        "clip_l",
    )
    return {
        "recipe": Target(RECIPE, into(recipe, lambda: read_recipe(recipe)), "toml"),
        "plan": Target(PLAN, into(plan, lambda: read_plan(plan)), "toml"),
        "plan's details": Target(
            encoded(DETAILS), into(folder / "p.json", lambda: read_plan(plan)), "json"
        ),
        "package's plan": Target(
            encoded(DETAILS),
            into(folder / "plan.json", lambda: read_sensitivities(folder)),
            "json",
        ),
        "safetensors": Target(
            header, into(folder / "h", lambda: read_header(folder / "h")), "tensors"
        ),
        "picture": Target(picture.getvalue(), into(place, lambda: started(place))),
        "prompts": Target(
            PROMPTS.encode(),
            into(prompts, lambda: (read_prompts(prompts), calibration_prompts(str(prompts)))),
        ),
        "prompt": Target(
            PROMPTS.encode(), lambda content: encode(content.decode("utf-8", "surrogateescape"))
        ),
    }


@pytest.fixture(scope="module")
def targets(
    tiny_folder: Path, tiny_package: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Target]:
    place = tmp_path_factory.mktemp("fuzz")
    for name in ("tokenizer", "statistics", "text"):
        (place / name).mkdir()
    checkpoint = Path(shutil.copytree(tiny_folder, place / "checkpoint"))
    package = Path(shutil.copytree(tiny_package, place / "package"))
    torch.manual_seed(0)
    return (
        checkpoint_targets(checkpoint)
        | tokenizer_targets(place / "tokenizer")
        | package_targets(package)
        | statistics_target(place / "statistics")
        | text_targets(place / "text")
    )


NAMES = (
    "model_index.json", "transformer/config.json", "vae/config.json", "text_encoder/config.json",
    "text_encoder_3/config.json", "tokenizer/tokenizer_config.json", "weights", "shard index",
    "clip tokenizer.json", "t5 tokenizer.json", "package's tokenizer", "vocab.json", "merges.txt",
    "manifest.json", "golden tensors", "golden picture", "journal", "log",
    "statistics index", "recipe", "plan", "plan's details", "package's plan", "safetensors",
    "picture", "prompts", "prompt",
)  # fmt: skip
SHARE = 1 + len(NAMES)  # of the budget: one for each file, one for flags


def test_every_target_is_named(targets: dict[str, Target]) -> None:
    assert {*targets} == {*NAMES}
    for name, target in targets.items():
        try:
            target.read(target.right)
        except CheckFailed as error:  # what the harness itself ends a build with, or small data
            assert name in ("journal", "golden tensors"), error


@pytest.mark.parametrize("name", NAMES)
def test_files(targets: dict[str, Target], name: str) -> None:
    hammer(targets[name], QUICK // SHARE)


@pytest.mark.full
@pytest.mark.parametrize("name", NAMES)
def test_many_files(targets: dict[str, Target], name: str) -> None:
    hammer(targets[name], LONG // SHARE)


WORDS = st.sampled_from(
    ["", "x", "-1", "1e400", "nan", "\0", "\udce9", "\x1b[2J", "~nobody/x", "../..", "/dev/null",
     "9" * 400, "-", "--", "--out", "--json", "--seed", "0.5", "1GB", "int4", "/proc/self/mem"]
)  # fmt: skip
FLAGS = st.sampled_from(
    ["--json", "--out", "--seed", "--strength", "--image", "--device", "--half", "--exact",
     "--cache", "--at-once", "--recipe", "--budget", "--bits", "--floor", "--memory", "--format",
     "--graph", "--probes", "--fit", "--background", "--no-metadata", "--previews", "--scheme",
     "--backend", "--prompts", "--metric", "--nothing", "-o"]
)  # fmt: skip
COMMANDS = st.sampled_from(sorted({*main.commands} - {"doctor", "synth"}))


def hammer_flags(count: int, folder: Path) -> None:
    """Command lines of real flags with words that no one means."""

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(COMMANDS, st.lists(st.one_of(WORDS, FLAGS), max_size=6))
    def attack(command: str, words: list[str]) -> None:
        result = CliRunner().invoke(main, [command, *words], catch_exceptions=False)
        assert result.exit_code in (0, 1, 2)
        if result.exit_code:
            (line,) = result.stderr.splitlines()
            assert line.startswith("fourstep: ") and not UNPRINTABLE.search(line), line
            assert result.stdout == ""

    before = set(folder.iterdir())
    attack()
    assert set(folder.iterdir()) == before


def test_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hammer_flags(QUICK // SHARE, tmp_path)


@pytest.mark.full
def test_many_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hammer_flags(LONG // SHARE, tmp_path)


def test_what_is_changed_is_changed() -> None:
    """The harness: most changes of a recipe are other recipes, and many are still TOML."""
    seen: list[bytes] = []

    @settings(max_examples=50, derandomize=True, database=None)
    @given(st.data())
    def look(data: st.DataObject) -> None:
        seen.append(change_toml(data, RECIPE))

    look()
    parsed = 0
    for text in seen:
        try:
            tomllib.loads(text.decode())
            parsed += 1
        except (tomllib.TOMLDecodeError, RecursionError):
            continue
    assert len(set(seen)) > 25 and parsed > 5

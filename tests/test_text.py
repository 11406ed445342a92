"""Prompts become the ids that transformers gives diffusers, without transformers."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import fx
from transformers import AutoTokenizer, CLIPTokenizer

from exporter.build.model import token_counts
from exporter.checkpoint.open import Checkpoint, open_checkpoint
from exporter.checkpoint.tokenizers import TokenizerFile, clip_tokenizer, tokenizer_files
from exporter.drawing.text import Encode, PromptCut, load_tokenizer
from exporter.errors import CheckFailed, InputError
from exporter.package.manifest import Port, Tokenizer
from exporter.program.program import Program
from tests.conftest import SHAPES, edit_json

PROMPTS = [
    "two red circles left of a blue square",
    "A  Photo,\tof ONE green triangle!",
    "it's 3 o'clock; they've 42 x 17 cm",
    "naïve café Ünïcödé",
    "日本語のプロンプト 🙂🟥",
    "",
    " leading and trailing ",
    "a-b_c/d\\e <|startoftext|> inside",
]
LENGTHS = {"clip_l": 77, "clip_g": 77, "t5": 32}
FOLDERS = {"clip_l": "tokenizer", "clip_g": "tokenizer_2", "t5": "tokenizer_3"}


def tokenizer_file(checkpoint: Checkpoint, name: str) -> TokenizerFile:
    """The packaged tokenizer of one text encoder, for as many tokens as LENGTHS says."""
    port = Port("ids", (1, LENGTHS[name]), "int32")
    program = Program(name, (port,), (), fx.Graph(), {})
    return tokenizer_files(checkpoint, token_counts({name: program}))[name]


def packaged(checkpoint: Checkpoint, name: str, folder: Path) -> Encode:
    """That tokenizer, written into a package's folder and read from there."""
    file = tokenizer_file(checkpoint, name)
    return load_tokenizer(folder / file.entry.path, file.text.encode(), file.entry, name)


@pytest.mark.filterwarnings("ignore::exporter.drawing.text.PromptCut")
@pytest.mark.parametrize("name", LENGTHS)
def test_ids_are_those_of_transformers(shapes: Checkpoint, tmp_path: Path, name: str) -> None:
    encode = packaged(shapes, name, tmp_path)
    theirs: Any = AutoTokenizer.from_pretrained(SHAPES / FOLDERS[name])
    for prompt in PROMPTS:
        expected = theirs(prompt, padding="max_length", max_length=LENGTHS[name], truncation=True)[
            "input_ids"
        ]
        assert encode(prompt)[0].tolist() == expected, prompt


@pytest.mark.parametrize("name", LENGTHS)
def test_long_prompts_are_cut_with_a_warning(shapes: Checkpoint, tmp_path: Path, name: str) -> None:
    encode = packaged(shapes, name, tmp_path)
    prompt = "a red circle and a blue square " * 20
    theirs: Any = AutoTokenizer.from_pretrained(SHAPES / FOLDERS[name])
    expected = theirs(prompt, max_length=LENGTHS[name], truncation=True)["input_ids"]
    with pytest.warns(PromptCut, match=rf"{name} reads {LENGTHS[name]} tokens; not read: .*square"):
        ids = encode(prompt)
    assert ids[0].tolist() == expected


@pytest.mark.parametrize("folder", ["tokenizer", "tokenizer_2"])
def test_clip_tokenizer_from_vocabulary_and_merges(tmp_path: Path, folder: str) -> None:
    """Older checkpoints have no tokenizer.json; ours is built as transformers builds it."""
    for file in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copyfile(SHAPES / folder / file, tmp_path / file)
    ours = clip_tokenizer(tmp_path)
    theirs: Any = CLIPTokenizer.from_pretrained(tmp_path)
    for prompt in [*PROMPTS, "stop!! now!"]:
        assert ours.encode(prompt).ids == theirs(prompt)["input_ids"], prompt


def test_missing_tokenizer(tiny_copy: Path) -> None:
    name = "clip_g"
    shutil.rmtree(tiny_copy / "tokenizer_2")
    with pytest.raises(InputError, match="folder 'tokenizer_2' is missing"):
        tokenizer_file(open_checkpoint(str(tiny_copy)), name)


def test_no_tokenizer_json(tiny_copy: Path) -> None:
    name = "t5"
    (tiny_copy / "tokenizer_3" / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="no tokenizer.json; load the tokenizer with transformers"):
        tokenizer_file(open_checkpoint(str(tiny_copy)), name)


def test_damaged_tokenizer(tmp_path: Path) -> None:
    file, entry = tmp_path / "t.json", Tokenizer("t.json", 77, 0)
    for text in (b"{}", b"", b"\xff", b"[" * 100_000):
        with pytest.raises(CheckFailed, match=r"t\.json: not a tokenizer"):
            load_tokenizer(file, text, entry, "clip_l")


def test_ids_past_what_the_manifest_allows(shapes: Checkpoint, tmp_path: Path) -> None:
    file = tokenizer_file(shapes, "t5")
    entry = replace(file.entry, vocabulary_size=100)
    with pytest.raises(CheckFailed, match="has ids up to 149 and the manifest allows 100"):
        load_tokenizer(tmp_path / "t5.json", file.text.encode(), entry, "t5")


def test_ids_beyond_the_embedding_are_refused(tiny_copy: Path) -> None:
    edit_json(tiny_copy / "text_encoder" / "config.json", vocab_size=5)
    with pytest.raises(InputError, match=r"tokenizer: has ids up to \d+, and .* has 5 rows; copy"):
        tokenizer_file(open_checkpoint(str(tiny_copy)), "clip_l")


@pytest.mark.parametrize("ready", [True, False])
def test_added_tokens_that_the_vocabulary_has_not_are_refused(tiny_copy: Path, ready: bool) -> None:
    """transformers adds what these files list; it would not be read here."""
    folder = tiny_copy / "tokenizer"
    if not ready:
        (folder / "tokenizer.json").unlink(missing_ok=True)
    before = tokenizer_file(open_checkpoint(str(tiny_copy)), "clip_l")
    added = folder / "added_tokens.json"
    known = before.encoder("clip_l")("")[0, 0]
    added.write_text(json.dumps({"<|startoftext|>": int(known)}))
    assert tokenizer_file(open_checkpoint(str(tiny_copy)), "clip_l") == before
    for number in (0, 999, 10**6):
        added.write_text(json.dumps({"<cat-toy>": number}))
        with pytest.raises(InputError, match="added_tokens.json: adds the token '<cat-toy>'"):
            tokenizer_file(open_checkpoint(str(tiny_copy)), "clip_l")
    added.unlink()
    edit_json(folder / "tokenizer_config.json", added_tokens_decoder={"999": {"content": "<toy>"}})
    with pytest.raises(InputError, match="tokenizer_config.json: adds the token '<toy>' with the"):
        tokenizer_file(open_checkpoint(str(tiny_copy)), "clip_l")


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_tokenizer_files_as_windows_writes_them(tiny_copy: Path, ending: str) -> None:
    before = tokenizer_file(open_checkpoint(str(tiny_copy)), "clip_l")
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "tokenizer.json"):
        file = tiny_copy / "tokenizer" / name
        if file.is_file():
            text = file.read_text("utf-8").replace("\n", ending)
            file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert tokenizer_file(open_checkpoint(str(tiny_copy)), "clip_l") == before


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("merges.txt", "#version: 0.2\na b\nword\n", "merges.txt, line 3: two tokens"),
        ("vocab.json", '{"a": -1}', "vocab.json: ids from 0"),
        ("vocab.json", '{"a": 1}', "vocab.json: token '<|startoftext|>' is missing"),
        ("vocab.json", "[]", "vocab.json: a JSON object is expected"),
        ("vocab.json", "[" * 100_000, "vocab.json: not valid JSON: nested more than 64 deep"),
        ("vocab.json", '{"a": "\\ud800"}', "vocab.json: not valid JSON: .* half of a surrogate"),
    ],
)
def test_damaged_vocabularies(tmp_path: Path, file: str, text: str, said: str) -> None:
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copyfile(SHAPES / "tokenizer" / name, tmp_path / name)
    (tmp_path / file).write_text(text)
    with pytest.raises(InputError, match=said):
        clip_tokenizer(tmp_path)


def test_a_prompt_that_is_no_text(shapes: Checkpoint, tmp_path: Path) -> None:
    encode = packaged(shapes, "clip_l", tmp_path)
    with pytest.raises(InputError, match=r"prompt 'caf\\udce9': is not UTF-8 text"):
        encode("caf\udce9")
    with pytest.raises(InputError, match="a prompt of 200000 characters: at most 100000"):
        encode("ab" * 100_000)

"""Tokenizers of the true sizes, made of letters."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Tokens

from exporter.checkpoint.tokenizers import CLIP_END, CLIP_START
from exporter.synth.presets import CLIP_IDS

T5_PIECES, T5_EXTRA_PIECES = 32100, 100
LETTERS = "etaoinshrdlcumwfgypbvkjxqz"  # English, most frequent first
PAIRS = tuple(  # of letters, roughly the most frequent first
    (LETTERS[i], LETTERS[j])
    for i, j in sorted(itertools.product(range(26), repeat=2), key=lambda ij: (sum(ij), ij))
)
SPACE = "\u2581"  # in a T5 piece


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(
        json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n"
    )


# Tokenizers: of the true sizes, with letters in place of learned words.


def clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Ids of CLIP's 49,408 symbols and its 48,894 merges, first merge first.

    Bytes, bytes that end a word, then merges into two, three and four letters, and the two
    special tokens; "!" has id 0, as in CLIP's own. A word costs about a third of its letters.
    """
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) for b in shown] + [chr(256 + i) for i in range(256 - len(shown))]
    symbols = letters + [letter + "</w>" for letter in letters]
    twos = [a + b for a, b in PAIRS]
    merges = [*PAIRS, *((a, b + "</w>") for a, b in PAIRS)]
    merges += [(two, letter + "</w>") for letter in LETTERS for two in twos]
    # Four letters as two pairs, of the 160 most frequent pairs.
    doubles = itertools.product(twos[:160], repeat=2)
    fours = ((a, b + end) for a, b in doubles for end in ("", "</w>"))
    merges += itertools.islice(fours, CLIP_IDS - 2 - len(symbols) - len(merges))
    symbols += [a + b for a, b in merges] + [CLIP_START, CLIP_END]
    return {symbol: i for i, symbol in enumerate(symbols)}, merges


def write_clip_tokenizer(folder: Path, pad: str) -> None:
    """``vocab.json`` and ``merges.txt``, the files that Stable Diffusion 3.5 has."""
    folder.mkdir()
    vocabulary, merges = clip_vocabulary()
    write_json(folder / "vocab.json", vocabulary)
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    config = {
        "bos_token": CLIP_START,
        "eos_token": CLIP_END,
        "model_max_length": 77,
        "pad_token": pad,
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": CLIP_END,
    }
    write_json(folder / "tokenizer_config.json", config)


def t5_pieces() -> list[tuple[str, float]]:
    """T5's 32,100 pieces and their log probabilities; the longer a piece, the better it pays.

    Three special tokens, single characters, one to three letters within and at the start of a
    word, and at the end the 100 that T5 was pretrained with and no prompt uses.
    """
    specials = ["<pad>", "</s>", "<unk>"]
    letters = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256))]
    pieces = [SPACE, *letters, *(SPACE + letter for letter in LETTERS)]
    twos = [a + b for a, b in PAIRS]
    threes = [two + letter for letter in LETTERS for two in twos]
    pieces += [start + two for start in ("", SPACE) for two in twos]
    pieces += [start + three for three in threes for start in ("", SPACE)]
    count = T5_PIECES - len(specials) - T5_EXTRA_PIECES
    scored = [(piece, -8.0 - 4.0 * i / count) for i, piece in enumerate(pieces[:count])]
    extras = [(f"<extra_id_{i}>", 0.0) for i in reversed(range(T5_EXTRA_PIECES))]
    return [(special, 0.0) for special in specials] + scored + extras


def write_t5_tokenizer(folder: Path) -> None:
    folder.mkdir()
    pieces = t5_pieces()
    tokens = Tokens(models.Unigram(pieces, unk_id=2))
    extras = [piece for piece, _ in pieces[-T5_EXTRA_PIECES:]]
    specials = ["<pad>", "</s>", "<unk>", *extras]
    tokens.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in specials])
    tokens.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(SPACE, "always")]
    )
    tokens.post_processor = processors.TemplateProcessing("$A </s>", None, [("</s>", 1)])
    (folder / "tokenizer.json").write_text(tokens.to_str() + "\n", encoding="utf-8", newline="\n")
    config = {
        "eos_token": "</s>",
        "extra_ids": T5_EXTRA_PIECES,
        "model_max_length": 512,
        "pad_token": "<pad>",
        "tokenizer_class": "T5Tokenizer",
        "unk_token": "<unk>",
    }
    write_json(folder / "tokenizer_config.json", config)

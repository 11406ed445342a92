"""Tokenizers of shapes-flash: CLIP's byte-level BPE twice and T5's unigram, trained on its prompts.

    python -m benchmarks.shapes_flash.text --out DIR

The two CLIP tokenizers differ only in padding, as the real ones do: CLIP-L pads with the end token,
CLIP-G with "!" (id 0). The end token has the largest id, because CLIP pools at the argmax.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from pathlib import Path
from random import Random

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer, T5TokenizerFast

from benchmarks.shapes_flash.world import CATEGORIES, phrase, sample_scene

START, END = "<|startoftext|>", "<|endoftext|>"
CLIP_MERGES = 400
SPACE = "\u2581"  # stands for a space in unigram pieces
CLIP_TOKENS = 77
CORPUS_SIZE = 20_000


def corpus(count: int = CORPUS_SIZE, seed: int = 0) -> list[str]:
    """Training prompts of all categories."""
    rng = Random(f"corpus {seed}")
    chosen = (rng.choice(CATEGORIES) for _ in range(count))
    return [phrase(sample_scene(c, rng, evaluation=False), rng) for c in chosen]


def _byte_symbols() -> list[str]:
    """The 256 printable stand-ins for bytes in CLIP's order: printable bytes first, "!" at 0."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + k) for k in range(len(others))]


def train_clip(texts: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Learn BPE merges; the vocabulary has CLIP's order: bytes, word-ending bytes, merges."""
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.pre_tokenizer = pre_tokenizers.Whitespace()
    trained.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=CLIP_MERGES, end_of_word_suffix="</w>", show_progress=False),
    )
    merges = [(a, b) for a, b in json.loads(trained.to_str())["model"]["merges"]]
    symbols = _byte_symbols()
    words = [*symbols, *(s + "</w>" for s in symbols), *(a + b for a, b in merges), START, END]
    return {word: index for index, word in enumerate(dict.fromkeys(words))}, merges


def _save_clip(
    folder: Path, vocabulary: dict[str, int], merges: list[tuple[str, str]], pad: str
) -> None:
    tokenizer = CLIPTokenizer(
        vocab=vocabulary, merges=merges, pad_token=pad, model_max_length=CLIP_TOKENS
    )
    tokenizer.save_pretrained(folder)
    vocab_json = json.dumps(vocabulary, ensure_ascii=False, separators=(",", ":"))
    (folder / "vocab.json").write_text(vocab_json + "\n", encoding="utf-8")
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def train_t5(texts: list[str]) -> list[tuple[str, float]]:
    """Unigram pieces with their log probabilities; pad, end and unknown come first.

    The language has fewer words than a unigram vocabulary has room for, so its most likely model is
    known without iterating: every word is a piece, weighted by its count. Letters follow as a
    fallback for other words, each counted as if seen once in a corpus that many times as long.
    """
    words = Counter(SPACE + word for text in texts for word in text.split())
    total = sum(words.values())
    letters = [SPACE, *(chr(code) for code in range(33, 127))]
    fallback = -math.log(total * len(letters))
    return [
        *((special, 0.0) for special in ("<pad>", "</s>", "<unk>")),
        *((word, math.log(count / total)) for word, count in words.most_common()),
        *((letter, fallback) for letter in letters),
    ]


def save_tokenizers(out: Path) -> None:
    """Train all three on the same prompts and save them where a diffusers pipeline has them."""
    texts = corpus()
    vocabulary, merges = train_clip(texts)
    _save_clip(out / "tokenizer", vocabulary, merges, pad=END)
    _save_clip(out / "tokenizer_2", vocabulary, merges, pad="!")
    t5 = T5TokenizerFast(vocab=train_t5(texts), extra_ids=0, model_max_length=512)
    t5.save_pretrained(out / "tokenizer_3")


def main() -> None:
    """Train the tokenizers."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True)
    save_tokenizers(parser.parse_args().out)


if __name__ == "__main__":
    main()

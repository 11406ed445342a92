"""Conformance vectors that need no graph: hard prompts with their ids, and noise with its bits.

A package holds both, so that a loop in any language can prove its tokenizers and its noise; so does
``fourstep verify`` with ours.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping

import numpy as np

from exporter.drawing.noise import TorchNoise
from exporter.drawing.text import Encode, PromptCut
from exporter.package.manifest import Tokenizer

# Each is put between two letters, where white space, case, width and composition show.
CODE_POINTS = (
    0x00, 0x01, 0x09, 0x0A, 0x0B, 0x0C, 0x0D, 0x1C, 0x1F, 0x7F, 0x85, 0xA0, 0xAD, 0xDF, 0x130,
    0x131, 0x149, 0x1F0, 0x300, 0x344, 0x345, 0x34F, 0x3A3, 0x61C, 0x640, 0xE33, 0x1100, 0x13A0,
    0x1680, 0x180E, 0x1E9E, 0x1FFC, 0x2003, 0x200B, 0x200C, 0x200D, 0x2028, 0x2029, 0x202E, 0x202F,
    0x2060, 0x2126, 0x212B, 0x2160, 0x2460, 0x3000, 0x4E2D, 0xAB70, 0xAC00, 0xD7A3, 0xFB01, 0xFDFA,
    0xFE0F, 0xFEFF, 0xFF21, 0xFFFD, 0xFFFF, 0x10400, 0x1D400, 0x1F600, 0xE0041, 0x10FFFF,
)  # fmt: skip
HARD_PROMPTS = (
    "",
    " ",
    "\n\t ",
    "two red circles left of a blue square",
    "A  Photo,\tof ONE green triangle!",
    " leading and trailing ",
    "it's 3 o'clock; they've 42 x 17 cm, we'll see, I'm, he'd, you're",
    "IT'S I'M WE'LL",
    "a-b_c/d\\e {f} [g] (h) <i> \"j\" 'k' `l` ~m @n #o $p %q ^r &s *t +u =v |w",
    "1234567890 3.14159 1,000,000 0x7f 1e-9",
    "line one\nline two\r\nline three\rline four",
    "na\u00efve caf\u00e9 \u00dcn\u00efc\u00f6d\u00e9",
    "nai\u0308ve cafe\u0301 U\u0308ni\u0308co\u0308de\u0301",
    "a\u0301\u0323 a\u0323\u0301 combining marks in two orders",
    "z\u0351\u036b\u0343\u036a\u0302\u036b\u033d\u034f\u0334\u0319\u0324\u031e many marks on one",
    "\u65e5\u672c\u8a9e\u306e\u30d7\u30ed\u30f3\u30d7\u30c8 \uff76\uff9e \u304b\u3099",
    "\ud55c\uad6d\uc5b4 \u1112\u1161\u11ab\u1100\u116e\u11a8",
    "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd \u202eabc\u202c right to left",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "\u039f\u0394\u039f\u03a3 \u03a3\u0391\u03a3 final sigma",
    "\u0130stanbul \u0131 I i \u1e9e STRASSE \ufb03",
    "\U0001f642\U0001f7e5 \U0001f468\u200d\U0001f469\u200d\U0001f467 joined",
    "\U0001f1e9\U0001f1ea 1\ufe0f\u20e3 flags and keycaps",
    "\U0001f44d\U0001f3fd \u2764\ufe0f \u2764",
    "\ud7ff\ue000\ufffe \U0001ffff",
    "<|startoftext|> in it <|endoftext|> and after",
    "<|ENDOFTEXT|> <|endoftext |>",
    "!!! ! stop!now",
    "<pad> <unk> </s> <extra_id_0> \u2581",
    "</w> a</w>b",
    "a" * 300,
    "red " * 200,
    "\U0001f642" * 60,
    "no end, and a sentence that goes on, " * 12 + "with its last words not read",
    *(f"a{chr(point)}b" for point in CODE_POINTS),
)
SEEDS = (0, 7, 12345, 2**32 - 1, 2**32, 2**33 + 5, 2**63 - 1)
IN_A_ROW = range(1, 41)  # sizes of successive draws from one stream
SINGLE = {0: 4096, 12345: 5003}  # a larger draw by its seed
ULPS = 1  # how far a machine's logarithm and cosine may move a value


def token_vectors(encoders: Mapping[str, Encode], entries: Mapping[str, Tokenizer]) -> str:
    """JSON text: ``prompts``, and under ``ids`` by tokenizer a row for each, without padding."""
    prompts = ",\n  ".join(json.dumps(prompt) for prompt in HARD_PROMPTS)
    tables = []
    for name, encode in encoders.items():
        rows = [json.dumps(ids(encode, entries[name], prompt)) for prompt in HARD_PROMPTS]
        tables.append(f"  {json.dumps(name)}: [\n   " + ",\n   ".join(rows) + "\n  ]")
    whole = ",\n".join(tables)
    return f'{{\n "prompts": [\n  {prompts}\n ],\n "ids": {{\n{whole}\n }}\n}}\n'


def ids(encode: Encode, entry: Tokenizer, prompt: str) -> list[int]:
    """A prompt's ids without the padding at their end: what is left out is ``pad_id``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PromptCut)
        row: list[int] = encode(prompt)[0].tolist()
    while row and row[-1] == entry.pad_id:
        row.pop()
    return row


def noise_vectors() -> dict[str, np.ndarray]:
    """``<seed>/in a row``: draws of ``IN_A_ROW`` values, one behind the other; ``<seed>/<size>``:
    one draw."""
    found = {}
    for seed in SEEDS:
        noise = TorchNoise(seed)
        found[f"{seed}/in a row"] = np.concatenate([noise.randn(size) for size in IN_A_ROW])
    return found | {f"{seed}/{n}": TorchNoise(seed).randn(n) for seed, n in SINGLE.items()}


def same_noise(found: np.ndarray, expected: np.ndarray) -> bool:
    """Whether values are the same but for ``ULPS`` units in the last place."""
    if (found.shape, found.dtype) != (expected.shape, expected.dtype):
        return False
    return bool(np.all(np.abs(found - expected) <= ULPS * np.spacing(np.abs(expected))))

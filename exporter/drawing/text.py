"""Prompts to ids with the ``tokenizers`` library alone: padded, and cut as diffusers cuts."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer as Tokens

from exporter.errors import CheckFailed
from exporter.package.manifest import Tokenizer

Encode = Callable[[str], np.ndarray]


class PromptCut(UserWarning):
    """A prompt is longer than an encoder reads; the message names what is not read."""


def load_tokenizer(folder: Path, entry: Tokenizer, name: str) -> Encode:
    """``prompt_encoder`` of a package's file; raises CheckFailed when it cannot be read."""
    try:
        tokens = Tokens.from_file(str(folder / entry.path))
    except Exception as error:  # the library raises bare Exception
        raise CheckFailed(f"{folder / entry.path}: not a tokenizer: {error}") from None
    return prompt_encoder(tokens, entry, name)


def prompt_encoder(tokens: Tokens, entry: Tokenizer, name: str) -> Encode:
    """A function from a prompt to ids (1, tokens) int32 for the text encoder ``name``.

    Ids end with the tokenizer's closing token; a longer prompt loses its tail, and the closing
    token stays. Warns PromptCut then.
    """
    tokens.no_padding()
    tokens.no_truncation()

    def encode(prompt: str) -> np.ndarray:
        encoded = tokens.encode(prompt)
        ids: list[int] = encoded.ids
        if len(ids) > entry.tokens:
            lost = prompt[encoded.offsets[entry.tokens - 1][0] :]
            warnings.warn(
                f"{name} reads {entry.tokens} tokens; not read: {lost!r}", PromptCut, stacklevel=2
            )
            ids = [*ids[: entry.tokens - 1], ids[-1]]
        padded = ids + [entry.pad_id] * (entry.tokens - len(ids))
        return np.array([padded], dtype=np.int32)

    return encode

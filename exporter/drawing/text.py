"""Prompts to ids with the ``tokenizers`` library alone: padded, and cut as diffusers cuts."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer as Tokens

from exporter.errors import CheckFailed, InputError, Remark
from exporter.files.read import is_text, panics_as, reason_of
from exporter.files.rules import check_rules
from exporter.files.tokens import parse_tokenizer
from exporter.package.manifest import Tokenizer

Encode = Callable[[str], np.ndarray]
MOST_CHARACTERS = 100_000  # of a prompt, of which encoders read 77 to 512 tokens


class PromptCut(Remark):
    """A prompt is longer than an encoder reads; the message names what is not read."""


def check_prompt(prompt: object, name: str = "prompt") -> None:
    """Raise InputError for a prompt that is no text or longer than any encoder could read.

    Args:
        name: what it is called in the error.
    """
    if not isinstance(prompt, str):
        raise InputError(f"is no text but of type {type(prompt).__name__}", field=name)
    if not is_text(prompt):
        raise InputError(f"{name} {prompt[:40]!r}: is not UTF-8 text")
    if len(prompt) > MOST_CHARACTERS:
        raise InputError(f"a {name} of {len(prompt)} characters: at most {MOST_CHARACTERS}")


def load_tokenizer(file: Path, content: bytes, entry: Tokenizer, name: str) -> Encode:
    """``prompt_encoder`` of a package's file; raises CheckFailed when it is none.

    Args:
        content: what is in the file.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        raise CheckFailed(f"{file}: not a tokenizer: not UTF-8 text") from None
    try:
        check_rules(content)
    except ValueError as error:
        raise CheckFailed(f"{file}: not a tokenizer: {reason_of(error)}") from None
    tokens = parse_tokenizer(text, file, CheckFailed)
    largest = largest_id(tokens)
    if largest >= entry.vocabulary_size:
        raise CheckFailed(
            f"{file}: has ids up to {largest} and the manifest allows {entry.vocabulary_size}; "
            "build the package again"
        )
    return prompt_encoder(tokens, entry, name)


def largest_id(tokens: Tokens) -> int:
    """Of the vocabulary, and of what every prompt gets around it."""
    return max([*tokens.get_vocab(with_added_tokens=True).values(), *tokens.encode("").ids, 0])


def describe(tokens: Tokens, path: str, count: int, pad_id: int) -> Tokenizer:
    """What a manifest says of a tokenizer that fills ``count`` ids up with ``pad_id``."""
    alone: list[int] = tokens.encode("").ids
    return Tokenizer(
        path,
        count,
        pad_id,
        kind=type(tokens.model).__name__,
        closing_id=alone[-1] if alone else None,
        vocabulary_size=1 + largest_id(tokens),
    )


def prompt_encoder(tokens: Tokens, entry: Tokenizer, name: str) -> Encode:
    """A function from a prompt to ids (1, tokens) int32 for the text encoder ``name``.

    Ids end with the tokenizer's closing token; a longer prompt loses its tail, and the closing
    token stays. Warns PromptCut then. Raises InputError for a prompt that is no text, or that the
    tokenizer cannot take.
    """
    tokens.no_padding()
    tokens.no_truncation()

    def encode(prompt: str) -> np.ndarray:
        check_prompt(prompt)
        with panics_as(lambda said: InputError(f"{name}: the prompt cannot be encoded: {said}")):
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

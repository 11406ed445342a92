"""Reading tokenizers with the ``tokenizers`` library."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer as Tokens

from exporter.errors import InputError
from exporter.files.read import Failure, panics_as, read_text


def parse_tokenizer(text: str, where: object, failure: Failure = InputError) -> Tokens:
    """A tokenizer from the text of a ``tokenizer.json``; raises ``failure`` naming ``where``.

    It has encoded something, so that a rule that cannot be applied is found here.
    """
    with panics_as(lambda said: failure(f"{where}: not a tokenizer: {said}")):
        tokens = Tokens.from_str(text)
        tokens.encode("a")
    return tokens


def read_tokenizer(file: Path, failure: Failure = InputError) -> Tokens:
    """A tokenizer from a file; raises ``failure`` naming it."""
    return parse_tokenizer(read_text(file, failure), file, failure)

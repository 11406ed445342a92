"""Reading prompts that somebody wrote down, one in a line."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from exporter.errors import InputError
from exporter.files.read import MOST_TEXT_BYTES, Failure, parse_text, read_text

STDIN = "standard input"


def read_prompts(file: Path, failure: Failure = InputError) -> dict[int, str]:
    """The prompts of a file by the number of their line, from 1; raises ``failure``."""
    return parse_prompts(read_text(file, _expecting(failure)), file, failure)


def prompts_from(stream: BinaryIO, failure: Failure = InputError) -> dict[int, str]:
    """The same of standard input, which is read to its end."""
    text = parse_text(stream.read(MOST_TEXT_BYTES + 1), STDIN, _expecting(failure))
    return parse_prompts(text, STDIN, failure)


def _expecting(failure: Failure) -> Failure:
    """The same failure, which says besides what is expected."""
    return lambda said: failure(f"{said}; a prompt in each line is expected, in UTF-8")


def parse_prompts(text: str, where: object, failure: Failure = InputError) -> dict[int, str]:
    """The lines that are not blank, without the space around them; raises ``failure``."""
    if "\0" in text:
        raise failure(f"{where}: holds zero characters, as UTF-16 does; save it as UTF-8")
    lines = enumerate(text.split("\n"), 1)
    found = {number: line.strip() for number, line in lines if line.strip()}
    if not found:
        raise failure(f"{where}: holds no prompt; write one per line")
    return found

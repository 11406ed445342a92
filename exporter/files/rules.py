"""The rules of a tokenizer, held against what could run or grow without end."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import msgspec

MOST_PATTERN = 2000  # characters
MOST_OPEN_ENDS = 4  # quantifiers without an end in one alternative
MOST_GROWTH = 64  # how many characters rules may make of one
MOST_PIECES = 32  # around a prompt, and rules one behind the other
MOST_REPEATS = 1000
QUANTIFIER = re.compile(r"[*+]|\{\d*,?\d*\}")


class _Rules(msgspec.Struct):
    normalizer: Any = None
    pre_tokenizer: Any = None
    post_processor: Any = None


def check_rules(content: bytes) -> None:
    """Raise ValueError for a ``tokenizer.json`` whose rules could run or grow without end.

    Its vocabulary is not looked at. What is no tokenizer is the library's to say.
    """
    try:
        rules = msgspec.json.decode(content, type=_Rules)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(str(error)) from None
    before = [*_objects((rules.normalizer, rules.pre_tokenizer))]
    if len(before) > MOST_PIECES * 4:
        raise ValueError(f"{len(before)} rules one behind the other")
    growth = 1
    for rule in before:
        pattern = rule.get("Regex")
        if isinstance(pattern, str):
            check_pattern(pattern)
        if rule.get("type") in ("Replace", "Prepend"):
            added = rule.get("content", rule.get("prepend", ""))
            growth *= max(1, len(added) if isinstance(added, str) else 1)
    if growth > MOST_GROWTH:
        raise ValueError(f"rules that make {growth} characters of one")
    pieces = sum(len(o[k]) for o in _objects(rules.post_processor) for k in o if _is_list(o[k]))
    if pieces > MOST_PIECES * 4:
        raise ValueError(f"{pieces} pieces around every prompt")


def check_pattern(pattern: str) -> None:
    """Raise ValueError for a regular expression that may take exponential time.

    Refused are a group that is repeated, what refers to a group, and many quantifiers in a row:
    tokenizers need none of them.
    """
    if len(pattern) > MOST_PATTERN:
        raise ValueError(f"a pattern of {len(pattern)} characters")
    plain = re.sub(r"\\p\{[^}]*\}", "P", pattern, flags=re.IGNORECASE)
    if re.search(r"\\[1-9kg]", plain):
        raise ValueError(f"the pattern {pattern[:40]!r} refers to what it found")
    plain = re.sub(r"\\.", "E", plain, flags=re.DOTALL)
    plain = re.sub(r"\[[^\]]*\]", "C", plain)
    if re.search(r"\)\s*([*+]|\{)", plain):
        raise ValueError(f"the pattern {pattern[:40]!r} repeats a group")
    if re.search(r"([*+}?]\s*)[*{]|\}[+]", plain):
        raise ValueError(f"the pattern {pattern[:40]!r} repeats a repetition")
    for numbers in re.findall(r"\{([\d,]*)\}", plain):
        if math.prod(int(n) for n in numbers.split(",") if n) > MOST_REPEATS:
            raise ValueError(f"the pattern {pattern[:40]!r} repeats {numbers} times")
    for alternative in plain.split("|"):
        if len(QUANTIFIER.findall(alternative)) > MOST_OPEN_ENDS:
            raise ValueError(f"the pattern {pattern[:40]!r} repeats too much in a row")


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, dict):
            yield item
            left += item.values()
        elif isinstance(item, list | tuple):
            left += item


def _is_list(value: object) -> bool:
    return isinstance(value, list)

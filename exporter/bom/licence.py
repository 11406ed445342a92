"""Licences by their SPDX identifiers, and what some of them oblige whoever hands weights on to.

Facts, and no advice. Sentences that a licence wants to be repeated as they are stand in
``OBLIGATIONS``; nothing else here is a licence's own text.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from exporter.errors import InputError, needs_extra

LIBRARY = "cyclonedx-python-lib"
STABILITY = "LicenseRef-scancode-stability-ai-community-2024"  # as ScanCode names it, for scanners
BEGINNING = 2000  # characters of a licence's file in which it says what it is
OWN = re.compile(r"LicenseRef-[A-Za-z0-9.-]+")  # an identifier that whoever writes it defines
WORD = re.compile(r"[A-Za-z0-9.+-]+")
OPERATORS = ("AND", "OR", "WITH")
# How a licence's text begins, in capitals and with single blanks for all but letters and digits.
TITLES = {
    "STABILITY AI COMMUNITY LICENSE AGREEMENT": STABILITY,
    "APACHE LICENSE VERSION 2 0": "Apache-2.0",
    "PERMISSION IS HEREBY GRANTED FREE OF CHARGE TO ANY PERSON OBTAINING A COPY": "MIT",
    "CC0 1 0": "CC0-1.0",
}
# What model cards of the hub call licences, where that is no SPDX identifier.
CARD_NAMES = {"stabilityai-ai-community": STABILITY}
CARD = re.compile(r"\A---\n(?P<head>.*?)\n---", re.DOTALL)
CARD_KEY = re.compile(r"^(?P<key>license(?:_name)?): *[\"']?(?P<value>[^\"'#\n]+)", re.MULTILINE)


@dataclass(frozen=True)
class Obligation:
    """What a licence asks of everyone who hands the model on, in its own words.

    Attributes:
        attribution: a line to show where people see it.
        notice: a sentence to keep in a file called NOTICE.
    """

    attribution: str
    notice: str


OBLIGATIONS = {
    STABILITY: Obligation(
        "Powered by Stability AI",
        "This Stability AI Model is licensed under the Stability AI Community License, Copyright "
        "© Stability AI Ltd. All Rights Reserved",
    )
}


def named_by(text: str) -> str:
    """The identifier of the licence that a licence's file holds, or empty for one unknown."""
    start = " ".join(re.findall(r"[A-Z0-9]+", text[:BEGINNING].upper()))
    found = {start.find(title): spdx for title, spdx in TITLES.items() if title in start}
    return found[min(found)] if found else ""


def named_by_card(text: str) -> str:
    """The identifier of the licence that the head of a model card names, or empty."""
    head = CARD.match(text)
    keys = {m["key"]: m["value"].strip() for m in CARD_KEY.finditer(head["head"] if head else "")}
    for name in (keys.get("license_name", ""), keys.get("license", "")):
        known = CARD_NAMES.get(name) or _listed(name)
        if known:
            return known
    return ""


def together(identifiers: Iterable[str]) -> str:
    """One expression of several licences that all apply."""
    return " AND ".join(dict.fromkeys(name for name in identifiers if name))


def parse(text: str, where: str) -> str:
    """An SPDX identifier or expression, spelled as its list has it; raises InputError.

    Identifiers that begin with ``LicenseRef-`` are anybody's own.
    """
    from cyclonedx.spdx import is_expression

    plain = OWN.sub("MIT", text)  # the library knows none of these
    if text.strip() and is_expression(plain):
        return WORD.sub(lambda found: _spelled(found[0]), text.strip())
    raise InputError(
        f"{where} = {text!r:.60}: an SPDX identifier is expected, such as Apache-2.0, or "
        "LicenseRef- and a name of your own for a licence that has none"
    )


def obligations(expression: str) -> tuple[Obligation, ...]:
    """What the licences of an expression oblige to, in their order."""
    names = dict.fromkeys(WORD.findall(expression))
    return tuple(OBLIGATIONS[name] for name in names if name in OBLIGATIONS)


def notice_text(given: str, owed: Sequence[Obligation], changes: str) -> str:
    """What the file NOTICE of a package says.

    Args:
        given: the checkpoint's own NOTICE, or empty.
        changes: in a sentence, how the package was made of the model.
    """
    parts = [given.strip()] if given.strip() else []
    for obligation in owed:
        parts += [said for said in (obligation.notice, obligation.attribution) if said not in given]
    return "\n\n".join([*parts, changes]) + "\n"


def _spelled(word: str) -> str:
    """An operator or an identifier as SPDX writes it; what it does not list, as it is."""
    return word.upper() if word.upper() in OPERATORS else _listed(word) or word


def _listed(name: str) -> str:
    """An identifier of SPDX's list however its letters are, or empty."""
    from cyclonedx.spdx import fixup_id

    return fixup_id(name) or ""


def require_library(extra: str = "bom") -> None:
    """Raise InputError with the pip command where the library is not installed."""
    if importlib.util.find_spec("cyclonedx") is None:
        raise needs_extra(extra, LIBRARY)

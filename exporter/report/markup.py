"""HTML and SVG elements as text, and figures in words."""

from __future__ import annotations

import base64
import html
import io
import math
import re
from collections.abc import Collection, Sequence

import numpy as np
from PIL import Image as Picture

from exporter.package.measures import SAME_DB

NONE = "\N{EM DASH}"
LONG = 60  # letters of a fact from which it gets a line of its own


def tag(name: str, /, *inside: str, **attributes: object) -> str:
    """An element around markup. ``class_`` and ``text_anchor`` are class and text-anchor.

    An attribute that is True stands without a value; one that is None or False is left out.
    """
    written = [
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{_quoted(value)}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    ]
    content = "".join(inside)
    void = name in ("img", "input", "meta", "br")
    end = ">" if void else f">{content}</{name}>"
    return f"<{name}{''.join(written)}{end}"


def text(value: object) -> str:
    """Anything as markup that shows it."""
    return html.escape(str(value), quote=False)


def _quoted(value: object) -> str:
    return html.escape(f"{value:.6g}" if isinstance(value, float) else str(value))


def png(pixels: np.ndarray) -> str:
    """(H, W, 3) or (H, W) uint8 as a data URI."""
    file = io.BytesIO()
    Picture.fromarray(pixels).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def megabytes(count: float | None, unit: bool = False) -> str:
    """``7.2`` of 7,225,982 bytes, with MB when asked."""
    if count is None:
        return NONE
    size = count / 1e6
    digits = 3 if size < 0.1 else 2 if size < 1 else 1 if size < 1000 else 0
    return f"{size:,.{digits}f}" + ("\N{NO-BREAK SPACE}MB" if unit else "")


def decibels(value: float | None) -> str:
    """One decimal; from ``SAME_DB`` on, nobody can tell."""
    if value is None:
        return NONE
    return (
        f"\N{GREATER-THAN OR EQUAL TO}\N{THIN SPACE}{SAME_DB:.0f}"
        if value >= SAME_DB
        else (f"{value:.1f}")
    )


def seconds(value: float | None) -> str:
    """Three significant digits from a hundredth of a second to a minute."""
    if value is None:
        return NONE
    digits = 3 if value < 0.1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{digits}f}"


def count(many: int, noun: str) -> str:
    """``1 layer``, ``2 layers``."""
    return f"{many} {noun}{'' if many == 1 else 's'}"


def number(value: float | None) -> str:
    """Four significant digits of a figure of unknown kind."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def table(
    caption: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    breaks: Collection[int] = (),
) -> str:
    """A table whose first column names its rows; cells are markup. It scrolls inside its frame.

    Args:
        columns: titles; what follows a bar is a unit.
        breaks: rows that begin a group.
    """
    head = tag("tr", *(tag("th", _title(c), scope="col") for c in columns))
    body = "".join(
        tag(
            "tr",
            tag("th", first, scope="row"),
            *(tag("td", cell) for cell in rest),
            class_="first" if i in breaks else None,
        )
        for i, (first, *rest) in enumerate(rows)
    )
    title = tag("caption", tag("span", curly(caption)))
    inside = title + tag("thead", head) + tag("tbody", body)
    return tag(
        "div", tag("table", inside), class_="scroll", role="region", tabindex=0, aria_label=caption
    )


def _title(column: str) -> str:
    name, _, unit = column.partition("|")
    return text(name) + (" " + tag("small", text(unit)) if unit else "")


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Terms and what they are, the latter as markup; those without are left out."""
    rows = [
        tag("div", tag("dt", text(k)), tag("dd", v), class_="long" if len(v) > LONG else None)
        for k, v in pairs
        if v
    ]
    return tag("dl", *rows, class_="facts")


def curly(words: str) -> str:
    """Plain words as markup, with the apostrophe of print."""
    return re.sub(r"(?<=\w)'(?=\w)", "\N{RIGHT SINGLE QUOTATION MARK}", text(words))


def paragraph(words: str, kind: str | None = None) -> str:
    """Plain words."""
    return tag("p", curly(words), class_=kind)


def fold(summary: str, *inside: str) -> str:
    """Something to open."""
    return tag("details", tag("summary", text(summary)), *inside)


def digest(value: str) -> str:
    """A digest that breaks where it must."""
    return tag("code", text(value), class_="digest") if value else ""

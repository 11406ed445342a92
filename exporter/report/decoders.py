"""The decoder that draws beside the one that shows previews: seconds, decibels, pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from exporter.package.measures import amplification, difference_map, mean_db
from exporter.report.facts import Comparison, Entry
from exporter.report.markup import decibels, paragraph, png, table, tag, text
from exporter.report.pictures import Shown


def shows_previews(report: Comparison) -> bool:
    """Whether a package that ran here has a graph for previews alone."""
    return any(_has_both(entry) for entry in report.packages)


def decoders(report: Comparison, shown: Sequence[Shown]) -> str:
    """Both decoders of each package on the same final latents."""
    entries = [entry for entry in report.packages if _has_both(entry)]
    words = (
        "These packages have two decoders: one draws the pictures, the other, a tiny one, shows "
        "latents between steps. Both were given the final latents, some times each: milliseconds "
        "are those of the fastest call. PSNR is of the tiny one's picture against the other's, a "
        "mean over the pictures."
    )
    columns = ["Package", "Decoder|ms", "Tiny|ms", "Times as fast", "PSNR|dB", "Lowest|dB"]
    whole = table("Two decoders on the same latents", columns, [_row(entry) for entry in entries])
    # One package is enough to see it: the others' tiny decoders are the same but for rounding.
    first = entries[0]
    return paragraph(words) + whole + "".join(_prompt(first, one) for one in shown)


def _has_both(entry: Entry) -> bool:
    return bool(entry.previews_db) and entry.times is not None


def _row(entry: Entry) -> list[str]:
    assert entry.times is not None
    full, tiny = entry.times.fastest_decode_s, entry.times.fastest_preview_s
    assert full is not None and tiny is not None
    return [
        text(entry.name),
        f"{1000 * full:.1f}",
        f"{1000 * tiny:.1f}",
        f"{full / tiny:.1f}",
        decibels(mean_db(list(entry.previews_db))),
        decibels(min(entry.previews_db)),
    ]


def _prompt(entry: Entry, one: Shown) -> str:
    if entry.name not in one.previews:
        return ""
    drawn, tiny = one.pictures[entry.name], one.previews[entry.name]
    factor = amplification([(tiny, drawn)])
    title = tag("h3", f"“{text(one.asked.prompt)}”", tag("small", f"seed {one.asked.seed}"))
    cards = [
        _card(drawn, "The decoder that draws", f"“{one.asked.prompt}” by {entry.name}"),
        _card(tiny, "The tiny one", f"“{one.asked.prompt}” by the tiny decoder of {entry.name}"),
        _card(
            difference_map(tiny, drawn, factor), f"Difference, {factor} times amplified",
            f"Where the two decoders of {entry.name} differ",
        ),
    ]  # fmt: skip
    return tag("article", title, tag("div", *cards, class_="cards of-3"), class_="prompt")


def _card(pixels: np.ndarray, caption: str, about: str) -> str:
    height, width = pixels.shape[:2]
    picture = tag("img", src=png(pixels), alt=about, width=width, height=height, decoding="async")
    return tag("figure", picture, tag("figcaption", text(caption)), class_="card alone")

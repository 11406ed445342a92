"""The pictures side by side, by scheme and backend, with maps of what differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from exporter.bench.process import Asked
from exporter.package.measures import amplification, difference_map
from exporter.report.facts import UNQUANTIZED, Comparison, Entry
from exporter.report.markup import decibels, paragraph, png, tag, text


@dataclass(frozen=True, eq=False)
class Shown:
    """A prompt's pictures (H, W, 3): the yardstick's, and each package's by name.

    ``previews``: the final latent by the graph that a package has for previews alone.
    """

    asked: Asked
    reference: np.ndarray
    pictures: Mapping[str, np.ndarray]
    previews: Mapping[str, np.ndarray] = field(default_factory=dict)


def gallery(report: Comparison, shown: Sequence[Shown]) -> str:
    """For each prompt: the yardstick's picture, then a row per scheme, a column per backend."""
    if not shown:
        return paragraph(
            "No pictures: the packages were built without golden ones. Draw some: fourstep report "
            "DIR --prompts FILE"
        )
    factor = amplification([(p, s.reference) for s in shown for p in s.pictures.values()])
    left_out = len(report.asked) - len(shown)
    more = f" {left_out} further prompts are in the figures alone." if left_out else ""
    words = (
        "Every picture starts from the same noise. Beside it stands the difference from "
        f"{_reference_name(report)}: per pixel the largest over its colours, {factor} times "
        "amplified; a plain field is no difference."
    )
    return paragraph(words + more) + "".join(
        _prompt(i, report, one, factor) for i, one in enumerate(shown)
    )


def overlays(shown: Sequence[Shown]) -> str:
    """Style that lays each prompt's reference over its frames, so that it is stored once."""
    return "\n".join(
        f'.p{i} .frame::after{{background-image:url("{png(one.reference)}")}}'
        for i, one in enumerate(shown)
    )


def _reference_name(report: Comparison) -> str:
    return "the unquantized picture" if report.yardstick == UNQUANTIZED else report.yardstick


def _prompt(index: int, report: Comparison, one: Shown, factor: int) -> str:
    entries = [e for e in report.packages if e.name in one.pictures]
    backends = list(dict.fromkeys(e.backend for e in entries))
    schemes = list(dict.fromkeys(e.scheme for e in sorted(entries, key=lambda e: -e.mmdit_bytes)))
    title = tag("h3", f"“{text(one.asked.prompt)}”", tag("small", f"seed {one.asked.seed}"))
    rows = "".join(_scheme(scheme, backends, entries, one, factor) for scheme in schemes)
    return tag("article", title, _controls(index, report, one), rows, class_=f"prompt p{index}")


def _controls(index: int, report: Comparison, one: Shown) -> str:
    name = _reference_name(report)
    height, width = one.reference.shape[:2]
    picture = tag(
        "img", src=png(one.reference), width=width, height=height,
        alt=f"“{one.asked.prompt}”, {name}",
    )  # fmt: skip
    switches = [
        ("blink", f"Show {name} in every frame"),
        ("large", "Larger pictures"),
    ]
    boxes = "".join(
        tag(
            "label",
            tag("input", type="checkbox", class_=kind, id=f"{kind}-{index}"),
            tag("span", text(words)),
            for_=f"{kind}-{index}",
        )
        for kind, words in switches
    )
    caption = tag("figcaption", text(name[0].upper() + name[1:]))
    return tag("figure", picture, caption, class_="reference") + tag(
        "div", boxes, class_="controls"
    )


def _scheme(
    scheme: str, backends: Sequence[str], entries: Sequence[Entry], one: Shown, factor: int
) -> str:
    of = {e.backend: e for e in entries if e.scheme == scheme}
    cards = [_card(of[b], one, factor) if b in of else _absent(b, scheme) for b in backends]
    grid = tag("div", *cards, class_=f"cards of-{min(len(backends), 4)}")
    return tag("section", tag("h4", text(scheme)), grid, class_="scheme")


def _absent(backend: str, scheme: str) -> str:
    return tag("p", text(f"{backend}: no {scheme} here"), class_="absent")


def _card(entry: Entry, one: Shown, factor: int) -> str:
    picture = one.pictures[entry.name]
    height, width = picture.shape[:2]
    size = {"width": width, "height": height, "decoding": "async"}
    figures = next((f for f in entry.figures if f.asked == one.asked), None)
    away = decibels(figures.psnr_db if figures else None)
    drawn = tag(
        "img", src=png(picture), alt=f"“{one.asked.prompt}” by {entry.name}, PSNR {away} dB", **size
    )
    map_ = tag(
        "img", src=png(difference_map(picture, one.reference, factor)),
        alt=f"Where {entry.name} differs, {factor} times amplified", **size,
    )  # fmt: skip
    caption = tag("figcaption", tag("b", text(entry.backend)), " ", tag("span", f"{away} dB"))
    both = tag("div", drawn, class_="frame") + tag("div", map_, class_="map")
    return tag("figure", both, caption, class_="card")

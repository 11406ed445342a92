"""The page: one HTML file that asks for nothing. It has no script, and its style by digest."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources

from exporter.package.manifest import Schedule, mark_words
from exporter.package.sizes import sizes_of
from exporter.report.chips import compiled
from exporter.report.decoders import decoders, shows_previews
from exporter.report.diagrams import frontiers, graph_bytes, steps
from exporter.report.facts import UNQUANTIZED, Comparison, Entry
from exporter.report.markup import (
    LONG,
    count,
    decibels,
    digest,
    facts,
    fold,
    megabytes,
    paragraph,
    tag,
    text,
)
from exporter.report.pictures import Shown, gallery, overlays
from exporter.report.plans import plans
from exporter.report.tables import running, summary

SAID_ELSEWHERE = ("name", "checkpoint_sha256")


def page(report: Comparison, shown: Sequence[Shown]) -> str:
    """The whole HTML text; it opens from disk and makes no request."""
    parts = [
        ("summary", "Summary", summary(report)),
        ("frontier", "Size and quality", frontiers(report)),
        ("pictures", "Pictures", gallery(report, shown)),
        *_decoders(report, shown),
        ("bytes", "Bytes", graph_bytes(report)),
        ("sensitivity", "Layers", plans(report)),
        ("steps", "Steps", steps(report)),
        ("running", "Time and memory", running(report)),
        *_chips(report),
        ("provenance", "Provenance", provenance(report)),
    ]
    contents = tag("ul", *(tag("li", tag("a", text(t), href=f"#{i}")) for i, t, _ in parts))
    body = "".join(
        tag("section", tag("h2", text(title), id=f"{name}-title"), inside, id=name,
            aria_labelledby=f"{name}-title", class_="part")
        for name, title, inside in parts
    )  # fmt: skip
    return document(
        f"{report.name}: fourstep report",
        style() + overlays(shown),
        _header(report) + tag("nav", contents, aria_label="Contents") + tag("main", body),
    )


def _decoders(report: Comparison, shown: Sequence[Shown]) -> list[tuple[str, str, str]]:
    """A part of the page where packages have two decoders."""
    if not shows_previews(report):
        return []
    return [("decoders", "Decoders", decoders(report, shown))]


def _chips(report: Comparison) -> list[tuple[str, str, str]]:
    """A part of the page where packages were compiled for chips."""
    found = {entry.name: entry.chips for entry in report.packages if entry.chips}
    return [("chips", "Chips", compiled(found))] if found else []


def style() -> str:
    """Of every page."""
    return resources.files("exporter.report").joinpath("style.css").read_text(encoding="utf-8")


def document(title: str, style: str, body: str) -> str:
    """A whole page that asks for nothing, of its style and what is in its body."""
    known = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{known}'; base-uri 'none'; "
        "form-action 'none'"
    )
    head = (
        tag("meta", charset="utf-8")
        + tag("meta", http_equiv="Content-Security-Policy", content=policy)
        + tag("meta", name="viewport", content="width=device-width, initial-scale=1")
        + tag("meta", name="color-scheme", content="light dark")
        + tag("meta", name="referrer", content="no-referrer")
        + tag("title", text(title))
        + tag("style", style)
    )
    whole = tag("html", tag("head", head), tag("body", body), lang="en")
    return f"<!doctype html>\n{whole}\n"


def _header(report: Comparison) -> str:
    tools: dict[str, set[str]] = {}
    for entry in report.packages:
        for name, version in entry.manifest.origin.tools.items():
            tools.setdefault(name, set()).add(version)
    schedule = report.schedule
    numbers = ", ".join(f"{s:g}" for s in schedule.sigmas)
    recipes = {e.backend: e.manifest.origin.recipe_sha256[:12] for e in report.packages}
    about = facts(
        [
            ("Pictures", text(_sizes(report))),
            ("Schedule", text(f"{schedule.steps} steps, {schedule.mode}")),
            ("Noise levels", text(numbers)),
            ("Guidance", text(_guidance(schedule))),
            ("Filter", text(_filters(report))),
            ("T5", "on board" if report.t5 else "replaced by null tokens"),
            ("Yardstick", text(_yardstick(report))),
            (
                "Mark",
                text("; ".join(sorted({mark_words(e.manifest.mark) for e in report.packages}))),
            ),
            ("Tools", text(", ".join(f"{n} {' and '.join(sorted(v))}" for n, v in tools.items()))),
            ("Recipe", digest(", ".join(f"{name} {r}" for name, r in recipes.items()))),
            ("Checkpoint", digest(report.checkpoint_sha256)),
        ]
    )
    return tag(
        "header",
        paragraph("fourstep report", "kicker"),
        tag("h1", text(report.name)),
        paragraph(_lede(report), "lede"),
        about,
    )


def _sizes(report: Comparison) -> str:
    """The size of the page's pictures, and those that some of the packages draw besides."""
    drawn = f"{report.width_px} \N{MULTIPLICATION SIGN} {report.height_px} px"
    others = {size: None for e in report.packages for size in sizes_of(e.manifest)[1:]}
    listed = ", ".join(f"{s.width_px} \N{MULTIPLICATION SIGN} {s.height_px}" for s in others)
    return f"{drawn}; packages also draw {listed}" if listed else drawn


def _filters(report: Comparison) -> str:
    """What pictures have to pass, in the packages that say so; the page shows them unfiltered."""
    labels = {
        entry.backend: entry.manifest.filter.label or "a classifier"
        for entry in report.packages
        if entry.manifest.filter is not None
    }
    said = ", ".join(f"{backend}: {label}" for backend, label in sorted(labels.items()))
    return f"{said}; drawn here without" if said else "none"


def _guidance(schedule: Schedule) -> str:
    guidance = schedule.guidance
    if guidance is None:
        return "none"
    if guidance.negative_prompt is None:
        return f"{guidance.scale:g}, away from an empty prompt"
    return f"{guidance.scale:g}, away from “" + (f"{guidance.negative_prompt}”")


def _yardstick(report: Comparison) -> str:
    if report.yardstick == UNQUANTIZED:
        return "the unquantized program in torch"
    return f"{report.yardstick}, the least rounded package"


def _lede(report: Comparison) -> str:
    """What the page is about, in a sentence or two."""
    entries = sorted(report.packages, key=lambda e: e.mmdit_bytes)
    smallest, largest = entries[0], entries[-1]
    backends = sorted({e.backend for e in entries})
    words = f"{count(len(entries), 'package')} for {_list(backends)}."
    if len(entries) == 1:
        return words
    words += (
        f" The MMDiT takes {megabytes(largest.mmdit_bytes, unit=True)} in {largest.name} and "
        f"{megabytes(smallest.mmdit_bytes, unit=True)} in {smallest.name}"
    )
    snr = smallest.latent_snr_db
    return words + (f", whose final latent keeps {decibels(snr)} dB." if snr is not None else ".")


def _list(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def provenance(report: Comparison) -> str:
    """Where each package comes from, to open."""
    words = (
        "The same recipe, checkpoint and tool versions give the same bytes. Each package's "
        "manifest is here whole: digests of every file, formats, ports and settings."
    )
    return paragraph(words) + "".join(_provenance(e) for e in report.packages)


def _provenance(entry: Entry) -> str:
    """Plain fields by their names, so that a field of a later manifest is shown too."""
    raw = asdict(entry.manifest)
    fields = raw | raw["origin"] | raw["device"]
    fields["mark"] = mark_words(entry.manifest.mark)
    plain = [
        (_title(key), _value(key, value))
        for key, value in fields.items()
        if key not in SAID_ELSEWHERE
    ]
    tools = ", ".join(f"{name} {version}" for name, version in entry.manifest.origin.tools.items())
    about = facts(sorted([*plain, ("Tools", text(tools))], key=lambda pair: len(pair[1]) > LONG))
    manifest = json.dumps(raw, indent=1, ensure_ascii=False)
    whole = fold("manifest.json", tag("pre", tag("code", text(manifest)), tabindex=0))
    return fold(entry.name, about, whole)


def _title(key: str) -> str:
    if key == "statistics_sha256":
        return "Calibration digest"
    words = key.removesuffix("_sha256").removesuffix("_bytes").replace("_", " ")
    kind = " digest" if key.endswith("_sha256") else ""
    return (words + kind).capitalize()


def _value(key: str, value: object) -> str:
    if key.endswith("_sha256"):
        return digest(str(value))
    if key.endswith("_bytes") and isinstance(value, int):
        return megabytes(value, unit=True)
    if isinstance(value, tuple) and all(isinstance(v, str) for v in value):
        return text(", ".join(value))
    return text(value) if isinstance(value, str | int | float) else ""

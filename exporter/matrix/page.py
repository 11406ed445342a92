"""The page of a matrix: what was built, reused and failed, with times and memory. No script."""

from __future__ import annotations

from collections.abc import Sequence

from exporter.matrix.outcome import Outcome
from exporter.report.markup import count, facts, megabytes, paragraph, table, tag, text
from exporter.report.page import document, style

ABSENT = "\N{EN DASH}"
COLUMNS = (
    "Package", "State", "Graphs emitted", "Graphs reused", "Seconds|s", "CPU|s", "Memory|MB",
    "Predicted|MB", "Size|MB", "Begun|times",
)  # fmt: skip


def page(name: str, outcomes: Sequence[Outcome], seconds: float) -> str:
    """The whole HTML text; it opens from disk and makes no request."""
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    parts = [("jobs", "Jobs", _jobs(outcomes))]
    if failed:
        parts.insert(0, ("failed", "Failed", _failed(failed)))
    over = [outcome for outcome in outcomes if outcome.is_over]
    if over:
        parts.append(("over", "More memory than predicted", _listed(over)))
    body = "".join(
        tag("section", tag("h2", text(title), id=f"{part}-title"), inside, id=part,
            aria_labelledby=f"{part}-title", class_="part")
        for part, title, inside in parts
    )  # fmt: skip
    header = tag(
        "header",
        paragraph("fourstep matrix", "kicker"),
        tag("h1", text(name)),
        facts(_about(outcomes, seconds)),
    )
    return document(f"{name}: fourstep matrix", style(), header + tag("main", body))


def _about(outcomes: Sequence[Outcome], seconds: float) -> list[tuple[str, str]]:
    states = [outcome.state for outcome in outcomes]
    peaks = [outcome.peak_bytes for outcome in outcomes if outcome.peak_bytes is not None]
    cpu_s = sum(outcome.cpu_s for outcome in outcomes)
    workers = {outcome.worker for outcome in outcomes if outcome.worker}
    return [
        ("Jobs", text(count(len(outcomes), "job"))),
        *((state, text(states.count(state))) for state in ("built", "reused", "failed")),
        ("Graphs emitted", text(sum(len(outcome.emitted) for outcome in outcomes))),
        ("Graphs reused", text(sum(len(outcome.taken) for outcome in outcomes))),
        ("Seconds", text(f"{seconds:,.1f}")),
        ("CPU seconds", text(f"{cpu_s:,.1f}")),
        ("Most memory of a job", megabytes(max(peaks), unit=True) if peaks else ""),
        ("Workers", text(len(workers))),
    ]


def _jobs(outcomes: Sequence[Outcome]) -> str:
    groups = [outcome.name.rpartition("/")[0] for outcome in outcomes]
    breaks = [i for i, group in enumerate(groups) if i == 0 or groups[i - 1] != group]
    return table("Every job", COLUMNS, [_row(outcome) for outcome in outcomes], breaks)


def _row(outcome: Outcome) -> list[str]:
    def figure(value: float | None) -> str:
        return f"{value:,.1f}" if value else ABSENT

    return [
        text(outcome.name),
        text(outcome.state),
        text(", ".join(outcome.emitted) or ABSENT),
        text(", ".join(outcome.taken) or ABSENT),
        figure(outcome.seconds),
        figure(outcome.cpu_s),
        megabytes(outcome.peak_bytes) if outcome.peak_bytes else ABSENT,
        megabytes(outcome.predicted_bytes) if outcome.predicted_bytes else ABSENT,
        megabytes(outcome.bytes) if outcome.bytes else ABSENT,
        text(outcome.attempts),
    ]


def _failed(outcomes: Sequence[Outcome]) -> str:
    rows = [[text(outcome.name), text(outcome.reason)] for outcome in outcomes]
    return table("Why they failed", ("Package", "Reason"), rows)


def _listed(outcomes: Sequence[Outcome]) -> str:
    rows = [
        [text(one.name), megabytes(one.peak_bytes), megabytes(one.predicted_bytes)]
        for one in outcomes
    ]
    return table("Memory", ("Package", "Taken|MB", "Predicted|MB"), rows)

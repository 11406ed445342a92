"""The charts: size against quality, bytes of graphs, error over the steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from exporter.package.measures import SAME_DB
from exporter.package.names import NAMES
from exporter.report import charts
from exporter.report.charts import Bar, Point, Series
from exporter.report.facts import Comparison, Entry
from exporter.report.markup import curly, decibels, fold, megabytes, paragraph, table, tag, text

HALF_PX, FULL_PX = 500, 780


def figure(title: str, chart: str, *beside: str) -> str:
    """A chart under its title, with a legend above or a table below."""
    return tag(
        "figure", tag("figcaption", curly(title)), *beside[:1], chart, *beside[1:], class_="chart"
    )


def legend(items: Sequence[tuple[str, str]]) -> str:
    """Signs and what they stand for."""
    return tag("ul", *(tag("li", sign, text(name)) for sign, name in items), class_="legend")


def backend_index(report: Comparison) -> dict[str, int]:
    """A colour and a sign for each backend."""
    return {name: i for i, name in enumerate(sorted({e.backend for e in report.packages}))}


def frontiers(report: Comparison) -> str:
    """Bytes of the MMDiT against latent SNR, and against PSNR."""
    entries = [e for e in report.packages if e.figures and e.name != report.yardstick]
    if not entries:
        return paragraph("No package has figures to compare.")
    words = (
        "Up and to the left is better. A line joins the packages of a backend that no smaller one "
        f"of it beats; from {charts.TOP_DB:.0f} dB on, points stand on the upper edge."
    )
    half = [
        _frontier(report, entries, "Final latent", "SNR of the final latent, dB", _snr),
        _frontier(report, entries, "Pictures", "PSNR of pictures, dB", _psnr),
    ]
    return paragraph(words) + tag("div", *half, class_="two")


def _snr(entry: Entry) -> float:
    return entry.latent_snr_db if entry.latent_snr_db is not None else SAME_DB


def _psnr(entry: Entry) -> float:
    return entry.psnr_db if entry.psnr_db is not None else SAME_DB


def _frontier(
    report: Comparison,
    entries: Sequence[Entry],
    title: str,
    y_title: str,
    y: Callable[[Entry], float],
) -> str:
    index = backend_index(report)
    series = [
        Series(
            backend,
            index[backend],
            tuple(
                Point(e.mmdit_bytes / 1e6, y(e), e.scheme, _note(e, y(e)))
                for e in entries
                if e.backend == backend
            ),
        )
        for backend in index
        if any(e.backend == backend for e in entries)
    ]
    about = f"{title}: {y_title} against megabytes of the MMDiT. " + "; ".join(
        p.note for s in series for p in s.points
    )
    chart = charts.both(
        lambda px: charts.scatter(series, "MB of the MMDiT", y_title, about, px), HALF_PX
    )
    return figure(title, chart, _backends_legend(report))


def _note(entry: Entry, value: float) -> str:
    return f"{entry.name}: {megabytes(entry.mmdit_bytes)} MB, {decibels(value)} dB"


def _backends_legend(report: Comparison) -> str:
    return legend([(_sign(i), name) for name, i in backend_index(report).items()])


def _sign(index: int) -> str:
    inside = charts.marker(index, 7.0, 7.0)
    return tag("svg", inside, viewBox="0 0 14 14", width=14, height=14, aria_hidden="true")


def graph_bytes(report: Comparison) -> str:
    """A stacked bar per package: bytes of each graph."""
    found = {name for e in report.packages for name in e.manifest.names}
    names = [n for n in NAMES if n in found] + sorted(found - set(NAMES))
    rows = [
        Bar(e.name, tuple(_graph_bytes(e, n) / 1e6 for n in names), _total(e))
        for e in report.packages
    ]
    kinds = [f"g{NAMES.index(n) if n in NAMES else 0}" for n in names]
    about = "Bytes of graphs: " + "; ".join(f"{r.name} {r.note}" for r in rows)
    chart = charts.both(lambda px: charts.stacked(rows, kinds, about, px), FULL_PX)
    signs = [(tag("i", class_=f"swatch {kind}"), n) for kind, n in zip(kinds, names, strict=True)]
    cells = [
        [text(e.name), *(megabytes(_graph_bytes(e, n)) for n in names)] for e in report.packages
    ]
    whole = table("Megabytes of each graph", ["Package", *names], cells)
    return figure("Megabytes of each package's graphs", chart, legend(signs), fold(AS_TABLE, whole))


AS_TABLE = "These figures as a table"


def _graph_bytes(entry: Entry, name: str) -> int:
    return sum(part.bytes for part in entry.manifest.parts(name))


def _total(entry: Entry) -> str:
    return megabytes(sum(g.bytes for g in entry.manifest.graphs), unit=True)


def steps(report: Comparison) -> str:
    """A line per package: SNR of the latent after each step."""
    entries = [e for e in report.packages if e.steps_db and e.name != report.yardstick]
    if not entries:
        return paragraph(
            "No latents after each step to compare with: packages built by an older fourstep keep "
            "the last one alone. Build them again."
        )
    index = backend_index(report)
    series = [
        Series(
            e.scheme,
            index[e.backend],
            tuple(
                Point(s, db, e.scheme, f"{e.name} after step {s}: {decibels(db)} dB")
                for s, db in e.steps_db.items()
            ),
        )
        for e in entries
    ]
    about = "SNR of the latent after each step. " + "; ".join(
        f"{e.name} {', '.join(decibels(v) for v in e.steps_db.values())} dB" for e in entries
    )
    title = "SNR of the latent after each step, dB"
    chart = charts.both(lambda px: charts.lines(series, "step", "SNR, dB", about, px), FULL_PX)
    numbers = sorted({s for e in entries for s in e.steps_db})
    cells = [[text(e.name), *(decibels(e.steps_db.get(s)) for s in numbers)] for e in entries]
    columns = ["Package", *(f"Step {s}" for s in numbers)]
    whole = table("SNR of the latent in dB, means over prompts", columns, cells)
    words = (
        "Means over the prompts. Each step starts from what the one before it left, so that errors "
        "of rounding add up; a line that falls late owes it to the last steps."
    )
    return paragraph(words) + figure(title, chart, _backends_legend(report), fold(AS_TABLE, whole))

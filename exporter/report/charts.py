"""Charts as SVG text, colours by class so that the page's style decides them.

Every chart is a pure function of its data and a width in px; ``both`` draws it for a phone and for
a wider screen, so that letters keep their size.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from exporter.report.markup import tag, text

NARROW_PX = 340
LETTER_PX = 6.3  # mean width of a letter of the charts' text
LINE_PX = 14
TOP_DB = 70.0  # from here on no eye tells pictures apart; higher points stand on this line
SHAPES = ("circle", "square", "triangle", "diamond")


@dataclass(frozen=True)
class Point:
    """A point in the units of its axes, its label, and what it says when pointed at."""

    x: float
    y: float
    label: str
    note: str


@dataclass(frozen=True)
class Series:
    """Points of one kind; ``index`` decides colour and shape."""

    name: str
    index: int
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Axis:
    """A range of values on a range of pixels."""

    low: float
    high: float
    start_px: float
    end_px: float
    log: bool = False

    def at(self, value: float) -> float:
        """Where a value stands, in px; inside the range."""
        value = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start_px + share * (self.end_px - self.start_px)


@dataclass(frozen=True)
class Bar:
    """A stacked bar: parts in the order of the legend."""

    name: str
    parts: tuple[float, ...]
    note: str


@dataclass(frozen=True)
class Cell:
    """A cell of a heat map: row, column, level from 0 to ``LEVELS`` - 1, mark and note."""

    row: int
    column: int
    level: int
    mark: str
    note: str


@dataclass(frozen=True)
class Tick:
    """A stroke on a strip: its row, place on the axis, kind and note."""

    row: int
    value: float
    index: int
    note: str


LEVELS = 7


def both(draw: Callable[[int], str], wide_px: int) -> str:
    """A chart twice: for a phone and for a wider screen. The page shows one."""
    return tag("div", draw(wide_px), class_="wide") + tag("div", draw(NARROW_PX), class_="narrow")


def marker(index: int, x: float, y: float, note: str = "") -> str:
    """The sign of a series."""
    style = {"class_": f"mark s{index % 6}"}
    shape = SHAPES[index % len(SHAPES)]
    inside = tag("title", text(note)) if note else ""
    if shape == "circle":
        return tag("circle", inside, cx=x, cy=y, r=4.5, **style)
    if shape == "square":
        return tag("rect", inside, x=x - 4.0, y=y - 4.0, width=8, height=8, **style)
    corners = {
        "triangle": ((0, -5.5), (5.2, 4), (-5.2, 4)),
        "diamond": ((0, -5.5), (5.5, 0), (0, 5.5), (-5.5, 0)),
    }[shape]
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
    return tag("polygon", inside, points=points, **style)


def scatter(series: Sequence[Series], x_title: str, y_title: str, about: str, width_px: int) -> str:
    """Bytes against decibels: a sign per package, a line through each series' best ones.

    x is logarithmic; y ends at ``TOP_DB``.
    """
    height_px = round(0.72 * width_px)
    xs = [p.x for s in series for p in s.points]
    margin = max(1.25, 2 / math.sqrt(max(xs) / min(xs)))  # so that some ticks are in sight
    x_axis = Axis(min(xs) / margin, max(xs) * margin, 36, width_px - 12, log=True)
    y_axis = _decibel_axis([p.y for s in series for p in s.points], height_px - 44, 28)
    grid = _decibel_grid(y_axis, 36, width_px - 12, y_title)
    for value in log_ticks(x_axis.low, x_axis.high):
        grid += _tick(x_axis.at(value), height_px - 44, f"{value:g}")
    grid += _words((36 + width_px - 12) / 2, height_px - 8, x_title, "middle", "title")
    body = "".join(_line(frontier(s.points), s.index, x_axis, y_axis) for s in series)
    places = [(p, s.index, x_axis.at(p.x), y_axis.at(p.y)) for s in series for p in s.points]
    signs = "".join(marker(index, x, y, p.note) for p, index, x, y in places)
    labels = place_labels([(p.label, x, y) for p, _, x, y in places], width_px, height_px - 44)
    words = "".join(_words(x, y, label, anchor, "label") for label, x, y, anchor in labels)
    return _svg(width_px, height_px, about, grid, body, signs, words)


def frontier(points: Sequence[Point]) -> list[Point]:
    """The points that no smaller one beats, by size."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.x, -p.y)):
        if not best or point.y > best[-1].y:
            best.append(point)
    return best


def place_labels(
    points: Sequence[tuple[str, float, float]], width_px: float, height_px: float
) -> list[tuple[str, float, float, str]]:
    """Labels beside points, none over another or over a sign: text, x, y, anchor.

    Points of one name that stand together share a label; one that finds no room has none.
    """
    signs = [(x - 6, y - 6, x + 6, y + 6) for _, x, y in points]
    placed: list[tuple[str, float, float, str]] = []
    boxes: list[tuple[float, float, float, float]] = []
    for label, x, y in sorted(points, key=lambda p: (p[2], p[1])):
        if any(label == n and abs(x - u) < 60 and abs(y - v) < 30 for n, u, v, _ in placed):
            continue
        size = len(label) * LETTER_PX
        for dx, dy, anchor in _AROUND:
            left = x + dx - {"start": 0, "middle": size / 2, "end": size}[anchor]
            box = (left, y + dy - 11, left + size, y + dy + 3)
            inside = box[0] >= 34 and box[2] <= width_px and box[1] >= 14 and box[3] <= height_px
            if inside and not any(_touch(box, other) for other in (*signs, *boxes)):
                placed.append((label, x + dx, y + dy, anchor))
                boxes.append(box)
                break
    return placed


_AROUND = (
    (9, 4, "start"),
    (-9, 4, "end"),
    (0, -10, "middle"),
    (0, 19, "middle"),
    (9, -8, "start"),
    (9, 16, "start"),
    (-9, -8, "end"),
    (-9, 16, "end"),
)


def _touch(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def lines(series: Sequence[Series], x_title: str, y_title: str, about: str, width_px: int) -> str:
    """A line per series over whole steps, named at its end."""
    height_px = max(300, round(0.55 * width_px))
    names = [s.name for s in series]
    right_px = width_px - 14 - max(len(n) for n in names) * LETTER_PX
    steps = sorted({p.x for s in series for p in s.points})
    x_axis = Axis(min(steps), max(max(steps), min(steps) + 1), 52, right_px)
    y_axis = _decibel_axis([p.y for s in series for p in s.points], height_px - 44, 28)
    grid = _decibel_grid(y_axis, 36, right_px + 4, y_title)
    grid += "".join(_tick(x_axis.at(s), height_px - 44, f"{s:g}") for s in steps)
    grid += _words((36 + right_px) / 2, height_px - 8, x_title, "middle", "title")
    body = "".join(_line(s.points, s.index, x_axis, y_axis) for s in series)
    signs = "".join(
        marker(s.index, x_axis.at(p.x), y_axis.at(p.y), p.note) for s in series for p in s.points
    )
    ends = [(s.name, y_axis.at(s.points[-1].y)) for s in series]
    words = "".join(
        _words(right_px + 10, y + 4, name, "start", "label")
        for name, y in spread_labels(ends, height_px - 40)
    )
    return _svg(width_px, height_px, about, grid, body, signs, words)


def spread_labels(ends: Sequence[tuple[str, float]], bottom_px: float) -> list[tuple[str, float]]:
    """Names beside the ends of lines, a line of text apart; equal names close together are one."""
    kept: list[tuple[str, float]] = []
    for name, y in sorted(ends, key=lambda e: e[1]):
        if not any(name == n and abs(y - v) < 2 * LINE_PX for n, v in kept):
            kept.append((name, y))
    ys: list[float] = []
    for _, y in kept:
        ys.append(max(y, ys[-1] + LINE_PX) if ys else y)
    limit = bottom_px
    for i in reversed(range(len(ys))):
        ys[i] = min(ys[i], limit)
        limit = ys[i] - LINE_PX
    return [(name, y) for (name, _), y in zip(kept, ys, strict=True)]


def stacked(rows: Sequence[Bar], classes: Sequence[str], about: str, width_px: int) -> str:
    """A bar per row from 0, its parts coloured, its name before it and its note behind it."""
    narrow = width_px <= NARROW_PX
    left_px = 0.0 if narrow else max(len(r.name) for r in rows) * LETTER_PX + 14
    right_px = width_px - max(len(r.note) for r in rows) * LETTER_PX - 8
    pitch_px, bar_px = (40, 16) if narrow else (26, 16)
    axis = Axis(0, max(sum(r.parts) for r in rows), left_px, right_px)
    body = ""
    for i, row in enumerate(rows):
        y = i * pitch_px + (18 if narrow else 3)
        name_x, anchor = (0.0, "start") if narrow else (left_px - 10, "end")
        body += _words(name_x, y - 5 if narrow else y + 12, row.name, anchor, "label")
        edges = list(itertools.accumulate(row.parts, initial=0.0))
        for (low, high), kind in zip(itertools.pairwise(edges), classes, strict=True):
            size = axis.at(high) - axis.at(low)
            body += tag("rect", x=axis.at(low), y=y, width=size, height=bar_px, class_=kind)
        body += _words(axis.at(edges[-1]) + 6, y + 12, row.note, "start", "value")
    return _svg(width_px, len(rows) * pitch_px, about, body)


def heat(
    rows: Sequence[str], columns: Sequence[str], cells: Sequence[Cell], about: str, width_px: int
) -> str:
    """A table of colours: a row per block, a column per layer, a mark in each cell."""
    left_px = max(len(r) for r in rows) * LETTER_PX + 8
    cell_px = min(34.0, (width_px - left_px - 2) / len(columns))
    top_px = max(len(c) for c in columns) * LETTER_PX + 8
    height_px = min(24.0, max(18.0, cell_px))
    body = ""
    for i, name in enumerate(columns):
        x = left_px + (i + 0.5) * cell_px + 4
        turn = f"rotate(-90 {x:.1f} {top_px - 6:.1f})"
        body += tag("text", text(name), x=x, y=top_px - 6, class_="label", transform=turn)
    for i, name in enumerate(rows):
        y = top_px + (i + 0.5) * height_px + 4
        body += _words(left_px - 8, y, name, "end", "label")
    for cell in cells:
        x, y = left_px + cell.column * cell_px, top_px + cell.row * height_px
        box = tag(
            "rect", x=x, y=y, width=cell_px - 1.5, height=height_px - 1.5, class_=f"h{cell.level}"
        )
        mark = tag(
            "text", text(cell.mark), x=x + cell_px / 2 - 0.75, y=y + height_px / 2 + 3.5,
            text_anchor="middle", class_=f"in h{cell.level}",
        )  # fmt: skip
        body += tag("g", tag("title", text(cell.note)), box, mark)
    return _svg(width_px, top_px + len(rows) * height_px + 2, about, body)


def strips(
    rows: Sequence[str], ticks: Sequence[Tick], x_title: str, about: str, width_px: int
) -> str:
    """A strip per row with a stroke per value on a logarithmic axis of noise shares."""
    left_px = max(len(r) for r in rows) * LETTER_PX + 10
    pitch_px, values = 22, [t.value for t in ticks]
    axis = Axis(min(values) / 1.6, max(values) * 1.6, left_px, width_px - 14, log=True)
    bottom_px = len(rows) * pitch_px + 6
    body = ""
    powers = range(math.ceil(math.log10(axis.low)), math.floor(math.log10(axis.high)) + 1)
    for power in powers:
        x = axis.at(10.0**power)
        body += tag("line", x1=x, x2=x, y1=0, y2=bottom_px, class_="grid")
        more = "+" if 10.0**power == min(values) else ""  # less noise stands here too
        body += _words(x, bottom_px + 15, f"{-10 * power}{more} dB", "middle", "tick")
    for i, name in enumerate(rows):
        y = (i + 0.5) * pitch_px + 2
        body += tag("line", x1=left_px, x2=width_px - 14, y1=y, y2=y, class_="grid")
        body += _words(left_px - 8, y + 4, name, "end", "label")
    for tick in ticks:
        x, y = axis.at(tick.value), (tick.row + 0.5) * pitch_px + 2
        half_px = min(9.0, 4.0 + 1.6 * tick.index)
        kind = f"stroke f{tick.index % 6}"
        stroke = tag("line", x1=x, x2=x, y1=y - half_px, y2=y + half_px, class_=kind)
        body += tag("g", tag("title", text(tick.note)), stroke)
    body += _words((left_px + width_px) / 2, bottom_px + 34, x_title, "middle", "title")
    return _svg(width_px, bottom_px + 40, about, body)


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers for a logarithmic axis: fewer digits the wider its range."""
    leads: tuple[float, ...] = (1, 1.5, 2, 3, 4, 5, 6, 8)
    if high / low > 5:
        leads = (1, 2, 3, 5, 7) if high / low < 30 else (1, 3) if high / low < 1000 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [lead * 10.0**power for power in powers for lead in leads]
    return [v for v in values if low <= v <= high]


def decibel_ticks(low: float, high: float) -> list[float]:
    """From below ``low`` to above ``high``, or to ``TOP_DB``: about six round numbers."""
    high = min(high, TOP_DB)
    low = min(low, high - 4)
    step = next((s for s in (1, 2, 5) if 6 * s >= high - low), 10)
    return [float(step * i) for i in range(math.floor(low / step), math.ceil(high / step) + 1)]


def _decibel_axis(values: Sequence[float], bottom_px: float, top_px: float) -> Axis:
    ticks = decibel_ticks(min(values) - 0.5, max(values) + 0.5)
    return Axis(ticks[0], ticks[-1], bottom_px, top_px)


def _decibel_grid(axis: Axis, left_px: float, right_px: float, title: str) -> str:
    found = _words(0, 12, title, "start", "title")
    for value in decibel_ticks(axis.low, axis.high):
        y = axis.at(value)
        more = "+" if value == TOP_DB else ""
        found += tag("line", x1=left_px, x2=right_px, y1=y, y2=y, class_="grid")
        found += _words(left_px - 6, y + 4, f"{value:g}{more}", "end", "tick")
    return found


def _tick(x: float, y: float, label: str) -> str:
    stroke = tag("line", x1=x, x2=x, y1=y, y2=y + 5, class_="axis")
    return stroke + _words(x, y + 18, label, "middle", "tick")


def _line(points: Sequence[Point], index: int, x_axis: Axis, y_axis: Axis) -> str:
    places = " ".join(f"{x_axis.at(p.x):.1f},{y_axis.at(p.y):.1f}" for p in points)
    return tag("polyline", points=places, class_=f"line s{index % 6}")


def _words(x: float, y: float, words: str, anchor: str, kind: str) -> str:
    return tag("text", text(words), x=float(x), y=float(y), text_anchor=anchor, class_=kind)


def _svg(width_px: float, height_px: float, about: str, *inside: str) -> str:
    box = f"0 0 {width_px:g} {height_px:g}"
    return tag(
        "svg", *inside, viewBox=box, width=f"{width_px:g}", height=f"{height_px:g}", role="img",
        aria_label=about,
    )  # fmt: skip

"""How sensitive each layer is, and which format the plan gave it."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from exporter.report import charts
from exporter.report.charts import Cell, Tick
from exporter.report.diagrams import FULL_PX, figure, legend
from exporter.report.facts import Comparison, Entry
from exporter.report.markup import (
    NONE,
    decibels,
    digest,
    facts,
    fold,
    megabytes,
    paragraph,
    table,
    tag,
    text,
)
from exporter.report.sensitivities import Sensitivities, Sensitivity, snr_db

LEAST_NOISE = 1e-8  # what is less stands here on a logarithmic scale
TYPE = "fourstep plan RECIPE --budget 1.2GB -o PLAN.toml"


def plans(report: Comparison) -> str:
    """Each distinct plan of the packages; and which packages have none."""
    owners: dict[Sensitivities, list[str]] = {}
    for entry in report.packages:
        if entry.plan:
            owners.setdefault(entry.plan, []).append(entry.name)
    texts = {e.name: e.plan_text for e in report.packages}
    found = "".join(_plan(plan, names, texts[names[0]]) for plan, names in owners.items())
    unmeasured = "".join(_text_alone(e) for e in report.packages if e.plan_text and not e.plan)
    return found + unmeasured + _without(report)


def _text_alone(entry: Entry) -> str:
    words = "A plan without plan.json: nobody measured its layers."
    return tag("h3", text(entry.name)) + paragraph(words) + _toml(entry.plan_text)


def _toml(written: str) -> str:
    return fold("The plan as text: plan.toml", tag("pre", tag("code", text(written)), tabindex=0))


def _without(report: Comparison) -> str:
    names = [e.name for e in report.packages if not e.plan and not e.plan_text]
    if not names:
        return ""
    words = (
        f"No plan in {', '.join(names)}: each layer has its scheme's format. To measure every "
        "layer and choose a format for each:"
    )
    return paragraph(words) + tag("pre", tag("code", text(TYPE)), tabindex=0)


def _plan(plan: Sensitivities, names: Sequence[str], toml: str) -> str:
    about = facts(
        [
            ("Weights", f"{megabytes(plan.weight_bytes, unit=True)} in all"),
            ("MMDiT", f"{plan.bits_per_weight:.2f} bits per weight"),
            ("Asked for", _asked(plan)),
            ("Latent SNR", _snr(plan)),
            ("Methods", text(", ".join(plan.methods))),
            ("Measured on", f"{plan.prompts} prompts from seed {plan.seed}"),
            ("Calibration", digest(plan.statistics_sha256)),
        ]
    )  # fmt: skip
    words = (
        "A layer's noise is the share of the final latent's power that rounding this layer alone "
        "adds, at the smallest format it could get; in decibels, the latent's SNR if nothing else "
        "were rounded."
    )
    return "".join(
        [
            tag("h3", text(", ".join(names))),
            about,
            paragraph(words),
            _heat(plan),
            _strips(plan),
            fold("Every layer as a table", _weights(plan)),
            _toml(toml) if toml else "",
        ]
    )


def _mean_bits(plan: Sensitivities, form: str) -> float:
    """Bits of a weight value in a format, scales included."""
    found = [(c.bytes, w.values) for w in plan.weights for c in w.candidates if c.format == form]
    return 8 * sum(b for b, _ in found) / max(1, sum(v for _, v in found))


def _asked(plan: Sensitivities) -> str:
    bounds = [
        f"at most {megabytes(plan.budget_bytes, unit=True)}" if plan.budget_bytes else "",
        f"at most {megabytes(plan.memory_bytes, unit=True)} of memory" if plan.memory_bytes else "",
        f"at least {plan.floor_db:.1f} dB" if plan.floor_db is not None else "",
    ]
    return text(" and ".join(b for b in bounds if b))


def _snr(plan: Sensitivities) -> str:
    measured = plan.measured_snr_db
    after = f", {measured:.1f} dB measured" if measured is not None else ", not measured"
    return text(f"{plan.predicted_snr_db:.1f} dB predicted{after}")


def _heat(plan: Sensitivities) -> str:
    inside = [w for w in plan.weights if w.block is not None]
    if not inside:
        return ""
    blocks = sorted({w.block for w in inside if w.block is not None})
    layers = list(dict.fromkeys(w.layer for w in inside))
    noises = [_coarsest(w) for w in inside]
    cells = [
        Cell(
            blocks.index(w.block or 0),
            layers.index(w.layer),
            level(_coarsest(w), min(noises), max(noises)),
            _bits(w.chosen),
            _note(w),
        )
        for w in inside
    ]
    rows = [f"block {b}" for b in blocks]
    about = (
        f"Sensitivity of {len(inside)} layers in {len(blocks)} blocks; the most sensitive is "
        f"{_note(max(inside, key=_coarsest))}"
    )
    chart = charts.both(lambda px: charts.heat(rows, layers, cells, about, px), FULL_PX)
    more = " or more" if min(noises) == LEAST_NOISE else ""
    ends = tag("span", f"{snr_db(min(noises)):.0f} dB{more}, robust")
    other = tag("span", f"{snr_db(max(noises)):.0f} dB, sensitive")
    ramp = "".join(tag("i", class_=f"swatch h{i}") for i in range(charts.LEVELS))
    scale = tag("p", ends, ramp, other, class_="ramp")
    return figure("Noise of each layer by colour, and the bits chosen", chart, scale)


def level(noise: float, low: float, high: float) -> int:
    """The level of a noise on a logarithmic scale from ``low`` to ``high``."""
    if high <= low:
        return 0
    share = math.log(noise / low) / math.log(high / low)
    return min(charts.LEVELS - 1, int(share * charts.LEVELS))


def _strips(plan: Sensitivities) -> str:
    if not plan.weights:
        return ""
    blocks = sorted({w.block for w in plan.weights if w.block is not None})
    rows = [f"block {b}" for b in blocks]
    rows += dict.fromkeys(_row(w) for w in plan.weights if w.block is None)
    kinds = sorted({_bits(w.chosen) for w in plan.weights}, key=lambda b: (len(b), b))
    ticks = [
        Tick(
            rows.index(_row(w)),
            _coarsest(w),
            kinds.index(_bits(w.chosen)),
            _note(w),
        )
        for w in plan.weights
    ]
    about = f"Noise of {len(ticks)} layers by block, on a logarithmic scale"
    title = "latent SNR if this layer alone were rounded"
    chart = charts.both(lambda px: charts.strips(rows, ticks, title, about, px), FULL_PX)
    signs = [(tag("i", class_=f"swatch f{i % 6}"), _kind(plan, b)) for i, b in enumerate(kinds)]
    return figure(
        "Noise of each layer on a scale: a stroke each, taller with more bits",
        chart,
        legend(signs),
    )


def _kind(plan: Sensitivities, bits: str) -> str:
    """A number of bits, its layers and its formats: ``4 bits: 34 int4-g64, 9 int4-g32``."""
    counts = Counter(w.chosen for w in plan.weights if _bits(w.chosen) == bits)
    return f"{bits} bits: {', '.join(f'{many} {form}' for form, many in counts.most_common())}"


def _row(weight: Sensitivity) -> str:
    """A layer outside of the transformer's blocks stands in its graph's row."""
    return weight.graph if weight.block is None else f"block {weight.block}"


def _weights(plan: Sensitivities) -> str:
    formats = sorted(
        {c.format for w in plan.weights for c in w.candidates}, key=lambda f: _mean_bits(plan, f)
    )
    columns = ["Layer", "Graph", "Values", "Chosen", "Size|MB", *(f"{f}|dB" for f in formats)]
    rows = [
        [
            text(w.weight.removesuffix(".weight")),
            text(w.graph),
            f"{w.values:,}",
            text(w.chosen),
            megabytes(w.choice.bytes if w.choice else None),
            *(_alone(w, form) for form in formats),
        ]
        for w in sorted(plan.weights, key=lambda w: -_coarsest(w))
    ]
    caption = "Layers, the most sensitive first: SNR of the latent with this one alone in a format"
    return table(caption, columns, rows)


def _alone(weight: Sensitivity, form: str) -> str:
    found = [decibels(snr_db(c.noise)) for c in weight.candidates if c.format == form]
    if not found:
        return NONE
    return tag("b", found[0]) if form == weight.chosen else found[0]


def _coarsest(weight: Sensitivity) -> float:
    return max(weight.coarsest.noise, LEAST_NOISE)


def _bits(form: str) -> str:
    found = re.match(r"[a-z]+(\d+)", form)
    return found[1] if found else form


def _note(weight: Sensitivity) -> str:
    coarsest, choice = weight.coarsest, weight.choice
    return (
        f"{weight.weight}: {decibels(snr_db(coarsest.noise))} dB as {coarsest.format}; chosen "
        f"{weight.chosen}, {decibels(snr_db(choice.noise) if choice else None)} dB"
    )

"""The tables: what each package is and gives, and what it takes to run."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from exporter.bench.process import SAMPLE_S
from exporter.package.measures import SAME_DB
from exporter.report.facts import UNQUANTIZED, Comparison, Entry
from exporter.report.markup import (
    NONE,
    count,
    curly,
    decibels,
    fold,
    megabytes,
    number,
    paragraph,
    seconds,
    table,
    tag,
    text,
)

IMAGE_EXTRA = "pip install 'fourstep[report]'"


def summary(report: Comparison) -> str:
    """One row per package, bytes, quality, speed and memory side by side."""
    columns = [
        "Package", "Whole|MB", "MMDiT|MB", "Per weight|bits", "PSNR|dB", "SSIM",
        "Latent SNR|dB", "Picture|s", "Peak|MB", *report.metric_names,
    ]  # fmt: skip
    rows = [_row(report, entry) for entry in report.packages]
    own = report.metric and report.yardstick == UNQUANTIZED
    if own:
        rows.insert(0, _baseline(report, len(columns)))
    pictures = f"means over {count(len(report.asked), 'picture')}"
    many = pictures if report.asked else "no pictures"
    caption = f"Size and quality of {count(len(report.packages), 'package')}, {many}"
    words = (
        "The MMDiT is the conditioner and the denoiser together; its bits per weight count scales "
        f"and operators too. PSNR and SSIM compare pictures, and SNR final latents, with "
        f"{_yardstick(report)}; {SAME_DB:.0f} dB stands for no difference. A picture's seconds are "
        "those of the first one, with every graph to open."
    )
    if not report.ssim:
        words += f" SSIM takes scikit-image: {IMAGE_EXTRA}"
    first = 1 if own else 0
    whole = table(caption, columns, rows, [first + i for i in breaks(report.packages)])
    return whole + paragraph(words, "note") + _remarks(report)


def breaks(entries: Sequence[Entry]) -> list[int]:
    """The rows at which another backend begins."""
    pairs = enumerate(itertools.pairwise(entries), 1)
    return [i for i, (a, b) in pairs if a.backend != b.backend]


def _row(report: Comparison, entry: Entry) -> list[str]:
    quality = [
        decibels(entry.psnr_db),
        NONE if entry.ssim is None else f"{entry.ssim:.4f}",
        decibels(entry.latent_snr_db),
    ]
    if entry.name == report.yardstick:
        quality = [tag("span", "yardstick", class_="quiet"), "", ""]
    peak = entry.memory.peak_rss_bytes if entry.memory else None
    stored = "" if entry.drawn else tag("span", "not run here", class_="flag")
    return [
        text(entry.name) + stored,
        megabytes(entry.manifest.bytes),
        megabytes(entry.mmdit_bytes),
        f"{entry.bits_per_weight:.2f}",
        *quality,
        seconds(entry.picture_s),
        megabytes(peak),
        *(number((entry.metrics or {}).get(name)) for name in report.metric_names),
    ]


def _baseline(report: Comparison, columns: int) -> list[str]:
    blank = [NONE] * (columns - 1 - len(report.metric_names))
    return [
        "unquantized",
        *blank,
        *(number(report.baseline.get(name)) for name in report.metric_names),
    ]


def _yardstick(report: Comparison) -> str:
    if report.yardstick == UNQUANTIZED:
        return "the unquantized program's in torch, which each package carries"
    return f"those of {report.yardstick}, the least rounded package here"


def _remarks(report: Comparison) -> str:
    rows = [
        tag("li", tag("b", text(e.name)), ": ", curly("; ".join(e.remarks)))
        for e in report.packages
        if e.remarks
    ]
    return tag("ul", *rows, class_="remarks") if rows else ""


def running(report: Comparison) -> str:
    """Seconds and memory, as measured."""
    drawn = [(e, e.times) for e in report.packages if e.times]
    machine = report.machine
    if not drawn:
        return paragraph("No package could run here, so nothing was measured.")
    words = (
        f"Measured on {machine.cores} processors ({machine.processor}, {machine.system}), each "
        "package in a process of its own. The first picture has every graph to open and its digest "
        "to check; further ones were drawn in one call. Python's imports are not in the seconds, "
        "and files had been read before. Memory is the whole process's, Python included: resident "
        "with pages of mapped files, which the kernel can drop, and anonymous, which it cannot "
        f"(sampled every {1000 * SAMPLE_S:.0f} ms)."
    )
    rows = [
        [
            text(entry.name),
            seconds(times.first_s),
            seconds(times.next_s),
            seconds(sum(times.loads_s.values())),
            seconds(times.encode_s),
            seconds(times.step_s),
            seconds(times.decode_s),
            *_memory(entry),
            NONE if peak is None else megabytes(peak),
        ]
        for entry, times in drawn
        for peak in [entry.manifest.device.predicted_peak_bytes]
    ]
    columns = [
        "Package", "First picture|s", "Further picture|s", "Opening|s", "Text|s", "Step|s",
        "Decoding|s", "Peak resident|MB", "Peak anonymous|MB", "Predicted peak|MB",
    ]  # fmt: skip
    graphs = list(dict.fromkeys(name for _, times in drawn for name in times.loads_s))
    loads = [
        [text(entry.name), *(seconds(times.loads_s.get(name)) for name in graphs)]
        for entry, times in drawn
    ]
    return (
        paragraph(words)
        + table("Seconds and peak memory", columns, rows, breaks([e for e, _ in drawn]))
        + _no_memory(drawn[0][0])
        + fold(
            "Seconds to open each graph",
            table("Seconds to open each graph, digest checked", ["Package", *graphs], loads),
        )
    )


def _memory(entry: Entry) -> list[str]:
    if entry.memory is None:
        return [NONE, NONE]
    return [megabytes(entry.memory.peak_rss_bytes), megabytes(entry.memory.peak_anonymous_bytes)]


def _no_memory(entry: Entry) -> str:
    if entry.memory is not None:
        return ""
    return paragraph(
        "Memory is not available on this system without psutil: pip install 'fourstep[report]'."
    )

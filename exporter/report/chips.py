"""What was compiled of packages for chips ahead of time, and what that took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from exporter.backends.contract import Traffic
from exporter.package.manifest import Manifest
from exporter.package.names import DECODERS, graph_of
from exporter.report.markup import NONE, megabytes, paragraph, seconds, table, text


@dataclass(frozen=True)
class CompileStep:
    """Compiling a graph for a chip, as a build's log has it.

    Attributes:
        graph: its name, or that of a part.
        traffic: of each size, where the compiler predicted it.
    """

    soc: str
    seconds: float
    peak_bytes: int
    predicted_peak_bytes: int
    sizes: int = 1
    graph: str = ""
    traffic: tuple[Traffic | None, ...] = ()


@dataclass(frozen=True)
class Chip:
    """What a package has for a chip.

    Attributes:
        graphs: how many were compiled, of all sizes.
        bytes: of their files.
        seconds: that compiling them took, one after the other; None: the log does not say.
        peak_bytes: of the largest of these processes; None likewise.
        predicted_peak_bytes: what was predicted of it; None likewise.
        step, decoding: what the compiler predicts that goes between memory and NPU in one step at
            the first size, and when a picture is decoded; None likewise.
    """

    soc: str
    htp_arch: int
    qairt: str
    graphs: int
    bytes: int
    seconds: float | None = None
    peak_bytes: int | None = None
    predicted_peak_bytes: int | None = None
    step: Traffic | None = None
    decoding: Traffic | None = None


def chips_of(manifest: Manifest, steps: tuple[CompileStep, ...]) -> tuple[Chip, ...]:
    """What a package has for each chip, in the order in which its recipe names them.

    Args:
        steps: of its build; of one that was interrupted only what came after.
    """
    sized = [graph.npu for size in manifest.sizes for graph in size.graphs]
    found = [npu for npu in [*(graph.npu for graph in manifest.graphs), *sized] if npu]
    contexts = [context for npu in found for context in npu.contexts]
    bytes_of = {file.path: file.bytes for file in manifest.all_files}
    names = [graph.name for graph in manifest.graphs if graph.npu and graph.npu.contexts]
    steps_of = [name for name in names if graph_of(name) == "denoiser"]
    decoder = [name for name in DECODERS if name in names][:1]
    chips = []
    for soc in dict.fromkeys(context.soc for context in contexts):
        own = [context for context in contexts if context.soc == soc]
        taken = [step for step in steps if step.soc == soc]
        whole = sum(step.sizes for step in taken) == len(own)
        largest = max(taken, key=lambda step: step.peak_bytes) if whole else None
        size = sum(bytes_of[path] for path in {path for one in own for path in one.files})
        chips.append(Chip(
            soc, own[0].htp_arch, own[0].qairt, len(own), size,
            sum(step.seconds for step in taken) if whole else None,
            largest.peak_bytes if largest else None,
            largest.predicted_peak_bytes if largest else None,
            _together(steps_of, taken), _together(decoder, taken),
        ))  # fmt: skip
    return tuple(chips)


def _together(names: list[str], taken: list[CompileStep]) -> Traffic | None:
    """The traffic of graphs that run one after the other, at the first size."""
    found = {step.graph: step.traffic[0] for step in taken if step.traffic}
    each = [found.get(name) for name in names]
    known = [traffic for traffic in each if traffic]
    if not known or len(known) < len(each):
        return None
    return Traffic(
        sum(traffic.read_bytes for traffic in known),
        sum(traffic.written_bytes for traffic in known),
        sum(traffic.spilled_bytes for traffic in known),
        sum(traffic.filled_bytes for traffic in known),
    )


def compiled(packages: Mapping[str, tuple[Chip, ...]]) -> str:
    """A row for each package and chip."""
    words = (
        "Compiled by Qualcomm's compiler where the packages were built: seconds and memory are of "
        "that machine, bytes are what a device holds. Nothing here was measured on a device."
    )
    columns = [
        "Package", "Chip", "HTP", "QAIRT", "Graphs", "Whole|MB", "Compiling|s", "Peak|MB",
        "Predicted peak|MB",
    ]  # fmt: skip
    rows = [
        [
            text(name), text(chip.soc), f"v{chip.htp_arch}", text(chip.qairt), str(chip.graphs),
            megabytes(chip.bytes), seconds(chip.seconds),
            *(NONE if n is None else megabytes(n)
              for n in (chip.peak_bytes, chip.predicted_peak_bytes)),
        ]
        for name, chips in packages.items()
        for chip in chips
    ]  # fmt: skip
    shown = paragraph(words) + table("Compiled ahead of time, for chips", columns, rows)
    return shown + _predicted(packages)


def _predicted(packages: Mapping[str, tuple[Chip, ...]]) -> str:
    """What the compiler said of traffic: a row for each package and chip of which it did."""
    words = (
        "Predicted by Qualcomm's compiler, and measured nowhere: what goes between a device's "
        "memory (DDR) and its NPU, in one step at the first size and when a picture is decoded. "
        "Put aside is what the NPU's own memory (VTCM) has no room for: it is written, read again, "
        "and counted in both."
    )
    columns = [
        "Package", "Chip", "A step reads|MB", "A step writes|MB", "A step puts aside|MB",
        "Decoding reads|MB", "Decoding writes|MB", "Decoding puts aside|MB",
    ]  # fmt: skip
    rows = [
        [text(name), text(chip.soc), *_moved(chip.step), *_moved(chip.decoding)]
        for name, chips in packages.items()
        for chip in chips
        if chip.step or chip.decoding
    ]
    return paragraph(words) + table("Predicted traffic of memory", columns, rows) if rows else ""


def _moved(traffic: Traffic | None) -> tuple[str, str, str]:
    """What is read, written, and of that only put aside."""
    if traffic is None:
        return NONE, NONE, NONE
    counts = traffic.read_bytes, traffic.written_bytes, traffic.spilled_bytes
    read, written, aside = map(megabytes, counts)
    return read, written, aside

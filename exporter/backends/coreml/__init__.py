"""Core ML ML Programs (.mlpackage) for iPhones, iPads and Macs; checked on Linux by an evaluator.

The program is written message by message with its weights compressed from the start and streamed
to the weight file, so no converter holds them in memory. A graph takes the oldest operator set that
can express its formats, iOS 17 or iOS 18, unless a recipe's ``target`` says which.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.backends.contract import Emitted, Memory, Order
from exporter.backends.coreml.session import COMPUTE_UNITS, EVALUATOR, ON_A_MAC
from exporter.backends.coreml.session import open_graph as open_graph
from exporter.package.manifest import Tokenizer, Tolerance

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from exporter.quantize.formats import Format
    from exporter.quantize.program import QuantizedProgram

EXTRA = "coreml" if ON_A_MAC else "build,coreml"  # the evaluator computes with torch
BUILD_EXTRA = "build,coreml"
REQUIRES = {"torch": "torch", "coremltools": "coremltools"}
RUNS_WITH = {"coremltools": "coremltools"} if ON_A_MAC else REQUIRES
OPTIONS = {"target": ("oldest", "iOS17", "iOS18")}
DEVICES = (*COMPUTE_UNITS, EVALUATOR)
CACHES = COMPUTE_UNITS
HALF: tuple[str, ...] = ()
# Running: an estimate, weights once as they are stored and activations in fp16. There was no Apple
# machine to measure it on.
MEMORY = Memory(
    process_bytes=50_000_000,
    node_bytes=0,
    held={},
    activations={"t5": 1.0, "vae_decoder": 1.0, "vae_encoder": 1.0, "": 0.5},
    patches=0.0,
    build_process_bytes=368_000_000,
    build_weight={"fp32": 2.0, "fp16": 1.55, "int8": 0.4, "int4": 1.3, "int2": 1.3, "": 2.6},
    build_node_bytes=35_000,
    node_file_bytes=0,
)
# Activations are rounded to fp16 at every operator (writer.py says which are not).
TOLERANCE = Tolerance(graph_relative=5e-3, image_psnr_db=40.0)


def refuse(form: Format, options: Mapping[str, str]) -> str | None:
    """Why a format cannot be expressed, or None."""
    if form.rounds_inputs:
        return "8-bit activations need Core ML itself to calibrate, on a Mac"
    if options["target"] == "iOS17" and needs_ios18(form):
        return 'iOS 17 has no such weights; say target = "iOS18" in [coreml]'
    return None


def needs_ios18(form: Format) -> bool:
    """Whether a format needs iOS 18's constexpr operators."""
    return form.is_grouped or (form.is_palette and form.group_size is not None)


def emit(
    program: QuantizedProgram, read: Callable[[object], Tensor], folder: Path, order: Order
) -> Emitted:
    """Write ``<graph>.mlpackage``; weights are read one at a time."""
    from exporter.backends.coreml.lint import lint
    from exporter.backends.coreml.writer import write_graph

    target = order.options["target"]
    if target == "oldest":
        new = any(needs_ios18(form) for form in program.formats.values())
        target = "iOS18" if new else "iOS17"
    package = write_graph(program, read, folder, target)
    files = tuple(sorted(f for f in package.rglob("*") if f.is_file()))
    remarks = tuple(str(finding) for finding in lint(package, program.name))
    return Emitted(package, files, TOLERANCE, {"target": target}, remarks=remarks)


def finish(folder: Path, tokenizers: Mapping[str, Tokenizer]) -> tuple[Path, ...]:
    """Write the script that checks the package with Core ML on a Mac."""
    from exporter.backends.coreml import on_mac

    script = folder / "check_on_mac.py"
    script.write_text(Path(on_mac.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    return (script,)

"""Core ML ML Programs (.mlpackage) for iPhones, iPads and Macs; checked on Linux by an evaluator.

The program is written message by message with its weights compressed from the start and streamed
to the weight file, so no converter holds them in memory. A graph takes the oldest operator set that
can express its formats, iOS 17 or iOS 18, unless a recipe's ``target`` says which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from exporter.backends.contract import (
    BASE,
    WEIGHTS,
    Backend,
    Classifier,
    EmitOptions,
    Emitted,
    GraphFiles,
    MeasuredCosts,
    Operator,
    Requirement,
    Session,
    SessionOptions,
)
from exporter.backends.coreml import session
from exporter.backends.coreml.session import COMPUTE_UNITS, EVALUATOR, FUNCTION, ON_A_MAC
from exporter.package.manifest import Tokenizer, Tolerance

if TYPE_CHECKING:
    from torch import Tensor

    from exporter.backends.coreml.writer import Written
    from exporter.quantize.formats import Format
    from exporter.quantize.program import QuantizedProgram

BUILD = Requirement("fourstep[build,coreml]", {"torch": "torch", "coremltools": "coremltools"})
RUN_ON_A_MAC = Requirement("fourstep[coreml]", {"coremltools": "coremltools"})
# Running: an estimate, weights once as they are stored and activations in fp16. There was no Apple
# machine to measure it on.
COSTS = MeasuredCosts(
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


class CoreMl:
    """The backend of Core ML."""

    __slots__ = ()
    name: Final = "coreml"
    to_run: Final = RUN_ON_A_MAC if ON_A_MAC else BUILD  # the evaluator computes with torch
    to_build: Final = BUILD
    options: Final = {"target": ("oldest", "iOS17", "iOS18")}
    devices: Final = (*COMPUTE_UNITS, EVALUATOR)
    caching_devices: Final = COMPUTE_UNITS
    half_devices: Final = ()
    costs: Final = COSTS
    classifier_suffix: Final = ".mlpackage"

    def refuse(self, form: Format, choices: Mapping[str, str]) -> str | None:
        """Of weights Core ML takes every format, depending on the target."""
        if form.rounds_all:
            return "values of 16 bits, each in a range of its own, are not written for Core ML"
        if form.rounds_inputs:
            return "8-bit activations need Core ML itself to calibrate, on a Mac"
        if choices["target"] == "iOS17" and needs_ios18(form):
            return 'iOS 17 has no such weights; say target = "iOS18" in [coreml]'
        return None

    def emit(
        self,
        program: QuantizedProgram,
        read: Callable[[object], Tensor],
        folder: Path,
        options: EmitOptions,
    ) -> Emitted:
        """Write ``<graph>.mlpackage``; weights are read one at a time."""
        return self.emit_sizes({program.name: program}, read, folder, options)[program.name]

    def emit_sizes(
        self,
        programs: Mapping[str, QuantizedProgram],
        read: Callable[[object], Tensor],
        folder: Path,
        options: EmitOptions,
    ) -> dict[str, Emitted]:
        """Write the first as ``<graph>.mlpackage``, the others as functions of it.

        For iOS 17, and of few weights, the others are files beside it, which say how their models
        differ from its own.
        """
        from exporter.backends.coreml.writer import write_graphs

        target = options.choices["target"]
        if target == "oldest":
            forms = (form for program in programs.values() for form in program.formats.values())
            target = "iOS18" if any(map(needs_ios18, forms)) else "iOS17"
        written = write_graphs(programs, read, folder, target)
        return {
            name: _emitted(written[name], program.name, target)
            for name, program in programs.items()
        }

    def write_beside(self, folder: Path, tokenizers: Mapping[str, Tokenizer]) -> tuple[Path, ...]:
        """Write the script that checks the package with Core ML on a Mac."""
        from exporter.backends.coreml import on_mac

        script = folder / "check_on_mac.py"
        script.write_text(
            Path(on_mac.__file__).read_text(encoding="utf-8"), encoding="utf-8", newline="\n"
        )
        return (script,)

    def read_classifier(self, entry: Path) -> Classifier:
        """A graph of the user's that looks at pictures."""
        from exporter.backends.coreml.classifier import read_classifier

        return read_classifier(entry)

    def operators_of(self, classifier: Classifier, shape: tuple[int, ...]) -> Sequence[Operator]:
        """Of an ML Program."""
        from exporter.backends.coreml.classifier import operators_of

        return operators_of(classifier.entry, shape)

    def check_graph(self, graph: GraphFiles) -> Mapping[str, int]:
        """A program of the operations that are written here, and of no other."""
        from exporter.backends.coreml.check import check_graph

        return check_graph(graph)

    def open_graph(
        self, entry: Path, settings: Mapping[str, str], options: SessionOptions
    ) -> Session:
        """Open a graph with Core ML on a Mac, elsewhere with the evaluator."""
        return session.open_graph(entry, settings, options)


def _emitted(written: Written, graph: str, target: str) -> Emitted:
    """What a graph's session is to be told, with every file that it needs."""
    from exporter.backends.coreml.lint import lint
    from exporter.backends.coreml.writer import MAIN

    package, model = written.package, written.model
    settings = {"target": target}
    if written.function != MAIN:
        settings[FUNCTION] = written.function
    if model is not None:
        base = written.base.relative_to(package.parent).as_posix()
        settings |= {WEIGHTS: package.name, BASE: base}
    files = [f for f in package.rglob("*") if f.is_file()]
    files += [model] if model else []
    remarks = tuple(
        str(found) for found in lint(package, graph, written.function, written.content())
    )
    return Emitted(model or package, tuple(sorted(files)), TOLERANCE, settings, remarks=remarks)


def needs_ios18(form: Format) -> bool:
    """Whether a format needs iOS 18's constexpr operators."""
    return form.is_grouped or (form.is_palette and form.group_size is not None)


BACKEND: Final[Backend] = CoreMl()

"""OpenVINO IR (.xml and .bin) for Intel processors, graphics and NPUs.

The model is built operator by operator with OpenVINO's own opset. On the CPU its runtime graph has
the same fused attention, norms and compressed products as the roads through ONNX and through torch
have, in fewer nodes (``benchmarks/openvino_forms.py``); what decides for it is that codes and
zero points go in as they are. All shapes are static, inputs and outputs float32 (ids int32).

2-bit weights stay compressed on the CPU as 4-bit ones do (OpenVINO 2026.4.1): a product of
1024 x 1536 x 6144 in groups of 64 took 0.94 to 1.03 of int4's time, one row 0.7; groups of 16,
which do without 8-bit activations, twice as long (``benchmarks/weight_formats.py``). No GPU or NPU
was tried.
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
from exporter.backends.openvino import session
from exporter.backends.openvino.session import DEVICES, GROUP_PROPERTY, HALVED
from exporter.package.manifest import Tokenizer, Tolerance
from exporter.package.names import ENCODERS, graph_of

if TYPE_CHECKING:
    from torch import Tensor

    from exporter.quantize.formats import Format
    from exporter.quantize.program import QuantizedProgram

# Weights are packed for their kernels, those of convolutions in float32; tables stay mapped.
COSTS = MeasuredCosts(
    process_bytes=41_000_000,
    node_bytes=54_000,
    held={
        "embedding int8": 0.0, "embedding fp16": 0.75, "embedding fp32": 0.0,
        "linear int8": 1.055, "linear w8a8": 1.055, "linear int4": 1.2, "linear int2": 1.3,
        "linear fp16": 3.7, "linear fp32": 1.0,
        "conv int8": 7.6, "conv fp16": 3.8, "conv fp32": 1.9,
    },
    activations={"tiny_decoder": 1.7, "tiny_encoder": 1.7, "": 1.3},
    patches=0.0,
    build_process_bytes=305_000_000,
    build_weight={"fp32": 1.0, "fp16": 1.55, "int8": 0.22, "w8a8": 0.22, "": 0.8},
    build_node_bytes=44_000,
    node_file_bytes=900,
)  # fmt: skip
TOLERANCE = Tolerance(graph_relative=1e-4, image_psnr_db=40.0)
ROUNDED_TOLERANCE = Tolerance(graph_relative=1e-3, image_psnr_db=45.0)
ACTIVATION_GROUP = 64


class OpenVino:
    """The backend of OpenVINO on processors, graphics and NPUs."""

    __slots__ = ()
    name: Final = "openvino"
    to_run: Final = Requirement("fourstep[openvino]", {"openvino": "openvino"})
    to_build: Final = Requirement(
        "fourstep[build,openvino-build]",
        {
            "torch": "torch",
            "transformers": "transformers",
            "openvino_tokenizers": "openvino-tokenizers",
            "openvino": "openvino",
        },
    )
    options: Final[Mapping[str, tuple[str, ...]]] = {}
    devices: Final = DEVICES
    caching_devices: Final = DEVICES
    half_devices: Final = ("CPU", "GPU")
    costs: Final = COSTS
    classifier_suffix: Final = ".xml"

    def refuse(self, form: Format, choices: Mapping[str, str]) -> str | None:
        """OpenVINO has integers alone."""
        if form.rounds_all:
            return "values of 16 bits are for NPUs, and OpenVINO compiles for Intel's with a driver"
        if form.is_palette:
            return "OpenVINO IR has no palettes that its plugins keep compressed"
        return None

    def emit(
        self,
        program: QuantizedProgram,
        read: Callable[[object], Tensor],
        folder: Path,
        options: EmitOptions,
    ) -> Emitted:
        """Write ``<graph>.xml`` and ``<graph>.bin``; weights are read one at a time."""
        return self.emit_sizes({program.name: program}, read, folder, options)[program.name]

    def emit_sizes(
        self,
        programs: Mapping[str, QuantizedProgram],
        read: Callable[[object], Tensor],
        folder: Path,
        options: EmitOptions,
    ) -> dict[str, Emitted]:
        """Write one as ``<key>.xml``, the others as what differs from it, all with one ``.bin``."""
        from exporter.backends.openvino.writer import write_graphs

        first = next(iter(programs.values()))
        told = _told(first) if options.is_foreign else {}
        halves = options.is_foreign and graph_of(first.name) in ENCODERS
        written = write_graphs(programs, read, folder, options.ports, told, halves)
        return {name: _emitted(program, *written[name]) for name, program in programs.items()}

    def write_beside(self, folder: Path, tokenizers: Mapping[str, Tokenizer]) -> tuple[Path, ...]:
        """Write each tokenizer as an OpenVINO model beside its ``tokenizer.json``."""
        from exporter.backends.openvino.tokenizers import write_tokenizer

        files = (write_tokenizer(folder, name, entry) for name, entry in sorted(tokenizers.items()))
        return tuple(file for pair in files for file in pair)

    def write_tokenizer(self, text: str, entry: Tokenizer, folder: Path) -> tuple[Path, ...]:
        """Write ``openvino_tokenizer.xml`` and ``.bin``, as OpenVINO GenAI reads them."""
        from exporter.backends.openvino.tokenizers import write_client_tokenizer

        return write_client_tokenizer(text, entry, folder)

    def read_classifier(self, entry: Path) -> Classifier:
        """A graph of the user's that looks at pictures."""
        from exporter.backends.openvino.classifier import read_classifier

        return read_classifier(entry)

    def operators_of(self, classifier: Classifier, shape: tuple[int, ...]) -> Sequence[Operator]:
        """Of a graph in IR."""
        from exporter.backends.openvino.classifier import operators_of

        return operators_of(classifier.entry, shape)

    def check_graph(self, graph: GraphFiles) -> Mapping[str, int]:
        """A graph of the operators that are written here, and of no other."""
        from exporter.backends.openvino.check import check_graph

        return check_graph(graph)

    def open_graph(
        self, entry: Path, settings: Mapping[str, str], options: SessionOptions
    ) -> Session:
        """Open a graph with OpenVINO."""
        return session.open_graph(entry, settings, options)


def _emitted(
    program: QuantizedProgram, model: Path, values: Path, base: Path | None = None
) -> Emitted:
    from exporter.quantize.rounded import asked, spared

    # f32: no silent bf16 or fp16 on hardware that has it. T5's activations leave fp16's range:
    # on a GPU that is told to use it, this factor scales them down inside.
    settings = {"INFERENCE_PRECISION_HINT": "f32", **_products(program)}
    if graph_of(program.name) == "t5":
        settings["ACTIVATIONS_SCALE_FACTOR"] = "8.0"
    if base is not None:
        settings |= {WEIGHTS: values.name, BASE: base.name}
    return Emitted(
        model, (model, values, *([] if base is None else [base])),
        ROUNDED_TOLERANCE if asked(program) else TOLERANCE, settings,
        remarks=spared(program),
    )  # fmt: skip


def _products(program: QuantizedProgram) -> dict[str, str]:
    """How a graph of linear layers with integer weights multiplies; of the VAE and others nothing.

    In 8 bits, with a scale for so many activations: OpenVINO's default is 32, larger groups are
    faster, but a weight in groups smaller than the activations' is multiplied in float32
    (``benchmarks/weight_formats.py``). And so that it stays with 8 bits under ``--half``, attention
    alone is halved then.
    """
    forms = [form for form in program.formats.values() if form.is_integer]
    if not forms or graph_of(program.name).startswith("vae"):
        return {}
    smallest = min((form.group_size for form in forms if form.group_size), default=ACTIVATION_GROUP)
    groups = {GROUP_PROPERTY: str(min(smallest, ACTIVATION_GROUP))} if smallest >= 32 else {}
    return {**groups, HALVED: "attention"}


def _told(program: QuantizedProgram) -> dict[str, str]:
    """What plugins find in a graph for clients of others: the group of activations.

    With 4-bit weights, for products as fast as ours. With 8 bits nothing: OpenVINO's own default is
    finer, and what is lost with ours (1.1 dB of the latent) is more than rounding weights loses.
    """
    if not any(form.is_grouped for form in program.formats.values()):
        return {}
    return {key: value for key, value in _products(program).items() if key == GROUP_PROPERTY}


BACKEND: Final[Backend] = OpenVino()

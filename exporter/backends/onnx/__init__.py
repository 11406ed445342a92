"""ONNX for onnxruntime: standard operators, DequantizeLinear weights, weights beside the graph.

The files need ONNX opset 21 (4-bit types, blocked DequantizeLinear) and onnxruntime's
MultiHeadAttention, whose memory does not grow with the square of the tokens.

Layers whose inputs are rounded to 8 bits are onnxruntime's MatMulIntegerToFloat: the full-size
denoiser's step took 2.7 s in place of int4's 5.2, the VAE 5.8 s in place of 8.8. They multiply
unsigned inputs by signed weights. On x86 without VNNI onnxruntime adds pairs of such products in 16
bits and clips them (2.9 % error in place of 1.1 % on normal weights; ``fourstep verify`` shows what
it is on a machine); its option against that fails on DequantizeLinear without a zero point, and
two unsigned factors are as slow as int4 where VNNI is.

A graph with 2-bit weights needs opset 25. onnxruntime 1.31.1 makes a MatMulNBits of them too; a
product of 1024 x 1536 x 6144 in groups of 64 or 128 took 0.5 to 0.9 of int4's time, one row half
to 0.85 of it (``benchmarks/weight_formats.py``). Smaller groups have slower kernels: 32 took 1.0 to
2.1 times int4's time, 16 1.7 times, and a single row in groups of 16 took 140 ms in place of 0.2.

``target = "web"`` writes a form that onnxruntime-web opens at any size: WebGPU's shaders take 10
buffers, so values are cut and joined in steps of 7; wasm's sizes are of 32 bits, so attention runs
over 256 queries at a time where all at once would overflow. The numbers are the same.

``target = "qnn"`` is for Qualcomm's NPU: graphs of 16-bit values alone, which it takes whole
(``docs/npu.md``); ``socs`` compiles them for chips besides.

onnxruntime's memory arena is off: with it the full-size VAE took 2,067 MB and 12.4 s for its first
picture of 512 px, without it 983 MB and 8.9 s; a step of the denoiser took the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from exporter.backends.contract import (
    Backend,
    Classifier,
    Compiled,
    EmitOptions,
    Emitted,
    ForNpu,
    GraphFiles,
    MeasuredCosts,
    Operator,
    Requirement,
    Session,
    SessionOptions,
)
from exporter.backends.onnx import session
from exporter.backends.onnx.qnn import session as on_npu
from exporter.backends.onnx.qnn.socs import SOCS, is_device
from exporter.package.manifest import ContextEntry, NpuEntry, Tokenizer, Tolerance
from exporter.package.names import graph_of

if TYPE_CHECKING:
    from torch import Tensor

    from exporter.quantize.formats import Format, Scheme
    from exporter.quantize.program import QuantizedProgram

# A weight of a linear layer is packed for its kernel when a graph is opened; tables stay mapped.
COSTS = MeasuredCosts(
    process_bytes=26_000_000,
    node_bytes=10_000,
    held={
        "embedding int8": 0.0, "embedding fp16": 2.6, "embedding fp32": 0.0,
        "linear int8": 1.35, "linear w8a8": 1.13, "linear int4": 1.38, "linear int2": 1.3,
        "linear fp16": 1.9, "linear fp32": 1.0,
        "conv int8": 2.0, "conv fp16": 5.0, "conv fp32": 2.4,
    },
    activations={
        "denoiser": 2.6, "vae_decoder": 1.4, "vae_encoder": 1.4,
        "tiny_decoder": 1.9, "tiny_encoder": 1.9, "": 1.0,
    },
    patches=3.7,
    build_process_bytes=350_000_000,
    build_weight={"fp32": 2.0, "fp16": 1.55, "int8": 0.4, "w8a8": 0.4, "": 0.8},
    build_node_bytes=0,
    node_file_bytes=130,
    widened=0.8,
)  # fmt: skip
TOLERANCE = Tolerance(graph_relative=1e-4, image_psnr_db=40.0)
ROUNDED_TOLERANCE = Tolerance(graph_relative=1e-3, image_psnr_db=45.0)
ON_NPU = Tolerance(graph_relative=5e-3, image_psnr_db=45.0)
ON_NPU_4_BITS = Tolerance(graph_relative=5e-3, image_psnr_db=42.0)
IN_STEPS = ("denoiser", "vae_decoder", "tiny_decoder")  # what an NPU is for


class Onnx:
    """The backend of onnxruntime on the CPU."""

    __slots__ = ()
    name: Final = "onnx"
    to_run: Final = Requirement("fourstep[onnx]", {"onnxruntime": "onnxruntime"})
    to_build: Final = Requirement("fourstep[build,onnx]", {"torch": "torch", "onnx": "onnx"})
    options: Final[Mapping[str, tuple[str, ...]]] = {
        "target": ("native", "web", "qnn"),
        "contexts": ("beside", "instead"),
    }
    lists: Final[Mapping[str, tuple[str, ...]]] = {"socs": tuple(SOCS)}
    devices: Final = ("CPU", *on_npu.DEVICES)
    npu_devices: Final = on_npu.DEVICES
    caching_devices: Final = ()
    half_devices: Final = ()
    costs: Final = COSTS
    classifier_suffix: Final = ".onnx"

    def refuse(self, form: Format, choices: Mapping[str, str]) -> str | None:
        """ONNX has integers alone."""
        if form.rounds_all and choices.get("target") == "web":
            return 'onnxruntime-web lacks its operators; say target = "native" in [onnx]'
        if form.is_palette:
            return "ONNX has no palettes"
        if choices.get("target") == "qnn" and form.name not in ("w8a16", "w4a16", "int8", "fp32"):
            return 'target = "qnn" is for an NPU, which computes with values of 16 bits'
        return None

    def refuse_choices(self, choices: Mapping[str, str]) -> str | None:
        """Chips are Qualcomm's."""
        if choices.get("socs", "") and choices.get("target") != "qnn":
            return f'socs: needs target = "qnn"; it is "{choices.get("target")}"'
        if choices.get("contexts") == "instead" and not choices.get("socs", ""):
            return 'contexts: "instead" needs chips; name them as socs'
        return None

    def suits(self, scheme: Scheme, choices: Mapping[str, str]) -> bool:
        """For an NPU those of 16-bit values."""
        return choices.get("target") != "qnn" or any(r.format.rounds_all for r in scheme.rules)

    def refuse_program(self, program: QuantizedProgram, choices: Mapping[str, str]) -> str | None:
        """For an NPU what runs in every step, or draws, has to be in 16 bits."""
        from exporter.quantize.everywhere import rounds_everything

        graph = graph_of(program.name)
        if choices.get("target") != "qnn" or graph not in IN_STEPS or rounds_everything(program):
            return None
        return (
            f'target = "qnn" is for an NPU, and {graph} has no weights in w8a16 or w4a16; build '
            "one of these schemes"
        )

    def compiler(self, choices: Mapping[str, str]) -> Mapping[str, str]:
        """Qualcomm's."""
        if not choices.get("socs", ""):
            return {}
        from exporter.backends.onnx.qnn.provider import require

        return {"onnxruntime-qnn": require().distribution}

    def chips(self, choices: Mapping[str, str]) -> tuple[str, ...]:
        """Qualcomm's."""
        return tuple(filter(None, choices.get("socs", "").split(",")))

    def compile_bytes(self, stored_bytes: int, value_bytes: int, activation_bytes: int) -> int:
        """Of Qualcomm's compiler."""
        from exporter.backends.onnx.qnn.compile import compile_bytes

        return compile_bytes(stored_bytes, value_bytes, activation_bytes)

    def compile(self, entries: Sequence[Path], chip: str, most_bytes: int) -> Compiled:
        """By Qualcomm's compiler, in a process of its own."""
        from exporter.backends.onnx.qnn.compile import compile_graph

        return compile_graph(entries, chip, most_bytes)

    def where_off(
        self, entry: Path, device: str, inputs: Mapping[str, np.ndarray], allowed: float
    ) -> str:
        """Every value of it, beside what onnxruntime's CPU computes."""
        from exporter.backends.onnx.qnn.layers import where_off

        return where_off(entry, device, inputs, allowed)

    def keeps_graphs(self, choices: Mapping[str, str]) -> bool:
        """Unless a recipe says otherwise."""
        return choices.get("contexts") != "instead"

    def fitting(self, npu: NpuEntry, device: str) -> ContextEntry | None:
        """By the chip that the device names, or that is here."""
        return on_npu.fitting(npu, device)

    def emit(
        self,
        program: QuantizedProgram,
        read: Callable[[object], Tensor],
        folder: Path,
        options: EmitOptions,
    ) -> Emitted:
        """Write ``<graph>.onnx`` and ``<graph>.onnx.data``; weights are read one at a time."""
        return self.emit_sizes({program.name: program}, read, folder, options)[program.name]

    def emit_sizes(
        self,
        programs: Mapping[str, QuantizedProgram],
        read: Callable[[object], Tensor],
        folder: Path,
        options: EmitOptions,
    ) -> dict[str, Emitted]:
        """Write each as ``<key>.onnx``, all with one file of data."""
        from exporter.backends.onnx.writer import write_graphs

        target = options.choices.get("target")
        written = write_graphs(programs, read, folder, target == "web", options.ports)
        return {
            name: _emitted(program, written[name], options) for name, program in programs.items()
        }

    def write_beside(self, folder: Path, tokenizers: Mapping[str, Tokenizer]) -> tuple[Path, ...]:
        """Nothing: onnxruntime needs the graphs alone."""
        return ()

    def read_classifier(self, entry: Path) -> Classifier:
        """A graph of the user's that looks at pictures."""
        from exporter.backends.onnx.classifier import read_classifier

        return read_classifier(entry)

    def operators_of(self, classifier: Classifier, shape: tuple[int, ...]) -> Sequence[Operator]:
        """Of an ONNX graph."""
        from exporter.backends.onnx.classifier import operators_of

        return operators_of(classifier.entry, shape)

    def check_graph(self, graph: GraphFiles) -> Mapping[str, int]:
        """A graph of the operators that are written here, and of no other."""
        from exporter.backends.onnx.check import check_graph
        from exporter.backends.onnx.qnn.check import check_context

        return check_context(graph) if graph.is_compiled else check_graph(graph)

    def open_graph(
        self, entry: Path, settings: Mapping[str, str], options: SessionOptions
    ) -> Session:
        """Open a graph with onnxruntime, or on Qualcomm's NPU."""
        if is_device(options.device):
            return on_npu.open_graph(entry, str(options.device))
        return session.open_graph(entry, settings, options)


def _emitted(program: QuantizedProgram, files: tuple[Path, ...], options: EmitOptions) -> Emitted:
    from exporter.quantize.everywhere import has_levels, rounds_everything
    from exporter.quantize.rounded import spared

    low_bits = any(form.is_integer for form in program.formats.values())
    whole = rounds_everything(program)  # what it computes is said to the bit
    allowed = ON_NPU_4_BITS if any(f.bits == 4 for f in program.formats.values()) else ON_NPU
    for_npu = options.choices.get("target") == "qnn"
    settings = {"accuracy_level": "4"} if low_bits and not whole else {}
    return Emitted(
        files[0], files, ROUNDED_TOLERANCE if has_levels(program) else TOLERANCE,
        settings | ({"widened": "1"} if options.is_widened else {}), remarks=spared(program),
        on_npu=allowed if for_npu and whole else None,
    )  # fmt: skip


BACKEND: Final[Backend] = Onnx()
NPU: Final[ForNpu] = Onnx()  # it is one, as the checker of types sees

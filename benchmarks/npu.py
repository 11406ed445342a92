"""Graphs of any checkpoint for Qualcomm's NPU: bytes, seconds and memory of compiling, and errors.

    python -m benchmarks.npu CHECKPOINT [--graph denoiser ...] [--scheme w8a16 ...] [--soc 8elite]
                             [--size 512x512 ...] [--parts 4] [--run] [--json FILE]

Without ``--run`` nothing is computed: each value has a range around 0 at random, attention's shares
that of 0 to 1. Shares whose level of 0 is not the first one, which no package has, take attention
off the compiler's short way: 35 to 43 s of a processor in place of 1, at 512 px. With ``--run``
ranges are those met on random inputs, and the graph is run on them by the program in torch, by
onnxruntime's CPU, and by the NPU or its emulator. Each graph that was compiled is opened again from
its context. What it reads and writes of memory in a run, and puts aside of that, is what Qualcomm's
compiler predicts at the first size. Several sizes share one context's weights, which the emulator
cannot open. ``--parts`` cuts the denoiser, as ``denoiser_parts`` in a recipe;
``--graph denoiser-1`` is the first of its parts alone.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import fx

from benchmarks import figures
from exporter import backends
from exporter.backends.contract import EmitOptions, SessionOptions, Sizing
from exporter.backends.onnx.qnn.compile import compile_bytes, compile_graph
from exporter.backends.onnx.qnn.process import Order, opened
from exporter.calibrate.ranges import SHARES, choose_all
from exporter.calibrate.weights import Weights
from exporter.checkpoint.open import Checkpoint, open_checkpoint
from exporter.network.assemble import cut_graphs
from exporter.network.cut import Cut
from exporter.package.measures import relative_error
from exporter.package.names import graph_of, sized_name
from exporter.program.program import Program
from exporter.program.run import constant_value, run
from exporter.program.sizes import activation_bytes, value_bytes
from exporter.program.trace import trace
from exporter.quantize.everywhere import is_zeros, round_everything, to_round
from exporter.quantize.formats import Scheme
from exporter.quantize.program import QuantizedProgram, quantize_all
from exporter.quantize.rounded import RoundedInput
from exporter.quantize.schemes import load_scheme
from exporter.quantize.split import split

WHAT = "Graphs for Qualcomm's NPU, compiled ahead of time."
COLUMNS = (
    figures.Column("checkpoint", "checkpoint"),
    figures.Column("graph", "graph"),
    figures.Column("size", "pixels"),
    figures.Column("scheme", "scheme"),
    figures.Column("soc", "chip"),
    figures.Column("codes_mb", "codes MB"),
    figures.Column("values_mb", "values MB"),
    figures.Column("activations_mb", "alive MB"),
    figures.Column("context_mb", "context MB", 1),
    figures.Column("seconds", "compiling s"),
    figures.Column("cpu_seconds", "of processors"),
    figures.Column("peak_gb", "peak GB", 2),
    figures.Column("predicted_gb", "predicted GB", 2),
    figures.Column("read_mb", "reads MB, predicted", 1),
    figures.Column("written_mb", "writes MB, predicted", 1),
    figures.Column("aside_mb", "puts aside MB, predicted", 1),
    figures.Column("open_s", "opening s", 1),
    figures.Column("open_gb", "peak GB of it", 2),
    figures.Column("npu_error", "error on the NPU", 5),
    figures.Column("cpu_error", "on the CPU", 5),
    figures.Column("run_s", "emulated s"),
)
ENDS = 4.0, 12.0  # that ranges reach to, at least and at most
SIGMAS = (1.0, 0.9, 0.75, 0.5, 0.0)


def traced(checkpoint: Checkpoint, size: str, wanted: Sequence[str]) -> dict[str, Program]:
    """The graphs of these names, for a size of the picture."""
    width_px, height_px = map(int, size.split("x"))
    cut = Cut(SIGMAS, width_px, height_px, t5=False, t5_tokens=77, image_to_image=False)
    return {g.name: trace(g) for g in cut_graphs(checkpoint, cut) if g.name in wanted}


def inputs_of(program: Program) -> dict[str, np.ndarray]:
    """Normal values, and codes of tokens."""
    values = np.random.default_rng(0)
    return {
        port.name: values.standard_normal(port.shape).astype(np.float32)
        if port.dtype == "float32"
        else values.integers(0, 1000, port.shape).astype(np.int32)
        for port in program.inputs
    }


def stated(program: QuantizedProgram, weights: Weights) -> dict[str, RoundedInput]:
    """A range at random for whatever a program computes; constants have their own."""
    asked, random = to_round(program), np.random.default_rng(0)
    ends = dict[fx.Node, tuple[float, float]]()
    for node in asked.values:
        below, above = map(float, random.uniform(*ENDS, 2))
        ends[node] = (0.0, 1.0) if node.target is SHARES else (-below, above)
        if is_zeros(node):
            ends[node] = ends[asked.source_of(node.args[0])]
    for node in asked.constants:
        low, high = torch.aminmax(constant_value(asked.program, weights.read, node))
        ends[node] = float(low), float(high)
    return {node.name: asked.range_of(node, *found) for node, found in ends.items()}


Programs = Mapping[str, QuantizedProgram]  # a graph's at each size, by the name of its files


def quantized(
    checkpoint: Checkpoint, sizes: Sequence[str], wanted: Sequence[str], scheme: Scheme
) -> list[dict[str, QuantizedProgram]]:
    """The graphs of these names, each at every size, not rounded yet."""
    at = {size: quantize_all(traced(checkpoint, size, wanted), scheme) for size in sizes}
    first, *others = sizes
    return [
        {name: program, **{sized_name(name, size): at[size][name] for size in others}}
        for name, program in at[first].items()
    ]


def parts_of(programs: Programs, count: int) -> list[dict[str, QuantizedProgram]]:
    """The denoiser cut at every size, any other graph as it is."""
    cut = {
        name.removeprefix(program.name): split(program, count if program.name == "denoiser" else 1)
        for name, program in programs.items()
    }
    return [
        {part.name + size: part for size, part in zip(cut, parts, strict=True)}
        for parts in zip(*cut.values(), strict=True)
    ]


def emitted(programs: Programs, read: Callable[[object], torch.Tensor], folder: Path) -> list[Path]:
    """The graphs of every size as ``target = "qnn"`` writes them; weights are there once."""
    onnx, options = backends.load("onnx"), EmitOptions({"target": "qnn"})
    if len(programs) == 1:
        return [onnx.emit(program, read, folder, options).entry for program in programs.values()]
    assert isinstance(onnx, Sizing)
    found = onnx.emit_sizes(programs, read, folder, options)
    return [found[name].entry for name in programs]


def compiled(entries: Sequence[Path], soc: str, plain: Programs, programs: Programs) -> figures.Row:
    """What compiling a graph takes, and opening its context again.

    Args:
        plain, programs: at each size, before inputs are rounded and after.
    """
    stored_bytes = sum(f.stat().st_size for f in entries[0].parent.iterdir() if f.is_file())
    activations = sum(activation_bytes(program) for program in programs.values())
    values = sum(value_bytes(program) for program in plain.values())
    predicted = compile_bytes(len(entries) * stored_bytes, values, activations)
    done = compile_graph(entries, soc, predicted)
    files = dict.fromkeys(file for graph in done.graphs for file in graph.files)
    row = {
        "codes_mb": stored_bytes / 1e6,
        "values_mb": values / 1e6,
        "activations_mb": activations / 1e6,
        "context_mb": sum(file.stat().st_size for file in files) / 1e6,
        "seconds": done.seconds,
        "cpu_seconds": done.cpu_seconds,
        "peak_gb": done.peak_bytes / 1e9,
        "predicted_gb": predicted / 1e9,
    }
    if moved := done.graphs[0].traffic:
        row |= {"read_mb": moved.read_bytes / 1e6, "written_mb": moved.written_bytes / 1e6}
        row |= {"aside_mb": moved.spilled_bytes / 1e6}
    if len(entries) > 1:
        return row
    started = time.perf_counter()
    worker = opened(Order(str(done.graphs[0].entry), soc))
    row |= {"open_s": time.perf_counter() - started, "open_gb": worker.peak_bytes / 1e9}
    worker.close()
    return row


def ran(entry: Path, soc: str, program: QuantizedProgram, weights: Weights) -> figures.Row:
    """How far a graph is from its program, on the NPU and on the processor."""
    given = inputs_of(program)
    with torch.inference_mode():
        tensors = {name: torch.from_numpy(value) for name, value in given.items()}
        exact = {n: v.numpy() for n, v in run(program, weights.read, tensors).items()}
    onnx = backends.load("onnx")
    on_cpu = onnx.open_graph(entry, {}, SessionOptions())(given)
    worker = opened(Order(str(entry.parent / soc / entry.name), soc))
    started = time.perf_counter()
    on_npu = worker(given)
    seconds = time.perf_counter() - started
    worker.close()

    def error(found: Mapping[str, np.ndarray]) -> float:
        return max(relative_error(found[name], value) for name, value in exact.items())

    return {"npu_error": error(on_npu), "cpu_error": error(on_cpu), "run_s": seconds}


def rounded(programs: Programs, weights: Weights, runs: bool) -> dict[str, QuantizedProgram]:
    """Every value of a graph rounded, at each size: in ranges that are met if it ``runs``."""

    def ranges(plain: QuantizedProgram) -> dict[str, RoundedInput]:
        if runs:
            return choose_all(plain, weights.read, [inputs_of(plain)])
        return stated(plain, weights)

    return {name: round_everything(plain, ranges(plain)) for name, plain in programs.items()}


def measured(
    plain: Programs, programs: Programs, weights: Weights, soc: str, runs: bool
) -> figures.Row:
    """One graph at all its sizes, or a part of it."""
    with tempfile.TemporaryDirectory(prefix="fourstep-npu-") as folder:
        entries = emitted(programs, weights.read, Path(folder))
        row = compiled(entries, soc, plain, programs)
        if runs:
            (program,) = programs.values()
            row = {**row, **ran(entries[0], soc, program, weights)}
        return row


def main() -> None:
    parser = argparse.ArgumentParser(description="Compile graphs of a checkpoint for an NPU.")
    parser.add_argument("checkpoint")
    parser.add_argument("--graph", nargs="+", default=["denoiser", "vae_decoder", "conditioner"])
    parser.add_argument("--scheme", nargs="+", default=["w8a16", "w4a16"])
    parser.add_argument("--soc", default="8elite")
    parser.add_argument("--size", nargs="+", default=["512x512"])
    parser.add_argument("--parts", type=int, default=1, help="that the denoiser is cut into")
    parser.add_argument("--run", action="store_true", help="also run each graph, of one size")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    if arguments.run and (len(arguments.size) > 1 or arguments.parts > 1):
        parser.error("--run goes with one size and no --parts")
    checkpoint, rows = open_checkpoint(arguments.checkpoint), list[figures.Row]()
    weights, wanted = Weights(checkpoint), {graph_of(name) for name in arguments.graph}
    for scheme in arguments.scheme:
        for plain in quantized(checkpoint, arguments.size, [*wanted], load_scheme(scheme)):
            parts = parts_of(rounded(plain, weights, arguments.run), arguments.parts)
            for bare, part in zip(parts_of(plain, arguments.parts), parts, strict=True):
                name = next(iter(part))
                if not {name, graph_of(name)} & {*arguments.graph}:
                    continue
                size = ", ".join(arguments.size)
                row = {"checkpoint": Path(arguments.checkpoint).name, "graph": name, "size": size}
                row |= {"scheme": scheme, "soc": arguments.soc}
                rows.append({**row, **measured(bare, part, weights, arguments.soc, arguments.run)})
                shown = figures.markdown(COLUMNS, rows[-1:])
                print(shown.splitlines()[-1], file=sys.stderr, flush=True)
    print(figures.markdown(COLUMNS, rows))
    if arguments.json:
        figures.write(arguments.json, WHAT, COLUMNS, rows)


if __name__ == "__main__":
    main()

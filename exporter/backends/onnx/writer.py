"""Writes a program as ONNX: one node table in memory, weights streamed to a file beside it.

Nothing of this machine enters the file: no paths, stack traces, times or tool versions, so the
same program and weights give the same bytes anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import onnx
from torch import Tensor

from exporter.backends.contract import PortForm
from exporter.backends.onnx import integers, ops
from exporter.backends.onnx.emitter import Emitter, Values
from exporter.program import aten
from exporter.quantize.everywhere import rounds_everything
from exporter.quantize.program import QuantizedProgram

INTEGERS = integers.table(ops.TABLE)


def write_graph(
    program: QuantizedProgram,
    read: Callable[[object], Tensor],
    folder: Path,
    for_web: bool = False,
) -> tuple[Path, Path]:
    """Write ``<name>.onnx`` and ``<name>.onnx.data`` into ``folder``.

    Args:
        for_web: in a form that onnxruntime-web opens at any size, in wasm and by WebGPU.
    """
    return write_graphs({program.name: program}, read, folder, for_web)[program.name]


def write_graphs(
    programs: Mapping[str, QuantizedProgram],
    read: Callable[[object], Tensor],
    folder: Path,
    for_web: bool = False,
    forms: Mapping[str, PortForm] | None = None,
) -> dict[str, tuple[Path, Path]]:
    """Write programs with the same weights: each as ``<key>.onnx``, all with one file of data.

    The first has the bytes that it would have alone; what the others add lies behind its values.

    Args:
        forms: of inputs that are not as the program has them, by name.
    """
    data_file = folder / f"{next(iter(programs))}.onnx.data"
    models: dict[str, onnx.ModelProto] = {}
    with data_file.open("wb") as stream:
        values = Values(stream, data_file.name, len(programs))
        for name, program in programs.items():
            emitter = Emitter(program, read, values, for_web, forms)
            table = INTEGERS if rounds_everything(program) else ops.TABLE
            for node in program.nodes():
                aten.translation(table, node, program.name, "ONNX")(emitter, node)
            model = emitter.model()
            models[name] = _shortened(model) if models else model
            values.next_graph()
    files = {name: folder / f"{name}.onnx" for name in programs}
    for name, model in models.items():
        files[name].write_bytes(model.SerializeToString(deterministic=True))
        onnx.checker.check_model(str(files[name]))
    return {name: (file, data_file) for name, file in files.items()}


def _shortened(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model whose values are called by numbers, but for its inputs and outputs.

    Names are most of what a graph is without its weights, and nobody reads those of a further size.
    """
    graph = model.graph
    ports = (*graph.input, *graph.output)
    names: dict[str, str] = {"": "", **{port.name: port.name for port in ports}}

    def short(name: str) -> str:
        return names.setdefault(name, f"_{len(names)}")

    for tensor in graph.initializer:
        tensor.name = short(tensor.name)
    for node in graph.node:
        node.name = ""
        node.input[:] = [short(name) for name in node.input]
        node.output[:] = [short(name) for name in node.output]
    return model

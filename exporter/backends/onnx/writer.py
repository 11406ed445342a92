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
POINTED_BYTES = 128  # of a value that saying where it lies is shorter than


def write_graph(
    program: QuantizedProgram,
    read: Callable[[object], Tensor],
    folder: Path,
    for_web: bool = False,
) -> tuple[Path, ...]:
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
) -> dict[str, tuple[Path, ...]]:
    """Write programs with the same weights: each as ``<key>.onnx``, all with one file of data.

    The first has the bytes that it would have alone; what the others add lies behind its values.
    The small values that the first has in its ``.onnx`` they read from there.

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
            models[name] = emitter.model()
            values.next_graph()
    first, *others = ((folder / f"{name}.onnx", model) for name, model in models.items())
    content = _write(*first)
    for file, model in others:
        _write(file, _pointing(_shortened(model), first[0].name, content))
    return {
        file.stem: (file, data_file, *([] if file == first[0] else [first[0]]))
        for file, _ in (first, *others)
    }


def _write(file: Path, model: onnx.ModelProto) -> bytes:
    content: bytes = model.SerializeToString(deterministic=True)
    file.write_bytes(content)
    onnx.checker.check_model(str(file))
    return content


def _pointing(model: onnx.ModelProto, location: str, content: bytes) -> onnx.ModelProto:
    """A model whose small values are read from another's file, as far as they are in it.

    Whole numbers stay: shapes are inferred from them.
    """
    for tensor in model.graph.initializer:
        size = len(tensor.raw_data)
        offset = content.find(tensor.raw_data) if size >= POINTED_BYTES else -1
        if offset < 0 or tensor.data_type == onnx.TensorProto.INT64:
            continue
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", offset), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
    return model


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

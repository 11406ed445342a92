"""Writes a program as ONNX: one node table in memory, weights streamed to a file beside it.

Nothing of this machine enters the file: no paths, stack traces, times or tool versions, so the
same program and weights give the same bytes anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import onnx
from torch import Tensor

from exporter.backends.onnx import ops
from exporter.backends.onnx.emitter import Emitter, Values
from exporter.program import aten
from exporter.quantize.program import QuantizedProgram


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
) -> dict[str, tuple[Path, Path]]:
    """Write programs with the same weights: each as ``<key>.onnx``, all with one file of data.

    The first has the bytes that it would have alone; what the others add lies behind its values.
    """
    data_file = folder / f"{next(iter(programs))}.onnx.data"
    models = {}
    with data_file.open("wb") as stream:
        values = Values(stream, data_file.name, len(programs))
        for name, program in programs.items():
            emitter = Emitter(program, read, values, for_web)
            for node in program.nodes():
                aten.translation(ops.TABLE, node, program.name, "ONNX")(emitter, node)
            models[name] = emitter.model()
            values.next_graph()
    files = {name: folder / f"{name}.onnx" for name in programs}
    for name, model in models.items():
        files[name].write_bytes(model.SerializeToString(deterministic=True))
        onnx.checker.check_model(str(files[name]))
    return {name: (file, data_file) for name, file in files.items()}

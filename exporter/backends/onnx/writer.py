"""Writes a program as ONNX: one node table in memory, weights streamed to a file beside it.

Nothing of this machine enters the file: no paths, stack traces, times or tool versions, so the
same program and weights give the same bytes anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
from torch import Tensor

from exporter.backends.onnx import ops
from exporter.backends.onnx.emitter import Emitter
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
    model_file = folder / f"{program.name}.onnx"
    data_file = folder / f"{program.name}.onnx.data"
    with data_file.open("wb") as stream:
        emitter = Emitter(program, read, stream, data_file.name, for_web)
        for node in program.nodes():
            aten.translation(ops.TABLE, node, program.name, "ONNX")(emitter, node)
        model = emitter.model()
    model_file.write_bytes(model.SerializeToString(deterministic=True))
    onnx.checker.check_model(str(model_file))
    return model_file, data_file

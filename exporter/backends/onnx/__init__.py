"""ONNX for onnxruntime: standard operators, DequantizeLinear weights, weights beside the graph.

The files need ONNX opset 21 (4-bit types, blocked DequantizeLinear) and onnxruntime's
MultiHeadAttention, whose memory does not grow with the square of the tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from exporter.backends import Emitted, Session
from exporter.errors import CheckFailed

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from exporter.formats import Format
    from exporter.quantize import QuantizedProgram

EXTRA = "onnx"
REQUIRES = {"torch": "torch", "onnx": "onnx"}
RUNS_WITH = {"onnxruntime": "onnxruntime"}


def refuse(form: Format) -> str | None:
    """Why a format cannot be expressed, or None: fp32, fp16, int8 and int4 all can."""
    return None if form.name in ("fp32", "fp16", "int8", "int4") else f"no {form.name} in ONNX"


def emit(program: QuantizedProgram, read: Callable[[object], Tensor], folder: Path) -> Emitted:
    """Write ``<graph>.onnx`` and ``<graph>.onnx.data``; weights are read one at a time."""
    from exporter.backends.onnx.writer import write_graph

    files = write_graph(program, read, folder)
    low_bits = any(form.is_integer for form in program.formats.values())
    return Emitted(files[0], files, {"accuracy_level": "4"} if low_bits else {})


def session(entry: Path, settings: Mapping[str, str], exact: bool = False) -> Session:
    """Open a graph with onnxruntime on the CPU.

    Args:
        settings: ``accuracy_level`` 4 lets the kernels round activations to 8 bits per block.
        exact: compute in float32 whatever the settings say, for parity checks.

    Raises CheckFailed when onnxruntime cannot read the file.
    """
    import onnxruntime as ort

    ort.disable_telemetry_events()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    level = "0" if exact else settings.get("accuracy_level", "0")
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", level)
    try:
        opened = ort.InferenceSession(str(entry), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own types, some bare
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckFailed(f"{entry}: onnxruntime cannot open it: {reason}") from None
    names = [o.name for o in opened.get_outputs()]

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(names, opened.run(names, dict(inputs)), strict=True))

    return run

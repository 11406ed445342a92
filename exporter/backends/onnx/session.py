"""Opens a graph with onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from exporter.backends.contract import Session, SessionOptions
from exporter.errors import CheckFailed, tell_memory
from exporter.files.heap import returning

if TYPE_CHECKING:
    import onnxruntime as ort


def open_graph(entry: Path, settings: Mapping[str, str], options: SessionOptions) -> Session:
    """Open a graph with onnxruntime on the CPU.

    Args:
        settings: as ``configured``.

    Raises CheckFailed when onnxruntime cannot read the file.
    """
    import onnxruntime as ort

    ort.disable_telemetry_events()  # for whoever imported onnxruntime before ``exporter``
    config = configured(settings, options)
    try:
        with returning():
            # Its fallback would try the same provider again, and print that it does.
            opened = ort.InferenceSession(
                str(entry), config, providers=["CPUExecutionProvider"], enable_fallback=0
            )
    except Exception as error:  # onnxruntime raises its own types, some bare
        tell_memory(error)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckFailed(f"{entry}: onnxruntime cannot open it: {reason}") from None
    names = [o.name for o in opened.get_outputs()]

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(names, opened.run(names, dict(inputs)), strict=True))

    return run


def configured(settings: Mapping[str, str], options: SessionOptions) -> ort.SessionOptions:
    """What onnxruntime is told of a graph before it opens it.

    Args:
        settings: ``accuracy_level`` 4 lets the kernels round activations to 8 bits per block;
            ``widened`` decodes weights now, and not whenever the graph runs.
    """
    import onnxruntime as ort

    config = ort.SessionOptions()
    config.log_severity_level = 4  # errors are raised, and worded in a line by whoever catches them
    config.enable_cpu_mem_arena = False
    level = "0" if options.precision == "float32" else settings.get("accuracy_level", "0")
    config.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", level)
    if "widened" in settings:  # else codes that are decoded count as no constant
        config.add_session_config_entry("session.disable_quant_qdq", "1")
    return config

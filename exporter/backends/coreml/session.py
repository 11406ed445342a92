"""Opens a graph: with Core ML on a Mac, elsewhere with the evaluator."""

from __future__ import annotations

import sys
from pathlib import Path

from exporter.backends.contract import Session, SessionOptions

ON_A_MAC = sys.platform == "darwin"
EVALUATOR = "EVALUATOR"  # this project's interpreter of ML Programs
COMPUTE_UNITS: tuple[str, ...] = (
    ("ALL", "CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE") if ON_A_MAC else ()
)


def open_graph(entry: Path, options: SessionOptions) -> Session:
    """Open a graph: with Core ML on a Mac, elsewhere with the evaluator.

    In ``float32`` it is always the evaluator, so that on a Mac ``verify`` reports both: the program
    by its own types, and what Core ML makes of it.

    Raises CheckFailed when the package cannot be read.
    """
    if options.precision == "float32" or not ON_A_MAC or options.device == EVALUATOR:
        from exporter.backends.coreml.evaluator.program import open_program

        return open_program(entry)
    from exporter.backends.coreml.predictor import open_model

    return open_model(entry, options.device or COMPUTE_UNITS[0], options.cache)

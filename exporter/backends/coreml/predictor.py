"""Runs a graph with Core ML itself, on a Mac."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from exporter.backends import Session
from exporter.backends.coreml import library
from exporter.errors import CheckFailed


def open_model(package: Path, compute_units: str, cache: Path | None) -> Session:
    """Compile and load a ``.mlpackage``; with ``cache``, the compiled form is kept there.

    Args:
        compute_units: ALL, CPU_ONLY, CPU_AND_GPU or CPU_AND_NE.

    Raises CheckFailed when Core ML cannot open it.
    """
    ct = library.coremltools()
    units = ct.ComputeUnit[compute_units]
    try:
        if cache is None:
            model = ct.models.MLModel(str(package), compute_units=units)
        else:
            compiled = cache / f"{package.stem}-{package.stat().st_mtime_ns}.mlmodelc"
            if not compiled.exists():
                cache.mkdir(parents=True, exist_ok=True)
                ct.models.utils.compile_model(str(package), str(compiled))
            model = ct.models.CompiledMLModel(str(compiled), units)
    except Exception as error:  # Core ML raises bare RuntimeError
        raise CheckFailed(f"{package}: Core ML cannot open it: {error}") from None

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = model.predict({name: np.asarray(value) for name, value in inputs.items()})
        return {name: np.asarray(value) for name, value in found.items()}

    return run

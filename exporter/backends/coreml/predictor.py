"""Runs a graph with Core ML itself, on a Mac."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from exporter.backends.contract import Session
from exporter.backends.coreml import library
from exporter.errors import CheckFailed, InputError, tell_memory
from exporter.files.cache import checked


@contextmanager
def assembled(package: Path, model: bytes) -> Iterator[Path]:
    """A ``.mlpackage`` with another model, over the same weights, in a folder of its own.

    The weights are linked where the disk can, which takes no bytes, else copied.
    """
    inside = Path("Data", "com.apple.CoreML")
    weights = inside / "weights" / "weight.bin"
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / package.name
        (whole / weights).parent.mkdir(parents=True)
        shutil.copyfile(package / "Manifest.json", whole / "Manifest.json")
        (whole / inside / "model.mlmodel").write_bytes(model)
        try:
            os.link(package / weights, whole / weights)
        except OSError:  # another disk
            shutil.copyfile(package / weights, whole / weights)
        yield whole


def open_model(
    package: Path, compute_units: str, cache: Path | None, function: str | None = None
) -> Session:
    """Compile and load a ``.mlpackage``; with ``cache``, the compiled form is kept there.

    Args:
        compute_units: ALL, CPU_ONLY, CPU_AND_GPU or CPU_AND_NE.
        function: of the package; None: its default.

    Raises CheckFailed when Core ML cannot open it; so does a call when Core ML cannot run it.
    Raises InputError when the cache cannot be written.
    """
    ct = library.coremltools()
    units = ct.ComputeUnit[compute_units]
    named = {} if function is None else {"function_name": function}
    try:
        if cache is None:
            model = ct.models.MLModel(str(package), compute_units=units, **named)
        else:
            with checked(cache / f"{package.stem}-{_digest(package)[:16]}") as folder:
                compiled = folder / f"{package.stem}.mlmodelc"
                if not compiled.exists():
                    ct.models.utils.compile_model(str(package), str(compiled))
                model = ct.models.CompiledMLModel(str(compiled), units, **named)
    except InputError:
        raise
    except Exception as error:  # Core ML raises bare RuntimeError
        tell_memory(error)
        raise CheckFailed(f"{package}: Core ML cannot open it: {_one_line(error)}") from None

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            found = model.predict({name: np.asarray(value) for name, value in inputs.items()})
        except Exception as error:
            tell_memory(error)
            raise CheckFailed(f"{package}: Core ML cannot run it: {_one_line(error)}") from None
        return {name: np.asarray(value) for name, value in found.items()}

    return run


def _digest(package: Path) -> str:
    """SHA-256 of a package's files: another package may have the same name and age."""
    whole = hashlib.sha256()
    for file in sorted(f for f in package.rglob("*") if f.is_file()):
        with file.open("rb") as stream:
            whole.update(hashlib.file_digest(stream, "sha256").digest())
    return whole.hexdigest()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())

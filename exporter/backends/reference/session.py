"""Opens a graph in torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from exporter.backends.contract import WEIGHTS, Session
from exporter.errors import CheckFailed, tell_memory


def open_graph(entry: Path, settings: Mapping[str, str] | None = None) -> Session:
    """Open a graph; its tensors stay in the file until they are needed.

    Args:
        settings: ``weights``: the file beside it that holds them, where that has another name.

    Raises CheckFailed when a file of the graph is none.
    """
    import torch

    from exporter.backends.reference.reader import read_graph
    from exporter.program.run import run

    try:
        beside = (settings or {}).get(WEIGHTS)
        values = None if beside is None else entry.with_name(beside)
        program, read = read_graph(entry, values)
    except Exception as error:  # JSON, keys, types and safetensors' own
        tell_memory(error)
        reason = " ".join(str(error).split())
        raise CheckFailed(f"{entry}: the reference cannot open it: {reason}") from None

    def call(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        given = {name: torch.tensor(value) for name, value in inputs.items()}
        return {name: value.numpy() for name, value in run(program, read, given).items()}

    return call

"""Compiles graphs ahead of time: an EPContext model and a binary for one chip, beside the graph.

The same graph gives the same bytes anywhere: the compiler works in the graph's folder, by relative
paths, since it puts a digest of a path into what it names.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from exporter.backends.contract import Compiled, CompiledGraph, Traffic
from exporter.backends.onnx.qnn import provider
from exporter.backends.onnx.qnn.log import traffic
from exporter.backends.onnx.qnn.process import Order, Refused
from exporter.backends.onnx.qnn.session import whole, worded
from exporter.backends.onnx.qnn.socs import SOCS
from exporter.errors import InputError
from exporter.files.staging import remove

# Fitted to what was measured, and above all of it: graphs of shapes-flash; of the full width two
# blocks at 256, 512 and 1024 px, 24 at 512 px, the VAE decoder, the conditioner, two sizes at once
# (benchmarks/results/npu-*.json). All values count less than in proportion: at 512 px the decoder
# has three times as many bytes of them as 24 blocks, and takes a quarter of the memory.
PROCESS_BYTES, OF_STORED, OF_ACTIVATIONS = 210_000_000, 5.6, 0.68
OF_GB_OF_VALUES_BYTES, VALUES_POWER = 420_000_000, 0.6
# What a process may ask for: twice what is predicted, and what libraries reserve and do not touch.
SPARE, RESERVED_BYTES = 2.0, 1_000_000_000
MOST_S = 3600  # of one graph


def compile_bytes(stored_bytes: int, value_bytes: int, activation_bytes: int) -> int:
    """Memory of a process that compiles a graph, predicted."""
    values = OF_GB_OF_VALUES_BYTES * (value_bytes / 1e9) ** VALUES_POWER
    return int(
        PROCESS_BYTES + OF_STORED * stored_bytes + values + OF_ACTIVATIONS * activation_bytes
    )


def compile_graph(entries: Sequence[Path], chip: str, most_bytes: int) -> Compiled:
    """Write ``<chip>/<graph>.onnx`` and ``<chip>/<graph>_qnn.bin`` beside a graph.

    Args:
        entries: of each size, the first one first: each gets an ``.onnx`` file, and all one binary.
        most_bytes: of memory that the compiler is predicted to take; far above it is stopped.

    Raises InputError naming the graph and what the chip's NPU lacks.
    """
    versions, entry = provider.require(), entries[0]
    place, soc = entry.parent / chip, SOCS[chip]
    remove(place)
    place.mkdir()
    first, *others = ((file.name, _asked(file, entries, chip)) for file in entries)
    order = Order(
        first[0], chip, first[1], others=tuple(others),
        most_bytes=int(SPARE * most_bytes) + RESERVED_BYTES, most_s=MOST_S, place=entry.parent,
        severity=provider.TELLING,
    )  # fmt: skip
    started = time.perf_counter()
    try:
        worker = whole(order, entry)
    except Refused as refused:
        remove(place)
        raise InputError(f"{chip}: {worded(entry, refused)}") from None
    seconds = time.perf_counter() - started
    predicted = traffic(worker.told())
    worker.close()
    each = predicted if len(predicted) == len(entries) else [None] * len(entries)
    binary = place / f"{entry.stem}_qnn.bin"
    graphs = tuple(
        _written(place / file.name, binary, said) for file, said in zip(entries, each, strict=True)
    )
    return Compiled(
        graphs, soc.soc_model, soc.htp_arch, versions.qairt, seconds, worker.cpu_seconds,
        worker.peak_bytes,
    )  # fmt: skip


def _asked(entry: Path, entries: Sequence[Path], chip: str) -> dict[str, str]:
    """What onnxruntime is told of a graph: where to write it, and whether others share weights."""
    asked = {
        "ep.context_enable": "1",
        "ep.context_embed_mode": "0",
        "ep.context_file_path": f"{chip}/{entry.name}",
    }
    if len(entries) > 1:
        asked |= {
            "ep.share_ep_contexts": "1",
            "ep.stop_share_ep_contexts": str(int(entry == entries[-1])),
        }
    return asked


def _written(entry: Path, binary: Path, predicted: Traffic | None) -> CompiledGraph:
    return CompiledGraph(entry, (entry, binary), predicted)

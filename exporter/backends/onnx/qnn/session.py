"""Runs graphs on Qualcomm's NPU, or on its emulator, each in a process of its own."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from exporter.backends.contract import Session
from exporter.backends.onnx.qnn import provider
from exporter.backends.onnx.qnn.log import float_islands
from exporter.backends.onnx.qnn.process import Order, Refused, Worker, opened
from exporter.backends.onnx.qnn.socs import (
    DEVICE,
    SOCS,
    is_emulated,
    soc_here,
    soc_of_device,
    soc_to_run,
)
from exporter.errors import CheckFailed, InputError
from exporter.package.manifest import ContextEntry, NpuEntry

MOST_NAMED = 5  # operators in a line
DEVICES = (DEVICE, *(f"{DEVICE}:{name}" for name in SOCS))


def open_graph(entry: Path, device: str) -> Session:
    """Open a graph, or one that was compiled, with nothing left to the processor.

    Raises InputError without onnxruntime-qnn, CheckFailed naming operators that the NPU lacks.
    """
    provider.require()
    try:
        worker: Session = whole(Order(str(entry.absolute()), soc_to_run(device)), entry)
    except Refused as refused:
        raise CheckFailed(worded(entry, refused)) from None
    return worker


def whole(order: Order, entry: Path) -> Worker:
    """Open a graph that computes with whole numbers alone.

    Raises Refused, also for one of which the compiler keeps an operator in floats.
    """
    with tempfile.TemporaryDirectory(prefix="fourstep-npu-") as dumps:
        options = {**order.options, "dump_json_qnn_graph": "1", "json_qnn_graph_dir": dumps}
        worker = opened(replace(order, options=options))
        islands = float_islands(Path(dumps))
    if not islands:
        return worker
    worker.close()
    named = ", ".join(f"{kind} '{name}'" for name, kind in list(islands.items())[:MOST_NAMED])
    raise Refused(f"{entry}: graph {entry.stem}: the NPU computes in floats: {named}", {}, False)


def worded(entry: Path, refused: Refused) -> str:
    """Why a graph is not taken, naming it and the operators that would fall back."""
    if not refused.nodes:
        return str(refused)
    nodes = list(refused.nodes.items())
    named = ", ".join(f"{kind} '{name}'" for name, kind in nodes[:MOST_NAMED])
    more = f" and {len(nodes) - MOST_NAMED} more" if len(nodes) > MOST_NAMED else ""
    return (
        f"{entry}: graph {entry.stem}: the NPU lacks {named}{more}; build the package with "
        'target = "qnn" in [onnx] and scheme w8a16 or w4a16'
    )


def fitting(npu: NpuEntry, device: str) -> ContextEntry | None:
    """The context for a device; None: the graph is compiled when it is opened.

    On the emulator a graph is compiled unless a chip is named; where contexts stand in its place,
    the first of them is opened. Raises InputError for a context of a later QAIRT, for one that the
    emulator cannot open, and on a device whose chip none of several is for.
    """
    contexts = npu.contexts
    soc = soc_of_device(device) or (None if is_emulated() else soc_here())
    if soc is None and npu.alone and is_emulated():
        soc = contexts[0].soc
    if not contexts or (soc is None and not npu.alone):
        return None
    found = next((context for context in contexts if context.soc == soc), None)
    if found is None:
        there, name = ", ".join(context.soc for context in contexts), soc or "this chip"
        raise InputError(
            f"nothing in the package was compiled for {name}; it has {there}; add {name} to socs "
            "in [onnx] and build it again",
            field="device",
        )
    refuse_qairt(found, provider.require().qairt)
    if found.shared and is_emulated():
        remedy = 'build it with contexts = "beside" in [onnx]' if npu.alone else "say --device HTP"
        raise InputError(
            f"{found.entry}: its sizes share the weights of one context, which the emulator cannot "
            f"open; to compile the graph as it is opened, {remedy}",
            field="device",
        )
    return found


def refuse_qairt(context: ContextEntry, installed: str) -> None:
    """Raise InputError for a context that these libraries of Qualcomm's do not read."""
    made, here = (_version(text) for text in (context.qairt, installed))
    if made[0] == here[0] and made <= here:
        return
    raise InputError(
        f"{context.entry} was compiled with QAIRT {context.qairt}, and QAIRT {installed} is "
        f"installed, which does not read it; install an onnxruntime-qnn with QAIRT "
        f"{context.qairt} or a later {made[0]}.x, or build the package again",
        field="device",
    )


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))

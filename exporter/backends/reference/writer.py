"""Writes a program as it is: operators as JSON, tensors as safetensors, one after the other."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from exporter.backends.reference.ops import DTYPES, TABLE
from exporter.program import aten
from exporter.quantize.program import QuantizedProgram


def write_graph(
    program: QuantizedProgram, read: Callable[[object], Tensor], folder: Path
) -> tuple[Path, Path]:
    """Write ``<name>.json`` and ``<name>.safetensors`` into ``folder``."""
    file, values = folder / f"{program.name}.json", folder / f"{program.name}.safetensors"
    graph = {
        "name": program.name,
        "inputs": [asdict(port) for port in program.inputs],
        "outputs": [asdict(port) for port in program.outputs],
        "feeds": [node.name for node in program.feeds()],
        "tensors": list(program.tensors),
        "nodes": [
            {
                "name": node.name,
                "operator": aten.translation(TABLE, node, program.name, "reference"),
                "arguments": _described(node.args),
                "options": _described(dict(node.kwargs)),
            }
            for node in program.nodes()
        ],
        "results": [node.name for node in program.results()],
    }
    file.write_text(json.dumps(graph, indent=1) + "\n", encoding="utf-8", newline="\n")
    _write_tensors(program, read, values)
    return file, values


def _described(argument: object) -> Any:
    """An argument as JSON: the value of a node by its name, a type by its name, numbers."""
    if isinstance(argument, fx.Node):
        return {"value": argument.name}
    if isinstance(argument, torch.dtype):
        return {"dtype": str(argument).removeprefix("torch.")}
    if isinstance(argument, list | tuple):
        return [_described(part) for part in argument]
    if isinstance(argument, dict):
        return {key: _described(part) for key, part in argument.items()}
    assert argument is None or isinstance(argument, bool | int | float | str)
    return argument


def _write_tensors(program: QuantizedProgram, read: Callable[[object], Tensor], file: Path) -> None:
    """A safetensors file, its header made of shapes, so that one tensor is held at a time."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    header: dict[str, Any] = {}
    end = 0
    for name in program.tensors:
        value = nodes[name].meta["val"]
        start, end = end, end + value.numel() * value.dtype.itemsize
        place = {"shape": list(value.shape), "data_offsets": [start, end]}
        header[name] = {"dtype": DTYPES[value.dtype], **place}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, source in program.tensors.items():
            value, expected = read(source).contiguous(), nodes[name].meta["val"]
            assert (value.shape, value.dtype) == (expected.shape, expected.dtype), name
            stream.write(value.numpy().tobytes())

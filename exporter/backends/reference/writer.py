"""Writes a program as it is: operators as JSON, tensors as safetensors, one after the other."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from exporter.backends.reference.ops import DTYPES, TABLE
from exporter.program import aten
from exporter.program.program import Constant
from exporter.quantize.program import Part, QuantizedProgram


def write_graph(
    program: QuantizedProgram, read: Callable[[object], Tensor], folder: Path
) -> tuple[Path, Path]:
    """Write ``<name>.json`` and ``<name>.safetensors`` into ``folder``."""
    return write_graphs({program.name: program}, read, folder)[program.name]


def write_graphs(
    programs: Mapping[str, QuantizedProgram], read: Callable[[object], Tensor], folder: Path
) -> dict[str, tuple[Path, Path]]:
    """Write programs with the same weights: each as ``<key>.json``, all with one file of tensors.

    The names of tensors that are not those of a program before have its key in front.
    """
    first = next(iter(programs))
    values = folder / f"{first}.safetensors"
    places: dict[object, str] = {}
    stored: dict[str, tuple[QuantizedProgram, str]] = {}
    written = {}
    for key, program in programs.items():
        names = _names(program, "" if key == first else f"{key}/", places, stored)
        file = folder / f"{key}.json"
        graph = _graph(program, [*names] if key == first else names)
        indent, separators = (1, None) if key == first else (None, (",", ":"))
        text = json.dumps(graph, indent=indent, separators=separators)
        file.write_text(text + "\n", encoding="utf-8", newline="\n")
        written[key] = (file, values)
    _write_tensors(stored, read, values)
    return written


def _names(
    program: QuantizedProgram,
    prefix: str,
    places: dict[object, str],
    stored: dict[str, tuple[QuantizedProgram, str]],
) -> dict[str, str]:
    """What each tensor is called in the file.

    Args:
        places: names by what a tensor is, of programs before; those of this one are added.
        stored: for each name the program and its tensor; added to as well.
    """
    found = {}
    for name, source in program.tensors.items():
        known = places.get(_identity(source)) if prefix else None
        found[name] = known or prefix + name
        stored.setdefault(found[name], (program, name))
    for name, source in program.tensors.items():
        places.setdefault(_identity(source), found[name])
    return found


def _identity(source: object) -> object:
    """What two programs' tensors are compared by: where they come from, or their values."""
    if isinstance(source, Constant):
        return str(source.value.dtype), source.value.shape, source.value.tobytes()
    if isinstance(source, Part) and source.columns is not None:
        return replace(source, columns=None), _identity(source.columns)
    return source


def _graph(program: QuantizedProgram, tensors: list[str] | dict[str, str]) -> dict[str, Any]:
    """A program as JSON; ``tensors``: by the names in their file, where those are others."""
    return {
        "name": program.name,
        "inputs": [asdict(port) for port in program.inputs],
        "outputs": [asdict(port) for port in program.outputs],
        "feeds": [node.name for node in program.feeds()],
        "tensors": tensors,
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


def _write_tensors(
    stored: Mapping[str, tuple[QuantizedProgram, str]],
    read: Callable[[object], Tensor],
    file: Path,
) -> None:
    """A safetensors file, its header made of shapes, so that one tensor is held at a time.

    Args:
        stored: for each name in the file a program and its tensor.
    """
    header: dict[str, Any] = {}
    end = 0
    expected = {name: _placeholder(*place) for name, place in stored.items()}
    for name, value in expected.items():
        start, end = end, end + value.numel() * value.dtype.itemsize
        place = {"shape": list(value.shape), "data_offsets": [start, end]}
        header[name] = {"dtype": DTYPES[value.dtype], **place}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, (program, tensor) in stored.items():
            value = read(program.tensors[tensor]).contiguous()
            assert (value.shape, value.dtype) == (expected[name].shape, expected[name].dtype), name
            stream.write(value.numpy().tobytes())


def _placeholder(program: QuantizedProgram, tensor: str) -> Tensor:
    """The shape and type of a program's tensor, without values."""
    node = next(n for n in program.graph.nodes if n.op == "placeholder" and n.name == tensor)
    value: Tensor = node.meta["val"]
    return value

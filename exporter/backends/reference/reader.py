"""Reads what ``writer`` wrote: the same program, its tensors read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from exporter.backends.reference.ops import BY_NAME
from exporter.errors import CheckFailed
from exporter.files.read import read_json
from exporter.files.tensors import open_tensors
from exporter.package.manifest import Port
from exporter.program.program import Program

DTYPES = {"float32": torch.float32, "int32": torch.int32}


def read_graph(
    file: Path, values: Path | None = None
) -> tuple[Program, Callable[[object], Tensor]]:
    """A program, and what reads its tensors; raises whatever damaged files lead to.

    Args:
        values: the file of its tensors; None: the one beside it of the same name.
    """
    raw = read_json(file, CheckFailed)
    graph, env = fx.Graph(), dict[str, fx.Node]()
    for name in [*raw["feeds"], *raw["tensors"]]:
        env[name] = graph.placeholder(name)
        env[name].name = name
    for node in raw["nodes"]:
        arguments, options = _value(node["arguments"], env), _value(node["options"], env)
        target = BY_NAME[node["operator"]]
        made = graph.call_function(target, tuple(arguments), options)
        env[node["name"]] = made
    graph.output(tuple(env[name] for name in raw["results"]))
    inputs, outputs = (
        tuple(Port(p["name"], tuple(p["shape"]), p["dtype"]) for p in raw[side])
        for side in ("inputs", "outputs")
    )
    tensors = open_tensors(values or file.with_suffix(".safetensors"), "pt", CheckFailed)
    named = raw["tensors"]
    names = dict(named) if isinstance(named, dict) else {name: name for name in named}
    if {*names.values()} - {*tensors.keys()}:
        raise ValueError("a tensor of the graph is not in its file")
    return Program(raw["name"], inputs, outputs, graph, names), tensors.get_tensor


def _value(raw: Any, env: Mapping[str, fx.Node]) -> Any:
    """An argument that ``writer`` described."""
    if isinstance(raw, list):
        return [_value(part, env) for part in raw]
    if not isinstance(raw, dict):
        return raw
    if [*raw] == ["value"]:
        return env[raw["value"]]
    if [*raw] == ["dtype"]:
        return DTYPES[raw["dtype"]]
    return {key: _value(part, env) for key, part in raw.items()}

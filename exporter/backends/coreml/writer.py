"""Writes a ``.mlpackage``: the program's message, its weights, the manifest."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from exporter.backends.coreml import ops
from exporter.backends.coreml.emitter import Blobs, Emitter, empty_model
from exporter.files.differences import SUFFIX, applied, differences
from exporter.files.read import read_bytes
from exporter.files.staging import writing
from exporter.program import aten
from exporter.quantize.program import QuantizedProgram

AUTHOR = "com.apple.CoreML"
MODEL_FILE = Path("Data", AUTHOR, "model.mlmodel")
MAIN = "main"  # the function of a package that has one
FUNCTION_SHARE = 0.01  # of the weights' bytes; a function's operators take less


def write_graph(
    program: QuantizedProgram, read: Callable[[object], Tensor], folder: Path, target: str
) -> Path:
    """Write ``<name>.mlpackage`` into ``folder`` for a target: iOS17 or iOS18."""
    return write_graphs({program.name: program}, read, folder, target)[program.name].package


@dataclass(frozen=True)
class Written:
    """Where a graph is.

    Attributes:
        package: a ``.mlpackage``, which holds its weights.
        function: its function of that package.
        model: a file that says how its model differs from the package's, or None.
    """

    package: Path
    function: str = MAIN
    model: Path | None = None

    @property
    def base(self) -> Path:
        """The package's own model."""
        return self.package / MODEL_FILE

    def content(self) -> bytes:
        """Its model."""
        own = read_bytes(self.base)
        return own if self.model is None else applied(read_bytes(self.model), own)


def write_graphs(
    programs: Mapping[str, QuantizedProgram],
    read: Callable[[object], Tensor],
    folder: Path,
    target: str,
) -> dict[str, Written]:
    """Write programs with the same weights, which the first one's ``.mlpackage`` holds.

    iOS 18 has packages of several functions: there the others are functions called as their keys,
    which a device keeps with one copy of the weights. iOS 17 has none, and of few weights a
    function's operators would be a good part: then each of the others is a model of its own over
    the same weights, kept as what differs from the first one's.
    """
    first, *others = programs
    package = folder / f"{first}.mlpackage"
    weights = package / "Data" / AUTHOR / "weights" / "weight.bin"
    weights.parent.mkdir(parents=True)
    models, described = {}, {}
    with writing(weights):
        blobs = Blobs(weights, len(programs))
        for name, program in programs.items():
            models[name] = empty_model(target)
            described[name] = _emitted(program, read, blobs, target).add_to(models[name])
            blobs.next_graph()
        blobs.close()
    most_bytes = FUNCTION_SHARE * weights.stat().st_size if target == "iOS18" else 0
    joined = bool(others) and all(models[name].ByteSize() < most_bytes for name in others)
    _describe(models, described, joined)
    (package / MODEL_FILE).write_bytes(models[first].SerializeToString(deterministic=True))
    _write_contents(package, programs[first].name)
    found = {first: Written(package)}
    for name in others:
        found[name] = Written(package, name) if joined else _apart(package, name, models[name])
    return found


def _emitted(
    program: QuantizedProgram, read: Callable[[object], Tensor], blobs: Blobs, target: str
) -> Emitter:
    """A program's operators, its weights in the file."""
    emitter = Emitter(program, read, blobs, target)
    for node in program.nodes():
        translate = aten.translation(ops.TABLE, node, program.name, "Core ML")
        emitter.settle(node, translate(emitter, node))
    return emitter


def _describe(models: Mapping[str, Any], described: Mapping[str, Any], joined: bool) -> None:
    """Say what models take and give; or make all of them functions of the first, and say it there.

    A package that has one function calls it ``main`` and does not speak of functions.
    """
    first, *others = models
    if not joined:
        for name, model in models.items():
            model.description.input.extend(described[name].input)
            model.description.output.extend(described[name].output)
        return
    whole = models[first]
    for name in others:
        whole.mlProgram.functions[name].CopyFrom(models[name].mlProgram.functions[MAIN])
        described[name].name = name
    whole.description.functions.extend(described.values())
    whole.description.defaultFunctionName = MAIN


def _apart(package: Path, name: str, model: Any) -> Written:
    """Write beside a package how another model over its weights differs from its own."""
    content = model.SerializeToString(deterministic=True)
    edits = package.with_name(f"{name}.mlmodel{SUFFIX}")
    edits.write_bytes(differences(content, read_bytes(package / MODEL_FILE)))
    return Written(package, model=edits)


def _write_contents(package: Path, name: str) -> None:
    """``Manifest.json``, with identifiers that depend on the graph's name alone."""
    parts = [("model.mlmodel", "Specification"), ("weights", "Weights")]
    items = {
        str(uuid.uuid5(uuid.NAMESPACE_OID, f"fourstep {name} {path}")): {
            "author": AUTHOR,
            "description": f"CoreML Model {kind}",
            "name": path,
            "path": f"{AUTHOR}/{path}",
        }
        for path, kind in parts
    }
    root = next(key for key, item in items.items() if item["name"] == "model.mlmodel")
    contents = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": items,
        "rootModelIdentifier": root,
    }
    (package / "Manifest.json").write_text(
        json.dumps(contents, indent=4) + "\n", encoding="utf-8", newline="\n"
    )

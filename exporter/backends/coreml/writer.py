"""Writes a ``.mlpackage``: the program's message, its weights, the manifest."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
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

    iOS 18 has packages of several functions: the others are functions called as their keys. iOS 17
    has none: there each of the others is a model of its own over the same weights, kept as what
    differs from the first one's.
    """
    first, *others = programs
    package = folder / f"{first}.mlpackage"
    inside = package / "Data" / AUTHOR
    (inside / "weights").mkdir(parents=True)
    models = {first: empty_model(target)}
    with writing(inside / "weights" / "weight.bin"):
        blobs = Blobs(inside / "weights" / "weight.bin", len(programs))
        described = []
        for name, program in programs.items():
            together = target == "iOS18" or name == first
            model = models[first] if together else models.setdefault(name, empty_model(target))
            emitter = _emitted(program, read, blobs, target)
            function = name if together and name != first else MAIN
            described.append(emitter.add_to(model, function))
            if function != MAIN:
                _shorten(model.mlProgram.functions[function])
            blobs.next_graph()
        blobs.close()
    _describe(models, described)
    (package / MODEL_FILE).write_bytes(models[first].SerializeToString(deterministic=True))
    _write_contents(package, programs[first].name)
    found = {first: Written(package)}
    for name in others:
        if target == "iOS18":
            found[name] = Written(package, name)
            continue
        own = folder / f"{name}.mlmodel{SUFFIX}"
        content = models[name].SerializeToString(deterministic=True)
        own.write_bytes(differences(content, read_bytes(package / MODEL_FILE)))
        found[name] = Written(package, model=own)
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


def _shorten(function: Any) -> None:
    """Call a function's values by short words, but for its inputs and outputs.

    Each stands there three times and more, and nobody reads those of a further size.
    """
    (block,) = function.block_specializations.values()
    kept = {*(port.name for port in function.inputs), *block.outputs}
    names = {name: name for name in kept}
    for operation in block.operations:
        for output in operation.outputs:
            output.name = names.setdefault(output.name, f"_{np.base_repr(len(names), 36)}")
        called = operation.attributes["name"].immediateValue.tensor.strings
        called.values[:] = [operation.outputs[0].name]
        for given in operation.inputs.values():
            for argument in given.arguments:
                if argument.HasField("name"):
                    argument.name = names[argument.name]


def _describe(models: Mapping[str, Any], described: Sequence[Any]) -> None:
    """Say what models take and give: of one function each, or of all of them in the first."""
    if len(models) == len(described):
        for model, one in zip(models.values(), described, strict=True):
            model.description.input.extend(one.input)
            model.description.output.extend(one.output)
        return
    (model,) = models.values()
    model.description.functions.extend(described)
    model.description.defaultFunctionName = MAIN


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

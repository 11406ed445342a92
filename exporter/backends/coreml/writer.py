"""Writes a ``.mlpackage``: the program's message, its weights, the manifest."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from exporter.backends.coreml import ops
from exporter.backends.coreml.emitter import Emitter
from exporter.files.staging import writing
from exporter.program import aten
from exporter.quantize.program import QuantizedProgram

AUTHOR = "com.apple.CoreML"


def write_graph(
    program: QuantizedProgram, read: Callable[[object], Tensor], folder: Path, target: str
) -> Path:
    """Write ``<name>.mlpackage`` into ``folder`` for a target: iOS17 or iOS18."""
    package = folder / f"{program.name}.mlpackage"
    inside = package / "Data" / AUTHOR
    (inside / "weights").mkdir(parents=True)
    weights = inside / "weights" / "weight.bin"
    with writing(weights):
        emitter = Emitter(program, read, weights, target)
        for node in program.nodes():
            translate = aten.translation(ops.TABLE, node, program.name, "Core ML")
            emitter.settle(node, translate(emitter, node))
        model = emitter.model()
        emitter.close()
    (inside / "model.mlmodel").write_bytes(model.SerializeToString(deterministic=True))
    _write_contents(package, program.name)
    return package


def _write_contents(package: Path, name: str) -> None:
    """``Manifest.json``, with identifiers that depend on the graph's name alone."""
    items = {
        str(uuid.uuid5(uuid.NAMESPACE_OID, f"fourstep {name} {path}")): {
            "author": AUTHOR,
            "description": f"CoreML Model {kind}",
            "name": path,
            "path": f"{AUTHOR}/{path}",
        }
        for path, kind in (("model.mlmodel", "Specification"), ("weights", "Weights"))
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

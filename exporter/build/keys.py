"""What decides the bytes of one emitted graph, as a digest: the key of the shared cache.

A backend is a function of the programs that it is given, of the values that it reads for their
tensors, and of what the recipe chooses for it. So the key is made of just these: every operator,
every constant, every tensor of the checkpoint by the digest of its values, formats and methods,
what calibration found for the layers, versions and code. Nothing of a recipe is in it that does not
reach the graph: another prompt, another size of the picture or another graph's scheme leaves it as
it is.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from exporter.backends.contract import Backend, EmitOptions
from exporter.build.resume import code_of
from exporter.build.write import tools_of
from exporter.calibrate.store import Calibration
from exporter.checkpoint.open import Checkpoint
from exporter.package.sizes import PictureSize
from exporter.program.program import Constant, Folded, Stored
from exporter.quantize.program import Methods, Part, QuantizedProgram, Unrounded

FORMAT = 1  # of keys: another one where what is digested changes
# Besides a backend's own: what computes codes and writes files.
LIBRARIES = ("numpy", "safetensors", "torch", "protobuf")


def digest_of(facts: object) -> str:
    """SHA-256 of JSON data."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@functools.cache
def libraries() -> dict[str, str]:
    """Versions of what decides bytes besides a backend's tools."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = ""
    return found


@dataclass(frozen=True)
class Sources:
    """Where the values of programs' tensors come from."""

    checkpoint: Checkpoint
    calibration: Calibration | None

    def described(self, source: object) -> list[Any]:
        """A tensor's source with the digests of everything that its value is computed from."""
        if isinstance(source, Constant):
            return ["constant", _value(source.value)]
        if isinstance(source, Folded):
            return ["folded", _value(source.compute())]
        if isinstance(source, Stored):
            return ["stored", *self._stored(source, frozenset())]
        if isinstance(source, Part):
            columns = _value(source.columns.value) if source.columns is not None else None
            own = self._stored(source.of, source.methods)
            return [
                "part",
                source.part,
                asdict(source.format),
                sorted(source.methods),
                columns,
                own,
            ]
        if isinstance(source, Unrounded):
            behind = self._stored(source.weight, source.methods) if source.weight else None
            form = asdict(source.format) if source.format else None
            own = self._stored(source.of, source.methods)
            return ["unrounded", sorted(source.methods), form, source.rows, behind, own]
        raise TypeError(f"a source of {type(source).__name__}")  # a defect: one that is new

    def _stored(self, source: Stored, methods: Methods) -> list[Any]:
        place = [source.component, source.name, list(source.shape), repr(source.derivation)]
        value = self.checkpoint.tensor_sha256(source.component, source.name)
        if not methods or self.calibration is None:
            return [*place, value, None, None]
        equalized = "equalize" in methods
        scaling = self.calibration.scaling(source) if equalized else None
        scaled = [_tensor(t) for t in vars(scaling).values()] if scaling else None
        return [*place, value, self.calibration.layer_sha256(source), scaled]


def graph_key(
    backend: Backend,
    options: EmitOptions,
    programs: Mapping[PictureSize, QuantizedProgram],
    sources: Sources,
) -> str:
    """The digest of everything that decides a graph's files and what a manifest says of it.

    Args:
        options: what the recipe decides for this backend.
        programs: what is emitted, by size, the first one first; inputs rounded.
    """
    return digest_of(
        {
            "format": FORMAT,
            "backend": backend.name,
            "choices": dict(options.choices),
            "widened": options.is_widened,
            "tools": tools_of(backend, options.choices),
            "libraries": libraries(),
            "code": code_of(backend),
            "sizes": [str(size) for size in programs] if len(programs) > 1 else [],
            "programs": [_program(program, sources) for program in programs.values()],
        }
    )


def _program(program: QuantizedProgram, sources: Sources) -> dict[str, Any]:
    return {
        "name": program.name,
        "inputs": [asdict(port) for port in program.inputs],
        "outputs": [asdict(port) for port in program.outputs],
        "operators": [_operator(node) for node in program.graph.nodes],
        "tensors": [[name, sources.described(s)] for name, s in sorted(program.tensors.items())],
        "formats": {name: asdict(form) for name, form in program.formats.items()},
        "adjusted": [asdict(one) for one in program.adjusted],
        "methods": sorted(program.methods),
    }


def _operator(node: fx.Node) -> list[str]:
    """A node; other nodes among its arguments are their names, without quotes."""
    value = _shape(node.meta.get("val"))
    return [node.op, node.name, str(node.target), repr(node.args), repr(node.kwargs), value]


def _shape(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_shape, value))}]"
    return repr(value)


def _tensor(value: object) -> list[Any] | None:
    return _value(value.detach().numpy()) if isinstance(value, torch.Tensor) else None


def _value(value: np.ndarray) -> list[Any]:
    whole = np.ascontiguousarray(value)
    return [str(whole.dtype), list(whole.shape), hashlib.sha256(whole.tobytes()).hexdigest()]

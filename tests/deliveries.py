"""Packages for tests of packs and deltas: files as large as is asked, and other weights in them.

They are a package that is kept, in which graphs of external weights stand in the place of its own:
nothing here draws.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from exporter.backends.onnx.emitter import IR_VERSION, OPSET
from exporter.package.read import read_manifest
from tests.conftest import ROOT, seal

KEPT = ROOT / "tests/packages/4.0/onnx-int8"
GRAPHS: Mapping[str, tuple[int, ...]] = {  # bytes of the tensors of a graph
    "clip_l": (60_000, 100, 45_000, 3000, 3000, 200),
    "t5": (20_000, 512, 512, 30_000),
    "denoiser": (50, 150_000, 900, 130_000, 900, 130_000, 900, 64),
}
ALIGN_BYTES = 64
KINDS = {"float32": TensorProto.FLOAT, "int32": TensorProto.INT32}
Tensor = tuple[str, int, int]  # path of its file, offset and size in bytes


def weighty(target: Path, seed: int = 0) -> Path:
    """The kept package with graphs of random weights, which do not compress."""
    shutil.copytree(KEPT, target)
    for graph, sizes in GRAPHS.items():
        write_weights(target, graph, sizes, seed)
    return resealed(target)


def write_weights(package: Path, graph: str, sizes: Iterable[int], seed: int = 0) -> None:
    """An ONNX graph whose tensors lie in a file beside it, as exporters align them."""
    random = np.random.default_rng([seed, len(graph)])
    file, content, tensors = package / f"graphs/{graph}/{graph}.onnx", bytearray(), []
    for i, size in enumerate(sizes):
        content += bytes(-len(content) % ALIGN_BYTES)
        tensor = TensorProto(name=f"t{i}", data_type=TensorProto.UINT8, dims=[size])
        tensor.data_location = TensorProto.EXTERNAL
        told = {"location": f"{file.name}.data", "offset": len(content), "length": size}
        for key, value in told.items():
            tensor.external_data.add(key=key, value=str(value))
        content += random.bytes(size)
        tensors.append(tensor)
    (entry,) = (g for g in read_manifest(KEPT).graphs if g.name == graph)
    inputs, outputs = (
        [onnx.helper.make_tensor_value_info(p.name, KINDS[p.dtype], p.shape) for p in ports]
        for ports in (entry.inputs, entry.outputs)
    )
    model = onnx.helper.make_model(
        onnx.helper.make_graph([], graph, inputs, outputs, tensors),
        ir_version=IR_VERSION,
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
    )
    file.write_bytes(model.SerializeToString())
    Path(f"{file}.data").write_bytes(content)


def tensors_of(package: Path, graph: str) -> list[Tensor]:
    """The external tensors of an ONNX graph, as the ``onnx`` library reads them, largest first."""
    file = package / "graphs" / graph / f"{graph}.onnx"
    model = onnx.load(str(file), load_external_data=False)
    told = [{e.key: e.value for e in t.external_data} for t in model.graph.initializer]
    found = {
        (f"graphs/{graph}/{t['location']}", int(t["offset"]), int(t["length"])) for t in told if t
    }
    return sorted(found, key=lambda tensor: -tensor[2])


def with_other(package: Path, target: Path, tensors: Iterable[Tensor], seed: int = 9) -> Path:
    """A copy of a package with random bytes in place of some of its tensors."""
    random = np.random.default_rng(seed)
    shutil.copytree(package, target)
    for path, offset, size in tensors:
        with (target / path).open("r+b") as stream:
            stream.seek(offset)
            stream.write(random.bytes(size))
    return resealed(target)


def with_large_file(package: Path, target: Path, size_bytes: int, seed: int | None = 0) -> Path:
    """A copy of a package with a file of random bytes, or without a seed of few that are not 0."""
    shutil.copytree(package, target)
    with (target / "weights.bin").open("wb") as stream:
        for start in range(0, size_bytes, 1 << 20):
            size = min(1 << 20, size_bytes - start)
            few = start.to_bytes(8, "little").ljust(size, b"\0")
            random = None if seed is None else np.random.default_rng([seed, start])
            stream.write(random.bytes(size) if random else few)
    manifest = json.loads((target / "manifest.json").read_text())
    listed = {entry["path"] for entry in manifest["files"]}
    if "weights.bin" not in listed:
        manifest["files"].append({"path": "weights.bin", "bytes": 0, "sha256": "0" * 64})
    seal(target, manifest)
    return resealed(target)


def resealed(package: Path) -> Path:
    """The same package, its manifest with the sizes and digests of the files as they are."""
    manifest = json.loads((package / "manifest.json").read_text())
    for graph in manifest["graphs"]:
        data = f"{graph['entry']}.data"
        if (package / data).is_file() and data not in {file["path"] for file in graph["files"]}:
            graph["files"].append({"path": data})
    entries = [*manifest["files"], *(f for g in manifest["graphs"] for f in g["files"])]
    for entry in entries:
        with (package / entry["path"]).open("rb") as stream:
            entry["sha256"] = hashlib.file_digest(stream, "sha256").hexdigest()
            entry["bytes"] = stream.tell()
    seal(package, manifest)
    return package

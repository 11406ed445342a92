"""Reads an ``.xml`` of OpenVINO's as far as it takes to say that no other emitter wrote it.

No OpenVINO. Elements that are not named here are refused: bodies of loops and branches, and
settings for the runtime that a package has no business with.
"""

from __future__ import annotations

import math
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from xml.parsers import expat

from exporter.backends.contract import WEIGHTS, GraphFiles
from exporter.backends.openvino.operators import IR_VERSION, OPERATORS, SHARED_BYTES
from exporter.files.differences import SUFFIX
from exporter.package.manifest import Port

CHUNK_BYTES = 1 << 16
MOST_SILENT_CHUNKS = 32  # in which no element begins
MOST_ELEMENTS = 500_000
MOST_DEPTH = 16
INSIDE = {
    "": {"net"},
    "net": {"layers", "edges", "rt_info"},
    "layers": {"layer"},
    "layer": {"data", "input", "output"},
    "input": {"port"},
    "output": {"port"},
    "port": {"dim"},
    "edges": {"edge"},
    "rt_info": {"runtime_options"},
    "runtime_options": {"ACTIVATIONS_SCALE_FACTOR"},
}  # which elements an element holds
FREE = {
    "port": {"rt_info"},
    "layer": {"rt_info"},
}  # besides, in a user's; what they hold is as it is
BITS = {
    "f32": 32, "f16": 16, "bf16": 16, "f64": 64, "i64": 64, "i32": 32, "i16": 16, "i8": 8, "i4": 4,
    "u64": 64, "u32": 32, "u16": 16, "u8": 8, "u4": 4, "u3": 3, "u2": 2, "u1": 1, "boolean": 8,
    "f8e4m3": 8, "f8e5m2": 8, "f8e8m0": 8, "nf4": 4, "f4e2m1": 4,
}  # fmt: skip
PORTS = {"f32": "float32", "i32": "int32"}
OPSET = re.compile(r"opset[0-9]{1,2}")
SIZE = re.compile(r"[0-9]{1,15}")


@dataclass
class _Walk:
    """What was found so far.

    Attributes:
        path: the elements that are open, the outermost first.
        layer: type and name of the layer that is open.
        shape: of a parameter that is open: sizes of the axes and the type of its values.
        inputs: what parameters take.
        elements: how many began.
        large_bytes: of the constants that stand for one layer alone.
        small_bytes: of all others, some of which lie in one place.
    """

    graph: GraphFiles
    weights: str
    path: list[str] = field(default_factory=list)
    layer: tuple[str, str] = ("", "")
    shape: tuple[tuple[int, ...], str] | None = None
    inputs: list[Port] = field(default_factory=list)
    elements: int = 0
    large_bytes: int = 0
    small_bytes: int = 0


def check_graph(graph: GraphFiles) -> dict[str, int]:
    """Bytes used of its weights; raises ValueError for a graph that the emitter does not write."""
    if set(graph.texts) != {graph.entry} or not graph.entry.endswith((".xml", f".xml{SUFFIX}")):
        raise ValueError("it is not one .xml with a .bin beside it")
    beside = posixpath.join(posixpath.dirname(graph.entry), graph.settings.get(WEIGHTS, ""))
    walk = _Walk(graph, beside if WEIGHTS in graph.settings else graph.entry[:-4] + ".bin")
    parser = expat.ParserCreate()
    parser.StartElementHandler = lambda name, attributes: _start(walk, name, attributes)
    parser.EndElementHandler = lambda name: _end(walk)
    parser.StartDoctypeDeclHandler = _refuse_document_type
    parser.EntityDeclHandler = _refuse_document_type
    _feed(parser, graph.texts[graph.entry], walk)
    if graph.is_own and sorted(walk.inputs, key=str) != sorted(graph.inputs, key=str):
        raise ValueError("its inputs are not those of the manifest")
    if walk.large_bytes > graph.sizes.get(walk.weights, 0):
        raise ValueError(
            f"constants of {walk.large_bytes:,} bytes in {walk.weights}, which is less"
        )
    return {walk.weights: walk.large_bytes + walk.small_bytes}


def _feed(parser: expat.XMLParserType, text: memoryview, walk: _Walk) -> None:
    silent, before = 0, 0
    try:
        for start in range(0, len(text), CHUNK_BYTES):
            parser.Parse(bytes(text[start : start + CHUNK_BYTES]), False)
            silent = silent + 1 if walk.elements == before else 0
            before = walk.elements
            if silent > MOST_SILENT_CHUNKS:
                raise ValueError("an element of more than 2 MB")
        parser.Parse(b"", True)
    except expat.ExpatError as error:
        raise ValueError(f"not XML: {error}") from None


def _refuse_document_type(*_: object) -> None:
    raise ValueError("a document type, whose entities could grow without end")


def _start(walk: _Walk, name: str, attributes: Mapping[str, str]) -> None:
    walk.elements += 1
    if walk.elements > MOST_ELEMENTS or len(walk.path) >= MOST_DEPTH:
        raise ValueError("more elements, or deeper ones, than fourstep writes")
    inside = walk.path[-1] if walk.path else ""
    is_own = walk.graph.is_own
    free = not is_own and "rt_info" in walk.path
    known = INSIDE.get(inside, set()) | (set() if is_own else FREE.get(inside, set()))
    if name not in known and not (free or (not is_own and inside == "rt_info")):
        raise ValueError(
            f"an element <{name:.40}> in <{inside:.40}>, which fourstep does not write"
        )
    walk.path.append(name)
    if free:
        return
    if name == "net" and is_own and attributes.get("version") != IR_VERSION:
        raise ValueError(f"version {attributes.get('version')!r:.20} of OpenVINO's files")
    if name == "layer":
        _check_layer(walk, attributes)
    if name == "data":
        _check_data(walk, attributes)
    if name == "port" and inside == "output" and walk.shape is not None:
        shape, kind = walk.shape
        dtype = "int32" if PORTS[kind] == "int32" else "float32"
        walk.inputs.append(Port(attributes.get("names", ""), shape, dtype))  # type: ignore[arg-type]
        walk.shape = None


def _end(walk: _Walk) -> None:
    walk.path.pop()


def _check_layer(walk: _Walk, attributes: Mapping[str, str]) -> None:
    kind, version = attributes.get("type", ""), attributes.get("version", "")
    walk.layer, walk.shape = (kind, attributes.get("name", "")), None
    if walk.graph.is_own and OPERATORS.get(kind) != version:
        raise ValueError(f"operator '{kind:.60}' of {version:.40}, which fourstep does not write")
    if not OPSET.fullmatch(version):
        raise ValueError(f"operator '{kind:.60}' of {version:.40}, which is no set of OpenVINO's")


def _check_data(walk: _Walk, attributes: Mapping[str, str]) -> None:
    kind, name = walk.layer
    if kind == "Const":
        _check_constant(walk, name, attributes)
    if kind == "Parameter" and walk.graph.is_own:
        values = attributes.get("element_type", "")
        if values not in PORTS:
            raise ValueError(f"parameter {name!r:.80} takes {values!r:.20}")
        walk.shape = (_shape(attributes.get("shape", ""), name), values)


def _check_constant(walk: _Walk, name: str, attributes: Mapping[str, str]) -> None:
    """A constant has the bytes that its shape takes, and they lie in the file of weights."""
    values = attributes.get("element_type", "")
    if values not in BITS:
        raise ValueError(f"constant {name!r:.80}: values of type {values!r:.20}")
    needed = -(-math.prod(_shape(attributes.get("shape", ""), name)) * BITS[values] // 8)
    offset, size = (_number(attributes.get(key, ""), name) for key in ("offset", "size"))
    whole = walk.graph.sizes.get(posixpath.normpath(walk.weights), 0)
    if size != needed or offset + size > whole:
        raise ValueError(
            f"constant {name!r:.80}: {size:,} bytes from {offset:,} of {walk.weights}, which has "
            f"{whole:,}, and its shape takes {needed:,}"
        )
    if size > SHARED_BYTES:
        walk.large_bytes += size
    else:
        walk.small_bytes += size


def _shape(text: str, name: str) -> tuple[int, ...]:
    return tuple(_number(size.strip(), name) for size in text.split(",")) if text else ()


def _number(text: str, name: str) -> int:
    if not SIZE.fullmatch(text):
        raise ValueError(f"{name!r:.80}: {text!r:.40} is no size or place")
    return int(text)

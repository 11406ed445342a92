"""Reads an ``.onnx`` file as far as it takes to say that no other emitter wrote it. No onnx.

A field that is not read here is refused, also in messages below: functions, subgraphs, training
information, sparse tensors, and whatever later versions of ONNX bring.
"""

from __future__ import annotations

import math
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field

from exporter.backends.contract import GraphFiles
from exporter.backends.onnx.operators import IR_VERSIONS, OPERATORS, OPSETS
from exporter.files.wire import Wire, message_of, text_of
from exporter.package.manifest import Port

# Bits of a value by TensorProto.DataType; no strings and no complex numbers.
BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 16: 16,
    17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 25: 2, 26: 2,
}  # fmt: skip
TYPES = {1: "float32", 6: "int32"}  # of what goes in and out
EXTERNAL = 1  # of TensorProto.data_location
# Fields by number.
MODEL = {1: "ir_version", 2: "", 3: "", 4: "", 5: "", 6: "", 7: "graph", 8: "opset", 14: ""}
GRAPH = {1: "node", 2: "", 5: "initializer", 10: "", 11: "input", 12: "output", 13: ""}
NODE = {1: "", 2: "", 3: "", 4: "op_type", 5: "attribute", 6: "", 7: "domain"}
ATTRIBUTE = {1: "", 2: "", 3: "", 4: "", 7: "", 8: "", 9: "", 13: "", 20: ""}
OF_TENSOR = 5  # an attribute's, which only classifiers of users have
TENSOR = {
    1: "dims", 2: "data_type", 4: "", 5: "", 7: "", 8: "name", 9: "raw_data", 10: "", 11: "",
    12: "", 13: "external", 14: "location",
}  # fmt: skip
FOREIGN_MODEL = MODEL | {14: ""}
FOREIGN_GRAPH = GRAPH | {14: "", 16: ""}
FOREIGN_NODE = NODE | {9: ""}


@dataclass
class _Walk:
    """What was found so far.

    Attributes:
        external: bytes that tensors take in each file of weights.
    """

    graph: GraphFiles
    wire: Wire = field(default_factory=Wire)
    external: dict[str, int] = field(default_factory=dict)


NOTHING = GraphFiles("", (), (), {}, {}, {}, True)


def check_graph(graph: GraphFiles) -> dict[str, int]:
    """Bytes used of its weights; raises ValueError for a graph that the emitter does not write."""
    text = graph.texts.get(graph.entry)
    if text is None:
        raise ValueError("it is not one .onnx file with weights beside it")
    walk = _Walk(graph)
    opsets: dict[str, int] = {}
    graphs = []
    for name, value in _fields(walk, text, FOREIGN_MODEL if not graph.is_own else MODEL, "model"):
        if name == "ir_version" and graph.is_own and value not in IR_VERSIONS:
            raise ValueError(f"version {value} of ONNX's files, which fourstep does not write")
        if name == "opset":
            domain, version = _opset(walk, message_of(value))
            opsets[domain] = version
        if name == "graph":
            graphs.append(message_of(value))
    if len(graphs) != 1:
        raise ValueError(f"{len(graphs)} graphs in one file")
    for domain, version in opsets.items():
        if domain not in ("", "ai.onnx", "com.microsoft", "ai.onnx.ml") or (
            graph.is_own and version not in OPSETS.get(domain, ())
        ):
            raise ValueError(f"operators of '{domain}' {version}, which fourstep does not write")
    _check_graph(walk, graphs[0])
    if graph.is_own and set(graph.texts) - {graph.entry, *walk.external}:
        raise ValueError("it is not one .onnx file with weights beside it")
    for path, needed in walk.external.items():
        if needed > graph.sizes[path]:
            raise ValueError(f"tensors of {needed:,} bytes in {path}, which is smaller")
    return walk.external


def ports_of(
    wire: Wire, message: memoryview
) -> tuple[list[memoryview], tuple[Port, ...], tuple[Port, ...]]:
    """The nodes of a graph that holds nothing else but its inputs and outputs, and those."""
    walk, nodes = _Walk(NOTHING, wire), list[memoryview]()
    ports: dict[str, list[Port]] = {"input": [], "output": []}
    for name, value in _fields(walk, message, GRAPH, "graph"):
        if name == "node":
            nodes.append(message_of(value))
        elif name == "initializer":
            raise ValueError("a tensor in a graph that was compiled")
        elif name in ports:
            ports[name].append(_port(walk, message_of(value)))
    return nodes, tuple(ports["input"]), tuple(ports["output"])


def _check_graph(walk: _Walk, message: memoryview) -> None:
    ports: dict[str, list[Port]] = {"input": [], "output": []}
    for name, value in _fields(
        walk, message, GRAPH if walk.graph.is_own else FOREIGN_GRAPH, "graph"
    ):
        if name == "node":
            _check_node(walk, message_of(value))
        if name == "initializer":
            _check_tensor(walk, message_of(value))
        if name in ports and walk.graph.is_own:
            ports[name].append(_port(walk, message_of(value)))
    if walk.graph.is_own:
        for name, wanted in (("input", walk.graph.inputs), ("output", walk.graph.outputs)):
            if ports[name] != [*wanted]:
                raise ValueError(f"its {name}s are not those of the manifest")


def _check_node(walk: _Walk, message: memoryview) -> None:
    op_type = domain = ""
    is_own = walk.graph.is_own
    for name, value in _fields(walk, message, NODE if is_own else FOREIGN_NODE, "node"):
        if name == "op_type":
            op_type = text_of(value)
        if name == "domain":
            domain = text_of(value)
        if name == "attribute":
            _check_attribute(walk, message_of(value))
    kind = f"{domain}:{op_type}" if domain not in ("", "ai.onnx") else op_type
    if is_own and kind not in OPERATORS:
        raise ValueError(f"operator {kind!r:.80}, which fourstep does not write")


def _check_attribute(walk: _Walk, message: memoryview) -> None:
    known = ATTRIBUTE if walk.graph.is_own else ATTRIBUTE | {OF_TENSOR: "tensor"}
    for name, value in _fields(walk, message, known, "attribute (a subgraph, or a tensor)"):
        if name == "tensor":
            _check_tensor(walk, message_of(value))


def _check_tensor(walk: _Walk, message: memoryview) -> None:
    """A tensor has the bytes that its shape takes, here or in a file of weights."""
    dims: list[int] = []
    name, kind, location, raw = "", 0, 0, None
    place: dict[str, str] = {}
    for number, wire_type, value in walk.wire.fields(message):
        what = TENSOR.get(number)
        if what is None:
            raise ValueError(f"field {number} of a tensor, which fourstep does not write")
        if what == "dims":
            dims += walk.wire.packed(wire_type, value)
        elif what == "data_type":
            kind = int(value) if isinstance(value, int) else 0
        elif what == "name":
            name = text_of(value)
        elif what == "raw_data":
            raw = len(message_of(value))
        elif what == "external":
            key, said = _pair(walk, message_of(value))
            if key in place:
                raise ValueError(f"tensor {name!r:.80}: says its {key} twice")
            place[key] = said
        elif what == "location":
            location = int(value) if isinstance(value, int) else -1
    if kind not in BITS:
        raise ValueError(f"tensor {name!r:.80}: values of type {kind}")
    needed = -(-math.prod(dims) * BITS[kind] // 8)  # a dimension is at most 2^70 - 1 here
    if location == EXTERNAL:
        _check_place(walk, name, needed, place)
    elif location or place:
        raise ValueError(f"tensor {name!r:.80}: is neither here nor in a file")
    elif needed > len(message) * 8 or (raw is not None and raw != needed):
        raise ValueError(f"tensor {name!r:.80}: {dims} takes {needed:,} bytes, which it has not")


def _check_place(walk: _Walk, name: str, needed: int, place: dict[str, str]) -> None:
    sizes = walk.graph.sizes
    path = posixpath.normpath(
        posixpath.join(posixpath.dirname(walk.graph.entry), place.get("location", ""))
    )
    if path not in sizes or path == walk.graph.entry or "\\" in path:
        raise ValueError(
            f"tensor {name!r:.80}: is in {place.get('location')!r:.80}, no weights of it"
        )
    offset, length = (_number(place.get(key, "0")) for key in ("offset", "length"))
    if length != needed or offset + length > sizes[path]:
        raise ValueError(
            f"tensor {name!r:.80}: {length:,} bytes from {offset:,} of {path}, which has "
            f"{sizes[path]:,}, and its shape takes {needed:,}"
        )
    walk.external[path] = walk.external.get(path, 0) + length


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ValueError(f"{text!r:.40} is no place in a file")
    return int(text)


def _port(walk: _Walk, message: memoryview) -> Port:
    """An input or output; raises ValueError for one whose shape is not fixed."""
    name, kind = "", 0
    shape: tuple[int, ...] = ()
    for number, _, value in walk.wire.fields(message):
        if number == 1:
            name = text_of(value)
        elif number == 2:
            for of_type, _, tensor in walk.wire.fields(message_of(value)):
                if of_type != 1:
                    raise ValueError(f"'{name}' is no tensor")
                kind, shape = _tensor_type(walk, message_of(tensor))
    if kind not in TYPES:
        raise ValueError(f"{name!r:.80} has values of type {kind}")
    return Port(name, shape, "float32" if kind == 1 else "int32")


def _tensor_type(walk: _Walk, message: memoryview) -> tuple[int, tuple[int, ...]]:
    kind = 0
    shape: list[int] = []
    for number, _, value in walk.wire.fields(message):
        if number == 1 and isinstance(value, int):
            kind = value
        elif number == 2:
            for _, _, dimension in walk.wire.fields(message_of(value)):
                sizes = [v for n, _, v in walk.wire.fields(message_of(dimension)) if n == 1]
                shape += [size for size in sizes if isinstance(size, int)]
    return kind, tuple(shape)


def _opset(walk: _Walk, message: memoryview) -> tuple[str, int]:
    domain, version = "", 0
    for number, _, value in walk.wire.fields(message):
        if number == 1:
            domain = text_of(value)
        elif number == 2 and isinstance(value, int):
            version = value
    return domain, version


def _pair(walk: _Walk, message: memoryview) -> tuple[str, str]:
    found = {number: text_of(value) for number, _, value in walk.wire.fields(message)}
    return found.get(1, ""), found.get(2, "")


def _fields(
    walk: _Walk, message: memoryview, known: dict[int, str], what: str
) -> Iterator[tuple[str, int | memoryview]]:
    """The fields of a message by their names; raises ValueError for one that is not known."""
    for number, _, value in walk.wire.fields(message):
        if number not in known:
            raise ValueError(f"field {number} of a {what}, which fourstep does not write")
        yield known[number], value

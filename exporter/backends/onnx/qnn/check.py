"""Reads a compiled graph's ``.onnx`` file as far as it takes to say what it opens. No onnx."""

from __future__ import annotations

import posixpath

from exporter.backends.contract import GraphFiles
from exporter.backends.onnx.check import ports_of
from exporter.files.wire import Wire, message_of, text_of

# Fields by number, of messages that the provider writes.
MODEL = {1: "ir_version", 2: "", 3: "", 5: "", 6: "", 7: "graph", 8: "", 14: ""}
NODE = {1: "", 2: "", 3: "", 4: "op_type", 5: "attribute", 6: "", 7: "domain"}
ATTRIBUTE = {1: "name", 3: "number", 4: "text", 20: ""}
WANTED = {"main_context": 1, "embed_mode": 0, "is_multi_soc_ep_context": 0}


def check_context(graph: GraphFiles) -> dict[str, int]:
    """A graph of one node that names the binary beside it; raises ValueError for any other."""
    text = graph.texts.get(graph.entry)
    if text is None or len(graph.texts) != 1:
        raise ValueError("it is not one .onnx file with a binary beside it")
    wire = Wire()
    graphs = [message_of(v) for name, v in _known(wire, text, MODEL, "model") if name == "graph"]
    if len(graphs) != 1:
        raise ValueError(f"{len(graphs)} graphs in one file")
    nodes, inputs, outputs = ports_of(wire, graphs[0])
    if (inputs, outputs) != (graph.inputs, graph.outputs):
        raise ValueError("its inputs or outputs are not those of the manifest")
    if len(nodes) != 1:
        raise ValueError(f"{len(nodes)} operators; a compiled graph is one")
    place = _binary(wire, nodes[0])
    path = posixpath.join(posixpath.dirname(graph.entry), place)
    if place != posixpath.basename(place) or path not in graph.sizes or path == graph.entry:
        raise ValueError(f"it opens {place!r:.80}, which is none of its files")
    return {path: graph.sizes[path]}


def _binary(wire: Wire, node: memoryview) -> str:
    """The file that an EPContext node opens."""
    said: dict[str, object] = {}
    kind = ["", ""]
    for name, value in _known(wire, node, NODE, "node"):
        if name in ("domain", "op_type"):
            kind[name == "op_type"] = text_of(value)
        if name == "attribute":
            key, found = _attribute(wire, message_of(value))
            if key in said:
                raise ValueError(f"its operator says its {key!r:.40} twice")
            said[key] = found
    if kind != ["com.microsoft", "EPContext"]:
        raise ValueError(f"operator {kind[1]!r:.80} in place of EPContext")
    for key, value in WANTED.items():
        if said.get(key, value) != value:
            raise ValueError(f"{key} = {said[key]!r:.40}, which fourstep does not write")
    if said.get("source") != "QNNExecutionProvider":
        raise ValueError(f"it is for {said.get('source')!r:.80}, not for QNNExecutionProvider")
    return str(said.get("ep_cache_context", ""))


def _attribute(wire: Wire, message: memoryview) -> tuple[str, object]:
    key, found = "", object()
    for name, value in _known(wire, message, ATTRIBUTE, "attribute"):
        if name == "name":
            key = text_of(value)
        elif name == "number":
            found = value
        elif name == "text":
            found = text_of(value)
    return key, found


def _known(
    wire: Wire, message: memoryview, known: dict[int, str], what: str
) -> list[tuple[str, int | memoryview]]:
    found = [(number, value) for number, _, value in wire.fields(message)]
    for number, _ in found:
        if number not in known:
            raise ValueError(f"field {number} of a {what}, which no compiler writes")
    return [(known[number], value) for number, value in found]

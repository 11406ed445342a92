"""Packages of an attacker, who makes every digest right: one thing in each that no build writes.

``PACKAGES`` has a function for each, by what is wrong, which changes a whole package in place, and
words of the line that refuses it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from exporter.package.read import DIGEST, MANIFEST, digest_line

Change = Callable[[Path], None]
VAE = "graphs/vae_decoder/vae_decoder"
DENOISER = "graphs/denoiser/denoiser"
GIANT = 1 << 40
PACKAGES: dict[str, tuple[Change, str]] = {}


def hostile(what: str, said: str) -> Callable[[Change], Change]:
    def add(change: Change) -> Change:
        PACKAGES[what] = (change, said)
        return change

    return add


def manifest_of(package: Path) -> dict[str, Any]:
    return dict(json.loads((package / MANIFEST).read_text()))


def write(package: Path, raw: object) -> None:
    """A manifest, and its digest."""
    text = raw if isinstance(raw, bytes) else json.dumps(raw).encode()
    (package / MANIFEST).write_bytes(text)
    (package / DIGEST).write_bytes(digest_line(text))


def seal(package: Path, raw: dict[str, Any] | None = None) -> None:
    """Make every digest right."""
    raw = raw or manifest_of(package)
    entries = [*raw["files"], *(f for graph in raw["graphs"] for f in graph["files"])]
    for entry in entries:
        file = package / entry["path"]
        if file.is_file() and file.stat().st_size < 1 << 28:
            content = file.read_bytes()
            entry["bytes"] = len(content)
            entry["sha256"] = hashlib.sha256(content).hexdigest()
    write(package, raw)


def put(path: str, value: object) -> Change:
    """Put a value into a manifest by the path of its keys."""

    def change(package: Path) -> None:
        raw = manifest_of(package)
        *above, last = path.split(".")
        place: Any = raw
        for key in above:
            place = place[int(key)] if isinstance(place, list) else place[key]
        if isinstance(place, list):
            place[int(last)] = value
        else:
            place[last] = value
        write(package, raw)

    return change


def text(replace: Callable[[bytes], bytes]) -> Change:
    """Change the text of a manifest."""

    def change(package: Path) -> None:
        write(package, replace((package / MANIFEST).read_bytes()))

    return change


def in_graph(edit: Callable[[onnx.ModelProto], None], graph: str = VAE) -> Change:
    """Change an ONNX graph, without its weights."""

    def change(package: Path) -> None:
        file = package / f"{graph}.onnx"
        model = onnx.load(file, load_external_data=False)
        edit(model)
        file.write_bytes(model.SerializeToString())
        seal(package)

    return change


# The manifest.

for _what, _change, _said in (
    ("path above", put("files.0.path", "../../etc/passwd"), "files[0].path: expected str"),
    ("absolute path", put("files.0.path", "/etc/passwd"), "files[0].path: expected str"),
    ("backslash", put("files.0.path", "..\\x"), "files[0].path: expected str"),
    ("path with an end of line", put("files.0.path", "a\nb"), "files[0].path: expected str"),
    ("endless path", put("files.0.path", "a/" * 5000 + "a"), "files[0].path: expected str"),
    ("negative size", put("files.0.bytes", -1), "files[0].bytes: expected int >= 0"),
    ("size of 2^80", put("files.0.bytes", 1 << 80), "files[0].bytes: "),
    ("fraction of a byte", put("files.0.bytes", 1.5), "files[0].bytes: expected int"),
    ("digest of another kind", put("files.0.sha256", "md5"), "sha256: expected str"),
    ("sigma that is no number", text(lambda t: t.replace(b"0.9", b"NaN", 1)), "manifest.json: "),
    ("endless sigma", text(lambda t: t.replace(b"0.9", b"1e999", 1)), "manifest.json: "),
    ("rising sigmas", put("schedule.sigmas", [0.1, 0.9, 0.0]), "do not fall from at most 1 to 0"),
    ("million steps", put("schedule.sigmas", [1 - i / 1e6 for i in range(100_000)]), "sigmas: "),
    ("steps fewer than rows", put("schedule.sigmas", [1.0, 0.5, 0.0]), "has no row for each step"),
    ("gigantic picture", put("picture.width_px", 1 << 30), "width_px: expected int <= 16384"),
    ("picture of another size", put("picture.width_px", 8192), "takes float32"),
    ("million channels", put("picture.latent_channels", 1 << 20), "manifest.json: "),
    ("gigantic port", put("graphs.0.inputs.0.shape", [1 << 20, 1 << 20]), "more than 1 GiB"),
    ("many axes", put("graphs.0.inputs.0.shape", [1] * 100_000), "manifest.json: "),
    ("stage that feeds itself", put("stages.0.inputs.ids", {
        "kind": "output", "name": "clip_l", "port": "hidden"}), "stages[0].inputs.ids"),
    ("unknown source", put("stages.0.inputs.ids", {"kind": "url"}), "stages[0].inputs"),
    ("prompt of a million tokens", put("text.tokenizers.t5.tokens", 1 << 20), "manifest.json: "),
    ("id outside of the vocabulary", put("text.tokenizers.t5.pad_id", 1 << 20), "is not in"),
    ("tokenizer elsewhere", put("text.tokenizers.t5.path", "manifest.json"), "is not among files"),
    ("entry elsewhere", put("graphs.0.entry", "LICENSE"), "is not among the graph's files"),
    ("engine of a path", put("backend", "../../evil"), "backend: expected str matching"),
    ("unknown mode", put("schedule.mode", "exec"), "schedule.mode: invalid enum value"),
    ("other format", put("format_version", "9" * 1000), "format version"),
    ("no object", text(lambda t: b"[" * 200_000), "manifest.json: "),
    ("deep nesting", text(lambda t: t.rstrip()[:-1] + b',"x":' + b"[" * 9000 + b"]" * 9000 + b"}"),
     "nested"),
    ("key twice", text(lambda t: t.replace(b'"name"', b'"name":"x","name"', 1)),
     "the key 'name' is there twice"),
    ("text of another encoding", text(lambda t: t.decode().encode("utf-16")), "manifest.json: "),
    ("manifest of 5 MiB", text(lambda t: t.rstrip() + b" " * (5 << 20)), "more than 4 MiB"),
    ("files without number", put("files", [{"path": f"f{i}", "bytes": 0, "sha256": "0" * 64}
                                           for i in range(25_000)]), "is not among files"),
):  # fmt: skip
    PACKAGES[_what] = (_change, _said)


# Files.


def replaced(path: str, make: Callable[[Path], None], giant: int | None = None) -> Change:
    """Put something else in a file's place."""

    def change(package: Path) -> None:
        (package / path).unlink()
        make(package / path)
        raw = manifest_of(package)
        for entry in [*raw["files"], *(f for graph in raw["graphs"] for f in graph["files"])]:
            if giant is not None and entry["path"] == path:
                entry["bytes"] = giant
        seal(package, raw)

    return change


def sparse(file: Path) -> None:
    with file.open("wb") as stream:
        stream.truncate(GIANT)


def bound(file: Path) -> None:
    """A socket, under a name that is short enough for one."""
    here = os.open(file.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"/proc/self/fd/{here}/{file.name}")
    os.close(here)


for _what, _change, _said in (
    ("link that leaves", replaced("LICENSE", lambda f: f.symlink_to("/etc/hostname")), "a link"),
    ("link to itself", replaced("LICENSE", lambda f: f.symlink_to(f.name)), "a link that leads"),
    ("link to a device", replaced("LICENSE", lambda f: f.symlink_to("/dev/zero")), "a link that"),
    ("pipe beside", replaced("LICENSE", os.mkfifo), "LICENSE: cannot be read"),
    ("pipe for a tokenizer", replaced("tokenizer/t5.json", os.mkfifo), "t5.json: cannot be read"),
    ("pipe for a graph", replaced(f"{VAE}.onnx", os.mkfifo), "vae_decoder.onnx: "),
    ("pipe for weights", replaced(f"{VAE}.onnx.data", os.mkfifo), "vae_decoder.onnx.data: "),
    ("pipe for the digest", replaced(DIGEST, os.mkfifo), "manifest.sha256"),
    ("socket", replaced("LICENSE", bound), "LICENSE: cannot be read"),
    ("folder for a file", replaced("LICENSE", Path.mkdir), "LICENSE: cannot be read"),
    ("sparse giant beside", replaced("LICENSE", sparse, GIANT), "more than 2 GiB beside"),
    ("sparse giant of weights", replaced(f"{VAE}.onnx.data", sparse, GIANT), "of which its"),
    ("sparse giant of a graph", replaced(f"{VAE}.onnx", sparse, GIANT), "describe no graph"),
):  # fmt: skip
    PACKAGES[_what] = (_change, _said)


@hostile("pipe for the digest", "manifest.sha256: cannot be read")
def _pipe_for_digest(package: Path) -> None:
    (package / DIGEST).unlink()
    os.mkfifo(package / DIGEST)


# ONNX.


def tensor_of(model: onnx.ModelProto) -> Any:
    return next(t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL)


def place(key: str, value: object) -> Change:
    """Another place of a tensor's bytes."""

    def edit(model: onnx.ModelProto) -> None:
        entry = next(e for e in tensor_of(model).external_data if e.key == key)
        entry.value = str(value)

    return in_graph(edit)


def node(kind: str, domain: str = "", **attributes: Any) -> Change:
    def edit(model: onnx.ModelProto) -> None:
        name = model.graph.node[0].output[0]
        made = helper.make_node(kind, [name], ["hostile"], domain=domain, **attributes)
        model.graph.node.append(made)

    return in_graph(edit)


def _body() -> onnx.GraphProto:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    return helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "body", [value], [])


def _dims(*dims: int) -> Change:
    def edit(model: onnx.ModelProto) -> None:
        tensor = tensor_of(model)
        del tensor.dims[:]
        tensor.dims.extend(dims)

    return in_graph(edit)


def _functions(model: onnx.ModelProto) -> None:
    model.functions.append(
        helper.make_function("own", "f", ["x"], ["y"], [helper.make_node("Relu", ["x"], ["y"])],
                             [helper.make_opsetid("", 21)])
    )  # fmt: skip


def _training(model: onnx.ModelProto) -> None:
    model.training_info.add()


def _domain(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("evil", 1))


def _opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 99


def _aliases(model: onnx.ModelProto) -> None:
    large = max(model.graph.initializer, key=lambda t: np.prod(t.dims))
    for i in range(1000):
        copy = model.graph.initializer.add()
        copy.CopyFrom(large)
        copy.name = f"copy_{i}"


def _strings(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(
        TensorProto(name="s", data_type=TensorProto.STRING, dims=[1], string_data=[b"x"])
    )


def _inline(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(
        TensorProto(name="s", data_type=TensorProto.FLOAT, dims=[1 << 40], raw_data=b"1234")
    )


def _sparse_tensor(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add()


def _inputs(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1 << 30


def _constant(model: onnx.ModelProto) -> None:
    value = helper.make_tensor("v", TensorProto.FLOAT, [1], [0.0])
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=value))


def raw(content: Callable[[bytes], bytes]) -> Change:
    """Another file of bytes for a graph."""

    def change(package: Path) -> None:
        file = package / f"{VAE}.onnx"
        file.write_bytes(content(file.read_bytes()))
        seal(package)

    return change


for _what, _change, _said in (
    ("Loop", node("Loop", body=_body()), "field 6 of a attribute"),
    ("Loop without a body", node("Loop"), "operator 'Loop'"),
    ("If", node("If", then_branch=_body(), else_branch=_body()), "field 6 of a attribute"),
    ("Scan", node("Scan", body=_body(), num_scan_inputs=1), "field 6 of a attribute"),
    ("SequenceMap", node("SequenceMap"), "operator 'SequenceMap'"),
    ("constant of a shape", node("ConstantOfShape"), "operator 'ConstantOfShape'"),
    ("Expand", node("Expand"), "operator 'Expand'"),
    ("random numbers", node("RandomNormal", shape=[1 << 40]), "operator 'RandomNormal'"),
    ("operator of another domain", node("Gelu", "evil"), "operator 'evil:Gelu'"),
    ("operator of the engine's", node("QMoE", "com.microsoft"), "operator 'com.microsoft:QMoE'"),
    ("function", in_graph(_functions), "field 25 of a model"),
    ("training information", in_graph(_training), "field 20 of a model"),
    ("domain", in_graph(_domain), "operators of 'evil' 1"),
    ("opset", in_graph(_opset), "operators of '' 99"),
    ("weights above", place("location", "../../../secret"), "no weights of it"),
    ("weights anywhere", place("location", "/dev/zero"), "no weights of it"),
    ("weights behind the end", place("offset", 1 << 50), "and its shape takes"),
    ("weights before the start", place("offset", -4096), "is no place in a file"),
    ("length of another tensor", place("length", 1 << 50), "and its shape takes"),
    ("gigantic tensor", _dims(1 << 40), "and its shape takes"),
    ("negative tensor", _dims(-1), "and its shape takes"),
    ("thousand names of one tensor", in_graph(_aliases, DENOISER), "which is smaller"),
    ("tensor of text", in_graph(_strings), "field 6 of a tensor"),
    ("tensor without its bytes", in_graph(_inline), "which it has not"),
    ("sparse tensor", in_graph(_sparse_tensor), "field 15 of a graph"),
    ("tensor in an attribute", in_graph(_constant), "field 5 of a attribute"),
    ("other inputs", in_graph(_inputs), "its inputs are not those of the manifest"),
    ("half a graph", raw(lambda t: t[: len(t) // 2]), "vae_decoder.onnx: refused"),
    ("no graph", raw(lambda t: b""), "0 graphs in one file"),
    ("million fields", raw(lambda t: t + b"\x08\x0a" * 3_000_000), "more than 2,000,000 fields"),
    ("number without end", raw(lambda t: t + b"\x08" + b"\xff" * 20), "a number that does not end"),
):
    PACKAGES[_what] = (_change, _said)


# Tokenizers.


def rule(**changes: object) -> Change:
    def change(package: Path) -> None:
        file = package / "tokenizer/t5.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
        seal(package)

    return change


def _split(pattern: str) -> Change:
    return rule(
        pre_tokenizer={
            "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False
        }
    )  # fmt: skip


def _growing() -> dict[str, object]:
    one = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}
    return {"type": "Sequence", "normalizers": [one] * 12}


for _what, _change, _said in (
    ("regex that runs for ever", _split("(a+)+$"), "repeats a group"),
    ("regex of alternatives", _split("(a|a)*b"), "repeats a group"),
    ("regex that looks back", _split(r"(a*)\1"), "refers to what it found"),
    ("regex of many stars", _split(".*.*.*.*.*.*.*="), "repeats too much in a row"),
    ("rules that grow", rule(normalizer=_growing()), "characters of one"),
    ("tokenizer of nothing", rule(model=5), "not a tokenizer"),
):
    PACKAGES[_what] = (_change, _said)


# OpenVINO and Core ML: the same package with graphs of theirs in place of its own.

XML = """<?xml version='1.0'?>
<net name="g" version="11"><layers>{layers}</layers><edges /><rt_info>{settings}</rt_info></net>"""
PARAMETER = """<layer id="{i}" name="{name}" type="Parameter" version="opset1">
<data shape="{shape}" element_type="{kind}" /><output><port id="0" names="{name}" /></output>
</layer>"""
CONSTANT = (
    '<layer id="99" name="c" type="Const" version="opset1">'
    '<data element_type="{kind}" shape="{shape}" offset="{offset}" size="{size}" /></layer>'
)
KINDS = {"float32": "f32", "int32": "i32"}


def with_graphs(package: Path, backend: str, make: Callable[[Path, dict[str, Any]], Path]) -> None:
    """Graphs for another engine: ``make`` writes one into a folder and gives its entry."""
    raw = manifest_of(package)
    raw["backend"] = backend
    for graph in raw["graphs"]:
        place = (package / graph["entry"]).parent
        shutil.rmtree(place)
        place.mkdir()
        graph["entry"] = make(place, graph).relative_to(package).as_posix()
        files = sorted(f.relative_to(package).as_posix() for f in place.rglob("*") if f.is_file())
        graph["files"] = [{"path": f, "bytes": 0, "sha256": ""} for f in files]
    seal(package, raw)


def as_openvino(layers: str = "", settings: str = "", edit: Callable[[str], str] = str) -> Change:
    """One layer more, or a setting, in every graph; ``edit`` changes its text."""

    def make(place: Path, graph: dict[str, Any]) -> Path:
        inputs = "".join(
            PARAMETER.format(
                i=i,
                name=port["name"],
                shape=",".join(map(str, port["shape"])),
                kind=KINDS[port.get("dtype", "float32")],
            )
            for i, port in enumerate(graph["inputs"])
        )
        entry = place / f"{graph['name']}.xml"
        entry.write_text(edit(XML.format(layers=inputs + layers, settings=settings)))
        entry.with_suffix(".bin").write_bytes(bytes(100_000))
        return entry

    return lambda package: with_graphs(package, "openvino", make)


def constant(kind: str = "f32", shape: str = "4", offset: object = 0, size: object = 16) -> str:
    return CONSTANT.format(kind=kind, shape=shape, offset=offset, size=size)


def layer(kind: str, version: str = "opset1", inside: str = "") -> str:
    return f'<layer id="9" name="h" type="{kind}" version="{version}">{inside}</layer>'


def _laughs(xml: str) -> str:
    entities = "".join(f"<!ENTITY a{i + 1} '{f'&a{i};' * 10}'>" for i in range(10))
    head = f"<!DOCTYPE net [<!ENTITY a0 'ha'>{entities}]>"
    return xml.replace("<net", f"{head}<net", 1).replace("<edges />", "<edges>&a10;</edges>")


for _what, _change, _said in (
    ("TensorIterator", as_openvino(layer("TensorIterator")), "operator 'TensorIterator' of opset1"),
    ("body of a loop", as_openvino(layer("Add", inside="<body />")), "an element <body> in"),
    ("OpenVINO's If", as_openvino(layer("If", "opset8")), "operator 'If' of opset8"),
    ("extension", as_openvino(layer("Add", "extension")), "operator 'Add' of extension"),
    ("opset to come", as_openvino(layer("Add", "opset99")), "operator 'Add' of opset99"),
    ("variable", as_openvino(layer("ReadValue", "opset6")), "operator 'ReadValue'"),
    ("setting", as_openvino(settings='<runtime_options><CACHE_DIR value="/" /></runtime_options>'),
     "an element <CACHE_DIR>"),
    ("entities", as_openvino(edit=_laughs), "a document type"),
    ("constant behind the end", as_openvino(constant(offset=1 << 40)), "and its shape takes"),
    ("constant before the start", as_openvino(constant(offset=-1)), "is no size or place"),
    ("constant of nan", as_openvino(constant(offset="nan")), "is no size or place"),
    ("gigantic constant", as_openvino(constant(shape="1099511627776")), "and its shape takes"),
    ("constant of text", as_openvino(constant(kind="string")), "values of type 'string'"),
    ("constants on each other", as_openvino(constant(shape="24000", size=96000) * 500),
     "which is less"),
    ("deep elements", as_openvino(edit=lambda t: t[:-6] + "<rt_info>" * 100_000), "<rt_info> in"),
    ("gigantic element", as_openvino(layer("A" * (4 << 20))), "does not write|more than 2 MB"),
    ("no XML", as_openvino(edit=lambda t: "PK" + t), "not XML"),
    ("parameter of another size", as_openvino(edit=lambda t: t.replace('shape="1', 'shape="7')),
     "its inputs are not those of the manifest"),
):  # fmt: skip
    PACKAGES[f"OpenVINO: {_what}"] = (_change, _said)


def as_coreml(edit: Callable[[Any, Any], None], contents: str = "com.apple.CoreML") -> Change:
    """``edit`` changes every model and its one operation, an addition."""
    from exporter.backends.coreml import library

    def make(place: Path, graph: dict[str, Any]) -> Path:
        model = library.model_messages().Model(specificationVersion=8)
        for port in graph["inputs"]:
            model.description.input.add(name=port["name"])
        function = model.mlProgram.functions["main"]
        function.opset = "CoreML7"
        operation = function.block_specializations["CoreML7"].operations.add(type="add")
        edit(model, operation)
        entry = place / f"{graph['name']}.mlpackage"
        inside = entry / "Data" / "com.apple.CoreML"
        (inside / "weights").mkdir(parents=True)
        (inside / "weights" / "weight.bin").write_bytes(bytes(1000))
        (inside / "model.mlmodel").write_bytes(model.SerializeToString())
        items = {"a": {"path": f"{contents}/model.mlmodel"}, "b": {"path": f"{contents}/weights"}}
        (entry / "Manifest.json").write_text(json.dumps({"itemInfoEntries": items}))
        return entry

    return lambda package: with_graphs(package, "coreml", make)


def _tensor(value: Any, *sizes: int) -> None:
    value.tensorType.dataType = 11  # float32
    for size in sizes:
        value.tensorType.dimensions.add().constant.size = size


def _blob(name: str, offset: int, *sizes: int) -> Callable[[Any, Any], None]:
    def edit(model: Any, operation: Any) -> None:
        value = operation.attributes["val"]
        _tensor(value.type, *sizes)
        value.blobFileValue.fileName, value.blobFileValue.offset = name, offset

    return edit


def _operation(kind: str) -> Callable[[Any, Any], None]:
    def edit(model: Any, operation: Any) -> None:
        operation.type = kind

    return edit


def _nested(model: Any, operation: Any) -> None:
    operation.blocks.add().operations.add(type="add")


def _neural(model: Any, operation: Any) -> None:
    model.neuralNetwork.layers.add(name="a")


def _gives(model: Any, operation: Any) -> None:
    _tensor(operation.outputs.add(name="x").type, 1 << 20, 1 << 20)


def _version(model: Any, operation: Any) -> None:
    model.specificationVersion = 99


def _own_opset(model: Any, operation: Any) -> None:
    model.mlProgram.functions["main"].opset = "Evil"


def _feature(model: Any, operation: Any) -> None:
    model.description.input.add(name="more")


def _plain(model: Any, operation: Any) -> None:
    """Nothing is wrong with it."""


WEIGHTS = "@model_path/weights/weight.bin"
for _what, _change, _said in (
    ("unknown operation", as_coreml(_operation("evil")), "operation 'evil'"),
    ("loop", as_coreml(_operation("while_loop")), "operation 'while_loop'"),
    ("block", as_coreml(_nested), "a loop or a branch"),
    ("file elsewhere", as_coreml(_blob("@model_path/../../../x", 64, 4)), "is not in its weights"),
    ("file anywhere", as_coreml(_blob("/dev/zero", 0, 4)), "is not in its weights"),
    ("behind the end", as_coreml(_blob(WEIGHTS, 1 << 50, 4)), "is not in its weights"),
    ("gigantic constant", as_coreml(_blob(WEIGHTS, 64, 1 << 40)), "a constant takes"),
    ("gigantic result", as_coreml(_gives), "gives more than 8 GiB"),
    ("neural network", as_coreml(_neural), "field 500 of a model"),
    ("version", as_coreml(_version), "version 99 of the specification"),
    ("operations of others", as_coreml(_own_opset), "operations of 'Evil'"),
    ("one input more", as_coreml(_feature), "its inputs are not those of the manifest"),
    ("contents elsewhere", as_coreml(_plain, "../../.."), "Manifest.json leads to"),
):
    PACKAGES[f"Core ML: {_what}"] = (_change, _said)

HARMLESS: dict[str, Change] = {
    "onnx": seal,
    "openvino": as_openvino(constant()),
    "coreml": as_coreml(_blob(WEIGHTS, 64, 4)),
}

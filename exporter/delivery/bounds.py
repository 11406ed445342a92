"""Where tensors begin and end in the files of a package, without any vendor's library.

ONNX tells in the model file where a tensor lies in an external one; OpenVINO in the constants of
the ``.xml``; Core ML in a header before each blob of ``weight.bin``; safetensors at the start of
the file. What cannot be read so is no error: such a file is cut at fixed places. Files are mapped,
not read: a model of any size takes no memory.
"""

from __future__ import annotations

import mmap
import posixpath
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from exporter.errors import InputError
from exporter.files.read import parse_json
from exporter.package.manifest import FileEntry

Bytes = mmap.mmap | bytes
Range = tuple[int, int]  # offset and size in bytes

# Numbers of fields in ONNX's protobuf: ModelProto.graph, GraphProto.initializer,
# TensorProto.external_data, and key and value of its entries.
GRAPH, INITIALIZER, EXTERNAL, KEY, VALUE = 7, 5, 13, 1, 2
VARINT, EIGHT_BYTES, LENGTH, FOUR_BYTES = 0, 1, 2, 5  # wire types
MOST_VARINT_BYTES = 10
MOST_TENSORS = 1 << 16  # of one file; a full-size graph has about 2,000
CONSTANT = re.compile(rb"<data\b([^<>]{0,4096})>")
PLACE = re.compile(rb'\b(offset|size)="([0-9]{1,18})"')
BLOB = struct.Struct("<IIQQ")  # sentinel, type, size and offset of a blob of Core ML
BLOB_SENTINEL, BLOB_ALIGN_BYTES = 0xDEADBEEF, 64
MOST_HEADER_BYTES = 1 << 20  # of safetensors
MOST_MODEL_BYTES = 64 << 20  # of an .onnx or an .xml; larger ones hold their weights themselves
MODELS = (".onnx", ".xml")


def tensor_bounds(folder: Path, files: Sequence[FileEntry]) -> dict[str, tuple[int, ...]]:
    """Offsets at which the files of a package are cut, by path, in order; not 0 and not the end.

    The files must have been compared with their digests before.
    """
    sizes = {file.path: file.bytes for file in files}
    ranges: dict[str, list[Range]] = {}
    for path in sizes:
        for target, found in _ranges(folder, path, sizes):
            # Small values that another size's graph reads from a model are no pieces of their own.
            if target in sizes and not target.endswith(MODELS):
                ranges.setdefault(target, []).append(found)
    return {path: _cuts(found, sizes[path]) for path, found in ranges.items()}


def _cuts(ranges: Sequence[Range], size_bytes: int) -> tuple[int, ...]:
    ends = {offset for offset, _ in ranges} | {offset + size for offset, size in ranges}
    return tuple(sorted(end for end in ends if 0 < end < size_bytes))


def _ranges(folder: Path, path: str, sizes: Mapping[str, int]) -> Iterator[tuple[str, Range]]:
    """The tensors of which one file tells, with the path of the file that holds each."""
    suffix = posixpath.splitext(path)[1]
    if suffix not in (*MODELS, ".bin", ".safetensors") or not sizes[path]:
        return
    if suffix in MODELS and sizes[path] > MOST_MODEL_BYTES:
        return
    with (
        (folder / path).open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        yield from islice(_of_kind(suffix, path, content, sizes), MOST_TENSORS)


def _of_kind(
    suffix: str, path: str, content: Bytes, sizes: Mapping[str, int]
) -> Iterator[tuple[str, Range]]:
    try:
        if suffix == ".onnx":
            for location, found in onnx_tensors(content):
                yield posixpath.normpath(posixpath.join(posixpath.dirname(path), location)), found
        elif suffix == ".xml":
            weights = _weights_of(path, sizes)
            for found in openvino_constants(content):
                yield weights, found
        elif suffix == ".safetensors":
            for found in safetensors_values(content):
                yield path, found
        elif posixpath.basename(path) == "weight.bin":
            for found in coreml_blobs(content):
                yield path, found
    except (
        ValueError,
        struct.error,
        InputError,
    ):  # another program's file: cut at fixed places from here on
        return


def _weights_of(path: str, sizes: Mapping[str, int]) -> str:
    """The ``.bin`` of an ``.xml``: of its name, or the only one beside it."""
    own = f"{posixpath.splitext(path)[0]}.bin"
    folder = posixpath.dirname(path)
    beside = [p for p in sizes if p.endswith(".bin") and posixpath.dirname(p) == folder]
    return own if own in sizes or len(beside) != 1 else beside[0]


def onnx_tensors(model: Bytes) -> Iterator[tuple[str, Range]]:
    """The external tensors of an ONNX model: file and place of each; raises ValueError."""
    for _, graph in _fields(model, (0, len(model)), GRAPH):
        for _, tensor in _fields(model, graph, INITIALIZER):
            told = dict(_entry(model, e) for _, e in _fields(model, tensor, EXTERNAL))
            if {"location", "length"} <= told.keys():
                yield told["location"], (int(told.get("offset", "0")), int(told["length"]))


def _entry(model: Bytes, place: Range) -> tuple[str, str]:
    """One of the pairs of text that say where a tensor lies."""
    found = {number: model[at : at + size] for number, (at, size) in _fields(model, place)}
    return found.get(KEY, b"").decode(), found.get(VALUE, b"").decode()


def _fields(data: Bytes, place: Range, wanted: int = 0) -> Iterator[tuple[int, Range]]:
    """Fields of a protobuf message that have a length: number and place; raises ValueError.

    Args:
        wanted: the number of those that are given, or 0: all.
    """
    at, end = place[0], place[0] + place[1]
    while at < end:
        tag, at = _varint(data, at, end)
        number, kind = tag >> 3, tag & 7
        size = {EIGHT_BYTES: 8, FOUR_BYTES: 4}.get(kind, 0)
        if kind == VARINT:
            _, at = _varint(data, at, end)
        elif kind == LENGTH:
            size, at = _varint(data, at, end)
        elif not size:
            raise ValueError(f"wire type {kind} at byte {at}")
        if at + size > end:
            raise ValueError(f"a field ends behind its message at byte {at}")
        if kind == LENGTH and wanted in (0, number):
            yield number, (at, size)
        at += size


def _varint(data: Bytes, at: int, end: int) -> tuple[int, int]:
    """A number, and where it ends."""
    value = 0
    for i in range(min(MOST_VARINT_BYTES, end - at)):
        byte = data[at + i]
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value, at + i + 1
    raise ValueError(f"no number at byte {at}")


def openvino_constants(model: Bytes) -> Iterator[Range]:
    """Places in the ``.bin`` that the constants of an ``.xml`` name."""
    for element in CONSTANT.finditer(model):
        told = {key: int(value) for key, value in PLACE.findall(element[1])}
        if told.keys() == {b"offset", b"size"}:
            yield told[b"offset"], told[b"size"]


def coreml_blobs(weights: Bytes) -> Iterator[Range]:
    """Headers and values of a ``weight.bin``, from blob to blob; raises struct.error."""
    at = BLOB_ALIGN_BYTES
    while at + BLOB_ALIGN_BYTES <= len(weights):
        sentinel, _, size, offset = BLOB.unpack(weights[at : at + BLOB.size])
        if sentinel != BLOB_SENTINEL or offset < at + BLOB_ALIGN_BYTES:
            return
        yield at, BLOB_ALIGN_BYTES
        yield offset, size
        at = -(-(offset + size) // BLOB_ALIGN_BYTES) * BLOB_ALIGN_BYTES


def safetensors_values(content: Bytes) -> Iterator[Range]:
    """Places of the tensors in a safetensors file; raises ValueError or InputError."""
    length = int.from_bytes(content[:8], "little")
    if length > min(MOST_HEADER_BYTES, len(content) - 8):
        raise ValueError(f"a header of {length} bytes")
    header = parse_json(content[8 : 8 + length].decode(), "header")
    for entry in header.values() if isinstance(header, dict) else ():
        ends = entry.get("data_offsets") if isinstance(entry, dict) else None
        if isinstance(ends, list) and len(ends) == 2 and {*map(type, ends)} == {int}:
            yield 8 + length + ends[0], ends[1] - ends[0]

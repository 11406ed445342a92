"""Reads an ``.mlpackage`` as far as it takes to say that no other emitter wrote it.

No coremltools. Fields that are not named here are refused where they could hold something that
runs: other kinds of models, blocks inside operations, files of other names.
"""

from __future__ import annotations

import json
import math
import posixpath
from dataclasses import dataclass, field

from exporter.backends.contract import BASE, WEIGHTS, GraphFiles
from exporter.backends.coreml.operators import OPERATORS, OPSETS, VERSIONS
from exporter.backends.coreml.session import FUNCTION
from exporter.errors import InputError
from exporter.files.read import parse_json
from exporter.files.wire import Wire, message_of, text_of

AUTHOR = "com.apple.CoreML"
MODEL_FILE = f"Data/{AUTHOR}/model.mlmodel"
WEIGHTS_FILE = f"Data/{AUTHOR}/weights/weight.bin"
CONTENTS = "Manifest.json"
MOST_CONTENTS_BYTES = 1 << 20
IN_PROGRAM = "@model_path/weights/weight.bin"  # how a program names the file of weights
MOST_VALUE_BYTES = 1 << 33  # of what an operation gives
# Bits of a value by MIL's DataType.
BITS = {
    1: 8, 2: 8, 10: 16, 11: 32, 12: 64, 13: 16, 21: 8, 22: 16, 23: 32, 24: 64, 25: 4, 31: 8, 32: 16,
    33: 32, 34: 64, 35: 4, 36: 2, 37: 1, 38: 6, 39: 3, 40: 8, 41: 8,
}  # fmt: skip
# Fields by number: of the messages in which something could run.
VERSION, DESCRIPTION, PROGRAM = 1, 2, 502
FUNCTIONS, OPSET, BLOCKS, OPERATIONS = 2, 2, 3, 3
TYPE, INPUTS, OUTPUTS, NESTED, ATTRIBUTES = 1, 2, 3, 4, 5
OF_MODEL, OF_FUNCTION = 1, 20  # inputs in a description, and descriptions in it
MAIN = "main"
KEY, VALUE = 1, 2  # of the entry of a map
VALUE_TYPE, IMMEDIATE, BLOB = 2, 3, 5


@dataclass
class _Walk:
    graph: GraphFiles
    wire: Wire = field(default_factory=Wire)
    used_bytes: int = 0


def check_graph(graph: GraphFiles) -> dict[str, int]:
    """Bytes used of its weights; raises ValueError for a program that is none of the emitter's."""
    walk = _Walk(graph)
    model = graph.entry if BASE in graph.settings else f"{graph.entry}/{MODEL_FILE}"
    if graph.is_own and set(graph.texts) != {f"{_package_of(graph)}/{CONTENTS}", model}:
        raise ValueError("it is not one .mlpackage with a model and its weights")
    _check_contents(graph)
    text = graph.texts.get(model)
    programs = []
    for number, _, value in walk.wire.fields(text if text is not None else memoryview(b"")):
        if number == VERSION and graph.is_own and value not in VERSIONS:
            raise ValueError(f"version {value} of the specification, which fourstep does not write")
        if number == DESCRIPTION and graph.is_own:
            _check_inputs(walk, message_of(value))
        if number == PROGRAM:
            programs.append(message_of(value))
        elif number not in (VERSION, DESCRIPTION, 10):
            raise ValueError(f"field {number} of a model, which is no ML Program")
    if len(programs) != 1:
        raise ValueError(f"{len(programs)} ML Programs in one file")
    for number, _, value in walk.wire.fields(programs[0]):
        if number == FUNCTIONS:
            for of_entry, _, function in walk.wire.fields(message_of(value)):
                if of_entry == VALUE:
                    _check_function(walk, message_of(function))
    return {_weights_of(graph): walk.used_bytes}


def _package_of(graph: GraphFiles) -> str:
    """The ``.mlpackage``: itself, or that of the first size which the settings name."""
    if BASE not in graph.settings:
        return graph.entry
    return posixpath.join(posixpath.dirname(graph.entry), graph.settings.get(WEIGHTS, ""))


def _weights_of(graph: GraphFiles) -> str:
    """The file of weights."""
    return f"{_package_of(graph)}/{WEIGHTS_FILE}"


def _check_contents(graph: GraphFiles) -> None:
    """``Manifest.json`` leads to the model and its weights in the package alone."""
    text = graph.texts.get(f"{_package_of(graph)}/{CONTENTS}")
    if text is None or len(text) > MOST_CONTENTS_BYTES:
        raise ValueError(f"no {CONTENTS} that says what is in it")
    try:
        found = parse_json(bytes(text).decode(), CONTENTS, unique=True)
    except UnicodeDecodeError:
        raise ValueError(f"{CONTENTS}: not valid JSON: it is no text") from None
    except InputError as error:
        raise ValueError(str(error)) from None
    items = found.get("itemInfoEntries") if isinstance(found, dict) else None
    if not isinstance(items, dict) or not all(isinstance(i, dict) for i in items.values()):
        raise ValueError(f"{CONTENTS} does not say what is in it")
    for item in items.values():
        if item.get("path") not in (f"{AUTHOR}/model.mlmodel", f"{AUTHOR}/weights"):
            raise ValueError(f"{CONTENTS} leads to {json.dumps(item.get('path')):.80}")


def _check_inputs(walk: _Walk, description: memoryview) -> None:
    """The inputs of a model of one function, or of the one that the settings name."""
    wanted = walk.graph.settings.get(FUNCTION, MAIN)
    names, of_functions = [], {}
    for number, _, value in walk.wire.fields(description):
        if number == OF_MODEL:
            names.append(_name(walk, message_of(value)))
        if number == OF_FUNCTION:
            fields = [(n, v) for n, _, v in walk.wire.fields(message_of(value))]
            called = next((text_of(v) for n, v in fields if n == 1), "")
            of_functions[called] = [_name(walk, message_of(v)) for n, v in fields if n == 2]
    found = of_functions.get(wanted, []) if of_functions else names
    if sorted(found) != sorted(port.name for port in walk.graph.inputs):
        raise ValueError("its inputs are not those of the manifest")


def _name(walk: _Walk, feature: memoryview) -> str:
    return next((text_of(v) for n, _, v in walk.wire.fields(feature) if n == 1), "")


def _check_function(walk: _Walk, function: memoryview) -> None:
    for number, _, value in walk.wire.fields(function):
        if number == OPSET and walk.graph.is_own and text_of(value) not in OPSETS:
            raise ValueError(f"operations of {text_of(value)!r:.40}, which fourstep does not write")
        if number != BLOCKS:
            continue
        for of_entry, _, block in walk.wire.fields(message_of(value)):
            if of_entry == VALUE:
                for of_block, _, operation in walk.wire.fields(message_of(block)):
                    if of_block == OPERATIONS:
                        _check_operation(walk, message_of(operation))


def _check_operation(walk: _Walk, operation: memoryview) -> None:
    for number, _, value in walk.wire.fields(operation):
        if number == TYPE:
            kind = text_of(value)
            if walk.graph.is_own and kind not in OPERATORS:
                raise ValueError(f"operation {kind!r:.80}, which fourstep does not write")
        elif number == NESTED:
            raise ValueError("a block in an operation: a loop or a branch")
        elif number == INPUTS:
            _check_arguments(walk, message_of(value))
        elif number == OUTPUTS:
            _check_output(walk, message_of(value))
        elif number == ATTRIBUTES:
            for of_entry, _, attribute in walk.wire.fields(message_of(value)):
                if of_entry == VALUE:
                    _check_value(walk, message_of(attribute))
        else:
            raise ValueError(f"field {number} of an operation, which fourstep does not write")


def _check_arguments(walk: _Walk, entry: memoryview) -> None:
    """Inputs name values; those that stand here themselves are looked at as attributes are."""
    for of_entry, _, argument in walk.wire.fields(entry):
        if of_entry != VALUE:
            continue
        for _, _, binding in walk.wire.fields(message_of(argument)):
            for of_binding, _, value in walk.wire.fields(message_of(binding)):
                if of_binding == 2:
                    _check_value(walk, message_of(value))


def _check_output(walk: _Walk, output: memoryview) -> None:
    for number, _, value in walk.wire.fields(output):
        if number == 2 and _bytes_of(walk, message_of(value)) > MOST_VALUE_BYTES:
            raise ValueError(f"an operation gives more than {MOST_VALUE_BYTES >> 30} GiB")


def _check_value(walk: _Walk, message: memoryview) -> None:
    """A constant has the bytes that its type takes, here or in the file of weights."""
    needed = held = 0
    for number, _, value in walk.wire.fields(message):
        if number == VALUE_TYPE:
            needed = _bytes_of(walk, message_of(value))
        elif number == IMMEDIATE:
            held = (
                len(message_of(value)) * 8
            )  # numbers may be shorter here than where they are used
        elif number == BLOB:
            held = _room(walk, message_of(value))
            walk.used_bytes += needed
    if needed > held:
        raise ValueError(f"a constant takes {needed:,} bytes, and {held:,} are there")


def _room(walk: _Walk, blob: memoryview) -> int:
    """How many bytes the file of weights has behind a place."""
    name, offset = "", 0
    for number, _, value in walk.wire.fields(blob):
        if number == 1:
            name = text_of(value)
        elif number == 2 and isinstance(value, int):
            offset = value
    size = walk.graph.sizes.get(_weights_of(walk.graph), 0)
    if name != IN_PROGRAM or offset >= size:
        raise ValueError(f"a constant at {offset:,} in {name!r:.80}, which is not in its weights")
    return size - offset


def _bytes_of(walk: _Walk, kind: memoryview) -> int:
    """Bytes of a value of a type; 0 of what is no tensor of fixed size."""
    for number, _, tensor in walk.wire.fields(kind):
        if number != 1:
            continue
        bits, sizes = 0, []
        for of_tensor, _, value in walk.wire.fields(message_of(tensor)):
            if of_tensor == 1 and isinstance(value, int):
                bits = BITS.get(value, 64)
            elif of_tensor == 3:
                sizes.append(_size(walk, message_of(value)))
        return -(-math.prod(sizes) * bits // 8)
    return 0


def _size(walk: _Walk, dimension: memoryview) -> int:
    for number, _, constant in walk.wire.fields(dimension):
        if number == 1:
            for _, _, size in walk.wire.fields(message_of(constant)):
                return size if isinstance(size, int) else 0
    return 0

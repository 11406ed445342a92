"""Writes a program as OpenVINO IR.

A compressed weight is a low-bit Constant, Convert, Subtract, Multiply and Reshape: the pattern
that OpenVINO's plugins take as weight decompression and keep compressed while they run. OpenVINO
has no i2: 2-bit codes from -2 to 1 are stored as u2 from 0 to 3, and 2 is subtracted.

OpenVINO wants all constants at hand when it saves a model, and would write each a second time. So
the ``.bin`` is ours: a constant goes there when it is made, in the form in which it is stored, and
OpenVINO gets zeros of the same shape, which take no memory. Then it writes the ``.xml``, in which
the places of the zeros give way to those in our file.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from pathlib import Path

import openvino as ov
from torch import Tensor

from exporter.backends.contract import PortForm
from exporter.backends.openvino import ops
from exporter.backends.openvino.emitter import Constants, Emitter
from exporter.backends.openvino.operators import OPERATORS
from exporter.backends.shared import Shared
from exporter.files.differences import SUFFIX, differences
from exporter.files.read import read_bytes
from exporter.files.staging import writing
from exporter.package.names import graph_of
from exporter.program import aten
from exporter.quantize.program import QuantizedProgram


def write_graph(
    program: QuantizedProgram, read: Callable[[object], Tensor], folder: Path
) -> tuple[Path, ...]:
    """Write ``<name>.xml`` and ``<name>.bin`` into ``folder``."""
    return write_graphs({program.name: program}, read, folder)[program.name]


def write_graphs(
    programs: Mapping[str, QuantizedProgram],
    read: Callable[[object], Tensor],
    folder: Path,
    forms: Mapping[str, PortForm] | None = None,
    told: Mapping[str, str] | None = None,
    halves: bool = False,
) -> dict[str, tuple[Path, ...]]:
    """Write programs with the same weights, all with one ``.bin``: the first as ``<key>.xml``, the
    others as ``<key>.xml.diff``, which says what differs from that.

    The first has the bytes that it would have alone; what the others add lies behind its values.
    Returns the files of each, the first size's ``.xml`` last where it is needed.

    Args:
        forms: of inputs, by name.
        told: what plugins are to find in the graph, where nobody tells them when it is opened.
        halves: a large tensor that fp16 holds to the last bit is stored so.
    """
    values = folder / f"{next(iter(programs))}.bin"
    shared: Shared[int] = Shared(len(programs))
    base = folder / f"{next(iter(programs))}.xml"
    written: dict[str, tuple[Path, ...]] = {}
    with values.open("wb") as stream:
        for name, program in programs.items():
            file = folder / f"{name}.xml"
            emitter = Emitter(program, read, Constants(stream, shared), forms or {}, halves)
            _write(emitter, file, told or {})
            shared.next_size()
            written[name] = (
                (file, values) if file == base else (_shortened(file, base), values, base)
            )
    return written


def _write(emitter: Emitter, file: Path, told: Mapping[str, str]) -> None:
    """Write an ``.xml``, its constants where they go."""
    program = emitter.program
    for node in program.nodes():
        translate = aten.translation(ops.TABLE, node, program.name, "OpenVINO")
        emitter.settle(node, translate(emitter, node))
    model = emitter.model()
    if graph_of(program.name) == "t5":
        # Read by the plugins that compute in fp16; the CPU's ignores it.
        model.set_rt_info("8.0", ["runtime_options", "ACTIVATIONS_SCALE_FACTOR"])
    for key, value in told.items():
        model.set_rt_info(value, ["runtime_options", key])
    places = emitter.constants.places(model)
    with writing(file):
        ov.serialize(model, file, os.devnull)
    written = ET.parse(file)
    for layer in written.iter("layer"):
        kind, version = layer.attrib["type"], layer.attrib["version"]
        assert OPERATORS.get(kind) == version, (kind, version)  # packages with another are refused
        if layer.get("type") == "Const":
            layer[0].set("offset", str(places[layer.attrib["name"]]))
    written.write(file, encoding="utf-8", xml_declaration=True)


def _shortened(file: Path, base: Path) -> Path:
    """A file that says what differs from another, in place of a file."""
    short = file.with_name(file.name + SUFFIX)
    short.write_bytes(differences(read_bytes(file), read_bytes(base)))
    file.unlink()
    return short


def save(model: ov.Model, file: Path) -> tuple[Path, Path]:
    """Write a model as ``.xml`` and ``.bin``; a full disk is an OSError."""
    values = file.with_suffix(".bin")
    constants = (o for o in model.get_ordered_ops() if o.get_type_name() == "Constant")
    with writing(values, sum(o.get_byte_size() for o in constants)):
        ov.save_model(model, file, compress_to_fp16=False)
    return file, values

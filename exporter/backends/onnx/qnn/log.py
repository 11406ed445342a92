"""What Qualcomm's provider says of a graph, in its log and in its dumps."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from exporter.backends.contract import Traffic
from exporter.errors import InputError
from exporter.files.read import read_json

LACKING = re.compile(r"Unsupported nodes in QNN EP: (.*)")
NODE = re.compile(r"\{ name: (.*?), type: (\w+) \}")
SUMMARY = "DDR bandwidth summary"
COUNT = re.compile(r"\b(spill|fill|write_total|read_total)_bytes=(\d+)\s*$")
QUANTIZING = ("QuantizeLinear", "DequantizeLinear")
FLOATS = (0x0216, 0x0232, 0x0264)  # data types of Qualcomm's: 16, 32 and 64 bits
CONVERTING = ("Quantize", "Dequantize", "Cast", "Convert")  # what may read or give floats


def unsupported(log: str) -> dict[str, str]:
    """The operators that the NPU lacks by a log: type by name, those that compute alone if any."""
    found = dict(pair for line in LACKING.findall(log) for pair in NODE.findall(line))
    computing = {name: kind for name, kind in found.items() if kind not in QUANTIZING}
    return computing or found


def traffic(lines: Iterable[str]) -> list[Traffic]:
    """What the compiler predicts of each graph that it compiled, in that order, by its log."""
    summaries = list[dict[str, int]]()
    for line in lines:
        if SUMMARY in line:
            summaries.append({})
        elif summaries and (found := COUNT.search(line)):
            summaries[-1].setdefault(found[1], int(found[2]))
    return [
        Traffic(said["read_total"], said["write_total"], said["spill"], said["fill"])
        for said in summaries
        if len(said) == 4
    ]


def float_islands(folder: Path) -> dict[str, str]:
    """What computes with floats on the NPU, by the dumps of graphs in a folder: type by name.

    Between whole numbers the compiler may keep a float operator and say nothing of it.
    """
    found: dict[str, str] = {}
    for file in sorted(folder.glob("*.json")):
        try:
            graph = read_json(file).get("graph", {})
            kinds = {name: tensor["data_type"] for name, tensor in graph["tensors"].items()}
            for name, node in graph["nodes"].items():
                ports = (*node["input_names"], *node["output_names"])
                floats = any(kinds.get(port) in FLOATS for port in ports)
                if floats and node["type"] not in CONVERTING:
                    found[name] = str(node["type"])
        except (InputError, KeyError, TypeError, AttributeError):  # another kind of file
            continue
    return found

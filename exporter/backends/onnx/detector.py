"""The reader of ``marking.read`` as one small ONNX graph, for whoever checks pictures elsewhere.

It reads pictures that were not cropped, at the size that they were drawn at, of any even size, as
``read_mark`` does when it is told that size: the same maps, statistic, payload and chance. It holds
the signs of its key, so it is as secret as the key.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from exporter.marking import embed, raster, read
from exporter.marking.key import MarkKey
from exporter.marking.pattern import SYMBOL_OF_CHIP, SYMBOLS, TILE_CHIPS, VALUES, signs

OPSET, IR_VERSION = 21, 10
INPUT = "picture"
OUTPUTS = {"statistic": TensorProto.FLOAT, "false_positive_log10": TensorProto.FLOAT,
    "payload": TensorProto.INT64}  # fmt: skip


class _Graph:
    """Nodes and constants of a graph; every value is known by its name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def const(self, value: np.ndarray | float | Sequence[int]) -> str:
        """Floats in float32; whole numbers in int64, unless they are kept narrower."""
        array = np.asarray(value)
        kept = array.astype(np.float32) if array.dtype.kind == "f" else array
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(kept), name))
        return name

    def add(self, kind: str, *inputs: str, **attributes: object) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))  # type: ignore[arg-type]
        return name

    def filtered(self, x: str, kernel: np.ndarray, before: int, behind: int) -> str:
        """Of (1, 1, h, w) continued by its edges."""
        around = [0, 0, before, before, 0, 0, behind, behind]
        padded = self.add("Pad", x, self.const(around), mode="edge")
        kernel = kernel.reshape(-1, 1, *kernel.shape[-2:])
        return self.add("Conv", padded, self.const(kernel))


def detector(key: MarkKey) -> onnx.ModelProto:
    """Picture (1, 3, H, W) float32 in levels -> statistic, false_positive_log10, payload."""
    g = _Graph()
    mixed = _mixed(g, _folded(g, _maps(g, _half(g))))
    statistics, payloads = _decoded(g, _correlations(g, mixed, key))
    chances = _chances(g, mixed, statistics)
    best = g.add("ArgMin", chances, axis=0, keepdims=0)
    for name, values in zip(OUTPUTS, (statistics, chances, payloads), strict=True):
        found = g.add("Gather", values, best, axis=0)
        g.nodes.append(helper.make_node("Identity", [found], [name], name))
    size: list[str | int | None] = [1, 3, "height", "width"]
    picture = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, size)
    outputs = [helper.make_tensor_value_info(n, kind, []) for n, kind in OUTPUTS.items()]
    graph = helper.make_graph(g.nodes, "mark_detector", [picture], outputs, g.constants)
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(
        graph, ir_version=IR_VERSION, opset_imports=opsets, producer_name="fourstep"
    )


def _half(g: _Graph) -> str:
    luma = g.add("Conv", INPUT, g.const(embed.LUMA[None, :, None, None]))
    scales = g.const(np.array([1, 1, 0.5, 0.5]))
    return g.add("Resize", luma, "", scales, mode="linear", antialias=1)


def _maps(g: _Graph, half: str) -> str:
    """(1, 3, h, w), as ``raster.maps``."""
    side = embed.KERNEL // 2
    own = _limited(g, g.filtered(half, embed.reader_filter(), side - 1, side), raster.CLIPPED_AT[0])
    unlike = _limited(g, _unlike_neighbours(g, half), raster.CLIPPED_AT[1])
    around = g.filtered(unlike, _square(raster.WITH_NEIGHBOURS), 2, 2)
    return g.add("Concat", own, unlike, around, axis=1)


def _square(taps: np.ndarray) -> np.ndarray:
    return np.outer(taps, taps)


def _unlike_neighbours(g: _Graph, half: str) -> str:
    blurred = g.filtered(half, _square(raster.BLUR), 2, 2)
    most = max(raster.OFFSETS)
    places = [(y, x) for y in raster.OFFSETS for x in raster.OFFSETS]
    picked = np.zeros((len(places), 2 * most + 1, 2 * most + 1))
    for i, (y, x) in enumerate(places):
        picked[i, most + y, most + x] = 1
    other = g.add("Sub", g.filtered(blurred, picked, most, most), blurred)
    near = np.array([math.exp(-(y * y + x * x) / (2 * raster.NEAR**2)) for y, x in places])
    difference = g.add("Div", g.add("Abs", other), g.const(raster.ALIKE))
    share = g.add("Relu", g.add("Sub", g.const(1.0), difference))
    share = g.add("Mul", share, g.const(near[None, :, None, None]))
    total = g.add("ReduceSum", g.add("Mul", share, other), g.const([1]), keepdims=1)
    weight = g.add("ReduceSum", share, g.const([1]), keepdims=1)
    unlike = g.add("Neg", g.add("Div", total, weight))
    return g.filtered(unlike, _square(raster.BETWEEN), 1, 2)


def _limited(g: _Graph, values: str, share: float) -> str:
    mean = np.full((raster.BOX, raster.BOX), raster.BOX**-2.0)
    around = g.filtered(g.add("Mul", values, values), mean, raster.BOX // 2, raster.BOX // 2)
    strength = g.add("Sqrt", g.add("Add", around, g.const(raster.FLOOR**2)))
    scaled = g.add("Div", values, g.add("Mul", strength, g.const(share)))
    return g.add("Clip", scaled, g.const(-1.0), g.const(1.0))


def _folded(g: _Graph, maps: str) -> str:
    """(3, 1024): each chip's values, summed over all tiles."""
    starts, ends, axes, steps = ([0, 0], [1 << 31, 1 << 31], [2, 3], [read.STRIDE] * 2)
    chips = g.add("Slice", maps, *(g.const(v) for v in (starts, ends, axes, steps)))
    sides = g.add("Slice", g.add("Shape", chips), g.const([2]), g.const([4]))
    tile = g.const([TILE_CHIPS])
    missing = g.add("Mod", g.add("Sub", tile, g.add("Mod", sides, tile)), tile)
    pads = g.add("Concat", g.const([0, 0, 0, 0, 0, 0]), missing, axis=0)
    whole = g.add("Pad", chips, pads)
    tiles = g.add("Div", g.add("Add", sides, missing), tile)
    down, across = (g.add("Gather", tiles, g.const([i]), axis=0) for i in (0, 1))
    shape = g.add("Concat", g.const([read.MAPS]), down, tile, across, tile, axis=0)
    summed = g.add("ReduceSum", g.add("Reshape", whole, shape), g.const([1, 3]), keepdims=0)
    return g.add("Reshape", summed, g.const([read.MAPS, TILE_CHIPS**2]))


def _mixed(g: _Graph, values: str) -> str:
    """(4, 1024): each mixture of maps, of unit norm."""
    return _unit(g, g.add("MatMul", g.const(np.array(read.MIXTURES)), _unit(g, values)))


def _unit(g: _Graph, values: str) -> str:
    norm = g.add("ReduceL2", values, g.const([1]), keepdims=1)
    return g.add("Div", values, g.add("Add", norm, g.const(1e-9)))


def _correlations(g: _Graph, mixed: str, key: MarkKey) -> list[str]:
    """(4, 256) of each symbol."""
    table, owner = signs(key).reshape(VALUES, -1), SYMBOL_OF_CHIP.ravel()
    found = []
    for symbol in range(SYMBOLS):
        places = np.flatnonzero(owner == symbol)
        own = g.add("Cast", g.const(table[:, places].T), to=TensorProto.FLOAT)
        chips = g.add("Gather", mixed, g.const(places), axis=1)
        found.append(g.add("MatMul", chips, own))
    return found


def _decoded(g: _Graph, symbols: Sequence[str]) -> tuple[str, str]:
    """(4,) statistics and payloads, as ``read.decode``."""
    others = g.const(read.XOR.ravel().astype(np.int32))
    left, left_from = _joined(g, symbols[0], symbols[1], others)
    right, right_from = _joined(g, symbols[2], symbols[3], others)
    both, both_from = _joined(g, left, right, others)
    total = g.add("Add", both, symbols[4])
    value = g.add("ArgMax", total, axis=1, keepdims=1)
    first = g.add("GatherElements", both_from, value, axis=1)
    second = _xor(g, first, value)
    one = g.add("GatherElements", left_from, first, axis=1)
    three = g.add("GatherElements", right_from, second, axis=1)
    parts = (one, _xor(g, one, first), three, _xor(g, three, second))
    shifted = [
        g.add("Mul", part, g.const([256**i])) for i, part in zip((3, 2, 1, 0), parts, strict=True)
    ]
    payload = functools.reduce(lambda a, b: g.add("Add", a, b), shifted)
    statistic = g.add("ReduceMax", total, g.const([1]), keepdims=0)
    return statistic, g.add("Squeeze", payload, g.const([1]))


def _joined(g: _Graph, one: str, other: str, others: str) -> tuple[str, str]:
    shape = g.const([len(read.MIXTURES), VALUES, VALUES])
    spread = g.add("Reshape", g.add("Gather", other, others, axis=1), shape)
    sums = g.add("Add", g.add("Unsqueeze", one, g.const([2])), spread)
    best = g.add("ReduceMax", sums, g.const([1]), keepdims=0)
    return best, g.add("ArgMax", sums, axis=1, keepdims=0)


def _xor(g: _Graph, one: str, other: str) -> str:
    kind = {"to": TensorProto.UINT8}
    bits = g.add("BitwiseXor", g.add("Cast", one, **kind), g.add("Cast", other, **kind))
    return g.add("Cast", bits, to=TensorProto.INT64)


def _chances(g: _Graph, mixed: str, statistics: str) -> str:
    """(4,): as ``read.chance_log10``, over all payloads and mixtures."""
    square = g.add("ReduceMean", g.add("Mul", mixed, mixed), g.const([1]), keepdims=1)
    scale = g.add("Add", g.add("Sqrt", square), g.const(1e-12))
    rates = g.add("Div", g.const(read.RATES[None]), scale)
    along = g.add("Unsqueeze", rates, g.const([2]))
    sizes = g.add("Mul", along, g.add("Unsqueeze", g.add("Abs", mixed), g.const([1])))
    tail = g.add(
        "Log", g.add("Add", g.const(1.0), g.add("Exp", g.add("Mul", sizes, g.const(-2.0))))
    )
    log = g.add("Sub", g.add("Add", sizes, tail), g.const(math.log(2)))
    summed = g.add("ReduceSum", log, g.const([2]), keepdims=0)
    of_total = g.add("Mul", rates, g.add("Unsqueeze", statistics, g.const([1])))
    least = g.add("ReduceMin", g.add("Sub", summed, of_total), g.const([1]), keepdims=0)
    scaled = g.add("Div", g.add("Min", least, g.const(0.0)), g.const(math.log(10)))
    counted = g.add("Add", scaled, g.const(read.log10_of(1, 1.0)))
    return g.add("Min", counted, g.const(0.0))

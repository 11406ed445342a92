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

from exporter.marking import embed, learned, raster, read
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

    def padded(self, x: str, before: int, behind: int) -> str:
        """(1, c, h, w) continued by its edges."""
        around = [0, 0, before, before, 0, 0, behind, behind]
        return self.add("Pad", x, self.const(around), mode="edge")

    def filtered(self, x: str, kernel: np.ndarray, before: int, behind: int) -> str:
        """Of (1, 1, h, w) continued by its edges."""
        kernel = kernel.reshape(-1, 1, *kernel.shape[-2:])
        return self.add("Conv", self.padded(x, before, behind), self.const(kernel))


def detector(key: MarkKey) -> onnx.ModelProto:
    """Picture (1, 3, H, W) float32 in levels -> statistic, false_positive_log10, payload."""
    g = _Graph()
    values = _in_steps(g, _folded(g, _odds(g, _planes(g, _half(g)))))
    statistic, payload = _decoded(g, _correlations(g, values, key))
    chance = _chance(g, values, statistic)
    for name, found in zip(OUTPUTS, (statistic, chance, payload), strict=True):
        g.nodes.append(helper.make_node("Squeeze", [found], [name], name))
    size: list[str | int | None] = [1, 3, "height", "width"]
    picture = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, size)
    outputs = [helper.make_tensor_value_info(n, kind, []) for n, kind in OUTPUTS.items()]
    graph = helper.make_graph(g.nodes, "mark_detector", [picture], outputs, g.constants)
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(
        graph, ir_version=IR_VERSION, opset_imports=opsets, producer_name="fourstep"
    )


def _half(g: _Graph) -> str:
    """(1, 1, H / 2, W / 2), as ``raster.halved``: weights outside the picture are left out."""
    luma = g.add("Conv", INPUT, g.const(embed.LUMA[None, :, None, None]))
    kernel = g.const(_square(embed.HALVING)[None, None])
    ones = g.add("Add", g.add("Mul", luma, g.const(0.0)), g.const(1.0))
    sums, weights = (
        g.add("Conv", x, kernel, strides=[2, 2], pads=[1, 1, 1, 1]) for x in (luma, ones)
    )
    return g.add("Div", sums, weights)


def _planes(g: _Graph, half: str) -> str:
    """(1, 6, h, w), as ``raster.planes``."""
    detail = g.add("Sub", half, _mean(g, half))
    cut = [
        g.add("Clip", g.add("Div", detail, g.const(s)), g.const(-1.0), g.const(1.0))
        for s in raster.STRENGTHS
    ]
    return g.add("Concat", *cut, _maps(g, half), axis=1)


def _odds(g: _Graph, planes: str) -> str:
    """(1, 1, rows, columns), as ``learned.odds``."""
    kept, step = learned.weights(), [learned.STRIDE] * 2
    before, behind = learned.AROUND
    found = g.padded(planes, before, behind)
    for name in learned.LAYERS:
        is_first = name == learned.LAYERS[0]
        given = found if is_first else g.add("Relu", found)
        parts = (g.const(kept[name]), g.const(kept[f"{name}_bias"]))
        found = g.add("Conv", given, *parts, strides=step if is_first else [1, 1])
    inner = g.padded(planes, before - learned.SKIPPED, behind - learned.SKIPPED)
    return g.add("Add", found, g.add("Conv", inner, g.const(kept["linear"]), strides=step))


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
    around = _mean(g, g.add("Mul", values, values))
    strength = g.add("Sqrt", g.add("Add", around, g.const(raster.FLOOR**2)))
    scaled = g.add("Div", values, g.add("Mul", strength, g.const(share)))
    return g.add("Clip", scaled, g.const(-1.0), g.const(1.0))


def _mean(g: _Graph, values: str) -> str:
    """Over a box."""
    box = np.full((raster.BOX, raster.BOX), raster.BOX**-2.0)
    return g.filtered(values, box, raster.BOX // 2, raster.BOX // 2)


def _folded(g: _Graph, odds: str) -> str:
    """(1, 1024): each chip's odds, summed over all tiles."""
    sides = g.add("Slice", g.add("Shape", odds), g.const([2]), g.const([4]))
    tile = g.const([TILE_CHIPS])
    missing = g.add("Mod", g.add("Sub", tile, g.add("Mod", sides, tile)), tile)
    pads = g.add("Concat", g.const([0, 0, 0, 0, 0, 0]), missing, axis=0)
    whole = g.add("Pad", odds, pads)
    tiles = g.add("Div", g.add("Add", sides, missing), tile)
    down, across = (g.add("Gather", tiles, g.const([i]), axis=0) for i in (0, 1))
    shape = g.add("Concat", down, tile, across, tile, axis=0)
    summed = g.add("ReduceSum", g.add("Reshape", whole, shape), g.const([0, 2]), keepdims=0)
    return g.add("Reshape", summed, g.const([1, TILE_CHIPS**2]))


def _in_steps(g: _Graph, values: str) -> str:
    """(1, 1024), as ``read.in_steps``."""
    norm = g.add("ReduceL2", values, g.const([1]), keepdims=1)
    unit = g.add("Div", values, g.add("Add", norm, g.const(1e-9)))
    steps = g.add("Round", g.add("Mul", unit, g.const(float(read.STEPS))))
    kept = g.add("Clip", steps, g.const(-float(read.HIGHEST)), g.const(float(read.HIGHEST)))
    return g.add("Div", kept, g.const(float(read.STEPS)))


def _correlations(g: _Graph, values: str, key: MarkKey) -> list[str]:
    """(1, 256) of each symbol."""
    table, owner = signs(key).reshape(VALUES, -1), SYMBOL_OF_CHIP.ravel()
    found = []
    for symbol in range(SYMBOLS):
        places = np.flatnonzero(owner == symbol)
        own = g.add("Cast", g.const(table[:, places].T), to=TensorProto.FLOAT)
        chips = g.add("Gather", values, g.const(places), axis=1)
        found.append(g.add("MatMul", chips, own))
    return found


def _decoded(g: _Graph, symbols: Sequence[str]) -> tuple[str, str]:
    """(1,) statistic and payload, as ``read.decode``."""
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
    shape = g.const([1, VALUES, VALUES])
    spread = g.add("Reshape", g.add("Gather", other, others, axis=1), shape)
    sums = g.add("Add", g.add("Unsqueeze", one, g.const([2])), spread)
    best = g.add("ReduceMax", sums, g.const([1]), keepdims=0)
    return best, g.add("ArgMax", sums, axis=1, keepdims=0)


def _xor(g: _Graph, one: str, other: str) -> str:
    kind = {"to": TensorProto.UINT8}
    bits = g.add("BitwiseXor", g.add("Cast", one, **kind), g.add("Cast", other, **kind))
    return g.add("Cast", bits, to=TensorProto.INT64)


def _chance(g: _Graph, values: str, statistic: str) -> str:
    """(1,): as ``read.chance_log10``, over all payloads."""
    steps = g.add(
        "Mul", g.add("Unsqueeze", g.add("Abs", values), g.const([2])), g.const(float(read.STEPS))
    )
    grid = np.arange(read.HIGHEST + 1.0)
    apart = g.add("Abs", g.add("Sub", steps, g.const(grid)))
    equal = g.add("Cast", g.add("Less", apart, g.const(0.5)), to=TensorProto.FLOAT)
    counts = g.add("ReduceSum", equal, g.const([1]), keepdims=0)
    aim = g.add("Unsqueeze", g.add("Mul", statistic, g.const(float(read.STEPS))), g.const([1]))
    rates = read.RATES / read.STEPS
    sizes = rates[:, None] * grid
    logs = sizes + np.log1p(np.exp(-2 * sizes)) - math.log(2)
    of_aim = g.add("Mul", aim, g.const(rates[None]))
    bounds = g.add("Sub", g.add("MatMul", counts, g.const(logs.T)), of_aim)
    bound = g.add("ReduceMin", bounds, g.const([1]), keepdims=0)
    best = g.add("ArgMin", bounds, axis=1, keepdims=1)
    rate = g.add("Gather", g.const(rates), best, axis=0)
    log = g.add("Add", bound, g.add("Log", _tail(g, counts, aim, rate)))
    scaled = g.add("Div", g.add("Min", log, g.const(0.0)), g.const(math.log(10)))
    counted = g.add("Add", scaled, g.const(read.log10_of(1, 1.0)))
    return g.add("Min", counted, g.const(0.0))


def _tail(g: _Graph, counts: str, aim: str, rate: str) -> str:
    """(1,), as in ``read``, of ``counts`` (1, heights), ``aim`` and ``rate`` (1, 1)."""
    grid = np.arange(read.HIGHEST + 1.0)
    turns = 2 * math.pi * np.arange(read.TERMS // 2 + 1) / read.TERMS
    halves = g.add("Mul", g.const(turns[:, None] / 2), g.const(grid))
    tilt = g.add("Unsqueeze", g.add("Tanh", g.add("Mul", rate, g.const(grid))), g.const([1]))
    sines, cosines = g.add("Mul", tilt, g.add("Sin", halves)), g.add("Cos", halves)
    square = g.add("Add", g.add("Mul", sines, sines), g.add("Mul", cosines, cosines))
    square = g.add("Max", square, g.const(read.TINIEST))
    counts = g.add("Unsqueeze", counts, g.const([2]))

    def of_coins(values: str) -> str:
        return g.add("Squeeze", g.add("MatMul", values, counts), g.const([2]))

    size = g.add("Exp", g.add("Mul", of_coins(g.add("Log", square)), g.const(0.5)))
    left = g.add("Cast", g.add("Less", cosines, g.const(0.0)), to=TensorProto.FLOAT)
    angle = g.add("Atan", g.add("Div", sines, cosines))
    angle = of_coins(g.add("Add", angle, g.add("Mul", left, g.const(math.pi))))
    angle = g.add("Sub", angle, g.add("Mul", aim, g.const(turns[None] / 2)))
    shrunk = g.add("Exp", g.add("Mul", rate, g.const(-2.0)))
    across = g.add("Sub", g.const(1.0), g.add("Mul", shrunk, g.const(np.cos(turns)[None])))
    down = g.add("Mul", shrunk, g.const(np.sin(turns)[None]))
    up = g.add("Mul", g.add("Cos", angle), across)
    beside = g.add("Mul", g.add("Sin", angle), down)
    over = g.add("Add", g.add("Mul", across, across), g.add("Mul", down, down))
    terms = g.add("Mul", size, g.add("Div", g.add("Add", up, beside), over))
    twice = np.where(np.arange(len(turns)) % (read.TERMS // 2) == 0, 1.0, 2.0) / read.TERMS
    total = g.add("ReduceSum", g.add("Mul", terms, g.const(twice[None])), g.const([1]), keepdims=0)
    return g.add("Max", total, g.const(read.TINIEST))

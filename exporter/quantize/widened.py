"""Which weights are decoded once, when a graph is opened, and not whenever it runs.

Kernels for codes spare memory, and time where a weight is large. Small ones they multiply slower
than float32: by 77 or 256 rows onnxruntime took 1.5 to 3.7 times as long where a weight's shorter
side is 64 to 192, 1.3 to 1.8 at 256, 1.1 to 1.3 at 384 and 512, and the same at 1024 (the longer
side four times that, one thread, AVX-512 VNNI and AMX; by hand). A small graph's weights are few,
so that they may as well be float32 in memory: its files stay as they are.
"""

from __future__ import annotations

import math

from torch import fx

from exporter.quantize.program import QuantizedProgram
from exporter.quantize.rounded import CHANNELS

MOST_SIDE = 256  # of the shorter side of the largest weight
MOST_BYTES = 64 << 20  # of all of a graph's, in float32


def widened_bytes(program: QuantizedProgram) -> int:
    """Bytes in float32 of the weights that a small graph decodes; 0 for one that is not small.

    Layers whose inputs are rounded multiply codes, and tables are looked up as codes.
    """
    weights = (node.args[1] for node in program.nodes() if node.target in CHANNELS)
    parts = (program.part(weight) for weight in weights if isinstance(weight, fx.Node))
    shapes = {
        part.of.name: part.of.shape
        for part in parts
        if part is not None and part.format.is_integer and part.format.storage.inputs is None
    }
    sides = (min(shape[0], math.prod(shape[1:])) for shape in shapes.values())
    found = 4 * sum(map(math.prod, shapes.values()))
    return found if max(sides, default=0) <= MOST_SIDE and found <= MOST_BYTES else 0

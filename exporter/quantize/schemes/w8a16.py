"""w8a16: 8-bit weights, and every value of every graph in 16 bits: what an NPU computes with.

Tables and vectors are values too, and have 16 bits.
"""

from __future__ import annotations

from exporter.quantize.formats import FORMATS, Rule, Scheme

SCHEME = Scheme(
    "w8a16",
    rules=(Rule("*", "*", FORMATS["w8a16"], roles=("linear", "conv")),),
)

"""pal4: palettes of 16 values in the MMDiT's linear layers, one per weight; 8 bits elsewhere.

The oldest 4-bit form that Core ML takes (iOS 16).
"""

from __future__ import annotations

from dataclasses import replace

from exporter.quantize.formats import FORMATS, Scheme
from exporter.quantize.schemes.int4 import SCHEME as INT4

SCHEME = Scheme(
    "pal4",
    rules=tuple(
        replace(rule, format=FORMATS["pal4"]) if rule.format.name == "int4" else rule
        for rule in INT4.rules
    ),
)

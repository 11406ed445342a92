"""pal6: as pal4, with palettes of 64 values."""

from __future__ import annotations

from dataclasses import replace

from exporter.quantize.formats import FORMATS, Scheme
from exporter.quantize.schemes.pal4 import SCHEME as PAL4

SCHEME = Scheme(
    "pal6",
    rules=tuple(
        replace(rule, format=FORMATS["pal6"]) if rule.format.name == "pal4" else rule
        for rule in PAL4.rules
    ),
)

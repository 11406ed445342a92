"""pal4-grouped: as pal4, with a palette for every 16 output channels (Core ML: iOS 18)."""

from __future__ import annotations

from dataclasses import replace

from exporter.quantize.formats import Format, Scheme
from exporter.quantize.schemes.pal4 import SCHEME as PAL4

SCHEME = Scheme(
    "pal4-grouped",
    rules=tuple(
        replace(rule, format=Format("pal4", group_size=16)) if rule.format.name == "pal4" else rule
        for rule in PAL4.rules
    ),
)

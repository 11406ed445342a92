"""pal6: as pal4, with palettes of 64 values."""

from dataclasses import replace

from exporter.formats import FORMATS, Scheme
from exporter.schemes.pal4 import SCHEME as PAL4

SCHEME = Scheme(
    "pal6",
    rules=tuple(
        replace(rule, format=FORMATS["pal6"]) if rule.format.name == "pal4" else rule
        for rule in PAL4.rules
    ),
)

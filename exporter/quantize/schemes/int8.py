"""int8: one scale per output channel, symmetric; norms, biases and position tables stay float."""

from __future__ import annotations

from exporter.quantize.formats import FORMATS, Rule, Scheme

SCHEME = Scheme(
    "int8",
    rules=(Rule("*", "*", FORMATS["int8"], roles=("linear", "conv", "embedding")),),
)

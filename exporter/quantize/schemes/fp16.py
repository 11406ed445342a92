"""fp16: weights stored in half precision, computed as the backend likes (on a CPU: in float32)."""

from __future__ import annotations

from exporter.quantize.formats import FORMATS, Rule, Scheme

SCHEME = Scheme(
    "fp16",
    rules=(Rule("*", "*", FORMATS["fp16"], roles=("linear", "conv", "embedding", "table")),),
)

"""fp32: weights as they are. The yardstick."""

from __future__ import annotations

from exporter.quantize.formats import Scheme

SCHEME = Scheme("fp32", rules=())

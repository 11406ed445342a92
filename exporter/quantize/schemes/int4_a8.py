"""int4-a8: int4, and the VAE's convolutions round their input to 8 bits, as int8-w8a8's do.

The inputs of 4-bit layers are rounded by runtimes as they run, in any scheme.
"""

from __future__ import annotations

from exporter.quantize.formats import Scheme
from exporter.quantize.schemes.int4 import SCHEME as INT4
from exporter.quantize.schemes.int8_w8a8 import VAE

SCHEME = Scheme("int4-a8", rules=(*INT4.rules, *VAE))

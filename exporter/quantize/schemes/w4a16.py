"""w4a16: as w8a16, with the denoiser's linear layers in 4 bits, as int4 has them.

Each block of weights has a scale that is a whole multiple of its output channel's.
"""

from __future__ import annotations

from exporter.quantize.formats import FORMATS, Rule, Scheme
from exporter.quantize.schemes.w8a16 import SCHEME as W8A16

SCHEME = Scheme(
    "w4a16",
    rules=(
        *W8A16.rules,
        Rule("denoiser", "*", FORMATS["w4a16"], roles=("linear",)),
        Rule("conditioner", "*", FORMATS["w4a16"], roles=("linear",)),
        Rule("conditioner", "*embed*", FORMATS["w8a16"], roles=("linear",)),
        Rule("denoiser", "proj_out.*", FORMATS["w8a16"], roles=("linear",)),
    ),
)

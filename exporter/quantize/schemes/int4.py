"""int4: 4-bit groups in the MMDiT's linear layers, 8 bits in what touches pixels or prompts.

The patch and output projections and the embedders are under 1 % of the weights and every value of
the picture passes through them; users of other tools report that 4-bit text encoders change what
is drawn. Both stay at 8 bits.
"""

from __future__ import annotations

from exporter.quantize.formats import FORMATS, Rule, Scheme

SCHEME = Scheme(
    "int4",
    rules=(
        Rule("*", "*", FORMATS["int8"], roles=("linear", "conv", "embedding")),
        Rule("denoiser", "*", FORMATS["int4"], roles=("linear",)),
        Rule("conditioner", "*", FORMATS["int4"], roles=("linear",)),
        Rule("conditioner", "*embed*", FORMATS["int8"], roles=("linear",)),
        Rule("denoiser", "proj_out.*", FORMATS["int8"], roles=("linear",)),
    ),
)

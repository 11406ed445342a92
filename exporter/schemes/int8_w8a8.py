"""int8-w8a8: int8, and the denoiser's linear layers also round their input to 8 bits.

The output projection is spared: every value of the picture passes through it.
"""

from exporter.formats import FORMATS, Rule, Scheme
from exporter.schemes.int8 import SCHEME as INT8

SCHEME = Scheme(
    "int8-w8a8",
    rules=(
        *INT8.rules,
        Rule("denoiser", "*", FORMATS["w8a8"], roles=("linear",)),
        Rule("denoiser", "proj_out.*", FORMATS["int8"], roles=("linear",)),
    ),
)

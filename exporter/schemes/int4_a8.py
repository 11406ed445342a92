"""int4-a8: int4, and the VAE's convolutions round their input to 8 bits, as int8-w8a8's do.

The inputs of 4-bit layers are rounded by runtimes as they run, in any scheme.
"""

from exporter.formats import FORMATS, Rule, Scheme
from exporter.schemes.int4 import SCHEME as INT4

SCHEME = Scheme(
    "int4-a8",
    rules=(
        *INT4.rules,
        Rule("vae_decoder", "*", FORMATS["w8a8"], roles=("conv",)),
        Rule("vae_decoder", "decoder.conv_*", FORMATS["int8"], roles=("conv",)),
    ),
)

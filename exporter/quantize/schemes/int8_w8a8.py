"""int8-w8a8: int8, and the denoiser's linear layers and the VAE's convolutions round their input.

The output projection and the VAE's first and last convolution are spared: every value of the
picture passes through them.
"""

from __future__ import annotations

from exporter.quantize.formats import FORMATS, Rule, Scheme
from exporter.quantize.schemes.int8 import SCHEME as INT8

VAE = (
    Rule("vae_decoder", "*", FORMATS["w8a8"], roles=("conv",)),
    Rule("vae_decoder", "decoder.conv_*", FORMATS["int8"], roles=("conv",)),
)
SCHEME = Scheme(
    "int8-w8a8",
    rules=(
        *INT8.rules,
        Rule("denoiser", "*", FORMATS["w8a8"], roles=("linear",)),
        Rule("denoiser", "proj_out.*", FORMATS["int8"], roles=("linear",)),
        *VAE,
    ),
)

"""What a quantizer is: a function from an unquantized graph to a quantized one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

GRAPHS = ("conditioner", "denoiser")

Samples = Sequence[Mapping[str, np.ndarray]]
# (unquantized graph, inputs to calibrate on, folder) -> the file written into the folder
Quantize = Callable[[Path, Samples, Path], Path]


@dataclass(frozen=True)
class Variant:
    """One setting of one peer's quantizer.

    Attributes:
        peer: the distribution that quantizes.
        backend: whose graphs it takes and gives.
        remark: what it gets wrong and does not say.
    """

    name: str
    peer: str
    backend: str
    quantize: Quantize
    remark: str = ""

"""A negative prompt that is fixed: its text is encoded as the package is built, not on a device.

The states that the text encoders give for it become constants of the conditioner. They are computed
without quantization, since nothing of a device's depends on them, and in float64: rounded to
``BITS`` bits they come out the same whatever order a processor adds in.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import numpy as np
import torch

from exporter.calibrate.weights import Weights
from exporter.checkpoint.open import Checkpoint
from exporter.drawing.text import Encode
from exporter.network.wiring import state_of
from exporter.package.names import NEGATIVE
from exporter.program.program import Program
from exporter.program.run import run

BITS = 16  # of a state's mantissa: an error of 2^-17, a tenth of what float32 encoders differ by
States = Callable[[str, str], np.ndarray]


def fixed_states(
    checkpoint: Checkpoint,
    programs: Mapping[str, Program],
    encoders: Mapping[str, Encode],
    text: str,
) -> States:
    """Gives what a text encoder puts out for a text, by encoder and output; each runs once.

    Args:
        programs: as traced, by graph.
        encoders: from text to ids, by text encoder.
    """
    weights = Weights(checkpoint, torch.float64, keep_bytes=0)

    @functools.cache
    def outputs(encoder: str) -> dict[str, np.ndarray]:
        ids = torch.from_numpy(encoders[encoder](text))
        found = run(programs[encoder], weights.read, {"ids": ids})
        return {name: rounded(value.numpy()) for name, value in found.items()}

    return lambda encoder, output: outputs(encoder)[output]


def fold_negative(conditioner: Program, states: States) -> Program:
    """The conditioner with the states of a fixed negative prompt in it, if it takes any."""
    names = [port.name for port in conditioner.inputs if port.name.startswith(NEGATIVE)]
    return conditioner.fold({n: functools.partial(states, *state_of(n)) for n in names})


def rounded(value: np.ndarray) -> np.ndarray:
    """Float64 to float32 with ``BITS`` bits of mantissa."""
    mantissa, exponent = np.frexp(value)
    short: np.ndarray = np.ldexp(np.round(mantissa * 2.0**BITS) / 2.0**BITS, exponent)
    return short.astype(np.float32)

"""8-bit activations with NNCF, calibrated on the model's own trajectories."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import openvino as ov

from exporter.runtime.manifest import Adjusted

SMOOTH_QUANT_ALPHA = 0.7


def round_activations(
    model: ov.Model, rounded: Mapping[str, str], samples: Sequence[Mapping[str, np.ndarray]]
) -> tuple[ov.Model, tuple[Adjusted, ...]]:
    """Give linear layers 8-bit inputs with a fixed scale each, and 8-bit weights.

    Args:
        rounded: MatMul operators by name, and their weights' names; no other operator changes.
        samples: inputs of the model to calibrate on.

    Returns:
        The model, and the weights whose layers were left as they were.
    """
    nncf = _nncf()
    spared = [
        o.get_friendly_name()
        for o in model.get_ordered_ops()
        if o.get_friendly_name() not in rounded
        and o.get_type_name() not in ("Constant", "Parameter", "Result")
    ]
    alphas = nncf.AdvancedSmoothQuantParameters(matmul=SMOOTH_QUANT_ALPHA)
    with contextlib.redirect_stdout(io.StringIO()):  # its progress bars
        quantized = nncf.quantize(
            model,
            nncf.Dataset([dict(s) for s in samples]),
            subset_size=len(samples),
            model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.PERFORMANCE,
            ignored_scope=nncf.IgnoredScope(names=spared, validate=False),
            advanced_parameters=nncf.AdvancedQuantizationParameters(smooth_quant_alphas=alphas),
        )
    done = {o.get_friendly_name() for o in quantized.get_ordered_ops() if _has_rounded_input(o)}
    left = tuple(Adjusted(w, "w8a8", "int8") for name, w in rounded.items() if name not in done)
    return quantized, left


def _has_rounded_input(operator: Any) -> bool:
    if operator.get_type_name() != "MatMul":
        return False
    source = operator.input_value(0).get_node()
    while source.get_type_name() in ("Reshape", "Transpose"):
        source = source.input_value(0).get_node()
    return bool(source.get_type_name() == "FakeQuantize")


def _nncf() -> Any:
    """NNCF without its talk on the terminal."""
    import nncf

    nncf.set_log_level(logging.ERROR)
    return nncf

"""NNCF's weight compression of OpenVINO graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.fidelity.variant import Quantize, Samples, Variant

G64: dict[str, Any] = {"group_size": 64}
AWARE = ("awq", "scale_estimation", "gptq")
SHORT = {"scale_estimation": "se"}
HESSIAN = "HESSIAN_INPUT_ACTIVATION"
AWQ_REMARK = (
    "AWQ scales an input that 13 layers of the conditioner share, and the weights of one of them; "
    "it finds nothing to scale in the denoiser"
)


def variants() -> list[Variant]:
    """Every setting that is measured."""
    found = {"int8-sym": compress("INT8_SYM"), "int8-asym": compress("INT8_ASYM")}
    for sign in ("sym", "asym"):
        for group in (32, 64, 128):
            found[f"int4-{sign} g{group}"] = compress(f"INT4_{sign.upper()}", group_size=group)
    found["int4-sym g64 awq data-free"] = compress("INT4_SYM", **G64, awq=True)
    for sign, group, methods in (
        ("sym", 64, ("awq",)),
        ("sym", 64, ("scale_estimation",)),
        ("sym", 64, ("gptq",)),
        ("sym", 64, ("scale_estimation", "gptq")),
        ("sym", 64, AWARE),
        ("asym", 32, ("gptq",)),
        ("asym", 64, ("gptq",)),
        ("asym", 64, ("scale_estimation", "gptq")),
        ("asym", 128, ("gptq",)),
    ):
        name = f"int4-{sign} g{group} {'+'.join(SHORT.get(m, m) for m in methods)}"
        chosen: dict[str, Any] = {"group_size": group, **dict.fromkeys(methods, True)}
        found[name] = compress(f"INT4_{sign.upper()}", data=True, **chosen)
    for metric in (
        "WEIGHT_QUANTIZATION_ERROR",
        HESSIAN,
        "MEAN_ACTIVATION_VARIANCE",
        "MAX_ACTIVATION_VARIANCE",
        "MEAN_ACTIVATION_MAGNITUDE",
    ):
        found[f"int4-sym g64 ratio 0.8 {metric.lower()}"] = _mixed(metric, 0.8)
    for ratio in (0.9, 0.65, 0.5):
        found[f"int4-sym g64 ratio {ratio} {HESSIAN.lower()}"] = _mixed(HESSIAN, ratio)
    for ratio in (0.8, 0.5):
        name = f"int4-asym g64 gptq ratio {ratio} {HESSIAN.lower()}"
        found[name] = _mixed(HESSIAN, ratio, "INT4_ASYM", gptq=True)
    for mode in ("NF4", "CB4", "INT3_SYM", "INT2_SYM"):
        found[f"{mode.lower().replace('_', '-')} g64"] = compress(mode, **G64)
    found["int3-sym g64 gptq"] = compress("INT3_SYM", data=True, **G64, gptq=True)
    found["adaptive codebook g64"] = compress("ADAPTIVE_CODEBOOK", data=True, **G64)
    found["mxfp4"] = compress("MXFP4")
    found["nvfp4"] = compress("NVFP4")
    return [
        Variant(f"nncf {name}", "nncf", "openvino", call, AWQ_REMARK if "awq" in name else "")
        for name, call in found.items()
    ]


def _mixed(metric: str, ratio: float, mode: str = "INT4_SYM", **options: Any) -> Quantize:
    """``ratio`` of the weights in 4 bits, those that a metric finds sensitive in 8."""
    return compress(mode, data=True, metric=metric, ratio=ratio, **G64, **options)


def compress(
    mode: str, *, data: bool = False, metric: str | None = None, **options: Any
) -> Quantize:
    """``nncf.compress_weights`` with these options, and NNCF's choice of layers.

    NNCF does not see weights that only meet constants, those of the time embedding, and would leave
    them in float32; it gets the graph with constants folded, where their result stands instead.

    Args:
        mode: a name of ``nncf.CompressWeightsMode``.
        data: give it the calibration inputs.
        metric: a name of ``nncf.SensitivityMetric``.
    """

    def quantize(file: Path, samples: Samples, folder: Path) -> Path:
        import nncf
        import openvino as ov
        from openvino.passes import ConstantFolding, Manager

        model = ov.Core().read_model(file)
        folding = Manager()
        folding.register_pass(ConstantFolding())
        folding.run_passes(model)
        chosen = dict(options)
        if data:
            chosen |= {"dataset": nncf.Dataset(list(samples)), "subset_size": len(samples)}
        if metric:
            chosen["sensitivity_metric"] = nncf.SensitivityMetric[metric]
        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode[mode], **chosen)
        ov.save_model(model, folder / file.name, compress_to_fp16=False)
        return folder / file.name

    return quantize

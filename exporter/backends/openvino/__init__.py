"""OpenVINO IR (.xml and .bin) for Intel processors, graphics and NPUs.

The model is built operator by operator with OpenVINO's own opset. On the CPU its runtime graph has
the same fused attention, norms and compressed products as the roads through ONNX and through torch
have, in fewer nodes (``benchmarks/openvino_forms.py``); what decides for it is that codes and
zero points go in as they are. All shapes are static, inputs and outputs float32 (ids int32).

2-bit weights stay compressed on the CPU as 4-bit ones do (OpenVINO 2026.4.1): a product of
1024 x 1536 x 6144 in groups of 64 took 0.94 to 1.03 of int4's time, one row 0.7; groups of 16,
which do without 8-bit activations, twice as long (``benchmarks/weight_formats.py``). No GPU or NPU
was tried.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporter.backends import Emitted, Memory, Order, Session, Setup
from exporter.cut import graph_of
from exporter.errors import CheckFailed
from exporter.runtime.manifest import Tokenizer, Tolerance

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from exporter.formats import Format
    from exporter.quantize import QuantizedProgram

# OpenVINO reports its import to a server through this module, unless it cannot be found.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

EXTRA = "openvino"
BUILD_EXTRA = "build,openvino-build"
REQUIRES = {
    "torch": "torch",
    "transformers": "transformers",
    "openvino_tokenizers": "openvino-tokenizers",
    "openvino": "openvino",
}
RUNS_WITH = {"openvino": "openvino"}
OPTIONS: dict[str, tuple[str, ...]] = {}
DEVICES = ("CPU", "GPU", "NPU", "NPUW")
CACHES = DEVICES
HALF = ("CPU", "GPU")
# Weights are packed for their kernels, those of convolutions in float32; tables stay mapped.
MEMORY = Memory(
    process_bytes=41_000_000,
    node_bytes=54_000,
    held={
        "embedding int8": 0.0, "embedding fp16": 0.75, "embedding fp32": 0.0,
        "linear int8": 1.055, "linear w8a8": 1.055, "linear int4": 1.2, "linear int2": 1.3,
        "linear fp16": 3.7, "linear fp32": 1.0,
        "conv int8": 7.6, "conv fp16": 3.8, "conv fp32": 1.9,
    },
    activations={"": 1.3},
    patches=0.0,
    build_process_bytes=305_000_000,
    build_weight={"fp32": 1.0, "fp16": 1.55, "int8": 0.22, "w8a8": 0.22, "": 0.8},
    build_node_bytes=44_000,
    node_file_bytes=900,
)  # fmt: skip
TOLERANCE = Tolerance(graph_relative=1e-4, image_psnr_db=40.0)
HALVED = "half"  # of a graph's settings: what --half halves on the CPU; without it, everything
GROUP_PROPERTY = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
ACTIVATION_GROUP = 64

# The NPU's own compilation path, which cuts a graph into functions, with the processor behind it:
# what can be checked of an NPU where there is none.
NPUW = {"NPU_USE_NPUW": "YES", "NPUW_DEVICES": "CPU", "NPUW_ONLINE_PIPELINE": "NONE"}


def refuse(form: Format, options: Mapping[str, str]) -> str | None:
    """Why a format cannot be expressed, or None."""
    return (
        "OpenVINO IR has no palettes that its plugins keep compressed" if form.is_palette else None
    )


def emit(
    program: QuantizedProgram, read: Callable[[object], Tensor], folder: Path, order: Order
) -> Emitted:
    """Write ``<graph>.xml`` and ``<graph>.bin``; weights are read one at a time."""
    from exporter import activations
    from exporter.backends.openvino.writer import write_graph

    roundings = order.roundings(program)
    files = write_graph(program, read, folder, roundings)
    # f32: no silent bf16 or fp16 on hardware that has it. T5's activations leave fp16's range: on a
    # GPU that is told to use it, this factor scales them down inside.
    settings = {"INFERENCE_PRECISION_HINT": "f32", **_products(program)}
    if graph_of(program.name) == "t5":
        settings["ACTIVATIONS_SCALE_FACTOR"] = "8.0"
    return Emitted(
        files[0], files, activations.TOLERANCE if roundings else TOLERANCE, settings,
        activations.not_rounded(program, roundings), activations.spared(program, roundings),
    )  # fmt: skip


def _products(program: QuantizedProgram) -> dict[str, str]:
    """How a graph of linear layers with integer weights multiplies; of the VAE and others nothing.

    In 8 bits, with a scale for so many activations: OpenVINO's default is 32, larger groups are
    faster, but a weight in groups smaller than the activations' is multiplied in float32
    (``benchmarks/weight_formats.py``). And so that it stays with 8 bits under ``--half``, attention
    alone is halved then.
    """
    forms = [form for form in program.formats.values() if form.is_integer]
    if not forms or graph_of(program.name).startswith("vae"):
        return {}
    smallest = min((form.group_size for form in forms if form.group_size), default=ACTIVATION_GROUP)
    groups = {GROUP_PROPERTY: str(min(smallest, ACTIVATION_GROUP))} if smallest >= 32 else {}
    return {**groups, HALVED: "attention"}


def finish(folder: Path, tokenizers: Mapping[str, Tokenizer]) -> tuple[Path, ...]:
    """Write each tokenizer as an OpenVINO model beside its ``tokenizer.json``."""
    from exporter.backends.openvino.tokenizers import write_tokenizer

    files = (write_tokenizer(folder, name, entry) for name, entry in sorted(tokenizers.items()))
    return tuple(file for pair in files for file in pair)


def session(entry: Path, settings: Mapping[str, str], setup: Setup) -> Session:
    """Open a graph with OpenVINO.

    Args:
        settings: OpenVINO properties; one that the device does not know is left out.

    Raises CheckFailed when OpenVINO cannot read the file or the machine has no such device.
    """
    import openvino as ov

    core = ov.Core()
    device = setup.device or DEVICES[0]
    if device != "NPUW" and device not in core.available_devices:
        found = ", ".join(core.available_devices)
        raise CheckFailed(
            f"{entry}: this machine has no {device} for OpenVINO; choose --device from: {found}"
        )
    config = _config(core, device, settings, setup)
    try:
        model = core.read_model(str(entry))
        if setup.half and device == "CPU" and settings.get(HALVED) == "attention":
            from exporter.backends.openvino.half import halve_attention

            halve_attention(model)
            config["INFERENCE_PRECISION_HINT"] = "f32"
        compiled = core.compile_model(model, device.removesuffix("W"), config)
    except Exception as error:  # OpenVINO raises bare RuntimeError
        reason = str(error).strip().splitlines()[-1]
        raise CheckFailed(f"{entry}: OpenVINO cannot open it: {reason}") from None
    request = compiled.create_infer_request()
    names = [output.any_name for output in compiled.outputs]

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = request.infer({k: np.ascontiguousarray(v) for k, v in inputs.items()})
        return {name: np.array(found[name]) for name in names}

    return run


def _half(core: Any, device: str) -> str:
    """The 16-bit type that a device computes in; raises CheckFailed when it has none."""
    able = core.get_property(device, "OPTIMIZATION_CAPABILITIES")
    kinds = {"BF16": "bf16"} if device == "CPU" else {"FP16": "f16", "BF16": "bf16"}
    for capability, kind in kinds.items():
        if capability in able:
            return kind
    raise CheckFailed(f"--half: this machine's {device} computes in float32 alone; leave it out")


def _config(core: Any, device: str, settings: Mapping[str, str], setup: Setup) -> dict[str, Any]:
    """The properties to compile with: of the settings, those that the device knows.

    NPUW hands what it does not know to the processor behind it. An NPU computes in float16 and
    refuses to be told anything else.
    """
    config: dict[str, Any] = dict(NPUW) if device == "NPUW" else {}
    if setup.cache is not None:
        config["CACHE_DIR"] = str(setup.cache)
    known = set(core.get_property("CPU" if device == "NPUW" else device, "SUPPORTED_PROPERTIES"))
    if device == "NPU":
        known.discard("INFERENCE_PRECISION_HINT")
    config |= {name: value for name, value in settings.items() if name in known}
    if setup.half:
        config["INFERENCE_PRECISION_HINT"] = _half(core, device)
    if device not in ("CPU", "NPUW"):
        config.pop(GROUP_PROPERTY, None)  # other devices choose for themselves
    if setup.exact and GROUP_PROPERTY in known:
        config[GROUP_PROPERTY] = 0
    return config

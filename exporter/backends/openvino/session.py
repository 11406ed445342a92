"""Opens a graph with OpenVINO."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from exporter.backends.contract import BASE, WEIGHTS, Session, SessionOptions
from exporter.errors import CheckFailed, FourstepError, tell_memory
from exporter.files.cache import checked
from exporter.files.differences import applied
from exporter.files.read import file_digest, read_bytes

DEVICES = ("CPU", "GPU", "NPU", "NPUW")
HALVED = (
    "half"  # of a graph's settings: what half precision halves on the CPU; without it, everything
)
GROUP_PROPERTY = "DYNAMIC_QUANTIZATION_GROUP_SIZE"

# The NPU's own compilation path, which cuts a graph into functions, with the processor behind it:
# what can be checked of an NPU where there is none.
NPUW = {"NPU_USE_NPUW": "YES", "NPUW_DEVICES": "CPU", "NPUW_ONLINE_PIPELINE": "NONE"}


def open_graph(entry: Path, settings: Mapping[str, str], options: SessionOptions) -> Session:
    """Open a graph with OpenVINO.

    Args:
        settings: OpenVINO properties; one that the device does not know is left out.

    Raises CheckFailed when OpenVINO cannot read the file or the machine has no such device.
    """
    import openvino as ov

    core = ov.Core()
    device = options.device or DEVICES[0]
    if device == "CPU" and device not in core.available_devices:  # every machine has one
        raise CheckFailed(
            f"{entry}: OpenVINO cannot load its plugin for processors: there is too little memory, "
            "or openvino has to be installed again"
        )
    if device != "NPUW" and device not in core.available_devices:
        found = ", ".join(core.available_devices)
        raise CheckFailed(
            f"{entry}: this machine has no {device} for OpenVINO; choose a device from: {found}"
        )
    try:
        with _caching(entry, options) as options:
            compiled, mapped = _compiled(core, entry, device, settings, options)
    except FourstepError:
        raise
    except Exception as error:  # OpenVINO raises bare RuntimeError
        tell_memory(error)
        reason = str(error).strip().splitlines()[-1]
        raise CheckFailed(f"{entry}: OpenVINO cannot open it: {reason}") from None
    request = compiled.create_infer_request()
    names = [output.any_name for output in compiled.outputs]

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert mapped is not None  # for as long as there is a session
        found = request.infer({k: np.ascontiguousarray(v) for k, v in inputs.items()})
        return {name: np.array(found[name]) for name in names}

    return run


@contextmanager
def _caching(entry: Path, options: SessionOptions) -> Iterator[SessionOptions]:
    """The options with a folder of the cache for this graph alone, which is looked through.

    OpenVINO names what it writes there by the graph, its weights and how it is compiled, and does
    not look whether it is whole.
    """
    if options.cache is None:
        yield options
        return
    with checked(options.cache / f"{entry.stem}-{file_digest(entry)[:16]}") as folder:
        yield replace(options, cache=folder)


def _compiled(
    core: Any, entry: Path, device: str, settings: Mapping[str, str], options: SessionOptions
) -> tuple[Any, np.ndarray]:
    """The compiled graph, and what has to stay in memory while it is used."""
    config = _config(core, device, settings, options)
    model, mapped = _read(core, entry, settings)
    if options.precision == "half" and device == "CPU" and settings.get(HALVED) == "attention":
        from exporter.backends.openvino.half import halve_attention

        halve_attention(model)
        config["INFERENCE_PRECISION_HINT"] = "f32"
    return core.compile_model(model, device.removesuffix("W"), config), mapped


def _read(core: Any, entry: Path, settings: Mapping[str, str]) -> tuple[Any, np.ndarray]:
    """The model; of a further size, what its entry makes of the first size's, over weights that
    are mapped here, since OpenVINO takes no text together with a path. It keeps no hold of them."""
    import openvino as ov

    if BASE not in settings:
        return core.read_model(str(entry)), np.zeros(0, np.uint8)
    edits, base = (read_bytes(file, CheckFailed) for file in (entry, entry.parent / settings[BASE]))
    text = applied(edits, base)
    # So that it could be written to, which a Tensor asks for; nothing would reach the file.
    values = np.memmap(entry.with_name(settings[WEIGHTS]), np.uint8, "c")
    return core.read_model(text.decode(), ov.Tensor(values, shared_memory=True)), values


def _half(core: Any, device: str) -> str:
    """The 16-bit type that a device computes in; raises CheckFailed when it has none."""
    able = core.get_property(device, "OPTIMIZATION_CAPABILITIES")
    kinds = {"BF16": "bf16"} if device == "CPU" else {"FP16": "f16", "BF16": "bf16"}
    for capability, kind in kinds.items():
        if capability in able:
            return kind
    raise CheckFailed(
        f"this machine's {device} computes in float32 alone; leave it out", field="half"
    )


def _config(
    core: Any, device: str, settings: Mapping[str, str], options: SessionOptions
) -> dict[str, Any]:
    """The properties to compile with: of the settings, those that the device knows.

    NPUW hands what it does not know to the processor behind it. An NPU computes in float16 and
    refuses to be told anything else.
    """
    config: dict[str, Any] = dict(NPUW) if device == "NPUW" else {}
    if options.cache is not None:
        config["CACHE_DIR"] = str(options.cache)
    known = set(core.get_property("CPU" if device == "NPUW" else device, "SUPPORTED_PROPERTIES"))
    if device == "NPU":
        known.discard("INFERENCE_PRECISION_HINT")
    config |= {name: value for name, value in settings.items() if name in known}
    if options.precision == "half":
        config["INFERENCE_PRECISION_HINT"] = _half(core, device)
    if device not in ("CPU", "NPUW"):
        config.pop(GROUP_PROPERTY, None)  # other devices choose for themselves
    if options.precision == "float32" and GROUP_PROPERTY in known:
        config[GROUP_PROPERTY] = 0
    return config

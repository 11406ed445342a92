"""Qualcomm's execution provider: whether it is here, and graphs opened with it in this process."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.backends.contract import Requirement
from exporter.backends.onnx.qnn.socs import SOCS, is_emulated
from exporter.errors import not_installed

NAME = "QNNExecutionProvider"
REQUIRED = Requirement("fourstep[qnn]", {"onnxruntime_qnn": "onnxruntime-qnn"})
NO_FALLBACK = "session.disable_cpu_ep_fallback"
QUIET, TELLING = 3, 1  # severities of onnxruntime's log: errors alone; what it finds too


@dataclass(frozen=True)
class Versions:
    """Of the distribution, and of Qualcomm's libraries (QAIRT) in it: compiler and emulator."""

    distribution: str
    qairt: str


def require() -> Versions:
    """What is installed; raises InputError with the pip line where nothing is."""
    if importlib.util.find_spec("onnxruntime_qnn") is None:
        raise not_installed("onnxruntime-qnn", REQUIRED.install)
    from onnxruntime_qnn.build_and_package_info import qnn_version

    return Versions(importlib.metadata.version("onnxruntime-qnn"), str(qnn_version))


@functools.cache
def _register() -> None:
    """Make onnxruntime know the provider: once in a process."""
    import onnxruntime as ort
    import onnxruntime_qnn

    ort.disable_telemetry_events()
    ort.register_execution_provider_library(NAME, onnxruntime_qnn.get_library_path())


def open_session(
    entry: Path, soc: str | None, entries: Mapping[str, str], options: Mapping[str, str],
    severity: int = QUIET,
) -> Any:  # fmt: skip
    """Open a graph with the provider alone; whatever onnxruntime raises is raised.

    Args:
        soc: whose NPU; None: the one that is here.
        entries: of the session's configuration, besides that nothing may fall back to the CPU.
        options: of the provider.
        severity: of what onnxruntime logs on stderr; when TELLING, Qualcomm's libraries tell too.
    """
    import onnxruntime as ort
    import onnxruntime_qnn

    if severity <= TELLING:  # before: the provider hands on what they say if this is set by then
        ort.set_default_logger_severity(0)
    _register()
    devices = [device for device in ort.get_ep_devices() if device.ep_name == NAME][:1]
    config = ort.SessionOptions()
    config.log_severity_level = severity
    for key, value in ({NO_FALLBACK: "1"} | dict(entries)).items():
        config.add_session_config_entry(key, value)
    given = {"backend_path": onnxruntime_qnn.get_qnn_htp_path(), **options}
    if soc is not None:
        chip = SOCS[soc]
        given |= {"soc_model": str(chip.soc_model), "htp_arch": str(chip.htp_arch)}
    if not is_emulated():
        given["htp_performance_mode"] = "burst"
    config.add_provider_for_devices(devices, given)
    return ort.InferenceSession(str(entry), config)

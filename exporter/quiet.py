"""Keeps libraries from reporting to their makers what they are used for.

Left alone, onnxruntime asks for a host of its maker's 9 s after its import and keeps a device's id
and a database in the home and the temporary folder; OpenVINO and NNCF send an event when they are
imported. Both look once, when they are first imported: so ``exporter/__init__.py`` calls ``hush``
before anything else of the project runs, and what it sets, child processes inherit.
"""

from __future__ import annotations

import os
import sys

VARIABLES = {
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime; its own call to be silent comes too late
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, and what asks it: transformers, diffusers
    "DO_NOT_TRACK": "1",  # whoever else honours it
    "SE_AVOID_STATS": "true",  # Selenium's driver manager
}
HIDDEN = ("openvino_telemetry",)  # OpenVINO and NNCF do without what cannot be found


def hush() -> None:
    """Set the variables in this process and its children to come, and hide what has none."""
    os.environ.update(VARIABLES)
    for module in HIDDEN:
        sys.modules.setdefault(module, None)  # type: ignore[arg-type]

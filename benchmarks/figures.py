"""The file of figures that a benchmark writes with ``--json``."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path


def write(file: Path, **figures: object) -> None:
    """Write figures, and the machine that they were measured on."""
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    file.write_text(json.dumps({"machine": machine, **figures}, indent=1) + "\n", encoding="utf-8")

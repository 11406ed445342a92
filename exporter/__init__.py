"""fourstep: from a Stable Diffusion 3.5 checkpoint to packages that draw in four steps."""

from __future__ import annotations

from exporter.quiet import hush

__version__ = "0.1.0"

hush()  # before any library that speaks is imported

"""What is measured and compared; run as ``python -m benchmarks.<name>``."""

from __future__ import annotations

import exporter as exporter  # keeps the libraries that are compared from reporting it

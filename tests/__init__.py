"""The tests."""

from __future__ import annotations

import exporter as exporter  # keeps the libraries that tests import from reporting it

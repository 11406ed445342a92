"""The loop in Swift: a package with a core on Foundation alone, and an engine on Core ML."""

from __future__ import annotations

from typing import Final

from exporter.bundle.target import FileLimit, Target

APP_BYTES = 4_000_000_000  # of the App Store

TARGET: Final = Target(
    name="swift",
    title="Swift",
    backends=("coreml",),
    filled=("README.md", "Sample/DrawingView.swift"),
    shared={"unicode.bin": "Sources/Fourstep/unicode.bin"},
    limit=FileLimit(APP_BYTES, "an app of the App Store", "build with a scheme of fewer bits"),
)

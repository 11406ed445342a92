"""The loop in C++17, with a C interface: packages of OpenVINO and of onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from exporter.bundle.target import Target
from exporter.bundle.unicode import FILE
from exporter.package.manifest import Manifest

ROW = 24  # numbers in a line
HEADER = """\
/// @file
/// The bytes of exporter/bundle/unicode.bin: Unicode as the `tokenizers` library has it.
#pragma once

namespace fourstep {{

inline constexpr unsigned char unicode_data[] = {{
{rows}
}};

}}  // namespace fourstep
"""


def unicode_header(content: bytes) -> str:
    """The tables of Unicode as a header: the library is headers alone."""
    lines = (content[i : i + ROW] for i in range(0, len(content), ROW))
    return HEADER.format(rows="\n".join(",".join(map(str, line)) + "," for line in lines))


def headers(manifest: Manifest) -> Mapping[str, str]:
    """The header that is made of what other languages read from a file."""
    return {"include/fourstep/unicode_data.hpp": unicode_header(FILE.read_bytes())}


TARGET: Final = Target(
    name="cpp",
    title="C++17",
    backends=("openvino", "onnx"),
    filled=("README.md", "CMakeLists.txt"),
    extra=headers,
)

"""A page that draws in a browser, and its loop as an ES module for browsers and Node."""

from __future__ import annotations

from typing import Final

from exporter.bundle.target import EngineFiles, Target

# onnxruntime-web in wasm, and for WebGPU: the version that was tried, by its bytes.
VERSION: Final = "1.30.0"
FILES: Final = {
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs": (
        "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b"
    ),
    "ort-wasm-simd-threaded.wasm": (
        "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2"
    ),
    "ort.webgpu.min.mjs": "3dffff71811bc13a3a3d9591c57ca5ee5735b8f5f3eaf789510b02bb040ae3a0",
    "ort-wasm-simd-threaded.asyncify.mjs": (
        "3d1c85995364bb643302fc6fd877a0c3ba5ae72401815e0f24828a53d9191e28"
    ),
    "ort-wasm-simd-threaded.asyncify.wasm": (
        "39f9f0894d478800487ed9f7dbe92618498db320cf55c8e3d89adff8dce658da"
    ),
}

TARGET: Final = Target(
    name="web",
    title="a page for browsers",
    backends=("onnx",),
    filled=("README.md", "index.html"),
    shared={"unicode.bin": "runtime/unicode.bin"},
    engine=EngineFiles(
        title=f"onnxruntime-web {VERSION}",
        install=f"npm install --ignore-scripts onnxruntime-web@{VERSION}",
        folder="node_modules/onnxruntime-web/dist",
        place=f"engine/{VERSION}",
        files=FILES,
    ),
)

"""Runs packages: numpy, tokenizers, Pillow and one backend's runtime. No torch.

from exporter.runtime import Image, Request, generate, open_package

with open_package(Path("artifacts/shapes-flash/onnx-int8")).player() as player:
    for event in generate(player, [Request("two red circles left of a blue square", seed=7)]):
        if isinstance(event, Image):
            pixels = event.pixels  # (H, W, 3) uint8
"""

from __future__ import annotations

from exporter.drawing.loop import Conditioned, Image, Player, Request, Step, generate
from exporter.runtime.package import Package, open_package

__all__ = [
    "Conditioned",
    "Image",
    "Package",
    "Player",
    "Request",
    "Step",
    "generate",
    "open_package",
]

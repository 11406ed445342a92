"""Running a package needs neither torch nor an exporter, and opens no connection."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HEAVY = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "optimum", "nncf", "scipy")

DRAW = """
import socket, sys
from pathlib import Path

def refuse(*_, **__):
    raise AssertionError("a connection was opened")

socket.socket.connect = socket.socket.connect_ex = socket.create_connection = refuse
from exporter.cli import main
from exporter.runtime import Image, Request, generate, open_package

player = open_package(Path(sys.argv[1])).player()
images = [e for e in generate(player, [Request("a red circle")]) if isinstance(e, Image)]
assert images[0].pixels.shape == (48, 64, 3)
loaded = [m for m in sys.argv[2].split() if m in sys.modules]
assert not loaded, loaded
"""


def test_drawing_imports_nothing_heavy(tiny_package: Path) -> None:
    subprocess.run([sys.executable, "-c", DRAW, str(tiny_package), " ".join(HEAVY)], check=True)


def test_importing_the_runtime_is_light() -> None:
    code = (
        "import sys, exporter.runtime, exporter.verify;"
        f"assert not [m for m in {(*HEAVY, 'onnxruntime')!r} if m in sys.modules]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_command_line_starts_light() -> None:
    code = f"import sys, exporter.cli; assert not [m for m in {HEAVY!r} if m in sys.modules]"
    subprocess.run([sys.executable, "-c", code], check=True)

"""Runs a command as on an x86 processor with AVX2 and nothing newer: no AVX-512, no VNNI.

    python -m benchmarks.avx2 FOLDER -- COMMAND [ARGUMENT...]

Runtimes choose their kernels by CPUID, which no setting of theirs, or of the system's, limits for
all of them. So onnxruntime and OpenVINO, of the environment of this Python, are copied into FOLDER
(once), with every CPUID instruction replaced by one that raises a signal, and ``answer.c`` answers
it. What runs then are the kernels of such a processor, at this one's pace. It takes x86-64 Linux, a
C compiler (``gcc``) and ``objdump``. torch, which has settings for it, gets those.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("onnxruntime", "openvino", "openvino_genai", "openvino_tokenizers")
UNUSED = ("_gpu_", "_npu_", "_frontend")  # libraries that no kernel of the processor is in
TOOLS = ("gcc", "objdump", "readelf")
SOURCE = Path(__file__).with_name("answer.c")
CPUID, UD2 = b"\x0f\xa2", b"\x0f\x0b"
INSTRUCTION = re.compile(r"\s*([0-9a-f]+):\s+cpuid\s*$")
SECTION = re.compile(r"\s*\[\s*\d+\]\s+\.\S+\s+PROGBITS\s+(\w+)\s+(\w+)\s+(\w+)\s")
TORCH = {  # of a copy of torch nothing is changed
    "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "DNNL_MAX_CPU_ISA": "AVX2",
}  # fmt: skip


def hindrance() -> str | None:
    """Why this machine cannot do it, and what to install; or None."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return "it takes Linux on x86-64"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    return f"not installed: {', '.join(missing)}; install gcc and binutils" if missing else None


def environment(python: str, folder: Path) -> dict[str, str]:
    """Variables under which a Python runs as on AVX2; its runtimes are copied into ``folder``."""
    folder = folder.absolute()
    if not (folder / "ready").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        packages = folder / "packages"
        packages.mkdir(parents=True)
        library = folder / "answer.so"
        subprocess.run(["gcc", "-O2", "-fPIC", "-shared", "-o", library, SOURCE], check=True)
        for place in _installed(python):
            shutil.copytree(place, packages / place.name)
        for file in sorted(packages.rglob("*.so*")):
            if not any(part in file.name for part in UNUSED):
                replace_cpuid(file)
        (folder / "ready").touch()
    root = Path(__file__).parents[2]  # for ``benchmarks`` and ``exporter``
    return {
        **TORCH,
        "LD_PRELOAD": str(folder / "answer.so"),
        "PYTHONPATH": f"{folder / 'packages'}:{root}",
    }


def _installed(python: str) -> list[Path]:
    """The folders of ``PACKAGES`` that a Python has."""
    code = "import sysconfig; print(sysconfig.get_path('platlib'))"
    site = Path(subprocess.check_output([python, "-c", code], text=True).strip())
    return [site / name for name in PACKAGES if (site / name).is_dir()]


def replace_cpuid(file: Path) -> int:
    """Put UD2 in place of every CPUID instruction of a library; how many there were."""
    sections = list(_sections(file))
    data, found = bytearray(file.read_bytes()), 0
    command = ["objdump", "--disassemble", "--no-show-raw-insn", str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as listing:
        assert listing.stdout is not None
        for line in listing.stdout:
            if match := INSTRUCTION.match(line):
                address = int(match[1], 16)
                place = next(address - start + at for start, at, size in sections
                             if start <= address < start + size)  # fmt: skip
                if data[place : place + 2] != CPUID:
                    raise ValueError(f"{file}: no CPUID at {address:#x}")
                data[place : place + 2] = UD2
                found += 1
    if found:
        file.write_bytes(data)
    return found


def _sections(file: Path) -> Iterator[tuple[int, int, int]]:
    """Address, place in the file and bytes of each section."""
    listing = subprocess.check_output(["readelf", "--section-headers", "--wide", file], text=True)
    for line in listing.splitlines():
        if match := SECTION.match(line):
            address, place, size = (int(match[i], 16) for i in (1, 2, 3))
            yield address, place, size


def run(folder: Path, command: list[str]) -> int:
    """A command of this environment; its exit code."""
    variables = environment(sys.executable, folder)
    return subprocess.run(command, env=os.environ | variables, check=False).returncode

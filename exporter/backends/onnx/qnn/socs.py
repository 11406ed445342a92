"""Qualcomm's chips (SoCs) by the names that recipes give them, and the one that we are on."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

from exporter.errors import InputError
from exporter.files.read import read_text

SOC_ID = Path("/sys/devices/soc0/soc_id")  # of Linux and Android on a Snapdragon


@dataclass(frozen=True)
class Soc:
    """A chip.

    Attributes:
        words: as people know it.
        soc_model: Qualcomm's number of it, for its compiler.
        htp_arch: of its NPU.
        soc_id: what Linux calls it; None: not known.
    """

    words: str
    soc_model: int
    htp_arch: int
    soc_id: int | None


# Older ones lack products of two 16-bit values, which attention needs.
SOCS = {
    "8gen2": Soc("Snapdragon 8 Gen 2", 43, 73, 519),
    "8gen3": Soc("Snapdragon 8 Gen 3", 57, 75, 557),
    "8elite": Soc("Snapdragon 8 Elite", 69, 79, 618),
    "8elite5": Soc("Snapdragon 8 Elite Gen 5", 87, 81, 660),
    "xelite": Soc("Snapdragon X Elite", 60, 73, 555),
    "x2elite": Soc("Snapdragon X2 Elite", 88, 81, None),
}
EMULATED = "8gen2"  # unless another is asked for: the oldest that takes every graph
DEVICE = "HTP"  # as users name the NPU; ``HTP:8elite``: of that chip


def is_device(device: str | None) -> bool:
    """Whether a session is to run on the NPU."""
    return (device or "").partition(":")[0] == DEVICE


def soc_of_device(device: str) -> str | None:
    """The chip that a device names, or None where it names none."""
    return device.partition(":")[2] or None


def soc_to_run(device: str) -> str | None:
    """The chip that graphs are compiled for as they are opened; None: the one that is here."""
    return soc_of_device(device) or (EMULATED if is_emulated() else None)


def is_emulated() -> bool:
    """Whether the NPU is emulated here: on whatever is no ARM."""
    return platform.machine().lower() in ("x86_64", "amd64")


def soc_here() -> str | None:
    """The chip that this runs on, or None where the system does not say."""
    try:
        found = int(read_text(SOC_ID))
    except (InputError, ValueError):
        return None
    return next((name for name, soc in SOCS.items() if soc.soc_id == found), None)

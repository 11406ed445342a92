"""Layouts: which graphs, what stands beside them, and how the schedule gets into a client's loop.

A layout is a record. ``native`` is what fourstep's own loop draws with; the others are folders that
clients load which nobody here wrote (``docs/clients.md``). Importing this brings in no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from exporter.errors import InputError, known

NATIVE = "native"


@dataclass(frozen=True)
class Layout:
    """What a layout is for.

    Attributes:
        name: as recipes name it.
        clients: who loads it, by the backend whose graphs it is made of.
    """

    name: str
    clients: Mapping[str, tuple[str, ...]]

    def takes(self, backend: str) -> bool:
        """Whether it is made of this backend's graphs."""
        return self.name == NATIVE or backend in self.clients

    def clients_of(self, backend: str) -> tuple[str, ...]:
        """Who loads its folder of this backend's graphs."""
        return self.clients.get(backend, ())

    def folder(self, package: str) -> str:
        """The folder's name, given that of the native package of the same backend and scheme."""
        return package if self.name == NATIVE else f"{package}-{self.name}"


DIFFUSERS = Layout(
    "diffusers",
    {"openvino": ("OpenVINO GenAI", "optimum-intel"), "onnx": ("optimum-onnx",)},
)
LAYOUTS: Mapping[str, Layout] = {layout.name: layout for layout in (Layout(NATIVE, {}), DIFFUSERS)}


def load_layout(name: str) -> Layout:
    """A layout by its name; raises InputError naming those that there are."""
    if name not in LAYOUTS:
        raise InputError(known("layout", name, LAYOUTS))
    return LAYOUTS[name]

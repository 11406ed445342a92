"""Layouts: which graphs, what stands beside them, and how the schedule gets into a client's loop.

A layout is a record. ``native`` is what fourstep's own loop draws with; the others are folders that
clients load which nobody here wrote (``docs/clients.md``). Importing this brings in no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from exporter.errors import InputError, known

NATIVE = "native"


@dataclass(frozen=True)
class Form:
    """How a layout is written of one backend's graphs.

    Attributes:
        clients: who loads it.
        stem: of a graph's files, each in a folder of its own; empty: beside each other, called as
            the graphs are.
        velocity: what clients call the MMDiT's output.
    """

    clients: tuple[str, ...]
    stem: str = ""
    velocity: str = ""


@dataclass(frozen=True)
class Layout:
    """What a layout is for.

    Attributes:
        name: as recipes name it.
        forms: by the backend whose graphs it is made of.
        maker: the module that makes its graphs (``exporter.layouts.contract``); empty where they
            are the native ones.
        gathers: made of all native packages of a backend that a build makes, one folder of them.
        own: the backend that it is written by whatever others are built, or empty.
        lacks: what it has no place for: keys of a recipe, and why.
    """

    name: str
    forms: Mapping[str, Form]
    maker: str = ""
    gathers: bool = False
    own: str = ""
    lacks: Mapping[str, str] = field(default_factory=dict)

    def takes(self, backend: str) -> bool:
        """Whether it is made of this backend's graphs."""
        return self.name == NATIVE or backend in self.forms

    def folder(self, backend: str, scheme: str) -> str:
        """The name of the folder of a backend's graphs in a scheme."""
        if self.own:
            return f"{self.name}-{scheme}"
        return f"{backend}-{scheme}" + ("" if self.name == NATIVE else f"-{self.name}")


ONE_GRAPH = {
    "[onnx] socs": "no client of it opens what was compiled for chips",
    "[schedule] mode": "clients of it know no other than 'euler'",
    "[schedule] guidance": "its graphs take one picture at a time, and guidance draws two",
    "[image] sizes": "it has one size; build a recipe for each",
    "[text] t5_parts": "clients open T5 as one graph",
    "[build] denoiser_parts": "clients open one MMDiT",
    "[filter]": "no client of it looks at pictures before it hands them on",
}
DIFFUSERS = Layout(
    "diffusers",
    {
        "openvino": Form(("OpenVINO GenAI", "optimum-intel"), "openvino_model", "out_sample"),
        "onnx": Form(("optimum-onnx",), "model", "out_hidden_states"),
    },
    maker="exporter.layouts.diffusers",
    lacks=ONE_GRAPH,
)
ORT_PACKAGE = Layout(
    "ort-package",
    {"onnx": Form(("onnxruntime's model package reader",))},
    gathers=True,
    lacks={key: ONE_GRAPH[key] for key in ("[image] sizes", "[filter]")},
)
APPLE_SWIFT = Layout(
    "apple-swift",
    {"coreml": Form(("Apple's StableDiffusion3Pipeline",))},
    maker="exporter.layouts.apple_swift",
    lacks=ONE_GRAPH,
)
GGUF = Layout(
    "gguf",
    {"reference": Form(("stable-diffusion.cpp", "ComfyUI-GGUF"))},
    own="reference",
    lacks={
        "[mark]": "it has no decoder: its clients bring one of their own, which marks nothing",
        **{key: ONE_GRAPH[key] for key in ("[onnx] socs", "[schedule] mode", "[filter]")},
    },
)
LAYOUTS: Mapping[str, Layout] = {
    layout.name: layout
    for layout in (Layout(NATIVE, {}), DIFFUSERS, APPLE_SWIFT, ORT_PACKAGE, GGUF)
}


def load_layout(name: str) -> Layout:
    """A layout by its name; raises InputError naming those that there are."""
    if name not in LAYOUTS:
        raise InputError(known("layout", name, LAYOUTS))
    return LAYOUTS[name]

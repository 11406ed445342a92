"""The loop over the graphs as data: which of them runs when, and what each of its inputs is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from exporter.package.manifest import PictureEntry, Port, PreviewEntry, Source, Stage
from exporter.package.names import ENCODERS, graph_of

ORDER = (*ENCODERS, "conditioner", "vae_encoder", "denoiser", "vae_decoder")


class Ported(Protocol):
    """A graph or a part of one: a program, or an entry of a manifest."""

    @property
    def name(self) -> str: ...
    @property
    def inputs(self) -> tuple[Port, ...]: ...
    @property
    def outputs(self) -> tuple[Port, ...]: ...


def stages(graphs: Iterable[Ported]) -> tuple[Stage, ...]:
    """The turns of these graphs, the parts of a cut one in one turn."""
    parts: dict[str, list[Ported]] = {}
    for graph in graphs:
        parts.setdefault(graph_of(graph.name), []).append(graph)
    return tuple(_stage(name, parts[name]) for name in ORDER if name in parts)


def _stage(name: str, parts: Sequence[Ported]) -> Stage:
    names = tuple(part.name for part in parts)
    if name in ENCODERS:
        return Stage(name, names, "once per prompt", {"ids": Source("tokens", name)})
    if name == "conditioner":
        # "hidden_l" is what clip_l gives at "hidden".
        encoders = {encoder.removeprefix("clip_"): encoder for encoder in ENCODERS}
        pairs = {port.name: port.name.split("_") for port in parts[0].inputs}
        inputs = {p: Source("output", encoders[end], port) for p, (port, end) in pairs.items()}
        return Stage(name, names, "once per prompt", inputs)
    if name == "denoiser":
        inputs = {
            "latent": Source("latent"),
            "context": Source("output", "conditioner", "context"),
            "modulation": Source("output", "conditioner", "modulation", row_of_step=True),
        }
        return Stage(name, names, "each step", inputs, {"velocity": "velocity"})
    if name == "vae_encoder":
        image = {"image": Source("image")}
        return Stage(name, names, "once", image, {"latent": "start"}, image_to_image_only=True)
    return Stage(name, names, "once", {"latent": Source("latent")}, {"image": "image"})


def picture_of(graphs: Sequence[Ported], preview: PreviewEntry | None = None) -> PictureEntry:
    """The sizes of what these graphs draw: those of the decoder's ports."""
    decoders = [graph for graph in graphs if graph_of(graph.name) == "vae_decoder"]
    _, channels, rows, _ = decoders[0].inputs[0].shape
    _, _, height, width = decoders[-1].outputs[0].shape
    return PictureEntry(width, height, channels, height // rows, preview=preview)

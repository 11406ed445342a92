"""The loop over the graphs as data: which of them runs when, and what each of its inputs is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol

from exporter.network.cut import Previews
from exporter.package.manifest import (
    Guidance,
    PictureEntry,
    Port,
    PreviewEntry,
    Source,
    SourceKind,
    Stage,
)
from exporter.package.names import DECODERS, ENCODERS, NEGATIVE, graph_of

START = ("vae_encoder", "tiny_encoder")
ORDER = (*ENCODERS, "conditioner", *START, "denoiser", *DECODERS)


class Ported(Protocol):
    """A graph or a part of one: a program, or an entry of a manifest."""

    @property
    def name(self) -> str: ...
    @property
    def inputs(self) -> tuple[Port, ...]: ...
    @property
    def outputs(self) -> tuple[Port, ...]: ...


def stages(graphs: Iterable[Ported], guidance: Guidance | None = None) -> tuple[Stage, ...]:
    """The turns of these graphs, the parts of a cut one in one turn."""
    parts: dict[str, list[Ported]] = {}
    for graph in graphs:
        parts.setdefault(graph_of(graph.name), []).append(graph)
    decoders = [name for name in DECODERS if name in parts]
    shows = decoders[1:]  # a second one is there for previews
    return tuple(
        _preview_stage(name, parts[name]) if name in shows else _stage(name, parts[name], guidance)
        for name in ORDER
        if name in parts
    )


def filter_stage(graph: Ported, output: str) -> Stage:
    """The turn of a classifier, with the output that holds its scores."""
    (port,) = graph.inputs
    inputs = {port.name: Source("picture")}
    return Stage(graph.name, (graph.name,), "for the filter", inputs, {output: "scores"})


def _preview_stage(name: str, parts: Sequence[Ported]) -> Stage:
    names = tuple(part.name for part in parts)
    return Stage(name, names, "for previews", {"latent": Source("latent")}, {"image": "preview"})


def _stage(name: str, parts: Sequence[Ported], guidance: Guidance | None) -> Stage:
    names = tuple(part.name for part in parts)
    if name in ENCODERS:
        return Stage(name, names, "once per prompt", {"ids": Source("tokens", name)})
    if name == "conditioner":
        inputs = {p.name: Source("output", *state_of(p.name)) for p in parts[0].inputs}
        return Stage(name, names, "once per prompt", inputs)
    if name == "denoiser":
        stage = Stage(name, names, "each step", _conditions("output"), {"velocity": "velocity"})
        if guidance is None:
            return stage
        fixed = guidance.negative_prompt is not None
        others = _conditions("output", NEGATIVE) if fixed else _conditions("negative output")
        return replace(stage, runs="twice each step", negative_inputs=others)
    if name in START:
        image = {"image": Source("image")}
        return Stage(name, names, "once", image, {"latent": "start"}, image_to_image_only=True)
    return Stage(name, names, "once", {"latent": Source("latent")}, {"image": "image"})


def state_of(port: str) -> tuple[str, str]:
    """The text encoder and its output that a port of the conditioner takes, of either prompt.

    ``hidden_l`` is what ``clip_l`` gives at ``hidden``.
    """
    encoders = {encoder.removeprefix("clip_"): encoder for encoder in ENCODERS}
    output, end = port.removeprefix(NEGATIVE).split("_")
    return encoders[end], output


def _conditions(kind: SourceKind, prefix: str = "") -> dict[str, Source]:
    """What the denoiser is fed, its conditions from the conditioner's ports with a prefix."""
    return {
        "latent": Source("latent"),
        "context": Source(kind, "conditioner", f"{prefix}context"),
        "modulation": Source(kind, "conditioner", f"{prefix}modulation", row_of_step=True),
    }


def picture_of(
    graphs: Sequence[Ported],
    preview: PreviewEntry | None = None,
    previews: Previews = "linear",
) -> PictureEntry:
    """The sizes of what these graphs draw: those of the decoder's ports.

    A second decoder is there for previews; the only one shows them too if it is to.
    """
    names = {graph_of(graph.name) for graph in graphs}
    decoder, *others = (name for name in DECODERS if name in names)
    parts = [graph for graph in graphs if graph_of(graph.name) == decoder]
    _, channels, rows, _ = parts[0].inputs[0].shape
    _, _, height, width = parts[-1].outputs[0].shape
    shown_by = others or ([decoder] if previews == "tiny" else [""])
    return PictureEntry(
        width, height, channels, height // rows, preview=preview, preview_graph=shown_by[0]
    )

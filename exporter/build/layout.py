"""Builds a folder in a layout of its own graphs: native programs with clients' ports around them.

What is emitted is checked as a native package is: every graph against torch on the golden calls,
and the whole picture, drawn in a client's order of calls.
"""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from exporter.backends.contract import (
    Backend,
    EmitOptions,
    Emitted,
    Session,
    SessionOptions,
    Sizing,
    TokenizerWriting,
)
from exporter.build import write
from exporter.build.golden import USUAL, Allowance, Drawing, Pictures
from exporter.build.model import Model
from exporter.build.reference import torch_session
from exporter.calibrate.weights import Weights
from exporter.errors import CheckFailed, InputError
from exporter.files.staging import write_whole
from exporter.layouts import NATIVE, Form, Layout, load_layout
from exporter.layouts.contract import (
    Call,
    ClientDrawing,
    ClientFacts,
    ClientGraph,
    Maker,
    TokenizerText,
)
from exporter.layouts.schedule import ClientSchedule
from exporter.package.layout import LAYOUT_FILE, LAYOUT_VERSION, LayoutGraph, LayoutManifest
from exporter.package.measures import psnr_db, relative_error, snr_db
from exporter.package.pixels import to_pixels
from exporter.quantize.program import QuantizedProgram
from exporter.recipe.recipe import Recipe
from exporter.runtime.verify import GraphParity, ImageParity, Report

EXACT = SessionOptions(precision="float32")
SAME = 1e-5  # relative; what a graph made of others may differ by from them, in torch
Ports = Mapping[str, np.ndarray]
Made = tuple[str, Ports, Ports]  # a graph's folder, what it got, what it gave


@dataclass(frozen=True)
class WrittenGraph:
    """A graph of the layout on the disk."""

    graph: ClientGraph
    emitted: Emitted


@dataclass(frozen=True)
class LayoutWork:
    """What a folder is made of.

    Attributes:
        programs: the native ones of a scheme, by graph, their inputs rounded.
        weights: read their tensors.
        pictures: golden ones, by the quantized and by the unquantized programs; may be none.
        allowed: what graphs may differ by besides what the backend says.
    """

    model: Model
    backend: Backend
    layout: Layout
    programs: Mapping[str, QuantizedProgram]
    weights: Weights
    pictures: Pictures
    allowed: Mapping[str, Allowance]

    @property
    def form(self) -> Form:
        """What is particular to the backend's graphs."""
        return self.layout.forms[self.backend.name]

    @functools.cached_property
    def maker(self) -> Maker:
        maker: Maker = importlib.import_module(self.layout.maker).MAKER
        return maker

    @functools.cached_property
    def schedule(self) -> ClientSchedule:
        return self.maker.schedule(self.model.schedule.sigmas)

    @functools.cached_property
    def graphs(self) -> tuple[ClientGraph, ...]:
        entries = {name: file.entry for name, file in self.model.tokenizers.items()}
        return self.maker.graphs(self.programs, entries, self.schedule, self.form)


def refuse_unfit(recipe: Recipe, name: str, backends: Sequence[str]) -> None:
    """Raise InputError for what a recipe asks for and no client of a layout can do."""
    if name == NATIVE:
        return
    layout = load_layout(name)
    if not layout.own and not any(layout.takes(backend) for backend in backends):
        raise InputError(
            f"[build] layout = {name!r}: is made of graphs of {' or '.join(layout.forms)}, not of "
            f"{', '.join(backends)}; build one of those"
        )
    onnx = recipe.backend("onnx").choices if "onnx" in backends else {}
    asked = {
        "[onnx] socs": bool(onnx.get("socs")),
        "[schedule] mode": recipe.mode != "euler",
        "[schedule] guidance": recipe.guidance is not None,
        "[image] sizes": bool(recipe.further_sizes),
        "[text] t5_parts": recipe.t5_parts > 1,
        "[build] denoiser_parts": recipe.denoiser_parts > 1,
        "[filter]": recipe.filter is not None,
        "[mark]": recipe.mark is not None,
    }
    for key, reason in layout.lacks.items():
        if asked[key]:
            raise InputError(
                f"{key} does not go with [build] layout = {name!r}: {reason}; leave one out"
            )


def write_layout(work: LayoutWork, folder: Path, origin: write.Origin) -> tuple[WrittenGraph, ...]:
    """Write all graphs and what stands beside them into a folder; its manifest last."""
    written = tuple(_emit(work, graph, folder) for graph in work.graphs)
    files = [file for one in written for file in one.emitted.files]
    files += [_write(folder / path, text) for path, text in _texts(work).items()]
    files += _write_tokenizer_graphs(work, folder)
    told = Told(
        work.schedule.timesteps, work.schedule.gains,
        any(one.graph.folder == "vae_encoder" for one in written),
        tuple(_entry(one) for one in written),
    )  # fmt: skip
    write_manifest(work, folder, origin, files, told)
    return written


@dataclass(frozen=True)
class Told:
    """What a folder's manifest says besides what it was built from.

    Attributes:
        timesteps, gains, starts_from_pictures, graphs: as in ``LayoutManifest``.
    """

    timesteps: tuple[float, ...]
    gains: tuple[float, ...]
    starts_from_pictures: bool
    graphs: tuple[LayoutGraph, ...]


def write_manifest(
    work: LayoutWork, folder: Path, origin: write.Origin, files: Sequence[Path], told: Told
) -> None:
    """Write what stands in any folder, and its manifest last.

    Args:
        files: that are there.
    """
    plan = write.write_plan(folder, origin)
    licences = write.copy_licences(work.model.licence, folder)
    notice = write.write_notice(work.model, work.backend, origin, folder)
    recipe = folder / write.RECIPE
    text = work.model.recipe.normal_form(work.backend.name, work.layout.name)
    recipe.write_text(text, encoding="utf-8", newline="\n")
    entry = write.origin_entry(work.model, work.backend, origin, licences, notice)
    digest = work.model.recipe.digest(work.backend.name, work.layout.name)
    listed = dict.fromkeys((*files, *plan, *licences, *notice, recipe))
    manifest = LayoutManifest(
        layout_version=LAYOUT_VERSION,
        layout=work.layout.name,
        name=work.model.recipe.name,
        backend=work.backend.name,
        scheme=origin.scheme.name,
        clients=work.form.clients,
        origin=replace(entry, recipe_sha256=digest),
        schedule=work.model.schedule,
        timesteps=told.timesteps,
        gains=told.gains,
        starts_from_pictures=told.starts_from_pictures,
        graphs=told.graphs,
        files=write.describe(folder, list(listed)),
        mark=work.model.recipe.mark.entry if work.model.recipe.mark else None,
    )
    write_whole(folder / LAYOUT_FILE, json.dumps(asdict(manifest), indent=1) + "\n")


def _emit(work: LayoutWork, graph: ClientGraph, folder: Path) -> WrittenGraph:
    """Let the backend write a graph under the names that clients look for."""
    place, stem = folder, work.form.stem or graph.folder
    if work.form.stem:
        place = folder / graph.folder
        place.mkdir()
    choices = work.model.recipe.backend(work.backend.name).choices
    options = EmitOptions(choices, graph.ports, is_foreign=True)
    assert isinstance(work.backend, Sizing)
    found = work.backend.emit_sizes({stem: graph.program}, work.weights.read, place, options)
    emitted = found[stem]
    allowances = [work.allowed.get(name, USUAL) for name in graph.made_of]
    tolerance = emitted.tolerance
    for allowed in allowances:
        tolerance = allowed.widened(tolerance)
    return WrittenGraph(graph, replace(emitted, tolerance=tolerance))


def _entry(written: WrittenGraph) -> LayoutGraph:
    graph = written.graph
    return LayoutGraph(
        graph.folder,
        graph.program.inputs,
        graph.program.outputs,
        graph.program.values_by_format(),
        graph.made_of,
        {name: form.free_axes for name, form in graph.ports.items() if form.free_axes},
        sum(file.stat().st_size for file in written.emitted.files),
    )


def _texts(work: LayoutWork) -> dict[str, str]:
    """What stands beside the graphs: configurations and tokenizers, by path."""
    checkpoint, cut = work.model.checkpoint, work.model.recipe.cut
    folders = {graph.folder for graph in work.graphs}
    names = ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
    parts = {n: checkpoint.components[n].config for n in names if n in checkpoint.components}
    if "vae" not in parts:
        parts["vae"] = _tiny_vae(work)
    tokenizers = {n: TokenizerText(f.text, f.entry) for n, f in work.model.tokenizers.items()}
    told = ClientFacts(
        parts, tokenizers, work.schedule, cut.width_px, cut.height_px, "vae_encoder" in folders
    )
    return work.maker.texts(told)


def _tiny_vae(work: LayoutWork) -> dict[str, Any]:
    """What clients have to know of a decoder that is no VAE: how much larger its pictures are."""
    latent = next(g.program.inputs[0].shape for g in work.graphs if g.folder == "vae_decoder")
    return {"block_out_channels": [1, 1, 1, 1], "latent_channels": latent[1]}


def _write_tokenizer_graphs(work: LayoutWork, folder: Path) -> list[Path]:
    """Each tokenizer as a graph, if the backend's clients want it."""
    written: list[Path] = []
    if isinstance(work.backend, TokenizerWriting):
        for encoder, file in work.model.tokenizers.items():
            place = folder / work.maker.tokenizer_folders[encoder]
            written += work.backend.write_tokenizer(file.text, file.entry, place)
    return written


def _write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8", newline="\n")
    return file


def verify_layout(work: LayoutWork, folder: Path, written: Sequence[WrittenGraph]) -> Report:
    """Every graph against torch, and the pictures that a client draws against the golden ones.

    Returns a report in the words of a native package's; without golden pictures nothing is opened.
    """
    files = sum(1 for file in folder.rglob("*") if file.is_file()) - 1  # but the manifest
    drawings = work.pictures.quantized
    if not drawings:
        return Report(folder.name, files, (), (), ())
    played = [_played(work, drawing) for drawing in drawings]
    calls = [call for one in played for call in one.calls]
    graphs = tuple(_parity(work, one, calls) for one in written)
    images = tuple(
        _image(work, written, right, drawing, plain)
        for right, drawing, plain in zip(played, drawings, work.pictures.plain, strict=True)
    )
    return Report(folder.name, files, graphs, images, tuple(_failures(written, graphs, images)))


def _failures(
    written: Sequence[WrittenGraph], graphs: Sequence[GraphParity], images: Sequence[ImageParity]
) -> Iterator[str]:
    for parity, one in zip(graphs, written, strict=True):
        limit = one.emitted.tolerance.graph_relative
        if not parity.exact <= limit:
            yield f"{parity.graph}: relative error {parity.exact:.1e}, allowed {limit:.1e}"
    least_db = min(one.emitted.tolerance.image_psnr_db for one in written)
    for image in images:
        if not image.exact_db >= least_db:
            yield f"image {image.prompt!r}: PSNR {image.exact_db:.1f} dB, at least {least_db:.1f}"


@dataclass(frozen=True, eq=False)
class _Played:
    """A golden picture's request in torch: every call that a client makes, and its own picture.

    Attributes:
        pixels: (H, W, 3) uint8. Its decoder may spare a weight that the native one rounds.
    """

    calls: Sequence[Made]
    pixels: np.ndarray


def _played(work: LayoutWork, drawing: Drawing) -> _Played:
    """The calls and the picture of a golden picture's request.

    Raises CheckFailed when its latents are not the golden ones: then the graphs were put together
    in a wrong way.
    """
    programs = {graph.folder: graph.program for graph in work.graphs}
    calls: list[Made] = []

    def call(folder: str, inputs: Ports) -> Ports:
        outputs = torch_session(programs[folder], work.weights)(inputs)
        calls.append((folder, inputs, outputs))
        return outputs

    drawn = _drawn(work, call, drawing)
    if "vae_encoder" in programs:
        call("vae_encoder", {"sample": drawn.decoded})
    worst = max(map(relative_error, drawn.latents, drawing.latents))
    if not worst <= SAME:
        raise CheckFailed(f"{work.layout.name}: latents differ from the golden ones by {worst:.1e}")
    return _Played(calls, to_pixels(drawn.decoded, what=_what(drawing)))


def _what(drawing: Drawing) -> str:
    return f"the picture of {drawing.image.request.prompt!r}"


def _drawn(work: LayoutWork, call: Call, drawing: Drawing) -> ClientDrawing:
    """A golden picture's request by a client's order of calls."""
    ids = {
        name: inputs["ids"].astype(np.int32)
        for name, inputs, _ in drawing.calls
        if name in work.model.tokenizers
    }
    programs = {graph.folder: graph.program for graph in work.graphs}
    return work.maker.draw(call, programs, ids, drawing.noise[0], work.schedule)


def _parity(work: LayoutWork, written: WrittenGraph, calls: Sequence[Made]) -> GraphParity:
    """A graph's error on the calls that are its own, exact and as clients open it."""
    own = [call for call in calls if call[0] == written.graph.folder]
    worst = []
    for options in (EXACT, SessionOptions()):
        session, errors = _open(work, written, options), [0.0]
        for _, given, expected in own:
            found = session(given)
            errors += [relative_error(found[name], value) for name, value in expected.items()]
        worst.append(max(errors))
    return GraphParity(written.graph.folder, len(own), worst[0], worst[1])


def _open(work: LayoutWork, written: WrittenGraph, options: SessionOptions) -> Session:
    """A graph opened as ours are; ids go in as the graph wants them."""
    emitted, forms = written.emitted, written.graph.ports
    session = work.backend.open_graph(emitted.entry, emitted.session, options)
    wide = {name for name, form in forms.items() if form.is_wide}

    def call(inputs: Ports) -> dict[str, np.ndarray]:
        return session({k: v.astype(np.int64) if k in wide else v for k, v in inputs.items()})

    return call


def _image(
    work: LayoutWork,
    written: Sequence[WrittenGraph],
    right: _Played,
    drawing: Drawing,
    plain: Drawing,
) -> ImageParity:
    """A golden picture as a client draws it: exact, and as clients open the graphs."""
    pixels, latent = [], drawing.image.latent
    for options in (EXACT, SessionOptions()):

        def call(folder: str, inputs: Ports, options: SessionOptions = options) -> Ports:
            one = next(one for one in written if one.graph.folder == folder)
            return _open(work, one, options)(inputs)

        drawn = _drawn(work, call, drawing)
        pixels.append(to_pixels(drawn.decoded, what=_what(drawing)))
        latent = drawn.latents[-1]
    return ImageParity(
        drawing.image.request.prompt,
        drawing.image.request.seed,
        psnr_db(pixels[0], right.pixels),
        psnr_db(pixels[1], right.pixels),
        psnr_db(pixels[1], plain.image.pixels),
        snr_db(latent, plain.image.latent),
    )

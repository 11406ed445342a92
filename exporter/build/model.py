"""A checkpoint cut into traced programs, and what is measured on it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from exporter.build import reference
from exporter.build.licence import Licence, licence_of
from exporter.build.negative import fixed_states, fold_negative
from exporter.calibrate.store import (
    Calibration,
    Provenance,
    lines_to_measure,
    obtain,
    provenance_of,
    write_statistics,
)
from exporter.calibrate.trajectories import Inputs, Trajectories, travel
from exporter.calibrate.weights import Weights
from exporter.checkpoint.open import Checkpoint, open_checkpoint
from exporter.checkpoint.tiny import NAME, open_tiny
from exporter.checkpoint.tokenizers import TokenizerFile, tokenizer_files
from exporter.errors import InputError
from exporter.network import denoiser
from exporter.network.assemble import components_of, cut_graphs
from exporter.network.cut import Cut
from exporter.network.wiring import Ported
from exporter.package.manifest import Schedule
from exporter.package.names import ENCODERS, graph_of
from exporter.package.sizes import PictureSize
from exporter.program.program import Program
from exporter.program.trace import trace
from exporter.progress import Progress
from exporter.quantize.formats import FORMATS
from exporter.quantize.program import Methods, QuantizedProgram, quantize, unquantized
from exporter.recipe.recipe import Recipe

DECODERS = ("vae_decoder", "tiny_decoder")


@dataclass(frozen=True)
class Model:
    """A checkpoint cut into traced programs, without weights in memory.

    Attributes:
        recipe: for the size of ``programs`` first; its further sizes are models of their own.
    """

    recipe: Recipe
    checkpoint: Checkpoint
    programs: Mapping[str, Program]
    tokenizers: Mapping[str, TokenizerFile]
    weights: Weights

    @property
    def schedule(self) -> Schedule:
        return self.recipe.schedule

    @functools.cached_property
    def licence(self) -> Licence:
        """Of the checkpoint's weights; raises InputError as ``licence_of``."""
        return licence_of(self.recipe, self.checkpoint)

    @functools.cached_property
    def unrounded(self) -> dict[str, QuantizedProgram]:
        """The programs with every weight in float32."""
        return {name: unquantized(program) for name, program in self.programs.items()}

    def provenance(self, graphs: Sequence[str]) -> Provenance:
        """What statistics of these graphs are measured on."""
        given = self.recipe.calibration
        return provenance_of(
            self.checkpoint, self.recipe.cut, self.schedule, given.prompts, given.seed, graphs
        )

    def travel(self, programs: Mapping[str, QuantizedProgram], weights: Weights) -> Trajectories:
        """Draw the recipe's calibration prompts in torch, up to their final latents."""
        encoders = {name: file.encoder(name) for name, file in self.tokenizers.items()}
        player = reference.reference_player(programs, weights, self.schedule, encoders)
        return travel(player, self.recipe.calibration.prompts, self.recipe.calibration.seed)

    @functools.cached_property
    def trajectories(self) -> Trajectories:
        """Those of the unquantized model; drawn when first asked for."""
        return self.travel(self.unrounded, self.weights)

    def trajectories_as(
        self, programs: Mapping[str, QuantizedProgram], weights: Weights
    ) -> Trajectories:
        """Those of the unquantized model in the units that the programs' methods give channels.

        What graphs hand on to each other is in these units: equalization moves factors from the
        ``denoiser`` to the ``conditioner``.
        """
        methods = {name: program.methods for name, program in programs.items()}
        if not any("equalize" in asked for asked in methods.values()):
            return self.trajectories
        return self.travel(self.adapted(methods), weights)

    def calls_as(
        self, programs: Mapping[str, QuantizedProgram], weights: Weights
    ) -> Callable[[str], Sequence[Inputs]]:
        """Gives a graph's calls on ``trajectories_as``, which are drawn once, when first needed.

        Encoders of pictures meet those that the unquantized decoder makes of the latents.
        """
        drawn = functools.cache(lambda: self.trajectories_as(programs, weights))

        def calls(graph: str) -> Sequence[Inputs]:
            return drawn().calls.get(graph) or self._at_the_ends(graph, drawn().latents)

        return calls

    def _at_the_ends(self, graph: str, latents: Sequence[np.ndarray]) -> list[Inputs]:
        """Calls of a graph that decodes final latents, or encodes the pictures that they become."""
        given: list[Inputs] = [{"latent": latent} for latent in latents]
        if self.programs[graph].inputs[0].name == "latent":
            return given
        decoder = next(self.unrounded[name] for name in DECODERS if name in self.programs)
        decode = reference.torch_session(decoder, self.weights)
        return [{"image": decode(call)["image"]} for call in given]

    def adapted(self, methods: Mapping[str, Methods]) -> dict[str, QuantizedProgram]:
        """The programs with every weight in float32, as some methods (by graph) leave them."""
        return {
            name: quantize(program, lambda *_: FORMATS["fp32"], methods[name])
            for name, program in self.programs.items()
        }


def open_asked(recipe: Recipe, place: str | None = None) -> Checkpoint:
    """The checkpoint that a recipe names, or the one at ``place``, as the recipe uses it."""
    found = open_checkpoint(
        place or recipe.checkpoint,
        components_of(recipe.cut),
        None if place else recipe.revision,
        variant=None if place else recipe.variant,
        parts=recipe.parts,
        tokenizers=recipe.tokenizers,
        config=recipe.config,
        loras=recipe.loras,
    )
    return with_tiny(found, recipe)


def trace_model(
    recipe: Recipe, keep_bytes: int, progress: Progress, checkpoint: Checkpoint | None = None
) -> Model:
    """The first stops: checkpoint, graphs, trace. Raises InputError.

    Args:
        checkpoint: the recipe's, where it was opened before.
    """
    # Checkpoint: headers only; a weight is read when a stage below asks for it. What identifies the
    # files is computed beside the stages.
    checkpoint = checkpoint or open_asked(recipe)
    checkpoint.begin_digest()
    weights = Weights(checkpoint, keep_bytes=keep_bytes)

    # Graphs and trace: operators and shapes, no weights in memory.
    programs = {}
    refuse_sizes(checkpoint, recipe)
    graphs = cut_graphs(checkpoint, recipe.cut, recipe.mark.tile if recipe.mark else None)
    progress.expect(len(graphs))
    for graph in graphs:
        progress(f"trace {graph.name}")
        programs[graph.name] = trace(graph)
    tokenizers = tokenizer_files(checkpoint, token_counts(programs))
    if recipe.guidance is not None and recipe.guidance.negative_prompt is not None:
        encoders = {name: file.encoder(name) for name, file in tokenizers.items()}
        states = fixed_states(checkpoint, programs, encoders, recipe.guidance.negative_prompt)
        programs["conditioner"] = fold_negative(programs["conditioner"], states)
    return Model(recipe, checkpoint, programs, tokenizers, weights)


def trace_sizes(model: Model, progress: Progress) -> dict[PictureSize, Model]:
    """A model for each size of its recipe, and for the size that layers are measured at.

    What does not depend on the size is the first one's.
    """
    recipe = model.recipe
    sizes = dict.fromkeys((*recipe.sizes, recipe.calibrated_size))
    return {size: _resized(model, size, progress) for size in sizes}


def refuse_sizes(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Raise InputError for a size of the recipe that the network cannot draw."""
    config = denoiser.read_config(checkpoint.component("transformer"))
    places = dict.fromkeys(recipe.further_sizes and recipe.sizes, "[image] sizes")
    if recipe.calibration.size is not None:
        places.setdefault(recipe.calibration.size, "[calibration] size")
    for size, where in places.items():
        try:
            denoiser.latent_size(config, recipe.at(size).cut)
        except InputError as error:
            said = str(error).removeprefix("[image] ")
            raise InputError(f"{where}: {size}: {said}") from None


def _resized(model: Model, size: PictureSize, progress: Progress) -> Model:
    """The model of another size; itself for its own."""
    recipe = model.recipe.at(size)
    if size == model.recipe.sizes[0]:
        return model
    tile = recipe.mark.tile if recipe.mark else None
    programs = dict(model.programs)
    for graph in cut_graphs(model.checkpoint, recipe.cut, tile):
        first = model.programs[graph.name]
        if depends_on_size(first, graph):
            progress.expect(1)
            progress(f"trace {graph.name} at {size}")
            programs[graph.name] = trace(graph)
    return replace(model, recipe=recipe, programs=programs)


def depends_on_size(graph: Ported, other: Ported) -> bool:
    """Whether a graph of one size is another at a size where it is ``other``.

    What takes or gives a latent or a picture is; what does neither meets no size.
    """
    if graph_of(graph.name) in (*ENCODERS, "conditioner"):
        return False
    return (graph.inputs, graph.outputs) != (other.inputs, other.outputs)


def with_tiny(checkpoint: Checkpoint, recipe: Recipe) -> Checkpoint:
    """The same with the tiny autoencoder, if the recipe's cut uses one; raises InputError."""
    if not recipe.cut.tiny_ends:
        return checkpoint
    named = recipe.tiny
    decoder = Path(named.decoder) if named.decoder else checkpoint.folder / NAME
    if named.decoder is None and not decoder.is_dir():
        raise InputError(
            f"{checkpoint.folder}: has no folder '{NAME}'; name a TAESD3 decoder as tiny_decoder "
            "in [model] of the recipe, or leave out what asks for it in [image]"
        )
    channels = checkpoint.component("transformer").integer("in_channels")
    encoder = Path(named.encoder) if named.encoder else None
    tiny = open_tiny(recipe.cut.tiny_ends, decoder, encoder, channels)
    return replace(checkpoint, components={**checkpoint.components, NAME: tiny})


def token_counts(programs: Mapping[str, Program]) -> dict[str, int]:
    """How many tokens each text encoder reads."""
    return {name: p.inputs[0].shape[1] for name, p in programs.items() if name in ENCODERS}


def lines_to_calibrate(graphs: Sequence[str]) -> int:
    """How many lines of progress ``calibrate`` shows when it measures."""
    return 1 + lines_to_measure(graphs)


def calibrate(
    model: Model, graphs: Sequence[str], statistics: Path, progress: Progress
) -> Calibration:
    """What layers meet on the calibration prompts: as kept in ``statistics``, or measured into it.

    The trajectories are drawn, and each graph is run on all of them, layer by layer.
    """
    provenance = model.provenance(graphs)

    def measure(folder: Path) -> None:
        progress("draw the calibration prompts, unquantized, in torch")
        trajectories = model.trajectories
        write_statistics(
            folder, provenance, model.programs, model.weights.read, trajectories.calls, progress
        )

    return obtain(statistics, provenance, measure, progress)


def traced(checkpoint: Checkpoint, cut: Cut, tile: np.ndarray | None = None) -> dict[str, Program]:
    """Every graph, without reading a weight; raises InputError.

    Args:
        tile: signs of a mark, or None.
    """
    programs = {graph.name: trace(graph) for graph in cut_graphs(checkpoint, cut, tile)}
    programs["conditioner"] = fold_negative(programs["conditioner"], _unread)
    return programs


def _unread(encoder: str, output: str) -> np.ndarray:
    raise AssertionError(f"{encoder} would have to run for its {output}")

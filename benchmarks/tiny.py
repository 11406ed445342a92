"""The tiny autoencoder of shapes-flash beside its VAE: milliseconds, and decibels between pictures.

    python -m benchmarks.tiny [--pictures 48] [--json FILE]

Both are built in float32 and given what the model drew for prompts that no training saw. Time is
the processors', of all threads, in the fastest call of each graph: what other work on the machine
takes is not in it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks import figures
from benchmarks.figures import Column
from benchmarks.shapes_flash.shapeeval import evaluation_prompts
from exporter import backends
from exporter.backends.contract import EmitOptions
from exporter.build.model import Model, trace_model
from exporter.build.reference import reference_player
from exporter.drawing.loop import Image, Ports, Request, Session, generate
from exporter.network.cut import Ends
from exporter.package.measures import mean_db, psnr_db
from exporter.package.pixels import from_pixels, to_pixels
from exporter.progress import Progress
from exporter.quantize.program import unquantized
from exporter.recipe.recipe import read_recipe

RECIPE = Path(__file__).parents[1] / "recipes" / "shapes-flash-tiny.toml"
BACKENDS = ("onnx", "openvino")
WHAT = "A tiny decoder and encoder beside the VAE's, shapes-flash, 128 x 128 px, float32."
COLUMNS = (
    Column("what", "", 0),
    Column("vae_ms", "VAE, CPU ms", 1),
    Column("tiny_ms", "tiny, CPU ms", 1),
    Column("ratio", "times as fast", 1),
    Column("psnr_db", "PSNR dB", 1),
    Column("lowest_db", "lowest PSNR dB", 1),
)


def model_of(ends: Ends) -> Model:
    """shapes-flash with these ends, traced."""
    recipe = read_recipe(RECIPE)
    return trace_model(replace(recipe, cut=replace(recipe.cut, ends=ends)), 1 << 30, Progress())


def drawn(model: Model, count: int) -> list[Image]:
    """The first prompts of the evaluation set, drawn in torch."""
    encoders = {name: file.encoder(name) for name, file in model.tokenizers.items()}
    player = reference_player(model.unrounded, model.weights, model.schedule, encoders)
    prompts = evaluation_prompts(-(-count // 6))[:count]
    events = generate(player, [Request(p.text, p.seed) for p in prompts])
    return [event for event in events if isinstance(event, Image)]


def opened(model: Model, backend: str, graph: str, place: Path) -> Session:
    """A graph in float32 as a backend runs it."""
    found = backends.load_to_build(backend)
    folder = place / f"{backend}-{graph}"
    folder.mkdir()
    options = EmitOptions(backends.default_choices(found))
    emitted = found.emit(unquantized(model.programs[graph]), model.weights.read, folder, options)
    return found.open_graph(emitted.entry, emitted.session, backends.SessionOptions())


def row(
    what: str,
    sessions: Mapping[str, Session],
    inputs: Sequence[Ports],
    shown: Callable[[Ports], np.ndarray],
) -> figures.Row:
    """The VAE's graph (``full``) and the tiny one on the same inputs, in turn.

    Args:
        shown: the picture of what a call gave.
    """
    seconds: dict[str, list[float]] = {kind: [] for kind in sessions}
    outputs: dict[str, list[Ports]] = {kind: [] for kind in sessions}
    for given in (inputs[0], *inputs):  # the first call prepares kernels
        for kind, session in sessions.items():
            started = time.process_time()
            outputs[kind].append(session(given))
            seconds[kind].append(time.process_time() - started)
    pairs = zip(outputs["full"], outputs["tiny"], strict=True)
    away = [psnr_db(shown(tiny), shown(full)) for full, tiny in pairs]
    vae_ms, tiny_ms = (1000 * min(seconds[kind]) for kind in ("full", "tiny"))
    return {
        "what": what, "vae_ms": vae_ms, "tiny_ms": tiny_ms, "ratio": vae_ms / tiny_ms,
        "psnr_db": mean_db(away), "lowest_db": min(away),
    }  # fmt: skip


def measure(count: int, place: Path) -> list[figures.Row]:
    """A row for the decoders and one for the encoders of each backend."""
    full, tiny = model_of(Ends()), model_of(Ends("tiny", "tiny", "tiny"))
    images = drawn(full, count)
    latents: list[Ports] = [{"latent": image.latent} for image in images]
    pictures: list[Ports] = [{"image": from_pixels(image.pixels)} for image in images]
    rows = []
    for backend in BACKENDS:
        graphs = {
            end: {
                "full": opened(full, backend, f"vae_{end}", place),
                "tiny": opened(tiny, backend, f"tiny_{end}", place),
            }
            for end in ("decoder", "encoder")
        }
        decode = graphs["decoder"]["full"]
        rows.append(
            row(f"decoder, {backend}", graphs["decoder"], latents, lambda o: to_pixels(o["image"]))
        )
        rows.append(
            row(
                f"encoder, {backend}", graphs["encoder"], pictures,
                lambda o, decode=decode: to_pixels(decode(o)["image"]),  # type: ignore[misc]
            )
        )  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=WHAT)
    parser.add_argument("--pictures", type=int, default=48)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        rows = measure(arguments.pictures, Path(place))
    print(figures.markdown(COLUMNS, rows))
    if arguments.json:
        figures.write(arguments.json, WHAT, COLUMNS, rows)


if __name__ == "__main__":
    main()

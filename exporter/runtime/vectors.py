"""Compares this runtime with a package's conformance vectors: everything but the graphs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from exporter.drawing.loop import Player, Request, advance, draws_per_step, guided, texts_of
from exporter.drawing.noise import TorchNoise
from exporter.drawing.vectors import IN_A_ROW, ids, same_noise
from exporter.errors import CheckFailed
from exporter.package.decode import decode
from exporter.package.manifest import Golden, Result
from exporter.package.pixels import to_pixels
from exporter.package.preview import preview_of
from exporter.runtime.golden import Tensors, picture_tensors, read_tensors
from exporter.runtime.package import Package

PREVIEW_LEVELS = 1  # how far another order of sums may move a preview


@dataclass(frozen=True)
class Vector:
    """A comparison: what it was of, in words that fit a failure, and whether it held."""

    what: str
    same: bool


@dataclass(frozen=True)
class Tokens:
    """``golden/tokens.json``.

    Attributes:
        prompts: hard ones.
        ids: by tokenizer a row for each prompt, without the padding at its end.
    """

    prompts: tuple[str, ...]
    ids: dict[str, tuple[tuple[int, ...], ...]]


def compare(package: Package, player: Player) -> Iterator[Vector]:
    """All vectors of a package; raises CheckFailed for a file that is not what it has to be."""
    golden = package.manifest.golden
    if golden.tokens:
        yield from _tokens(package, player)
    if golden.noise:
        yield from _noise(read_tensors(package, golden.noise))
    for picture in golden.pictures:
        tensors = picture_tensors(package, picture)
        try:
            yield from _picture(package, player, picture, tensors)
        except (ValueError, TypeError) as error:  # shapes that do not go together
            raise CheckFailed(
                f"{package.folder / picture.tensors}: not tensors of this package: {error}"
            ) from None


def _tokens(package: Package, player: Player) -> Iterator[Vector]:
    path = package.manifest.golden.tokens
    try:
        found = decode(Tokens, package.read(path))
        for name, entry in package.manifest.text.tokenizers.items():
            rows = zip(found.prompts, found.ids.get(name, ()), strict=True)
            differing = [p for p, r in rows if ids(player.tokenizers[name], entry, p) != [*r]]
            first = f"; the first is {differing[0]!r:.60}" if differing else ""
            what = f"{path}: {name}: ids of {len(differing)} of {len(found.prompts)} prompts"
            yield Vector(f"{what} differ{first}", not differing)
    except ValueError as error:
        raise CheckFailed(f"{package.folder / path}: not a file of ids: {error}") from None


def _noise(tensors: Tensors) -> Iterator[Vector]:
    for name, expected in tensors.items():
        seed, _, how = name.partition("/")
        if how == "in a row" and seed.isascii() and seed.isdigit():
            stream = TorchNoise(int(seed))
            found = np.concatenate([stream.randn(size) for size in IN_A_ROW])
        elif seed.isascii() and seed.isdigit():
            found = TorchNoise(int(seed)).randn(expected.size)
        else:
            continue  # of a later format
        yield Vector(f"noise of seed {seed}, {how}: differs", same_noise(found, expected))


def _picture(
    package: Package, player: Player, golden: Golden, tensors: Tensors
) -> Iterator[Vector]:
    where = f"image {golden.prompt!r:.60}"
    texts = dict.fromkeys(texts_of(player.schedule, [Request(golden.prompt, golden.seed)]))
    for stage in player.stages:
        for port, source in stage.inputs.items():
            for call, text in enumerate(texts if source.kind == "tokens" else ()):
                found = player.tokenizers[source.name](text)
                same = np.array_equal(found, tensors[f"{stage.graph}/{call}/in/{port}"])
                yield Vector(f"{where}: ids of {source.name} differ", same)
    stream = TorchNoise(golden.seed)
    draws = 1 + draws_per_step(player.schedule) * player.schedule.steps
    noise = [stream.randn(*player.latent) for _ in range(draws)]
    for k, drawn in enumerate(noise):
        yield Vector(f"{where}: noise {k} differs", same_noise(drawn, tensors[f"noise/{k}"]))
    yield from _steps(player, where, tensors)
    image = tensors[_recorded(player, "image", 0)]
    shown = to_pixels(image, player.picture.pixels, f"{where}: the recorded image")
    same = np.array_equal(shown, tensors["pixels"])
    yield Vector(f"{where}: pixels of the decoder's output differ", same)


def _steps(player: Player, where: str, tensors: Tensors) -> Iterator[Vector]:
    """Each step from the latent before it and the recorded velocity, without a graph."""
    latent = tensors["noise/0"]
    for step in range(player.schedule.steps):
        velocity = _velocity(player, tensors, step)
        drawn = partial(tensors.__getitem__, f"noise/{step + 1}")
        found = advance(player.schedule, step, latent, velocity, drawn)
        latent = tensors[f"latent/{step + 1}"]
        yield Vector(f"{where}: step {step + 1} differs", np.array_equal(found, latent))
        entry = player.picture.preview
        if entry is not None:
            shown = preview_of(entry, player.picture.pixels).picture(latent).astype(int)
            largest = np.abs(shown - tensors[f"preview/{step + 1}"]).max()
            yield Vector(f"{where}: preview {step + 1} differs", bool(largest <= PREVIEW_LEVELS))


def _velocity(player: Player, tensors: Tensors, step: int) -> np.ndarray:
    """A step's, from what the calls of its graph gave."""
    guidance = player.schedule.guidance
    if guidance is None:
        return tensors[_recorded(player, "velocity", step)]
    both = (tensors[_recorded(player, "velocity", 2 * step + call)] for call in (0, 1))
    return guided(guidance, *both)


def _recorded(player: Player, result: Result, call: int) -> str:
    """The name of the tensor that a graph gave the loop."""
    stage = player.giving(result)
    assert stage is not None
    (port,) = (port for port, found in stage.results.items() if found == result)
    return f"{stage.graph}/{call}/out/{port}"

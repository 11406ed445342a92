"""Golden outputs: what the quantized program computes in torch, kept so that a device can check.

The pictures are drawn by the runtime's own loop over sessions that run programs in torch, so the
loop is part of what is checked.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image as Picture
from safetensors.numpy import save

from exporter.build.reference import reference_player, torch_session
from exporter.calibrate.weights import Weights
from exporter.checkpoint.tokenizers import TokenizerFile
from exporter.drawing.loop import (
    Event,
    Image,
    Player,
    Request,
    Session,
    Step,
    draws_per_step,
    generate,
)
from exporter.drawing.noise import TorchNoise
from exporter.drawing.vectors import noise_vectors, token_vectors
from exporter.package.manifest import Golden, GoldenEntry, Guidance, Schedule, Tolerance
from exporter.package.measures import relative_error
from exporter.package.preview import Preview
from exporter.package.sizes import PictureSize
from exporter.quantize.everywhere import has_levels
from exporter.quantize.program import QuantizedProgram
from exporter.recipe.recipe import Recipe

MOVED = 1e-5  # relative; more than engines differ by in float32
Call = tuple[str, Mapping[str, np.ndarray], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Drawing:
    """One golden picture: its request, pixels, decoder output and every call that made it.

    ``latents``: after each step, (1, channels, h, w) float32; the last one is the image's.
    ``noise``: of the same shape, what it starts from, and what each step took in ``renoise``.
    """

    image: Image
    decoded: np.ndarray
    latents: tuple[np.ndarray, ...]
    noise: tuple[np.ndarray, ...]
    calls: tuple[Call, ...]


@dataclass(frozen=True)
class Pictures:
    """A package's golden pictures, by the quantized and by the unquantized program; may be none."""

    quantized: Sequence[Drawing]
    plain: Sequence[Drawing]


@dataclass(frozen=True)
class Painter:
    """Draws a recipe's golden prompts with programs in torch."""

    weights: Weights
    schedule: Schedule
    tokenizers: Mapping[str, TokenizerFile]
    recipe: Recipe

    def draw(self, programs: Mapping[str, QuantizedProgram]) -> list[Drawing]:
        """One picture per golden prompt, with every call of every graph; none without prompts."""
        encoders = {name: file.encoder(name) for name, file in self.tokenizers.items()}
        player = reference_player(programs, self.weights, self.schedule, encoders)
        requests = [Request(prompt, self.recipe.seed) for prompt in self.recipe.prompts]
        return [_draw(player, request, self.recipe.cut.image_to_image) for request in requests]


def _draw(player: Player, request: Request, encode: bool) -> Drawing:
    """Draw one picture; with ``encode``, also run the encoder on it, as the loop does not.

    A graph that is there for previews alone shows every step.
    """
    calls: list[Call] = []
    recording = _recording(player, calls)
    events: list[Event] = []
    for event in generate(recording, [request]):
        events.append(event)
        if isinstance(event, Step) and event.preview and player.giving("preview"):
            event.preview()
    image = next(e for e in events if isinstance(e, Image))
    latents = tuple(e.latent for e in events if isinstance(e, Step) and e.latent is not None)
    decoded = np.asarray(calls[-1][2]["image"])
    stream = TorchNoise(request.seed)
    draws = 1 + draws_per_step(player.schedule) * player.schedule.steps
    noise = tuple(stream.randn(*player.latent) for _ in range(draws))
    if encode and (start := player.giving("start")):
        recording.open(start.graph)({"image": decoded})
    return Drawing(image, decoded, latents, noise, tuple(calls))


def _recording(player: Player, calls: list[Call]) -> Player:
    def open_session(name: str) -> Session:
        session = player.open(name)

        def call(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            outputs = session(inputs)
            calls.append((name, inputs, outputs))
            return outputs

        return call

    return replace(player, open=open_session)


@dataclass(frozen=True)
class Allowance:
    """What a graph that rounds inputs may differ by besides what its backend says.

    Attributes:
        graph_relative: relative L2 error of an output.
        guidance_db: by how much its errors stand out more in a picture; see ``guidance_db``.
    """

    graph_relative: float = 0.0
    guidance_db: float = 0.0

    def widened(self, tolerance: Tolerance) -> Tolerance:
        """A backend's tolerance with it."""
        return Tolerance(
            graph_relative=max(self.graph_relative, tolerance.graph_relative),
            image_psnr_db=tolerance.image_psnr_db - self.guidance_db,
        )


USUAL = Allowance()


def guidance_db(guidance: Guidance | None) -> float:
    """How much more noise a guided step has than each of its two calls, in dB, to a tenth above.

    A step's velocity is n + s * (v - n) = s * v + (1 - s) * n. Where the errors of v and n have
    nothing to do with each other, as those of values between two levels, their variances add up
    to s^2 + (s - 1)^2 of one call's. Without guidance: 0.
    """
    if guidance is None:
        return 0.0
    variance = guidance.scale**2 + (guidance.scale - 1) ** 2
    return math.ceil(100 * math.log10(variance)) / 10


def allowances(
    programs: Mapping[str, QuantizedProgram],
    weights: Weights,
    drawing: Drawing,
    guidance: Guidance | None,
) -> dict[str, Allowance]:
    """Of each graph that rounds inputs, what it may differ by.

    A value between two levels falls to either of them by the last digit of a float, and what comes
    behind is computed from the level. So two engines that compute the same program differ by more
    than their floats do. How much more is measured on the program itself: twice the error that
    moving all inputs by ``MOVED`` makes on a picture's calls, up to the next power of two.
    """
    steps = len(drawing.latents)
    calls = Counter(name for name, _, _ in drawing.calls)
    return {
        name: Allowance(
            2.0 ** math.ceil(math.log2(2 * _own_error(program, weights, drawing))),
            guidance_db(guidance) if calls[name] == 2 * steps else 0.0,
        )
        for name, program in programs.items()
        if has_levels(program)
    }


def _own_error(program: QuantizedProgram, weights: Weights, drawing: Drawing) -> float:
    """The largest relative error over a picture's calls; at least 1e-4."""
    random, worst = np.random.default_rng(0), 1e-4
    session = torch_session(program, weights)
    for name, inputs, outputs in drawing.calls:
        if name == program.name:
            moved = {k: _moved(v, random) for k, v in inputs.items()}
            found = session(moved)
            worst = max(worst, *(relative_error(found[k], v) for k, v in outputs.items()))
    return worst


def _moved(value: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """By as much as engines differ; ids stay what they are."""
    if value.dtype.kind != "f":
        return value
    moved: np.ndarray = value * (1 + MOVED * random.standard_normal(value.shape, np.float32))
    return moved


def write(
    folder: Path,
    drawn: Pictures,
    tokenizers: Mapping[str, TokenizerFile],
    preview: Preview | None,
) -> tuple[GoldenEntry, list[Path]]:
    """Write pictures, tensors and vectors into ``folder``/golden; returns what is there."""
    (folder / "golden").mkdir()
    # Written here and not by libraries, so that a full disk is an OSError like everywhere else.
    tokens, noise = folder / "golden" / "tokens.json", folder / "golden" / "noise.safetensors"
    entries = {name: file.entry for name, file in tokenizers.items()}
    encoders = {name: file.encoder(name) for name, file in tokenizers.items()}
    tokens.write_bytes(token_vectors(encoders, entries).encode())
    noise.write_bytes(save(noise_vectors()))
    pictures, files = [], [tokens, noise]
    for i, (drawing, plain) in enumerate(zip(drawn.quantized, drawn.plain, strict=True)):
        entry = _entry(drawing, f"golden/{i}")
        pictures.append(entry)
        files += _write_picture(folder, entry, drawing, plain, _tensors(drawing, plain, preview))
    return GoldenEntry(tuple(pictures), "golden/tokens.json", "golden/noise.safetensors"), files


def write_sized(
    folder: Path,
    first: Pictures,
    sized: Mapping[PictureSize, Pictures],
    preview: Preview | None,
) -> tuple[dict[PictureSize, tuple[Golden, ...]], list[Path]]:
    """Write the pictures of further sizes into ``folder``/golden/<size>; returns what is there.

    Tensors that are those of the first size's picture of the same prompt are left out.
    """
    found: dict[PictureSize, tuple[Golden, ...]] = {}
    files: list[Path] = []
    for size, drawn in sized.items():
        (folder / "golden" / str(size)).mkdir()
        entries = []
        for i, (drawing, plain) in enumerate(zip(drawn.quantized, drawn.plain, strict=True)):
            known = _tensors(first.quantized[i], first.plain[i], preview)
            own, same = _own(_tensors(drawing, plain, preview), known)
            entry = _entry(drawing, f"golden/{size}/{i}")
            entry = replace(entry, like=f"golden/{i}.safetensors", same=same)
            entries.append(entry)
            files += _write_picture(folder, entry, drawing, plain, own)
        found[size] = tuple(entries)
    return found, files


def _own(
    tensors: Mapping[str, np.ndarray], known: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Of tensors those that are not as ``known`` has them, each once; and who is the same as whom.

    A decoder's picture is the encoder's input, a step's latent what the next one reads.
    """
    own: dict[str, np.ndarray] = {}
    same: dict[str, str] = {}
    first: dict[object, str] = {}
    for name, value in tensors.items():
        if name in known and _identity(value) == _identity(known[name]):
            continue
        place = first.setdefault(_identity(value), name)
        if place == name:
            own[name] = value
        else:
            same[name] = place
    return own, same


def _identity(value: np.ndarray) -> object:
    return str(value.dtype), value.shape, value.tobytes()


def _entry(drawing: Drawing, place: str) -> Golden:
    request = drawing.image.request
    return Golden(
        prompt=request.prompt,
        seed=request.seed,
        image=f"{place}.png",
        unquantized=f"{place}-unquantized.png",
        tensors=f"{place}.safetensors",
    )


def _write_picture(
    folder: Path,
    entry: Golden,
    drawing: Drawing,
    plain: Drawing,
    tensors: Mapping[str, np.ndarray],
) -> list[Path]:
    Picture.fromarray(drawing.image.pixels).save(folder / entry.image)
    Picture.fromarray(plain.image.pixels).save(folder / entry.unquantized)
    (folder / entry.tensors).write_bytes(save(dict(tensors)))
    return [folder / entry.image, folder / entry.unquantized, folder / entry.tensors]


def _tensors(drawing: Drawing, plain: Drawing, preview: Preview | None) -> dict[str, np.ndarray]:
    """``<graph>/<call>/in|out/<port>`` of every call, and what lies between them.

    ``noise/<k>``: draw k, 0 is what the picture starts from; ``latent/<step>`` and
    ``unquantized/<step>``, (1, channels, h, w), and ``preview/<step>``, (h, w, 3) uint8: after a
    step, counted from 1; ``pixels``: the picture, (H, W, 3) uint8; the final latents.
    """
    count: dict[str, int] = {}
    tensors = {
        "latent": drawing.image.latent,
        "unquantized_latent": plain.image.latent,
        "pixels": drawing.image.pixels,
    }
    for step, (latent, other) in enumerate(zip(drawing.latents, plain.latents, strict=True), 1):
        tensors |= {f"latent/{step}": latent, f"unquantized/{step}": other}
        if preview is not None:
            tensors[f"preview/{step}"] = preview.picture(latent)
    tensors |= {f"noise/{k}": drawn for k, drawn in enumerate(drawing.noise)}
    for name, inputs, outputs in drawing.calls:
        call = count.get(name, 0)
        count[name] = call + 1
        for side, ports in (("in", inputs), ("out", outputs)):
            for port, value in ports.items():
                tensors[f"{name}/{call}/{side}/{port}"] = value
    # The library writes memory as it lies, and a picture's axes were moved.
    return {name: np.ascontiguousarray(value) for name, value in tensors.items()}

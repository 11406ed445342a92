"""The runtime loop: prompts to pictures in a fixed number of steps, as a generator.

It yields after the prompts are encoded and after every step, so that a caller can show a preview,
stop early (close the generator), or measure. A graph is opened when its turn comes and released
after it, so the peak is the largest graph and not the sum.

    x_0 = noise
    v   = denoiser(x, context, modulation row of the step)
    euler:   x' = x + (s' - s) v
    renoise: x' = (1 - s') (x - s v) + s' noise
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from exporter.drawing.noise import TorchNoise
from exporter.drawing.text import Encode
from exporter.errors import InputError
from exporter.package.manifest import Schedule
from exporter.package.preview import Preview

Ports = dict[str, np.ndarray]
Session = Callable[[Mapping[str, np.ndarray]], Ports]
ENCODERS = ("clip_l", "clip_g", "t5")


def nothing() -> None:
    """What a player without open graphs does when it is closed."""


@dataclass(frozen=True)
class Player:
    """What the loop needs of a package, or of a program in torch.

    ``with`` a player, or ``close`` it: graphs that stayed open are let go, and none is opened any
    more.

    Attributes:
        schedule: sigmas and mode.
        latent: shape (1, channels, h, w).
        tokenizers: one for each text encoder that is there.
        open: opens a graph by name.
        preview: turns a latent into a small picture, or None.
        parts: of graphs that are cut into consecutive parts, the parts' names in order.
        close: lets go of graphs that are open.
    """

    schedule: Schedule
    latent: tuple[int, int, int, int]
    tokenizers: Mapping[str, Encode]
    open: Callable[[str], Session]
    preview: Preview | None = None
    parts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    close: Callable[[], None] = nothing

    def __enter__(self) -> Player:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Request:
    """One picture to draw.

    Attributes:
        prompt: the text.
        seed: of the noise; the same as torch's CPU generator.
        image: start from this picture, (H, W, 3) uint8, or None.
        strength: how much of the schedule an ``image`` goes through, in (0, 1].
    """

    prompt: str
    seed: int = 0
    image: np.ndarray | None = None
    strength: float = 1.0


@dataclass(frozen=True)
class Conditioned:
    """All prompts are encoded; the text encoders are released."""

    prompts: int


@dataclass(frozen=True)
class Step:
    """A step is done: ``step`` of ``steps`` of request ``index``; latent (1, 16, h, w) float32."""

    index: int
    step: int
    steps: int
    sigma: float
    latent: np.ndarray
    preview: Callable[[], np.ndarray] | None


@dataclass(frozen=True)
class Image:
    """A picture is done: pixels (H, W, 3) uint8, and the latent that it was decoded from."""

    index: int
    request: Request
    pixels: np.ndarray
    latent: np.ndarray


Event = Conditioned | Step | Image


def generate(player: Player, requests: Sequence[Request]) -> Generator[Event, None, None]:
    """Draw pictures; every graph is opened once for all of them.

    Raises InputError for a strength out of range, an image of another size than the package's, or
    an image where the package has no encoder.
    """
    starts = [first_step(r.strength if r.image is not None else 1.0, player) for r in requests]
    for request in requests:
        _check_image(player, request)
    conditions = condition(player, [r.prompt for r in requests])
    yield Conditioned(len(conditions))

    encoded = _encode_images(player, requests)
    denoiser: Session | None = player.open("denoiser")
    latents = []
    for index, (request, start) in enumerate(zip(requests, starts, strict=True)):
        noise = TorchNoise(request.seed)
        latent: np.ndarray = noise.randn(*player.latent)
        if index in encoded:
            sigma = np.float32(player.schedule.sigmas[start])
            latent = sigma * latent + (np.float32(1) - sigma) * encoded[index]
        for step in range(start, player.schedule.steps):
            assert denoiser is not None
            latent = advance(denoiser, conditions[request.prompt], latent, step, player, noise)
            yield _step_event(player, index, step, latent)
        latents.append(latent)
    denoiser = None  # released before the decoder is opened

    decoder = player.open("vae_decoder")
    for index, (request, latent) in enumerate(zip(requests, latents, strict=True)):
        image = decoder({"latent": latent})["image"]
        yield Image(index, request, to_pixels(image), latent)


def condition(player: Player, prompts: Sequence[str]) -> dict[str, Ports]:
    """Context (1, N, D) and modulation (S, M) of each distinct prompt."""
    inputs: dict[str, Ports] = {p: {} for p in prompts}
    for name in ENCODERS:
        if name not in player.tokenizers:
            continue
        suffix = name.removeprefix("clip_")
        ids = [{"ids": player.tokenizers[name](prompt)} for prompt in inputs]
        for found, out in zip(inputs.values(), run(player, name, ids), strict=True):
            found.update({f"{port}_{suffix}": value for port, value in out.items()})
    conditioner = player.open("conditioner")
    return {prompt: conditioner(found) for prompt, found in inputs.items()}


def run(player: Player, name: str, calls: Sequence[Ports]) -> list[Ports]:
    """A graph's outputs for several inputs. Each of its parts is opened once and released."""
    found = list(calls)
    for part in player.parts.get(name, (name,)):
        session = player.open(part)
        found = [session(inputs) for inputs in found]
        del session
    return found


def advance(
    denoiser: Session,
    condition: Mapping[str, np.ndarray],
    latent: np.ndarray,
    step: int,
    player: Player,
    noise: TorchNoise,
) -> np.ndarray:
    """One step of the schedule, in float32 like diffusers' scheduler."""
    sigma, following = (np.float32(s) for s in player.schedule.sigmas[step : step + 2])
    row = condition["modulation"][step : step + 1]
    inputs = {"latent": latent, "context": condition["context"], "modulation": row}
    velocity = denoiser(inputs)["velocity"]
    if player.schedule.mode == "euler":
        return latent + (following - sigma) * velocity
    clean = latent - sigma * velocity
    return (np.float32(1) - following) * clean + following * noise.randn(*player.latent)


def first_step(strength: float, player: Player) -> int:
    """The step at which image to image enters the schedule (diffusers' get_timesteps)."""
    if not 0 < strength <= 1:
        raise InputError(f"--strength {strength}: must be above 0 and at most 1")
    steps = player.schedule.steps
    start = int(steps - min(steps * strength, steps))
    return min(start, steps - 1)


def to_pixels(image: np.ndarray) -> np.ndarray:
    """(1, 3, H, W) in [-1, 1] -> (H, W, 3) uint8, rounded as diffusers rounds."""
    unit = np.clip(image[0].transpose(1, 2, 0) / 2 + 0.5, 0, 1)
    return np.asarray(np.round(unit * 255), dtype=np.uint8)


def from_pixels(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (1, 3, H, W) float32 in [-1, 1]."""
    unit = pixels.astype(np.float32) / 255
    return np.ascontiguousarray((2 * unit - 1).transpose(2, 0, 1)[None])


def _check_image(player: Player, request: Request) -> None:
    if request.image is None:
        return
    if player.parts and "vae_encoder" not in player.parts:
        raise InputError(
            "--image: this package has no graph 'vae_encoder' to start from a picture with; build "
            "with image_to_image = true in [image]"
        )
    height, width = (size * 8 for size in player.latent[2:])
    if request.image.shape != (height, width, 3):
        found = " x ".join(str(s) for s in request.image.shape[1::-1])
        raise InputError(f"--image is {found} px; this package draws {width} x {height} px")


def _encode_images(player: Player, requests: Sequence[Request]) -> dict[int, np.ndarray]:
    images = {i: r.image for i, r in enumerate(requests) if r.image is not None}
    if not images:
        return {}
    encoder = player.open("vae_encoder")
    return {i: encoder({"image": from_pixels(image)})["latent"] for i, image in images.items()}


def _step_event(player: Player, index: int, step: int, latent: np.ndarray) -> Step:
    preview = player.preview
    show = None if preview is None else (lambda: preview.picture(latent))
    schedule = player.schedule
    return Step(index, step + 1, schedule.steps, schedule.sigmas[step + 1], latent, show)

"""The runtime loop: prompts to pictures in a fixed number of steps, as a generator.

It yields after the prompts are encoded and after every step, so that a caller can show a preview,
stop early (close the generator), or measure. A graph is opened when its turn comes and released
after it, so the peak is the largest graph and not the sum.

    x_0 = noise
    v   = denoiser(x, context, modulation row of the step)
    guidance: n = denoiser(x, the same of the negative prompt), v' = n + scale (v - n)
    euler:   x' = x + (s' - s) v
    renoise: x' = (1 - s') (x - s v) + s' noise
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from numbers import Real
from typing import TYPE_CHECKING

import numpy as np

from exporter.drawing.judge import Glimpses, Judge, wipe
from exporter.drawing.kept import KeptPrompts, Values
from exporter.drawing.noise import TorchNoise, check_seed
from exporter.drawing.start import Fit, start_picture
from exporter.drawing.text import Encode, check_prompt
from exporter.errors import CheckFailed, InputError
from exporter.package.manifest import (
    Filter,
    Guidance,
    PictureEntry,
    Result,
    Schedule,
    Source,
    Stage,
)
from exporter.package.pixels import NOT_FINITE, from_pixels, to_pixels
from exporter.package.preview import preview_of
from exporter.package.sizes import PictureSize, Sized, known_size

if TYPE_CHECKING:
    from exporter.drawing.start import Given

Ports = dict[str, np.ndarray]
Session = Callable[[Mapping[str, np.ndarray]], Ports]


def nothing() -> None:
    """What a player without open graphs does when it is closed."""


@dataclass(frozen=True)
class Player:
    """What the loop needs of a package, or of a program in torch.

    ``with`` a player, or ``close`` it: graphs that stayed open are let go, and none is opened any
    more.

    Attributes:
        schedule: sigmas and mode.
        picture: its size, the latent's, and how pixels are made.
        tokenizers: one for each text encoder that is there.
        stages: the loop: which graph runs when, and what its inputs are.
        open: opens a graph, or a part of one, by name.
        close: lets go of graphs that are open.
        filter: what every picture has to pass, or nothing.
        sizes: the players of all sizes of the package, this one's among them; empty where it draws
            one size alone.
        kept: what the stages of once per prompt gave for earlier calls; None: nothing is kept.
    """

    schedule: Schedule
    picture: PictureEntry
    tokenizers: Mapping[str, Encode]
    stages: Sequence[Stage]
    open: Callable[[str], Session]
    close: Callable[[], None] = nothing
    filter: Filter | None = None
    sizes: Mapping[PictureSize, Player] = field(default_factory=dict)
    kept: KeptPrompts | None = None

    @property
    def size(self) -> PictureSize:
        """Of the pictures of requests that name none."""
        return PictureSize(self.picture.width_px, self.picture.height_px)

    def at(self, size: Sized | None) -> Player:
        """The player of another size, or this one; raises InputError that lists the sizes."""
        if size is None:
            return self
        known = tuple(dict.fromkeys((*self.sizes, self.size)))
        found = known_size(size, known)
        return self if found == self.size else self.sizes[found]

    def __enter__(self) -> Player:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def latent(self) -> tuple[int, int, int, int]:
        """Shape of the latent: (1, channels, h, w)."""
        return self.picture.latent

    def giving(self, result: Result) -> Stage | None:
        """The stage that gives the loop what it needs to go on, or None."""
        return next((s for s in self.stages if result in s.results.values()), None)


@dataclass(frozen=True)
class Request:
    """One picture to draw.

    Attributes:
        prompt: the text.
        seed: of the noise, as torch's CPU generator takes it: from -2^63 to 2^64 - 1.
        image: start from this picture, or None: a path, a picture of Pillow's or an array, as
            ``start_picture`` takes it.
        strength: how much of the schedule an ``image`` goes through, in (0, 1].
        fit: of an ``image`` of another size than the package's, as ``start_picture`` does it.
        background: below an ``image`` and around it; None: white.
        negative: what not to draw, for packages with guidance whose negative prompt is not fixed;
            None: the package's own, which is empty unless it is fixed.
        size: of the picture, as ``768x512`` or (768, 512), one of the package's; None: the first.
    """

    prompt: str
    seed: int = 0
    image: Given | None = None
    strength: float = 1.0
    fit: Fit = "cover"
    background: str | None = None
    negative: str | None = None
    size: Sized | None = None


@dataclass(frozen=True)
class Conditioned:
    """All prompts, negative ones among them, are encoded; the text encoders are released."""

    prompts: int


@dataclass(frozen=True)
class Step:
    """A step of request ``index`` is done: ``step`` of ``steps``; latent (1, channels, h, w).

    ``preview`` shows the latent, uint8: (h, w, 3) by a map of colours, or (H, W, 3) by the graph
    that the package has for it, which is opened when the first preview is asked for.

    Where the package has a filter, ``latent`` is None, for a picture could be decoded from it that
    will be rejected. ``preview`` is None at the last step; before that it gives None for what does
    not pass the filter, for every step behind such a one, and once the loop has gone on.
    """

    index: int
    step: int
    steps: int
    sigma: float
    latent: np.ndarray | None
    preview: Callable[[], np.ndarray | None] | None


@dataclass(frozen=True)
class Image:
    """A picture is done: pixels (H, W, 3) uint8, and the latent that it was decoded from.

    ``score``: what the package's filter found, which let it pass; None without a filter.
    """

    index: int
    request: Request
    pixels: np.ndarray
    latent: np.ndarray
    score: float | None = None


@dataclass(frozen=True)
class Rejected:
    """The package's filter rejects a picture, of which nothing is left.

    Attributes:
        score: what the classifier found.
        label: what the score is of; may be empty.
    """

    index: int
    request: Request
    score: float
    label: str


Event = Conditioned | Step | Image | Rejected


def generate(player: Player, requests: Sequence[Request]) -> Generator[Event, None, None]:
    """Draw pictures; every graph is opened once for all of them.

    Those of one size are drawn together, the sizes in the order in which requests first name them.
    Where a graph of each step is cut, its parts are opened in turn at every step: memory holds one.

    Raises InputError for a request's field that cannot be drawn with, as an image where the package
    has no encoder; CheckFailed for a graph that gives no numbers.
    """
    players = [player.at(request.size) for request in requests]
    starts = [_check(own, r) for own, r in zip(players, requests, strict=True)]
    images = _start_pictures(players, requests)
    values = condition(player, texts_of(player.schedule, requests))
    yield Conditioned(len(values))

    groups: dict[PictureSize, list[Asking]] = {}
    for index, (own, request, start) in enumerate(zip(players, requests, starts, strict=True)):
        drawn = Asking(index, request, start, images.get(index))
        groups.setdefault(own.size, []).append(drawn)
    encoded = {size: _encode_images(player.at(size), group) for size, group in groups.items()}
    judge = _judge_of(player)
    for size, group in groups.items():
        own = player.at(size)
        latents = yield from _walk(own, group, values, encoded[size], judge)
        yield from _decode(own, group, values, latents, judge)


@dataclass(frozen=True, eq=False)
class Asking:
    """A request on its way to a picture.

    Attributes:
        index: of all that are drawn.
        start: the step at which it enters the schedule.
        image: (H, W, 3) uint8 that it starts from, or None.
    """

    index: int
    request: Request
    start: int
    image: np.ndarray | None


def _judge_of(player: Player) -> Judge | None:
    """The player's filter, or None."""
    stage = player.giving("scores")
    if player.filter is None or stage is None:
        return None
    return Judge(player.filter, stage, player.open)


def condition(player: Player, prompts: Sequence[str]) -> dict[str, Values]:
    """What the stages of once per prompt give for each distinct prompt, as far as it is used.

    Those that the player has kept are not encoded again.
    """
    kept = player.kept
    if kept is None:
        return _encode_prompts(player, prompts)
    known = {p: values for p in prompts if (values := kept.get(p)) is not None}
    new = _encode_prompts(player, [p for p in prompts if p not in known])
    for prompt, values in new.items():
        kept.add(prompt, values)
    return {prompt: known[prompt] if prompt in known else new[prompt] for prompt in prompts}


def _encode_prompts(player: Player, prompts: Sequence[str]) -> dict[str, Values]:
    found: dict[str, Values] = {prompt: {} for prompt in prompts}
    turns = [s for s in player.stages if s.runs == "once per prompt"]
    for stage in turns:
        calls = [_inputs(player, stage.inputs, Feed(v, p)) for p, v in found.items()]
        ends = [f"prompt {prompt!r:.60}" for prompt in found]
        for values, outputs in zip(found.values(), _run(player, stage, calls, ends), strict=True):
            values.update({(stage.graph, port): value for port, value in outputs.items()})
            used = _used_after(player.stages, stage)
            for key in [key for key in values if key not in used]:
                del values[key]
    return found


def run(player: Player, graph: str, calls: Sequence[Ports]) -> list[Ports]:
    """A graph's outputs for several inputs. Each of its parts is opened once and released."""
    stage = next(s for s in player.stages if s.graph == graph)
    return list(_run(player, stage, calls, [f"call {i + 1}" for i in range(len(calls))]))


@dataclass(frozen=True, eq=False)
class Feed:
    """Where the inputs of a call are taken from.

    Attributes:
        values: what graphs gave for the prompt.
        prompt: its text.
        negative: what graphs gave for the negative prompt, where one is encoded.
        latent: (1, channels, h, w), where there is one.
        image: (1, 3, H, W) to start from, where there is one.
        step: counted from 0.
    """

    values: Values
    prompt: str
    negative: Values = field(default_factory=dict)
    latent: np.ndarray | None = None
    image: np.ndarray | None = None
    step: int = 0


def _inputs(player: Player, sources: Mapping[str, Source], feed: Feed) -> Ports:
    return {port: _value(player, source, feed) for port, source in sources.items()}


def _value(player: Player, source: Source, feed: Feed) -> np.ndarray:
    if source.kind == "tokens":
        return player.tokenizers[source.name](feed.prompt)
    if source.kind in ("output", "negative output"):
        values = feed.values if source.kind == "output" else feed.negative
        value = values[source.name, source.port]
        return value[feed.step : feed.step + 1] if source.row_of_step else value
    given = {"latent": feed.latent, "image": feed.image}[source.kind]
    assert given is not None  # a package that asks for what is not there was not opened
    return given


def _used_after(stages: Sequence[Stage], stage: Stage) -> set[tuple[str, str]]:
    """The outputs that stages after this one take."""
    later = stages[stages.index(stage) + 1 :]
    kinds = ("output", "negative output")
    return {(x.name, x.port) for s in later for x in s.sources if x.kind in kinds}


def _run(
    player: Player, stage: Stage, calls: Sequence[Ports], ends: Sequence[str]
) -> Iterator[Ports]:
    """A graph's outputs for several inputs, one by one from its last part.

    Each part is opened once and released before the next is opened.

    Args:
        ends: what each call is for, in an error.
    """
    if not calls:
        return
    *others, last = stage.parts
    found = list(calls)
    for part in others:
        session = player.open(part)
        found = [
            _finite(part, session(inputs), end) for inputs, end in zip(found, ends, strict=True)
        ]
        del session
    session = player.open(last)
    for inputs, end in zip(found, ends, strict=True):
        yield _finite(last, session(inputs), end)


def _finite(name: str, outputs: Ports, end: str) -> Ports:
    """The outputs; raises CheckFailed that names the graph, the call and the port else."""
    for port, value in outputs.items():
        if not np.isfinite(value).all():
            raise CheckFailed(f"{name}, {end}: its output '{port}' {NOT_FINITE}")
    return outputs


def _walk(
    player: Player,
    group: Sequence[Asking],
    values: Mapping[str, Values],
    encoded: Mapping[int, np.ndarray],
    judge: Judge | None,
) -> Generator[Event, None, list[np.ndarray]]:
    """All steps of pictures of one size; returns their final latents."""
    turns = [s for s in player.stages if s.in_steps]
    opened = _held(player, turns)
    decoded = DecodedPreviews(player) if player.picture.preview_graph else None
    latents = []
    for drawn in group:
        request = drawn.request
        noise = TorchNoise(request.seed)
        latent: np.ndarray = noise.randn(*player.latent)
        if drawn.index in encoded:
            latent = begin(player.schedule, drawn.start, encoded[drawn.index], latent)
        negative = negative_of(player.schedule, request)
        others = {} if negative is None else values[negative]
        glimpses = None if judge is None else Glimpses(judge)
        for step in range(drawn.start, player.schedule.steps):
            feed = Feed(values[request.prompt], request.prompt, others, latent, step=step)
            velocity = _velocity(player, turns, opened, feed)
            latent = advance(
                player.schedule, step, latent, velocity, partial(noise.randn, *player.latent)
            )
            if not np.isfinite(latent).all():
                where = f"{turns[-1].graph}, step {step + 1} of {player.schedule.steps}"
                raise CheckFailed(f"{where}: the latent after it {NOT_FINITE}")
            done = _step_event(player, decoded, drawn.index, step, latent)
            yield done if glimpses is None else _guarded(done, glimpses)
            if glimpses is not None:
                glimpses.lapse()
        latents.append(latent)
    if decoded is not None:
        decoded.release()
    return latents


def _held(player: Player, stages: Sequence[Stage]) -> Callable[[str], Session]:
    """Gives graphs by name: whole ones, which stay open, and parts, each opened when asked for."""
    whole = [stage.parts[0] for stage in stages if len(stage.parts) == 1]
    sessions = {name: player.open(name) for name in whole}
    return lambda name: sessions[name] if name in sessions else player.open(name)


def _velocity(
    player: Player, turns: Sequence[Stage], opened: Callable[[str], Session], feed: Feed
) -> np.ndarray:
    """What the stages of each step give for one step: with guidance, of both its calls."""
    (stage,) = turns
    (port,) = (port for port, result in stage.results.items() if result == "velocity")
    where = f"step {feed.step + 1} of {player.schedule.steps}"
    guidance = player.schedule.guidance
    calls = {where: _inputs(player, stage.inputs, feed)}
    if guidance is not None:
        calls[f"{where}, negative prompt"] = _inputs(player, stage.negative_inputs, feed)
    for part in stage.parts:
        session = opened(part)
        calls = {end: _finite(part, session(inputs), end) for end, inputs in calls.items()}
    velocities = [outputs[port] for outputs in calls.values()]
    return velocities[0] if guidance is None else guided(guidance, *velocities)


def guided(guidance: Guidance, velocity: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """The velocity away from that of a negative prompt, in float32 like diffusers' pipeline."""
    apart = np.float32(guidance.scale) * (velocity - negative)
    found: np.ndarray = negative + apart
    return found


def negative_of(schedule: Schedule, request: Request) -> str | None:
    """The negative prompt that has to be encoded for a request, or None."""
    if schedule.guidance is None or schedule.guidance.negative_prompt is not None:
        return None
    return request.negative or ""


def texts_of(schedule: Schedule, requests: Sequence[Request]) -> list[str]:
    """What has to be encoded: all prompts, then all negative prompts."""
    negatives = [negative_of(schedule, request) for request in requests]
    return [*(r.prompt for r in requests), *(n for n in negatives if n is not None)]


def begin(schedule: Schedule, step: int, encoded: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """The latent of a picture that enters the schedule at a step, in float32."""
    sigma = np.float32(schedule.sigmas[step])
    return sigma * noise + (np.float32(1) - sigma) * encoded


def draws_per_step(schedule: Schedule) -> int:
    """How many times a step draws noise."""
    return 1 if schedule.mode == "renoise" else 0


def advance(
    schedule: Schedule,
    step: int,
    latent: np.ndarray,
    velocity: np.ndarray,
    noise: Callable[[], np.ndarray],
) -> np.ndarray:
    """One step of the schedule, in float32 like diffusers' scheduler.

    Args:
        noise: draws as much as ``latent`` has, where the mode takes some.
    """
    sigma, following = (np.float32(s) for s in schedule.sigmas[step : step + 2])
    if schedule.mode == "euler":
        return latent + (following - sigma) * velocity
    if schedule.mode == "renoise":
        clean = latent - sigma * velocity
        return (np.float32(1) - following) * clean + following * noise()
    raise CheckFailed(f"schedule.mode: '{schedule.mode}' is not known; update fourstep")


def _decode(
    player: Player,
    group: Sequence[Asking],
    values: Mapping[str, Values],
    latents: Sequence[np.ndarray],
    judge: Judge | None,
) -> Iterator[Image | Rejected]:
    stage = player.giving("image")
    assert stage is not None
    (port,) = (port for port, result in stage.results.items() if result == "image")
    prompts = [drawn.request.prompt for drawn in group]
    feeds = [Feed(values[p], p, latent=x) for p, x in zip(prompts, latents, strict=True)]
    calls = [_inputs(player, stage.inputs, feed) for feed in feeds]
    ends = [f"picture {drawn.index + 1}" for drawn in group]
    found = _run(player, stage, calls, ends)
    for drawn, latent, outputs in zip(group, latents, found, strict=True):
        pixels = to_pixels(outputs[port], player.picture.pixels, stage.graph)
        image = Image(drawn.index, drawn.request, pixels, latent)
        yield _judged(judge, image, outputs[port])


def _judged(judge: Judge | None, image: Image, decoded: np.ndarray) -> Image | Rejected:
    """The picture if the filter lets it pass; else, and if it cannot tell, nothing of it is left.

    Args:
        decoded: (1, 3, H, W), what its pixels were made from.
    """
    if judge is None:
        return image
    passes = False
    try:
        score = judge.score(image.pixels)
        passes = not judge.rejects(score)
    finally:
        if not passes:
            wipe(image.pixels, image.latent, decoded)
    if passes:
        return replace(image, score=score)
    return Rejected(image.index, image.request, score, judge.label)


def first_step(strength: float, player: Player) -> int:
    """The step at which image to image enters the schedule (diffusers' get_timesteps)."""
    if not isinstance(strength, Real) or not 0 < strength <= 1:
        raise InputError("must be above 0 and at most 1", field="strength", given=strength)
    steps = player.schedule.steps
    start = int(steps - min(steps * strength, steps))
    return min(start, steps - 1)


def _check(player: Player, request: Request) -> int:
    """The step at which a request enters the schedule; raises InputError for what is no request."""
    check_prompt(request.prompt)
    _check_negative(player.schedule, request.negative)
    check_seed(request.seed)
    start = first_step(request.strength, player)
    if request.image is None:
        given = {"strength": 1.0, "fit": "cover", "background": None}
        for field, default in given.items():
            if getattr(request, field) != default:
                raise InputError("applies only with a picture to start from (image)", field=field)
        return 0
    if player.giving("start") is None:
        raise InputError(
            "this package has no graph to start from a picture with; build "
            "with image_to_image = true in [image]",
            field="image",
        )
    return start


def _check_negative(schedule: Schedule, negative: str | None) -> None:
    if negative is None:
        return
    if schedule.guidance is None:
        raise InputError(
            "this package draws without guidance, and nothing else uses a negative prompt; build "
            "with guidance above 1 in [schedule] of a recipe",
            field="negative",
        )
    if schedule.guidance.negative_prompt is not None:
        raise InputError(
            f"the negative prompt of this package is fixed: {schedule.guidance.negative_prompt!r}; "
            "build without negative_prompt in [schedule] of a recipe to give others",
            field="negative",
        )
    check_prompt(negative, "negative prompt")


def _start_pictures(
    players: Sequence[Player], requests: Sequence[Request]
) -> dict[int, np.ndarray]:
    """The pixels that requests start from, by the request's index; each picture is read once."""
    read: dict[tuple[int, PictureSize, str, str | None], np.ndarray] = {}
    found = {}
    for index, (player, request) in enumerate(zip(players, requests, strict=True)):
        if request.image is None:
            continue
        key = id(request.image), player.size, request.fit, request.background
        if key not in read:
            size = player.picture.width_px, player.picture.height_px
            read[key] = start_picture(request.image, *size, request.fit, request.background)
        found[index] = read[key]
    return found


def _encode_images(player: Player, group: Sequence[Asking]) -> dict[int, np.ndarray]:
    """The latents that requests start from, by their index; each array is encoded once."""
    stage = player.giving("start")
    images = {drawn.index: drawn.image for drawn in group if drawn.image is not None}
    if stage is None or not images:
        return {}
    (port,) = (port for port, result in stage.results.items() if result == "start")
    firsts = {id(image): index for index, image in reversed(images.items())}
    values = [from_pixels(images[index], player.picture.pixels) for index in firsts.values()]
    calls = [_inputs(player, stage.inputs, Feed({}, "", image=image)) for image in values]
    outputs = _run(player, stage, calls, [f"picture {i + 1}" for i in firsts.values()])
    latents = {key: found[port] for key, found in zip(firsts, outputs, strict=True)}
    return {index: latents[id(image)] for index, image in images.items()}


class DecodedPreviews:
    """Previews by a graph of the package, opened for the first and kept until ``release``.

    One that is asked for later opens it again.
    """

    def __init__(self, player: Player) -> None:
        self._player = player
        self._stage = next(s for s in player.stages if s.graph == player.picture.preview_graph)
        self._sessions: dict[str, Session] = {}

    def picture(self, latent: np.ndarray, end: str) -> np.ndarray:
        """(1, channels, h, w) -> (H, W, 3) uint8; raises CheckFailed for what is not finite.

        Args:
            end: what the preview is of, in an error.
        """
        outputs = dict.fromkeys(self._stage.inputs, latent)
        for part in self._stage.parts:
            if part not in self._sessions:
                self._sessions[part] = self._player.open(part)
            outputs = _finite(part, self._sessions[part](outputs), end)
        (port,) = self._stage.results
        return to_pixels(outputs[port], self._player.picture.pixels, self._stage.graph)

    def release(self) -> None:
        """Let go of the graph."""
        self._sessions.clear()


def _step_event(
    player: Player, decoded: DecodedPreviews | None, index: int, step: int, latent: np.ndarray
) -> Step:
    picture, schedule = player.picture, player.schedule
    entry, show = picture.preview, None
    if decoded is not None:
        show = partial(decoded.picture, latent, f"preview of step {step + 1} of {schedule.steps}")
    elif entry is not None:
        show = partial(preview_of(entry, picture.pixels).picture, latent)
    return Step(index, step + 1, schedule.steps, schedule.sigmas[step + 1], latent, show)


def _guarded(step: Step, glimpses: Glimpses) -> Step:
    """What may be told of a step while the filter may still reject its picture."""
    show = step.preview
    if show is None or step.step == step.steps:
        return replace(step, latent=None, preview=None)
    return replace(step, latent=None, preview=glimpses.of(show))

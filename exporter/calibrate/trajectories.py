"""A model's own trajectories: every call of every graph on the calibration prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from exporter.drawing.loop import Player, Request, Session, Step, generate, texts_of
from exporter.package.manifest import Schedule

Inputs = Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Trajectories:
    """Every call that the model makes on its way from calibration prompts to pictures.

    Attributes:
        calls: inputs by port name, of every call of a graph, by graph; prompt by prompt. With
            guidance each step has two calls, of the prompt and then of the negative prompt; and
            where text encoders run for that, each picture has two of theirs: the graphs that run
            once per prompt have those of all prompts first, then as many of negative ones.
        latents: final latent (1, C, h, w) of each prompt.
    """

    calls: Mapping[str, Sequence[Inputs]]
    latents: tuple[np.ndarray, ...]


def call_counts(prompts: int, schedule: Schedule) -> dict[str, int]:
    """How many calls ``travel`` makes of the graphs whose inputs may be rounded, by graph."""
    each = 1 if schedule.guidance is None else 2
    return {"denoiser": prompts * schedule.steps * each, "vae_decoder": prompts}


def travel(player: Player, prompts: Sequence[str], seed: int) -> Trajectories:
    """Draw prompts with seeds ``seed``, ``seed`` + 1, ... up to their final latents."""
    calls: dict[str, list[Inputs]] = {}
    requests = [Request(prompt, seed + i) for i, prompt in enumerate(prompts)]
    latents: list[np.ndarray] = []
    for event in generate(_recording(player, calls), requests):
        if isinstance(event, Step) and event.step == event.steps:
            assert event.latent is not None  # a program in torch has no filter
            latents.append(event.latent)
            if len(latents) == len(requests):
                break  # nothing need be decoded
    drawn = {name: _by_picture(player, name, found, requests) for name, found in calls.items()}
    drawn["vae_decoder"] = [{"latent": latent} for latent in latents]
    return Trajectories(drawn, tuple(latents))


def _by_picture(
    player: Player, part: str, calls: Sequence[Inputs], requests: Sequence[Request]
) -> Sequence[Inputs]:
    """Of a graph that ran once for each distinct text: its calls for each picture."""
    stage = next(s for s in player.stages if part in s.parts)
    if stage.runs != "once per prompt":
        return calls
    texts = texts_of(player.schedule, requests)
    by_text = dict(zip(dict.fromkeys(texts), calls, strict=True))
    return [by_text[text] for text in texts]


def _recording(player: Player, calls: dict[str, list[Inputs]]) -> Player:
    def open_session(name: str) -> Session:
        session = player.open(name)

        def call(inputs: Inputs) -> dict[str, np.ndarray]:
            calls.setdefault(name, []).append(inputs)
            return session(inputs)

        return call

    return replace(player, open=open_session)

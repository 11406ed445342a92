"""The loop: events in order, one graph at a time, cancel, and the step formulas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from exporter.drawing.loop import (
    Conditioned,
    Image,
    Player,
    Request,
    Session,
    Step,
    first_step,
    from_pixels,
    generate,
    to_pixels,
)
from exporter.drawing.noise import TorchNoise
from exporter.errors import InputError
from exporter.package.manifest import Schedule
from exporter.package.preview import Preview, fit

SIGMAS = (1.0, 0.5, 0.25, 0.0)
LATENT = (1, 16, 2, 3)


class Fake:
    """Sessions that record which graphs are open; velocity is the latent itself."""

    def __init__(self) -> None:
        self.open_now: list[str] = []
        self.opened: list[str] = []

    def open(self, name: str) -> Session:
        self.opened.append(name)
        self.open_now.append(name)
        return _FakeSession(self, name)

    def player(self, mode: str = "euler", preview: Preview | None = None) -> Player:
        ids = {"clip_l": lambda prompt: np.zeros((1, 77), np.int32)}
        return Player(Schedule(mode, SIGMAS), LATENT, ids, self.open, preview)


class _FakeSession:
    def __init__(self, owner: Fake, name: str) -> None:
        self.owner, self.name = owner, name

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert self.owner.open_now == [self.name], "another graph is still open"
        if self.name == "conditioner":
            rows = np.arange(3, dtype=np.float32)[:, None]
            return {"context": np.zeros((1, 1, 1), np.float32), "modulation": rows}
        if self.name == "denoiser":
            return {"velocity": inputs["latent"] * inputs["modulation"][0, 0]}
        if self.name == "vae_decoder":
            return {"image": np.zeros((1, 3, 16, 24), np.float32)}
        if self.name == "vae_encoder":
            return {"latent": np.ones(LATENT, np.float32)}
        return {"hidden": np.zeros((1, 77, 4), np.float32)}

    def __del__(self) -> None:
        self.owner.open_now.remove(self.name)


def test_a_picture_is_refused_by_a_package_that_cannot_read_it() -> None:
    fake = Fake()
    player = replace(fake.player(), parts={"clip_l": ["clip_l"], "denoiser": ["denoiser"]})
    request = Request("a", image=np.zeros((16, 24, 3), np.uint8))
    with pytest.raises(InputError, match="no graph 'vae_encoder' .*image_to_image = true"):
        next(generate(player, [request]))
    assert fake.opened == []


def test_events_and_graphs_in_turn() -> None:
    fake = Fake()
    requests = [Request("a", 1), Request("a", 2), Request("b", 1)]
    events = list(generate(fake.player(), requests))
    assert [type(e) for e in events] == [Conditioned, *[Step] * 9, *[Image] * 3]
    assert fake.opened == ["clip_l", "conditioner", "denoiser", "vae_decoder"]
    assert fake.open_now == []
    assert events[0] == Conditioned(2)
    steps = [e for e in events if isinstance(e, Step)]
    assert [(s.index, s.step, s.sigma) for s in steps[:3]] == [
        (0, 1, 0.5),
        (0, 2, 0.25),
        (0, 3, 0.0),
    ]


def test_cancel_releases_the_denoiser() -> None:
    fake = Fake()
    events = generate(fake.player(), [Request("a")])
    next(events), next(events)
    assert fake.open_now == ["denoiser"]
    events.close()
    assert fake.open_now == []


def test_euler_formula() -> None:
    """v = row * x: x1 = x0, x2 = x1 (1 - 1/4), x3 = x2 (1 - 2/4)."""
    last = next(e for e in generate(Fake().player(), [Request("a", 5)]) if isinstance(e, Image))
    np.testing.assert_allclose(last.latent, TorchNoise(5).randn(*LATENT) * 0.75 * 0.5, rtol=1e-6)


def test_renoise_formula() -> None:
    events = generate(Fake().player("renoise"), [Request("a", 5)])
    last = next(e for e in events if isinstance(e, Image))
    noise = TorchNoise(5)
    x = noise.randn(*LATENT)
    for row, (sigma, following) in enumerate(pairwise(SIGMAS)):
        x = (1 - following) * (x - sigma * row * x) + following * noise.randn(*LATENT)
    np.testing.assert_allclose(last.latent, x, rtol=1e-5, atol=1e-6)


def test_image_to_image_enters_late() -> None:
    fake = Fake()
    image = np.zeros((16, 24, 3), np.uint8)
    events = list(generate(fake.player(), [Request("a", 5, image, strength=0.34)]))
    assert "vae_encoder" in fake.opened
    assert [e.step for e in events if isinstance(e, Step)] == [2, 3]


@pytest.mark.parametrize(("strength", "start"), [(1.0, 0), (0.67, 0), (0.5, 1), (0.1, 2)])
def test_first_step_is_diffusers(strength: float, start: int) -> None:
    assert first_step(strength, Fake().player()) == start


@pytest.mark.parametrize("strength", [0.0, -1.0, 1.5])
def test_strength_out_of_range(strength: float) -> None:
    with pytest.raises(InputError, match="above 0 and at most 1"):
        first_step(strength, Fake().player())


def test_pixels_there_and_back() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    np.testing.assert_array_equal(to_pixels(from_pixels(pixels)), pixels)
    assert to_pixels(np.full((1, 3, 1, 1), 7.0)).tolist() == [[[255, 255, 255]]]


def test_preview_fits_a_linear_decoder() -> None:
    rng = np.random.default_rng(1)
    factors, bias = rng.normal(size=(16, 3)) * 0.1, np.array([0.1, 0.0, -0.2])
    latents = [rng.normal(size=(1, 16, 8, 8)) for _ in range(4)]
    images = []
    for latent in latents:
        colours = np.moveaxis(np.moveaxis(latent[0], 0, 2) @ factors + bias, 2, 0)
        images.append(colours.repeat(8, 1).repeat(8, 2)[None])
    found = fit(latents, images)
    np.testing.assert_allclose(found.factors, factors, atol=2e-3)
    assert found.picture(latents[0]).shape == (8, 8, 3)

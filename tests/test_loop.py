"""The loop: events in order, one graph at a time, cancel, and the step formulas."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from exporter.drawing.kept import KeptPrompts, Values
from exporter.drawing.loop import (
    Conditioned,
    Image,
    Player,
    Request,
    Session,
    Step,
    first_step,
    generate,
    guided,
)
from exporter.drawing.noise import TorchNoise
from exporter.errors import CheckFailed, InputError
from exporter.package.manifest import (
    Guidance,
    Mode,
    PictureEntry,
    PreviewEntry,
    Schedule,
    Source,
    SourceKind,
    Stage,
)
from exporter.package.pixels import from_pixels, to_pixels
from exporter.package.preview import fit, preview_of
from tests.conftest import previewed

SIGMAS = (1.0, 0.5, 0.25, 0.0)
BIG = (1.0, 0.0, -1.5, -2.0)  # no schedule has such: they bring a latent out of float32
LATENT = (1, 16, 2, 3)
PICTURE = PictureEntry(24, 16, 16, 8)
# The graphs' names are none of the project's: the loop knows no graph by its name.
STAGES = (
    Stage("words", ("words-a", "words-b"), "once per prompt", {"ids": Source("tokens", "letters")}),
    Stage("about", ("about",), "once per prompt", {"of": Source("output", "words", "hidden")}),
    Stage("look", ("look",), "once", {"seen": Source("image")}, {"found": "start"}, True),
    Stage(
        "move",
        ("move",),
        "each step",
        {
            "at": Source("latent"),
            "row": Source("output", "about", "rows", row_of_step=True),
            "text": Source("output", "words", "hidden"),
        },
        {"speed": "velocity"},
    ),
    Stage("paint", ("paint",), "once", {"from": Source("latent")}, {"picture": "image"}),
)


class Fake:
    """Sessions that record which graphs are open; velocity is the latent itself."""

    def __init__(self) -> None:
        self.open_now: list[str] = []
        self.opened: list[str] = []
        self.texts: list[int] = []  # lengths of the prompts that the steps were given

    def open(self, name: str) -> Session:
        self.opened.append(name)
        self.open_now.append(name)
        return _FakeSession(self, name)

    def player(self, mode: Mode = "euler", preview: PreviewEntry | None = None) -> Player:
        ids = {"letters": lambda prompt: np.full((1, 77), len(prompt), np.int32)}
        picture = replace(PICTURE, preview=preview)
        return Player(Schedule(mode, SIGMAS), picture, ids, STAGES, self.open)

    def guided(self, negative_prompt: str | None = None, mode: Mode = "euler") -> Player:
        """With guidance, away from a prompt of the request's or from twice the latent."""
        other: SourceKind = "negative output" if negative_prompt is None else "output"
        words = Source(other, "words", "hidden")
        stages = [s for s in STAGES if s.graph != "move"]
        (move,) = (s for s in STAGES if s.graph == "move")
        move = replace(move, runs="twice each step", negative_inputs=move.inputs | {"text": words})
        schedule = Schedule(mode, SIGMAS, Guidance(3.0, negative_prompt))
        return replace(self.player(), schedule=schedule, stages=[*stages[:3], move, stages[3]])


class _FakeSession:
    def __init__(self, owner: Fake, name: str) -> None:
        self.owner, self.name = owner, name

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert self.owner.open_now == [self.name], "another graph is still open"
        if self.name == "words-a":
            return {"part_1": inputs["ids"].astype(np.float32)}
        if self.name == "words-b":
            return {"hidden": inputs["part_1"][..., None], "unused": np.zeros(9, np.float32)}
        if self.name == "about":
            assert inputs["of"].shape == (1, 77, 1)
            return {"rows": np.arange(3, dtype=np.float32)[:, None]}
        if self.name == "look":
            return {"found": np.ones(LATENT, np.float32)}
        if self.name == "move":
            assert {*inputs} == {"at", "row", "text"} and inputs["row"].shape == (1, 1)
            assert inputs["text"].shape == (1, 77, 1)
            self.owner.texts.append(int(inputs["text"].flat[0]))
            return {"speed": inputs["at"] * inputs["row"][0, 0] * np.float32(self.owner.texts[-1])}
        return {"picture": np.zeros((1, 3, 16, 24), np.float32)}

    def __del__(self) -> None:
        self.owner.open_now.remove(self.name)


def test_what_is_kept_of_a_prompt_is_not_encoded_again() -> None:
    """Whatever else is asked for; a new prompt beside it is, and the pictures are the same."""
    fake = Fake()
    player = replace(fake.player(), kept=KeptPrompts())
    encoders = ["words-a", "words-b", "about"]

    def drawn(*requests: Request) -> list[np.ndarray]:
        fake.opened.clear()
        return [e.latent for e in generate(player, requests) if isinstance(e, Image)]

    (first,) = drawn(Request("a star"))
    assert fake.opened == [*encoders, "move", "paint"]
    other, again = drawn(Request("a star", seed=1), Request("a star"))
    assert fake.opened == ["move", "paint"]
    assert np.array_equal(again, first) and not np.array_equal(other, first)
    drawn(Request("a star"), Request("two"))
    assert fake.opened == [*encoders, "move", "paint"] and fake.texts[-1] == len("two")
    drawn(Request("two"), Request("a star"))
    assert fake.opened == ["move", "paint"] and fake.texts[-1] == len("a star")


def test_prompts_are_kept_up_to_so_many_bytes() -> None:
    def values() -> Values:
        return {("words", "hidden"): np.zeros(25, np.float32)}

    kept = KeptPrompts(most_bytes=200)
    kept.add("one", values())
    kept.add("two", values())
    assert kept.get("one") is not None
    kept.add("three", values())
    assert kept.get("two") is None  # nobody asked for it longest
    assert kept.get("one") is not None and kept.get("three") is not None
    kept.add("huge", {("words", "hidden"): np.zeros(51, np.float32)})
    assert kept.get("huge") is None and kept.get("one") is not None


def test_a_picture_is_refused_by_a_package_that_cannot_read_it() -> None:
    fake = Fake()
    player = fake.player()
    player = replace(player, stages=[s for s in player.stages if not s.image_to_image_only])
    request = Request("a", image=np.zeros((16, 24, 3), np.uint8))
    with pytest.raises(InputError, match="no graph to start from .*image_to_image = true"):
        next(generate(player, [request]))
    assert fake.opened == []


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"prompt": 3}, "prompt: is no text but of type int"),
        ({"prompt": None}, "prompt: is no text"),
        ({"seed": 2**64}, "seed 18446744073709551616: a whole number"),
        ({"seed": 1.5}, "seed 1.5: a whole number"),
        ({"strength": 0}, "strength 0: must be above 0"),
        ({"strength": "x"}, "strength x: must be above 0"),
        ({"strength": 0.5, "image": None}, "strength: applies only with a picture"),
        ({"fit": "contain", "image": None}, "fit: applies only with a picture"),
        ({"background": "red", "image": None}, "background: applies only with a picture"),
        ({"image": np.zeros((16, 24, 3), np.int32)}, "image: is an array of int32"),
        ({"image": np.full((16, 24, 3), 7.0)}, "image: is an array of float64 from 7 to 7"),
        ({"image": "none.png"}, "image: none.png: no such file"),
        ({"fit": "crop"}, "fit: unknown fit 'crop'; known: contain, cover, stretch"),
        ({"background": "#00000000"}, "background '#00000000': an opaque colour"),
    ],
)
def test_a_request_that_is_none_names_its_field(wrong: dict[str, Any], words: str) -> None:
    """Before any graph is opened."""
    fake = Fake()
    right = Request("a", image=np.zeros((16, 24, 3), np.uint8))
    with pytest.raises(InputError, match=f"^{re.escape(words)}") as error:
        next(generate(fake.player(), [right, replace(right, **wrong)]))
    assert error.value.field == next(iter(wrong)) and fake.opened == []


def test_a_picture_of_any_size_and_kind_starts() -> None:
    """The same pixels come of an array, a picture of Pillow's and a file."""
    fake, seen = Fake(), []

    def open_session(name: str) -> Session:
        session = fake.open(name)

        def call(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            if name == "look":
                seen.append(inputs["seen"])
            return session(inputs)

        return call

    levels = np.arange(20 * 20 * 3, dtype=np.uint16).reshape(20, 20, 3).astype(np.uint8)
    given: list[Any] = [levels, levels / 255.0, Picture.fromarray(levels)]
    requests = [Request("a", seed, one, 0.5, "contain", "red") for one in given for seed in (1, 2)]
    list(generate(replace(fake.player(), open=open_session), requests))
    assert len(seen) == 3, "each picture is encoded once"
    for image in seen:
        assert image.shape == (1, 3, 16, 24)
        np.testing.assert_array_equal(image, seen[0])
        assert image[0, :, 8, 0].tolist() == [1, -1, -1]


def test_a_latent_that_leaves_the_numbers_names_the_graph() -> None:
    """Numbers of a graph, of which a step makes none."""
    fake = Fake()

    def open_session(name: str) -> Session:
        session = fake.open(name)

        def call(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            outputs = session(inputs)
            return {"speed": np.full(LATENT, -3e38, np.float32)} if name == "move" else outputs

        return call

    player = replace(fake.player("renoise"), open=open_session, schedule=Schedule("euler", BIG))
    with (
        np.errstate(over="ignore"),
        pytest.raises(CheckFailed, match="^move, step 2 of 3: the latent after it holds NaN"),
    ):
        list(generate(player, [Request("a")]))


def test_events_and_graphs_in_turn() -> None:
    fake = Fake()
    requests = [Request("a", 1), Request("a", 2), Request("b", 1)]
    events = list(generate(fake.player(), requests))
    assert [type(e) for e in events] == [Conditioned, *[Step] * 9, *[Image] * 3]
    assert fake.opened == ["words-a", "words-b", "about", "move", "paint"]
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
    assert fake.open_now == ["move"]
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


@pytest.mark.parametrize("mode", ["euler", "renoise"])
def test_guidance_leads_away_from_the_negative_prompt(mode: Mode) -> None:
    """v = row * x for a prompt of one letter, n = 2 v for one of two: n + 3 (v - n) = -v."""
    fake = Fake()
    events = generate(fake.guided(mode=mode), [Request("a", 5, negative="bb")])
    last = next(e for e in events if isinstance(e, Image))
    assert fake.texts == [1, 2] * 3
    noise = TorchNoise(5)
    x = noise.randn(*LATENT)
    for row, (sigma, following) in enumerate(pairwise(SIGMAS)):
        v = -row * x
        if mode == "euler":
            x = x + (following - sigma) * v
        else:
            x = (1 - following) * (x - sigma * v) + following * noise.randn(*LATENT)
    np.testing.assert_allclose(last.latent, x, rtol=1e-5, atol=1e-6)


def test_guidance_is_rounded_as_it_is_written() -> None:
    """The difference first, then the product, then the sum: in float32, without fused products."""
    rng = np.random.default_rng(0)
    v, n = rng.normal(size=(2, 1000)).astype(np.float32)
    expected = torch.from_numpy(n) + 4.6 * (torch.from_numpy(v) - torch.from_numpy(n))
    found = guided(Guidance(4.6), v, n)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected.numpy())


def test_every_request_has_its_own_negative_prompt() -> None:
    """Each distinct text is encoded once; the empty one stands where none is named."""
    fake = Fake()
    requests = [Request("a"), Request("a", negative="bb"), Request("bb", negative="a")]
    events = list(generate(fake.guided(), requests))
    assert events[0] == Conditioned(3)
    assert fake.texts == [1, 0] * 3 + [1, 2] * 3 + [2, 1] * 3
    assert fake.opened == ["words-a", "words-b", "about", "move", "paint"]


def test_a_fixed_negative_prompt_is_not_encoded() -> None:
    fake = Fake()
    events = list(generate(fake.guided("no"), [Request("a"), Request("bb")]))
    assert events[0] == Conditioned(2) and fake.texts == [1, 1] * 3 + [2, 2] * 3
    with pytest.raises(InputError, match=r"negative: .*is fixed: 'no'; build without negative_pr"):
        next(generate(fake.guided("no"), [Request("a", negative="b")]))
    with pytest.raises(InputError, match="negative: this package draws without guidance"):
        next(generate(fake.player(), [Request("a"), Request("a", negative="")]))
    assert fake.opened == ["words-a", "words-b", "about", "move", "paint"]


def test_image_to_image_enters_late() -> None:
    fake = Fake()
    image = np.zeros((16, 24, 3), np.uint8)
    events = list(generate(fake.player(), [Request("a", 5, image, strength=0.34)]))
    assert "look" in fake.opened
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
    entry = found.entry()
    np.testing.assert_array_equal(
        preview_of(entry, PICTURE.pixels).picture(latents[0]), found.picture(latents[0])
    )
    events = generate(Fake().player(preview=entry), [Request("a")])
    step = next(e for e in events if isinstance(e, Step))
    assert previewed(step).shape == (2, 3, 3)


@pytest.mark.parametrize(
    ("graph", "port", "where"),
    [
        ("words-a", "part_1", "prompt 'a'"),
        ("about", "rows", "prompt 'a'"),
        ("look", "found", "picture 1"),
        ("move", "speed", "step 2 of 3"),
        ("paint", "picture", "picture 1"),
    ],
)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_names_graph_and_step(
    graph: str, port: str, where: str, value: float
) -> None:
    """Never a black picture."""
    fake = Fake()
    calls = []

    def open_session(name: str) -> Session:
        session = fake.open(name)

        def call(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            outputs = session(inputs)
            calls.append(name)
            if name == graph and calls.count(name) == (2 if name == "move" else 1):
                outputs[port].flat[-1] = value
            return outputs

        return call

    player = replace(fake.player(), open=open_session)
    request = Request("a", image=np.zeros((16, 24, 3), np.uint8))
    with pytest.raises(CheckFailed, match=rf"^{graph}, {where}: its output '{port}' holds NaN"):
        list(generate(player, [request]))

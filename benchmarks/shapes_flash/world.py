"""The world of shapes-flash: what a prompt can say, how it is said, and what it looks like.

A `Scene` is the meaning of a prompt: one or two groups of equal shapes, perhaps a relation between
the groups, a place on the canvas, a background. `phrase` words it, `arrange` places concrete
objects that fulfil it, and `render` paints them. Everything is a pure function of a scene and a
seeded `random.Random`, so the same seed gives the same text and the same pixels everywhere.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from random import Random

import numpy as np
from numpy.typing import NDArray

CANVAS_PX = 128
PITCH_PX = 32  # between the middles of neighbouring objects
HALF_PX = (10.5, 12.0)  # half the side of an object's bounding square
JITTER_PX = 1.5  # farthest that an object lies from its spot, along each axis
CORNER_PX = 1.2  # radius to which polygon corners are rounded

SHAPES = ("circle", "square", "triangle", "star")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (218, 48, 52),
    "green": (44, 160, 84),
    "blue": (44, 98, 222),
    "yellow": (250, 202, 44),
    "purple": (142, 68, 186),
}
USUAL_COLOURS = {"circle": "red", "square": "blue", "triangle": "green", "star": "yellow"}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (246, 245, 241),
    "black": (26, 27, 33),
}
RELATIONS = ("left of", "right of", "above", "below")
PLACES = ("left", "right", "top", "bottom", "centre")
CATEGORIES = (
    "single_object",
    "two_objects",
    "counting",
    "colours",
    "position",
    "colour_attribution",
)
MAX_OBJECTS = 4
HELD_OUT_PERCENT = 20  # share of all scenes that training never sees


@dataclass(frozen=True, order=True)
class Group:
    """`count` shapes of one kind and colour; None means that the prompt does not say."""

    shape: str
    count: int = 1
    colour: str | None = None


@dataclass(frozen=True)
class Scene:
    """What a prompt says. `relation` reads from the first group to the second."""

    groups: tuple[Group, ...]
    relation: str | None = None
    place: str | None = None
    background: str | None = None

    @property
    def count(self) -> int:
        """Number of objects in the picture."""
        return sum(group.count for group in self.groups)


@dataclass(frozen=True)
class Item:
    """One concrete object: centre and half the side of its bounding square, in px."""

    shape: str
    colour: str
    x_px: float
    y_px: float
    half_px: float


# --- meaning ------------------------------------------------------------------------------------


def canonical(scene: Scene) -> str:
    """One string per meaning: "A right of B" and "B left of A" give the same one."""
    groups, relation = scene.groups, scene.relation
    if relation in ("right of", "below"):
        groups = groups[::-1]
        relation = {"right of": "left of", "below": "above"}[relation]
    if relation is None:
        groups = tuple(sorted(groups, key=repr))
    parts = [f"{g.count} {g.colour} {g.shape}" for g in groups]
    return "|".join([*parts, str(relation), str(scene.place), scene.background or "white"])


def held_out(scene: Scene) -> bool:
    """True for the scenes kept for evaluation: a stable hash of the meaning decides."""
    digest = hashlib.sha256(canonical(scene).encode()).digest()
    return int.from_bytes(digest[:8], "big") % 100 < HELD_OUT_PERCENT


def _maybe(rng: Random, chance: float, choices: tuple[str, ...]) -> str | None:
    return rng.choice(choices) if rng.random() < chance else None


def _background(rng: Random) -> str | None:
    return _maybe(rng, 0.5, tuple(BACKGROUNDS))


def _colour(rng: Random) -> str:
    return rng.choice(tuple(COLOURS))


def _single_object(rng: Random) -> Scene:
    group = Group(rng.choice(SHAPES))
    return Scene((group,), place=_maybe(rng, 0.5, PLACES), background=_background(rng))


def _two_objects(rng: Random) -> Scene:
    first, second = rng.sample(SHAPES, 2)
    groups = (Group(first), Group(second))
    return Scene(groups, background=_background(rng))


def _counting(rng: Random) -> Scene:
    colour = _maybe(rng, 0.6, tuple(COLOURS))
    group = Group(rng.choice(SHAPES), rng.randint(2, MAX_OBJECTS), colour)
    return Scene((group,), background=_background(rng))


def _colours(rng: Random) -> Scene:
    group = Group(rng.choice(SHAPES), colour=_colour(rng))
    return Scene((group,), place=_maybe(rng, 0.3, PLACES), background=_background(rng))


def _position(rng: Random) -> Scene:
    relation = rng.choice(RELATIONS)
    if rng.random() < 0.4:
        first, second = rng.sample(SHAPES, 2)
        return Scene((Group(first), Group(second)), relation, background=_background(rng))
    return Scene(_coloured_pair(rng, 0.6), relation, background=_background(rng))


def _colour_attribution(rng: Random) -> Scene:
    return Scene(_coloured_pair(rng, 0.25), background=_background(rng))


def _coloured_pair(rng: Random, several: float) -> tuple[Group, Group]:
    """Two groups that differ in shape and colour; with chance `several` they hold up to four."""
    shapes, colours = rng.sample(SHAPES, 2), rng.sample(tuple(COLOURS), 2)
    counts = (1, 1)
    if rng.random() < several:
        counts = rng.choice(((1, 2), (2, 1), (2, 2), (3, 1), (1, 3)))
    return (Group(shapes[0], counts[0], colours[0]), Group(shapes[1], counts[1], colours[1]))


SAMPLERS: dict[str, Callable[[Random], Scene]] = {
    "single_object": _single_object,
    "two_objects": _two_objects,
    "counting": _counting,
    "colours": _colours,
    "position": _position,
    "colour_attribution": _colour_attribution,
}


def sample_scene(category: str, rng: Random, *, evaluation: bool) -> Scene:
    """Draw a scene of one category from the training or from the held-out part of the world."""
    while True:
        scene = SAMPLERS[category](rng)
        if held_out(scene) == evaluation:
            return scene


# --- words --------------------------------------------------------------------------------------

_COUNT_WORDS = {1: ("a", "one"), 2: ("two",), 3: ("three",), 4: ("four",)}
_RELATION_WORDS = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over", "higher than"),
    "below": ("below", "under", "beneath"),
}
_PLACE_WORDS = {
    "left": ("on the left", "on the left side", "at the left"),
    "right": ("on the right", "on the right side", "at the right"),
    "top": ("at the top", "near the top"),
    "bottom": ("at the bottom", "near the bottom"),
    "centre": ("in the centre", "in the middle", "in the center"),
}
_OPENINGS = ("", "", "", "a picture of ", "a drawing of ", "draw ")
_JOINS = ("and", "and", "with", "next to")


def _phrase_group(group: Group, rng: Random) -> str:
    noun = group.shape if group.count == 1 else group.shape + "s"
    words = [rng.choice(_COUNT_WORDS[group.count]), group.colour, noun]
    return " ".join(word for word in words if word)


def _phrase_background(background: str, rng: Random) -> str:
    return rng.choice(
        (f"on a {background} background", f"on {background}", f"against a {background} background")
    )


def phrase(scene: Scene, rng: Random) -> str:
    """Word a scene: one of several openings, synonyms and orders."""
    parts = [_phrase_group(group, rng) for group in scene.groups]
    joint = rng.choice(_RELATION_WORDS[scene.relation]) if scene.relation else rng.choice(_JOINS)
    text = f" {joint} ".join(parts)
    if scene.place:
        text += " " + rng.choice(_PLACE_WORDS[scene.place])
    if scene.background:
        text += " " + _phrase_background(scene.background, rng)
    return rng.choice(_OPENINGS) + text


# --- layout -------------------------------------------------------------------------------------

Spot = tuple[float, float]  # x, y in px
_MIDDLE_PX = CANVAS_PX / 2
_OFFSETS_PX: dict[str | None, Spot] = {
    "left": (-PITCH_PX, 0),
    "right": (PITCH_PX, 0),
    "top": (0, -PITCH_PX),
    "bottom": (0, PITCH_PX),
    "centre": (0, 0),
    None: (0, 0),
}
_SIDES: dict[str | None, tuple[str, str]] = {
    None: ("left", "right"),
    "left of": ("left", "right"),
    "right of": ("right", "left"),
    "above": ("top", "bottom"),
    "below": ("bottom", "top"),
}


def _line(count: int) -> list[float]:
    """Evenly spaced offsets around zero, in px."""
    return [PITCH_PX * (index - (count - 1) / 2) for index in range(count)]


def _spots(scene: Scene) -> list[Spot]:
    """The tidy layout of a scene: one spot per object, group after group.

    One group stands in the middle or at its place, in a row, four of them in a square. Two groups
    stand on either side of the middle, in prompt order or as their relation says, each in a line
    that runs along the border between them.
    """
    if len(scene.groups) == 1:
        x, y = (_MIDDLE_PX + offset for offset in _OFFSETS_PX[scene.place])
        if scene.count == MAX_OBJECTS:
            return [(x + right, y + down) for down in _line(2) for right in _line(2)]
        return [(x + right, y) for right in _line(scene.count)]
    spots = []
    for group, side in zip(scene.groups, _SIDES[scene.relation], strict=True):
        x, y = (_MIDDLE_PX + offset for offset in _OFFSETS_PX[side])
        along = _line(group.count)
        upright = side in ("left", "right")
        spots += [(x, y + step) if upright else (x + step, y) for step in along]
    return spots


def arrange(scene: Scene, rng: Random) -> tuple[Item, ...]:
    """Place objects that fulfil the scene, each near its spot: they never touch.

    A shape whose colour the prompt leaves open has its usual one.
    """
    groups = [group for group in scene.groups for _ in range(group.count)]
    return tuple(
        Item(
            shape=group.shape,
            colour=group.colour or USUAL_COLOURS[group.shape],
            x_px=x + rng.uniform(-JITTER_PX, JITTER_PX),
            y_px=y + rng.uniform(-JITTER_PX, JITTER_PX),
            half_px=rng.uniform(*HALF_PX),
        )
        for group, (x, y) in zip(groups, _spots(scene), strict=True)
    )


# --- pixels -------------------------------------------------------------------------------------


@cache
def _polygon(shape: str) -> NDArray[np.float64]:
    """Corners (K, 2) of a polygon that fills the square [-1, 1]^2, y pointing down."""
    if shape == "square":
        return np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], dtype=np.float64)
    if shape == "triangle":
        return np.array([(0, -1), (1, 1), (-1, 1)], dtype=np.float64)
    radii = (1.0, 0.46) * 5
    turns = [math.pi * k / 5 for k in range(10)]
    corners = np.array(
        [(r * math.sin(t), -r * math.cos(t)) for r, t in zip(radii, turns, strict=True)]
    )
    low, high = corners.min(axis=0), corners.max(axis=0)
    scaled: NDArray[np.float64] = 2 * (corners - low) / (high - low) - 1
    return scaled


def _polygon_distance(
    points: NDArray[np.float64], shape: str, half_px: float
) -> NDArray[np.float64]:
    """Signed distance in px of points (..., 2) to a polygon: nearest edge, sign by crossings."""
    corners = _polygon(shape) * half_px
    nearest = np.full(points.shape[:-1], np.inf)
    inside = np.zeros(points.shape[:-1], dtype=bool)
    for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        edge, offset = b - a, points - a
        along = np.clip(offset @ edge / (edge @ edge), 0, 1)
        nearest = np.minimum(nearest, ((offset - along[..., None] * edge) ** 2).sum(-1))
        if a[1] != b[1]:
            straddles = (points[..., 1] < a[1]) != (points[..., 1] < b[1])
            crossing_x = a[0] + offset[..., 1] * edge[0] / edge[1]
            inside ^= straddles & (points[..., 0] < crossing_x)
    distance: NDArray[np.float64] = np.where(inside, -1.0, 1.0) * np.sqrt(nearest)
    return distance


def coverage(shape: str, points: NDArray[np.float64], half_px: float) -> NDArray[np.float64]:
    """How much of the pixel at each point (..., 2), px from the centre, a shape covers: 0 to 1."""
    if shape == "circle":
        distance = np.sqrt((points**2).sum(-1)) - half_px
    else:
        distance = _polygon_distance(points, shape, half_px - CORNER_PX) - CORNER_PX
    covered: NDArray[np.float64] = np.clip(0.5 - distance, 0.0, 1.0)
    return covered


def pixel_grid(left: int, top: int, right: int, bottom: int) -> NDArray[np.float64]:
    """Centres (H, W, 2) of the pixels in a rectangle, as x, y in px."""
    xs, ys = np.arange(left, right) + 0.5, np.arange(top, bottom) + 0.5
    return np.stack(np.meshgrid(xs, ys), axis=-1)


def render(
    items: tuple[Item, ...], background: str | None, size_px: int = CANVAS_PX
) -> NDArray[np.uint8]:
    """Paint the objects, anti-aliased, onto a plain background: (size, size, 3) uint8."""
    image = np.empty((size_px, size_px, 3))
    image[:] = BACKGROUNDS[background or "white"]
    for item in items:
        reach = item.half_px + 2
        left, right = max(0, int(item.x_px - reach)), min(size_px, int(item.x_px + reach) + 1)
        top, bottom = max(0, int(item.y_px - reach)), min(size_px, int(item.y_px + reach) + 1)
        points = pixel_grid(left, top, right, bottom) - (item.x_px, item.y_px)
        alpha = coverage(item.shape, points, item.half_px)[..., None]
        patch = image[top:bottom, left:right]
        patch += alpha * (np.array(COLOURS[item.colour]) - patch)
    return np.rint(image).astype(np.uint8)

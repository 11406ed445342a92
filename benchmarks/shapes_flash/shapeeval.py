"""ShapeEval: does a picture show what its prompt says? Classical image analysis, no network.

The six categories are those of GenEval (arXiv 2310.11513): single object, two objects, counting,
colours, position, colour attribution. A picture passes when everything its prompt says holds and
nothing else is in it: an extra object, a wrong count, a wrong colour, a shape that resembles no
known one, a place or a background other than the named one all fail.

How a picture is read: the border tells the background; what differs from it falls into connected
components, and each component is one object. Its colour is the palette entry nearest to its inner
pixels, which have to agree with each other; its shape is the one whose outline, scaled to the
component's bounding box, overlaps it best.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks.shapes_flash.world import (
    BACKGROUNDS,
    CATEGORIES,
    COLOURS,
    SHAPES,
    Group,
    Scene,
    coverage,
    phrase,
    pixel_grid,
    sample_scene,
)

Image = NDArray[np.uint8]  # (H, W, 3)
Drawer = Callable[[Sequence[str], Sequence[int]], list[Image]]  # texts, seeds -> images

EVALUATION_SEED = 20250925
SIGMAS = (1.0, 0.9, 0.75, 0.5, 0.0)  # the student's schedule, after the scheduler's shift of 3
T5_TOKENS = 32
PATIENCE = 300

# Thresholds are in RGB units (0 to 255), px, or shares from 0 to 1.
BACKGROUND_TOLERANCE = 40.0
FOREGROUND_DISTANCE = 55.0
COLOUR_TOLERANCE = 70.0
COLOUR_AGREEMENT = 0.85
LEAST_OBJECT_PX = 16  # smaller specks are left out of the count
SHAPE_OVERLAP = 0.82
LARGEST_ASPECT = 1.3
RELATION_MARGIN_PX = 4.0


@dataclass(frozen=True)
class EvalPrompt:
    """A prompt of the evaluation set; `seed` fixes the noise that its picture starts from."""

    text: str
    category: str
    scene: Scene
    seed: int


@dataclass(frozen=True)
class Seen:
    """An object found in a picture; None stands for a colour or shape that is none of ours."""

    shape: str | None
    colour: str | None
    x_px: float
    y_px: float
    half_px: float


# --- reading a picture --------------------------------------------------------------------------


def _nearest(
    pixels: NDArray[np.float64], palette: dict[str, tuple[int, int, int]]
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Index of and distance to the nearest palette entry, for pixels (..., 3)."""
    entries = np.array(list(palette.values()), dtype=np.float64)
    distances = np.sqrt(((pixels[..., None, :] - entries) ** 2).sum(-1))
    return distances.argmin(-1), distances.min(-1)


def find_background(image: Image) -> str | None:
    """Name of the background whose colour the border of the picture has."""
    pixels = image.astype(np.float64)
    border = np.concatenate([pixels[:2].reshape(-1, 3), pixels[-2:].reshape(-1, 3)])
    border = np.concatenate([border, pixels[:, :2].reshape(-1, 3), pixels[:, -2:].reshape(-1, 3)])
    index, distance = _nearest(np.median(border, axis=0), BACKGROUNDS)
    return list(BACKGROUNDS)[int(index)] if float(distance) <= BACKGROUND_TOLERANCE else None


def _find_colour(pixels: NDArray[np.float64], mask: NDArray[np.bool_]) -> str | None:
    """The palette colour on which the inner pixels of a component agree."""
    inner = ndimage.binary_erosion(mask, iterations=2)
    if not inner.any():
        inner = mask
    index, distance = _nearest(pixels[inner], COLOURS)
    votes = np.bincount(index[distance <= COLOUR_TOLERANCE], minlength=len(COLOURS))
    winner = int(votes.argmax())
    return list(COLOURS)[winner] if votes[winner] >= COLOUR_AGREEMENT * inner.sum() else None


def _find_shape(mask: NDArray[np.bool_]) -> str | None:
    """The shape whose outline overlaps a component, cropped to its bounding box, best."""
    height, width = mask.shape
    if max(height, width) > LARGEST_ASPECT * min(height, width):
        return None
    half_px = (height + width) / 4
    points = pixel_grid(0, 0, width, height) - (width / 2, height / 2)
    outlines = {shape: coverage(shape, points, half_px) >= 0.5 for shape in SHAPES}
    overlaps = {s: (o & mask).sum() / (o | mask).sum() for s, o in outlines.items()}
    best = max(overlaps, key=lambda shape: float(overlaps[shape]))
    return best if overlaps[best] >= SHAPE_OVERLAP else None


def find_objects(image: Image, background: str) -> list[Seen]:
    """Every object in a picture on a known background."""
    pixels = image.astype(np.float64)
    distance = np.sqrt(((pixels - BACKGROUNDS[background]) ** 2).sum(-1))
    labels, _ = ndimage.label(distance > FOREGROUND_DISTANCE, structure=np.ones((3, 3)))
    seen = []
    for label, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        mask = labels[rows, columns] == label
        if mask.sum() < LEAST_OBJECT_PX:
            continue
        seen.append(
            Seen(
                shape=_find_shape(mask),
                colour=_find_colour(pixels[rows, columns], mask),
                x_px=(columns.start + columns.stop) / 2,
                y_px=(rows.start + rows.stop) / 2,
                half_px=(mask.shape[0] + mask.shape[1]) / 4,
            )
        )
    return seen


# --- comparing it with the prompt ---------------------------------------------------------------


def _fits(seen: Seen, group: Group) -> bool:
    right_colour = seen.colour is not None and group.colour in (None, seen.colour)
    return seen.shape == group.shape and right_colour


def _related(first: Sequence[Seen], second: Sequence[Seen], relation: str) -> bool:
    """Whether all of `first` lie on the named side of all of `second`, by their centres."""
    axis = "x_px" if relation in ("left of", "right of") else "y_px"
    before, after = (first, second) if relation in ("left of", "above") else (second, first)
    end = max(getattr(seen, axis) for seen in before)
    start = min(getattr(seen, axis) for seen in after)
    return bool(start - end >= RELATION_MARGIN_PX)


def _in_place(seen: Seen, place: str, width_px: int, height_px: int) -> bool:
    """Whether an object lies in the named third of the canvas."""
    x, y = seen.x_px / width_px, seen.y_px / height_px
    return {
        "left": x < 1 / 3,
        "right": x > 2 / 3,
        "top": y < 1 / 3,
        "bottom": y > 2 / 3,
        "centre": 1 / 3 < x < 2 / 3 and 1 / 3 < y < 2 / 3,
    }[place]


def _matches(order: Sequence[Seen], scene: Scene, width_px: int, height_px: int) -> bool:
    """Whether objects, taken in this order, fill the scene's groups one after the other."""
    slots = [group for group in scene.groups for _ in range(group.count)]
    if not all(_fits(seen, group) for seen, group in zip(order, slots, strict=True)):
        return False
    if scene.place and not all(_in_place(s, scene.place, width_px, height_px) for s in order):
        return False
    split = scene.groups[0].count
    return scene.relation is None or _related(order[:split], order[split:], scene.relation)


def score(image: Image, prompt: EvalPrompt) -> bool:
    """Whether a picture (H, W, 3) shows exactly what the prompt says."""
    scene = prompt.scene
    background = find_background(image)
    if background is None or background != (scene.background or "white"):
        return False
    seen = find_objects(image, background)
    if len(seen) != scene.count:
        return False
    height_px, width_px = image.shape[:2]
    return any(_matches(order, scene, width_px, height_px) for order in permutations(seen))


# --- the evaluation set -------------------------------------------------------------------------


def _category_prompts(category: str, count: int) -> Iterable[EvalPrompt]:
    rng = Random(f"{EVALUATION_SEED} {category}")
    texts: set[str] = set()
    fruitless = 0  # draws in a row that gave no new text
    while len(texts) < count:
        scene = sample_scene(category, rng, evaluation=True)
        text = phrase(scene, rng)
        fruitless = fruitless + 1 if text in texts else 0
        if fruitless > PATIENCE:
            raise ValueError(
                f"{category} has about {len(texts)} held-out prompts, {count} were asked for"
            )
        if text not in texts:
            texts.add(text)
            yield EvalPrompt(text, category, scene, rng.randrange(2**31))


def evaluation_prompts(per_category: int) -> tuple[EvalPrompt, ...]:
    """The first `per_category` prompts of each category: no text twice, no scene from training."""
    return tuple(p for category in CATEGORIES for p in _category_prompts(category, per_category))


def summarize(prompts: Sequence[EvalPrompt], passed: Sequence[bool]) -> dict[str, float]:
    """Share of passed prompts per category and, under "overall", of all: 0 to 1."""
    shares = {}
    for category in CATEGORIES:
        marks = [ok for p, ok in zip(prompts, passed, strict=True) if p.category == category]
        if marks:
            shares[category] = sum(marks) / len(marks)
    return {**shares, "overall": sum(passed) / len(passed)}


def evaluate(draw: Drawer, prompts: Sequence[EvalPrompt], batch: int = 40) -> list[bool]:
    """Draw every prompt from its seed, in batches, and score the pictures."""
    passed: list[bool] = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        images = draw([p.text for p in part], [p.seed for p in part])
        passed += [score(image, p) for image, p in zip(images, part, strict=True)]
    return passed


def diffusers_drawer(
    checkpoint: Path,
    *,
    t5: bool = True,
    t5_tokens: int = T5_TOKENS,
    steps: int | None = None,
    guidance: float = 1.0,
    device: str = "cpu",
) -> Drawer:
    """Draw with plain diffusers: the four fixed sigmas, or `steps` steps of its own schedule."""
    import torch
    from diffusers import StableDiffusion3Pipeline
    from diffusers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    missing: dict[str, Any] = {} if t5 else {"text_encoder_3": None, "tokenizer_3": None}
    pipeline = StableDiffusion3Pipeline.from_pretrained(
        checkpoint, torch_dtype=torch.float32, local_files_only=True, **missing
    ).to(device)
    pipeline.set_progress_bar_config(disable=True)
    # diffusers applies the shift s -> 3s / (1 + 2s) to explicit sigmas; undo it beforehand.
    before_shift = [sigma / (3 - 2 * sigma) for sigma in SIGMAS[:-1]]
    schedule: dict[str, Any] = {"num_inference_steps": steps} if steps else {"sigmas": before_shift}

    def draw(texts: Sequence[str], seeds: Sequence[int]) -> list[Image]:
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        with torch.inference_mode():
            images = pipeline(
                list(texts),
                guidance_scale=guidance,
                max_sequence_length=t5_tokens,
                generator=generators,
                output_type="np",
                **schedule,
            ).images
        return list(np.rint(images * 255).astype(np.uint8))

    return draw


def main() -> None:
    """Score a checkpoint and print the shares."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder in diffusers layout")
    parser.add_argument("--no-t5", action="store_true", help="null tokens in T5's place")
    parser.add_argument("--t5-tokens", type=int, default=T5_TOKENS, help="length of T5's part")
    parser.add_argument("--steps", type=int, help="use diffusers' own schedule")
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--per-category", type=int, default=40)
    parser.add_argument("--batch", type=int, default=40)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    draw = diffusers_drawer(
        args.checkpoint,
        t5=not args.no_t5,
        t5_tokens=args.t5_tokens,
        steps=args.steps,
        guidance=args.guidance,
        device=args.device,
    )
    prompts = evaluation_prompts(args.per_category)
    shares = summarize(prompts, evaluate(draw, prompts, args.batch))
    if args.json:
        print(json.dumps(shares))
    else:
        print("\n".join(f"{name:20} {share:.3f}" for name, share in shares.items()))


if __name__ == "__main__":
    main()

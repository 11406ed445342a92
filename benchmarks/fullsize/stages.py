"""Seconds by stage of a pipeline that tells only when each step ends."""

from __future__ import annotations

import itertools
from collections.abc import Sequence


def stages(
    load_s: float, began: float, ends: Sequence[float], end: float, pixels_std: float
) -> dict[str, object]:
    """One picture's figures.

    Args:
        load_s: opening the pipeline before it, else 0.
        began, end: of the call, by ``time.perf_counter``.
        ends: of each step. The first is not seen apart from the text: it counts as the fastest.
        pixels_std: standard deviation of the pixels, of 255: a picture and not one colour.
    """
    steps = [b - a for a, b in itertools.pairwise(ends)]
    return {
        "picture_s": load_s + end - began,
        "load_s": load_s,
        "text_s": ends[0] - began - min(steps),
        "steps_s": [min(steps), *steps],
        "vae_s": end - ends[-1],
        "pixels_std": pixels_std,
    }

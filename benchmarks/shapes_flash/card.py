"""Draw the pictures of the model card: loss curves and a grid of samples.

python -m benchmarks.shapes_flash.card --runs DIR --checkpoint DIR
"""

from __future__ import annotations

import argparse
import json
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from benchmarks.shapes_flash.shapeeval import (
    Drawer,
    EvalPrompt,
    diffusers_drawer,
    evaluation_prompts,
    score,
)
from benchmarks.shapes_flash.world import COLOURS

STAGES = {
    "vae": ("l1", "mse"),
    "teacher": ("loss", "loss_low", "loss_high"),
    "student": ("loss_1.0", "loss_0.9", "loss_0.75", "loss_0.5"),
}
INK, PAPER, RULE = (60, 60, 66), (255, 255, 255), (226, 226, 230)
PANEL_PX, PAD_PX = (360, 240), 40
SAMPLES_SEED, GRID = 7, (6, 4)
CAPTION_PX = 62
LEAST_LOSS = 1e-6  # what the log rounds to; a logarithmic axis has no zero

Point = tuple[float, float]


def read_log(run: Path) -> list[dict[str, Any]]:
    """Lines of a run's log."""
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def _panel(title: str, curves: dict[str, list[Point]]) -> Image.Image:
    """One plot, minutes against loss on a logarithmic scale."""
    width, height = PANEL_PX
    picture = Image.new("RGB", (width + 2 * PAD_PX, height + 2 * PAD_PX), PAPER)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    points = [point for curve in curves.values() for point in curve]
    last = max(x for x, _ in points) or 1.0
    low = math.floor(2 * math.log10(min(y for _, y in points))) / 2
    high = max(math.ceil(2 * math.log10(max(y for _, y in points))) / 2, low + 0.5)

    def place(point: Point) -> Point:
        across = point[0] / last
        up = (math.log10(point[1]) - low) / (high - low)
        return PAD_PX + across * width, PAD_PX + (1 - up) * height

    for tick in range(round((high - low) * 2) + 1):
        value = 10 ** (low + tick / 2)
        left, y = place((0, value))
        draw.line((left, y, left + width, y), RULE)
        draw.text((left - 6, y), f"{value:.2g}", INK, font, anchor="rm")
    draw.text((PAD_PX, 12), title, INK, ImageFont.load_default(15))
    draw.text((PAD_PX + width, PAD_PX + height + 8), f"{last:.0f} min", INK, font, anchor="ra")
    for curve, colour in zip(curves.values(), COLOURS.values(), strict=False):
        draw.line([place(point) for point in curve], colour, 2)
    x = float(PAD_PX)
    for name, colour in zip(curves, COLOURS.values(), strict=False):
        draw.text((x, PAD_PX + height + 8), name, colour, font)
        x += draw.textlength(name + "   ", font)
    return picture


def draw_curves(runs: Path) -> Image.Image:
    """The loss curves of all stages side by side."""
    panels = []
    for stage, names in STAGES.items():
        lines = read_log(runs / stage)
        curves = {
            n: [(x["minutes"], max(x[n], LEAST_LOSS)) for x in lines if n in x] for n in names
        }
        panels.append(_panel(stage, curves))
    picture = Image.new("RGB", (sum(p.width for p in panels), panels[0].height), PAPER)
    for index, panel in enumerate(panels):
        picture.paste(panel, (index * panel.width, 0))
    return picture


def sample_prompts() -> list[EvalPrompt]:
    """A fixed, unchosen draw from the evaluation set, the same number from each category."""
    columns, rows = GRID
    prompts = evaluation_prompts(40)
    by_category = [prompts[start : start + 40] for start in range(0, len(prompts), 40)]
    rng = Random(SAMPLES_SEED)
    picked = [rng.sample(part, rows) for part in by_category[:columns]]
    return [picked[column][row] for row in range(rows) for column in range(columns)]


def draw_samples(draw: Drawer, prompts: Sequence[EvalPrompt]) -> Image.Image:
    """Pictures in a grid, each with its prompt below; a failed one says so."""
    images = draw([p.text for p in prompts], [p.seed for p in prompts])
    columns, rows = GRID
    cell_px, gap_px = images[0].shape[0], 12
    step_x, step_y = cell_px + gap_px, cell_px + CAPTION_PX
    picture = Image.new("RGB", (columns * step_x + gap_px, rows * step_y + gap_px), PAPER)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(11)
    for index, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
        x = gap_px + index % columns * step_x
        y = gap_px + index // columns * step_y
        picture.paste(Image.fromarray(image), (x, y))
        failed = "" if score(image, prompt) else "(fails) "
        caption = "\n".join(textwrap.wrap(failed + prompt.text, 24))
        pen.multiline_text((x, y + cell_px + 3), caption, INK, font, spacing=1)
    return picture


def main() -> None:
    """Draw `losses.png` and `samples.png` into the checkpoint's folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the run folders")
    parser.add_argument("--checkpoint", type=Path, required=True)
    args = parser.parse_args()
    draw_curves(args.runs).save(args.checkpoint / "losses.png", optimize=True)
    samples = draw_samples(diffusers_drawer(args.checkpoint), sample_prompts())
    samples.save(args.checkpoint / "samples.png", optimize=True)


if __name__ == "__main__":
    main()

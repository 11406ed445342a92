"""Trains the network of ``exporter.marking.learned``.

Pictures are marked with random signs, changed as pictures are changed, and looked at as a reader
looks at them; the network learns the odds of each sign. Three fifths of the pictures were drawn by
shapes-flash, of other seeds than those that ``benchmarks.marking`` reads; the others are random
discs and bars with textures, of no photograph.

    python -m benchmarks.mark_reader --drawn FOLDER [--pictures 3500] [--steps 4000] --out FILE

The loss is Chernoff's exponent of a chance of a wrong alarm. The weights that are shipped were
trained by these steps before they were written up here: a run gives others.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.marking import ONE, Change, Named, shapes
from exporter.marking import embed, learned, raster
from exporter.marking.pattern import CHIP_PX, TILE_CHIPS

PX = TILE_CHIPS * CHIP_PX
DRAWN_SHARE = 0.6
WHOLE_OF_ONE = 3  # changes of a picture that was not cropped; one more of it cropped
CROPPED_PX = 112
CHIPS_OF_CROP = 26
CHANNELS, BATCH, FASTEST = 32, 24, 3e-3
PNG, JPEG, WEBP, HALF = (ONE[k] for k in ("PNG", "JPEG 70", "WebP 60", "resize to 50 %"))
# How often each change is drawn: what leaves the least of a mark the most.
WHOLE: Sequence[tuple[int, Sequence[Change]]] = (
    (9, (HALF, WEBP)), (2, (HALF, JPEG)), (2, (WEBP,)), (2, (WEBP, WEBP)), (1, (JPEG, WEBP)),
    (1, (WEBP, JPEG)), (1, (PNG,)), (1, (HALF,)), (1, (JPEG,)), (1, (WEBP, HALF)),
)  # fmt: skip
CROPPED: Sequence[tuple[int, Sequence[Change]]] = ((3, (WEBP,)), (2, (JPEG,)), (1, (PNG,)))


@dataclass(frozen=True, eq=False)
class Samples:
    """Planes (n, 6, h, w) float16 and signs (n, h / 2, w / 2) int8."""

    planes: np.ndarray
    signs: np.ndarray


class Network(nn.Module):
    """Planes (n, 6, h, w) -> odds (n, h / 2, w / 2); what ``learned.odds`` computes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(raster.PLANES, CHANNELS, 6, stride=learned.STRIDE)
        self.second = nn.Conv2d(CHANNELS, CHANNELS, 3)
        self.third = nn.Conv2d(CHANNELS, CHANNELS, 3)
        self.last = nn.Conv2d(CHANNELS, 1, 3)
        self.linear = nn.Conv2d(raster.PLANES, 1, 6, stride=learned.STRIDE, bias=False)
        with torch.no_grad():  # begins as the maps at a chip's own place
            self.linear.weight.zero_()
            self.linear.weight[0, -raster.MAPS :, 2, 2] = 0.1
            self.last.weight.mul_(0.1)

    def forward(self, planes: Tensor) -> Tensor:
        before, behind = learned.AROUND
        padded = F.pad(planes, (before, behind, before, behind), "replicate")
        found = padded
        for name in learned.LAYERS:
            found = self.get_submodule(name)(found if name == learned.LAYERS[0] else F.relu(found))
        inner = padded[..., learned.SKIPPED : -learned.SKIPPED, learned.SKIPPED : -learned.SKIPPED]
        total: Tensor = found + self.linear(inner)
        return total[:, 0]


def textures(random: np.random.Generator) -> np.ndarray:
    """(128, 128, 3) uint8: discs and bars over each other, each with a texture of its own."""
    down, across = np.mgrid[:PX, :PX]
    rough = [_noise(random, falling) for falling in (0.3, 1.0, 1.6)]
    strength = 25 * random.uniform() ** 2
    picture = np.broadcast_to(random.integers(20, 235, 3), (PX, PX, 3)).astype(np.float64)
    picture = picture + 30 * random.uniform() ** 2 * rough[2][..., None]
    least_px = random.uniform(2, 10)
    for _ in range(int(random.integers(0, 200)) if random.uniform() < 0.8 else 0):
        radius = min(least_px / math.sqrt(max(random.uniform(), 0.01)), 50)
        y, x = (
            grid - at
            for grid, at in zip((down, across), random.uniform(-10, PX + 10, 2), strict=True)
        )
        inside = _shape(random, y, x, radius)
        slope = (random.uniform(-10, 10) * y + random.uniform(-10, 10) * x) / radius
        colour = 0.5 * random.integers(0, 256, 3) + 0.5 * picture.mean((0, 1))
        texture = strength * random.uniform() * rough[random.integers(0, 3)] + slope
        picture[inside] = (colour + texture[..., None])[inside]
    picture += 8 * random.uniform() ** 3 * random.normal(size=(PX, PX, 1))
    return np.asarray(np.clip(np.rint(picture), 0, 255).astype(np.uint8))


def _shape(random: np.random.Generator, y: np.ndarray, x: np.ndarray, radius: float) -> np.ndarray:
    """Where a disc or a turned bar is."""
    if random.uniform() < 0.5:
        return np.asarray(y**2 + x**2 < radius**2)
    turn, width = random.uniform(0, math.pi), radius * random.uniform(0.3, 1)
    along, beside = y * math.cos(turn) + x * math.sin(turn), x * math.cos(turn) - y * math.sin(turn)
    return np.asarray((np.abs(along) < radius) & (np.abs(beside) < width))


def _noise(random: np.random.Generator, falling: float) -> np.ndarray:
    """(128, 128) of standard deviation 1, whose spectrum falls with a power of the frequency."""
    frequency = np.hypot(np.fft.fftfreq(PX)[:, None], np.fft.rfftfreq(PX)[None]) + 1 / PX
    found = np.fft.irfft2(np.fft.rfft2(random.normal(size=(PX, PX))) / frequency**falling, (PX, PX))
    return np.asarray(found / found.std())


def _picked(random: np.random.Generator, choices: Sequence[tuple[int, Sequence[Change]]]) -> Change:
    weights = np.array([weight for weight, _ in choices], np.float64)
    changes = choices[int(random.choice(len(choices), p=weights / weights.sum()))][1]

    def change(levels: np.ndarray) -> np.ndarray:
        for one in changes:
            levels = one(levels)
        return levels

    return change


def _planes(levels: np.ndarray, side_px: int, phase: tuple[int, int]) -> np.ndarray:
    half = raster.halved(raster.luma_of(levels), side_px // 2, side_px // 2, phase)
    return raster.planes(half).astype(np.float16)


def looked_at(
    drawn: Sequence[Named], pictures: int, seed: int
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Planes and signs of marked pictures, each whole three times and cropped once."""
    for number in range(pictures):
        random = np.random.default_rng((seed, number))
        if random.uniform() < DRAWN_SHARE:
            levels = drawn[int(random.integers(len(drawn)))].levels
            levels = levels[:, :: int(random.choice((-1, 1)))]
        else:
            levels = textures(random)
        signs = 2 * random.integers(0, 2, (TILE_CHIPS, TILE_CHIPS)) - 1
        found = embed.marked(levels.astype(np.float64), signs)
        marked = np.clip(np.rint(found), 0, 255).astype(np.uint8)
        for _ in range(WHOLE_OF_ONE):
            yield "whole", _planes(_picked(random, WHOLE)(marked), PX, (0, 0)), signs
        yield ("cropped", *_cut(random, marked, signs))


def _cut(
    random: np.random.Generator, marked: np.ndarray, signs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Planes and signs of a crop from any pixel, which begin with a whole chip."""
    cut = [int(at) for at in random.integers(0, PX - CROPPED_PX - 3, 2)]
    some = marked[cut[0] : cut[0] + CROPPED_PX, cut[1] : cut[1] + CROPPED_PX]
    phase = (cut[0] % 2, cut[1] % 2)
    planes = _planes(_picked(random, CROPPED)(some), CROPPED_PX, phase)
    first = [-(at + p) % CHIP_PX for at, p in zip(cut, phase, strict=True)]  # pixels to a chip
    y, x = ((at + p + f) // CHIP_PX for at, p, f in zip(cut, phase, first, strict=True))
    down, across = (f // 2 for f in first)
    side = learned.STRIDE * CHIPS_OF_CROP
    of_crop = planes[:, down : down + side, across : across + side]
    return of_crop, signs[y : y + CHIPS_OF_CROP, x : x + CHIPS_OF_CROP]


def gathered(given: Iterator[tuple[str, np.ndarray, np.ndarray]]) -> list[Samples]:
    """Whole pictures, and cropped ones."""
    kinds: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = {}
    for kind, planes, signs in given:
        both = kinds.setdefault(kind, ([], []))
        both[0].append(planes)
        both[1].append(signs.astype(np.int8))
    return [Samples(np.stack(planes), np.stack(signs)) for planes, signs in kinds.values()]


def train(kinds: Sequence[Samples], steps: int, tell: Callable[[str], None]) -> Network:
    """A network that gives the odds of signs."""
    torch.manual_seed(0)
    random, network = np.random.default_rng(0), Network()
    optimizer = torch.optim.Adam(network.parameters(), FASTEST)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, FASTEST, steps, pct_start=0.1)
    shares = np.array([len(kind.signs) for kind in kinds], np.float64)
    total = 0.0
    for step in range(1, steps + 1):
        kind = kinds[int(random.choice(len(kinds), p=shares / shares.sum()))]
        some = random.integers(0, len(kind.signs), BATCH)
        turned = torch.from_numpy(2.0 * random.integers(0, 2, (BATCH, 1, 1)) - 1).float()
        planes = torch.from_numpy(kind.planes[some].astype(np.float32)) * turned[..., None]
        signs = torch.from_numpy(kind.signs[some].astype(np.float32)) * turned
        loss = F.softplus(-2 * signs * network(planes)).mean() - math.log(2)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        rate.step()
        total += loss.item()
        if step % 100 == 0:
            tell(f"{step} of {steps}: {total / 100:.4f}")
            total = 0.0
    return network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--drawn", type=Path, required=True, help="folder of drawn pictures")
    parser.add_argument("--pictures", type=int, default=3500)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    kinds = gathered(looked_at(shapes(arguments.drawn), arguments.pictures, 1))
    network = train(kinds, arguments.steps, lambda line: print(line, flush=True))
    values = {
        name.replace(".weight", "").replace(".", "_"): value.numpy().astype(np.float16)
        for name, value in network.state_dict().items()
    }
    np.savez(arguments.out, **values)


if __name__ == "__main__":
    main()

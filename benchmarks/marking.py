"""What marks cost pictures, what is read after changes, and how far unmarked pictures get.

Pictures of shapes-flash are drawn once, unmarked, and kept in a folder; photographs are those that
scikit-image and scikit-learn ship. Each is marked by the arithmetic that the decoder's graph does
too (tests/test_mark_packages.py), changed, and read as ``fourstep mark read`` reads it.

    python -m benchmarks.marking --drawn FOLDER [--package PACKAGE] [--json FILE]
    python -m benchmarks.marking --drawn FOLDER --decode MARKED PLAIN
"""

from __future__ import annotations

import argparse
import io
import itertools
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import figures
from exporter import backends
from exporter.backends.contract import Session
from exporter.files.heap import returning
from exporter.files.pictures import parse_picture
from exporter.marking import embed, pattern, read
from exporter.marking.key import MarkKey
from exporter.package.measures import psnr_db
from exporter.runtime.package import Package, open_package

KEY, PAYLOAD = MarkKey(b"a key of benchmarks, not a secret"[:32]), 0x1A2B3C4D
CROP = 0.7
TOGETHER = 20  # pictures that are drawn in one call
PER_CATEGORY = 40  # prompts; more pictures are drawn of the same ones, from other seeds
PHOTOGRAPHS = (
    "astronaut", "camera", "chelsea", "coffee", "coins", "grass", "gravel", "brick", "moon",
    "rocket", "retina", "stereo_motorcycle", "hubble_deep_field", "immunohistochemistry", "cell",
)  # fmt: skip
LEFT_OUT = 0.2  # of the rounds, at either end
ONE_THREAD = {"openvino": {"INFERENCE_NUM_THREADS": "1"}}
WHAT = "Marks read, and what they cost"
COLUMNS = (
    figures.Column("pictures", "pictures"),
    figures.Column("change", "change"),
    figures.Column("count", "pictures"),
    figures.Column("read_percent", "read, %", 1),
    figures.Column("least_log10", "worst chance, 10^", 1),
    figures.Column("median_log10", "median chance, 10^", 1),
)
Change = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Named:
    """A picture (H, W, 3) uint8 and what it is called."""

    name: str
    levels: np.ndarray


def draw(package: Path, folder: Path, count: int) -> None:
    """Draw evaluation prompts until a folder holds so many pictures."""
    from benchmarks.shapes_flash.shapeeval import evaluation_prompts
    from exporter.drawing.loop import Image as Drawn
    from exporter.drawing.loop import Request, generate
    from exporter.runtime.package import open_package

    folder.mkdir(parents=True, exist_ok=True)
    prompts = evaluation_prompts(PER_CATEGORY)
    left = [i for i in range(count) if not (folder / f"{i:04d}.png").exists()]
    if not left:
        return
    player = open_package(package).player(keep=True)
    for some in (left[at : at + TOGETHER] for at in range(0, len(left), TOGETHER)):
        turns = [divmod(i, len(prompts)) for i in some]
        requests = [Request(prompts[k].text, prompts[k].seed + turn) for turn, k in turns]
        drawn = (event for event in generate(player, requests) if isinstance(event, Drawn))
        for i, event in zip(some, drawn, strict=True):
            Image.fromarray(event.pixels).save(folder / f"{i:04d}.png")


def shapes(folder: Path) -> list[Named]:
    """The pictures that a folder holds."""
    return [Named(f.stem, parse_picture(f, f)) for f in sorted(folder.glob("*.png"))]


def photographs(size_px: int, count: int) -> list[Named]:
    """Squares of photographs that libraries ship; smaller ones are enlarged by what it takes."""
    wholes = list(_shipped())
    found = []
    for number in range(count):
        name, whole = wholes[number % len(wholes)]
        random = np.random.default_rng(number)
        factor = max(1.0, size_px / min(whole.shape[:2]))
        if factor > 1:
            height, width = (math.ceil(side * factor) for side in whole.shape[:2])
            whole = np.asarray(Image.fromarray(whole).resize((width, height)))
        top, left = (int(random.integers(0, side - size_px + 1)) for side in whole.shape[:2])
        levels = whole[top : top + size_px, left : left + size_px]
        found.append(Named(f"{name} at {left}, {top}", levels))
    return found


def _shipped() -> Iterator[tuple[str, np.ndarray]]:
    from skimage import data
    from sklearn.datasets import load_sample_images

    for name in PHOTOGRAPHS:
        found = getattr(data, name)()
        picture = found[0] if isinstance(found, tuple) else found
        yield name, np.stack([picture] * 3, 2) if picture.ndim == 2 else picture[..., :3]
    for name, picture in zip(("china", "flower"), load_sample_images().images, strict=True):
        yield name, picture


def marked(levels: np.ndarray) -> np.ndarray:
    """With the benchmark's mark, in whole levels."""
    found = embed.marked(levels.astype(np.float64), pattern.tile(KEY, PAYLOAD))
    return np.asarray(np.clip(np.rint(found), 0, 255).astype(np.uint8))


def _again(form: str, **options: int) -> Change:
    def change(levels: np.ndarray) -> np.ndarray:
        stream = io.BytesIO()
        Image.fromarray(levels).save(stream, form, **options)
        return parse_picture(stream, form)

    return change


def _halved(levels: np.ndarray) -> np.ndarray:
    height, width = (side // 2 for side in levels.shape[:2])
    return np.asarray(Image.fromarray(levels).resize((width, height), Image.Resampling.LANCZOS))


def _cropped(levels: np.ndarray) -> np.ndarray:
    """70 % of both sides, from a place that the picture decides."""
    random = np.random.default_rng(int(levels[:8, :8].sum()))
    height, width = (round(CROP * side) for side in levels.shape[:2])
    free = (levels.shape[0] - height, levels.shape[1] - width)
    top, left = (int(random.integers(0, most + 1)) for most in free)
    return levels[top : top + height, left : left + width]


ONE: Mapping[str, Change] = {
    "PNG": _again("PNG"),
    "JPEG 70": _again("JPEG", quality=70),
    "WebP 60": _again("WEBP", quality=60),
    "resize to 50 %": _halved,
    "crop to 70 %": _cropped,
}


def pairs() -> Iterator[tuple[str, Change]]:
    """Two changes in a row, each ahead of each but another PNG; not two resizes or crops."""
    lossy = {name: change for name, change in ONE.items() if name != "PNG"}
    for (one, first), (other, second) in itertools.product(lossy.items(), repeat=2):
        if one != other or one in ("JPEG 70", "WebP 60"):
            yield f"{one}, then {other}", _after(first, second)


def _after(first: Change, second: Change) -> Change:
    return lambda levels: second(first(levels))


CHANGES: Mapping[str, Change] = {**ONE, **dict(pairs())}


def _chance(change: str, levels: np.ndarray) -> float:
    """Logarithm of the chance of a wrong alarm, of a mark that is read right; else 0."""
    reading = read.read_mark(CHANGES[change](levels), KEY)
    right = reading is not None and reading.found and reading.payload == PAYLOAD
    return reading.false_positive_log10 if reading is not None and right else 0.0


def row(pictures: str, change: str, given: Sequence[Named], pool: Executor) -> dict[str, Any]:
    """What was read of marked pictures after a change, and the names of those that were not."""
    apart = {p.levels.tobytes(): p.levels for p in given}  # small photographs come again
    read_once = dict(
        zip(apart, pool.map(_chance, [change] * len(apart), apart.values()), strict=True)
    )
    chances = [read_once[p.levels.tobytes()] for p in given]
    missed = [p.name for p, chance in zip(given, chances, strict=True) if chance == 0]
    return {
        "pictures": pictures,
        "change": change,
        "count": len(given),
        "read_percent": 100 * (1 - len(missed) / len(given)),
        "least_log10": max(chances),
        "median_log10": float(np.median(chances)),
        "missed": missed,
    }


def cost(given: Iterable[Named]) -> dict[str, float]:
    """Least and mean PSNR of marked pictures to unmarked ones, in dB."""
    found = [psnr_db(marked(picture.levels), picture.levels) for picture in given]
    return {"least_db": min(found), "mean_db": float(np.mean(found)), "pictures": len(found)}


def _unmarked(levels: np.ndarray, number: int, whole: bool) -> tuple[float, float]:
    """Statistic and chance of an unmarked picture, with a key of its number."""
    height, width = levels.shape[:2]
    key = MarkKey(number.to_bytes(32, "big"))
    reading = read.read_mark(levels, key, (height, width) if whole else None)
    return (reading.statistic, reading.false_positive_log10) if reading else (0.0, 0.0)


def unmarked(given: Sequence[Named], count: int, pool: Executor) -> dict[str, Any]:
    """How far unmarked pictures get, each read as it is with keys of its own."""
    levels = [given[number % len(given)].levels for number in range(count)]
    found = list(pool.map(_unmarked, levels, range(count), [True] * count, chunksize=20))
    statistics = [statistic for statistic, _ in found]
    counts, edges = np.histogram(statistics, bins=np.arange(3.0, 12.0, 0.5))
    bins = zip(edges, counts, strict=False)
    return {
        "largest_statistic": max(statistics),
        "statistics": {f"{edge:.1f}": int(n) for edge, n in bins},
        **_alarms(chance for _, chance in found),
    }


def searched(given: Sequence[Named], pool: Executor) -> dict[str, Any]:
    """The same over all scales and shifts, one key each."""
    levels, count = [p.levels for p in given], len(given)
    found = pool.map(_unmarked, levels, range(1 << 60, (1 << 60) + count), [False] * count)
    return _alarms(chance for _, chance in found)


def _alarms(chances: Iterable[float]) -> dict[str, Any]:
    all_chances = list(chances)
    found = sum(chance < read.MOST_FALSE_LOG10 for chance in all_chances)
    return {"read": len(all_chances), "found": found, "least_log10": min(all_chances)}


def measure(
    drawn: Path, few: int, photos: int, smaller: int, sizes: Sequence[int], plain: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows and details.

    Args:
        few: of how many pictures of a kind two changes are read.
        photos: of the largest size.
        smaller: how many photographs of each of the other sizes.
        plain: how often an unmarked picture is read, each time with another key.
    """
    kinds = {"shapes-flash, 128 px": shapes(drawn)}
    largest = max(sizes)
    for size in sizes:
        count = photos if size == largest else smaller
        kinds[f"photographs, {size} px"] = photographs(size, count)
    rows, costs = [], {}
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for name, given in kinds.items():
            costs[name] = cost(given)
            print(name, costs[name], flush=True)
            ready = [Named(p.name, marked(p.levels)) for p in given]
            asked = [(one, ready) for one in ONE]
            if name.startswith("shapes") or name.endswith(f" {largest} px"):
                asked += [(two, ready[:few]) for two, _ in pairs()]
            for change, some in asked:
                rows.append(row(name, change, some, pool))
                print(rows[-1], flush=True)
        everything = [p for given in kinds.values() for p in given]
        details = {
            "psnr": costs,
            "unmarked": unmarked(everything, plain, pool),
            "unmarked, searched": searched(everything[:few], pool),
            "missed": {f"{r['pictures']}: {r['change']}": r["missed"] for r in rows if r["missed"]},
        }
    return [{k: v for k, v in r.items() if k != "missed"} for r in rows], details


def opened(package: Package) -> Session:
    """A decoder as its package says, but on one thread where its engine would take more."""
    graph = package.graph("vae_decoder")
    entry, backend = package.folder / graph.entry, package.manifest.backend
    options = backends.SessionOptions()
    if backend != "onnx":
        settings = {**graph.session, **ONE_THREAD.get(backend, {})}
        return backends.load_to_run(backend).open_graph(entry, settings, options)
    import onnxruntime as ort

    from exporter.backends.onnx.session import configured

    config = configured(graph.session, options)
    config.intra_op_num_threads = 1
    with returning():
        session = ort.InferenceSession(entry, config, ["CPUExecutionProvider"])
    return lambda given: dict(zip(["image"], session.run(None, dict(given)), strict=True))


def decode_ms(
    marked: Session, plain: Session, latent: np.ndarray, rounds: int
) -> tuple[np.ndarray, np.ndarray]:
    """Processor milliseconds of an unmarked decode, and what a mark adds, in each round.

    A round is four calls: marked, plain, plain, marked; so that a machine that grows faster or
    slower meanwhile does so for both.
    """
    plain_ms, added_ms = np.zeros(rounds), np.zeros(rounds)
    for i in range(rounds):
        taken = []
        for decode in (marked, plain, plain, marked):
            started = time.process_time()
            decode({"latent": latent})
            taken.append(1000 * (time.process_time() - started))
        plain_ms[i] = (taken[1] + taken[2]) / 2
        added_ms[i] = (taken[0] + taken[3]) / 2 - plain_ms[i]
    return plain_ms, added_ms


def share(plain_ms: np.ndarray, added_ms: np.ndarray) -> tuple[float, float]:
    """What a mark adds to a decode: the mean of the middle three fifths, and its standard error."""
    from scipy.stats import trim_mean
    from scipy.stats.mstats import trimmed_stde

    whole_ms = float(np.median(plain_ms))
    error_ms = trimmed_stde(added_ms, (LEFT_OUT, LEFT_OUT))
    return float(trim_mean(added_ms, LEFT_OUT)) / whole_ms, float(error_ms) / whole_ms


def main() -> None:
    parser = argparse.ArgumentParser(description=WHAT)
    parser.add_argument("--drawn", type=Path, required=True, help="folder of drawn pictures")
    parser.add_argument("--package", type=Path, help="an unmarked package of shapes-flash to draw")
    parser.add_argument("--count", type=int, default=500, help="pictures of shapes-flash")
    parser.add_argument("--photographs", type=int, default=100)
    parser.add_argument("--smaller", type=int, default=12, help="photographs of a smaller size")
    parser.add_argument("--sizes", type=int, nargs="*", default=[128, 256, 512])
    parser.add_argument(
        "--few", type=int, default=100, help="pictures that two changes are read of"
    )
    parser.add_argument("--unmarked", type=int, default=5000)
    parser.add_argument("--decode", type=Path, nargs=2, metavar=("MARKED", "PLAIN"))
    parser.add_argument("--rounds", type=int, default=300, help="of four decodes that are timed")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.decode:
        packages = [open_package(place) for place in arguments.decode]
        latent = np.random.default_rng(0).normal(size=packages[0].manifest.picture.latent)
        marked, plain = map(opened, packages)
        latent = latent.astype(np.float32)
        plain_ms, added_ms = decode_ms(marked, plain, latent, arguments.rounds)
        added, error = share(plain_ms, added_ms)
        decode = f"a decode takes {np.median(plain_ms):.2f} ms of a processor"
        print(f"{decode}, a mark adds {added:+.2%} (standard error {error:.2%})")
        sys.exit()
    if arguments.package:
        draw(arguments.package, arguments.drawn, arguments.count)
    rows, details = measure(
        arguments.drawn,
        arguments.few,
        arguments.photographs,
        arguments.smaller,
        arguments.sizes,
        arguments.unmarked,
    )
    if arguments.json:
        figures.write(arguments.json, f"{WHAT}.", COLUMNS, rows, **details)


if __name__ == "__main__":
    main()

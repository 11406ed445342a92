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
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import figures
from exporter.files.pictures import parse_picture
from exporter.marking import embed, pattern, read
from exporter.marking.key import MarkKey
from exporter.package.measures import psnr_db
from exporter.runtime.package import open_package

KEY, PAYLOAD = MarkKey(b"a key of benchmarks, not a secret"[:32]), 0x1A2B3C4D
CROP = 0.7
TOGETHER = 20  # pictures that are drawn in one call
PER_CATEGORY = 40  # prompts; more pictures are drawn of the same ones, from other seeds
PHOTOGRAPHS = (
    "astronaut", "camera", "chelsea", "coffee", "coins", "grass", "gravel", "brick", "moon",
    "rocket", "retina", "stereo_motorcycle", "hubble_deep_field", "immunohistochemistry", "cell",
)  # fmt: skip
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


def decode_ms(marked: Path, plain: Path, pairs: int) -> tuple[float, float, float]:
    """Processor milliseconds of two decoders on one latent, and the first's over the second's.

    Calls alternate, and which goes first does too, so that what else the machine does meets both.
    The fastest of each; of the shares of pairs the median.
    """
    packages = [open_package(place) for place in (marked, plain)]
    latent = np.random.default_rng(0).normal(size=packages[0].manifest.picture.latent)
    given = {"latent": latent.astype(np.float32)}
    sessions = [package.session("vae_decoder") for package in packages]
    times: list[list[float]] = [[], []]
    for pair in range(pairs):
        for i in (0, 1) if pair % 2 else (1, 0):
            started = time.process_time()
            sessions[i](given)
            times[i].append(1000 * (time.process_time() - started))
    shares = [a / b for a, b in zip(*times, strict=True)]
    return min(times[0]), min(times[1]), float(np.median(shares))


def onnx_operators(
    files: Sequence[Path], latent: np.ndarray, calls: int
) -> list[list[list[tuple[str, float]]]]:
    """Of each file's calls, by turns, the operators that onnxruntime ran, and microseconds."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.enable_profiling = 1, True
    end = "_kernel_time"
    with tempfile.TemporaryDirectory() as folder:
        sessions = []
        for i, file in enumerate(files):
            options.profile_file_prefix = str(Path(folder) / f"{i}")
            sessions.append(ort.InferenceSession(file, options, ["CPUExecutionProvider"]))
        for _ in range(calls):
            for session in sessions:
                session.run(None, {"latent": latent})
        told = [Path(session.end_profiling()).read_text(encoding="utf-8") for session in sessions]
    found = []
    for events in map(json.loads, told):
        ran = [(e["name"].removesuffix(end), e["dur"]) for e in events if e["name"].endswith(end)]
        each = len(ran) // calls
        found.append([ran[each * i : each * (i + 1)] for i in range(calls)])
    return found


def openvino_operators(
    files: Sequence[Path], latent: np.ndarray, calls: int
) -> list[list[list[tuple[str, float]]]]:
    """The same of OpenVINO, in float32."""
    import openvino

    options = {"PERF_COUNT": True, "INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    core = openvino.Core()
    requests = [core.compile_model(file, "CPU", options).create_infer_request() for file in files]
    found: list[list[list[tuple[str, float]]]] = [[] for _ in files]
    for _ in range(calls):
        for request, kept in zip(requests, found, strict=True):
            request.infer({"latent": latent})
            kept.append(
                [(one.node_name, one.real_time / timedelta(microseconds=1))
                 for one in request.profiling_info]
            )  # fmt: skip
    return found


OPERATORS = {"onnx": onnx_operators, "openvino": openvino_operators}  # Core ML's here is ours


def own_share(marked: Path, plain: Path, calls: int) -> float:
    """What a mark's operators take of an unmarked decode, by the engine's clock of each operator.

    What a decoder does behind its last convolution but a mark's, which hands the picture out, less
    the same without a mark: medians. Noise of the machine in all that comes before is left out.
    Packages in float32: sessions are opened without the settings of the manifest.
    """
    packages = [open_package(place) for place in (marked, plain)]
    latent = np.random.default_rng(0).normal(size=packages[0].manifest.picture.latent)
    files = [
        place / graph.entry
        for place, package in zip((marked, plain), packages, strict=True)
        for graph in package.manifest.graphs
        if graph.name == "vae_decoder"
    ]
    with_mark, without = OPERATORS[packages[0].manifest.backend](
        files, latent.astype(np.float32), calls
    )
    convolutions = sum(map(_is_convolution, without[0]))

    def behind(call: Sequence[tuple[str, float]]) -> float:
        last = [i for i, one in enumerate(call) if _is_convolution(one)][convolutions - 1]
        return sum(duration for _, duration in call[last + 1 :])

    ends = [statistics.median(map(behind, calls)) for calls in (with_mark, without)]
    whole = statistics.median(sum(duration for _, duration in call) for call in without)
    return (ends[0] - ends[1]) / whole


def _is_convolution(operator: tuple[str, float]) -> bool:
    """Not what lays values out for one; without a mark the last is named as the picture is."""
    name, _ = operator
    return name.startswith(("conv", "image_nchwc")) and "abcd" not in name


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
    parser.add_argument("--pairs", type=int, default=200, help="of decodes that are timed")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.decode:
        marked, plain = arguments.decode
        fastest, unmarked_ms, median = decode_ms(marked, plain, arguments.pairs)
        share = fastest / unmarked_ms - 1
        print(f"{fastest:.2f} and {unmarked_ms:.2f} ms: {share:+.1%}; pairs {median - 1:+.1%}")
        if open_package(marked).manifest.backend in OPERATORS:
            own = own_share(marked, plain, arguments.pairs)
            print(f"the mark's operators: {own:.2%} of a decode")
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

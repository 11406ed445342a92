"""Plans of shapes-flash at several sizes, built for every backend: our side of ``fidelity``.

Sensitivities are measured once; each size is then a plan of its own over the MMDiT's two graphs,
and a package per backend. The ablation builds uniform int4 with each method alone.

    python -m benchmarks.frontier FOLDER [--bits 3.5 4 4.5 ...] [--ablation]
    python -m benchmarks.fidelity --packages FOLDER/*-*/
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

from exporter.build.pipeline import build
from exporter.plan.road import plan
from exporter.plan.search import Aim
from exporter.progress import Progress, bar_on_terminal
from exporter.quantize.formats import METHODS
from exporter.recipe.recipe import Recipe, read_recipe

RECIPE = Path("recipes/shapes-flash.toml")
BITS = (3.5, 4.0, 4.25, 4.5, 5.0, 6.0, 7.0, 8.0)
BACKENDS = ("onnx", "openvino", "coreml")


def with_methods(recipe: Recipe, methods: tuple[str, ...]) -> Recipe:
    """The recipe with other methods and without golden pictures."""
    return replace(recipe, prompts=(), calibration=replace(recipe.calibration, methods=methods))


def frontier(recipe: Recipe, folder: Path, sizes: list[float]) -> None:
    """A plan and its packages for each average of bits per weight of the MMDiT."""
    statistics = folder / "statistics"
    first: Path | None = None
    for bits in sorted(sizes, reverse=True):
        file = folder / f"plan-{bits:g}.toml"
        done = plan(
            recipe, file, Aim(bits_per_weight=bits), probes=2, earlier=first,
            statistics=statistics, progress=Progress(bar_on_terminal),
        )  # fmt: skip
        first = first or file
        print(f"{file}: {done}", flush=True)
        build(recipe, folder, BACKENDS, [str(file)], statistics=statistics)


def ablation(recipe: Recipe, folder: Path) -> None:
    """Uniform int4 by no method, by each alone, and by all, for one backend."""
    for methods in ((), *((m,) for m in METHODS), METHODS):
        name = "nearest" if not methods else methods[0] if len(methods) == 1 else "all"
        (built,) = build(
            with_methods(recipe, methods), folder / ".ablation", ["onnx"], ["int4"],
            statistics=folder / "statistics",
        )  # fmt: skip
        shutil.rmtree(folder / f"onnx-int4-{name}", ignore_errors=True)
        built.path.rename(folder / f"onnx-int4-{name}")
    shutil.rmtree(folder / ".ablation")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bits", type=float, nargs="*", default=BITS)
    parser.add_argument("--ablation", action="store_true", help="also int4 by each method alone")
    arguments = parser.parse_args()
    recipe = read_recipe(RECIPE)
    frontier(with_methods(recipe, recipe.calibration.methods), arguments.folder, arguments.bits)
    if arguments.ablation:
        ablation(recipe, arguments.folder)


if __name__ == "__main__":
    main()

"""Predicted against measured: bytes of files, peak anonymous memory to build and run each graph.

    python -m benchmarks.memory RECIPE [--backend onnx] [--scheme int4] [--graph "t5*"]

Each graph is built, and run once, in a process of its own, on random inputs; a scheme that rounds
activations is calibrated on as many such calls as the recipe's prompts make. What ``fourstep
inspect`` predicts is beside what was measured; the constants of its predictions were fitted to such
a table.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import figures
from benchmarks.memcap import measure
from exporter import backends
from exporter.package.decode import parse
from exporter.package.manifest import GraphEntry, Port

if TYPE_CHECKING:
    from exporter.recipe.recipe import Recipe

Row = dict[str, Any]
WHAT = "What fourstep inspect predicts and what was measured: files, peak anonymous memory, in MB."
KINDS = {"bytes": "files", "build": "build", "run": "run"}
COLUMNS = (
    *(figures.Column(name, name) for name in ("backend", "scheme", "graph")),
    *(
        figures.Column(f"{kind}_{told}", f"{title} {told}")
        for kind, title in KINDS.items()
        for told in ("predicted", "measured")
    ),
    figures.Column("error", "error"),
)


def build_one(recipe_file: Path, backend_name: str, scheme: str, graph: str, folder: Path) -> None:
    """Write one graph, and its manifest entry beside it."""
    from exporter.build import write
    from exporter.build.model import trace_model
    from exporter.calibrate.activations import rounder
    from exporter.predict.graph import is_widened
    from exporter.progress import Progress
    from exporter.quantize.program import quantize_all
    from exporter.quantize.split import emitted
    from exporter.recipe.recipe import read_recipe

    recipe = read_recipe(recipe_file)
    model = trace_model(recipe, 0, Progress())
    quantized = quantize_all(model.programs, recipe.scheme(scheme))
    program = next(p for p in emitted(quantized, recipe.graph_parts) if p.name == graph)
    choices = recipe.backend(backend_name).choices
    count = calls(recipe).get(graph, 0)
    rounded = rounder(
        {graph: program},
        model.weights.read,
        lambda _: [random_inputs(program.inputs) for _ in range(count)],
    )
    backend = backends.load_to_build(backend_name)
    widened = is_widened(program, backend.costs, recipe.device_memory_bytes)
    options = backends.EmitOptions(choices, is_widened=widened)
    entry = write.emit_graph(backend, rounded(graph), model.weights.read, folder, options)
    (folder / "entry.json").write_text(json.dumps(asdict(entry)))


def calls(recipe: Recipe) -> dict[str, int]:
    """Of each graph, on the recipe's calibration prompts."""
    from exporter.calibrate.trajectories import call_counts

    return call_counts(len(recipe.calibration.prompts), recipe.schedule)


def run_one(backend_name: str, folder: Path) -> None:
    """Open a graph, and run it once on random inputs."""
    entry = parse(GraphEntry, json.loads((folder / "entry.json").read_text()))
    backend = backends.load_to_run(backend_name)
    session = backend.open_graph(folder / entry.entry, entry.session, backends.SessionOptions())
    session(random_inputs(entry.inputs))


def random_inputs(ports: Sequence[Port]) -> dict[str, np.ndarray]:
    """Normal values; zeros for ids."""
    random = np.random.default_rng(0)
    return {
        port.name: np.zeros(port.shape, np.int32)
        if port.dtype == "int32"
        else random.standard_normal(port.shape, np.float32)
        for port in ports
    }


def measured(recipe: Path, backend: str, scheme: str, graph: str) -> Row:
    """Bytes of a graph's files, and peaks of building and of running it."""
    with tempfile.TemporaryDirectory() as place:
        own = (sys.executable, "-m", "benchmarks.memory", str(recipe), "--one")
        one = (backend, scheme, graph, place)
        built = measure([*own, "build", *one])
        if not built.completed:
            return {"error": f"build: exit code {built.exit_code}"}
        entry = parse(GraphEntry, json.loads((Path(place) / "entry.json").read_text()))
        row: Row = {"bytes": entry.bytes, "build": built.peak_anonymous_bytes}
        ran = measure([*own, "run", *one])
        failed = {"error": f"run: exit code {ran.exit_code}"}
        return row | ({"run": ran.peak_anonymous_bytes} if ran.completed else failed)


def predicted(recipe_file: Path) -> dict[tuple[str, str, str], Row]:
    """The same figures as ``fourstep inspect`` predicts them, by backend, scheme and graph."""
    from exporter.build.model import traced
    from exporter.checkpoint.open import open_checkpoint
    from exporter.predict.checkpoint import sizes
    from exporter.quantize.schemes import scheme_names
    from exporter.recipe.recipe import read_recipe

    recipe = read_recipe(recipe_file)
    programs = traced(open_checkpoint(recipe.checkpoint), recipe.cut)
    schemes = {name: recipe.scheme(name) for name in scheme_names()}
    choices = {name: recipe.backend(name).choices for name in recipe.backends}
    most_bytes, given = recipe.device_memory_bytes, (choices, schemes, recipe.graph_parts)
    found = sizes(programs, *given, calls(recipe), most_bytes=most_bytes)
    return {
        (size.backend, size.scheme, size.graph): {
            "bytes": size.bytes,
            "build": size.build_bytes,
            "run": size.run_bytes,
        }
        for size in found
    }


def flat(row: Row) -> figures.Row:
    """A row of the table, in megabytes; what failed is in ``error``."""
    found = {key: row[key] for key in ("backend", "scheme", "graph")}
    for kind in KINDS:
        for told in ("predicted", "measured"):
            count = row[told].get(kind)
            found[f"{kind}_{told}"] = None if count is None else count / 1e6
    return {**found, "error": row["measured"].get("error")}


def main() -> None:
    parser = argparse.ArgumentParser(description="Predicted against measured memory.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--backend", nargs="*", default=["onnx", "openvino"])
    parser.add_argument("--scheme", nargs="*", default=["int4", "int8"])
    parser.add_argument("--graph", nargs="*", default=["*"], help="patterns")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        what, backend, scheme, graph, place = arguments.one
        if what == "build":
            build_one(arguments.recipe, backend, scheme, graph, Path(place))
        else:
            run_one(backend, Path(place))
        return
    rows = []
    for (backend, scheme, graph), expected in predicted(arguments.recipe).items():
        asked = any(fnmatchcase(graph, pattern) for pattern in arguments.graph)
        if asked and backend in arguments.backend and scheme in arguments.scheme:
            found = measured(arguments.recipe, backend, scheme, graph)
            names = {"backend": backend, "scheme": scheme, "graph": graph}
            rows.append({**names, "predicted": expected, "measured": found})
            line = figures.markdown(COLUMNS, [flat(rows[-1])]).splitlines()[-1]
            print(line, file=sys.stderr, flush=True)
    found_rows = [flat(row) for row in rows]
    print(figures.markdown(COLUMNS, found_rows))
    if arguments.json:
        figures.write(arguments.json, WHAT, COLUMNS, found_rows)


if __name__ == "__main__":
    main()

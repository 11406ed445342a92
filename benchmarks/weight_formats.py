"""One linear layer of 1536 x 6144 in every format, as each backend emits and runs it.

Best time in ms for 1024 rows and for one, with the ratio to int4 in groups of 64; bits of the file
for a weight; and how far the result is from torch's product of the same codes, as packages run it
(activations rounded to 8 bits where the kernel does) and with exact activations. OpenVINO also with
groups of 32 activations, its default, in place of 64. All forms of a backend take turns within a
round, so that a busy machine is as unfair to each.

    python -m benchmarks.weight_formats [--json FILE] [--rounds N]
"""

from __future__ import annotations

import argparse
import functools
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import figures
from exporter import backends
from exporter.calibrate.activations import rounder
from exporter.network.graph import Graph
from exporter.package.manifest import Port
from exporter.package.measures import relative_error
from exporter.program.program import Constant
from exporter.program.run import run
from exporter.program.trace import trace
from exporter.quantize.formats import FORMATS, Format
from exporter.quantize.nearest import encode
from exporter.quantize.program import Part, quantize

ROWS, INPUTS, OUTPUTS = (1024, 1), 1536, 6144
ROUNDS, CALLS = 9, 3
WHAT = "One product of 1536 x 6144 in every format, as each backend runs it."
COLUMNS = (
    figures.Column("backend", "backend"),
    figures.Column("rows", "rows"),
    figures.Column("form", "weights"),
    figures.Column("bits", "bits", 2),
    figures.Column("ms", "ms", 2),
    figures.Column("error", "error", 4),
    figures.Column("exact_error", "error, exact activations", 6),
)
BACKENDS = ("onnx", "openvino")  # Core ML's evaluator says nothing of speed
FIRST = FORMATS["int4"]
FORMS = (
    FIRST,
    Format("int4", 32),
    Format("int4", 64, symmetric=False),
    *(Format("int2", size) for size in (16, 32, 64, 128)),
    Format("int2", 64, symmetric=False),
    FORMATS["int8"],
    FORMATS["w8a8"],
    FORMATS["fp32"],
)
SETTINGS: dict[
    str, dict[str, dict[str, str]]
] = {  # of a session, besides the package's own; by what is added to the form's name
    "onnx": {"": {}},
    "openvino": {"": {}, ", a32": {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "32"}},
}


class Product(torch.nn.Module):
    """A linear layer without bias."""

    def __init__(self) -> None:
        super().__init__()
        self.product = torch.nn.Linear(INPUTS, OUTPUTS, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.product(x)
        return found


def emitted(backend: Any, form: Format, rows: int, folder: Path) -> tuple[Any, Any, Any]:
    """The layer in a format: what ``emit`` returns, inputs, and torch's outputs."""
    with torch.device("meta"):
        module = Product()
    ports = Port("x", (1, rows, INPUTS)), Port("y", (1, rows, OUTPUTS))
    program = trace(Graph("product", "transformer", module, ports[:1], ports[1:], {}))
    generator = torch.Generator().manual_seed(0)
    weight = 0.02 * torch.randn(OUTPUTS, INPUTS, generator=generator)

    def read(source: object) -> torch.Tensor:
        if isinstance(source, Constant):
            return torch.from_numpy(source.value)
        if not isinstance(source, Part):
            return weight
        factors = 1 if source.columns is None else torch.from_numpy(source.columns.value)
        found: torch.Tensor = getattr(encode(weight * factors, form), source.part)
        return found

    quantized = quantize(program, lambda *_: form)
    inputs = {"x": torch.randn(ports[0].shape, generator=generator)}
    samples = [{key: value.numpy() for key, value in inputs.items()}]
    expected = run(quantized, read, inputs)["y"]  # what rounding inputs costs is told, too
    quantized = rounder({"product": quantized}, read, lambda _: samples)("product")
    order = backends.EmitOptions(backends.default_choices(backend))
    return backend.emit(quantized, read, folder, order), inputs, expected


def measure(name: str, rows: int, rounds: int, folder: Path) -> list[dict[str, Any]]:
    """Every form on one backend."""
    backend = backends.load(name)
    calls: list[Callable[[], Mapping[str, np.ndarray]]] = []
    found: list[dict[str, Any]] = []
    for form in FORMS:
        if backend.refuse(form, backends.default_choices(backend)):
            continue
        place = folder / f"{name}-{rows}-{form}"
        place.mkdir()
        files, inputs, expected = emitted(backend, form, rows, place)
        given = {key: value.numpy() for key, value in inputs.items()}
        for suffix, settings in SETTINGS[name].items():
            if suffix and not form.is_integer:
                continue
            exact, session = (
                backend.open_graph(files.entry, files.session | settings, options)
                for options in (backends.SessionOptions("float32"), backends.SessionOptions())
            )
            calls.append(functools.partial(session, given))
            row: dict[str, Any] = {"backend": name, "rows": rows, "form": f"{form}{suffix}"}
            row["ms"] = math.inf
            row["bits"] = 8 * sum(f.stat().st_size for f in files.files) / (INPUTS * OUTPUTS)
            row["error"] = relative_error(session(given)["y"], expected.numpy())
            row["exact_error"] = relative_error(exact(given)["y"], expected.numpy())
            found.append(row)
    for _ in range(rounds):
        for row, call in zip(found, calls, strict=True):
            for _ in range(CALLS):
                started = time.perf_counter()
                call()
                row["ms"] = min(row["ms"], 1e3 * (time.perf_counter() - started))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Formats of one linear layer, on this processor.")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    rows = []
    print(
        f"{'backend':<9} {'rows':>4} {'form':<14} {'bits':>5} {'ms':>8} {'ratio':>6} error   exact"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name in BACKENDS:
            for count in ROWS:
                found = measure(name, count, arguments.rounds, Path(folder))
                for row in found:
                    row["ratio"] = row["ms"] / found[0]["ms"]
                    print(
                        f"{name:<9} {count:>4} {row['form']:<14} {row['bits']:>5.2f} "
                        f"{row['ms']:>8.2f} {row['ratio']:>6.2f} {row['error']:.1e} "
                        f"{row['exact_error']:.1e}",
                        flush=True,
                    )
                rows += found
    if arguments.json:
        figures.write(arguments.json, WHAT, COLUMNS, rows)


if __name__ == "__main__":
    main()

"""Measures every quantizer, or resumes; prints a table, and writes figures and a plot."""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import logging
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import figures
from benchmarks.fidelity import coremltools_peer, nncf_peer, onnxruntime_peer
from benchmarks.fidelity.drawing import Studio, losses
from benchmarks.fidelity.graphs import constant_bytes, float_values, session
from benchmarks.fidelity.plot import plot
from benchmarks.fidelity.variant import GRAPHS, Samples, Variant
from benchmarks.shapes_flash.shapeeval import EvalPrompt, evaluation_prompts
from exporter.build.pipeline import build
from exporter.drawing.loop import Image
from exporter.recipe.recipe import Recipe, read_recipe
from exporter.runtime.package import open_package

RECIPE = Path("recipes/shapes-flash.toml")
PLAIN = {"onnx": "fp32", "openvino": "fp32", "coreml": "fp16"}
OURS = "fourstep"
WHAT = "Plans of shapes-flash against the quantizers of others, on the same two graphs."
COLUMNS = (
    figures.Column("weights", "weights of the MMDiT"),
    figures.Column("bytes", "bytes"),
    figures.Column("bits", "bits", 2),
    figures.Column("latent_snr_db", "latent SNR dB", 1),
    figures.Column("psnr_db", "PSNR dB", 1),
    figures.Column("shapeeval", "ShapeEval", 3),
)
LOGGERS = (None, "nncf", "coremltools")
MOST_NOTES, NOTE_LENGTH = 3, 150

Row = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """What every row is measured with.

    Attributes:
        files: the unquantized graphs by backend and name.
        samples: inputs to calibrate on, by graph.
        plain: the unquantized model's pictures.
        weights: values of the unquantized graphs.
    """

    studio: Studio
    files: Mapping[str, Mapping[str, Path]]
    samples: Mapping[str, Samples]
    prompts: Sequence[EvalPrompt]
    plain: Sequence[Image]
    snr_prompts: int
    weights: int

    def quantize(self, variant: Variant) -> Row:
        """Let a peer quantize both graphs, and measure them; what it refuses is in ``error``."""
        start = {"quantizer": f"{variant.peer} {version(variant.peer)}"}
        with tempfile.TemporaryDirectory() as folder, _hearing() as notes:
            started, files = time.process_time(), {}
            try:
                for name in GRAPHS:
                    file = self.files[variant.backend][name]
                    files[name] = variant.quantize(file, self.samples[name], Path(folder))
                seconds = time.process_time() - started
                row = self.measure(variant.backend, files)
            except Exception as error:  # peers raise types of their own
                return {**start, "error": f"{type(error).__name__}: {_line(str(error))}"}
        remarks = [variant.remark] if variant.remark else []
        return {**start, "quantize_cpu_s": seconds, **row, "notes": remarks + notes}

    def measure(self, backend: str, files: Mapping[str, Path], own: bool = False) -> Row:
        """Bytes of two graphs, and what their pictures lost; ``own``: each in its own runtime."""
        stored: Counter[str] = Counter()
        for name in GRAPHS:
            stored.update(constant_bytes(backend, files[name]))
        with tempfile.TemporaryDirectory() as folder:
            mmdit = {
                name: session(
                    backend, files[name], None if own else self.files["onnx"][name], Path(folder)
                )
                for name in GRAPHS
            }
            found = self.studio.draw(mmdit, self.prompts)
        return {
            "backend": backend,
            "bytes": stored.total(),
            "bits": 8 * stored.total() / self.weights,
            "bytes_by_type": dict(stored),
            **losses(self.prompts, found, self.plain, self.snr_prompts),
        }


def prepare(
    recipe: Recipe,
    prompts: Sequence[EvalPrompt],
    snr_prompts: int,
    folder: Path,
    backends: Sequence[str] = tuple(PLAIN),
) -> Bench:
    """Build the unquantized graphs of some backends, and draw the pictures to compare with."""
    newest = tuple(
        replace(c, choices={"target": "iOS18"}) if c.name == "coreml" else c for c in recipe.choices
    )
    recipe = replace(recipe, prompts=(), choices=newest)
    files = {}
    for backend in dict.fromkeys(("onnx", *backends)):
        (built,) = build(recipe, folder, [backend], [PLAIN[backend]])
        files[backend] = graph_files(built.path)
    studio = Studio(folder / "onnx-fp32")
    return Bench(
        studio,
        files,
        studio.samples(recipe.calibration),
        prompts,
        studio.draw({}, prompts),
        snr_prompts,
        sum(float_values(file) for file in files["onnx"].values()),
    )


def graph_files(package: Path) -> dict[str, Path]:
    """The conditioner and the denoiser of a package of ours."""
    opened = open_package(package)
    return {name: package / opened.graph(name).entry for name in GRAPHS}


@contextlib.contextmanager
def _hearing() -> Iterator[list[str]]:
    """Collect what libraries warn of, once each, and keep their progress bars to themselves."""
    heard: dict[str, None] = {}
    notes: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: heard.setdefault(_line(record.getMessage()))  # type: ignore[method-assign]
    loggers = [logging.getLogger(name) for name in LOGGERS]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        with (
            warnings.catch_warnings(record=True) as caught,
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("always")
            yield notes
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
    heard |= dict.fromkeys(_line(str(w.message)) for w in caught if w.category is RuntimeWarning)
    notes += list(heard)[:MOST_NOTES]


def _line(text: str) -> str:
    """The first line of a message that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:NOTE_LENGTH] if lines else ""


def peer_variants(patterns: Sequence[str]) -> list[Variant]:
    """Every setting of every peer whose name matches one of the patterns."""
    modules = (nncf_peer, onnxruntime_peer, coremltools_peer)
    found = [variant for module in modules for variant in module.variants()]
    return [v for v in found if any(fnmatchcase(v.name, p) for p in patterns)]


def jobs(
    bench: Bench, variants: Sequence[Variant], packages: Sequence[Path]
) -> dict[str, tuple[str, Callable[[], Row]]]:
    """Every row to measure: by name, what it depends on and the function that measures it."""
    found: dict[str, tuple[str, Callable[[], Row]]] = {
        f"unquantized {backend}-{PLAIN[backend]}": ("", partial(_ours, bench, backend, files))
        for backend, files in bench.files.items()
    }
    for variant in variants:
        found[variant.name] = (version(variant.peer), partial(bench.quantize, variant))
    for package in packages:
        manifest = open_package(package).manifest
        digests = [f.sha256 for g in manifest.graphs if g.name in GRAPHS for f in g.files]
        measure = partial(_ours, bench, manifest.backend, graph_files(package), own=True)
        found[f"{OURS} {package.name}"] = (" ".join(digests), measure)
    return found


def _ours(bench: Bench, backend: str, files: Mapping[str, Path], own: bool = False) -> Row:
    return {"quantizer": OURS, **bench.measure(backend, files, own)}


def resume(file: Path | None, settings: Mapping[str, object]) -> dict[str, Row]:
    """The rows that an earlier run with the same settings finished."""
    if file is None or not file.exists():
        return {}
    earlier = json.loads(file.read_text())
    if earlier["settings"] != settings:
        return {}
    return dict(earlier["rows"])


def table(rows: Mapping[str, Row]) -> str:
    """All rows as Markdown, by bytes; those that failed last."""
    lines = [
        "| weights | bytes | bits | latent SNR dB | PSNR dB | ShapeEval | CPU s | notes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in sorted(rows.items(), key=lambda item: item[1].get("bytes", float("inf"))):
        if "error" in row:
            lines.append(f"| {name} | | | | | | | {row['error']} |")
            continue
        cells = [f"{row['bytes']:,}", f"{row['bits']:.2f}"]
        for key, digits in (("latent_snr_db", 2), ("psnr_db", 2), ("shapeeval", 3)):
            cells.append(f"{row[key]:.{digits}f} ± {row[f'{key}_se']:.{digits}f}")
        seconds = f"{row['quantize_cpu_s']:.0f}" if "quantize_cpu_s" in row else ""
        lines.append(
            f"| {name} | {' | '.join(cells)} | {seconds} | {'; '.join(row.get('notes', ()))} |"
        )
    return "\n".join(lines)


def _save(file: Path, settings: Mapping[str, object], rows: Mapping[str, Row]) -> None:
    beside = file.with_suffix(".part")
    beside.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")
    beside.replace(file)


def main() -> None:
    parser = argparse.ArgumentParser(description="Our quantizer against the peers', byte for byte.")
    parser.add_argument("--per-category", type=int, default=40)
    parser.add_argument("--snr-prompts", type=int, default=64)
    parser.add_argument("--only", nargs="*", default=["*"], help="patterns of names of peers' rows")
    parser.add_argument("--packages", nargs="*", type=Path, default=[], help="packages of ours")
    parser.add_argument("--json", type=Path, help="keep rows here, and resume from them")
    parser.add_argument("--results", type=Path, help="also write the figures here")
    parser.add_argument("--plot", type=Path, help="write a plot here (PNG)")
    arguments = parser.parse_args()
    settings = {"per_category": arguments.per_category, "snr_prompts": arguments.snr_prompts}
    rows = resume(arguments.json, settings)
    prompts = evaluation_prompts(arguments.per_category)
    variants = peer_variants(arguments.only)
    with tempfile.TemporaryDirectory() as folder:
        bench = prepare(
            read_recipe(RECIPE), prompts, arguments.snr_prompts, Path(folder),
            [variant.backend for variant in variants],
        )  # fmt: skip
        for name, (basis, measure) in jobs(bench, variants, arguments.packages).items():
            known = rows.get(name)
            if known and "error" not in known and known["basis"] == basis:
                continue
            rows[name] = {"basis": basis, **measure()}
            print(table({name: rows[name]}).splitlines()[-1], file=sys.stderr, flush=True)
            gc.collect()
            if arguments.json:
                _save(arguments.json, settings, rows)
    print(table(rows))
    if arguments.results:
        measured = [{"weights": n, **row} for n, row in rows.items() if "error" not in row]
        figures.write(arguments.results, WHAT, COLUMNS, measured)
    if arguments.plot:
        plot(rows, arguments.plot)


if __name__ == "__main__":
    main()

"""Small graphs with their weights as codes and decoded, beside float32: processors' seconds.

    python -m benchmarks.widened FOLDER [--rounds 25] [--json FILE]

FOLDER holds onnx-fp32 and other packages of the same recipe. Every graph is opened as each of them
says, without ``widened`` and with it, one thread each. They take turns of a few calls each; the
fastest turn counts. A picture is what drawing runs: encoders once, the denoiser at every step, one
decoder.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import figures
from benchmarks.figures import Column
from benchmarks.memory import random_inputs
from exporter.backends.contract import SessionOptions
from exporter.backends.onnx.session import configured
from exporter.package.manifest import GraphEntry
from exporter.package.names import graph_of
from exporter.package.read import read_manifest

TWIN = "fp32"
CALLS = 4  # of a turn
PACKAGED = SessionOptions()
WHAT = "One picture of a small model on onnxruntime, one thread: processors' milliseconds."
PARTS = {"denoiser": "step_ms", "vae_decoder": "decoder_ms", "vae_encoder": None}
COLUMNS = (
    Column("scheme", "scheme"),
    Column("weights", "weights in memory"),
    Column("text_ms", "text ms", 2),
    Column("step_ms", "a step ms", 2),
    Column("decoder_ms", "decoder ms", 2),
    Column("picture_ms", "picture ms", 1),
    Column("ratio", "of float32's", 2),
)


@dataclass(frozen=True)
class Entrant:
    """A package, opened with its weights decoded or not."""

    package: Path
    is_widened: bool

    @property
    def scheme(self) -> str:
        return read_manifest(self.package).scheme


def entrants(folder: Path) -> list[Entrant]:
    """Float32 first; every package with codes twice."""
    places = sorted(place.parent for place in folder.glob("onnx-*/manifest.json"))
    coded = [p for p in places if any(g.session for g in read_manifest(p).graphs)]
    doubled = [Entrant(package, widened) for package in coded for widened in (False, True)]
    return [Entrant(folder / f"onnx-{TWIN}", False), *doubled]


def timed(found: Sequence[Entrant], graph: str, rounds: int) -> list[float]:
    """Seconds of a call of a graph, of each; they take turns."""
    import onnxruntime as ort

    sessions, spent = [], [list[float]() for _ in found]
    for one in found:
        entry = _entry(one, graph)
        settings = {key: value for key, value in entry.session.items() if key != "widened"}
        config = configured(settings | ({"widened": "1"} if one.is_widened else {}), PACKAGED)
        config.intra_op_num_threads = 1
        sessions.append(ort.InferenceSession(str(one.package / entry.entry), config))
    inputs = random_inputs(_entry(found[0], graph).inputs)
    for _ in range(rounds):
        for session, seconds in zip(sessions, spent, strict=True):
            session.run(None, inputs)  # its weights come back into the caches
            started = time.process_time()
            for _ in range(CALLS):
                session.run(None, inputs)
            seconds.append((time.process_time() - started) / CALLS)
    return list(map(min, spent))


def _entry(one: Entrant, graph: str) -> GraphEntry:
    return next(g for g in read_manifest(one.package).graphs if g.name == graph)


def measure(folder: Path, rounds: int) -> list[figures.Row]:
    """A row for each package as it is opened."""
    found = entrants(folder)
    manifest = read_manifest(found[0].package)
    rows: list[dict[str, float]] = [{"text_ms": 0.0} for _ in found]
    for graph in manifest.graphs:
        part = PARTS.get(graph_of(graph.name), "text_ms")
        if part is not None:
            for row, seconds in zip(rows, timed(found, graph.name, rounds), strict=True):
                row[part] = row.get(part, 0.0) + 1e3 * seconds
    for row in rows:
        steps = manifest.schedule.steps * row["step_ms"]
        row["picture_ms"] = row["text_ms"] + steps + row["decoder_ms"]
    return [
        {
            "scheme": one.scheme,
            "weights": "decoded" if one.is_widened else "as stored",
            **row,
            "ratio": row["picture_ms"] / rows[0]["picture_ms"],
        }
        for one, row in zip(found, rows, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=WHAT)
    parser.add_argument("folder", type=Path, help="of packages of one recipe")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    rows = measure(arguments.folder, arguments.rounds)
    print(figures.markdown(COLUMNS, rows))
    if arguments.json:
        figures.write(arguments.json, WHAT, COLUMNS, rows)


if __name__ == "__main__":
    main()

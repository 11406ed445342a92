"""Wall time, processor seconds, idle share and memory of one matrix, here and on Dask workers.

    python -m benchmarks.matrix FOLDER --json results.json
    python -m benchmarks.matrix FOLDER --full sd3.5-flash --json results.json

24 packages of the model in the box: three backends, four schemes, two sizes; codes to nearest and
one golden picture, so that what is measured is the matrix. Built from nothing by local processes;
on a machine that has nothing but their cache; there with another format for one graph; on a Dask
scheduler with each number of workers; with every graph a job of its own; compared byte for byte.

With ``--full`` one recipe of that checkpoint (``fourstep synth``), without golden pictures, for
three backends on two Dask workers of 4 GiB each: a row for each package and one for all.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import figures
from exporter.files.read import file_digest
from exporter.matrix.cluster import Cluster
from exporter.matrix.file import read_matrix
from exporter.matrix.local import Local
from exporter.matrix.run import SPLIT_BYTES, Result, Runner, run
from exporter.progress import Progress, say

ROOT = Path(__file__).parents[1]
WORKER_LIMIT, FULL_LIMIT = "3GB", "4GiB"
FULL_WORKERS = 2
WHAT = "24 packages by one matrix: wall and processor seconds, idle share, memory."
WHAT_FULL = "The full size for three backends on two Dask workers of 4 GiB each."
COLUMNS = (
    figures.Column("way", "where"),
    figures.Column("workers", "workers"),
    figures.Column("wall_s", "wall, s"),
    figures.Column("cpu_s", "processor, s"),
    figures.Column("idle_percent", "workers idle, %"),
    figures.Column("peak_mb", "most memory of a job, MB"),
    figures.Column("predicted_mb", "predicted, MB"),
    figures.Column("built", "built"),
    figures.Column("reused", "reused"),
    figures.Column("emitted", "graphs emitted"),
    figures.Column("taken", "graphs taken"),
    figures.Column("package_mb", "package, MB"),
    figures.Column("same_bytes", "same bytes"),
)
MATRIX = """
recipes = ["{recipe}"]
backends = ["onnx", "openvino", "coreml"]
schemes = ["fp32", "fp16", "int8", "int4"]
sizes = {sizes}
"""
# What no scheme of the matrix has: a graph that some other package has would be taken.
OVERRIDE = """
[[weights.override]]
graph = "denoiser"
weight = "*"
format = "int4"
group_size = 32
"""


@dataclass(frozen=True)
class Row:
    """One way to build the matrix.

    Attributes:
        busy_s: of all jobs, as workers count them; ``idle``: the share of workers' time without.
        same_bytes: whether every file is that of the first row's packages.
    """

    way: str
    workers: int
    wall_s: float
    cpu_s: float
    busy_s: float
    idle: float
    peak_bytes: int
    predicted_bytes: int
    over: int
    built: int
    reused: int
    failed: int
    emitted: int
    taken: int
    same_bytes: bool | None

    @property
    def shown(self) -> dict[str, str | float | None]:
        """Its cells, by the keys of ``COLUMNS``."""
        bytes_said = {None: None, True: "yes", False: "no"}[self.same_bytes]
        return {
            **asdict(self),
            "idle_percent": 100 * self.idle,
            "peak_mb": self.peak_bytes / 1e6 or None,
            "predicted_mb": self.predicted_bytes / 1e6 or None,
            "same_bytes": bytes_said,
        }


def digests(folder: Path) -> dict[str, str]:
    """Of the files of all packages, logs, caches and pages apart."""
    packages = [manifest.parent for manifest in folder.glob("*/*/*/manifest.json")]
    files = [file for package in packages for file in package.rglob("*") if file.is_file()]
    return {file.relative_to(folder).as_posix(): file_digest(file) for file in files}


@contextmanager
def dask(folder: Path, workers: int, limit: str = WORKER_LIMIT) -> Iterator[str]:
    """``HOST:PORT`` of a scheduler with so many workers, each a process under a nanny."""
    folder.mkdir(parents=True)
    file = folder / "scheduler.json"
    scheduler = ["scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--no-show"]
    worker = ["worker", "--nthreads", "1", "--memory-limit", limit, "--no-dashboard"]
    worker += ["--local-directory", str(folder), "--nworkers", str(workers)]
    with (folder / "said").open("w") as said:

        def started(line: Sequence[str]) -> subprocess.Popen[bytes]:
            module = f"distributed.cli.dask_{line[0]}"
            full = [sys.executable, "-m", module, *line[1:], "--scheduler-file", str(file)]
            return subprocess.Popen(full, stdout=said, stderr=said)

        processes = [started(scheduler)]
        try:
            while not (file.exists() and file.read_text(encoding="utf-8")):
                time.sleep(0.05)
            processes.append(started(worker))
            address = json.loads(file.read_text(encoding="utf-8"))["address"]
            yield address.removeprefix("tcp://")
        finally:
            for process in reversed(processes):
                process.terminate()
                process.wait()


def measured(
    way: str,
    matrix: Path,
    out: Path,
    runner: Runner,
    workers: int,
    cache: Path,
    first: Path | None,
    split_bytes: int = SPLIT_BYTES,
) -> Row:
    """Build into ``out`` and compare with the packages of ``first``."""
    result: Result = run(
        read_matrix(matrix), out, runner, str(cache), Progress(), lambda line: say(f"{line}\n"),
        split_bytes,
    )  # fmt: skip
    jobs = result.outcomes
    busy_s = sum(job.seconds for job in jobs)
    row = Row(
        way=way,
        workers=workers,
        wall_s=round(result.seconds, 1),
        cpu_s=round(sum(job.cpu_s for job in jobs), 1),
        busy_s=round(busy_s, 1),
        idle=round(max(0.0, 1 - busy_s / (workers * result.seconds)), 3),
        peak_bytes=max((job.peak_bytes or 0 for job in jobs), default=0),
        predicted_bytes=max((job.predicted_bytes or 0 for job in jobs), default=0),
        over=sum(job.is_over for job in jobs),
        built=result.count("built"),
        reused=result.count("reused"),
        failed=result.count("failed"),
        emitted=sum(len(job.emitted) for job in jobs),
        taken=sum(len(job.taken) for job in jobs),
        same_bytes=digests(out) == digests(first) if first else None,
    )
    say(f"{json.dumps(asdict(row))}\n")
    return row


def full(place: Path, checkpoint: Path, file: Path) -> None:
    """Build one recipe of the full size for three backends on two workers."""
    recipe = (ROOT / "recipes/sd3.5-flash.toml").read_text(encoding="utf-8")
    recipe = recipe.replace('"../sd3.5-flash"', json.dumps(str(checkpoint.absolute())))
    recipe = re.sub(r"(?m)^prompts = \[.*\]$", "prompts = []", recipe)
    (place / "flash.toml").write_text(recipe, encoding="utf-8", newline="\n")
    matrix = place / "full.toml"
    matrix.write_text(
        'recipes = ["flash.toml"]\nbackends = ["onnx", "openvino", "coreml"]\nschemes = ["int4"]\n',
        encoding="utf-8",
        newline="\n",
    )
    out = place / "packages"
    with dask(place / "scheduler", FULL_WORKERS, FULL_LIMIT) as address:
        result = run(
            read_matrix(matrix), out, Cluster(f"dask://{address}"), str(place / "cache"),
            Progress(lambda line, *_: say(f"{line}\n")), lambda line: say(f"{line}\n"),
        )  # fmt: skip
    rows = [
        {
            "way": job.name.rpartition("/")[2],
            "wall_s": job.seconds,
            "cpu_s": job.cpu_s,
            "peak_mb": (job.peak_bytes or 0) / 1e6,
            "predicted_mb": (job.predicted_bytes or 0) / 1e6,
            "emitted": len(job.emitted),
            "package_mb": job.bytes / 1e6,
        }
        for job in result.outcomes
    ]
    busy_s = sum(job.seconds for job in result.outcomes)
    total: dict[str, str | float | None] = {
        "way": "all of them",
        "workers": FULL_WORKERS,
        "wall_s": result.seconds,
        "cpu_s": sum(job.cpu_s for job in result.outcomes),
        "idle_percent": 100 * max(0.0, 1 - busy_s / (FULL_WORKERS * result.seconds)),
        "built": result.count("built"),
    }
    figures.write(file, WHAT_FULL, COLUMNS, [*rows, total])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path, required=True, help="where results are written")
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes/shapes-flash.toml")
    parser.add_argument("--sizes", nargs="+", default=["64x64", "96x64"])
    parser.add_argument("--full", type=Path, metavar="CHECKPOINT", help="of the full size")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    given = parser.parse_args()
    place: Path = given.folder
    place.mkdir(parents=True)
    if given.full:
        full(place, given.full, given.json)
        return
    text = given.recipe.read_text(encoding="utf-8")
    sizes = json.dumps(given.sizes)
    for near in ("../artifacts/shapes-flash", "plans", "shapes-flash.prompts.txt"):
        text = text.replace(f'"{near}', f'"{os.path.normpath(ROOT / "recipes" / near)}')
    text = text.replace('methods = ["feedback", "bias"]', "methods = []")
    text = re.sub(r"(?m)^prompts = \[.*\]$", 'prompts = ["a green triangle"]', text)
    (place / "plain.toml").write_text(text, encoding="utf-8", newline="\n")
    changed = text.replace("[build]", f"{OVERRIDE}\n[build]", 1)
    (place / "changed.toml").write_text(changed, encoding="utf-8", newline="\n")
    matrix = place / "all.toml"
    matrix.write_text(
        MATRIX.format(recipe="plain.toml", sizes=sizes), encoding="utf-8", newline="\n"
    )
    first, rows = place / "local-2", []

    def keep(row: Row) -> None:
        rows.append(row.shown)
        figures.write(given.json, WHAT, COLUMNS, rows)

    keep(measured("local", matrix, first, Local(2), 2, first / "cache", None))
    cold = place / "cold"
    keep(measured("a warm cache", matrix, cold, Local(1), 1, first / "cache", first))
    matrix.write_text(
        MATRIX.format(recipe="changed.toml", sizes=sizes), encoding="utf-8", newline="\n"
    )
    other = place / "changed"
    keep(measured("one graph changed", matrix, other, Local(2), 2, first / "cache", None))
    matrix.write_text(
        MATRIX.format(recipe="plain.toml", sizes=sizes), encoding="utf-8", newline="\n"
    )
    for workers in given.workers:
        out = place / f"dask-{workers}"
        with dask(place / f"scheduler-{workers}", workers) as address:
            where = Cluster(f"dask://{address}")
            keep(measured("Dask", matrix, out, where, workers, out / "cache", first))
    out = place / "graphs"
    keep(measured("every graph a job", matrix, out, Local(2), 2, out / "cache", first, 1))


if __name__ == "__main__":
    main()

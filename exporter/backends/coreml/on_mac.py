"""Checks a fourstep Core ML package with Core ML itself. Run it on a Mac, in the package's folder:

    pip install coremltools numpy safetensors
    python check_on_mac.py [--units ALL|CPU_ONLY|CPU_AND_GPU|CPU_AND_NE] [--compiled FOLDER]

Each graph is compiled to .mlmodelc, run on the golden inputs of the package and compared with the
golden outputs; the median time of a call is shown. Exit code 1 when a graph is out of tolerance.
Written without a Mac at hand: what it calls is documented, what it finds is not known yet.
"""

import argparse
import json
import math
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
from safetensors.numpy import load_file

Ports = dict[str, np.ndarray]
UNITS = ("ALL", "CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE")


def golden_calls(folder: Path, manifest: dict[str, Any], graph: str) -> list[tuple[Ports, Ports]]:
    """Inputs and outputs of each recorded call of a graph."""
    calls: dict[tuple[str, str], tuple[Ports, Ports]] = {}
    for golden in manifest["golden"]["pictures"]:
        for key, value in load_file(folder / golden["tensors"]).items():
            name, _, rest = key.partition("/")
            if name == graph and rest:
                call, side, port = rest.split("/")
                place = calls.setdefault((golden["tensors"], call), ({}, {}))
                place[side == "out"][port] = value
    return list(calls.values())


def check(
    folder: Path, graph: dict[str, Any], manifest: dict[str, Any], units: str, compiled: Path
) -> tuple[float, float]:
    """Largest relative L2 error and median milliseconds of a graph."""
    place = compiled / f"{graph['name']}.mlmodelc"
    shutil.rmtree(place, ignore_errors=True)  # of an earlier run: it would be kept
    ct.models.utils.compile_model(str(folder / graph["entry"]), str(place))
    model = ct.models.CompiledMLModel(str(place), ct.ComputeUnit[units])
    worst, times = 0.0, []
    for inputs, expected in golden_calls(folder, manifest, graph["name"]):
        started = time.perf_counter()
        found = model.predict(inputs)
        times.append(1e3 * (time.perf_counter() - started))
        for port, value in expected.items():
            error = float(np.linalg.norm(np.asarray(found[port], dtype=np.float64) - value))
            size = float(np.linalg.norm(value.astype(np.float64)))
            error = error / size if size else error
            worst = max(worst, math.inf if math.isnan(error) else error)
    return worst, statistics.median(times)


def main() -> int:
    parser = argparse.ArgumentParser(description="Check a Core ML package on a Mac.")
    parser.add_argument("--units", choices=UNITS, default="ALL")
    parser.add_argument("--compiled", type=Path, help="keep the .mlmodelc folders here")
    arguments = parser.parse_args()
    folder = Path(__file__).resolve().parent
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    failed = False
    print(f"{'graph':<12} {'relative error':>15} {'allowed':>8} {'ms':>9}  on {arguments.units}")
    with tempfile.TemporaryDirectory() as temporary:
        compiled = arguments.compiled or Path(temporary)
        compiled.mkdir(parents=True, exist_ok=True)
        for graph in manifest["graphs"]:
            error, median_ms = check(folder, graph, manifest, arguments.units, compiled)
            allowed = graph["tolerance"]["graph_relative"]
            good = error <= allowed
            failed = failed or not good
            mark = "" if good else "  FAILED"
            print(f"{graph['name']:<12} {error:>15.1e} {allowed:>8.0e} {median_ms:>9.1f}{mark}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

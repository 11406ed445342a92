"""Lets every contestant export and draw, and prints a table.

    python -m benchmarks.fullsize FOLDER [--rounds 3] [--only PATTERN ...] [--json FILE]

Everybody draws once, then everybody again, as many rounds as are asked for, so that whatever
changes about the machine meets all of them. Seconds are medians of the rounds; what they spread is
the longest less the shortest, of the median.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from benchmarks import avx2, figures
from benchmarks.fullsize.contestants import (
    ENVIRONMENTS,
    TORCH,
    Contestant,
    Model,
    contestants,
    write_recipe,
)
from benchmarks.fullsize.floor import step_flop
from benchmarks.memcap import Measured, measure, parse_bytes

WHAT = "fourstep and its peers at full size; all rows in one run."
YARDSTICK = "optimum-intel, OpenVINO GenAI int4"
COLUMNS = (
    figures.Column("package", ""),
    figures.Column("error", "error"),
    figures.Column("build_s", "build s"),
    figures.Column("build_anonymous_gib", "build, anonymous GiB", 2),
    figures.Column("package_mb", "package MB"),
    figures.Column("first_s", "first picture s", 1),
    figures.Column("next_s", "next s", 1),
    figures.Column("first_spread", "spread of the first, %"),
    figures.Column("next_spread", "of the next, %"),
    figures.Column("opening_s", "of it opening", 1),
    figures.Column("text_s", "text", 1),
    figures.Column("step_s", "a step", 2),
    figures.Column("vae_s", "VAE", 1),
    figures.Column("cpu_s", "processors' s, both", 1),
    figures.Column("joules", "joules, both"),
    figures.Column("anonymous_gib", "anonymous GiB", 2),
    figures.Column("peak_rss_gib", "peak RSS GiB", 2),
    figures.Column("fits_gib", "fits in GiB", 2),
    figures.Column("genai_first", "GenAI int4 takes, first (times)", 2),
    figures.Column("genai_next", "next (times)", 2),
)
SLOWER = 1.2  # inside a limit than without one: what still counts as fitting
QUIET = {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore", "TOKENIZERS_PARALLELISM": "false"}
Row = dict[str, Any]


def environment(name: str, folder: Path) -> str:
    """The Python of a peer's environment, made when it is not there."""
    place = folder / "environments" / name
    if not (place / "ready").is_file():
        shutil.rmtree(place, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        wanted, unwanted = ENVIRONMENTS[name]
        pip = [str(place / "bin/python"), "-m", "pip", "--disable-pip-version-check", "-q"]
        subprocess.run([*pip, "install", TORCH], check=True)
        subprocess.run([*pip, "install", TORCH, *wanted], check=True)
        if unwanted:
            subprocess.run([*pip, "uninstall", "-y", *unwanted], check=True)
        (place / "ready").touch()
    return str(place / "bin/python")


def older(folder: Path, pythons: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Variables under which each environment, and this one (""), runs as on AVX2."""
    places = {"": sys.executable, **pythons}
    return {
        name: avx2.environment(python, folder / "avx2" / (name or "fourstep"))
        for name, python in places.items()
    }


def run(
    contestant: Contestant,
    limits_bytes: Sequence[int],
    processor: Mapping[str, str] | None = None,
) -> Row:
    """Export unless the package is there, draw, and draw again inside each limit until it fits.

    ``processor``: variables to draw under (``benchmarks.avx2``).
    """
    row: Row = {}
    variables = {**QUIET, **(processor or {})}
    if contestant.export and not contestant.package.is_dir():
        exported = measure(contestant.export, environment=QUIET)
        if not exported.completed:
            shutil.rmtree(contestant.package, ignore_errors=True)
            return {"error": f"export: {_reason(exported)}"}
        row["export"] = _figures(exported)
    if contestant.export:
        row["package_bytes"] = sum(
            f.stat().st_size for f in contestant.package.rglob("*") if f.is_file()
        )
    if contestant.warm:
        measure(contestant.warm, environment=variables)
    drawn = measure(contestant.draw, environment=variables)
    if not drawn.completed:
        return {**row, "error": f"draw: {_reason(drawn)}"}
    row["draw"] = _figures(drawn)
    row["pictures"] = _pictures(drawn)
    for limit_bytes in sorted(limits_bytes):
        try:
            capped = measure(contestant.draw, limit_bytes, variables)
        except OSError as error:
            row["limit"] = f"no memory cgroup can be made here: {error}"
            break
        if capped.completed and capped.seconds <= SLOWER * drawn.seconds:
            row["fits_bytes"] = limit_bytes
            break
    return row


def again(contestant: Contestant, row: Row, processor: Mapping[str, str] | None = None) -> None:
    """Draw once more with what ``run`` exported; whoever failed before is left out."""
    if "pictures" not in row:
        return
    drawn = measure(contestant.draw, environment={**QUIET, **(processor or {})})
    if drawn.completed:
        row.setdefault("further", []).append({**_figures(drawn), "pictures": _pictures(drawn)})
    else:
        row["further_error"] = f"draw: {_reason(drawn)}"


def _pictures(drawn: Measured) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(drawn.output.splitlines()[-1])
    return found


def _figures(found: Measured) -> Row:
    kept = asdict(found)
    return {
        k: kept[k] for k in ("seconds", "cpu_s", "joules", "peak_rss_bytes", "peak_anonymous_bytes")
    }


def _reason(found: Measured) -> str:
    return "killed" if found.exit_code < 0 else f"exit code {found.exit_code}"


def flat(name: str, row: Row) -> figures.Row:
    """A contestant's row of the table: the second picture's stages; what failed is in ``error``."""
    if "pictures" not in row:
        return {"package": name, "error": row["error"]}
    rounds = [{**row["draw"], "pictures": row["pictures"]}, *row.get("further", ())]
    firsts, nexts = zip(*(one["pictures"] for one in rounds), strict=True)
    exported = row.get("export")

    def median(pictures: Sequence[Row], key: str) -> float:
        return statistics.median(float(one[key]) for one in pictures)

    def spread(pictures: Sequence[Row]) -> float | None:
        seconds = [float(one["picture_s"]) for one in pictures]
        if len(seconds) == 1:
            return None
        return 100 * (max(seconds) - min(seconds)) / statistics.median(seconds)

    def whole(key: str) -> float | None:
        values = [one[key] for one in rounds if one.get(key) is not None]
        return statistics.median(values) if values else None

    return {
        "package": name,
        "build_s": exported and exported["seconds"],
        "build_anonymous_gib": exported and exported["peak_anonymous_bytes"] / 2**30,
        "package_mb": row["package_bytes"] / 1e6 if "package_bytes" in row else None,
        "first_s": median(firsts, "picture_s"),
        "next_s": median(nexts, "picture_s"),
        "first_spread": spread(firsts),
        "next_spread": spread(nexts),
        "opening_s": median(nexts, "load_s"),
        "text_s": median(nexts, "text_s"),
        "step_s": min(second for one in nexts for second in one["steps_s"]),
        "vae_s": median(nexts, "vae_s"),
        "cpu_s": whole("cpu_s"),
        "joules": whole("joules"),
        "anonymous_gib": row["draw"]["peak_anonymous_bytes"] / 2**30,
        "peak_rss_gib": row["draw"]["peak_rss_bytes"] / 2**30,
        "fits_gib": row["fits_bytes"] / 2**30 if "fits_bytes" in row else None,
    }


def flattened(rows: Mapping[str, Row]) -> list[figures.Row]:
    """Every contestant's row, and how many times as long GenAI int4 takes at its size and steps.

    Names end in both, such as ``..., 512 px, 4 steps``.
    """
    found = {name: dict(flat(name, row)) for name, row in rows.items()}
    for name, row in found.items():
        size = name.split(", ")[-2:]
        yardstick = found.get(", ".join([YARDSTICK, *size]), {})
        if "first_s" in row and "first_s" in yardstick and row is not yardstick:
            row["genai_first"] = yardstick["first_s"] / row["first_s"]
            row["genai_next"] = yardstick["next_s"] / row["next_s"]
    return list(found.values())


def synthesize(folder: Path, preset: str, t5: bool) -> Path:
    """The checkpoint, unless it is there. Without T5-XXL it has a T5 of one layer.

    Peers refuse a folder without any; ours leave it out.
    """
    checkpoint = folder / (preset if t5 else f"{preset}-no-t5")
    if not (checkpoint / "text_encoder_3").is_dir():
        shutil.rmtree(checkpoint, ignore_errors=True)
        _synth(preset, checkpoint, *(() if t5 else ("--no-t5",)))
        if not t5:
            small = folder / "one-layer-t5"
            _synth("sd3.5-flash-mini", small)
            shutil.move(small / "tokenizer_3", checkpoint / "tokenizer_3")
            shutil.move(small / "model_index.json", checkpoint / "model_index.json")
            shutil.move(small / "text_encoder_3", checkpoint / "text_encoder_3")
            shutil.rmtree(small)
    return checkpoint


def _synth(*arguments: object) -> None:
    command = [sys.executable, "-m", "exporter", "synth", *map(str, arguments)]
    subprocess.run(command, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="fourstep and its peers at full size.")
    parser.add_argument("folder", type=Path, help="of checkpoint, packages and environments")
    parser.add_argument("--preset", default="sd3.5-flash")
    parser.add_argument("--t5", action="store_true", help="with T5-XXL")
    parser.add_argument("--px", type=int, nargs="*", default=[512])
    parser.add_argument("--steps", type=int, nargs="*", default=[4])
    parser.add_argument(
        "--schemes", nargs="*", default=["int4-a8", "int8-w8a8"], help="of fourstep"
    )
    parser.add_argument("--only", nargs="*", default=["*"], help="patterns of contestants")
    parser.add_argument("--limits", type=parse_bytes, nargs="*", default=[], help="such as 2G 3G")
    parser.add_argument("--rounds", type=int, default=3, help="in which everybody draws")
    parser.add_argument(
        "--avx2", action="store_true", help="draw as on a processor without AVX-512 and VNNI"
    )
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    if arguments.avx2 and (reason := avx2.hindrance()):
        parser.error(f"--avx2: {reason}")
    folder = arguments.folder.absolute()
    (folder / "packages").mkdir(parents=True, exist_ok=True)
    checkpoint = synthesize(folder, arguments.preset, arguments.t5)
    rows: dict[str, Row] = {}
    for px in arguments.px:
        for steps in arguments.steps:
            model = Model(checkpoint, px, steps, arguments.t5)
            write_recipe(model, folder)
            everybody = contestants(model, folder, {}, arguments.schemes)
            chosen = [
                c.name for c in everybody if any(fnmatchcase(c.name, p) for p in arguments.only)
            ]
            needed = {c.environment for c in everybody if c.name in chosen} - {""}
            pythons = {name: environment(name, folder) for name in sorted(needed)}
            processors = older(folder, pythons) if arguments.avx2 else {}
            taking_part = [
                c
                for c in contestants(model, folder, pythons, arguments.schemes)
                if c.name in chosen
            ]
            for number in range(arguments.rounds):
                for contestant in taking_part:
                    name = f"{contestant.name}, {px} px, {steps} steps"
                    processor = processors.get(contestant.environment)
                    if number:
                        again(contestant, rows[name], processor)
                    else:
                        rows[name] = run(contestant, arguments.limits, processor)
                    line = figures.markdown(COLUMNS, [flat(name, rows[name])]).splitlines()[-1]
                    print(line, file=sys.stderr, flush=True)
    shown = flattened(rows)
    print(figures.markdown(figures.with_values(COLUMNS, shown), shown))
    own = older(folder, {})[""] if arguments.avx2 else None
    peak = measure([sys.executable, "-m", "benchmarks.fullsize.floor"], environment=own)
    flops = float(peak.output)
    floors = {px: step_flop(px) / flops for px in arguments.px}
    for px, seconds in floors.items():
        print(f"floor: a step at {px} px, unfolded, float32 at {flops / 1e9:.0f} GFLOP/s: "
              f"{seconds:.1f} s")  # fmt: skip
    if arguments.json:
        figures.write(
            arguments.json, WHAT, COLUMNS, shown, runs=rows, peak_flops=flops, floor_s=floors
        )


if __name__ == "__main__":
    main()

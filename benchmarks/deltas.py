"""What an update costs: fourstep delta beside zstd --patch-from and bsdiff on the same pairs.

Both packages of a pair are built without golden pictures and with codes to nearest, so that what
differs is the weights that were changed. The other two get each as one file, its files one after
the other. What they take to apply is measured by ``benchmarks.memcap``.

    python -m benchmarks.deltas FOLDER [--recipe RECIPE] [--schemes int4 ...] [--only PATTERN]
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import figures
from benchmarks.memcap import measure
from exporter.delivery.delta import write_delta
from exporter.delivery.index import DeltaIndex
from exporter.package.read import OWN_FILES
from exporter.runtime.package import Package, open_package

if TYPE_CHECKING:
    from exporter.recipe.recipe import Recipe

RANK, CHANGE = 16, 0.01  # of a LoRA; norm of what it changes, as a part of the weight's
WHAT = "Bytes of updates and what applying them takes: fourstep delta, zstd, bsdiff."
COLUMNS = (
    figures.Column("pair", "from, to"),
    figures.Column("new_mb", "new package, MB", 2),
    figures.Column("own_mb", "tensors and texts that changed, MB", 3),
    figures.Column("delta_mb", "delta, MB", 3),
    figures.Column("zstd_mb", "zstd -19 --patch-from, MB", 3),
    figures.Column("bsdiff_mb", "bsdiff, MB", 3),
    figures.Column("apply_mb", "apply: memory, MB", 0),
    figures.Column("zstd_apply_mb", "zstd -d: memory, MB", 0),
    figures.Column("bsdiff_apply_mb", "bspatch: memory, MB", 0),
)


def write_lora(checkpoint: Path, file: Path) -> None:
    """A LoRA of random values on the attention of every block of a checkpoint's transformer."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    random = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {}
    for part in sorted((checkpoint / "transformer").glob("*.safetensors")):
        with safe_open(part, framework="pt") as stream:
            for name in stream.keys():  # noqa: SIM118
                if ".attn.to_" not in name and ".attn.add_" not in name:
                    continue
                if not name.endswith(".weight"):
                    continue
                weight = stream.get_tensor(name).float().numpy()
                down = random.standard_normal((RANK, weight.shape[1])).astype(np.float32)
                up = random.standard_normal((weight.shape[0], RANK)).astype(np.float32)
                up *= CHANGE * np.linalg.norm(weight) / np.linalg.norm(up @ down)
                layer = f"transformer.{name.removesuffix('.weight')}"
                tensors |= {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}
    save_file(tensors, file)


def built(recipe: Recipe, folder: Path, backend: str, scheme: str) -> Package:
    """A package, built unless it is there."""
    from exporter.build.pipeline import build

    (made,) = build(recipe, folder, [backend], [scheme])
    return open_package(made.path)


def pairs(
    recipe: Recipe, folder: Path, backends: Sequence[str], schemes: Sequence[str], only: str
) -> Iterator[tuple[str, Package, Package]]:
    """What is updated, and both packages, of those whose names match ``only``."""
    from exporter.checkpoint.lora import Lora
    from exporter.quantize.formats import Rule, parse_format

    encoder = "t5" if recipe.cut.t5 else "clip_g"
    rule = Rule(encoder, "*", parse_format("int4-g64"), ("linear",))
    size = replace(recipe.sizes[0], width_px=recipe.sizes[0].width_px * 3 // 2)
    file = folder / "lora.safetensors"
    write_lora(Path(recipe.checkpoint), file)
    tuned = replace(recipe, loras=(Lora(file),))
    other = replace(recipe, overrides=(*recipe.overrides, rule))
    changes = [
        (f"{encoder} in int4", "other", other, "int8"),
        (f"{size} added", "sized", replace(recipe, further_sizes=(size,)), "int8"),
        *(("a LoRA merged", "tuned", tuned, scheme) for scheme in schemes),
    ]
    for backend in backends:
        for what, place, changed, scheme in changes:
            name = f"{backend}-{scheme}, {what}"
            if fnmatchcase(name, only):
                old = built(recipe, folder / "plain", backend, scheme)
                yield name, old, built(changed, folder / place, backend, scheme)


def own_bytes(delta: DeltaIndex) -> int:
    """Of tensors, graphs and texts that the old package has nowhere."""
    return sum(piece.bytes for piece in delta.pieces)


def joined(package: Package, file: Path) -> Path:
    """Every file of a package, one after the other."""
    paths = [*OWN_FILES, *(entry.path for entry in package.manifest.all_files)]
    with file.open("wb") as stream:
        for path in paths:
            if (package.folder / path).exists():
                with (package.folder / path).open("rb") as source:
                    shutil.copyfileobj(source, stream)
    return file


def by_zstd(old: Path, new: Path, work: Path) -> dict[str, float]:
    """Empty where there is no ``zstd``."""
    if shutil.which("zstd") is None:
        return {}
    patch, made = work / "zstd", work / "made"
    options = [f"--patch-from={old}", "--long=31", "--memory=2048MB", "-q", "-f"]
    measure(["zstd", "-19", *options, str(new), "-o", str(patch)])
    applied = measure(["zstd", "-d", *options, str(patch), "-o", str(made)])
    assert made.read_bytes() == new.read_bytes()
    return {"zstd_mb": megabytes(patch), "zstd_apply_mb": applied.peak_anonymous_bytes / 1e6}


def by_bsdiff(old: Path, new: Path, work: Path, most_bytes: int) -> dict[str, float]:
    """Empty without ``bsdiff4``, and for files whose sorting would take all memory."""
    try:
        import bsdiff4
    except ImportError:
        return {}
    if old.stat().st_size > most_bytes:
        return {}
    patch, made = work / "bsdiff", work / "made"
    bsdiff4.file_diff(str(old), str(new), str(patch))
    said = f"import bsdiff4; bsdiff4.file_patch({str(old)!r}, {str(made)!r}, {str(patch)!r})"
    applied = measure([sys.executable, "-c", said])
    assert made.read_bytes() == new.read_bytes()
    return {"bsdiff_mb": megabytes(patch), "bsdiff_apply_mb": applied.peak_anonymous_bytes / 1e6}


def megabytes(file: Path) -> float:
    return file.stat().st_size / 1e6


def row_of(name: str, old: Package, new: Package, work: Path, most_bytes: int) -> dict[str, Any]:
    """One line of the table."""
    file, target = work / "delta", work / "target"
    started = time.perf_counter()
    delta = write_delta(old, new, file)
    seconds = time.perf_counter() - started
    shutil.rmtree(target, ignore_errors=True)
    command = [sys.executable, "-m", "exporter", "apply", str(file)]
    applied = measure([*command, "--to", str(old.folder), "-o", str(target)])
    assert open_package(target).sha256 == new.sha256
    before, after = joined(old, work / "old"), joined(new, work / "new")
    return {
        "pair": name,
        "new_mb": megabytes(after),
        "own_mb": own_bytes(delta) / 1e6,
        "delta_mb": megabytes(file),
        "apply_mb": applied.peak_anonymous_bytes / 1e6,
        "delta_s": seconds,
        "apply_s": applied.seconds,
        **by_zstd(before, after, work),
        **by_bsdiff(before, after, work, most_bytes),
    }


def main() -> None:
    from exporter.recipe.recipe import read_recipe

    parser = argparse.ArgumentParser(description="Updates by fourstep, zstd and bsdiff.")
    parser.add_argument("folder", type=Path, help="where packages are built")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/shapes-flash.toml"))
    parser.add_argument("--backends", nargs="+", default=["onnx", "openvino", "coreml"])
    parser.add_argument("--schemes", nargs="+", default=["int4", "int8", "fp16"])
    parser.add_argument("--only", default="*", help="a pattern of pairs")
    parser.add_argument("--most-mb", type=int, default=300, help="of a package for bsdiff")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    work = arguments.folder / "work"
    work.mkdir(parents=True, exist_ok=True)
    recipe = read_recipe(arguments.recipe)
    nearest = replace(recipe.calibration, methods=())
    recipe = replace(recipe, prompts=(), calibration=nearest)
    rows = []
    chosen = (arguments.backends, arguments.schemes, arguments.only)
    for name, old, new in pairs(recipe, arguments.folder, *chosen):
        rows.append(row_of(name, old, new, work, arguments.most_mb * 1_000_000))
        print(rows[-1], file=sys.stderr, flush=True)
    print(figures.markdown(figures.with_values(COLUMNS, rows), rows))
    if arguments.json:
        figures.write(arguments.json, WHAT, COLUMNS, rows)


if __name__ == "__main__":
    main()

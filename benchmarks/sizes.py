"""What a second size costs a package, and whether a batch of two pictures would cost less than two.

Bytes: shapes-flash for 128 x 128 and 160 x 96 px without golden pictures, weights to nearest: what
the graphs of the second size add, over the package of the first alone.

Batches: a layer of the full-size denoiser, 1536 to 6144 in int4, for the tokens of one picture and
of two in one call: processor seconds of one thread for each picture, the fastest of seven. 64 rows
are 128 px, 256 are 256 px, 1024 are 512 px.

With a checkpoint, which may be of any width: packages of several sizes in int4, what each further
size adds, and whether each draws what a package of that size alone draws, to the last bit.

    python -m benchmarks.sizes [--only bytes|batches] [--json FILE] [BACKEND ...]
    python -m benchmarks.sizes --checkpoint FOLDER [--sizes SIZE SIZE ...] [BACKEND ...]

BACKEND: of the bytes, such as ``onnx`` or ``"coreml for iOS18"``; without any all of them.
FILE: for what further sizes add.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import figures
from benchmarks.figures import Column, Row

if TYPE_CHECKING:
    from exporter.package.sizes import PictureSize
    from exporter.recipe.recipe import Recipe
    from exporter.runtime.package import Package

WIDTH, OUTPUTS, GROUP, RUNS = 1536, 6144, 64, 7
ROWS = (64, 256, 1024)
SCHEMES = {
    "onnx": ("fp32", "fp16", "int8", "int8-w8a8", "int4"),
    "openvino": ("fp32", "fp16", "int8", "int8-w8a8", "int4", "int4-a8"),
    "coreml": ("fp32", "fp16", "int8", "int4", "pal6", "pal4", "pal4-grouped"),
}
SCHEMES["coreml for iOS18"] = SCHEMES["coreml"]  # with that target, in place of the oldest
WHAT = "Bytes that a second size of 160 x 96 px adds to shapes-flash without golden pictures."
WIDE = "What further sizes add to packages in int4, and whether their pictures are a size's own."
COLUMNS = (
    Column("package", "package"),
    Column("sizes", "sizes"),
    Column("first_mb", "of the first size alone, MB", 2),
    Column("added_kb", "a further size adds, kB", 0),
    Column("added_percent", "%", 2),
    Column("differ", "values of pictures that differ"),
)
Call = Callable[[np.ndarray], object]


def without_golden(recipe: Recipe, backend: str, target: str) -> Recipe:
    """The recipe with weights to nearest and no golden pictures, and a backend's target."""
    nearest = replace(recipe.calibration, methods=())
    choices = tuple(
        replace(one, choices={**one.choices, "target": target})
        if target and one.name == backend
        else one
        for one in recipe.choices
    )
    return replace(recipe, prompts=(), calibration=nearest, choices=choices)


def added(name: str, schemes: Sequence[str], folder: Path) -> list[Row]:
    """What a second size adds to the packages of a backend, which may be for a target."""
    from exporter.build.pipeline import build
    from exporter.package.sizes import PictureSize, sized_files
    from exporter.recipe.recipe import read_recipe
    from exporter.runtime.package import open_package

    backend, _, target = name.partition(" for ")
    recipe = without_golden(read_recipe(Path("recipes") / "shapes-flash.toml"), backend, target)
    found = []
    for sizes in ((), (PictureSize(160, 96),)):
        place = folder / f"{name}-{len(sizes)}"
        built = build(replace(recipe, further_sizes=sizes), place, [backend], schemes)
        found.append([open_package(one.path).manifest for one in built])
    rows: list[Row] = []
    for scheme, alone, both in zip(schemes, *found, strict=True):
        assert sized_files(both)
        more = both.bytes - alone.bytes
        rows.append(
            {
                "package": f"{backend}-{scheme}{target and f', {target}'}",
                "first_mb": alone.bytes / 1e6,
                "added_kb": more / 1e3,
                "added_percent": 100 * more / alone.bytes,
            }
        )
    return rows


def beside_alone(name: str, checkpoint: Path, sizes: Sequence[str], folder: Path) -> Row:
    """A package of several sizes in int4 beside packages of each of them alone."""
    from exporter.build.pipeline import build
    from exporter.package.sizes import parse_size
    from exporter.recipe.recipe import read_recipe
    from exporter.runtime.package import open_package

    backend, _, target = name.partition(" for ")
    recipe = read_recipe(Path("recipes") / "sd3.5-flash.toml")
    first, *further = map(parse_size, sizes)
    recipe = replace(
        without_golden(recipe, backend, target).at(first),
        checkpoint=str(checkpoint),
        further_sizes=tuple(further),
        calibration=replace(recipe.calibration, size=first),
    )
    (built,) = build(recipe, folder / "together", [backend], ["int4"])
    together = open_package(built.path)
    alone_bytes, differ = [], 0
    for size in recipe.sizes:
        (made,) = build(recipe.at(size), folder / str(size), [backend], ["int4"])
        alone = open_package(made.path)
        alone_bytes.append(alone.manifest.bytes)
        differ += int(np.sum(picture(together, size) != picture(alone, size)))
        shutil.rmtree(made.path)
    more = (together.manifest.bytes - alone_bytes[0]) / len(further)
    return {
        "package": f"{backend}-int4{target and f', {target}'}",
        "sizes": ", ".join(map(str, recipe.sizes)),
        "first_mb": alone_bytes[0] / 1e6,
        "added_kb": more / 1e3,
        "added_percent": 100 * more / alone_bytes[0],
        "differ": differ,
    }


def picture(package: Package, size: PictureSize) -> np.ndarray:
    """(H, W, 3) uint8: one that a package draws, its graphs opened in turn."""
    from exporter.drawing.loop import Image, Request, generate

    with package.player() as player:
        events = generate(player, [Request("a red fox in the snow", 5, size=size)])
        (found,) = [event.pixels for event in events if isinstance(event, Image)]
    return found


def onnx_layer(rows: int) -> Call:
    """The layer in onnxruntime, on one thread."""
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    groups = WIDTH // GROUP
    codes = random.integers(0, 255, (OUTPUTS, groups, GROUP // 2), dtype=np.uint8)
    scales = random.random(OUTPUTS * groups, dtype=np.float32)
    node = helper.make_node(
        "MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft",
        K=WIDTH, N=OUTPUTS, bits=4, block_size=GROUP, accuracy_level=4,
    )  # fmt: skip
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [rows, width])
        for name, width in (("x", WIDTH), ("y", OUTPUTS))
    )
    weights = [numpy_helper.from_array(codes, "w"), numpy_helper.from_array(scales, "s")]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "layer", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x})


def openvino_layer(rows: int) -> Call:
    """The layer in OpenVINO, on one thread."""
    import openvino as ov
    from openvino import opset15 as op

    random = np.random.default_rng(0)
    shape = (OUTPUTS, WIDTH // GROUP, GROUP)
    codes = random.integers(0, 255, OUTPUTS * WIDTH // 2, dtype=np.uint8)
    x = op.parameter([rows, WIDTH], ov.Type.f32)
    weight: Any = op.constant(ov.Tensor(codes, ov.Shape(list(shape)), ov.Type.i4))
    scale = op.constant(random.random((*shape[:2], 1), dtype=np.float32))
    weight = op.multiply(op.convert(weight, "f32"), scale)
    weight = op.reshape(weight, op.constant(np.array([OUTPUTS, WIDTH])), False)
    result = op.result(op.matmul(x, weight, False, True).output(0))
    settings = {
        "INFERENCE_NUM_THREADS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": GROUP,
    }
    compiled = ov.Core().compile_model(ov.Model([result], [x], "layer"), "CPU", settings)
    request = compiled.create_infer_request()
    return lambda given: request.infer([given])


def fastest_s(call: Call, rows: int) -> float:
    """Processor seconds of the fastest call."""
    x = np.random.default_rng(1).standard_normal((rows, WIDTH)).astype(np.float32)
    call(x)
    taken = []
    for _ in range(RUNS):
        started = time.process_time()
        call(x)
        taken.append(time.process_time() - started)
    return min(taken)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("backends", nargs="*", metavar="BACKEND")
    parser.add_argument("--only", choices=("bytes", "batches"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--sizes", nargs="+", default=["256x256", "384x256", "256x384"])
    given = parser.parse_args()
    if given.checkpoint:
        rows = []
        for name in given.backends or SCHEMES:
            with tempfile.TemporaryDirectory() as place:
                rows.append(beside_alone(name, given.checkpoint, given.sizes, Path(place)))
            print(rows[-1], flush=True)
        if given.json:
            figures.write(given.json, WIDE, COLUMNS, rows)
        return
    if given.only != "batches":
        rows = []
        for name in given.backends or SCHEMES:
            with tempfile.TemporaryDirectory() as place:
                rows += added(name, SCHEMES[name], Path(place))
            for row in rows[-len(SCHEMES[name]) :]:
                print(f"{row['package']:<27} {row['added_percent']:+.2f} %", flush=True)
        if given.json:
            figures.write(given.json, WHAT, COLUMNS, rows)
    if given.only != "bytes":
        for name, layer in (("onnx", onnx_layer), ("openvino", openvino_layer)):
            for size in ROWS:
                one, two = (fastest_s(layer(n * size), n * size) / n for n in (1, 2))
                batched = f"in a batch of two {two / one:.2f} of it"
                print(f"{name:<9} {size:>5} rows  {1e3 * one:6.1f} ms, {batched}", flush=True)


if __name__ == "__main__":
    main()

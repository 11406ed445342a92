"""Which road into OpenVINO gives the better graph on the CPU, and which form of an operator.

Roads: two blocks of the full-size denoiser for 512 x 512 px, with random weights, written
  ours           operator by operator from the program, as the package holds it;
  onnx           by the ONNX backend, read by OpenVINO's ONNX front end;
  torch.export   from the same module by ov.convert_model (float32 only).
Each file runs in a process of its own, in float32: nodes of the runtime graph, how many of them are
fused attention, RMS norm, MVN, and fully connected, the precisions of the weights that those read
(with a star: through another node, such as a transpose), seconds to compile, the best of five runs
in ms, and peak resident memory.

Forms: one operator each, at the same shapes. The first form listed of each operator is the one that
the emitter writes; the ratio is against it.

    python -m benchmarks.openvino_forms [--json FILE] [--only roads|forms]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import figures

TOKENS, HEADS, HEAD, WIDTH = 1102, 24, 64, 1536  # 1024 image tokens, 77 of CLIP, one null token
RUNS = 5
WHAT = "Forms of an operator in OpenVINO, at the full size's shapes; the first is what we write."
COLUMNS = (
    figures.Column("operator", "operator"),
    figures.Column("form", "form"),
    figures.Column("ms", "ms", 2),
    figures.Column("nodes", "runtime nodes"),
)
F32 = {"INFERENCE_PRECISION_HINT": "f32"}
ROADS = (
    ("ours", "fp32"),
    ("onnx", "fp32"),
    ("torch.export", "fp32"),
    ("ours", "int8"),
    ("onnx", "int8"),
    ("ours", "int4"),
    ("onnx", "int4"),
)


class RandomWeights:
    """Reads the tensors of a program as ``Weights`` does: the same values for the same name."""

    def __init__(self) -> None:
        self._last: tuple[object, Any] = (None, None)

    def read(self, source: object) -> Any:
        import torch

        from exporter.program.program import Constant
        from exporter.quantize.nearest import encode
        from exporter.quantize.program import Part

        if isinstance(source, Constant):
            return torch.from_numpy(source.value).float()
        if not isinstance(source, Part):
            return _random(source)
        if self._last[0] != (source.of, source.format):
            self._last = ((source.of, source.format), encode(_random(source.of), source.format))
        return getattr(self._last[1], source.part)


def _random(stored: Any) -> Any:
    import torch

    generator = torch.Generator().manual_seed(zlib.crc32(stored.name.encode()))
    values = torch.randn(stored.shape, generator=generator)
    is_norm = values.ndim == 1 and stored.name.endswith("weight")
    return values * 0.1 + 1 if is_norm else values * 0.02


def denoiser() -> Any:
    """The graph before tracing: SD3.5 Medium's widths, two blocks, one with dual attention."""
    from exporter.network.cut import Cut
    from exporter.network.denoiser import TransformerConfig, cut

    config = TransformerConfig(2, HEADS, HEAD, 16, 2, 4096, 2048, 384, (0,), True)
    return cut(config, Cut((1.0, 0.0), 512, 512, t5=False, t5_tokens=256))


def write(road: str, scheme: str, folder: Path) -> Path:
    """Write the denoiser; returns the file that OpenVINO reads."""
    from exporter import backends
    from exporter.program.trace import trace
    from exporter.quantize.program import quantize
    from exporter.quantize.schemes import load_scheme

    program = trace(denoiser())
    weights = RandomWeights()
    if road == "torch.export":
        return _convert(program, weights, folder)
    backend = backends.load({"ours": "openvino", "onnx": "onnx"}[road])
    quantized = quantize(program, load_scheme(scheme).format_of)
    emitted: backends.Emitted = backend.emit(
        quantized, weights.read, folder, backends.EmitOptions({})
    )
    return emitted.entry


def _convert(program: Any, weights: RandomWeights, folder: Path) -> Path:
    import openvino as ov
    import torch

    from exporter.program.program import Stored

    graph = denoiser()
    module = graph.module.to_empty(device="cpu").eval()
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    with torch.no_grad():
        for source in program.tensors.values():
            if isinstance(source, Stored):
                named[source.name].copy_(_random(source))
        for name, value in graph.constants.items():
            named[name].copy_(torch.from_numpy(value))
        inputs = tuple(torch.randn(p.shape) for p in graph.inputs)
        exported = torch.export.export(module, inputs, strict=False)
    exported = exported.run_decompositions({torch.ops.fourstep.attention.default: _attention})
    model = ov.convert_model(exported)
    for port, parameter in zip(graph.inputs, model.inputs, strict=True):
        parameter.get_tensor().set_names({port.name})
    model.reshape({port.name: list(port.shape) for port in graph.inputs})
    file = folder / "denoiser.xml"
    ov.save_model(model, file, compress_to_fp16=False)
    return file


def _attention(q: Any, k: Any, v: Any, heads: int, scale: float, bias: Any) -> Any:
    from torch.nn import functional as F

    q, k, v = (t.reshape(*t.shape[:2], heads, -1).transpose(1, 2) for t in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    return mixed.transpose(1, 2).flatten(2)


def measure_file(file: Path, reference: Path) -> dict[str, Any]:
    """Figures of one file in this process; its relative error against ``reference``'s outputs."""
    import openvino as ov

    core = ov.Core()
    started = time.perf_counter()
    try:
        compiled = core.compile_model(str(file), "CPU", F32)
    except RuntimeError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        return {"refused": lines[-1].strip()}
    compile_s = time.perf_counter() - started
    rng = np.random.default_rng(0)
    inputs = {i.any_name: rng.standard_normal(tuple(i.shape), np.float32) for i in compiled.inputs}
    request = compiled.create_infer_request()
    found = np.array(request.infer(inputs)[compiled.outputs[0]])
    best = min(_timed(lambda: request.infer(inputs)) for _ in range(RUNS))
    if not reference.exists():
        np.save(reference, found)
    expected = np.load(reference)
    return {
        **described(compiled.get_runtime_model()),
        "compile_s": compile_s,
        "ms": best * 1e3,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "error": float(np.linalg.norm(found - expected) / np.linalg.norm(expected)),
    }


def described(model: Any) -> dict[str, Any]:
    """Counts of a runtime graph, and the precisions of the weights of its layers."""
    kinds, weights, attention = Counter[str](), Counter[str](), 0
    for node in model.get_ordered_ops():
        kind, names = _property(node, "layerType"), _property(node, "originalLayersNames")
        kinds[kind] += 1
        attention += kind == "ScaledDotProductAttention"
        attention += kind == "Subgraph" and "softmax" in names.lower()
        if kind == "FullyConnected":
            weight = node.input_value(1).get_node()
            star = "" if _property(weight, "layerType") == "Const" else "*"
            weights[_property(weight, "outputPrecisions") + star] += 1
    return {
        "nodes": kinds.total() - kinds["Const"],
        "attention": attention,
        "softmax": kinds["Softmax"],
        "rms": kinds["RMS"],
        "mvn": kinds["MVN"],
        "fully_connected": kinds["FullyConnected"],
        "matmul": kinds["MatMul"],
        "weights": dict(sorted(weights.items())),
    }


def _property(node: Any, key: str) -> str:
    return str(node.get_rt_info()[key].value)


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


Inputs = dict[str, tuple[int, ...]]
Form = tuple[Inputs, Callable[[Mapping[str, Any]], Any]]


def _ints(values: Any) -> Any:
    from openvino import opset15 as op

    return op.constant(np.array(values, dtype=np.int64))


def _ones(*shape: int) -> Any:
    from openvino import opset15 as op

    return op.constant(np.random.default_rng(0).standard_normal(shape, np.float32))


HEADED: Inputs = {"x": (1, TOKENS, HEADS, HEAD)}


def _mean_square(x: Any) -> Any:
    from openvino import opset15 as op

    mean = op.reduce_mean(op.power(x, op.constant(np.float32(2))), _ints([-1]), True)
    return op.sqrt(op.add(mean, op.constant(np.float32(1e-6))))


def rms_divide(n: Mapping[str, Any]) -> Any:
    from openvino import opset15 as op

    return op.multiply(op.divide(n["x"], _mean_square(n["x"])), _ones(HEAD))


def rms_reciprocal(n: Mapping[str, Any]) -> Any:
    from openvino import opset15 as op

    reciprocal = op.divide(op.constant(np.float32(1)), _mean_square(n["x"]))
    return op.multiply(op.multiply(n["x"], reciprocal), _ones(HEAD))


def rms_multiply(n: Mapping[str, Any]) -> Any:
    """x * x in place of a power."""
    from openvino import opset15 as op

    mean = op.reduce_mean(op.multiply(n["x"], n["x"]), _ints([-1]), True)
    root = op.sqrt(op.add(mean, op.constant(np.float32(1e-6))))
    return op.multiply(op.divide(n["x"], root), _ones(HEAD))


MODULATED: Inputs = {"x": (1, 1024, WIDTH), "scale": (WIDTH,), "shift": (WIDTH,)}


def adaln_mvn(n: Mapping[str, Any]) -> Any:
    from openvino import opset15 as op

    normed = op.mvn(n["x"], _ints([-1]), True, 1e-6, "inside_sqrt")
    return op.add(op.multiply(normed, n["scale"]), n["shift"])


def adaln_decomposed(n: Mapping[str, Any]) -> Any:
    from openvino import opset15 as op

    centred = op.subtract(n["x"], op.reduce_mean(n["x"], _ints([-1]), True))
    normed = op.divide(centred, _mean_square(centred))
    return op.add(op.multiply(normed, n["scale"]), n["shift"])


GROUPED: Inputs = {"x": (1, 128, 512, 512)}


def group_norm_operator(n: Mapping[str, Any]) -> Any:
    from openvino import opset15 as op

    return op.group_normalization(n["x"], _ones(128), _ones(128), 32, 1e-6)


def group_norm_mvn(n: Mapping[str, Any]) -> Any:
    from openvino import opset15 as op

    groups = op.reshape(n["x"], _ints([1, 32, -1]), False)
    normed = op.mvn(groups, _ints([2]), True, 1e-6, "inside_sqrt")
    back = op.reshape(normed, _ints(GROUPED["x"]), False)
    return op.add(op.multiply(back, _ones(1, 128, 1, 1)), _ones(1, 128, 1, 1))


PACKED: Inputs = dict.fromkeys("qkv", (1, TOKENS, WIDTH))


def _heads(x: Any) -> Any:
    from openvino import opset15 as op

    split = op.reshape(x, _ints([1, TOKENS, HEADS, HEAD]), False)
    return op.transpose(split, _ints([0, 2, 1, 3]))


def _joined(x: Any) -> Any:
    from openvino import opset15 as op

    return op.reshape(op.transpose(x, _ints([0, 2, 1, 3])), _ints(PACKED["q"]), False)


def attention_operator(n: Mapping[str, Any]) -> Any:
    from openvino import opset15 as op

    mask, scale = op.constant(np.float32(0)), op.constant(np.float32(HEAD**-0.5))
    parts = [_heads(n[name]) for name in "qkv"]
    return _joined(op.scaled_dot_product_attention(*parts, mask, scale, causal=False))


def attention_products(n: Mapping[str, Any]) -> Any:
    from openvino import opset15 as op

    q, k, v = (_heads(n[name]) for name in "qkv")
    logits = op.multiply(op.matmul(q, k, False, True), op.constant(np.float32(HEAD**-0.5)))
    return _joined(op.matmul(op.softmax(logits, -1), v, False, False))


FORMS: dict[str, dict[str, Form]] = {
    "RMSNorm, 1102 x 24 x 64": {
        "Power ... Divide, Multiply": (HEADED, rms_divide),
        "1 / Sqrt, Multiply, Multiply": (HEADED, rms_reciprocal),
        "x * x ... Divide, Multiply": (HEADED, rms_multiply),
    },
    "adaLN, 1024 x 1536": {
        "MVN, Multiply, Add": (MODULATED, adaln_mvn),
        "decomposed": (MODULATED, adaln_decomposed),
    },
    "GroupNorm, 128 x 512 x 512": {
        "GroupNormalization-12": (GROUPED, group_norm_operator),
        "Reshape, MVN, Reshape": (GROUPED, group_norm_mvn),
    },
    "attention, 1102 tokens": {
        "ScaledDotProductAttention-13": (PACKED, attention_operator),
        "MatMul, Softmax, MatMul": (PACKED, attention_products),
    },
}


def measure_form(operator: str, name: str) -> dict[str, Any]:
    """Time and runtime nodes of one form, in this process."""
    import openvino as ov
    from openvino import opset15 as op

    shapes, make = FORMS[operator][name]
    inputs = {n: op.parameter(list(s), ov.Type.f32, name=n) for n, s in shapes.items()}
    model = ov.Model([op.result(make(inputs))], list(inputs.values()), "form")
    compiled = ov.Core().compile_model(model, "CPU", F32)
    rng = np.random.default_rng(0)
    values = [rng.standard_normal(s, np.float32) for s in shapes.values()]
    request = compiled.create_infer_request()
    request.infer(values)
    best = min(_timed(lambda: request.infer(values)) for _ in range(2 * RUNS))
    kinds = Counter(_property(n, "layerType") for n in compiled.get_runtime_model().get_ops())
    hidden = ("Input", "Output", "Const")
    nodes = " ".join(f"{kind}:{n}" for kind, n in sorted(kinds.items()) if kind not in hidden)
    return {"ms": best * 1e3, "nodes": nodes}


def child(*arguments: object) -> dict[str, Any]:
    """What this module prints in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.openvino_forms", "--one", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"refused": done.stderr.strip().splitlines()[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def answer(kind: str, *arguments: str) -> dict[str, Any]:
    if kind == "write":
        return {"file": str(write(arguments[0], arguments[1], Path(arguments[2])))}
    if kind == "file":
        return measure_file(Path(arguments[0]), Path(arguments[1]))
    return measure_form(*arguments)


def roads() -> list[dict[str, Any]]:
    rows = []
    print(
        f"{'road':<13} {'scheme':<6} {'nodes':>5} {'attn':>4} {'RMS':>4} {'MVN':>4} {'FC':>3} "
        f"{'weights':<16} {'compile s':>9} {'ms':>6} {'peak MB':>7} {'from ours':>9}"
    )
    with tempfile.TemporaryDirectory() as folder:
        for road, scheme in ROADS:
            place = Path(folder) / f"{road}-{scheme}"
            place.mkdir()
            row = child("write", road, scheme, place)
            if "file" in row:
                row = child("file", row["file"], Path(folder) / f"{scheme}.npy")
            rows.append({"road": road, "scheme": scheme, **row})
            print(_line(rows[-1]), flush=True)
            for file in place.iterdir():
                file.unlink()
    return rows


def _line(row: Mapping[str, Any]) -> str:
    start = f"{row['road']:<13} {row['scheme']:<6} "
    if "refused" in row:
        return start + f"refused: {row['refused']}"
    weights = ", ".join(f"{kind} {n}" for kind, n in row["weights"].items())
    return start + (
        f"{row['nodes']:>5} {row['attention']:>4} {row['rms']:>4} {row['mvn']:>4} "
        f"{row['fully_connected']:>3} {weights:<16} {row['compile_s']:>9.1f} {row['ms']:>6.0f} "
        f"{row['peak_bytes'] / 1e6:>7.0f} {row['error']:>9.1e}"
    )


def forms() -> list[dict[str, Any]]:
    rows = []
    print(f"{'operator':<27} {'form':<29} {'ms':>7} {'ratio':>6}  runtime nodes")
    for operator, listed in FORMS.items():
        first_ms = 0.0
        for name in listed:
            found = child("form", operator, name)
            first_ms = first_ms or found["ms"]
            rows.append({"operator": operator, "form": name, **found})
            ratio = found["ms"] / first_ms
            print(f"{operator:<27} {name:<29} {found['ms']:>7.2f} {ratio:>6.2f}  {found['nodes']}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Roads into OpenVINO and forms of operators.")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--only", choices=("roads", "forms"), help="half of the figures")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(answer(*arguments.one)))
        return
    found = {
        "roads": [] if arguments.only == "forms" else roads(),
        "forms": [] if arguments.only == "roads" else forms(),
    }
    if arguments.json:
        figures.write(arguments.json, WHAT, COLUMNS, found["forms"], roads=found["roads"])


if __name__ == "__main__":
    main()

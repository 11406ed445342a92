"""Which ONNX form of an operator onnxruntime's CPU provider runs best, in time and memory.

Each form runs in a process of its own at the full-size model's shapes for 512 x 512 px: best of
five runs in ms, and how far the first run lifts the peak resident memory. The first form listed of
each operator is the one that the emitter writes; the ratio is against it.

    python -m benchmarks.onnx_forms [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper

from benchmarks import figures

TOKENS, HEADS, HEAD, WIDTH = 1102, 24, 64, 1536  # 1024 image tokens, 77 of CLIP, one null token
RUNS = 5
MS_DOMAIN = "com.microsoft"
WHAT = "Forms of an operator in ONNX, at the full size's shapes; the first is what fourstep writes."
COLUMNS = (
    figures.Column("operator", "operator"),
    figures.Column("form", "form"),
    figures.Column("ms", "ms", 1),
    figures.Column("extra_mb", "more MB"),
)

Nodes = list[onnx.NodeProto]
Form = tuple[Nodes, dict[str, tuple[int, ...]], dict[str, np.ndarray], tuple[int, ...], int]


def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    domain, _, name = kind.rpartition(":")
    return helper.make_node(name, inputs, [output], domain=domain, **attributes)


def attention_mha() -> Form:
    shape = (1, TOKENS, WIDTH)
    mixed = node(
        f"{MS_DOMAIN}:MultiHeadAttention", ["q", "k", "v"], "y", num_heads=HEADS, scale=0.125
    )
    return [mixed], dict.fromkeys("qkv", shape), {}, shape, 21


def attention_mha_bias() -> Form:
    shape = (1, TOKENS, WIDTH)
    inputs = ["q", "k", "v", "", "", "b"]
    mixed = node(f"{MS_DOMAIN}:MultiHeadAttention", inputs, "y", num_heads=HEADS, scale=0.125)
    bias = {"b": np.zeros((1, 1, TOKENS, TOKENS), np.float32)}
    return [mixed], dict.fromkeys("qkv", shape), bias, shape, 21


def attention_standard() -> Form:
    shape = (1, TOKENS, WIDTH)
    attributes = {"q_num_heads": HEADS, "kv_num_heads": HEADS, "scale": 0.125}
    return (
        [node("Attention", ["q", "k", "v"], "y", **attributes)],
        dict.fromkeys("qkv", shape),
        {},
        shape,
        23,
    )


def attention_decomposed() -> Form:
    shape = (1, TOKENS, WIDTH)
    constants = {
        "heads": np.array([1, TOKENS, HEADS, HEAD]),
        "flat": np.array(shape),
        "scale": np.array(0.125, np.float32),
    }
    nodes = []
    for name, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes.append(node("Reshape", [name, "heads"], f"{name}4"))
        nodes.append(node("Transpose", [f"{name}4"], f"{name}t", perm=perm))
    nodes += [
        node("MatMul", ["qt", "kt"], "logits"),
        node("Mul", ["logits", "scale"], "scaled"),
        node("Softmax", ["scaled"], "weights", axis=-1),
        node("MatMul", ["weights", "vt"], "mixed"),
        node("Transpose", ["mixed"], "back", perm=[0, 2, 1, 3]),
        node("Reshape", ["back", "flat"], "y"),
    ]
    return nodes, dict.fromkeys("qkv", shape), constants, shape, 21


GROUPED = (1, 128, 512, 512)


def group_norm_instance() -> Form:
    constants = {
        "groups": np.array([1, 32, -1]),
        "shape": np.array(GROUPED),
        "ones": np.ones(32, np.float32),
        "zeros": np.zeros(32, np.float32),
        "w": np.ones((128, 1, 1), np.float32),
        "b": np.ones((128, 1, 1), np.float32),
    }
    nodes = [
        node("Reshape", ["x", "groups"], "g"),
        node("InstanceNormalization", ["g", "ones", "zeros"], "n", epsilon=1e-6),
        node("Reshape", ["n", "shape"], "s"),
        node("Mul", ["s", "w"], "m"),
        node("Add", ["m", "b"], "y"),
    ]
    return nodes, {"x": GROUPED}, constants, GROUPED, 21


def group_norm_standard() -> Form:
    constants = {"w": np.ones(128, np.float32), "b": np.ones(128, np.float32)}
    norm = node("GroupNormalization", ["x", "w", "b"], "y", num_groups=32, epsilon=1e-6)
    return [norm], {"x": GROUPED}, constants, GROUPED, 21


HIDDEN = (1, 1024, 4 * WIDTH)


def gelu_standard() -> Form:
    return [node("Gelu", ["x"], "y", approximate="tanh")], {"x": HIDDEN}, {}, HIDDEN, 21


def gelu_fast() -> Form:
    return [node(f"{MS_DOMAIN}:FastGelu", ["x"], "y")], {"x": HIDDEN}, {}, HIDDEN, 21


def gelu_decomposed() -> Form:
    """x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    names = {"three": 3.0, "c": 0.044715, "r": 0.7978845608, "one": 1.0, "half": 0.5}
    constants = {k: np.array(v, np.float32) for k, v in names.items()}
    nodes = [
        node("Pow", ["x", "three"], "p"),
        node("Mul", ["p", "c"], "pc"),
        node("Add", ["x", "pc"], "s"),
        node("Mul", ["s", "r"], "sr"),
        node("Tanh", ["sr"], "t"),
        node("Add", ["t", "one"], "t1"),
        node("Mul", ["x", "half"], "h"),
        node("Mul", ["h", "t1"], "y"),
    ]
    return nodes, {"x": HIDDEN}, constants, HIDDEN, 21


HEADED = (1, TOKENS, HEADS, HEAD)


def rms_norm_fusable() -> Form:
    constants = {
        "two": np.array(2.0, np.float32),
        "axes": np.array([-1]),
        "eps": np.array(1e-6, np.float32),
        "w": np.ones(HEAD, np.float32),
    }
    nodes = [
        node("Pow", ["x", "two"], "p"),
        node("ReduceMean", ["p", "axes"], "m", keepdims=1),
        node("Add", ["m", "eps"], "a"),
        node("Sqrt", ["a"], "r"),
        node("Div", ["x", "r"], "u"),
        node("Mul", ["u", "w"], "y"),
    ]
    return nodes, {"x": HEADED}, constants, HEADED, 21


def rms_norm_standard() -> Form:
    norm = node("RMSNormalization", ["x", "w"], "y", axis=-1, epsilon=1e-6)
    return [norm], {"x": HEADED}, {"w": np.ones(HEAD, np.float32)}, HEADED, 23


def layer_norm_modulated() -> Form:
    """The norm's weight and bias are the modulation: one pass over the activations."""
    shape = (1, 1024, WIDTH)
    norm = node("LayerNormalization", ["x", "scale", "shift"], "y", axis=-1, epsilon=1e-6)
    return [norm], {"x": shape, "scale": (WIDTH,), "shift": (WIDTH,)}, {}, shape, 21


def layer_norm_then_modulate() -> Form:
    shape = (1, 1024, WIDTH)
    constants = {"w": np.ones(WIDTH, np.float32), "one": np.array(1.0, np.float32)}
    nodes = [
        node("LayerNormalization", ["x", "w"], "n", axis=-1, epsilon=1e-6),
        node("Add", ["scale", "one"], "s1"),
        node("Mul", ["n", "s1"], "m"),
        node("Add", ["m", "shift"], "y"),
    ]
    return nodes, {"x": shape, "scale": (WIDTH,), "shift": (WIDTH,)}, constants, shape, 21


def _product(scale: type[np.floating[Any]], *between: onnx.NodeProto) -> Form:
    """A product with 4-bit weights in groups of 64; ``between`` makes ``d`` of ``w`` and ``s``."""
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.integers(-8, 8, (WIDTH, 4 * WIDTH)).astype(ml_dtypes.int4),
        "s": rng.uniform(1e-3, 1e-2, (WIDTH // 64, 4 * WIDTH)).astype(scale),
    }
    nodes = [*between, node("MatMul", ["x", "d"], "y")]
    return nodes, {"x": (1, 1024, WIDTH)}, constants, HIDDEN, 21


def _dequantize(scale: str, output: str) -> onnx.NodeProto:
    return node("DequantizeLinear", ["w", scale], output, axis=0, block_size=64)


def product_half_scales() -> Form:
    wide = node("Cast", ["s"], "wide", to=TensorProto.FLOAT)
    return _product(np.float16, wide, _dequantize("wide", "d"))


def product_wide_scales() -> Form:
    return _product(np.float32, _dequantize("s", "d"))


def product_half_weights() -> Form:
    wide = node("Cast", ["half"], "d", to=TensorProto.FLOAT)
    return _product(np.float16, _dequantize("s", "half"), wide)


FORMS: dict[str, dict[str, Callable[[], Form]]] = {
    "attention, 1102 tokens": {
        "MultiHeadAttention": attention_mha,
        "MultiHeadAttention with a mask": attention_mha_bias,
        "Attention-23": attention_standard,
        "MatMul, Softmax, MatMul": attention_decomposed,
    },
    "GroupNorm, 128 x 512 x 512": {
        "InstanceNormalization": group_norm_instance,
        "GroupNormalization-21": group_norm_standard,
    },
    "GELU tanh, 1024 x 6144": {
        "Gelu-20": gelu_standard,
        "FastGelu": gelu_fast,
        "decomposed": gelu_decomposed,
    },
    "RMSNorm, 1102 x 24 x 64": {
        "Pow ... Mul (fused on load)": rms_norm_fusable,
        "RMSNormalization-23": rms_norm_standard,
    },
    "adaLN, 1024 x 1536": {
        "modulation as weight and bias": layer_norm_modulated,
        "norm, then scale and shift": layer_norm_then_modulate,
    },
    "int4, 1024 x 1536 x 6144": {
        "scales fp16, Cast": product_half_scales,
        "scales fp32": product_wide_scales,
        "weights dequantized fp16, Cast": product_half_weights,
    },
}


def model_of(form: Form) -> bytes:
    nodes, inputs, constants, output, opset = form
    values = [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()]
    graph = helper.make_graph(
        nodes,
        "form",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)],
        values,
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(MS_DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return bytes(model.SerializeToString())


def measure(operator: str, name: str) -> dict[str, float]:
    """Time and peak memory of one form, in this process."""
    import onnxruntime as ort

    form = FORMS[operator][name]()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model_of(form), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    inputs = {n: rng.standard_normal(s, np.float32) for n, s in form[1].items()}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    session.run(None, inputs)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    best = min(_timed(lambda: session.run(None, inputs)) for _ in range(RUNS))
    return {"ms": best * 1e3, "extra_peak_bytes": float((after - before) * 1024)}


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory of ONNX forms on this processor.")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(*arguments.one)))
        return
    rows = []
    print(f"{'operator':<28} {'form':<32} {'ms':>8} {'ratio':>6} {'extra MB':>9}")
    for operator, forms in FORMS.items():
        first_ms = 0.0
        for name in forms:
            command = [sys.executable, "-m", "benchmarks.onnx_forms", "--one", operator, name]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found: dict[str, float] = json.loads(out)
            first_ms = first_ms or found["ms"]
            ratio = found["ms"] / first_ms
            megabytes = found["extra_peak_bytes"] / 1e6
            rows.append(
                {"operator": operator, "form": name, "ms": found["ms"], "extra_mb": megabytes}
            )
            print(f"{operator:<28} {name:<32} {found['ms']:>8.1f} {ratio:>6.2f} {megabytes:>9.0f}")
    if arguments.json:
        figures.write(arguments.json, WHAT, COLUMNS, rows)


if __name__ == "__main__":
    main()

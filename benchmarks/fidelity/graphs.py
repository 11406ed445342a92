"""Graphs of three backends: what their constants weigh, and how to run them in float32."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from exporter import backends
from exporter.backends.contract import Session, SessionOptions
from exporter.backends.coreml import library

EXACT = SessionOptions("float32")
SETTINGS = {"onnx": {}, "openvino": {"INFERENCE_PRECISION_HINT": "f32"}, "coreml": {}}
LEAST_RESEMBLANCE = 0.7  # cosine: 2-bit codes keep 0.9, other weights of that shape have 0.1

# Shapes, axes and flags are not weights.
ONNX_BITS = {
    TensorProto.FLOAT: 32,
    TensorProto.FLOAT16: 16,
    TensorProto.INT8: 8,
    TensorProto.UINT8: 8,
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
    TensorProto.INT2: 2,
    TensorProto.UINT2: 2,
}
OPENVINO_INDICES = ("i64", "i32", "boolean")
COREML_INDICES = ("int32", "uint32", "bool", "string")


def constant_bytes(backend: str, file: Path) -> dict[str, int]:
    """Bytes of a graph's constants by their element type, as stored."""
    list_constants = {"onnx": _onnx, "openvino": _openvino, "coreml": _coreml}[backend]
    count: Counter[str] = Counter()
    for kind, bits, values in list_constants(file):
        count[kind] += -(-values * bits // 8)
    return dict(sorted(count.items()))


def _onnx(file: Path) -> Iterator[tuple[str, int, int]]:
    for tensor in onnx.load(file, load_external_data=False).graph.initializer:
        if tensor.data_type in ONNX_BITS:
            kind = TensorProto.DataType.Name(tensor.data_type).lower()
            yield kind, ONNX_BITS[tensor.data_type], int(np.prod(tensor.dims))


def _openvino(file: Path) -> Iterator[tuple[str, int, int]]:
    backends.load("openvino")
    import openvino as ov

    for node in ov.Core().read_model(file).get_ordered_ops():
        kind = node.get_element_type() if node.get_type_name() == "Constant" else None
        if kind is not None and kind.get_type_name() not in OPENVINO_INDICES:
            yield kind.get_type_name(), kind.bitwidth, int(np.prod(list(node.shape)))


def _coreml(file: Path) -> Iterator[tuple[str, int, int]]:
    messages = library.program_messages()
    model = library.model_messages().Model()
    model.ParseFromString((file / "Data/com.apple.CoreML/model.mlmodel").read_bytes())
    for function in model.mlProgram.functions.values():
        for operation in function.block_specializations[function.opset].operations:
            for value in _values(operation):
                kind = messages.DataType.Name(value.type.tensorType.dataType).lower()
                if kind not in COREML_INDICES:
                    sizes = [d.constant.size for d in value.type.tensorType.dimensions]
                    yield kind, int(kind.strip("abcdefghijklmnopqrstuvwxyz")), int(np.prod(sizes))


def _values(operation: Any) -> Iterator[Any]:
    yield from (value for name, value in operation.attributes.items() if name != "name")
    for argument in (a for i in operation.inputs.values() for a in i.arguments):
        if argument.WhichOneof("binding") == "value":
            yield argument.value


def float_values(file: Path) -> int:
    """How many values the weights of an unquantized ONNX graph have."""
    return constant_bytes("onnx", file)["float"] // 4


def session(backend: str, file: Path, plain: Path | None, folder: Path) -> Session:
    """Run a graph with activations in float32.

    Args:
        plain: the unquantized graph in ONNX, which carries the weights of a Core ML graph; None:
            the graph itself, in the evaluator.
        folder: where that one may be written.
    """
    if backend == "coreml" and plain is not None:
        backend, file = "onnx", transplant(coreml_weights(file), plain, folder)
    return backends.load(backend).open_graph(file, SETTINGS[backend], EXACT)


def coreml_weights(file: Path) -> list[np.ndarray]:
    """The matrices and tables of an ML Program, decompressed by coremltools."""
    import coremltools as ct
    from coremltools.converters.mil.frontend.milproto.load import load

    model = ct.models.MLModel(str(file), skip_model_load=True)
    spec = model.get_spec()
    found = []
    for operator in load(spec, spec.specificationVersion, model.weights_dir)["main"].operations:
        if operator.op_type == "const":
            found.append(np.asarray(operator.val.val))
        elif operator.op_type.startswith("constexpr_"):
            found.append(np.asarray(operator.materialized_val_inference()))
    return [v.astype(np.float32) for v in found if v.dtype.kind == "f" and v.ndim > 1]


def transplant(weights: Sequence[np.ndarray], plain: Path, folder: Path) -> Path:
    """A copy of an ONNX graph with other values for its matrices and tables.

    Each is found among ``weights`` by shape, either way round, and resemblance; raises LookupError
    when none resembles it. Vectors stay.
    """
    model = onnx.load(plain)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1:
            found = _resembling(numpy_helper.to_array(tensor), weights)
            if found is None:
                raise LookupError(f"no weight resembles {tensor.name}")
            tensor.CopyFrom(numpy_helper.from_array(found, tensor.name))
    onnx.save(model, folder / plain.name)
    return folder / plain.name


def _resembling(wanted: np.ndarray, weights: Iterable[np.ndarray]) -> np.ndarray | None:
    best, highest = None, LEAST_RESEMBLANCE
    for weight in weights:
        for turned in (weight, weight.T):
            if turned.shape == wanted.shape:
                cosine = np.vdot(turned, wanted) / np.linalg.norm(turned) / np.linalg.norm(wanted)
                if cosine > highest:
                    best, highest = np.ascontiguousarray(turned), float(cosine)
    return best

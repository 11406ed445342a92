"""Which operators the emitter writes; a graph with any other is refused when a package is opened.

``write_graph`` holds itself to the table, and ``tests/test_operators.py`` holds the table to it.
"""

from __future__ import annotations

OPERATORS = {
    "Add": "opset1", "Concat": "opset1", "Const": "opset1", "Convert": "opset1",
    "Convolution": "opset1", "DepthToSpace": "opset1", "Divide": "opset1", "Equal": "opset1",
    "FakeQuantize": "opset1", "Gather": "opset8", "Gelu": "opset7",
    "GroupNormalization": "opset12", "MVN": "opset6", "MatMul": "opset1", "Multiply": "opset1",
    "Pad": "opset12", "Parameter": "opset1", "Power": "opset1", "ReLU": "opset1",
    "ReduceMean": "opset1", "Reshape": "opset1", "Result": "opset1",
    "ScaledDotProductAttention": "opset13", "Sigmoid": "opset1", "Slice": "opset8",
    "Sqrt": "opset1", "Squeeze": "opset15", "Subtract": "opset1", "Swish": "opset4",
    "Tanh": "opset1", "TopK": "opset11", "Transpose": "opset1", "VariadicSplit": "opset1",
}  # fmt: skip
IR_VERSION = "11"
SHARED_BYTES = 65536  # small constants may stand for several layers

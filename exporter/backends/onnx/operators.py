"""Which operators the emitter writes; a graph with any other is refused when a package is opened.

``Emitter`` holds itself to the table, and ``tests/test_operators.py`` holds the table to it.
"""

from __future__ import annotations

OPERATORS = frozenset(
    {
        "Add", "ArgMax", "Cast", "Concat", "Conv", "DepthToSpace", "DequantizeLinear", "Div",
        "Equal", "Gather", "Gelu", "Gemm", "InstanceNormalization", "LayerNormalization", "MatMul",
        "Mul", "Pad", "Pow", "QuantizeLinear", "RMSNormalization", "Reciprocal", "ReduceMean",
        "Relu", "Reshape", "Sigmoid", "Slice", "Softmax", "Split", "Sqrt", "Sub", "Tanh",
        "Transpose", "com.microsoft:MatMulIntegerToFloat", "com.microsoft:MultiHeadAttention",
    }
)  # fmt: skip
# 23: of graphs that round every value; 25: of those with 2-bit weights
OPSETS = {"": (21, 23, 25), "com.microsoft": (1,)}
IR_VERSIONS = (10, 11, 13)

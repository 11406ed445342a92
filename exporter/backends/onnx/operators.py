"""Which operators the emitter writes; a graph with any other is refused when a package is opened.

``Emitter`` holds itself to the table, and ``tests/test_operators.py`` holds the table to it.
"""

from __future__ import annotations

OPERATORS = frozenset(
    {
        "Add", "ArgMax", "Cast", "Concat", "Conv", "DepthToSpace", "DequantizeLinear", "Div",
        "Equal", "Gather", "Gelu", "InstanceNormalization", "LayerNormalization", "MatMul", "Mul",
        "Pad", "Pow", "QuantizeLinear", "Reciprocal", "ReduceMean", "Relu", "Reshape", "Sigmoid",
        "Slice", "Split", "Sqrt", "Sub", "Tanh", "Transpose",
        "com.microsoft:MatMulIntegerToFloat", "com.microsoft:MultiHeadAttention",
    }
)  # fmt: skip
OPSETS = {"": (21, 25), "com.microsoft": (1,)}  # 25: of graphs with 2-bit weights
IR_VERSIONS = (10, 13)

"""Which operations the emitter writes; a program with any other is refused when it is opened.

``Emitter`` holds itself to the table, and ``tests/test_operators.py`` holds the table to it.
"""

from __future__ import annotations

OPERATORS = frozenset(
    {
        "add", "cast", "concat", "const", "constexpr_affine_dequantize",
        "constexpr_blockwise_shift_scale", "constexpr_cast", "constexpr_lut_to_dense", "conv",
        "equal", "gather", "gelu", "identity", "layer_norm", "linear", "matmul", "mul", "pad",
        "pixel_shuffle", "real_div", "reduce_argmax", "reduce_mean", "relu", "reshape", "rsqrt",
        "scaled_dot_product_attention", "sigmoid", "silu", "slice_by_index", "softmax", "split",
        "sqrt", "square", "sub", "tanh", "transpose",
    }
)  # fmt: skip
VERSIONS = (8, 9)  # of the specification: iOS 17 and 18
OPSETS = ("CoreML7", "CoreML8")

"""The operators that a graph may have, by the names that its file gives them.

Whoever opens a package lets it call these and nothing else.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch

import exporter.network.operators  # noqa: F401  (registers torch.ops.fourstep)

ATEN = torch.ops.aten
OURS = torch.ops.fourstep
OPERATORS = (
    ATEN.add.Tensor,
    ATEN.argmax.default,
    ATEN.cat.default,
    ATEN.conv2d.default,
    ATEN.div.Tensor,
    ATEN.embedding.default,
    ATEN.eq.Scalar,
    ATEN.gelu.default,
    ATEN.group_norm.default,
    ATEN.index_select.default,
    ATEN.layer_norm.default,
    ATEN.linear.default,
    ATEN.matmul.default,
    ATEN.mean.dim,
    ATEN.mul.Tensor,
    ATEN.pad.default,
    ATEN.permute.default,
    ATEN.pixel_shuffle.default,
    ATEN.relu.default,
    ATEN.reshape.default,
    ATEN.rms_norm.default,
    ATEN.rsqrt.default,
    ATEN.select.int,
    ATEN.sigmoid.default,
    ATEN.silu.default,
    ATEN.slice.Tensor,
    ATEN.softmax.int,
    ATEN.split.Tensor,
    ATEN.sqrt.default,
    ATEN.sub.Tensor,
    ATEN.tanh.default,
    ATEN.to.dtype,
    OURS.attention.default,
    OURS.dequantize.default,
    OURS.look_up.default,
    OURS.round_input.default,
)
TABLE: Mapping[Any, str] = {
    **{target: str(target) for target in OPERATORS},
    operator.getitem: "getitem",
}
BY_NAME: Mapping[str, Any] = {name: target for target, name in TABLE.items()}
DTYPES: Mapping[torch.dtype, str] = {
    torch.float32: "F32", torch.float16: "F16", torch.int64: "I64", torch.int32: "I32",
    torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip

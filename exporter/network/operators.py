"""The project's own torch operators. They run in torch, so a program is its own reference.

``fourstep::attention`` keeps heads packed in the last axis, the layout that onnxruntime's fused
kernel takes; each backend unpacks them as it likes. ``fourstep::dequantize`` turns codes and
scales into a weight, ``fourstep::look_up`` codes and palettes; ``fourstep::round_input`` rounds
what a layer reads. They are all that a backend must know beyond a few dozen ATen operators.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@torch.library.custom_op("fourstep::attention", mutates_args=())
def attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, bias: Tensor | None
) -> Tensor:
    """Softmax(scale * q k^T + bias) v, head by head.

    Args:
        q: (batch, queries, heads * e), head-major: head h owns columns h*e to (h+1)*e.
        k: (batch, keys, heads * e).
        v: (batch, keys, heads * d); d may differ from e.
        heads: number of heads.
        scale: factor on the logits, usually 1 / sqrt(d).
        bias: additive, broadcast to (batch, heads, queries, keys), or None.

    Returns:
        (batch, queries, heads * d) in the dtype of v.
    """
    return _attend(q, k, v, heads, scale, bias)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, bias: Tensor | None
) -> Tensor:
    q, k, v = (t.reshape(*t.shape[:2], heads, -1).transpose(1, 2) for t in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    return mixed.transpose(1, 2).flatten(2).contiguous()


@attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, bias: Tensor | None) -> Tensor:
    return v.new_empty((q.shape[0], q.shape[1], v.shape[2]))


def _keep_attention(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    q, k, v, ctx.heads, ctx.scale, bias = inputs
    ctx.save_for_backward(q, k, v, *(() if bias is None else (bias,)))


def _attention_gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, *bias = (t.detach().requires_grad_() for t in ctx.saved_tensors)
    with torch.enable_grad():
        mixed = _attend(q, k, v, ctx.heads, ctx.scale, bias[0] if bias else None)
        by_q, by_k, by_v, *by_bias = torch.autograd.grad(mixed, (q, k, v, *bias), gradient)
    return by_q, by_k, by_v, None, None, by_bias[0] if by_bias else None


attention.register_autograd(_attention_gradient, setup_context=_keep_attention)


@torch.library.custom_op("fourstep::dequantize", mutates_args=())
def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor | None, block: int) -> Tensor:
    """weight = (codes - zero_point) * scale, by blocks of ``block`` values along axis 1.

    Args:
        codes: (N, K, ...) int8 or uint8. Only axis 1 is blocked; further axes (a convolution's
            kernel) need a single block, ``block == K``.
        scale: (N, K / block) float32.
        zero_point: like scale, in the dtype of codes; None when symmetric.
        block: values per scale; divides K.

    Returns:
        (N, K, ...) float, in the dtype of scale.
    """
    blocks = codes.reshape(*scale.shape, block, *codes.shape[2:]).to(scale.dtype)
    spread = (*scale.shape, *(1,) * (blocks.ndim - 2))
    if zero_point is not None:
        blocks = blocks - zero_point.to(scale.dtype).reshape(spread)
    weight: Tensor = (blocks * scale.reshape(spread)).flatten(1, 2)
    return weight


@dequantize.register_fake
def _(codes: Tensor, scale: Tensor, zero_point: Tensor | None, block: int) -> Tensor:
    return scale.new_empty(codes.shape)


@torch.library.custom_op("fourstep::look_up", mutates_args=())
def look_up(codes: Tensor, palette: Tensor) -> Tensor:
    """weight = palette[code], with a palette for each block of output channels.

    Args:
        codes: (N, K, ...) uint8.
        palette: (P, 2^bits) float32; output channels n * N/P to (n + 1) * N/P use row n.

    Returns:
        (N, K, ...) float, in the dtype of palette.
    """
    blocks = codes.reshape(len(palette), -1).to(torch.int64)
    return palette.gather(1, blocks).reshape(codes.shape)


@look_up.register_fake
def _(codes: Tensor, palette: Tensor) -> Tensor:
    return palette.new_empty(codes.shape)


@torch.library.custom_op("fourstep::round_input", mutates_args=())
def round_input(
    x: Tensor, inverse_factor: Tensor | None, step: float, zero_point: int, bits: int, axis: int
) -> Tensor:
    """(clamp(round(x * inverse_factor / step) + zero_point, 0, 2^bits - 1) - zero_point) * step.

    Rounded half to even, in float32, in this order of operations: onnxruntime's QuantizeLinear
    computes the same levels, bit for bit.

    Args:
        x: (...) float32.
        inverse_factor: (K,) float32, of the K channels along ``axis``, or None for ones.
        step: between two levels; a float32.
        zero_point: the level that stands for 0.
        bits: 8 or 16.
        axis: of the channels.

    Returns:
        In the shape of x and in the units of x * inverse_factor.
    """
    if inverse_factor is not None:
        shape = [1] * x.ndim
        shape[axis] = -1
        x = x * inverse_factor.reshape(shape)
    unit = torch.tensor(step, dtype=torch.float32)
    levels = torch.round(x / unit) + zero_point
    return (levels.clamp(0, 2**bits - 1) - zero_point) * unit


@round_input.register_fake
def _(
    x: Tensor, inverse_factor: Tensor | None, step: float, zero_point: int, bits: int, axis: int
) -> Tensor:
    return torch.empty_like(x)

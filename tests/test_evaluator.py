"""The Core ML evaluator against torch, on packages that Apple's own code wrote."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exporter.backends.coreml import library
from exporter.backends.coreml.evaluator.operators import TABLE, Parameters, unpack
from exporter.backends.coreml.evaluator.program import open_program
from exporter.errors import CheckFailed

if importlib.util.find_spec("coremltools") is None:
    pytest.skip("pip install 'fourstep[coreml]'", allow_module_level=True)

ct: Any = library.coremltools()
with library.quiet():
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import (
        Function,
        Program,
        types,
    )

TARGETS = ("iOS16", "iOS17", "iOS18")
UP_TO_17 = ("iOS16", "iOS17")
ONLY_18 = ("iOS18",)
RUNS = [("iOS16", "fp32"), ("iOS17", "fp16"), ("iOS17", "fp32"), ("iOS18", "fp16")]
NUMPY = {"fp16": np.float16, "fp32": np.float32}


@dataclass(frozen=True)
class Case:
    """One operator with some parameters.

    Attributes:
        op: its name.
        inputs: float arrays take the run's type, integers are int32.
        build: MIL values -> MIL value or list of them.
        expect: torch tensors -> the same in torch, floats in float32.
    """

    op: str
    inputs: tuple[np.ndarray, ...]
    build: Callable[..., Any]
    expect: Callable[..., Any]
    targets: tuple[str, ...] = TARGETS


def floats(*shape: int, low: float = -2.0, high: float = 2.0) -> np.ndarray:
    """Random multiples of 1/64, the same for the same shape, which fp16 holds exactly."""
    seed = sum((i + 1) * n for i, n in enumerate(shape))
    values = np.random.default_rng(seed).uniform(low, high, shape)
    return (np.round(values * 64) / 64).astype(np.float32)


def whole(*shape: int, low: int = -3, high: int = 4) -> np.ndarray:
    """Floats that are whole, so that some are equal."""
    return np.round(floats(*shape, low=low, high=high - 1)).astype(np.float32)


def ints(*shape: int, low: int = -3, high: int = 4) -> np.ndarray:
    seed = sum((i + 1) * n for i, n in enumerate(shape))
    return np.random.default_rng(seed).integers(low, high, shape).astype(np.int32)


def unary(op: str, expect: Callable[..., Any], low: float = -2.0) -> Case:
    return Case(op, (floats(3, 5, low=low),), lambda x: getattr(mb, op)(x=x), expect)


def binary(op: str, expect: Callable[..., Any], low: float = -2.0) -> list[Case]:
    def build(x: Any, y: Any) -> Any:
        return getattr(mb, op)(x=x, y=y)

    pairs = [
        (floats(2, 3, 4, low=low), floats(4, low=low)),
        (floats(2, 1, 4, low=low), floats(3, 1, low=low)),
    ]
    return [Case(op, pair, build, expect) for pair in pairs]


def comparison(op: str, expect: Callable[..., Any]) -> list[Case]:
    def build(x: Any, y: Any) -> Any:
        return getattr(mb, op)(x=x, y=y)

    pairs = [(whole(4, 6), whole(6)), (ints(5, 4), ints(5, 1))]
    return [Case(op, pair, build, expect) for pair in pairs]


def logical(op: str, expect: Callable[..., Any]) -> Case:
    def build(x: Any, y: Any) -> Any:
        return getattr(mb, op)(x=mb.greater(x=x, y=0), y=mb.less(x=y, y=1))

    return Case(op, (ints(4, 5), ints(5)), build, lambda x, y: expect(x > 0, y < 1))


def reduction(op: str, expect: Callable[..., Any]) -> list[Case]:
    x = (floats(3, 4, 5),)

    def case(axes: list[int] | None, keep: bool) -> Case:
        own = {} if axes is None else {"axes": axes}
        return Case(
            op,
            x,
            lambda x: getattr(mb, op)(x=x, keep_dims=keep, **own),
            lambda x: expect(x, axes or [0, 1, 2], keepdim=keep),
        )

    return [case(None, False), case([-1], True), case([0, 2], False), case([1], False)]


def like(x: Any, array: np.ndarray | float) -> Any:
    """A constant in the type of a MIL value."""
    return np.asarray(array, NUMPY["fp16" if x.dtype == types.fp16 else "fp32"])[()]


def fixed(*shape: int) -> Tensor:
    """The values of ``floats`` in torch."""
    return torch.from_numpy(floats(*shape))


def conv_case(
    x: tuple[int, ...], w: tuple[int, ...], bias: bool = False, **parameters: Any
) -> Case:
    def build(x: Any) -> Any:
        own = {"bias": like(x, floats(w[0]))} if bias else {}
        return mb.conv(x=x, weight=like(x, floats(*w)), **own, **parameters)

    def expect(x: Tensor) -> Tensor:
        rank = len(w) - 2
        strides = parameters.get("strides", [1] * rank)
        dilations = parameters.get("dilations", [1] * rank)
        pads = parameters.get("pad", [0] * 2 * rank)
        kind = parameters.get("pad_type", "valid")
        if kind.startswith("same"):
            pads = []
            for size, k, s, d in zip(x.shape[2:], w[2:], strides, dilations, strict=True):
                total = max(0, (-(-size // s) - 1) * s + (k - 1) * d + 1 - size)
                small = total // 2
                pads += [total - small, small] if kind == "same_lower" else [small, total - small]
        flat = [n for i in reversed(range(rank)) for n in pads[2 * i : 2 * i + 2]]
        convolve: Any = (F.conv1d, F.conv2d)[rank - 1]
        return convolve(  # type: ignore[no-any-return]
            F.pad(x, flat),
            fixed(*w),
            fixed(w[0]) if bias else None,
            strides,
            0,
            dilations,
            parameters.get("groups", 1),
        )

    return Case("conv", (floats(*x),), build, expect)


def norm_case(op: str, shape: tuple[int, ...], own: tuple[int, ...], **parameters: Any) -> Case:
    """layer_norm or instance_norm, with gamma and beta of shape ``own``, () for neither."""

    def build(x: Any) -> Any:
        given = {"gamma": like(x, floats(*own)), "beta": like(x, floats(*own) + 1)} if own else {}
        return getattr(mb, op)(x=x, epsilon=like(x, 2.0**-9), **given, **parameters)

    def expect(x: Tensor) -> Tensor:
        axes = [a % x.ndim for a in parameters.get("axes", range(2, x.ndim))]
        shape = [n if i in axes else 1 for i, n in enumerate(x.shape)]
        if op == "instance_norm":
            shape = [1, -1, *(1,) * (x.ndim - 2)]
        mean = x.mean(axes, keepdim=True)
        spread = ((x - mean) ** 2).mean(axes, keepdim=True)
        unit = (x - mean) / (spread + 2.0**-9) ** 0.5
        if not own:
            return unit
        gamma, beta = fixed(*own), fixed(*own) + 1
        return unit * gamma.reshape(shape) + beta.reshape(shape)

    return Case(op, (floats(*shape),), build, expect)


def batch_norm(x: Any) -> Any:
    return mb.batch_norm(
        x=x,
        mean=like(x, floats(3)),
        variance=like(x, floats(3) + 2.5),
        gamma=like(x, floats(3) + 1),
        beta=like(x, floats(3) - 1),
        epsilon=like(x, 0.125),
    )


def batch_norm_expected(x: Tensor) -> Tensor:
    some = fixed(3)
    return F.batch_norm(x, some, some + 2.5, some + 1, some - 1, eps=0.125)


def attention_case(q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], mask: str) -> Case:
    positions = (q[-2], k[-2])

    def build(q: Any, k: Any, v: Any, m: Any) -> Any:
        bias = {
            "": {},
            "add": {"attn_mask": m},
            "keep": {"attn_mask": mb.greater(x=m, y=like(m, -0.5))},
        }
        return mb.scaled_dot_product_attention(query=q, key=k, value=v, **bias[mask])

    def expect(q: Tensor, k: Tensor, v: Tensor, m: Tensor) -> Tensor:
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        if mask == "add":
            scores = scores + m
        if mask == "keep":
            scores = scores.masked_fill(m <= -0.5, -math.inf)
        return scores.softmax(-1) @ v

    inputs = (floats(*q), floats(*k), floats(*v), whole(*positions, low=-1, high=2))
    return Case("scaled_dot_product_attention", inputs, build, expect, ONLY_18)


def slice_case(expect: Callable[..., Any], **parameters: Any) -> Case:
    return Case(
        "slice_by_index",
        (floats(4, 5, 6),),
        lambda x: mb.slice_by_index(x=x, **parameters),
        expect,
    )


def numpy_pad(**parameters: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.from_numpy(np.pad(x.numpy(), **parameters))


def constant_case(
    op: str,
    shape: tuple[int, ...],
    build: Any,
    value: np.ndarray,
    targets: tuple[str, ...] = TARGETS,
) -> Case:
    """A compressed constant, added to an input of its shape; ``build`` takes a numpy float type."""

    def whole_build(x: Any) -> Any:
        constant = build(NUMPY["fp16" if x.dtype == types.fp16 else "fp32"])
        return mb.add(x=x, y=constant)

    return Case(op, (floats(*shape),), whole_build, lambda x: x + torch.from_numpy(value), targets)


def typed(name: str, array: Any) -> np.ndarray:
    """An array of one of coremltools' element types."""
    return np.asarray(array).astype(types.nptype_from_builtin(getattr(types, name)))


CODES = np.arange(48).reshape(6, 8)
SIGNED4 = (CODES * 5) % 16 - 8
SCALES = np.array([0.5, 0.25, 2.0, -1.0, 4.0, 0.125], np.float32)


def affine(dtype: Any) -> Any:
    return mb.constexpr_affine_dequantize(
        quantized_data=(CODES - 20).astype(np.int8),
        zero_point=np.arange(6).astype(np.int8),
        scale=SCALES.astype(dtype),
        axis=0,
    )


def affine_scalar(dtype: Any) -> Any:
    return mb.constexpr_affine_dequantize(
        quantized_data=CODES.astype(np.uint8), zero_point=np.uint8(7), scale=dtype(0.5), axis=1
    )


def blockwise_case(
    kind: str, codes: np.ndarray, scale: np.ndarray, offset: np.ndarray | None = None
) -> Case:
    """(codes - offset) * scale, each scale and offset repeated over its block."""

    def build(dtype: Any) -> Any:
        own = {} if offset is None else {"offset": typed(kind, offset)}
        return mb.constexpr_blockwise_shift_scale(
            data=typed(kind, codes), scale=scale.astype(dtype), **own
        )

    def spread(part: np.ndarray) -> np.ndarray:
        for axis, size in enumerate(codes.shape):
            part = np.repeat(part, size // scale.shape[axis], axis)
        return part

    shift = np.zeros_like(scale) if offset is None else offset
    value = ((codes - spread(shift)) * spread(scale)).astype(np.float32)
    return constant_case("constexpr_blockwise_shift_scale", codes.shape, build, value, ONLY_18)


BLOCK_SCALES = (np.arange(12, dtype=np.float32) - 5.5).reshape(6, 2) / 4
BLOCK_OFFSETS = np.arange(12).reshape(6, 2)
ROW_SCALES = np.array([[0.5], [2.0]], np.float32)


def lut_ios16(bits: int) -> tuple[Any, np.ndarray]:
    """The packed form, with bits packed by numpy."""
    codes = (np.arange(35) * 7) % (1 << bits)
    spread = (codes[:, None] >> np.arange(bits)) & 1
    packed = np.packbits(spread.astype(np.uint8).reshape(-1), bitorder="little")
    palette = np.linspace(-2, 2, 1 << bits, dtype=np.float32).astype(np.float16)

    def build(dtype: Any) -> Any:
        return mb.constexpr_lut_to_dense(
            indices=packed, lut=palette.astype(dtype), shape=np.array([5, 7], np.uint32)
        )

    return build, palette.astype(np.float32)[codes].reshape(5, 7)


def lut_case_ios16(bits: int) -> Case:
    build, value = lut_ios16(bits)
    return constant_case("constexpr_lut_to_dense", (5, 7), build, value, UP_TO_17)


def lut_case_ios18(bits: int, groups: tuple[int, int]) -> Case:
    codes = (np.arange(48) * 5).reshape(6, 8) % (1 << bits)
    lut = floats(*groups, 1 << bits, 1).astype(np.float16).astype(np.float32)
    value = np.empty((6, 8), np.float32)
    for i in range(6):
        for j in range(8):
            value[i, j] = lut[i * groups[0] // 6, j * groups[1] // 8, codes[i, j], 0]

    def build(dtype: Any) -> Any:
        return mb.constexpr_lut_to_dense(indices=typed(f"uint{bits}", codes), lut=lut.astype(dtype))

    return constant_case("constexpr_lut_to_dense", (6, 8), build, value, ONLY_18)


def lut_case_vectors(axis: int) -> Case:
    codes = (np.arange(12) % 4).reshape(4, 3)
    lut = np.arange(16, dtype=np.float32).reshape(2, 1, 4, 2)
    rows = [[lut[i // 2, 0, codes[i, j]] for j in range(3)] for i in range(4)]
    value = np.array(rows)  # (4, 3, 2)
    value = value.reshape(4, 6) if axis % 2 else value.transpose(0, 2, 1).reshape(8, 3)

    def build(dtype: Any) -> Any:
        return mb.constexpr_lut_to_dense(
            indices=typed("uint2", codes), lut=lut.astype(dtype), vector_axis=np.int32(axis)
        )

    return constant_case("constexpr_lut_to_dense", value.shape, build, value, ONLY_18)


def nested_case() -> Case:
    """A palette of int8 values, scaled by channel: the output of one constexpr feeds another."""
    codes = (np.arange(48) * 3).reshape(6, 8) % 16
    palette = np.arange(-64, 64, 8, dtype=np.int8)

    def build(dtype: Any) -> Any:
        values = mb.constexpr_lut_to_dense(
            indices=typed("uint4", codes), lut=palette.reshape(1, 1, 16, 1)
        )
        return mb.constexpr_blockwise_shift_scale(
            data=values, scale=SCALES.reshape(6, 1).astype(dtype)
        )

    value = palette[codes].astype(np.float32) * SCALES[:, None]
    return constant_case("constexpr_blockwise_shift_scale", (6, 8), build, value, ONLY_18)


MASK = (np.arange(35) % 3 == 0).reshape(5, 7)
NONZERO = np.linspace(-3, 3, int(MASK.sum()), dtype=np.float32).astype(np.float16)
SPARSE = np.zeros((5, 7), np.float32)
SPARSE[MASK] = NONZERO


def sparse_ios16(dtype: Any) -> Any:
    return mb.constexpr_sparse_to_dense(
        nonzero_data=NONZERO.astype(dtype),
        mask=np.packbits(MASK.reshape(-1), bitorder="little"),
        shape=np.array([5, 7], np.uint32),
    )


def sparse_ios18(dtype: Any) -> Any:
    return mb.constexpr_sparse_to_dense(
        nonzero_data=NONZERO.astype(dtype), mask=typed("uint1", MASK)
    )


def cast_from_half(dtype: Any) -> Any:
    value = mb.constexpr_cast(source_val=NONZERO, output_dtype="fp32")
    return value if dtype == np.float32 else mb.cast(x=value, dtype="fp16")


CASES = [
    Case("identity", (floats(3, 4),), lambda x: mb.identity(x=x), lambda x: x),
    Case("cast", (floats(3, 4),), lambda x: mb.cast(x=x, dtype="int32"), lambda x: x.int()),
    Case("cast", (whole(3, 4),), lambda x: mb.cast(x=x, dtype="bool"), lambda x: x != 0),
    Case("cast", (ints(4),), lambda x: mb.cast(x=x, dtype="fp32"), lambda x: x.float()),
    Case("cast", (floats(7),), lambda x: mb.cast(x=x, dtype="fp16"), lambda x: x.half().float()),
    *binary("add", torch.add),
    *binary("sub", torch.sub),
    *binary("mul", torch.mul),
    *binary("real_div", torch.div, low=0.5),
    *binary("floor_div", torch.floor_divide, low=0.5),
    *binary("pow", torch.pow, low=0.1),
    *binary("maximum", torch.maximum),
    *binary("minimum", torch.minimum),
    Case("add", (ints(3, 4), ints(4)), lambda x, y: mb.add(x=x, y=y), torch.add),
    Case("mul", (ints(3, 4),), lambda x: mb.mul(x=x, y=3), lambda x: x * 3),
    Case(
        "floor_div",
        (ints(5, 4),),
        lambda x: mb.floor_div(x=x, y=2),
        lambda x: (x / 2).floor().int(),
    ),
    unary("abs", torch.abs),
    unary("exp", torch.exp),
    unary("exp2", torch.exp2),
    unary("sqrt", torch.sqrt, low=0.0),
    unary("square", lambda x: x * x),
    unary("sin", torch.sin),
    unary("cos", torch.cos),
    unary("tanh", torch.tanh),
    unary("erf", torch.erf),
    unary("sigmoid", torch.sigmoid),
    unary("silu", lambda x: x * torch.sigmoid(x)),
    unary("relu", lambda x: x.clamp(min=0)),
    unary("gelu", F.gelu),
    *(
        Case("gelu", (floats(3, 5),), lambda x, mode=mode: mb.gelu(x=x, mode=mode), expect)
        for mode, expect in {
            "EXACT": lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5)),
            "TANH_APPROXIMATION": lambda x: F.gelu(x, approximate="tanh"),
            "SIGMOID_APPROXIMATION": lambda x: x * torch.sigmoid(1.702 * x),
        }.items()
    ),
    unary("log", torch.log, low=0.1),
    Case(
        "log",
        (floats(6, low=0.1),),
        lambda x: mb.log(x=x, epsilon=like(x, 0.5)),
        lambda x: torch.log(x + 0.5),
    ),
    unary("rsqrt", lambda x: x**-0.5, low=0.1),
    Case(
        "rsqrt",
        (floats(6, low=0.0),),
        lambda x: mb.rsqrt(x=x, epsilon=like(x, 0.5)),
        lambda x: (x + 0.5) ** -0.5,
    ),
    Case(
        "clip",
        (floats(4, 6),),
        lambda x: mb.clip(x=x, alpha=like(x, -0.5), beta=like(x, 1.0)),
        lambda x: x.clamp(-0.5, 1.0),
    ),
    Case("softmax", (floats(3, 4, 5),), lambda x: mb.softmax(x=x), lambda x: x.softmax(-1)),
    Case("softmax", (floats(3, 4, 5),), lambda x: mb.softmax(x=x, axis=1), lambda x: x.softmax(1)),
    norm_case("layer_norm", (2, 5, 6), (6,), axes=[-1]),
    norm_case("layer_norm", (2, 5, 6), (5, 6), axes=[1, 2]),
    norm_case("layer_norm", (2, 5, 6), (), axes=[-1]),
    norm_case("layer_norm", (2, 5, 6), (5,), axes=[1]),
    norm_case("instance_norm", (2, 3, 4, 5), (3,)),
    norm_case("instance_norm", (2, 3, 9), ()),
    Case("batch_norm", (floats(2, 3, 4, 5),), batch_norm, batch_norm_expected),
    Case("batch_norm", (floats(2, 3, 6),), batch_norm, batch_norm_expected),
    *reduction("reduce_mean", torch.mean),
    *reduction("reduce_sum", torch.sum),
    *reduction("reduce_max", torch.amax),
    *reduction("reduce_min", torch.amin),
    Case(
        "reduce_sum",
        (ints(3, 4),),
        lambda x: mb.reduce_sum(x=x, axes=[1], keep_dims=False),
        lambda x: x.sum(1).int(),
    ),
    Case(
        "reduce_argmax",
        (floats(3, 4, 5),),
        lambda x: [
            mb.reduce_argmax(x=x),
            mb.reduce_argmax(x=x, axis=0, keep_dims=True),
            mb.reduce_argmax(x=x, axis=-2),
        ],
        lambda x: [x.argmax(-1).int(), x.argmax(0, keepdim=True).int(), x.argmax(1).int()],
    ),
    Case(
        "reduce_argmax",
        (ints(3, 9),),
        lambda x: mb.reduce_argmax(x=x, axis=1, output_dtype="uint16"),
        lambda x: x.argmax(1).int(),
        ("iOS17", "iOS18"),
    ),
    Case(
        "linear",
        (floats(2, 4, 6),),
        lambda x: mb.linear(x=x, weight=like(x, floats(5, 6)), bias=like(x, floats(5))),
        lambda x: F.linear(x, fixed(5, 6), fixed(5)),
    ),
    Case(
        "linear",
        (floats(4, 6),),
        lambda x: mb.linear(x=x, weight=like(x, floats(5, 6))),
        lambda x: F.linear(x, fixed(5, 6)),
    ),
    Case(
        "matmul",
        (floats(2, 3, 4), floats(4, 5)),
        lambda x, y: mb.matmul(x=x, y=y),
        torch.matmul,
    ),
    Case(
        "matmul",
        (floats(2, 4, 3), floats(2, 5, 4)),
        lambda x, y: mb.matmul(x=x, y=y, transpose_x=True, transpose_y=True),
        lambda x, y: x.transpose(1, 2) @ y.transpose(1, 2),
    ),
    Case("matmul", (ints(3, 4), ints(4, 2)), lambda x, y: mb.matmul(x=x, y=y), torch.matmul),
    Case(
        "einsum",
        (floats(2, 3, 4, 5), floats(2, 5, 4, 6)),
        lambda x, y: mb.einsum(values=(x, y), equation="nchw,nwhu->nchu"),
        lambda x, y: (x.permute(0, 2, 1, 3) @ y.permute(0, 2, 1, 3)).permute(0, 2, 1, 3),
    ),
    Case(
        "einsum",
        (floats(3, 4, 5), floats(5, 1, 6)),
        lambda x, y: mb.einsum(values=(x, y), equation="chw,whr->chr"),
        lambda x, y: torch.einsum("chw,wr->chr", x, y[:, 0]),
    ),
    conv_case((1, 4, 6, 7), (5, 4, 3, 3)),
    conv_case((2, 4, 6, 7), (6, 2, 3, 2), bias=True, groups=2, strides=[2, 1]),
    conv_case(
        (1, 3, 8, 9), (4, 3, 3, 3), True, pad_type="custom", pad=[1, 1, 1, 1], strides=[2, 2]
    ),
    conv_case((1, 3, 8, 9), (4, 3, 3, 3), pad_type="custom", pad=[0, 1, 2, 0]),
    conv_case((1, 3, 8, 9), (4, 3, 3, 3), pad_type="same", dilations=[2, 1]),
    conv_case((1, 3, 8, 9), (4, 3, 4, 3), pad_type="same", strides=[2, 3]),
    conv_case((1, 3, 9, 8), (4, 3, 4, 2), pad_type="same_lower", strides=[2, 1]),
    conv_case((2, 4, 10), (6, 4, 3), True, strides=[2]),
    conv_case((2, 4, 10), (4, 1, 4), pad_type="same_lower", groups=4),
    attention_case((2, 3, 5, 8), (2, 3, 6, 8), (2, 3, 6, 4), ""),
    attention_case((2, 3, 5, 8), (2, 3, 6, 8), (2, 3, 6, 8), "add"),
    attention_case((2, 5, 8), (2, 6, 8), (2, 6, 8), "keep"),
    Case(
        "pixel_shuffle",
        (floats(1, 12, 3, 4),),
        lambda x: mb.pixel_shuffle(x=x, upscale_factor=2),
        lambda x: F.pixel_shuffle(x, 2),
    ),
    Case(
        "reshape",
        (floats(2, 3, 4),),
        lambda x: [
            mb.reshape(x=x, shape=[6, 4]),
            mb.reshape(x=x, shape=[4, -1]),
            mb.reshape(x=x, shape=[0, -1, 0]),
            mb.reshape(x=x, shape=[0, 12, 1]),
        ],
        lambda x: [x.reshape(6, 4), x.reshape(4, 6), x, x.reshape(2, 12, 1)],
    ),
    Case(
        "reshape",  # to a shape that the program computes
        (floats(2, 3, 4), floats(6, 4)),
        lambda x, y: mb.reshape(x=x, shape=mb.shape(x=y)),
        lambda x, y: x.reshape(6, 4),
    ),
    Case(
        "expand_dims",
        (floats(2, 3),),
        lambda x: [mb.expand_dims(x=x, axes=[0]), mb.expand_dims(x=x, axes=[-1, 1])],
        lambda x: [x[None], x[:, None, :, None]],
    ),
    Case(
        "squeeze",
        (floats(1, 3, 1, 2),),
        lambda x: [mb.squeeze(x=x), mb.squeeze(x=x, axes=[0]), mb.squeeze(x=x, axes=[-2, 0])],
        lambda x: [x[0, :, 0], x[0], x[0, :, 0]],
    ),
    Case(
        "transpose",
        (floats(2, 3, 4),),
        lambda x: [mb.transpose(x=x, perm=[2, 0, 1]), mb.transpose(x=x, perm=[0, -1, -2])],
        lambda x: [x.permute(2, 0, 1), x.permute(0, 2, 1)],
    ),
    Case(
        "concat",
        (floats(2, 3, 4), floats(2, 5, 4)),
        lambda x, y: [mb.concat(values=(x, y, x), axis=1), mb.concat(values=(y, y), axis=-1)],
        lambda x, y: [torch.cat([x, y, x], 1), torch.cat([y, y], -1)],
    ),
    Case(
        "concat",
        (floats(2, 3), floats(2, 3) + 1),
        lambda x, y: mb.concat(values=(x, y), axis=1, interleave=True),
        lambda x, y: torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1], x[:, 2], y[:, 2]], 1),
    ),
    Case(
        "stack",
        (floats(2, 3), floats(2, 3) + 1),
        lambda x, y: [mb.stack(values=(x, y), axis=0), mb.stack(values=(x, y), axis=-1)],
        lambda x, y: [torch.stack([x, y]), torch.stack([x, y], -1)],
    ),
    Case(
        "split",
        (floats(6, 4),),
        lambda x: [
            *mb.split(x=x, num_splits=3, axis=0),
            *mb.split(x=x, split_sizes=[1, 3], axis=-1),
        ],
        lambda x: [x[:2], x[2:4], x[4:], x[:, :1], x[:, 1:]],
    ),
    slice_case(lambda x: x[1:3, 0:5:2, 2:], begin=[1, 0, 2], end=[3, 5, 6], stride=[1, 2, 1]),
    slice_case(lambda x: x[-3:-1, 1:4, -1:], begin=[-3, 1, -1], end=[-1, 4, 6]),
    slice_case(
        lambda x: x[:2, 3:, :],
        begin=[1, 3, 4],
        end=[2, 4, 5],
        begin_mask=[True, False, True],
        end_mask=[False, True, True],
    ),
    slice_case(
        lambda x: x[2, :, -1],
        begin=[2, 0, -1],
        end=[0, 5, 0],
        squeeze_mask=[True, False, True],
    ),
    slice_case(
        lambda x: x.flip(1)[:, ::2],
        begin=[0, 0, 0],
        end=[4, 0, 6],
        stride=[1, -2, 1],
        begin_mask=[False, True, False],
        end_mask=[False, True, False],
    ),
    Case(
        "slice_by_size",
        (floats(4, 5),),
        lambda x: [
            mb.slice_by_size(x=x, begin=[1, 2], size=[2, -1]),
            mb.slice_by_size(x=x, begin=[-2, 0], size=[1, 3]),
        ],
        lambda x: [x[1:3, 2:], x[2:3, :3]],
    ),
    Case(
        "pad",
        (floats(2, 4, 5),),
        lambda x: [
            mb.pad(x=x, pad=[1, 2, 0, 3], constant_val=like(x, 0.5)),
            mb.pad(x=x, pad=[1, 0], mode="constant"),
            mb.pad(x=x, pad=[1, 0, 3, 2, 1, 1]),
        ],
        lambda x: [
            numpy_pad(pad_width=[(0, 0), (1, 2), (0, 3)], constant_values=0.5)(x),
            numpy_pad(pad_width=[(0, 0), (0, 0), (1, 0)])(x),
            numpy_pad(pad_width=[(1, 0), (3, 2), (1, 1)])(x),
        ],
    ),
    Case(
        "pad",
        (floats(2, 4, 5),),
        lambda x: [
            mb.pad(x=x, pad=[3, 2, 1, 4], mode="reflect"),
            mb.pad(x=x, pad=[3, 2, 1, 5], mode="replicate"),
        ],
        lambda x: [
            numpy_pad(pad_width=[(0, 0), (3, 2), (1, 4)], mode="reflect")(x),
            numpy_pad(pad_width=[(0, 0), (3, 2), (1, 5)], mode="edge")(x),
        ],
    ),
    Case(
        "tile",
        (floats(2, 3),),
        lambda x: mb.tile(x=x, reps=[3, 2]),
        lambda x: torch.cat([torch.cat([x, x], 1)] * 3),
    ),
    Case(
        "gather",
        (floats(5, 4, 3), ints(2, 3, low=-3, high=3)),
        lambda x, i: [mb.gather(x=x, indices=i, axis=a) for a in (0, 1, -1)],
        lambda x, i: [x[i.long()], x[:, i.long()], x[:, :, i.long()]],
    ),
    Case(
        "gather",
        (floats(2, 4, 5, 3), ints(2, 4, 6, low=0, high=5)),
        lambda x, i: mb.gather(x=x, indices=i, axis=2, batch_dims=2),
        lambda x, i: torch.stack(
            [torch.stack([x[a, b, i[a, b].long()] for b in range(4)]) for a in (0, 1)]
        ),
    ),
    Case(
        "gather",
        (floats(2, 4, 5, 3), ints(2, 6, low=0, high=5)),
        lambda x, i: mb.gather(x=x, indices=i, axis=2, batch_dims=1),
        lambda x, i: torch.stack([x[a][:, i[a].long()] for a in (0, 1)]),
    ),
    Case(
        "gather",
        (floats(5, 4),),
        lambda x: mb.gather(x=x, indices=np.int32(2), axis=0),
        lambda x: x[2],
    ),
    Case(
        "gather_nd",
        (floats(3, 4, 5), ints(6, 2, low=-3, high=3)),
        lambda x, i: mb.gather_nd(x=x, indices=i),
        lambda x, i: x[i[:, 0].long(), i[:, 1].long()],
    ),
    Case(
        "gather_nd",
        (floats(2, 4, 5, 3), ints(2, 6, 2, low=0, high=4)),
        lambda x, i: mb.gather_nd(x=x, indices=i, batch_dims=1),
        lambda x, i: torch.stack([x[a][i[a, :, 0].long(), i[a, :, 1].long()] for a in (0, 1)]),
    ),
    Case(
        "gather_along_axis",
        (floats(3, 4), ints(3, 6, low=-4, high=4)),
        lambda x, i: mb.gather_along_axis(x=x, indices=i, axis=1),
        lambda x, i: torch.take_along_dim(x, i.long() % 4, 1),
    ),
    *comparison("equal", torch.eq),
    *comparison("not_equal", torch.ne),
    *comparison("greater", torch.gt),
    *comparison("greater_equal", torch.ge),
    *comparison("less", torch.lt),
    *comparison("less_equal", torch.le),
    logical("logical_and", torch.logical_and),
    logical("logical_or", torch.logical_or),
    Case(
        "logical_not",
        (ints(3, 4),),
        lambda x: mb.logical_not(x=mb.greater(x=x, y=0)),
        lambda x: x <= 0,
    ),
    Case(
        "select",
        (whole(4, 5), floats(4, 5), floats(4, 5) + 1),
        lambda c, x, y: mb.select(cond=mb.greater(x=c, y=like(c, 0.0)), a=x, b=y),
        lambda c, x, y: torch.where(c > 0, x, y),
    ),
    Case(
        "fill",
        (floats(2, 3),),
        lambda x: [
            mb.fill(shape=[2, 3], value=np.float32(1.5)),
            mb.fill(shape=mb.shape(x=x), value=7),
        ],
        lambda x: [torch.full((2, 3), 1.5), torch.full((2, 3), 7, dtype=torch.int32)],
    ),
    Case(
        "range_1d",
        (ints(3, low=4, high=5),),
        lambda x: [
            mb.range_1d(start=1, end=9, step=3),
            mb.range_1d(start=0.5, end=2.0, step=0.25),
        ],
        lambda x: [torch.arange(1, 9, 3).int(), torch.arange(0.5, 2.0, 0.25)],
    ),
    Case(
        "shape",
        (floats(2, 3, 4),),
        lambda x: mb.shape(x=x),
        lambda x: torch.tensor([2, 3, 4], dtype=torch.int32),
    ),
    constant_case(
        "constexpr_affine_dequantize",
        (6, 8),
        affine,
        (CODES - 20 - np.arange(6)[:, None]).astype(np.float32) * SCALES[:, None],
        UP_TO_17,
    ),
    constant_case(
        "constexpr_affine_dequantize",
        (6, 8),
        affine_scalar,
        (CODES - 7).astype(np.float32) * 0.5,
        UP_TO_17,
    ),
    blockwise_case("int4", SIGNED4, BLOCK_SCALES),
    blockwise_case("int4", SIGNED4, BLOCK_SCALES, BLOCK_OFFSETS - 6),
    blockwise_case("uint4", CODES % 16, BLOCK_SCALES, BLOCK_OFFSETS),
    blockwise_case("int8", CODES - 20, SCALES.reshape(6, 1)),
    blockwise_case("uint8", CODES + 99, SCALES.reshape(6, 1), np.arange(6).reshape(6, 1) + 98),
    blockwise_case("int8", CODES - 20, ROW_SCALES),
    # Too small for the weight file: packed inside the specification.
    blockwise_case("int4", np.array([[-8, 7, -1], [0, 3, -5]]), np.array([[0.5]], np.float32)),
    blockwise_case("int8", CODES - 20, np.array([[0.5]], np.float32)),
    nested_case(),
    *(lut_case_ios16(bits) for bits in (1, 2, 4, 6, 8)),
    *(
        lut_case_ios18(bits, groups)
        for bits, groups in [
            (1, (1, 1)),
            (2, (2, 1)),
            (3, (1, 4)),
            (4, (6, 1)),
            (6, (3, 2)),
            (8, (1, 1)),
        ]
    ),
    lut_case_vectors(0),
    lut_case_vectors(-1),
    constant_case("constexpr_sparse_to_dense", (5, 7), sparse_ios16, SPARSE, UP_TO_17),
    constant_case("constexpr_sparse_to_dense", (5, 7), sparse_ios18, SPARSE, ONLY_18),
    constant_case(
        "constexpr_cast", NONZERO.shape, cast_from_half, NONZERO.astype(np.float32), UP_TO_17
    ),
]


def save(program: Any, folder: Path, target: str, name: str = "model") -> Path:
    """Write a MIL program as it is, without rewriting it, with Apple's serializer."""
    with library.quiet():
        model = ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=ct.target[target],
            compute_precision=ct.precision.FLOAT32,
            pass_pipeline=ct.PassPipeline.EMPTY,
            skip_model_load=True,
        )
        model.save(str(folder / f"{name}.mlpackage"))
    return folder / f"{name}.mlpackage"


def program(target: str, inputs: dict[str, Any], build: Callable[..., dict[str, Any]]) -> Any:
    """A MIL program.

    Args:
        inputs: (shape, MIL type) by name.
        build: inputs by keyword -> outputs by name.
    """
    specs = {n: mb.TensorSpec(shape=shape, dtype=kind) for n, (shape, kind) in inputs.items()}
    with library.quiet(), Function(specs, opset_version=ct.target[target]) as function:
        outputs = build(**function.inputs)
        function.set_outputs([mb.identity(x=v, name=n) for n, v in outputs.items()])
    whole_program = Program()
    whole_program.add_function("main", function)
    return whole_program


def model_file(package: Path) -> Path:
    return package / "Data" / "com.apple.CoreML" / "model.mlmodel"


def weight_file(package: Path) -> Path:
    return package / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"


def specification(package: Path) -> Any:
    return library.model_messages().Model.FromString(model_file(package).read_bytes())


def block_of(model: Any) -> Any:
    function = model.mlProgram.functions["main"]
    return function.block_specializations[function.opset]


def operations(package: Path) -> Any:
    return block_of(specification(package)).operations


def returnable(value: Any) -> Any:
    """Core ML returns floats and int32 only."""
    return (
        value
        if value.dtype in (types.fp16, types.fp32, types.int32)
        else mb.cast(x=value, dtype="int32")
    )


def listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


Outputs = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Outputs]:
    """All cases of a target as one program: outputs by name, for a target and a float type."""

    @cache
    def outputs(target: str, kind: str) -> Outputs:
        own = {f"c{i}": c for i, c in enumerate(CASES) if target in c.targets}
        arrays = {
            f"{name}_{i}": array.astype(NUMPY[kind]) if array.dtype.kind == "f" else array
            for name, case in own.items()
            for i, array in enumerate(case.inputs)
        }

        def build(**values: Any) -> dict[str, Any]:
            results = {}
            for name, case in own.items():
                taken = [values[f"{name}_{i}"] for i in range(len(case.inputs))]
                for i, value in enumerate(listed(case.build(*taken))):
                    results[f"{name}_out_{i}"] = returnable(value)
            return results

        kinds = {"f": getattr(types, kind), "i": types.int32}
        inputs = {n: (a.shape, kinds[a.dtype.kind]) for n, a in arrays.items()}
        package = save(program(target, inputs, build), tmp_path_factory.mktemp("cases"), target)
        assert {case.op for case in own.values()} <= {op.type for op in operations(package)}
        return open_program(package)(arrays)

    for target, kind in RUNS:
        outputs(target, kind)
    return outputs


@pytest.mark.parametrize(
    ("number", "target", "kind"),
    [
        pytest.param(number, target, kind, id=f"{case.op}-{number}-{target}-{kind}")
        for number, case in enumerate(CASES)
        for target, kind in RUNS
        if target in case.targets
    ],
)
def test_an_operator_computes_what_torch_does(
    number: int, target: str, kind: str, evaluated: Callable[[str, str], Outputs]
) -> None:
    case = CASES[number]
    outputs = evaluated(target, kind)
    wanted = listed(case.expect(*(torch.from_numpy(a) for a in case.inputs)))
    for i, want in enumerate(wanted):
        have = torch.from_numpy(outputs[f"c{number}_out_{i}"])
        if want.dtype != torch.float32:
            assert have.dtype == torch.int32
            assert torch.equal(have, want.int())
            continue
        assert have.dtype in (torch.float32, torch.float16)
        if have.dtype == torch.float16:
            torch.testing.assert_close(have.float(), want, rtol=1e-3, atol=1e-6)
        else:
            torch.testing.assert_close(have, want)


def test_every_operator_has_a_case() -> None:
    assert {case.op for case in CASES} == set(TABLE)


# Rounding.


def small(target: str, kind: str, folder: Path, build: Callable[..., Any], *arrays: Any) -> Any:
    """Run a program with one output."""
    inputs = {f"x{i}": (a.shape, getattr(types, kind)) for i, a in enumerate(arrays)}
    package = save(program(target, inputs, lambda **v: {"y": build(*v.values())}), folder, target)
    return open_program(package)({f"x{i}": a for i, a in enumerate(arrays)})["y"]


def test_fp16_overflows_as_on_a_device_and_fp32_does_not(tmp_path: Path) -> None:
    x = np.array([300.0, 60000.0, -300.0], np.float32)

    def squares(x: Any) -> Any:
        return mb.mul(x=x, y=mb.mul(x=x, y=like(x, 2.0)))

    half = small("iOS17", "fp16", tmp_path, squares, x)
    assert half.dtype == np.float16 and half.tolist() == [math.inf, math.inf, math.inf]
    full = small("iOS17", "fp32", tmp_path, squares, x)
    assert full.dtype == np.float32 and full.tolist() == [180000.0, 7.2e9, 180000.0]


def test_sums_are_in_float32_and_each_operator_rounds_once(tmp_path: Path) -> None:
    x = np.ones((1, 4096), np.float32)

    def build(x: Any) -> Any:
        total = mb.matmul(x=x, y=x, transpose_y=True)  # fp16 sums would stall at 2048
        return mb.sub(x=mb.add(x=total, y=like(x, 1.0)), y=like(x, 4096.0))  # 4097 is no fp16

    assert small("iOS17", "fp16", tmp_path, build, x).tolist() == [[0.0]]
    assert small("iOS17", "fp32", tmp_path, build, x).tolist() == [[1.0]]


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
def test_unpack_reads_the_lowest_bits_first(bits: int) -> None:
    codes = np.arange(77) * 37 % (1 << bits)
    spread = ((codes[:, None] >> np.arange(bits)) & 1).astype(np.uint8)
    packed = np.packbits(spread.reshape(-1), bitorder="little")
    assert unpack(torch.from_numpy(packed), bits, 77).tolist() == codes.tolist()


# Whole models: torch -> coremltools -> compressed by coremltools -> evaluator.


class Block(nn.Module):
    """A convolution, a layer norm, self-attention and a gated feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 64, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(64)
        self.qkv = nn.Linear(64, 192)
        self.out = nn.Linear(64, 64)
        self.up = nn.Linear(64, 128)
        self.down = nn.Linear(128, 64)

    def forward(self, image: Tensor, shift: Tensor) -> Tensor:
        x = self.conv(image).flatten(2).transpose(1, 2) + shift[:, None]
        q, k, v = self.qkv(self.norm(x)).unflatten(2, (3, 4, 16)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        y: Tensor = x + self.down(F.gelu(self.up(x), approximate="tanh"))
        return y


@dataclass(frozen=True)
class Converted:
    module: Block
    arrays: dict[str, np.ndarray]
    models: dict[str, Any]

    def wanted(self) -> Tensor:
        with torch.no_grad():
            y: Tensor = self.module(*(torch.from_numpy(a) for a in self.arrays.values()))
        return y


@pytest.fixture(scope="module")
def converted() -> Converted:
    """The block at fp16 with fp32 inputs and outputs, by target."""
    torch.manual_seed(0)
    module = Block().eval()
    arrays = {"image": floats(2, 4, 16, 12), "shift": floats(2, 64)}
    trace: Any = torch.jit.trace
    with library.quiet():
        traced = trace(module, tuple(torch.from_numpy(a) for a in arrays.values()))
        models = {
            target: ct.convert(
                traced,
                inputs=[ct.TensorType(n, a.shape, np.float32) for n, a in arrays.items()],
                outputs=[ct.TensorType("y", dtype=np.float32)],
                minimum_deployment_target=ct.target[target],
                skip_model_load=True,
            )
            for target in ("iOS17", "iOS18")
        }
    return Converted(module, arrays, models)


def run_saved(model: Any, folder: Path, arrays: dict[str, np.ndarray], **settings: Any) -> Tensor:
    with library.quiet():
        model.save(str(folder / "saved.mlpackage"))
    run = open_program(folder / "saved.mlpackage", **settings)
    first, second = run(arrays)["y"], run(arrays)["y"]
    np.testing.assert_array_equal(first, second)
    return torch.from_numpy(first)


def relative(have: Tensor, want: Tensor) -> float:
    return float((have - want).norm() / want.norm())


@pytest.mark.parametrize("target", ["iOS17", "iOS18"])
def test_a_converted_module_computes_what_torch_does(
    converted: Converted, target: str, tmp_path: Path
) -> None:
    have = run_saved(converted.models[target], tmp_path, converted.arrays)
    kinds = {op.type for op in operations(tmp_path / "saved.mlpackage")}
    assert ("scaled_dot_product_attention" in kinds) == (target == "iOS18")
    assert 0 < relative(have, converted.wanted()) < 2e-3


def linear(**settings: Any) -> Callable[[Any], Any]:
    def compress(model: Any) -> Any:
        op = ct.optimize.coreml.OpLinearQuantizerConfig(weight_threshold=512, **settings)
        config = ct.optimize.coreml.OptimizationConfig(global_config=op)
        return ct.optimize.coreml.linear_quantize_weights(model, config)

    return compress


def palette(**settings: Any) -> Callable[[Any], Any]:
    def compress(model: Any) -> Any:
        op = ct.optimize.coreml.OpPalettizerConfig(weight_threshold=512, **settings)
        config = ct.optimize.coreml.OptimizationConfig(global_config=op)
        return ct.optimize.coreml.palettize_weights(model, config)

    return compress


def pruned(model: Any) -> Any:
    op = ct.optimize.coreml.OpMagnitudePrunerConfig(target_sparsity=0.4, weight_threshold=512)
    config = ct.optimize.coreml.OptimizationConfig(global_config=op)
    return ct.optimize.coreml.prune_weights(model, config)


GROUPED = {"granularity": "per_grouped_channel", "group_size": 16}
COMPRESSED = [
    ("iOS17", "affine_dequantize", linear(mode="linear_symmetric")),
    ("iOS17", "affine_dequantize", linear(mode="linear", dtype="uint8")),
    ("iOS18", "blockwise_shift_scale", linear(mode="linear_symmetric")),
    ("iOS18", "blockwise_shift_scale", linear(dtype="int4", granularity="per_block", block_size=4)),
    (
        "iOS18",
        "blockwise_shift_scale",
        linear(mode="linear", dtype="uint4", granularity="per_block", block_size=4),
    ),
    ("iOS17", "lut_to_dense", palette(mode="kmeans", nbits=4)),
    ("iOS17", "lut_to_dense", palette(mode="uniform", nbits=6)),
    ("iOS18", "lut_to_dense", palette(mode="uniform", nbits=3)),
    ("iOS18", "lut_to_dense", palette(mode="uniform", nbits=4, **GROUPED)),
    (
        "iOS18",
        "blockwise_shift_scale",  # of a palette: nested
        palette(mode="uniform", nbits=4, enable_per_channel_scale=True, **GROUPED),
    ),
    ("iOS17", "sparse_to_dense", pruned),
    ("iOS18", "sparse_to_dense", pruned),
]


@pytest.mark.parametrize(("target", "op", "compress"), COMPRESSED)
def test_weights_compressed_by_coremltools_are_what_it_makes_of_them(
    converted: Converted, target: str, op: str, compress: Callable[[Any], Any], tmp_path: Path
) -> None:
    with library.quiet():
        compressed = compress(converted.models[target])
        dense = ct.optimize.coreml.decompress_weights(compressed)
    have = run_saved(compressed, tmp_path, converted.arrays)
    assert f"constexpr_{op}" in {o.type for o in operations(tmp_path / "saved.mlpackage")}
    want = run_saved(dense, tmp_path, converted.arrays)
    assert not any(
        o.type.startswith("constexpr_") for o in operations(tmp_path / "saved.mlpackage")
    )
    assert relative(have, want) < 1e-4
    assert 1e-3 < relative(have, converted.wanted()) < 0.8


def test_weights_beyond_the_budget_are_read_again(
    converted: Converted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with library.quiet():
        model = linear(mode="linear_symmetric")(converted.models["iOS18"])
    reads: list[int] = []
    open_reader = library.blob_reader

    class Counted:
        def __init__(self, file: Path) -> None:
            self.reader = open_reader(file)

        def __getattr__(self, name: str) -> Any:
            reads.append(1)
            return getattr(self.reader, name)

    monkeypatch.setattr(library, "blob_reader", Counted)
    counts, outputs = [], []
    for keep_bytes in (1 << 30, 20_000, 0):
        reads.clear()
        outputs.append(run_saved(model, tmp_path, converted.arrays, keep_bytes=keep_bytes))
        counts.append(len(reads))  # of two runs
    once, some, twice = counts
    assert once < some < twice == 2 * once
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])


def test_activations_are_dropped_after_their_last_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[Tensor]] = []
    alive = []

    def watched(x: Tensor) -> Tensor:
        result = x.clone()
        made.append(weakref.ref(result))
        alive.append(sum(value() is not None for value in made))
        return result

    monkeypatch.setitem(TABLE, "relu", replace(TABLE["relu"], bind=lambda _: watched))

    def chain(x: Any) -> dict[str, Any]:
        for _ in range(8):
            x = mb.relu(x=x)
        return {"y": x}

    package = save(program("iOS17", {"x": ((4,), types.fp32)}, chain), tmp_path, "iOS17")
    open_program(package)({"x": floats(4)})
    assert len(alive) == 8 and max(alive) == 2


# What is refused.


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """x (2, 16) -> linear -> relu -> y (2, 8), fp16, two blobs; and n (3,) int32 -> add -> m."""

    def build(x: Any, n: Any) -> dict[str, Any]:
        flat = mb.linear(
            x=x, weight=like(x, floats(8, 16)), bias=like(x, np.arange(8)), name="flat"
        )
        narrow = mb.const(val=np.linspace(0, 1, 16).astype(np.float32), name="narrow")
        bright = mb.relu(x=flat, name="bright")
        return {
            "y": bright,
            "m": mb.add(x=n, y=np.array([1, 2, 3], np.int32), name="sum"),
            "w": mb.identity(x=narrow),
        }

    inputs = {"x": ((2, 16), types.fp16), "n": ((3,), types.int32)}
    return save(program("iOS17", inputs, build), tmp_path_factory.mktemp("pristine"), "iOS17")


@pytest.fixture
def package(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "model.mlpackage"))


def refused(package: Path, *words: str, prefix: str = "the evaluator cannot open it: ") -> None:
    with pytest.raises(CheckFailed) as caught:
        open_program(package)
    message = str(caught.value)
    assert message.startswith(f"{package}: {prefix}")
    assert "\n" not in message
    for word in words:
        assert word in message


def edit(package: Path, change: Callable[[Any, dict[str, Any]], object]) -> None:
    """Change the specification; ``change`` takes the model and its operations by output name."""
    model = specification(package)
    change(model, {op.outputs[0].name: op for op in block_of(model).operations})
    model_file(package).write_bytes(model.SerializeToString())


def test_the_pristine_package_runs(package: Path) -> None:
    x, n = floats(2, 16), np.array([5, 6, 7])
    outputs = open_program(package)({"x": x, "n": n})
    want = F.linear(torch.from_numpy(x), fixed(8, 16), torch.arange(8).float()).relu()
    torch.testing.assert_close(torch.from_numpy(outputs["y"]), want.half())
    assert outputs["m"].tolist() == [6, 8, 10] and outputs["m"].dtype == np.int32
    assert outputs["w"].shape == (16,) and outputs["w"].dtype == np.float32


def test_a_package_without_a_usable_manifest_is_refused(package: Path, tmp_path: Path) -> None:
    refused(tmp_path / "none.mlpackage", "no Manifest.json (No such file or directory)")
    manifest = package / "Manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace("rootModelIdentifier", "other"))
    refused(package, "Manifest.json does not name a root model")
    manifest.write_text("[]")
    refused(package, "Manifest.json does not name a root model")
    manifest.write_text(text[:-20])
    refused(package, "Manifest.json is not JSON")
    manifest.write_text(text.replace("com.apple.CoreML/weights", "com.apple.CoreML/other"))
    refused(package, "Data/com.apple.CoreML/other is missing")
    items = json.loads(text)
    key = next(k for k, v in items["itemInfoEntries"].items() if v["name"] == "weights")
    del items["itemInfoEntries"][key]
    manifest.write_text(json.dumps(items))
    refused(package, "const 'flat_weight_0'", "does not list weight file")
    for path in ("../../../secret", "/etc/passwd", "a\\b", ""):
        outside = json.loads(text)
        outside["itemInfoEntries"][key]["path"] = path
        manifest.write_text(json.dumps(outside))
        refused(package, f"'{path}' lies outside the package")
    manifest.write_text("[" * 100_000)
    refused(package, "Manifest.json is not JSON")
    manifest.unlink()
    refused(package, "no Manifest.json")


@pytest.mark.parametrize("name", ["weights/../../../../secret.bin", "/etc/passwd", "..", ""])
def test_weights_outside_the_package_are_not_read(package: Path, name: str) -> None:
    """A listed folder before it does not help: the path is taken as it is written."""
    (package.parent / "secret.bin").write_bytes(weight_file(package).read_bytes())
    model = library.model_messages().Model()
    model.ParseFromString(model_file(package).read_bytes())
    block = model.mlProgram.functions["main"].block_specializations
    for operation in next(iter(block.values())).operations:
        for value in operation.attributes.values():
            if value.WhichOneof("value") == "blobFileValue":
                value.blobFileValue.fileName = f"@model_path/{name}"
    model_file(package).write_bytes(model.SerializeToString())
    refused(package, f"'{name}' lies outside the package")


def test_a_damaged_specification_is_refused(package: Path) -> None:
    file = model_file(package)
    file.write_bytes(file.read_bytes()[:-9])
    refused(package, "model.mlmodel is not a model specification")
    file.write_bytes(b"")
    refused(package, "model.mlmodel holds no ML Program")
    file.unlink()
    refused(package, "Data/com.apple.CoreML/model.mlmodel is missing")


def test_a_specification_of_another_kind_is_refused(package: Path) -> None:
    model = library.model_messages().Model(specificationVersion=8)
    model.neuralNetwork.SetInParent()
    model_file(package).write_bytes(model.SerializeToString())
    refused(package, "model.mlmodel holds no ML Program")
    model.mlProgram.version = 1
    model_file(package).write_bytes(model.SerializeToString())
    refused(package, "the program has no function 'main'")
    model.mlProgram.functions["main"].opset = "CoreML7"
    model_file(package).write_bytes(model.SerializeToString())
    refused(package, "function 'main' has no block for opset 'CoreML7'")


def test_a_missing_or_truncated_weight_file_is_refused(package: Path) -> None:
    file = weight_file(package)
    whole_file = file.read_bytes()
    file.write_bytes(whole_file[:200])
    refused(package, "const 'flat_weight_0': weight.bin at 64: the blob ends at", "the file at 200")
    file.write_bytes(whole_file[:70])
    refused(package, "weight.bin at 64: the file ends at 70")
    file.write_bytes(b"\0" * len(whole_file))
    refused(package, "weight.bin at 64: no blob begins there")
    file.unlink()
    refused(package, "weight.bin: No such file or directory")


def blob(op: Any) -> Any:
    return op.attributes["val"].blobFileValue


BAD_OFFSETS = {
    10_000: "weight.bin at 10000: the file ends at",
    1 << 63: "weight.bin at 9223372036854775808: the file ends at",
    63: "weight.bin at 63: no blob begins there",
    128: "weight.bin at 128: no blob begins there",
}


@pytest.mark.parametrize(("offset", "words"), BAD_OFFSETS.items())
def test_a_wrong_blob_offset_is_refused(package: Path, offset: int, words: str) -> None:
    edit(package, lambda _, ops: setattr(blob(ops["flat_weight_0"]), "offset", offset))
    refused(package, "const 'flat_weight_0': ", words)


def test_a_blob_of_another_type_or_size_is_refused(package: Path) -> None:
    def swap(_: Any, ops: dict[str, Any]) -> None:
        blob(ops["flat_weight_0"]).offset = blob(ops["narrow"]).offset

    edit(package, swap)
    refused(package, "the blob is not fp16")

    def shrink(_: Any, ops: dict[str, Any]) -> None:
        blob(ops["flat_weight_0"]).offset = 64
        weight = ops["flat_weight_0"]
        retype(weight.outputs[0], weight.attributes["val"], size=7)

    edit(package, shrink)
    refused(package, "the blob has 256 bytes, fp16 (7, 16) needs 224")


def test_unknown_operators_are_named_at_once(package: Path) -> None:
    edit(package, lambda _, ops: setattr(ops["bright"], "type", "sinh"))
    refused(package, prefix="operator 'sinh' is not known to the evaluator")
    edit(package, lambda _, ops: setattr(ops["sum"], "type", "cumsum"))
    refused(package, prefix="operators 'cumsum', 'sinh' are not known to the evaluator")


def bind(op: Any, parameter: str, name: str) -> None:
    op.inputs[parameter].arguments[0].name = name


def retype(*values: Any, element: int | None = None, size: int | None = None) -> None:
    """Change the element type or the first size of declared types."""
    for value in values:
        tensor = value.type.tensorType
        if element is not None:
            tensor.dataType = element
        if size is not None:
            tensor.dimensions[0].constant.size = size


FP16, FP32, INT32 = 10, 11, 23

BROKEN: dict[str, Callable[[Any, dict[str, Any]], object]] = {
    "relu 'bright': value 'later' is used before it is defined": lambda _, ops: bind(
        ops["bright"], "x", "later"
    ),
    "relu 'bright': its input 'x' is missing": lambda _, ops: ops["bright"].inputs.pop("x"),
    "relu 'bright': it has no input 'z'": lambda _, ops: bind_new(ops["bright"], "z", "x"),
    "relu 'bright': its input 'x' has 2 values": lambda _, ops: bind_new(ops["bright"], "x", "x"),
    "relu 'bright': 'bright' is fp16, declared as fp32 (2, 8)": lambda _, ops: retype(
        ops["bright"].outputs[0], element=FP32
    ),
    "add 'sum': it mixes fp32 and int32": lambda _, ops: bind(ops["sum"], "y", "narrow"),
    "relu 'bright': it does not take int32": lambda _, ops: bind(ops["bright"], "x", "n"),
    "const 'sum_y_0': a constant of 3 values is declared as int32 (4)": lambda _, ops: retype(
        ops["sum_y_0"].outputs[0], ops["sum_y_0"].attributes["val"], size=4
    ),
    "const 'sum_y_0': its value is int32 (3), declared as fp16 (3)": lambda _, ops: retype(
        ops["sum_y_0"].outputs[0], element=FP16
    ),
    "const 'sum_y_0': it has no 'val'": lambda _, ops: ops["sum_y_0"].attributes.pop("val"),
    "relu 'flat': value 'flat' is defined twice": lambda _, ops: setattr(
        ops["bright"].outputs[0], "name", "flat"
    ),
    "output 'other' is in the description only": lambda model, _: model.description.output.add(
        name="other"
    ),
    "input 'x' is in the program only": lambda model, _: model.description.input.pop(0),
    "input 'x' is described as int32 (2, 16), but is fp16 (2, 16)": lambda model, _: setattr(
        model.description.input[0].type.multiArrayType, "dataType", 131104
    ),
    "a value is of stateType": lambda model, _: (
        model.mlProgram.functions["main"].inputs[0].type.stateType.SetInParent()
    ),
}


def bind_new(op: Any, parameter: str, name: str) -> None:
    op.inputs[parameter].arguments.add(name=name)


@pytest.mark.parametrize(("words", "change"), BROKEN.items(), ids=list(BROKEN))
def test_a_program_that_breaks_its_own_types_is_refused(
    package: Path, words: str, change: Callable[[Any, dict[str, Any]], object]
) -> None:
    edit(package, change)
    refused(package, words)


def test_a_parameter_that_is_not_what_the_operator_takes_is_refused(tmp_path: Path) -> None:
    def build(x: Any) -> dict[str, Any]:
        return {"y": mb.gelu(x=mb.softmax(x=x, axis=-1, name="s"), mode="EXACT", name="g")}

    package = save(program("iOS17", {"x": ((2, 3), types.fp32)}, build), tmp_path, "iOS17")
    edit(package, lambda _, ops: ops["s"].inputs.pop("axis"))
    refused(package, "softmax 's': its input 'axis' is missing")
    edit(package, lambda _, ops: bind_new(ops["s"], "axis", "g_mode_0"))
    refused(package, "softmax 's': value 'g_mode_0' is used before it is defined")

    def rename(_: Any, ops: dict[str, Any]) -> None:
        bind(ops["s"], "axis", "s_axis_0")
        ops["g_mode_0"].attributes["val"].immediateValue.tensor.strings.values[0] = "FAST"

    edit(package, rename)
    refused(package, "gelu 'g': its 'mode' is 'FAST'")


@pytest.mark.parametrize(
    ("op", "kinds", "words"),
    [
        ("add", ["bool", "bool"], "it does not take bool"),
        ("conv", ["fp16", "int8"], "it does not take int8"),
        ("logical_and", ["bool", "int32"], "it takes bool only"),
        ("select", ["int32", "fp16", "fp16"], "it takes bool only"),
        ("select", ["bool", "fp16", "fp32"], "it mixes fp16 and fp32"),
        ("gather", ["fp16", "fp32"], "its indices are fp32"),
        ("scaled_dot_product_attention", ["fp16"] * 3 + ["int32"], "its mask is int32"),
    ],
)
def test_element_types_that_an_operator_does_not_take(
    op: str, kinds: list[str], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        TABLE[op].result(kinds, Parameters({}, {}))


def test_a_result_of_another_shape_than_declared_stops_the_run(package: Path) -> None:
    def grow(model: Any, ops: dict[str, Any]) -> None:
        for name in ("bright", "y"):
            retype(ops[name].outputs[0], size=3)
        for output in model.description.output:
            if output.name == "y":
                output.type.multiArrayType.shape[0] = 3

    edit(package, grow)
    with pytest.raises(CheckFailed) as caught:
        open_program(package)({"x": floats(2, 16), "n": np.zeros(3, np.int32)})
    assert str(caught.value) == (
        f"{package}: relu 'bright': 'bright' has shape (2, 8), declared as fp16 (3, 8)"
    )


def test_an_index_outside_stops_the_run(tmp_path: Path) -> None:
    inputs = {"i": ((2,), types.int32)}
    package = save(
        program("iOS17", inputs, lambda i: {"y": mb.gather(x=floats(4, 3), indices=i, name="g")}),
        tmp_path,
        "iOS17",
    )
    run = open_program(package)
    assert run({"i": np.array([0, -4])})["y"].shape == (2, 3)
    for index in (4, -5):
        with pytest.raises(CheckFailed, match="gather 'g': an index is outside of 4 entries"):
            run({"i": np.array([0, index])})


def test_inputs_are_checked(package: Path) -> None:
    run = open_program(package)
    good = {"x": floats(2, 16), "n": np.zeros(3, np.int32)}
    for inputs, words in [
        ({"x": good["x"]}, "input 'n' is missing"),
        (good | {"z": good["x"]}, "no input is named 'z'; known: n, x"),
        (good | {"x": floats(2, 15)}, "input 'x' has shape (2, 15), declared as fp16 (2, 16)"),
        (good | {"n": np.zeros(3)}, "input 'n' is float64, declared as int32 (3)"),
    ]:
        with pytest.raises(CheckFailed) as caught:
            run(inputs)
        assert str(caught.value) == f"{package}: {words}"


def test_the_caller_keeps_its_arrays(package: Path) -> None:
    x = floats(2, 16)
    x.flags.writeable = False
    run = open_program(package)
    run({"x": x, "n": np.zeros(3, np.int32)})["w"][:] = 7
    assert run({"x": x, "n": np.zeros(3, np.int32)})["w"].max() == 1


def test_coremltools_says_nothing() -> None:
    code = (
        "from exporter.backends.coreml import library; "
        "library.coremltools(); library.program_messages(); library.model_messages()"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout + done.stderr == ""

"""Random weights as trained networks have them: the same bytes on any machine."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from statistics import NormalDist

import numpy as np

from exporter.network import denoiser
from exporter.synth.presets import SAMPLE_SIZE, Preset

ITEM_BYTES = 2  # of bfloat16
BLOCK_VALUES = 1 << 18
OUTLIER_EVERY, OUTLIER_FACTOR = 500, 5.0
POSITION_TABLE = "pos_embed.pos_embed"

EMBEDDINGS = {
    "*.token_embedding.weight": 0.02,
    "*.position_embedding.weight": 0.01,
    "shared.weight": 1.0,
    "*.relative_attention_bias.weight": 0.5,
}
GAINS = {"*norm*.linear.weight": 0.75, "decoder.conv_out.weight": 0.8}
TEXT_RESIDUALS = ("*.out_proj.weight", "*.fc2.weight", "*.o.weight", "*.wo.weight")


@dataclass(frozen=True)
class TensorPlan:
    """A tensor that will be written."""

    component: str
    name: str
    shape: tuple[int, ...]

    @property
    def values(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return ITEM_BYTES * self.values


@dataclass(frozen=True)
class Draw:
    """How a tensor is drawn: normal, with output and input channels that stand out or without."""

    mean: float
    deviation: float
    loud_outputs: bool = False
    loud_inputs: bool = False


def draw_of(tensor: TensorPlan, preset: Preset) -> Draw:
    """The distribution of a tensor, by its name and shape."""
    if len(tensor.shape) == 1:
        return Draw(1.0, 0.05) if tensor.name.endswith(".weight") else Draw(0.0, 0.02)
    for pattern, deviation in EMBEDDINGS.items():
        if fnmatchcase(tensor.name, pattern):
            return Draw(0.0, deviation, loud_inputs=True)
    gain = _gain(tensor, preset) / math.sqrt(math.prod(tensor.shape[1:]))
    return Draw(0.0, gain, loud_outputs=True, loud_inputs=True)


def _gain(tensor: TensorPlan, preset: Preset) -> float:
    text = {
        "text_encoder": preset.clip_l.layers,
        "text_encoder_2": preset.clip_g.layers,
        "text_encoder_3": preset.t5.layers,
    }
    if tensor.component in text and any(fnmatchcase(tensor.name, p) for p in TEXT_RESIDUALS):
        return 1 / math.sqrt(2 * text[tensor.component])
    if fnmatchcase(tensor.name, "*.SelfAttention.q.weight"):
        return 1 / math.sqrt(preset.t5.head_width)
    gains = (g for pattern, g in GAINS.items() if fnmatchcase(tensor.name, pattern))
    return next(gains, 1.0)


def blocks(tensor: TensorPlan, preset: Preset, seed: int) -> Iterator[np.ndarray]:
    """The values of a tensor in order, as little-endian bfloat16 bits (uint16), block by block."""
    if tensor.name == POSITION_TABLE:
        yield from _position_rows(preset.transformer)
        return
    label = f"{seed}/{tensor.component}/{tensor.name}"
    key = int.from_bytes(hashlib.sha256(label.encode()).digest()[:16], "little")
    draw, source = draw_of(tensor, preset), np.random.PCG64(key)
    outputs, inputs = (*tensor.shape, 1)[:2]
    rest = math.prod(tensor.shape[2:])
    usual = _quantiles(draw.mean, draw.deviation)
    loud = _quantiles(draw.mean, OUTLIER_FACTOR * draw.deviation)
    loud_outputs = _channels(source, outputs if draw.loud_outputs else 0)
    loud_inputs = _channels(source, inputs if draw.loud_inputs else 0)
    step = max(1, BLOCK_VALUES // (inputs * rest))
    for start in range(0, outputs, step):
        shape = (min(step, outputs - start), inputs, rest)
        raw = source.random_raw(-(-math.prod(shape) // 4))
        codes = raw.astype("<u8", copy=False).view("<u2")[: math.prod(shape)].reshape(shape)
        block = np.take(usual, codes)
        block[:, loud_inputs] = np.take(loud, codes[:, loud_inputs])
        rows = loud_outputs[(loud_outputs >= start) & (loud_outputs < start + step)] - start
        block[rows] = np.take(loud, codes[rows])
        yield block


def _channels(source: np.random.PCG64, count: int) -> np.ndarray:
    """Indices of the channels that stand out among ``count``: about one in OUTLIER_EVERY."""
    picks = [int(r) % count for r in source.random_raw(round(count / OUTLIER_EVERY))]
    return np.unique(np.array(picks, dtype=np.int64))


@functools.cache
def _standard_quantiles() -> np.ndarray:
    """The 65,536 quantiles (i + 1/2) / 65,536 of the normal distribution, in float64."""
    half = [NormalDist().inv_cdf((i + 0.5) / 65536) for i in range(32768)]
    return np.array(half + [-z for z in reversed(half)])


@functools.lru_cache(maxsize=32)
def _quantiles(mean: float, deviation: float) -> np.ndarray:
    return bfloat16_bits(mean + deviation * _standard_quantiles())


def bfloat16_bits(values: np.ndarray) -> np.ndarray:
    """Finite values as bfloat16, rounded half to even, as little-endian uint16 bits."""
    bits = values.astype("<f4").view("<u4")
    rounded: np.ndarray = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    return rounded


def _position_rows(config: denoiser.TransformerConfig) -> Iterator[np.ndarray]:
    """The position table (side * side, width), a row of patches at a time, as diffusers has it.

    The first half of the channels says the column, the second half the row; each half is sines,
    then cosines, of position * 10000^-(i / n) (diffusers, get_2d_sincos_pos_embed). Positions run
    over the base of a 128 x 128 latent however large the table is.
    """
    side, count = config.table_side, config.width // 4
    positions = [i * (SAMPLE_SIZE // config.patch) / side for i in range(side)]
    frequencies = [10000 ** -(i / count) for i in range(count)]
    angles = [[p * f for f in frequencies] for p in positions]
    waves = [[math.sin(a) for a in row] + [math.cos(a) for a in row] for row in angles]
    table = bfloat16_bits(np.array(waves))
    for row in table:
        yield np.concatenate([table, np.broadcast_to(row, table.shape)], 1)

"""The noise that ``torch.randn`` draws with a CPU generator, without torch.

The generator is MT19937 (Matsumoto and Nishimura 1998) seeded with the low 32 bits of the seed;
numpy's ``RandomState`` is the same generator with the same seeding. Normals come from the
Box-Muller transform, in two layouts that torch switches between by size.
"""

from __future__ import annotations

import math
import operator

import numpy as np

from exporter.errors import InputError

FILL_FROM = 16  # torch fills in blocks of 16 from this many values on
LEAST_SEED, MOST_SEED = -(1 << 63), (1 << 64) - 1  # what torch.manual_seed takes


def check_seed(seed: object) -> int:
    """A seed as torch takes it; raises InputError for one that it does not take.

    One below 0 stands for the number with the same 64 bits.
    """
    try:
        found = operator.index(seed)  # type: ignore[arg-type]
    except TypeError:
        found = MOST_SEED + 1
    if isinstance(seed, bool) or not LEAST_SEED <= found <= MOST_SEED:
        raise InputError(
            "a whole number from -2^63 to 2^64 - 1 is expected", field="seed", given=repr(seed)
        )
    return found


class TorchNoise:
    """A stream of standard normals; ``TorchNoise(s).randn(n)`` is ``torch.randn(n)`` after
    ``torch.manual_seed(s)``, to float32 rounding of logarithm and cosine.

    Successive calls continue the stream as torch's do. Raises InputError for a seed that torch does
    not take.
    """

    def __init__(self, seed: int) -> None:
        self._bits = np.random.RandomState(check_seed(seed) & 0xFFFFFFFF)
        self._spare: float | None = None

    def randn(self, *shape: int) -> np.ndarray:
        """Standard normals of ``shape``, float32."""
        size = math.prod(shape)
        values = self._fill(size) if size >= FILL_FROM else self._one_by_one(size)
        return values.astype(np.float32).reshape(shape)

    def _raw(self, count: int) -> np.ndarray:
        return self._bits.randint(0, 1 << 32, size=count, dtype=np.uint32)

    def _fill(self, size: int) -> np.ndarray:
        """Blocks of 16: eight radii, eight angles. A ragged end is drawn again as a whole block
        over the last 16 values."""
        uniform = self._uniform24(size)
        blocks = size // FILL_FROM * FILL_FROM
        values = np.empty(size)
        values[:blocks] = _box_muller(uniform[:blocks])
        if blocks < size:
            values[-FILL_FROM:] = _box_muller(self._uniform24(FILL_FROM))
        return values

    def _uniform24(self, count: int) -> np.ndarray:
        """float32 uniforms in [0, 1) of 24 bits, as float64."""
        return (self._raw(count) & 0xFFFFFF).astype(np.float64) * 2.0**-24

    def _one_by_one(self, size: int) -> np.ndarray:
        """Pairs in double precision; the second of a pair waits for the next call."""
        values = np.empty(size)
        for i in range(size):
            if self._spare is not None:
                values[i], self._spare = self._spare, None
                continue
            angle, radius = self._uniform53(), self._uniform53()
            radius = math.sqrt(-2.0 * math.log1p(-radius))
            values[i] = radius * math.cos(2.0 * math.pi * angle)
            self._spare = radius * math.sin(2.0 * math.pi * angle)
        return values

    def _uniform53(self) -> float:
        high, low = (int(v) for v in self._raw(2))
        return ((high << 32 | low) & ((1 << 53) - 1)) * 2.0**-53


def _box_muller(uniform: np.ndarray) -> np.ndarray:
    """(n,) uniforms, n a multiple of 16 -> (n,) normals (Box and Muller 1958)."""
    first, second = np.split(uniform.reshape(-1, 2, FILL_FROM // 2), 2, axis=1)
    radius = np.sqrt(-2.0 * np.log(1.0 - first))
    angle = 2.0 * math.pi * second
    pairs = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return pairs.reshape(-1)

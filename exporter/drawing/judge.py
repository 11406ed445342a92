"""A package's filter: its classifier on finished pictures, and on previews.

Of a picture that is rejected nothing reaches the caller: where a package has a filter, the loop
hands out no latent of a step, of previews those that pass and none of the last step, and overwrites
what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from exporter.errors import CheckFailed
from exporter.package.manifest import Filter, Stage
from exporter.package.pixels import NOT_FINITE

Ports = dict[str, np.ndarray]
Run = Callable[[Mapping[str, np.ndarray]], Ports]


def fed(pixels: np.ndarray, entry: Filter) -> np.ndarray:
    """(H, W, 3) uint8 -> the classifier's input, float32, of ``entry.shape``."""
    from PIL import Image

    resample = Image.Resampling[entry.resample.upper()]
    whole = Image.fromarray(pixels).resize((entry.width_px, entry.height_px), resample)
    unit = np.asarray(whole, np.float32) / np.float32(255)
    if entry.channels == "BGR":
        unit = unit[..., ::-1]
    values = {"unit": unit, "signed": unit * 2 - 1, "levels": unit * 255}[entry.range]
    mean, std = (np.asarray(numbers, np.float32) for numbers in (entry.mean, entry.std))
    scaled = (values - mean) / std
    if entry.layout == "NCHW":
        scaled = scaled.transpose(2, 0, 1)
    return np.ascontiguousarray(scaled[None], dtype=np.float32)


def score_of(values: np.ndarray, entry: Filter) -> float:
    """The score in a classifier's output; raises CheckFailed where it is no number."""
    flat = np.asarray(values, np.float64).ravel()
    if not np.isfinite(flat).all():
        raise CheckFailed(f"the filter: its output {NOT_FINITE}")
    if entry.activation == "softmax":
        shares = np.exp(flat - flat.max())
        flat = shares / shares.sum()
    if entry.activation == "sigmoid":
        flat = 0.5 + 0.5 * np.tanh(flat / 2)  # the same, and it does not overflow
    return float(flat[entry.index])


def is_rejected(score: float, entry: Filter) -> bool:
    """Whether a picture with this score is not to be handed out."""
    return score >= entry.threshold if entry.reject == "above" else score <= entry.threshold


class Judge:
    """Looks at pictures; the classifier is opened for the first and kept until ``release``."""

    def __init__(self, entry: Filter, stage: Stage, opened: Callable[[str], Run]) -> None:
        self._entry, self._opened = entry, opened
        (self._part,) = stage.parts
        (self._input,) = stage.inputs
        (self._output,) = stage.results
        self._session: Run | None = None

    def score(self, pixels: np.ndarray) -> float:
        """Of (H, W, 3) uint8; raises CheckFailed where the classifier gives no number."""
        if self._session is None:
            self._session = self._opened(self._part)
        outputs = self._session({self._input: fed(pixels, self._entry)})
        return score_of(outputs[self._output], self._entry)

    def rejects(self, score: float) -> bool:
        """Whether a picture with this score is not to be handed out."""
        return is_rejected(score, self._entry)

    @property
    def label(self) -> str:
        """What the score is of."""
        return self._entry.label

    def release(self) -> None:
        """Let go of the classifier."""
        self._session = None


class Glimpses:
    """Previews of one picture while the filter may still reject it.

    Each is shown while its step is the latest one, and if it passes; past one that does not, none.
    """

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._latest: Callable[[], np.ndarray | None] | None = None
        self._step = 0
        self._is_barred = False

    def of(self, show: Callable[[], np.ndarray | None]) -> Callable[[], np.ndarray | None]:
        """The preview of the step that is the latest now; it gives None where it is withheld."""
        self._latest, self._step = show, self._step + 1
        return partial(self._look, self._step)

    def lapse(self) -> None:
        """The step is no longer the latest: its preview cannot be asked for any more."""
        self._latest = None

    def _look(self, step: int) -> np.ndarray | None:
        show = self._latest
        if show is None or step != self._step or self._is_barred:
            return None
        pixels = show()
        if pixels is None:
            return None
        self._is_barred = self._judge.rejects(self._judge.score(pixels))
        if self._is_barred:
            wipe(pixels)
            return None
        return pixels


def wipe(*arrays: np.ndarray) -> None:
    """Overwrite what a caller is not to find in memory."""
    for array in arrays:
        if array.flags.writeable:
            array.fill(0)

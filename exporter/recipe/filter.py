"""``[filter]`` of a recipe: the user's classifier that pictures have to pass, and how it is fed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from exporter import backends
from exporter.backends.contract import Filtering
from exporter.errors import InputError, known

Reject = Literal["above", "below"]
Activation = Literal["none", "sigmoid", "softmax"]
Layout = Literal["NCHW", "NHWC"]
Channels = Literal["RGB", "BGR"]
Resample = Literal["bilinear", "bicubic", "lanczos", "nearest"]
Range = Literal["unit", "signed", "levels"]
CHOICES: dict[str, tuple[str, ...]] = {
    "reject": get_args(Reject),
    "activation": get_args(Activation),
    "layout": get_args(Layout),
    "channels": get_args(Channels),
    "resample": get_args(Resample),
    "range": get_args(Range),
}
KEYS = (
    "graph", "output", "index", "label", "threshold", "width_px", "height_px", "mean", "std",
    *CHOICES,
)  # fmt: skip
MOST_INDEX = 2**31 - 1
MOST_SIZE_PX = 1 << 14
LONGEST_LABEL = 200
T = TypeVar("T")


@dataclass(frozen=True)
class FilterChoice:
    """A classifier, and what a picture has to score.

    Attributes:
        graphs: its file or folder by backend; under the empty name, for any backend that takes it.
        output: the name of its output; None: its only one.
        index: of the score in the output.
        label: what the score is of.
        threshold, reject: a picture is rejected at the threshold and above it, or below it.
        activation: of the output, before the score is taken.
        width_px, height_px: of the input, where the graph leaves them free; None: as the graph has.
        layout: of the input; None: the axis of 3 tells.
        channels, resample, range, mean, std: how a picture becomes numbers (``manifest.Filter``).
    """

    graphs: Mapping[str, str]
    threshold: float
    output: str | None = None
    index: int = 0
    label: str = ""
    reject: Reject = "above"
    activation: Activation = "none"
    width_px: int | None = None
    height_px: int | None = None
    layout: Layout | None = None
    channels: Channels = "RGB"
    resample: Resample = "bilinear"
    range: Range = "unit"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @property
    def decisive(self) -> dict[str, object]:
        """What decides a package's bytes beside the graph itself, wherever that lies."""
        return {key: value for key, value in asdict(self).items() if key != "graphs"}

    def graph(self, backend: str) -> Path:
        """The classifier for a backend; raises InputError for none, and for another kind."""
        loaded = backends.load(backend)
        if not isinstance(loaded, Filtering):
            raise InputError(f"[filter]: {backend} takes no classifier; leave it out of backends")
        given = self.graphs.get(backend) or self.graphs.get("")
        suffix = loaded.classifier_suffix
        if given is None:
            raise InputError(
                f'[filter] graph: names none for {backend}; add {backend} = "file{suffix}" to it, '
                "or leave the backend out"
            )
        if Path(given).suffix != suffix:
            raise InputError(
                f"[filter] graph: {given} is none that {backend} opens, which ends in {suffix}; "
                f'write graph = {{ {backend} = "file{suffix}" }}, or leave the backend out'
            )
        return Path(given)


def read_filter(table: Mapping[str, Any] | None, places: Mapping[str, Path]) -> FilterChoice | None:
    """The table ``[filter]``, whose keys are known; raises InputError that names one.

    Args:
        places: the graph's place by backend, or under the empty name.
    """
    if table is None:
        return None
    for name, place in places.items():
        if not place.exists():
            key = f"graph.{name}" if name else "graph"
            raise InputError(f"[filter] {key}: {place}: no such file or folder")
    threshold = table.get("threshold", ...)
    if threshold is ...:
        raise InputError("[filter] threshold is missing: the score at which a picture is rejected")
    found: dict[str, Any] = {
        "graphs": {name: str(place) for name, place in places.items()},
        "threshold": _number("threshold", threshold),
    }
    for key, options in CHOICES.items():
        if key in table:
            if table[key] not in options:
                raise InputError(f"[filter] {key}: {known('value', table[key], options)}")
            found[key] = table[key]
    for key, most in (("output", MOST_INDEX), ("label", LONGEST_LABEL)):
        if key in table:
            found[key] = _text(key, table[key], most)
    for key, least, most in (
        ("index", 0, MOST_INDEX), ("width_px", 1, MOST_SIZE_PX), ("height_px", 1, MOST_SIZE_PX)
    ):  # fmt: skip
        if key in table:
            found[key] = _whole(key, table[key], least, most)
    for key in ("mean", "std"):
        if key in table:
            found[key] = _three(key, table[key])
    if min(found.get("std", (1.0,))) <= 0:
        raise InputError(f"[filter] std = {list(found['std'])}: must be above 0")
    return FilterChoice(**found)


def graph_places(table: Mapping[str, Any]) -> dict[str, str]:
    """What ``graph`` names: one file, or one for each backend; raises InputError."""
    given = table.get("graph")
    if isinstance(given, str) and given:
        return {"": given}
    if (
        not isinstance(given, dict)
        or not given
        or not all(isinstance(place, str) and place for place in given.values())
    ):
        raise InputError(
            "[filter] graph: a file is expected, or one for each backend, such as "
            '{ onnx = "a.onnx", openvino = "a.xml" }'
        )
    for name in given:
        if name not in backends.names():
            raise InputError(f"[filter] graph: {known('backend', name, backends.names())}")
    return dict(given)


def _number(key: str, value: Any) -> float:
    if type(value) not in (int, float):
        raise InputError(f"[filter] {key} = {value!r}: must be a number")
    return float(value)


def _text(key: str, value: Any, most: int) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= most:
        raise InputError(
            f"[filter] {key} = {value!r:.60}: a text of 1 to {most} letters is expected"
        )
    return value


def _whole(key: str, value: Any, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise InputError(
            f"[filter] {key} = {value!r}: must be a whole number from {least} to {most}"
        )
    return value


def _three(key: str, value: Any) -> tuple[float, float, float]:
    values = value if isinstance(value, list) else [value] * 3
    if len(values) != 3 or not all(type(v) in (int, float) for v in values):
        raise InputError(
            f"[filter] {key} = {value!r}: a number, or one for each channel, is expected"
        )
    red, green, blue = (float(v) for v in values)
    return red, green, blue

"""One component of a checkpoint, whatever layout it was read from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from exporter.checkpoint.configs import decisive
from exporter.checkpoint.sources import FLOATS, TensorSource
from exporter.errors import InputError, Remark, known

MOST = 1 << 20  # of a width or a count in a configuration
COMPONENTS = {
    "transformer": "SD3Transformer2DModel",
    "text_encoder": "CLIPTextModelWithProjection",
    "text_encoder_2": "CLIPTextModelWithProjection",
    "text_encoder_3": "T5EncoderModel",
    "vae": "AutoencoderKL",
}
# What a recipe calls a component that it takes from a file or a folder of its own.
PARTS = {
    "transformer": "transformer",
    "clip_l": "text_encoder",
    "clip_g": "text_encoder_2",
    "t5": "text_encoder_3",
    "vae": "vae",
}
# Tensors that no graph reads and that change no picture: tables of positions, CLIP's temperature,
# the half of a whole CLIP that sees, the decoder of a whole T5.
CLIP_HARMLESS = ("*position_ids", "logit_scale", "vision_model.*", "visual_projection.weight")
HARMLESS = {
    "text_encoder": CLIP_HARMLESS,
    "text_encoder_2": CLIP_HARMLESS,
    "text_encoder_3": ("decoder.*", "lm_head.weight"),
}
# T5's embedding is stored under either name, or under both.
TIED = {"text_encoder_3": {"encoder.embed_tokens.weight": "shared.weight"}}


class CheckpointRemark(Remark):
    """Something was asked of a checkpoint that it has in part, or that was guessed."""


@dataclass(frozen=True)
class Component:
    """A configuration and an index of tensors, by the names of diffusers and transformers.

    Attributes:
        name: as in ``COMPONENTS``.
        place: the folder or the file that it was read from, for errors.
        described_in: what says its configuration, for errors.
        config: the keys that decide (``configs.decisive``).
        tensors: where each tensor's values come from.
        files: that the tensors lie in.
        called: what the file calls a tensor of this name.
    """

    name: str
    place: Path
    described_in: str
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorSource]
    files: tuple[Path, ...]
    called: Callable[[str], str] = str

    def integer(self, key: str, low: int = 1, high: int = MOST) -> int:
        """A whole number of the configuration."""
        value = self._value(key)
        if type(value) is not int or not low <= value <= high:
            raise self._refused(key, value, f"a whole number from {low} to {high}")
        return value

    def number(self, key: str, low: float = 0.0, high: float = 1e6) -> float:
        """A number of the configuration."""
        value = self._value(key)
        if type(value) not in (int, float) or not low <= value <= high:
            raise self._refused(key, value, f"a number from {low:g} to {high:g}")
        return float(value)

    def flag(self, key: str) -> bool:
        """True or false."""
        value = self._value(key)
        if type(value) is not bool:
            raise self._refused(key, value, "true or false")
        return value

    def integers(self, key: str, low: int, high: int) -> tuple[int, ...]:
        """A list of whole numbers of the configuration."""
        value = self._value(key)
        if not isinstance(value, list) or not all(
            type(v) is int and low <= v <= high for v in value
        ):
            raise self._refused(key, value, f"a list of whole numbers from {low} to {high}")
        return tuple(value)

    def require(self, key: str, allowed: tuple[Any, ...]) -> Any:
        """A value of the configuration that must be one of those the graphs can express."""
        value = self.config.get(key)
        if value not in allowed:
            raise InputError(
                f"{self.described_in}: {key} = {value!r} is not supported; "
                f"supported: {', '.join(repr(a) for a in allowed)}"
            )
        return value

    def require_divisible(self, key: str, value: int, by: str, divisor: int) -> None:
        """Raise InputError unless one value of the configuration is a multiple of another."""
        if value % divisor:
            raise InputError(
                f"{self.described_in}: {key} = {value} is no multiple of {by} = {divisor}"
            )

    def _value(self, key: str) -> Any:
        value = self.config.get(key)
        if value is None:
            found = "is null" if key in self.config else "is missing"
            raise InputError(f"{self.described_in}: key '{key}' {found}")
        return value

    def _refused(self, key: str, value: object, expected: str) -> InputError:
        return InputError(f"{self.described_in}: {key} = {value!r}: {expected} is expected")

    def info(self, tensor: str) -> TensorSource:
        """Look a tensor up by name; raises InputError when the component lacks it."""
        try:
            return self.tensors[tensor]
        except KeyError:
            raise InputError(
                f"{self.place}: tensor {self.worded(tensor)} is missing; the weights do not fit "
                f"{self.configuration}"
            ) from None

    def read(self, tensor: str, rows: slice | None = None) -> torch.Tensor:
        """Read one tensor, or rows of axis 1 of it: float32, float16 or bfloat16.

        ``rows`` serves tables (1, rows, channels) of which a part is enough.
        """
        return self.info(tensor).read(rows)

    def worded(self, tensor: str) -> str:
        """A tensor as its file calls it, and as it is read where that is not the same."""
        called = self.called(tensor)
        return f"'{called}'" if called == tensor else f"'{called}' (read as '{tensor}')"

    @property
    def configuration(self) -> str:
        """What its configuration is from, for errors."""
        is_file = self.described_in.endswith(".json")
        return Path(self.described_in).name if is_file else "the shape of the others"


def component_of(
    name: str,
    place: Path,
    described_in: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorSource],
    files: Sequence[Path],
    called: Callable[[str], str] = str,
) -> Component:
    """A component of what any layout holds under the names of diffusers and transformers.

    Its tensors are those that matter, each once. Raises InputError for one that cannot be computed
    with.
    """
    ties = TIED.get(name, {})
    found = {ties.get(key, key): source for key, source in tensors.items() if key in ties}
    found |= {key: source for key, source in tensors.items() if key not in ties}
    harmless = HARMLESS.get(name, ())
    found = {k: v for k, v in found.items() if not any(fnmatchcase(k, p) for p in harmless)}
    for key, source in found.items():
        if source.dtype not in FLOATS:
            raise InputError(
                f"{source.file}: tensor '{key}': {known('dtype', source.dtype, FLOATS)}"
            )
    decided = decisive(COMPONENTS[name], config)
    return Component(name, place, described_in, decided, found, tuple(files), called)

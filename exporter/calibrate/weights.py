"""Reads the tensors of programs from a checkpoint, computing codes as they are asked for."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from exporter.calibrate.codes import best_codes
from exporter.calibrate.layer_inputs import LayerInputs
from exporter.calibrate.store import Calibration
from exporter.checkpoint.open import Checkpoint
from exporter.errors import InputError
from exporter.files.heap import release
from exporter.program.program import Constant, Folded, Stored
from exporter.quantize.formats import Format
from exporter.quantize.nearest import Encoded, decode, encode, refuse_infinite
from exporter.quantize.program import Methods, Part, Unrounded
from exporter.quantize.rounded import along

LARGE_VALUES = 1 << 18
ALIGNED_BYTES = 64  # where torch puts its own tensors


@dataclass(frozen=True, eq=False)
class Change:
    """What rounding changes: a weight by ``weight``, its layer's mean output by ``mean`` (R, N)."""

    weight: Tensor
    mean: Tensor | None


class Weights:
    """Reads the tensors of programs from a checkpoint, computing codes as they are asked for.

    What was read is kept up to ``keep_bytes``, so that a small model's codes are computed once
    and a large one's never fill the memory.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype = torch.float32,
        keep_bytes: int = 1 << 30,
        calibration: Calibration | None = None,
    ) -> None:
        self.checkpoint, self.dtype, self.calibration = checkpoint, dtype, calibration
        self._free_bytes = keep_bytes
        self._kept: dict[object, Tensor] = {}
        self._last: tuple[object, Encoded] | None = None
        self._mean_changes: dict[tuple[Stored, Format, Methods], Tensor | None] = {}

    def shape(self, source: Stored) -> tuple[int, ...]:
        """Shape of the tensor in the checkpoint."""
        return self.checkpoint.component(source.component).info(source.name).shape

    def read(self, source: object) -> Tensor:
        """The value of a tensor's source, floats in this reader's dtype.

        Raises InputError when a weight cannot be encoded.
        """
        if isinstance(source, Constant):
            value = torch.from_numpy(source.value)
            return value.to(torch.int32 if source.value.dtype.kind in "iu" else self.dtype)
        if isinstance(source, Folded):
            return torch.from_numpy(source.compute()).to(self.dtype)
        if source in self._kept:
            return self._kept[source]
        if isinstance(source, Stored):
            value = self._stored(source)
        elif isinstance(source, Unrounded):
            value = self._unrounded(source)
        else:
            value = self._part(source)
        size = value.numel() * value.element_size()
        if size <= self._free_bytes:
            self._free_bytes -= size
            self._kept[source] = value
        return value

    def _stored(self, source: Stored) -> Tensor:
        return self._raw(source).to(self.dtype)

    def _raw(self, source: Stored) -> Tensor:
        """In the checkpoint's dtype, and mapped if it is there as it is and begins where it may."""
        component = self.checkpoint.component(source.component)
        read = functools.partial(component.read, source.name)
        value = read(None) if source.derivation is None else source.derivation.value(read)
        if value.dtype is self.dtype and value.data_ptr() % ALIGNED_BYTES:
            # Kernels round otherwise on a tensor that begins elsewhere, and where it begins in its
            # file depends on what else is in it: packages of another layout would be others.
            value = value.clone()
        if value.numel() >= LARGE_VALUES:
            release()  # what a backend made of the weight before, and what encoding it took
        return value

    def _scaled(self, source: Stored, methods: Methods) -> Tensor:
        value = self._stored(source)
        if self.calibration is None or "equalize" not in methods:
            return value
        scaling = self.calibration.scaling(source)
        return value if scaling is None else scaling.apply(value)

    def _unrounded(self, source: Unrounded) -> Tensor:
        value = self._scaled(source.of, source.methods)
        if source.rows > 1:
            value = value.expand(source.rows, -1)
        if source.weight is None or source.format is None or not source.format.takes_methods:
            return value
        key = (source.weight, source.format, source.methods)
        if key not in self._mean_changes:
            self._encoded(*key)
        change = self._mean_changes[key]
        return value if change is None else value - change.to(self.dtype).reshape(value.shape)

    def _part(self, source: object) -> Tensor:
        assert isinstance(source, Part)
        encoded = self._encoded(source.of, source.format, source.methods, source.columns)
        value = getattr(encoded, source.part)
        assert isinstance(value, Tensor)
        return value.to(self.dtype) if source.part in ("scale", "palette") else value

    def _encoded(
        self, source: Stored, form: Format, methods: Methods, columns: Constant | None = None
    ) -> Encoded:
        key = (source, form, methods)
        if self._last is None or self._last[0] != (*key, columns):
            try:
                encoded = self._encode(source, form, methods, columns)
            except ValueError as error:
                where = f"{source.component}: tensor '{source.name}'"
                raise InputError(f"{where} {error}; it cannot be stored as {form}") from None
            self._last = ((*key, columns), encoded)
            if methods:
                self._mean_changes[key] = encoded.mean_change if "bias" in methods else None
        return self._last[1]

    def change(self, source: Stored, form: Format, methods: Methods) -> Change:
        """What rounding changes: the weight, and its layer's mean output."""
        encoded = self._encoded(source, form, methods)
        rounded = decode(encoded)
        return Change(rounded - self._scaled(source, methods), encoded.mean_change)

    def _encode(
        self, source: Stored, form: Format, methods: Methods, columns: Constant | None
    ) -> Encoded:
        if columns is not None:
            weight = self._scaled(source, methods).float()
            return encode(weight * along(torch.from_numpy(columns.value), weight.ndim, 1), form)
        if not methods:
            return encode(self._raw(source), form)
        inputs = self.calibration.layer(source) if self.calibration else None
        weight = self._scaled(source, methods).float()
        if inputs is None or not form.takes_methods:
            return encode(weight, form)
        refuse_infinite(*torch.aminmax(weight))
        scaling = self.calibration.scaling(source) if self.calibration else None
        if "equalize" in methods and scaling is not None and scaling.columns is not None:
            inputs = inputs.scaled(1 / scaling.columns)
        return calibrated(weight, form, inputs, methods)


def calibrated(weight: Tensor, form: Format, inputs: LayerInputs, methods: Methods) -> Encoded:
    """Round a float32 weight (N, K) in an integer format, for the inputs that its layer meets."""
    codes, grid = best_codes(weight, form, inputs, methods)
    groups = codes.reshape(*grid.scale.shape, -1)
    change = grid.values(groups, slice(None)).flatten(1) - weight.double()
    return Encoded(
        codes.to(torch.int8 if form.symmetric else torch.uint8),
        grid.scale.float(),
        None if form.symmetric else grid.zero_point.to(torch.uint8),
        mean_change=(inputs.mean.double() @ change.T).float(),
    )

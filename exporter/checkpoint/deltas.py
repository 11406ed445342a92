"""What a LoRA and its kin do to a tensor: formulas, and a source that applies them as it is read.

The formulas are those of peft's ``merge`` and, for the kinds of LyCORIS, of its weights: everything
in float32, one tensor at a time, nothing kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from exporter.checkpoint.sources import TensorSource
from exporter.checkpoint.spellings import THIRDS, Rows
from exporter.errors import InputError

Kind = Literal["lora", "loha", "lokr", "difference"]
Parts = Mapping[str, TensorSource]  # by what they are in the formula
MAGNITUDES = ("magnitude", "dora_scale")
# Parts whose axis 0 is the layer's outputs: rows of them are rows of the change.
BY_OUTPUT = ("up", "diff", *MAGNITUDES)


def pick(values: Tensor, rows: Rows) -> Tensor:
    """Rows (axis 0) of what another's layer has."""
    if rows == "all":
        return values
    if rows == "halves exchanged":
        return torch.cat(values.chunk(2)[::-1])
    return values.tensor_split(3)[THIRDS.index(rows)]


def _read(source: TensorSource) -> Tensor:
    return source.read().to(torch.float32)


def _lora(parts: Parts, rows: Rows) -> Tensor:
    down, up = _read(parts["down"]), pick(_read(parts["up"]).flatten(1), rows)
    if "mid" in parts:  # a convolution in three: to the rank, over the window, to the outputs
        return torch.einsum("op,pqhw,qi->oihw", up, _read(parts["mid"]), down.flatten(1))
    return up @ down.flatten(1)


def _factor(parts: Parts, name: str, core: str) -> Tensor:
    """A matrix, stored whole, as two of a small rank, or for a convolution as three."""
    if name in parts:
        return _read(parts[name])
    left, right = _read(parts[f"{name}_a"]), _read(parts[f"{name}_b"])
    if core in parts:
        return torch.einsum("ijhw,jr,ip->prhw", _read(parts[core]), right, left)
    return left @ right


def _loha(parts: Parts, rows: Rows) -> Tensor:
    one, two = (_factor(parts, f"hada_w{i}", f"hada_t{i}") for i in (1, 2))
    return pick(one * two, rows)


def _lokr(parts: Parts, rows: Rows) -> Tensor:
    one, two = _factor(parts, "lokr_w1", ""), _factor(parts, "lokr_w2", "lokr_t2")
    spread = one.reshape(*one.shape, *[1] * (two.ndim - 2))
    return pick(torch.kron(spread, two.contiguous()), rows)


def _difference(parts: Parts, rows: Rows) -> Tensor:
    return pick(_read(parts["diff"]), rows)


FORMULAS: Mapping[Kind, Callable[[Parts, Rows], Tensor]] = {
    "lora": _lora,
    "loha": _loha,
    "lokr": _lokr,
    "difference": _difference,
}


def extent(kind: Kind, parts: Parts) -> tuple[int, int] | None:
    """Outputs and values for each of the change that parts make; None: they do not fit together."""
    shapes = {name: source.shape for name, source in parts.items()}
    if kind == "lora":
        return _product(shapes["up"], shapes["down"], shapes.get("mid"))
    if kind == "loha":
        one = _product(shapes["hada_w1_a"], shapes["hada_w1_b"], shapes.get("hada_t1"), True)
        two = _product(shapes["hada_w2_a"], shapes["hada_w2_b"], shapes.get("hada_t2"), True)
        return one if one == two else None
    if kind == "lokr":
        one = _factor_extent(shapes, "lokr_w1", "")
        two = _factor_extent(shapes, "lokr_w2", "lokr_t2")
        if len(shapes.get("lokr_w1", (0, 0))) != 2:
            return None
        return (one[0] * two[0], one[1] * two[1]) if one and two else None
    shape = shapes["diff"]
    return (shape[0], math.prod(shape[1:])) if shape else None


def _factor_extent(
    shapes: Mapping[str, tuple[int, ...]], name: str, core: str
) -> tuple[int, int] | None:
    if name in shapes:
        whole = shapes[name]
        return (whole[0], math.prod(whole[1:])) if len(whole) > 1 else None
    return _product(shapes[f"{name}_a"], shapes[f"{name}_b"], shapes.get(core), True)


def _product(
    left: tuple[int, ...],
    right: tuple[int, ...],
    core: tuple[int, ...] | None = None,
    turned: bool = False,
) -> tuple[int, int] | None:
    """Outputs and values for each of ``left`` times ``right``, with a core of windows between.

    ``turned``: with a core, LyCORIS stores the left one by rank.
    """
    if len(left) < 2 or len(right) < 2:
        return None
    outputs, rank, inputs = left[0], math.prod(left[1:]), math.prod(right[1:])
    if core is None:
        return (outputs, inputs) if rank == right[0] else None
    if turned:
        outputs, rank = left[1], left[0]
    if len(core) != 4 or core[:2] != (rank, right[0]):
        return None
    return outputs, inputs * math.prod(core[2:])


def rank_of(kind: Kind, parts: Parts) -> int | None:
    """The rank that an alpha is divided by; None where no factor has one."""
    names = {"lora": ("down",), "loha": ("hada_w1_b",), "lokr": ("lokr_w2_b", "lokr_w1_b")}
    found = [size for n in names.get(kind, ()) if n in parts for size in parts[n].shape[:1]]
    return found[0] if found else None


@dataclass(frozen=True)
class Delta:
    """What one LoRA does to one tensor.

    Attributes:
        kind: which formula.
        parts: its tensors; with a ``magnitude`` (peft) or a ``dora_scale`` (LyCORIS) it is a DoRA.
        factor: alpha / rank.
        weight: that was asked for.
        rows: of what the formula gives, where the file's layer holds several of the checkpoint's.
    """

    kind: Kind
    parts: Parts
    factor: float
    weight: float
    rows: Rows = "all"

    @property
    def file(self) -> Path:
        return next(iter(self.parts.values())).file

    @property
    def scale(self) -> float:
        return self.factor * self.weight

    def raw(self) -> Iterator[Tensor]:
        """What decides the change at weight 1, as stored, whichever way a file splits rows."""
        whole = self.kind in ("loha", "lokr")  # no part of theirs has the rows
        yield _text(f"{self.kind}, {self.rows}" if whole else self.kind)
        yield torch.tensor(self.factor, dtype=torch.float64)
        for name, source in sorted(self.parts.items()):
            yield _text(name)
            for value in source.raw():
                flat = value.flatten() if name == "magnitude" else value
                yield pick(flat, self.rows) if name in BY_OUTPUT else flat

    def applied(self, base: Tensor, running: Tensor) -> Tensor:
        """A tensor with the change: float32, new; ``running`` is ``base`` with those before it.

        A DoRA gives every output (or input) of base + change the length that it learned; the length
        that it had is measured on the base alone, as peft does when several are merged.
        """
        delta = FORMULAS[self.kind](self.parts, self.rows).reshape(base.shape)
        # A difference is mapped from its file; what was computed is this function's to change.
        delta = delta * self.scale if self.kind == "difference" else delta.mul_(self.scale)
        lengths = self._lengths(base)
        if lengths is None:
            return delta.add_(running)
        axes = [axis for axis in range(base.ndim) if lengths.shape[axis] == 1]
        had = torch.linalg.vector_norm(base + delta, dim=axes, keepdim=True)
        return delta.add_(running).mul_(lengths / had)

    def _lengths(self, base: Tensor) -> Tensor | None:
        """What a DoRA learned, of the base's rank: for each output, or for each input."""
        name = next((name for name in MAGNITUDES if name in self.parts), None)
        if name is None:
            return None
        value = _read(self.parts[name])
        axis = axis_of_lengths(name, value.shape)
        value = pick(value.flatten(), self.rows) if axis == 0 else value.flatten()
        return value.reshape([-1 if i == axis else 1 for i in range(base.ndim)])


def axis_of_lengths(name: str, shape: tuple[int, ...]) -> int:
    """0: a length for each output; 1: LyCORIS can keep one for each input, as (1, inputs, ...)."""
    by_input = name == "dora_scale" and len(shape) > 1 and shape[0] == 1 and shape[1] > 1
    return 1 if by_input else 0


@dataclass(frozen=True)
class Merged:
    """A tensor of a checkpoint with the changes of LoRAs; float32.

    Attributes:
        name: of the tensor, for errors.
        base: the tensor without them.
        changes: in order.
    """

    name: str
    base: TensorSource
    changes: tuple[Delta, ...]

    @property
    def file(self) -> Path:
        return self.base.file

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def dtype(self) -> str:
        return "F32"

    def read(self, rows: slice | None = None) -> Tensor:
        """See ``TensorSource``; raises InputError when the sum is not finite."""
        base = running = _read(self.base)
        for change in self.changes:
            running = change.applied(base, running)
            if not torch.isfinite(running).all():
                raise InputError(
                    f"{change.file}: merged into '{self.name}', it gives values that are not finite"
                )
        return running if rows is None else running[:, rows]

    def raw(self) -> Iterator[Tensor]:
        yield from self.base.raw()
        for change in self.changes:
            yield torch.tensor(change.weight, dtype=torch.float64)
            yield from change.raw()


def _text(value: str) -> Tensor:
    """Words among the tensors that decide."""
    return torch.tensor(list(value.encode()), dtype=torch.uint8)

"""Stop 2, graphs: the network cut for a fixed schedule, on the ``meta`` device (no weights).

Each graph is a record, not a subclass. Its module's parameters bear the names of the checkpoint's
tensors, so no renaming table exists; what is not in the checkpoint is a ``constant``.

    graph         runs               in -> out
    clip_l, clip_g  once per prompt  ids -> penultimate hidden state, pooled
    t5              once per prompt  ids -> hidden state
    conditioner     once per prompt  hidden states, pooled -> context, modulation (one row a step)
    denoiser        once per step    latent, context, one modulation row -> velocity
    vae_decoder     once             latent -> image
    vae_encoder     image to image   image -> latent
    tiny_decoder    once, previews   latent -> image
    tiny_encoder    image to image   image -> latent
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from exporter.package.manifest import Port

Read = Callable[[slice | None], Tensor]  # of a stored tensor: rows of axis 1, or all of it


class Derivation(Protocol):
    """How a parameter comes from the tensor of the checkpoint that has its name. Frozen data."""

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The tensor's shape, given the parameter's."""

    def value(self, read: Read) -> Tensor:
        """The parameter, in the tensor's dtype."""


@dataclass(frozen=True)
class Crop:
    """The centre of a square table stored as (1, side * side, channels)."""

    side: int
    height: int
    width: int

    @property
    def rows(self) -> tuple[slice, ...]:
        """One slice of the stored rows for each row of the crop."""
        top, left = (self.side - self.height) // 2, (self.side - self.width) // 2
        starts = [(top + y) * self.side + left for y in range(self.height)]
        return tuple(slice(start, start + self.width) for start in starts)

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(1, side * side, channels) of (1, height * width, channels)."""
        return (1, self.side**2, shape[-1])

    def value(self, read: Read) -> Tensor:
        """(1, height * width, channels): the rows of the crop alone are read."""
        return torch.cat([read(rows) for rows in self.rows], 1)


@dataclass(frozen=True)
class Graph:
    """One graph before tracing.

    Attributes:
        name: as in the table above.
        component: folder of the checkpoint that holds the parameters.
        module: on the meta device; parameter names are tensor names of the component.
        inputs, outputs: names, shapes and dtypes, in order.
        constants: values of the module's non-persistent buffers, by name, in float64.
        derived: parameters that are not what the checkpoint stores under their name.
    """

    name: str
    component: str
    module: nn.Module
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    constants: Mapping[str, np.ndarray]
    derived: Mapping[str, Derivation] = field(default_factory=dict)

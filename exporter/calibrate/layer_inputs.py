"""What a linear layer's inputs look like: their mean and their covariance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class LayerInputs:
    """What a linear layer's inputs look like.

    Attributes:
        mean: (R, K) float32: the mean input; one row, or one for each row that the layer meets
            when they are few (the steps of a schedule, the pooled text).
        covariance: (B, k, k) float32, B k = K: diagonal blocks of the inputs' covariance around
            their mean. Widths up to 2048 are one block, larger ones the fewest equal ones.
        tokens: how many input vectors were seen.
    """

    mean: Tensor
    covariance: Tensor
    tokens: int

    def second_moment(self) -> Tensor:
        """(B, k, k): diagonal blocks of the mean of x x^T."""
        rows = self.mean.reshape(len(self.mean), *self.covariance.shape[:2])
        return self.covariance + torch.einsum("rbi,rbj->bij", rows, rows) / len(rows)

    def scaled(self, factor: Tensor) -> LayerInputs:
        """The statistics of x * ``factor``, (K,)."""
        blocks = factor.reshape(self.covariance.shape[:2])
        outer = blocks[:, :, None] * blocks[:, None, :]
        return LayerInputs(self.mean * factor, self.covariance * outer, self.tokens)

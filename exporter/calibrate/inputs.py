"""What a model's own trajectories say about its weights: the inputs that each layer meets.

The trajectories are the fixed steps, with both calls of guidance where there is some, over a
recipe's calibration prompts: what the model will meet on a device. A layer's inputs are measured
while all trajectories pass it, operator by operator, and written before the next layer's, so the
memory needed is one layer's, whatever the number of layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from exporter.calibrate.layer_inputs import LayerInputs
from exporter.calibrate.trajectories import Inputs
from exporter.errors import InputError
from exporter.program.program import MOST_ROWS, Program, Stored, linears
from exporter.program.run import run_all

ATEN = torch.ops.aten
MOST_WIDTH = 2048  # a covariance is kept in diagonal blocks of at most so many channels


def gather(
    program: Program,
    read: Callable[[object], Tensor],
    calls: Sequence[Inputs],
    keep: Callable[[Sequence[Stored], LayerInputs], None],
) -> None:
    """Measure the inputs of every linear layer of an unquantized program.

    Args:
        calls: inputs of the program, by port name.
        keep: called once for every distinct input, with the weights that meet it.

    Raises InputError naming the first layer that meets a value that is not finite.
    """
    layers = linears(program)
    readers: dict[fx.Node, list[fx.Node]] = {}
    for node in layers:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        readers.setdefault(source, []).append(node)
    first = {nodes[0]: source for source, nodes in readers.items()}
    sums: dict[fx.Node, _Sums] = {}

    def observe(node: fx.Node, arguments: Sequence[Any]) -> None:
        if node not in first:
            return
        source = first[node]
        running = sums[source] = sums[source] if source in sums else _Sums()
        running.add(arguments[0])
        if running.calls == len(calls):
            weights, found = [layers[n] for n in readers[source]], sums.pop(source).finish()
            if not (found.mean.isfinite().all() and found.covariance.isfinite().all()):
                raise InputError(
                    f"{weights[0].component}: on the calibration prompts the layer of "
                    f"'{weights[0].name}' meets values that are not finite"
                )
            keep(weights, found)

    samples = [{k: torch.from_numpy(np.asarray(v)) for k, v in call.items()} for call in calls]
    run_all(program, read, samples, observe)


def _blocks(width: int) -> int:
    """How many equal blocks of at most ``MOST_WIDTH`` channels a width is cut into."""
    return next(n for n in range(-(-width // MOST_WIDTH), width + 1) if width % n == 0)


class _Sums:
    """Running sums of one layer's inputs around those of the first call, in float64."""

    def __init__(self) -> None:
        self.calls = self.tokens = 0
        self._centre = self._moment = self._total = torch.zeros(())

    def add(self, x: Tensor) -> None:
        rows = x.reshape(-1, x.shape[-1])
        few = len(rows) <= MOST_ROWS
        if not self.calls:
            self._centre = rows if few else rows.mean(0, keepdim=True)
        rows = rows - self._centre
        blocks = rows.reshape(len(rows), _blocks(rows.shape[1]), -1)
        self._moment = self._moment + torch.einsum("tbi,tbj->bij", blocks, blocks).double()
        wide = rows.double()
        self._total = self._total + (wide if few else wide.sum(0, keepdim=True))
        self.calls += 1
        self.tokens += len(rows)

    def finish(self) -> LayerInputs:
        away = self._total * (len(self._total) / self.tokens)
        rows = away.reshape(len(away), *self._moment.shape[:2])
        within = torch.einsum("rbi,rbj->bij", rows, rows) / len(rows)
        covariance = self._moment / self.tokens - within
        return LayerInputs((self._centre + away).float(), covariance.float(), self.tokens)

"""Programs run in torch by the runtime's own loop: what every backend is compared with."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
import torch

from exporter.calibrate.weights import Weights
from exporter.drawing.loop import Player, Session
from exporter.drawing.text import Encode
from exporter.network.wiring import picture_of, stages
from exporter.package.manifest import Schedule
from exporter.program.run import run
from exporter.quantize.program import QuantizedProgram


def torch_session(program: QuantizedProgram, weights: Weights) -> Session:
    """A session that runs a program in torch, in float32."""

    def call(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        given = {name: torch.from_numpy(np.asarray(value)) for name, value in inputs.items()}
        return {k: v.numpy() for k, v in run(program, weights.read, given).items()}

    return call


def reference_player(
    programs: Mapping[str, QuantizedProgram],
    weights: Weights,
    schedule: Schedule,
    tokenizers: Mapping[str, Encode],
) -> Player:
    """A player over programs in torch: what every backend is compared with."""
    graphs = tuple(programs.values())
    turns = stages(graphs, schedule.guidance)
    opened = functools.partial(_open, programs, weights)
    return Player(schedule, picture_of(graphs), tokenizers, turns, opened)


def _open(programs: Mapping[str, QuantizedProgram], weights: Weights, name: str) -> Session:
    return torch_session(programs[name], weights)

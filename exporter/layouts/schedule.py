"""How a list of sigmas gets into a client that has a scheduler of its own. No torch.

Every client here steps by flow matching: x' = x + (c' - c) v, with v asked for at timestep N c of
its own sigmas c, which follow from a shift, from N training timesteps and from the number of steps.
Where both can be set so that c are our sigmas, they are. Elsewhere the schedule is bent inside the
graph: it knows its own timestep for each of the client's, and multiplies v by a gain, our step over
the client's. Either way x goes along our trajectory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

EXACT = 1e-6  # of a sigma; clients compute theirs in float32
MOST_TRAIN_TIMESTEPS = 1000  # as many as diffusers has
NEAR = 1e-3  # of N: how far a client's timestep may lie from the one that it stands for


@dataclass(frozen=True)
class ClientSchedule:
    """A client's scheduler as it is set, and what the graph makes of it.

    Attributes:
        shift, train_timesteps: what ``scheduler_config.json`` says.
        timesteps: what the client feeds, one for each step.
        gains: our step over the client's; ones where the client's sigmas are ours.
        is_exact: whether the client's sigmas are ours, so that it can also start from a picture.
    """

    shift: float
    train_timesteps: int
    timesteps: tuple[float, ...]
    gains: tuple[float, ...]
    is_exact: bool

    @property
    def steps(self) -> int:
        return len(self.timesteps)

    @property
    def sigmas(self) -> tuple[float, ...]:
        """The client's own, with the 0 at the end."""
        return (*(t / self.train_timesteps for t in self.timesteps), 0.0)

    @property
    def tolerance(self) -> float:
        """How far a timestep may be off, in the client's units; what is farther is not of ours."""
        gaps = [a - b for a, b in pairwise((*self.timesteps, 0.0))]
        return min(NEAR * self.train_timesteps, min(gaps) / 4)


def client_sigmas(shift: float, train_timesteps: int, steps: int) -> tuple[float, ...]:
    """The sigmas, without the 0, of FlowMatchEulerDiscreteScheduler: shifted twice at the end."""

    def shifted(sigma: np.ndarray) -> np.ndarray:
        return shift * sigma / (1 + (shift - 1) * sigma)

    least = float(shifted(np.array(1 / train_timesteps)))
    return tuple(float(sigma) for sigma in shifted(np.linspace(1.0, least, steps)))


def client_schedule(sigmas: Sequence[float]) -> ClientSchedule:
    """The scheduler of a client that is to go along these sigmas, from at most 1 down to 0.

    ``shift``(1, (n - 1) / n, ... 1 / n) is what a client has with shift S and S (n - 1) + 1
    training timesteps, if that is a whole number. Any other list is bent: the client goes down in
    even steps, which lose no digits.
    """
    steps = len(sigmas) - 1
    shift, train = _closed_form(sigmas) or (1.0, steps)
    return bent(shift, train, client_sigmas(shift, train, steps), sigmas)


def bent(
    shift: float, train: int, theirs: Sequence[float], sigmas: Sequence[float]
) -> ClientSchedule:
    """A client's scheduler, and the gains that lead along our sigmas where its own are others.

    Args:
        theirs: the client's sigmas, without the 0.
        sigmas: ours, with it.
    """
    steps = len(theirs)
    is_exact = bool(np.max(np.abs(np.subtract(theirs, sigmas[:-1]))) <= EXACT)
    ours, own = np.diff(sigmas), np.diff((*theirs, 0.0))
    gains = np.ones(steps) if is_exact else ours / own
    return ClientSchedule(
        shift, train, tuple(train * sigma for sigma in theirs), tuple(map(float, gains)), is_exact
    )


def _closed_form(sigmas: Sequence[float]) -> tuple[float, int] | None:
    """The shift and the training timesteps whose schedule this may be."""
    steps = len(sigmas) - 1
    if steps == 1:
        return (1.0, 1)
    even, second = 1 - 1 / steps, sigmas[1]
    if not 0 < second < 1:
        return None
    shift = round(second * (1 - even) / (even * (1 - second)), 6)
    train = shift * (steps - 1) + 1
    if abs(train - round(train)) > EXACT or not 1 <= round(train) <= MOST_TRAIN_TIMESTEPS:
        return None
    return shift, round(train)

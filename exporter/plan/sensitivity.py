"""What rounding each weight does to the final latent, measured on the trajectory.

To first order a change dW of a weight moves the final latent x by J dW. For a random v of
independent standard normal values, <v, J dW>^2 has the mean |J dW|^2, and one backward pass through
all steps gives <v, J dW> for every weight and every candidate precision at once, as the product of
dW with the gradient of <v, x> (the estimator of Hutchinson 1990). So each candidate's own rounding
errors are measured, not the size of its errors, and the cost does not grow with their number. Where
a layer's input is rounded, too, it is the change of the layer's output in place of J dW, along the
gradient by that output.

Programs are differentiated segment by segment: only what is alive between segments is kept, for so
many prompts at a time as fit, and weights are read for one segment at a time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, fx

from exporter.calibrate.trajectories import Inputs, Trajectories
from exporter.package.manifest import Schedule
from exporter.package.names import ENCODERS, NEGATIVE
from exporter.program.differentiate import Read, kept_bytes, pull_back
from exporter.program.program import Program
from exporter.quantize.rounded import CHANNELS

KEPT_BYTES = 1 << 30  # of values between segments
Back = list[dict[str, Tensor]]
Noise = dict[tuple[str, str], dict[str, float]]


class Changes(Protocol):
    """What rounding would change, tensor by tensor of the programs."""

    def asks(self, graph: str, source: object) -> bool:
        """Whether a tensor changes when some weight is rounded."""

    def of(self, graph: str, source: object) -> tuple[str, Mapping[str, Tensor]]:
        """That weight's name, and the tensor's change for each of the weight's candidates."""

    def rounds(self, graph: str, source: object) -> bool:
        """Whether some candidate of a weight rounds its layer's input, too."""

    def output(
        self, graph: str, source: object, layer: fx.Node, arguments: Sequence[Any]
    ) -> tuple[str, Mapping[str, Tensor]]:
        """That weight's name, and what such candidates add to what its layer puts out."""


def measure(
    programs: Mapping[str, Program],
    read: Read,
    trajectories: Trajectories,
    schedule: Schedule,
    changes: Changes,
    seed: int,
    probes: int = 1,
    progress: Callable[[str], None] = lambda line: None,
) -> Noise:
    """Noise power in the final latent of each change of a weight, as a share of the latent's power.

    Args:
        programs: not rounded, by graph.
        changes: what rounding would change; see ``Changes``.
        seed: of the probes v.
        probes: per prompt; the estimate's standard error falls with the root of prompts * probes.

    Returns:
        By graph and weight, for each candidate, the mean of <v, J dW>^2 over prompts and probes,
        divided by the mean of |x|^2.
    """
    latents = trajectories.latents
    generator = torch.Generator().manual_seed(seed)
    power = float(np.mean([np.sum(x.astype(np.float64) ** 2) for x in latents]))
    total: Noise = {}
    for probe in range(probes):
        cotangents = [torch.randn(latents[0].shape, generator=generator) for _ in latents]
        found = _products(
            programs, read, trajectories, schedule, changes, cotangents,
            functools.partial(_tell, progress, f"sensitivity {probe + 1} of {probes}"),
        )  # fmt: skip
        for key, products in found.items():
            row = total.setdefault(key, dict.fromkeys(products, 0.0))
            for name, values in products.items():
                row[name] += float(values.square().mean()) / power / probes
    return total


def _tell(progress: Callable[[str], None], start: str, line: str) -> None:
    progress(f"{start}: {line}")


Products = dict[tuple[str, str], dict[str, Tensor]]


def _products(
    programs: Mapping[str, Program],
    read: Read,
    trajectories: Trajectories,
    schedule: Schedule,
    changes: Changes,
    cotangents: list[Tensor],
    progress: Callable[[str], None],
) -> Products:
    """<v, J dW> of each weight and candidate, float64 by prompt."""
    count = len(cotangents)
    measuring = _Measuring(programs, read, changes, count, progress, {})
    conditions = _through_steps(trajectories, schedule, cotangents, measuring.back)
    for turn, given_by_prompt in enumerate(_turns(schedule, conditions)):
        some = slice(turn * count, (turn + 1) * count)
        below = measuring.back(
            "conditioner", trajectories.calls["conditioner"][some], given_by_prompt
        )
        for graph in (g for g in ENCODERS if g in trajectories.calls):
            suffix = graph.removeprefix("clip_")
            ports = {p.name: f"{p.name}_{suffix}" for p in programs[graph].outputs}
            given = [{port: b[name] for port, name in ports.items() if name in b} for b in below]
            measuring.back(graph, trajectories.calls[graph][some], given)
    return measuring.products


def _turns(schedule: Schedule, conditions: Back) -> list[Back]:
    """The gradients by the conditions, for each time that the conditioner runs for a picture.

    A fixed negative prompt's conditions are further outputs of the same call; any other's come
    from a call of its own.
    """
    guidance = schedule.guidance
    if guidance is None or guidance.negative_prompt is not None:
        return [conditions]
    names = ("context", "modulation")
    return [
        [{name: own[f"{prefix}{name}"] for name in names} for own in conditions]
        for prefix in ("", NEGATIVE)
    ]


@dataclass(frozen=True)
class _Measuring:
    """Pulls gradients back through graphs, and adds up in ``products`` what changes make of them.

    Attributes:
        prompts: how many there are.
    """

    programs: Mapping[str, Program]
    read: Read
    changes: Changes
    prompts: int
    progress: Callable[[str], None]
    products: Products

    def back(
        self, graph: str, calls: Sequence[Inputs], given: Sequence[Mapping[str, Tensor]]
    ) -> Back:
        """The gradients by a graph's inputs, of one call for each prompt."""
        program = self.programs[graph]
        layers = {n: s for n, s in _weights(program).items() if self.changes.rounds(graph, s)}
        asked = {s for s in program.tensors.values() if self.changes.asks(graph, s)}
        samples = [{k: torch.from_numpy(np.asarray(v)) for k, v in c.items()} for c in calls]
        side_by_side = max(1, KEPT_BYTES // max(1, kept_bytes(program)))
        found: Back = []
        for start in range(0, len(samples), side_by_side):
            self.progress(f"{graph}, prompt {start + 1} of {len(samples)}")
            some = slice(start, start + side_by_side)
            found += pull_back(
                program, self.read, samples[some], given[some], asked.__contains__,
                functools.partial(self._visit, graph, start),
                layers=layers, meet=functools.partial(self._meet, graph, layers, start),
            )  # fmt: skip
        return found

    def _visit(
        self, graph: str, start: int, source: object, gradients: Sequence[Tensor | None]
    ) -> None:
        weight, by_format = self.changes.of(graph, source)
        for prompt, gradient in enumerate(gradients, start):
            self._add((graph, weight), prompt, by_format, gradient)

    def _meet(
        self,
        graph: str,
        layers: Mapping[fx.Node, object],
        start: int,
        index: int,
        layer: fx.Node,
        arguments: Sequence[Any],
        gradient: Tensor,
    ) -> None:
        weight, by_format = self.changes.output(graph, layers[layer], layer, arguments)
        self._add((graph, weight), start + index, by_format, gradient)

    def _add(
        self,
        key: tuple[str, str],
        prompt: int,
        by_format: Mapping[str, Tensor],
        gradient: Tensor | None,
    ) -> None:
        sums = self.products.setdefault(key, {})
        for name, change in by_format.items():
            row = sums.setdefault(name, torch.zeros(self.prompts, dtype=torch.float64))
            if gradient is not None:
                row[prompt] += torch.sum(gradient * change, dtype=torch.float64)


def _weights(program: Program) -> dict[fx.Node, object]:
    """The source of each linear layer's and convolution's weight."""
    return {
        node: program.tensors[node.args[1].name]
        for node in program.nodes()
        if node.target in CHANNELS
        and isinstance(node.args[1], fx.Node)
        and node.args[1].name in program.tensors
    }


def _through_steps(
    trajectories: Trajectories, schedule: Schedule, cotangents: list[Tensor], back: Any
) -> Back:
    """Pull the final latents' gradients back through the steps, to the conditions'."""
    count, steps = len(cotangents), schedule.steps
    parts = _parts_of_velocity(schedule)
    found: list[dict[str, list[Tensor]]] = [{} for _ in range(count)]
    for step in reversed(range(steps)):
        sigma, following = schedule.sigmas[step : step + 2]
        euler = schedule.mode == "euler"
        by_velocity = following - sigma if euler else -(1 - following) * sigma
        by_latent = 1.0 if euler else 1 - following
        pulled = [by_latent * cotangent for cotangent in cotangents]
        for part, (prefix, factor) in enumerate(parts.items()):
            places = [(i * steps + step) * len(parts) + part for i in range(count)]
            calls = [trajectories.calls["denoiser"][place] for place in places]
            given = [{"velocity": factor * by_velocity * c} for c in cotangents]
            for i, gradients in enumerate(back("denoiser", calls, given)):
                pulled[i] = pulled[i] + gradients["latent"]
                for name in ("context", "modulation"):
                    found[i].setdefault(f"{prefix}{name}", []).append(gradients[name])
        cotangents[:] = pulled
    return [{name: _over_steps(name, parts) for name, parts in own.items()} for own in found]


def _over_steps(name: str, gradients: Sequence[Tensor]) -> Tensor:
    """The gradient by a condition, from those of the steps, last one first."""
    if name.endswith("modulation"):
        return torch.cat([*reversed(gradients)])
    return sum(gradients[1:], gradients[0])


def _parts_of_velocity(schedule: Schedule) -> dict[str, float]:
    """The denoiser's calls in a step, by how their conditions' names begin: what of its velocity
    each makes up. With guidance it is g v + (1 - g) n."""
    if schedule.guidance is None:
        return {"": 1.0}
    return {"": schedule.guidance.scale, NEGATIVE: 1 - schedule.guidance.scale}

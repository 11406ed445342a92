"""What the trainings share: resumable state, averaged weights, learning rate, log, time limit.

A run is a folder: `weights.safetensors` (averaged weights, float16, all that later stages need),
`state.safetensors` (everything needed to go on), `log.jsonl` (one line per report).
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

WARMUP_STEPS = 50
REPORT_EVERY_S, SAVE_EVERY_S = 10.0, 60.0


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train."""

    steps: int
    minutes: float  # training time of the whole stage, over all calls
    pause_minutes: float  # training time of this call
    batch: int
    rate: float
    seed: int
    device: str
    compile: bool
    bf16: bool

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser, *, batch: int, rate: float) -> None:
        """The options that every training has."""
        parser.add_argument("--steps", type=int, default=10**9)
        parser.add_argument("--minutes", type=float, default=math.inf, help="of the whole stage")
        parser.add_argument("--pause-minutes", type=float, default=math.inf, help="of this call")
        parser.add_argument("--batch", type=int, default=batch)
        parser.add_argument("--rate", type=float, default=rate, help="peak learning rate")
        parser.add_argument("--seed", type=int, default=0)
        parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
        parser.add_argument("--compile", action="store_true", help="torch.compile the blocks")
        parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")

    def autocast(self) -> torch.autocast:
        """Mixed precision, if asked for."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.bf16)

    @staticmethod
    def from_arguments(args: argparse.Namespace) -> Plan:
        """Read back what `add_arguments` added."""
        return Plan(
            args.steps,
            args.minutes,
            args.pause_minutes,
            args.batch,
            args.rate,
            args.seed,
            args.device,
            args.compile,
            args.bf16,
        )


def load_weights(model: nn.Module, folder: Path) -> None:
    """Load the averaged weights of a run."""
    weights = load_file(folder / "weights.safetensors")
    model.load_state_dict({name: value.float() for name, value in weights.items()})


def _replace(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write beside the final name, then rename: a killed run leaves the old file."""
    unfinished = path.with_suffix(".tmp")
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(own, unfinished, metadata)
    unfinished.replace(path)


@dataclass
class Run:
    """A training under way: `model` learns, `average` is its exponential moving average."""

    folder: Path
    model: nn.Module
    plan: Plan
    decay: float = 0.999
    step: int = 0
    minutes: float = 0.0  # spent in earlier calls
    average: nn.Module = field(init=False)
    optimizer: torch.optim.AdamW = field(init=False)
    _started: float = field(init=False)
    _meter: Meter = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.average = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=self.plan.rate,
            betas=(0.9, 0.99),
            weight_decay=0.01,
            fused=self.plan.device == "cuda",
        )
        self._resume()
        self._started, self._meter = time.monotonic(), Meter()

    @property
    def spent_minutes(self) -> float:
        """Training time over all calls."""
        return self.minutes + (time.monotonic() - self._started) / 60

    @property
    def progress(self) -> float:
        """0 at the start, 1 at the end: of the steps or of the minutes, whichever ends first."""
        return min(1.0, max(self.step / self.plan.steps, self.spent_minutes / self.plan.minutes))

    def rate(self) -> float:
        """Linear warm-up, constant, then a linear fall to zero over the last half."""
        warm = min(1.0, (self.step + 1) / WARMUP_STEPS)
        return self.plan.rate * warm * min(1.0, max(0.0, 1 - self.progress) / 0.5)

    def update(self) -> None:
        """One optimizer step from the gradients at hand, then move the average."""
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        averages: list[Tensor] = list(self.average.parameters())
        values = [value.detach() for value in self.model.parameters()]
        torch._foreach_lerp_(averages, values, 1 - decay)

    def steps(self) -> Iterator[int]:
        """Yield step numbers until the plan or this call's time ends; save now and then.

        At the end, save, and report what was counted since the last report.
        """
        saved = time.monotonic()
        while self.progress < 1 and self.spent_minutes - self.minutes < self.plan.pause_minutes:
            yield self.step
            if time.monotonic() - saved > SAVE_EVERY_S:
                self.save()
                saved = time.monotonic()
        self.save()
        if not self._meter.empty:
            self.report(self._meter.take(self.plan.batch))

    def count(self, losses: dict[str, Tensor]) -> None:
        """Add a step's losses to the means; report them when it is time."""
        self._meter.add(losses)
        if self._meter.due():
            self.report(self._meter.take(self.plan.batch))

    def report(self, losses: dict[str, float]) -> None:
        """Append a line to the log and print it."""
        line = {"step": self.step, "minutes": round(self.spent_minutes, 3), "rate": self.rate()}
        text = json.dumps({**line, **{name: round(value, 6) for name, value in losses.items()}})
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(text + "\n")
        print(text, flush=True)

    def _metadata(self) -> dict[str, str]:
        return {"step": str(self.step), "minutes": str(self.spent_minutes)}

    def save_weights(self) -> None:
        """Write the averaged weights."""
        halves = {k: v.half() for k, v in self.average.state_dict().items()}
        _replace(halves, self.folder / "weights.safetensors", self._metadata())

    def save(self) -> None:
        """Write the averaged weights and the state to go on from."""
        self.save_weights()
        state = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        state |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            moments = self.optimizer.state.get(parameter, {})
            state |= {f"{key}.{name}": moments[key] for key in moments}
        _replace(state, self.folder / "state.safetensors", self._metadata())

    def _resume(self) -> None:
        """Go on from the full state or, where only averaged weights were kept, from those."""
        weights, state = self.folder / "weights.safetensors", self.folder / "state.safetensors"
        source = state if state.exists() else weights
        if not source.exists():
            return
        with safe_open(source, "pt") as file:
            metadata = file.metadata()
        self.step, self.minutes = int(metadata["step"]), float(metadata["minutes"])
        if source == weights:
            load_weights(self.model, self.folder)
            load_weights(self.average, self.folder)
            return
        tensors = load_file(state)

        def part(prefix: str) -> dict[str, Tensor]:
            return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        self.average.load_state_dict(part("average."))
        moments = {key: part(key + ".") for key in ("step", "exp_avg", "exp_avg_sq")}
        for name, parameter in self.model.named_parameters():
            if name in moments["step"]:
                self.optimizer.state[parameter] = {
                    key: values[name].to(self.plan.device) for key, values in moments.items()
                }


class Meter:
    """Running means of losses, read out every few seconds without stalling the device."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._since = time.monotonic()

    def add(self, losses: dict[str, Tensor]) -> None:
        """Count one step."""
        for name, loss in losses.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(loss)) + loss.detach()
        self._count += 1

    @property
    def empty(self) -> bool:
        """Whether no step was counted since the last report."""
        return self._count == 0

    def due(self) -> bool:
        """Whether it is time for a report."""
        return time.monotonic() - self._since > REPORT_EVERY_S

    def take(self, batch: int) -> dict[str, float]:
        """Means since the last report, and samples per second; starts anew."""
        means = {name: total.item() / self._count for name, total in self._sums.items()}
        elapsed = time.monotonic() - self._since
        means["per_second"] = batch * self._count / elapsed
        self._sums, self._count, self._since = {}, 0, time.monotonic()
        return means

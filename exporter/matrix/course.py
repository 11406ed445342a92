"""What is done for a job, in which order: looked up, its parts made ahead, built.

A package whose files are large is split: what has to be measured comes first, then each of its
graphs, by whoever has time, into the cache, and at last somebody assembles it from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from exporter.matrix.outcome import Assignment, Forecast, Outcome, PackagePart


@dataclass(frozen=True)
class Task:
    """An order that is to be looked up, a part of it to be made, or it is to be built.

    Attributes:
        forecast: None: it is to be looked up.
        part: to be made into the cache; None: the whole is to be built.
        attempts: how often it was begun, this time included.
    """

    order: Assignment
    forecast: Forecast | None = None
    part: PackagePart | None = None
    attempts: int = 1

    @property
    def name(self) -> str:
        """Of the job, with the part's."""
        return f"{self.order.job.name}: {self.part.name}" if self.part else self.order.job.name

    @property
    def phase(self) -> str:
        """Which of the job's tasks it is."""
        if self.forecast is None:
            return "look up"
        return f"make {self.part.name}" if self.part else "build"

    @property
    def disk_bytes(self) -> int:
        if self.part is not None:
            return self.part.disk_bytes
        return self.forecast.disk_bytes if self.forecast else 0


@dataclass
class Course:
    """How far jobs are whose packages are split.

    Attributes:
        left: parts that are not made yet, by job.
        made: what came of those that are, by job.
    """

    left: dict[str, set[str]] = field(default_factory=dict)
    made: dict[str, list[Outcome]] = field(default_factory=dict)

    def after(self, task: Task, answer: Outcome | Forecast) -> list[Task] | Outcome:
        """What is to be done next for a job, maybe nothing yet; or what became of it."""
        if isinstance(answer, Forecast):
            return self._begun(replace(task, forecast=answer, attempts=1))
        if task.part is not None:
            return self._made(task, answer)
        earlier = self.made.pop(task.order.job.name, [])
        return merged(replace(answer, attempts=task.attempts), earlier)

    def _begun(self, task: Task) -> list[Task]:
        assert task.forecast is not None
        parts = task.forecast.parts
        if not parts:
            return [task]
        name = task.order.job.name
        self.left[name], self.made[name] = {part.name for part in parts}, []
        first = [part for part in parts if part.is_first]
        return [replace(task, part=part) for part in first or parts]

    def _made(self, task: Task, answer: Outcome) -> list[Task] | Outcome:
        name, forecast, part = task.order.job.name, task.forecast, task.part
        assert forecast is not None and part is not None
        self.left[name].discard(part.name)
        self.made[name].append(replace(answer, attempts=task.attempts))
        whole = replace(task, part=None, attempts=1)
        if part.is_first and answer.state != "failed":
            return [replace(whole, part=other) for other in forecast.parts if not other.is_first]
        if part.is_first:  # nothing can be made without it
            self.left[name].clear()
        if self.left[name]:
            return []
        failed = [one for one in self.made[name] if one.state == "failed"]
        if not failed:
            return [whole]
        return merged(replace(failed[0], seconds=0.0, cpu_s=0.0, attempts=1), self.made.pop(name))


def merged(last: Outcome, parts: Sequence[Outcome]) -> Outcome:
    """What became of a job, with what its parts took."""
    if not parts:
        return last
    emitted = [name for one in parts for name in one.emitted]
    measured = [one for one in (*parts, last) if one.peak_bytes is not None]
    # Of memory, what was taken beyond a prediction if anything was, else the most.
    worst = max(measured, key=lambda one: (one.is_over, one.peak_bytes or 0), default=last)
    return replace(
        last,
        emitted=tuple(dict.fromkeys([*emitted, *last.emitted])),
        taken=tuple(name for name in last.taken if name not in emitted),
        seconds=last.seconds + sum(one.seconds for one in parts),
        cpu_s=last.cpu_s + sum(one.cpu_s for one in parts),
        predicted_bytes=worst.predicted_bytes,
        peak_bytes=worst.peak_bytes,
        attempts=last.attempts + sum(one.attempts - 1 for one in parts),
        remarks=tuple(line for one in (*parts, last) for line in one.remarks),
    )

"""Jobs on this machine: workers in processes of their own, as many at once as memory allows.

A job is looked up first. One that has to be built says what that is predicted to take, and waits
until that is free: what the jobs that run have not taken yet of their own predictions is not. A
worker that ends, whatever killed it, costs the job that it had, which is begun again.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from exporter.files.memory import Free, anonymous_bytes, free_memory
from exporter.files.read import parse_json
from exporter.matrix.course import Course, Task
from exporter.matrix.outcome import Assignment, Forecast, Outcome
from exporter.matrix.worker import asked, heard
from exporter.progress import Progress

LOOK_BYTES = 700_000_000  # of a worker that has traced and builds nothing yet
POLL_S = 0.5  # of free memory, while a job waits for it
LAST_WORDS_BYTES = 4000  # of a worker that has ended
WORKER = (sys.executable, "-P", "-m", "exporter.matrix.worker")
HOME = Path(__file__).parents[2]


@dataclass(frozen=True)
class Local:
    """How jobs run on this machine.

    Attributes:
        workers: processes, at most.
        memory_bytes: that all of them may take together; None: what is free.
        retries: of a job whose worker ended.
        free: says what memory there is.
        command: starts a worker.
    """

    workers: int
    memory_bytes: int | None = None
    retries: int = 2
    free: Callable[[], Free] = free_memory
    command: tuple[str, ...] = WORKER

    def run(
        self, assignments: Sequence[Assignment], progress: Progress
    ) -> Generator[Outcome, None, None]:
        """The outcome of each order, as they come."""
        shop = _Shop(self, progress, [Task(one) for one in assignments])
        try:
            yield from shop.run()
        finally:
            shop.close()


def memory_of(task: Task) -> int:
    """What a task may take, predicted."""
    if task.part is not None:
        return task.part.memory_bytes
    return task.forecast.memory_bytes if task.forecast else LOOK_BYTES


@dataclass(eq=False)
class _Worker:
    """A process; ``task``: what it does now, ``last``: what it did last."""

    process: subprocess.Popen[str]
    said: IO[bytes]
    listener: threading.Thread
    task: Task | None = None
    last: Task | None = None

    @property
    def held_bytes(self) -> int:
        return anonymous_bytes(self.process.pid)

    @property
    def to_come_bytes(self) -> int:
        """What it may still take of what was predicted of its task."""
        return max(0, memory_of(self.task) - self.held_bytes) if self.task else 0

    def give(self, task: Task) -> None:
        self.task = self.last = task
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(asked(task)) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:  # it has ended, and its thread says so
            pass

    def end(self) -> None:
        """End it, whatever it does, and close what led to it."""
        self.process.kill()
        self.process.wait()
        self.listener.join()
        for stream in (self.process.stdin, self.process.stdout, self.said):
            with suppress(BrokenPipeError):  # what it was told last and did not read
                stream.close()  # type: ignore[union-attr]  # all are pipes or files

    def ending(self) -> str:
        """Why it ended, in one line."""
        code = self.process.wait()
        if code < 0:
            killed = ", as when memory runs out" if code == -9 else ""
            return f"its worker was ended by signal {-code}{killed}"
        self.said.seek(max(0, self.said.seek(0, os.SEEK_END) - LAST_WORDS_BYTES))
        lines = self.said.read().decode("utf-8", "replace").strip().splitlines()
        return f"its worker ended: {lines[-1] if lines else f'exit code {code}'}"


@dataclass
class _Shop:
    """The workers and what is left to do."""

    given: Local
    progress: Progress
    left: list[Task]
    workers: list[_Worker] = field(default_factory=list)
    events: queue.Queue[tuple[_Worker, str | None]] = field(default_factory=queue.Queue)
    waits: set[str] = field(default_factory=set)
    course: Course = field(default_factory=Course)

    def run(self) -> Iterator[Outcome]:
        while self.left or any(worker.task for worker in self.workers):
            yield from self._assign()
            if not any(worker.task for worker in self.workers) and not self.left:
                return
            try:
                worker, line = self.events.get(timeout=POLL_S if self.left else None)
            except queue.Empty:
                continue
            yield from self._heard(worker, line)

    def _heard(self, worker: _Worker, line: str | None) -> list[Outcome]:
        """What an event comes to: an outcome, or none yet."""
        if worker not in self.workers:  # let go of
            return []
        if line is None:
            return self._lost(worker)
        answer, task = heard(parse_json(line, "a worker's answer")), worker.task
        assert task is not None
        if isinstance(answer, str):
            self.progress(f"{task.order.job.name}: {answer}")
            return []
        worker.task = None
        return self._after(task, answer)

    def _after(self, task: Task, answer: Outcome | Forecast) -> list[Outcome]:
        found = self.course.after(task, answer)
        if isinstance(found, Outcome):
            return [found]
        self.left[:0] = found
        return []

    def _lost(self, worker: _Worker) -> list[Outcome]:
        """A worker has ended: its job is begun again, or has failed too often."""
        self.workers.remove(worker)
        task, why = worker.task, worker.ending()
        worker.end()
        if task is None:
            return []
        if task.attempts > self.given.retries:
            times = f", {task.attempts} times" if task.attempts > 1 else ""
            failed = Outcome(task.order.job.name, "failed", f"{why}{times}")
            return self._after(task, failed)
        self.progress(f"{task.name}: {why}; it is begun again")
        self.left.insert(0, replace(task, attempts=task.attempts + 1))
        return []

    def _assign(self) -> Iterator[Outcome]:
        """Give tasks to workers that have none, as memory allows; what never fits has failed."""
        for large in [task for task in self.left if self._never_fits(task)]:
            self.left.remove(large)
            failed = Outcome(large.order.job.name, "failed", self._too_large(large))
            yield from self._after(large, failed)
        while self.left:
            free = [worker for worker in self.workers if worker.task is None]
            if not free and len(self.workers) >= self.given.workers:
                return
            worker = free[0] if free else None
            task = self._next_for(worker)
            if task is None:
                self._make_room()
                return
            self.left.remove(task)
            (worker or self._begin()).give(task)

    def _next_for(self, worker: _Worker | None) -> Task | None:
        """The task that fits and lies nearest to what a worker has done, or None."""
        busy = {w.task.order.job.group for w in self.workers if w.task is not None}
        last = worker.last.order.job if worker and worker.last else None

        def distance(task: Task) -> tuple[bool, bool, bool, bool]:
            job = task.order.job
            same = last is not None and job.group == last.group
            alike = same and last is not None and job.scheme == last.scheme
            return (not same, job.group in busy, task.forecast is None, not alike)

        for task in sorted(self.left, key=distance):  # stable: else in the order of the file
            if self._fits(task, worker):
                return task
            self._tell(task)
        return None

    def _fits(self, task: Task, worker: _Worker | None) -> bool:
        """Whether what a task may take is free, besides what others may still take."""
        own = worker.held_bytes if worker else 0
        more = max(0, memory_of(task) - own)
        more += sum(w.to_come_bytes for w in self.workers)
        free, most = self.given.free().free_bytes, self.given.memory_bytes
        if free is not None and more > free:
            return False
        if most is not None and more + sum(w.held_bytes for w in self.workers) > most:
            return False
        disk = sum(w.task.disk_bytes for w in self.workers if w.task)
        return not disk or disk + task.disk_bytes <= shutil.disk_usage(task.order.out).free

    def _never_fits(self, task: Task) -> bool:
        limits = (self.given.free().total_bytes, self.given.memory_bytes)
        return any(most is not None and memory_of(task) > most for most in limits)

    def _too_large(self, task: Task) -> str:
        limits = (self.given.free().total_bytes, self.given.memory_bytes)
        most = min(limit for limit in limits if limit is not None)
        return (
            f"is predicted to take {memory_of(task) / 1e6:,.0f} MB of memory, and there are "
            f"{most / 1e6:,.0f} MB at all; build it on a larger machine, or choose a smaller size"
        )

    def _tell(self, task: Task) -> None:
        """Say once that a task waits."""
        if task.name not in self.waits:
            self.waits.add(task.name)
            self.progress(f"{task.name}: waits until {memory_of(task) / 1e6:,.0f} MB are free")

    def _make_room(self) -> None:
        """Where nothing runs and nothing fits, workers that have nothing to do give theirs back."""
        if not any(worker.task for worker in self.workers):
            for worker in self.workers:
                worker.end()
            self.workers.clear()

    def _begin(self) -> _Worker:
        # First on its path is this package, not the working folder, which may hold a json.py.
        path = os.pathsep.join([str(HOME), *filter(None, [os.environ.get("PYTHONPATH")])])
        said = tempfile.TemporaryFile()  # noqa: SIM115  # closed with its worker
        process = subprocess.Popen(
            self.given.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": path},
        )
        thread = threading.Thread(target=lambda: self._listen(worker), daemon=True)
        worker = _Worker(process, said, thread)
        self.workers.append(worker)
        thread.start()
        return worker

    def _listen(self, worker: _Worker) -> None:
        """Hand on what a worker says, and that it has ended; in a thread of its own."""
        assert worker.process.stdout is not None
        for line in worker.process.stdout:
            if line.endswith("\n"):
                self.events.put((worker, line))
        self.events.put((worker, None))

    def close(self) -> None:
        """End all workers, whatever they do."""
        for worker in self.workers:
            worker.end()

"""Jobs on a Dask scheduler that is there: on its workers, whoever started them.

What travels are paths, digests and what came of a job, as JSON data: never a tensor. A package is
written where the worker is: into a folder that all share, or, where they share none, into the
cache, from which whoever asked takes it. A job of a worker that ended is given to another one.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import queue
import time
import warnings
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from exporter.errors import InputError, needs_extra, printable
from exporter.files.memory import anonymous_bytes, free_memory
from exporter.files.stop import tell_wish
from exporter.matrix import work
from exporter.matrix.course import Course, Task
from exporter.matrix.outcome import Assignment, Forecast, Outcome
from exporter.matrix.worker import answered, asked, heard, told
from exporter.progress import Progress

PREFIX = "dask://"
TOPIC = "fourstep"  # of events, by which workers say what they do
RESOURCE = "memory"  # in bytes, of workers that were started with it
CONNECT_S = 10.0
POLL_S = 1.0  # of free memory on a worker's machine
MOST_WAIT_S = 1800.0  # for it
BUILDS_FIRST = 10  # priority of a job that is traced already


@dataclass(frozen=True)
class Cluster:
    """How jobs run on Dask.

    Attributes:
        address: as it was given, ``dask://HOST:PORT``.
        retries: of a job that the scheduler has given up, since too many of its workers ended.
    """

    address: str
    retries: int = 2

    def run(
        self, assignments: Sequence[Assignment], progress: Progress
    ) -> Generator[Outcome, None, None]:
        """The outcome of each job, as they come; raises InputError where no scheduler answers."""
        with _connected(self.address) as client:
            yield from _Run(client, self.retries, progress).run(assignments)


def on_worker(raw: dict[str, Any]) -> dict[str, Any]:
    """What a Dask worker does for a job: as a worker of this machine, in its own process."""
    from distributed import get_worker

    name, phase = raw["order"]["job"]["name"], raw["phase"]
    worker = get_worker()

    def say(line: str) -> None:
        with suppress(Exception):  # progress is no reason to stop
            worker.log_event(TOPIC, {"job": name, "line": line})

    with suppress(Exception):
        worker.log_event(TOPIC, {"job": name, "begun": phase, "pid": os.getpid()})
    if raw["forecast"]:
        _await_memory((raw["part"] or raw["forecast"])["memory_bytes"], say)
    found = answered(raw, say)
    if isinstance(found, Outcome):
        found = replace(found, worker=worker.address)
    return told(found)


def _await_memory(needed_bytes: int, say: work.Say) -> None:
    """Wait until this machine has what a job may take besides what this process has already."""
    end_s, said = time.monotonic() + MOST_WAIT_S, False
    while time.monotonic() < end_s:
        free = free_memory().free_bytes
        if free is None or needed_bytes - anonymous_bytes() <= free:
            return
        if not said:
            say(f"waits until {needed_bytes / 1e6:,.0f} MB are free")
            said = True
        time.sleep(POLL_S)


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """A client; raises InputError in one line."""
    if importlib.util.find_spec("distributed") is None:
        raise needs_extra("dask", "distributed")
    from distributed import Client

    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # its lines are no lines of ours
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="distributed")
        try:
            client = Client(
                f"tcp://{address.removeprefix(PREFIX)}",
                timeout=CONNECT_S,
                set_as_default=False,
                name="fourstep",
            )
        except Exception as error:  # whatever a network does
            tell_wish()
            raise InputError(
                f"--on {address}: no scheduler answers there "
                f"({printable(type(error).__name__)}); start one with: dask scheduler"
            ) from None
        try:
            yield client
        finally:
            with suppress(Exception):
                client.run(_forget)
            with suppress(Exception):
                client.close(timeout=CONNECT_S)


def _forget() -> None:
    """Let go of what this process has traced."""
    work.BENCH.forget()


@dataclass
class _Run:
    """What is on its way.

    Attributes:
        unfit: addresses of workers that would build something else.
        begun: how often tasks were begun, by job and phase, also by workers that ended.
    """

    client: Any  # distributed.Client
    retries: int
    progress: Progress
    unfit: set[str] = field(default_factory=set)
    begun: Counter[tuple[str, str]] = field(default_factory=Counter)
    tasks: dict[str, Task] = field(default_factory=dict)
    course: Course = field(default_factory=Course)
    futures: dict[str, Any] = field(default_factory=dict)
    done: queue.SimpleQueue[Any] = field(default_factory=queue.SimpleQueue)

    def run(self, assignments: Sequence[Assignment]) -> Iterator[Outcome]:
        self.client.subscribe_topic(TOPIC, self._listen)
        if assignments and not self._workers():
            self.progress("no worker is there yet; waiting for one")
        for one in assignments:
            yield from self._submitted([Task(one)])
        while self.tasks:
            future = self.done.get()
            task = self.tasks.pop(future.key)
            del self.futures[future.key]
            found = self._heard(future, task)
            yield from self._submitted(
                [found] if isinstance(found, Task) else self._after(task, found)
            )

    def _submitted(self, tasks: Sequence[Task] | Outcome) -> Iterator[Outcome]:
        """Hand tasks in; an outcome is none, and what no worker can do comes to one."""
        if isinstance(tasks, Outcome):
            yield tasks
            return
        for task in tasks:
            if (failed := self._submit(task)) is not None:
                yield from self._submitted(self._after(task, failed))

    def _after(self, task: Task, answer: Outcome | Forecast) -> list[Task] | Outcome:
        """What follows for a job, each task begun as often as workers have said."""
        begun = max(1, self.begun[task.order.job.name, task.phase])
        return self.course.after(replace(task, attempts=begun), answer)

    def _listen(self, event: tuple[float, dict[str, Any]]) -> None:
        """A worker says what it does; in a thread of the client's."""
        _, said = event
        if "begun" in said:
            self.begun[said["job"], said["begun"]] += 1
        elif "line" in said:
            self.progress(f"{said['job']}: {said['line']}")

    def _workers(self) -> Mapping[str, Mapping[str, Any]]:
        """What the scheduler says of the workers that are there and not unfit, by address."""
        found = self.client.scheduler_info(n_workers=-1)["workers"]
        return {address: facts for address, facts in found.items() if address not in self.unfit}

    def _submit(self, task: Task) -> Outcome | None:
        """Hand a task to the scheduler; an outcome of what no worker can do."""
        about = task.part or task.forecast
        needed = about.memory_bytes if about else 0
        workers = self._workers()
        able = [a for a, facts in workers.items() if (facts["memory_limit"] or needed) >= needed]
        if workers and not able:
            most = max(facts["memory_limit"] for facts in workers.values())
            return Outcome(
                task.order.job.name,
                "failed",
                f"is predicted to take {needed / 1e6:,.0f} MB of memory, and no worker has more "
                f"than {most / 1e6:,.0f} MB; start larger ones, or choose a smaller size",
            )
        declared = any(RESOURCE in facts["resources"] for facts in workers.values())
        phase = f"{task.phase.replace(' ', '-')}-{task.attempts}"
        future = self.client.submit(
            on_worker,
            asked(task),
            key=f"fourstep-{task.order.run}-{task.order.job.name}-{phase}",
            pure=False,
            priority=BUILDS_FIRST if task.forecast else 0,
            resources={RESOURCE: needed} if declared and needed else None,
            workers=able if able and (self.unfit or len(able) < len(workers)) else None,
        )
        self.tasks[future.key] = task
        self.futures[future.key] = future  # one that nobody holds is let go of
        future.add_done_callback(self.done.put)
        return None

    def _heard(self, future: Any, task: Task) -> Task | Outcome | Forecast:
        """What came of a task: it has to be handed in again, or an answer."""
        name = task.order.job.name
        if future.status == "finished":
            answer = heard(future.result())
            assert not isinstance(answer, str)
            if isinstance(answer, Outcome) and answer.is_unfit:
                return self._elsewhere(answer, task)
            return answer
        if future.status != "error":
            return Outcome(name, "failed", "the scheduler is gone, or has let go of it")
        error = future.exception()
        if type(error).__name__ == "KilledWorker":
            if task.attempts <= self.retries:
                return replace(task, attempts=task.attempts + 1)
            return Outcome(
                name,
                "failed",
                "the workers that had it ended, as when memory runs out; start larger ones",
            )
        return Outcome(name, "failed", _reason(error))

    def _elsewhere(self, answer: Outcome, task: Task) -> Task | Outcome:
        """The same task for other workers than one that would build something else."""
        if answer.worker not in self.unfit:
            self.unfit.add(answer.worker)
            self.progress(f"{answer.worker}: is left out: {answer.reason}")
        if not self._workers():
            return answer
        return replace(task, attempts=task.attempts + 1)


def _reason(error: BaseException) -> str:
    if isinstance(error, ImportError):
        return printable(f"a worker cannot import fourstep ({error}); install it there")
    return printable(f"{type(error).__name__}: {' '.join(str(error).split())}")

"""What a worker does: looks a job up, or builds it, and says what came of it and what it took.

A worker lives long: what is imported and traced once serves many jobs. It builds one package at a
time; the order of jobs keeps those with the same traced model together.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from exporter import backends
from exporter.build.keys import libraries
from exporter.build.model import open_asked
from exporter.build.one import One
from exporter.build.resume import code_of_own
from exporter.build.shared import STATISTICS, Built, Places, TracedRecipe, traced
from exporter.build.write import log_of, tools_of
from exporter.cache.shared import open_cache
from exporter.cache.url import parse_url
from exporter.checkpoint.open import Checkpoint
from exporter.errors import FourstepError, InputError, is_out_of_memory, printable
from exporter.files.heap import release
from exporter.files.memory import anonymous_bytes, watched
from exporter.files.read import file_digest, read_json, reason_of
from exporter.matrix.file import asked_recipe
from exporter.matrix.outcome import Assignment, Forecast, Outcome, PackagePart
from exporter.package.read import MANIFEST, read_manifest
from exporter.progress import Progress

Say = Callable[[str], None]
NO_MEMORY = "out of memory; give it more, or choose a smaller size or scheme"


class Unfit(InputError):
    """A worker would build something else than was asked for."""


def versions_of(backend: str, choices: Mapping[str, str]) -> dict[str, str]:
    """What decides the bytes of a backend's packages besides fourstep's own code, as far as known.

    A library that is not installed tells none, nor does a compiler for chips: whoever asks need
    not have it.

    Args:
        choices: the recipe's for the backend.
    """
    loaded = backends.load(backend)
    if backends.missing(loaded.to_build.modules):
        return libraries()
    try:
        tools = tools_of(loaded, choices)
    except InputError:
        tools = tools_of(loaded, backends.default_choices(loaded))
    return {**libraries(), **tools}


@dataclass
class Bench:
    """What a process keeps from job to job: of the last group its checkpoint and traced models.

    ``lock``: one job at a time, also where whoever runs the process has several threads.
    """

    group: object = None
    opened: Checkpoint | None = None
    traced: TracedRecipe | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def checkpoint(self, order: Assignment, one: One) -> Checkpoint:
        """The checkpoint of an order's recipe, whose digest is computed once."""
        self._turn_to(order)
        if self.opened is None:
            self.opened = open_asked(one.recipe)
        return self.opened

    def models(self, order: Assignment, one: One, progress: Progress) -> TracedRecipe:
        """The traced models of an order's recipe."""
        self._turn_to(order)
        if self.traced is None:
            self.traced = traced(one.recipe, progress, self.checkpoint(order, one))
        return self.traced

    def forget(self) -> None:
        """Let go of all of it."""
        self.group, self.opened, self.traced = None, None, None
        release()

    def _turn_to(self, order: Assignment) -> None:
        group = (order.run, order.out, order.job.group)
        if self.group != group:
            self.forget()  # before others are made
            self.group = group


BENCH = Bench()


def look_up(order: Assignment, say: Say) -> Outcome | Forecast:
    """A package that is there or in the cache, without tracing; else what building it takes."""

    def work(one: One, progress: Progress) -> list[Built] | Forecast:
        found = one.look_up(BENCH.checkpoint(order, one), progress)
        if found:
            return found
        needs = one.needs(BENCH.models(order, one, progress), order.split_bytes)
        held = anonymous_bytes()
        parts = tuple(
            PackagePart(part.name, held + part.more_bytes, part.disk_bytes, part.name == STATISTICS)
            for part in needs.parts
        )
        return Forecast(held + needs.more_bytes, needs.disk_bytes, parts=parts)

    return _worked(order, say, work, None)


def build(order: Assignment, forecast: Forecast, say: Say) -> Outcome:
    """Build a package; whatever goes wrong is an outcome."""

    def work(one: One, progress: Progress) -> list[Built] | Forecast:
        return one.build(BENCH.models(order, one, progress), progress)

    found = _worked(order, say, work, forecast)
    assert isinstance(found, Outcome)
    return found


def make(order: Assignment, forecast: Forecast, part: PackagePart, say: Say) -> Outcome:
    """Make a part of a package, into the cache; whatever goes wrong is an outcome."""

    def work(one: One, progress: Progress) -> Outcome:
        emitted = one.make(part.name, BENCH.models(order, one, progress), progress)
        return Outcome(order.job.name, "built", emitted=(part.name,) if emitted else ())

    apart = replace(
        forecast, memory_bytes=part.memory_bytes, disk_bytes=part.disk_bytes, seconds=0.0, cpu_s=0.0
    )
    found = _worked(order, say, work, apart)
    assert isinstance(found, Outcome)
    return found


def _worked(
    order: Assignment,
    say: Say,
    work: Callable[[One, Progress], list[Built] | Forecast | Outcome],
    forecast: Forecast | None,
) -> Outcome | Forecast:
    """What work on an order comes to, with what it took."""
    remarks: list[str] = []
    found: Outcome | Forecast
    began_s, began_cpu_s = time.monotonic(), time.process_time()
    with BENCH.lock, watched() as peak:
        try:
            done = work(_one(order, remarks.append), Progress(lambda line, *_: say(line)))
            found = _outcome(order, done) if isinstance(done, list) else done
        except Exception as error:
            unfit = isinstance(error, Unfit) or _is_full(error, order, forecast)
            found = Outcome(order.job.name, "failed", _reason(error), is_unfit=unfit)
        finally:
            release()
    before = forecast or Forecast(0, 0)
    seconds = before.seconds + time.monotonic() - began_s
    cpu_s = before.cpu_s + time.process_time() - began_cpu_s
    if isinstance(found, Forecast):
        return replace(found, seconds=seconds, cpu_s=cpu_s)
    return replace(
        found,
        seconds=seconds,
        cpu_s=cpu_s,
        predicted_bytes=forecast.memory_bytes if forecast else None,
        peak_bytes=peak.bytes if forecast and peak.bytes else None,
        worker=f"process {os.getpid()} on {socket.gethostname()}",
        remarks=tuple(remarks),
    )


def _one(order: Assignment, say: Say) -> One:
    """The package of an order; raises InputError where this worker would make another one."""
    if code_of_own() != order.code_sha256:
        raise Unfit("a worker has another fourstep than this command; install the same one there")
    job, recipe = order.job, asked_recipe(order.job)
    here = versions_of(job.backend, recipe.backend(job.backend).choices)
    for name, version in order.versions.items():
        if here.get(name) != version:
            found = f"{name} {here[name]}" if here.get(name) else f"no {name}"
            raise Unfit(f"a worker has {found}, and this command {version}; install the same there")
    if recipe.digest(job.backend) != order.recipe_sha256:
        raise Unfit(f"{job.recipe}: is another recipe where a worker is; share its folder")
    folder = Path(order.out) / job.group
    cache = open_cache(parse_url(order.cache), say) if order.cache else None
    places = Places(folder, folder / STATISTICS, (), cache, job.beside)
    return One(recipe, job.backend, job.scheme, places)


def _outcome(order: Assignment, done: list[Built]) -> Outcome:
    built = done[0]
    log = read_json(log_of(built.path))
    return Outcome(
        order.job.name,
        "built" if any(one.source == "built" for one in done) else "reused",
        manifest_sha256=file_digest(built.path / MANIFEST),
        basis=log["basis"],
        scheme=built.scheme,
        checkpoint_sha256=read_manifest(built.path).origin.checkpoint_sha256,
        bytes=sum(one.bytes for one in done),
        emitted=tuple(name for one in done for name in one.emitted),
        taken=tuple(name for one in done for name in one.taken),
    )


def _is_full(error: Exception, order: Assignment, forecast: Forecast | None) -> bool:
    """Whether a job failed for want of room on this machine's disk, where another may have some."""
    cause: BaseException | None = error
    while cause is not None:
        if getattr(cause, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        cause = cause.__cause__ or cause.__context__
    if forecast is None or not isinstance(error, FourstepError):
        return False
    try:
        return shutil.disk_usage(order.out).free < forecast.disk_bytes
    except OSError:
        return False


def _reason(error: Exception) -> str:
    """Why a job failed, in one line; a defect of this project names its kind."""
    if is_out_of_memory(error):
        return NO_MEMORY
    if isinstance(error, FourstepError):
        return str(error)
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return printable(f"{place}{reason_of(error)}")
    return printable(f"{type(error).__name__}: {' '.join(str(error).split())}")

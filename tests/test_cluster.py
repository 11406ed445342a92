"""A matrix on Dask: a real scheduler, workers in processes of their own with memory limits."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from distributed import Client

from exporter import backends
from exporter.build.one import One
from exporter.build.pipeline import build
from exporter.build.resume import code_of_own
from exporter.cli import main
from exporter.errors import InputError
from exporter.matrix import work
from exporter.matrix.cluster import TOPIC, Cluster, _Run
from exporter.matrix.file import Job, asked_recipe, read_matrix
from exporter.matrix.outcome import Assignment, Forecast, Outcome
from exporter.matrix.run import SPLIT_BYTES, run
from exporter.matrix.work import look_up, versions_of
from exporter.matrix.worker import told
from exporter.progress import Progress
from exporter.recipe.recipe import read_recipe
from tests.test_matrix import RECIPE
from tests.test_package import digests

LIMIT = "3GB"  # of a worker; one that takes more is ended by its nanny
QUIET = {"OMP_NUM_THREADS": "1", "DASK_DISTRIBUTED__LOGGING__DISTRIBUTED": "error"}


@contextmanager
def dask(folder: Path, workers: int, *options: str) -> Iterator[str]:
    """``HOST:PORT`` of a scheduler with workers, each a nanny with one process."""
    folder.mkdir()
    file = folder / "scheduler.json"
    scheduler = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
    scheduler += ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--no-show"]
    scheduler += ["--scheduler-file", str(file)]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker"]
    worker += ["--scheduler-file", str(file), "--nthreads", "1", "--memory-limit", LIMIT]
    worker += ["--no-dashboard", "--local-directory", str(folder), *options]
    environment = {**os.environ, **QUIET}
    with (folder / "said").open("w") as said:

        def started(line: list[str]) -> subprocess.Popen[bytes]:
            return subprocess.Popen(line, stdout=said, stderr=said, env=environment)

        processes = [started(scheduler)]
        try:
            while not (file.exists() and file.read_text()):
                assert processes[0].poll() is None
                time.sleep(0.05)
            address = json.loads(file.read_text())["address"]
            processes += [started([*worker, "--name", f"w{i}"]) for i in range(workers)]
            yield address.removeprefix("tcp://")
        finally:
            for process in reversed(processes):
                process.terminate()
            for process in processes:
                try:
                    process.wait(timeout=30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


@pytest.fixture
def matrix(tiny_folder: Path, tmp_path: Path) -> Path:
    (tmp_path / "tiny.toml").write_text(RECIPE.format(checkpoint=tiny_folder))
    file = tmp_path / "all.toml"
    file.write_text('recipes = ["tiny.toml"]\nbackends = ["onnx"]\nschemes = ["fp16", "int4"]')
    return file


def on(
    address: str,
    file: Path,
    out: Path,
    cache: Path | None = None,
    split_bytes: int = SPLIT_BYTES,
) -> tuple[dict[str, Outcome], list[str]]:
    lines: list[str] = []
    progress = Progress(lambda line, *_: lines.append(line))
    where = Cluster(f"dask://{address}")
    shared = str(cache or out / "cache")
    result = run(read_matrix(file), out, where, shared, progress, lines.append, split_bytes)
    return {one.name: one for one in result.outcomes}, lines


@contextmanager
def killing(address: str, times: int, delay_s: Callable[[], float]) -> Iterator[dict[int, str]]:
    """End workers, each some time after it has begun to make something; of each what job that was.

    By then it may be at another one.
    """
    killed: dict[int, str] = {}
    lock = threading.Lock()

    def listen(event: tuple[float, dict[str, Any]]) -> None:
        _, said = event
        with lock:
            if said.get("begun", "look up") == "look up" or said["pid"] in killed:
                return
            if len(killed) == times:
                return
            killed[said["pid"]] = said["job"]
        threading.Timer(delay_s(), end, (said["pid"],)).start()

    def end(pid: int) -> None:
        with suppress(ProcessLookupError):  # it has ended already
            os.kill(pid, signal.SIGKILL)

    with Client(f"tcp://{address}", set_as_default=False) as client:
        client.subscribe_topic(TOPIC, listen)
        yield killed


def plain(file: Path, out: Path) -> dict[str, dict[str, str]]:
    """Digests of what a build without any of this makes."""
    build(read_recipe(file.parent / "tiny.toml"), out, ["onnx"], ["fp16", "int4"])
    return {f"tiny/{p.name}": digests(p) for p in out.iterdir() if (p / "manifest.json").exists()}


def emitted_again(lines: list[str]) -> set[str]:
    """Jobs of which a graph was emitted more than once."""
    emitted = Counter(line for line in lines if ": emit " in line)
    return {line.partition(":")[0] for line, times in emitted.items() if times > 1}


def test_a_killed_worker_costs_its_job_alone(matrix: Path, tmp_path: Path) -> None:
    expected = plain(matrix, tmp_path / "plain")
    with (
        dask(tmp_path / "dask", 1) as address,
        killing(address, 1, lambda: 0.0) as killed,
    ):
        found, lines = on(address, matrix, tmp_path / "out")
    assert {name: digests(tmp_path / "out" / name) for name in found} == expected
    assert "failed" not in {one.state for one in found.values()}
    (name,) = killed.values()
    assert found[name].attempts == 2
    assert emitted_again(lines) <= {name}
    assert all(one.worker.startswith("tcp://") for one in found.values())


@pytest.mark.full
def test_two_workers_killed_at_random_moments_ten_times(matrix: Path, tmp_path: Path) -> None:
    """Every other time each graph is a job of its own."""
    expected = plain(matrix, tmp_path / "plain")
    chance = random.Random(7)
    with dask(tmp_path / "dask", 2) as address:
        for turn in range(10):
            split_bytes = 1 if turn % 2 else SPLIT_BYTES
            with killing(address, 2, lambda: chance.uniform(0.0, 2.0)) as killed:
                found, lines = on(
                    address, matrix, tmp_path / f"out-{turn}", split_bytes=split_bytes
                )
            assert len(killed) == 2
            assert {n: digests(tmp_path / f"out-{turn}" / n) for n in found} == expected
            assert "failed" not in {one.state for one in found.values()}
            again = {one.name for one in found.values() if one.attempts > 1}
            assert emitted_again(lines) <= again
            # A worker may hold one that is done and that nobody has fetched, besides its own.
            assert sum(one.attempts - 1 for one in found.values()) <= 2 * len(killed)


@pytest.mark.full
def test_workers_that_share_no_folder_hand_packages_over_by_the_cache(
    matrix: Path, tmp_path: Path
) -> None:
    """As if a worker's disk were another one: what it wrote is taken away behind it."""
    expected = plain(matrix, tmp_path / "plain")
    out = tmp_path / "out"
    with dask(tmp_path / "dask", 1) as address:
        on(address, matrix, out, tmp_path / "cache")
        shutil.rmtree(out)
        where = _Elsewhere(Cluster(f"dask://{address}"), out)
        result = run(
            read_matrix(matrix), out, where, str(tmp_path / "cache"), Progress(), lambda _: None
        )
    assert {one.state for one in result.outcomes} == {"reused"}
    assert {one.name: digests(out / one.name) for one in result.outcomes} == expected


@dataclass(frozen=True)
class _Elsewhere:
    """A runner whose packages are not where they were asked for."""

    runner: Cluster
    out: Path

    def run(
        self, assignments: Sequence[Assignment], progress: Progress
    ) -> Generator[Outcome, None, None]:
        for outcome in self.runner.run(assignments, progress):
            shutil.rmtree(self.out / outcome.name)
            yield outcome


def test_an_unreachable_scheduler_is_said_in_a_line(
    matrix: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("exporter.matrix.cluster.CONNECT_S", 0.5)
    line = ["matrix", str(matrix), "--out", str(tmp_path / "out"), "--on", "dask://127.0.0.1:9"]
    with pytest.raises(SystemExit) as ended:
        main(line)
    assert ended.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert [one for one in said if one.startswith("fourstep: ")] == said[-1:]
    assert "--on dask://127.0.0.1:9: no scheduler answers there" in said[-1]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--on", "dask:/x"], "local or dask://HOST:PORT is expected"),
        (["--on", "dask://h:1", "--workers", "2"], "--workers is of --on local"),
        (["--on", "dask://h:1", "--memory", "2GB"], "--memory is of --on local"),
    ],
)
def test_flags_that_do_not_fit(
    matrix: Path, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["matrix", str(matrix), *flags])
    assert ended.value.code == 2 and said in capsys.readouterr().err


class FakeFuture:
    """A future that is there at once: what a worker answered, or what became of it."""

    def __init__(self, key: str, answer: Outcome | Forecast | Exception) -> None:
        self.key, self.answer = key, answer
        self.status = "error" if isinstance(answer, Exception) else "finished"

    def add_done_callback(self, call: Callable[[FakeFuture], None]) -> None:
        call(self)

    def result(self) -> dict[str, Any]:
        assert not isinstance(self.answer, Exception)
        return told(self.answer)

    def exception(self) -> Exception:
        assert isinstance(self.answer, Exception)
        return self.answer


class KilledWorker(Exception):
    """As distributed's is called."""


@dataclass
class FakeClient:
    """Workers by address with their memory and resources, and their answers, in order."""

    workers: dict[str, tuple[int, dict[str, float]]]
    answers: list[Outcome | Forecast | Exception]
    submitted: list[dict[str, Any]] = field(default_factory=list)

    def subscribe_topic(self, topic: str, handler: object) -> None:
        assert topic == TOPIC

    def scheduler_info(self, n_workers: int) -> dict[str, Any]:
        assert n_workers == -1  # distributed's own default tells five
        return {
            "workers": {
                address: {"memory_limit": limit, "resources": resources}
                for address, (limit, resources) in self.workers.items()
            }
        }

    def submit(self, function: object, raw: dict[str, Any], key: str, **options: Any) -> FakeFuture:
        json.dumps(raw)  # paths and digests
        self.submitted.append(options)
        return FakeFuture(key, self.answers.pop(0))


def of_fakes(client: FakeClient, retries: int = 1) -> tuple[Outcome, list[str]]:
    lines: list[str] = []
    one = Assignment(Job("g/a", "r", "", "", "onnx", "int4"), "", "", {}, "", "", "run")
    progress = Progress(lambda line, *_: lines.append(line))
    (outcome,) = _Run(client, retries, progress).run([one])
    return outcome, lines


BUILT = Outcome("g/a", "built", worker="tcp://b:1")


def test_predicted_memory_is_a_resource_where_workers_declare_it() -> None:
    client = FakeClient({"tcp://a:1": (8 * 10**9, {"memory": 8e9})}, [Forecast(10**9, 0), BUILT])
    assert of_fakes(client)[0].state == "built"
    assert [one["resources"] for one in client.submitted] == [None, {"memory": 10**9}]


def test_a_job_goes_to_workers_that_are_large_enough() -> None:
    client = FakeClient(
        {"tcp://a:1": (10**9, {}), "tcp://b:1": (4 * 10**9, {})}, [Forecast(2 * 10**9, 0), BUILT]
    )
    assert of_fakes(client)[0].state == "built"
    assert [one["workers"] for one in client.submitted] == [None, ["tcp://b:1"]]


def test_a_job_that_is_too_large_for_all_fails_in_a_line() -> None:
    client = FakeClient({"tcp://a:1": (10**9, {})}, [Forecast(2 * 10**9, 0)])
    outcome, _ = of_fakes(client)
    assert outcome.state == "failed"
    assert "2,000 MB of memory, and no worker has more than 1,000 MB" in outcome.reason


def test_a_worker_with_other_versions_is_left_out_in_a_line() -> None:
    unfit = Outcome("g/a", "failed", "a worker has torch 1", worker="tcp://a:1", is_unfit=True)
    client = FakeClient({"tcp://a:1": (10**9, {}), "tcp://b:1": (10**9, {})}, [unfit, BUILT])
    outcome, lines = of_fakes(client)
    assert outcome.state == "built"
    assert lines == ["tcp://a:1: is left out: a worker has torch 1"]
    assert [one["workers"] for one in client.submitted] == [None, ["tcp://b:1"]]
    alone = FakeClient({"tcp://a:1": (10**9, {})}, [unfit])
    assert of_fakes(alone)[0].reason == "a worker has torch 1"


def test_a_job_that_the_scheduler_has_given_up_is_handed_in_again() -> None:
    workers = {"tcp://a:1": (10**9, dict[str, float]())}
    assert of_fakes(FakeClient(workers, [KilledWorker(), BUILT]))[0].state == "built"
    outcome, _ = of_fakes(FakeClient(workers, [KilledWorker(), KilledWorker()]))
    assert "ended, as when memory runs out" in outcome.reason
    outcome, _ = of_fakes(FakeClient(workers, [ImportError("No module named 'exporter'")]))
    assert outcome.reason.startswith("a worker cannot import fourstep")


def test_a_checkpoint_is_opened_once_for_the_jobs_of_a_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[object] = []

    def open_asked(_: object) -> object:
        opened.append(object())
        return opened[-1]

    monkeypatch.setattr(work, "open_asked", open_asked)
    bench, one = work.Bench(), cast(One, SimpleNamespace(recipe=None))

    def order(group: str, scheme: str) -> Assignment:
        job = Job(f"{group}/onnx-{scheme}", "r", "", "", "onnx", scheme)
        return Assignment(job, "", "", {}, "", "", "run")

    first = bench.checkpoint(order("a", "int8"), one)
    assert bench.checkpoint(order("a", "int4"), one) is first
    assert bench.checkpoint(order("b", "int4"), one) is not first
    assert len(opened) == 2


def test_a_worker_says_what_it_has_instead(tiny_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny.toml"
    file.write_text(RECIPE.format(checkpoint=tiny_folder))
    job = Job("tiny/onnx-fp16", str(file), "", "", "onnx", "fp16", ("fp16",))
    digest = asked_recipe(job).digest("onnx")
    there = versions_of("onnx", {})

    def reason(code: str, versions: dict[str, str], recipe: str) -> str:
        asked = Assignment(job, recipe, code, versions, str(tmp_path / "out"), "", "run")
        found = look_up(asked, lambda _: None)
        assert isinstance(found, Outcome) and found.is_unfit
        return found.reason

    assert "another fourstep" in reason("0", there, digest)
    other = there | {"torch": "1.0"}
    said = reason(code_of_own(), other, digest)
    assert said.startswith(f"a worker has torch {there['torch']}, and this command 1.0")
    assert "is another recipe where a worker is" in reason(code_of_own(), there, "0")


def test_the_compiler_for_chips_is_compared_where_a_recipe_asks_for_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def compiler(_: object, choices: dict[str, str]) -> dict[str, str]:
        return {"onnxruntime-qnn": "2.7.0"} if choices.get("socs") else {}

    def missing(_: object, choices: dict[str, str]) -> dict[str, str]:
        if choices.get("socs"):
            raise InputError("onnxruntime-qnn is not installed")
        return {}

    chips = {"target": "qnn", "socs": "8gen3"}
    kind = type(backends.load("onnx"))
    monkeypatch.setattr(kind, "compiler", compiler)
    assert versions_of("onnx", chips)["onnxruntime-qnn"] == "2.7.0"
    assert "onnxruntime-qnn" not in versions_of("onnx", {"target": "qnn"})
    monkeypatch.setattr(kind, "compiler", missing)  # whoever asks need not have it
    assert "onnxruntime-qnn" not in versions_of("onnx", chips)


def test_a_worker_whose_disk_is_full_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "out"))

    monkeypatch.setattr("exporter.matrix.work._one", full)
    asked = Assignment(Job("g/a", "r", "", "", "onnx", "int4"), "", "", {}, "", "", "run")
    found = look_up(asked, lambda _: None)
    assert isinstance(found, Outcome) and found.is_unfit
    assert found.reason == f"{tmp_path / 'out'}: No space left on device"

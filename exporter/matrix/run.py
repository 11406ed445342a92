"""A matrix from its file to its page: orders, outcomes as they come, and what is left of both."""

from __future__ import annotations

import itertools
import json
import secrets
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, get_args

from exporter.build.resume import code_of_own
from exporter.build.reuse import Awaited, take_package
from exporter.cache.shared import open_cache
from exporter.cache.url import parse_url
from exporter.errors import FourstepError
from exporter.files.lock import locked, write_alone
from exporter.files.read import file_digest
from exporter.files.staging import refuse_place, unwritable
from exporter.matrix.file import Matrix, asked_recipe
from exporter.matrix.outcome import Assignment, Outcome, State
from exporter.matrix.page import page
from exporter.matrix.work import versions_of
from exporter.package.read import MANIFEST
from exporter.progress import Progress

STATES: tuple[State, ...] = get_args(State)
PAGE, DATA = "matrix.html", "matrix.json"
CACHE = "cache"  # in the folder of a matrix, where no other is named
SPLIT_BYTES = 256_000_000  # of files: below, a second worker that traces the model costs more
MOST_EXIT_CODE = 100  # beyond are those that shells and signals use


class Runner(Protocol):
    """What runs jobs somewhere."""

    def run(
        self, assignments: Sequence[Assignment], progress: Progress
    ) -> Generator[Outcome, None, None]:
        """The outcome of each order, as they come."""


@dataclass(frozen=True)
class Result:
    """What became of all jobs, in the order of the matrix.

    Attributes:
        seconds: from the first order to the last outcome.
    """

    name: str
    outcomes: tuple[Outcome, ...]
    seconds: float

    def count(self, state: State) -> int:
        return sum(outcome.state == state for outcome in self.outcomes)

    @property
    def exit_code(self) -> int:
        """How many failed; ``MOST_EXIT_CODE`` for as many or more."""
        return min(self.count("failed"), MOST_EXIT_CODE)

    def to_json(self) -> dict[str, Any]:
        counts: dict[str, Any] = {state: self.count(state) for state in STATES}
        jobs = [asdict(outcome) | {"is_over": outcome.is_over} for outcome in self.outcomes]
        return {"name": self.name, "seconds": self.seconds, **counts, "jobs": jobs}


def run(
    matrix: Matrix,
    out: Path,
    runner: Runner,
    cache: str,
    progress: Progress,
    complain: Callable[[str], None],
    split_bytes: int = SPLIT_BYTES,
) -> Result:
    """Build a matrix into ``out``, and write its page there.

    Args:
        cache: a folder or URL that machines share.
        complain: gets a line for each job that failed, and for one that took more than predicted.
        split_bytes: of files, from which on a package's graphs are jobs of their own.

    Raises InputError where nothing can be begun.
    """
    refuse_place(out, 0)
    began_s = time.monotonic()
    with ExitStack() as folders:
        # Workers lock packages; who else builds into these folders waits for all of them.
        for group in dict.fromkeys(job.group for job in matrix.jobs):
            folders.enter_context(locked(out / group, progress))
        orders, refused = _orders(matrix, out, cache, split_bytes)
        progress.expect(len(matrix.names))
        outcomes: dict[str, Outcome] = {}
        by_name = {order.job.name: order for order in orders}
        coming = folders.enter_context(closing(runner.run(orders, progress)))  # ends its workers
        for found in itertools.chain(refused, coming):
            if found.state != "failed":
                found = _arrived(by_name[found.name], found, complain)
            outcomes[found.name] = found
            progress(f"{found.name}: {found.state}")
            _report(found, complain)
    result = Result(
        matrix.name,
        tuple(outcomes[name] for name in matrix.names),
        time.monotonic() - began_s,
    )
    try:
        out.mkdir(parents=True, exist_ok=True)  # nothing was built there
    except OSError as error:
        raise unwritable(out, error) from None
    write_alone(out / DATA, json.dumps(result.to_json(), indent=1) + "\n")
    write_alone(out / PAGE, page(result.name, result.outcomes, result.seconds))
    return result


def _report(found: Outcome, complain: Callable[[str], None]) -> None:
    if found.state == "failed":
        complain(f"{found.name}: {found.reason}")
    if found.is_over and found.peak_bytes and found.predicted_bytes:
        complain(
            f"warning: {found.name}: took {found.peak_bytes / 1e6:,.0f} MB of memory, more than "
            f"the {found.predicted_bytes / 1e6:,.0f} MB that were predicted"
        )
    for remark in found.remarks:
        complain(f"{found.name}: {remark}")


def _orders(
    matrix: Matrix, out: Path, cache: str, split_bytes: int
) -> tuple[list[Assignment], list[Outcome]]:
    """What is to be done, and the jobs that cannot be begun."""
    code, name = code_of_own(), secrets.token_hex(8)
    orders: list[Assignment] = []
    refused = [Outcome(one.name, "failed", one.reason, attempts=0) for one in matrix.refused]
    for job in matrix.jobs:
        try:
            recipe = asked_recipe(job)
            digest = recipe.digest(job.backend)
            versions = versions_of(job.backend, recipe.backend(job.backend).choices)
        except FourstepError as error:
            refused.append(Outcome(job.name, "failed", str(error), attempts=0))
            continue
        orders.append(
            Assignment(
                job, digest, code, versions, str(out.absolute()), cache, name,
                split_bytes,
            )
        )  # fmt: skip
    return orders, refused


def _arrived(order: Assignment, found: Outcome, say: Callable[[str], None]) -> Outcome:
    """An outcome whose package lies here: a worker elsewhere may have written it there alone."""
    target = Path(order.out) / order.job.name
    try:
        if file_digest(target / MANIFEST) == found.manifest_sha256:
            return found
    except OSError:
        pass
    if order.cache and _fetched(order, found, target, say):
        return found
    told = (
        f"{found.worker or 'a worker'} has built {target}, and it is not here; share the folder "
        "with workers, or name a cache that all reach"
    )
    return replace(found, state="failed", reason=told)


def _fetched(order: Assignment, found: Outcome, target: Path, say: Callable[[str], None]) -> bool:
    """Whether the package was in the cache, and has been put in its place."""
    cache = open_cache(parse_url(order.cache), say)
    wanted = Awaited(
        target, found.basis, order.job.backend, found.scheme, order.recipe_sha256,
        found.checkpoint_sha256,
    )  # fmt: skip
    taken = take_package(cache, wanted)
    return taken is not None and file_digest(target / MANIFEST) == found.manifest_sha256

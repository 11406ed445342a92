"""``fourstep matrix``: many packages by one file, here, on Dask, or as a CI's own matrix."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from exporter.cache.url import VARIABLE
from exporter.cli.options import PLACE, json_option
from exporter.cli.output import bytes_of, complain, megabytes, require_build, show, show_json
from exporter.errors import InputError
from exporter.progress import Progress, bar_on_terminal, end_of_bar

if TYPE_CHECKING:
    from exporter.matrix.run import Runner

LOCAL = "local"


@click.command("matrix")
@click.argument("file", metavar="FILE", type=PLACE)
@click.option("--out", type=PLACE, help="Folder of the packages; artifacts/<name> unless given.")
@click.option(
    "--on",
    "where",
    default=LOCAL,
    show_default=True,
    metavar="local|dask://HOST:PORT",
    help="Where jobs run: in processes of this machine, or on a Dask scheduler that is there.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Processes of this machine at once, at most; one for each of its processors unless given.",
)
@click.option("--memory", help="Memory that they may take together, such as 8GB; what is free.")
@click.option(
    "--retries",
    type=click.IntRange(min=0),
    default=2,
    show_default=True,
    help="How often a job is begun again whose worker was killed.",
)
@click.option(
    "--split",
    default="256MB",
    show_default=True,
    help="Files of a package from which on each of its graphs is a job of its own; such as 2GB.",
)
@click.option(
    "--job", "jobs", multiple=True, help="Only this one, by its name; as often as wanted."
)
@click.option(
    "--cache",
    "shared_cache",
    envvar=VARIABLE,
    show_envvar=True,
    metavar="FOLDER|URL",
    help="Where machines share what is built; a folder 'cache' beside the packages unless given.",
)
@click.option(
    "--list",
    "service",
    type=click.Choice(["github", "gitlab"]),
    help="Build nothing: print the jobs as this CI reads them.",
)
@json_option
def command(
    file: Path,
    out: Path | None,
    where: str,
    workers: int | None,
    memory: str | None,
    retries: int,
    split: str,
    jobs: Sequence[str],
    shared_cache: str | None,
    service: str | None,
    as_json: bool,
) -> int:
    """Build recipes x checkpoints x sizes x backends x schemes of FILE, as jobs side by side.

    What is there or in the cache is used again, on any machine. Ends with a page, matrix.html, and
    the exit code says how many jobs failed (100 for more).

    \b
    fourstep matrix devices.toml --on dask://scheduler:8786 --cache s3://bucket/fourstep
    """
    require_build()
    from exporter.cache.shared import open_cache
    from exporter.cache.url import parse_url
    from exporter.matrix.ci import listed
    from exporter.matrix.file import read_matrix
    from exporter.matrix.run import CACHE, PAGE, STATES, run

    matrix = read_matrix(file)
    matrix = matrix.only(jobs) if jobs else matrix
    if service is not None:
        show(listed(matrix, "github" if service == "github" else "gitlab", file.as_posix()))
        return 0
    runner = _runner(where, workers, memory, retries)
    place = out or Path("artifacts") / matrix.name
    cache = parse_url(shared_cache or str(place / CACHE))
    open_cache(cache, complain)  # says at once where there can be none
    progress, split_bytes = Progress(bar_on_terminal), bytes_of("--split", split) or 0
    result = run(matrix, place, runner, cache.text, progress, complain, split_bytes)
    end_of_bar()
    if as_json:
        show_json(result.to_json() | {"page": str(place / PAGE)})
        return result.exit_code
    for one in result.outcomes:
        reused = f"  {len(one.taken)} graphs reused" if one.taken else ""
        size = f"  {megabytes(one.bytes)}" if one.bytes else ""
        show(f"{one.name}  {one.state}{size}{reused}  {one.seconds:.1f} s")
    counts = ", ".join(f"{result.count(state)} {state}" for state in STATES)
    show(f"{place / PAGE}: {counts}")
    return result.exit_code


def processors() -> int:
    """How many this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _runner(where: str, workers: int | None, memory: str | None, retries: int) -> Runner:
    """What runs the jobs; raises InputError for what does not fit together."""
    from exporter.matrix.cluster import PREFIX, Cluster
    from exporter.matrix.local import Local

    if where == LOCAL:
        most = bytes_of("--memory", memory) if memory else None
        return Local(workers or processors(), most, retries)
    for flag, given in (("--workers", workers), ("--memory", memory)):
        if given is not None:
            raise InputError(f"{flag} is of --on local; the scheduler's workers have their own")
    if re.fullmatch(rf"{PREFIX}[\w.:\[\]-]+:[0-9]{{1,5}}", where) is None:
        raise InputError(f"--on {where}: {LOCAL} or dask://HOST:PORT is expected")
    return Cluster(where, retries)

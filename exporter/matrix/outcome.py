"""What became of a job, and what a worker is asked and answers: data that travels as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from exporter.matrix.file import Job

State = Literal["built", "reused", "failed"]


@dataclass(frozen=True)
class Assignment:
    """A job and where it works. Nothing in it is a credential, and nothing a tensor.

    Attributes:
        recipe_sha256: of the recipe as whoever orders has read it, for the job's backend.
        code_sha256: of fourstep's own code there.
        versions: of Python, libraries and the backend's tools there.
        out: the folder of the matrix.
        cache: a folder or URL of the shared cache, or empty.
        run: of all orders of one command: files may have changed before the next.
        split_bytes: of files, from which on a package's graphs are jobs of their own.
    """

    job: Job
    recipe_sha256: str
    code_sha256: str
    versions: dict[str, str]
    out: str
    cache: str
    run: str
    split_bytes: int = 0


@dataclass(frozen=True)
class PackagePart:
    """A graph of a package that is made apart, into the cache, and what that is predicted to take.

    Attributes:
        memory_bytes, disk_bytes: as a forecast's.
        is_first: whether it is measured for all graphs, and none can be made before.
    """

    name: str
    memory_bytes: int
    disk_bytes: int
    is_first: bool = False


@dataclass(frozen=True)
class Forecast:
    """A job that has to be built, and what that is predicted to take.

    Attributes:
        memory_bytes: of anonymous memory, the whole process.
        disk_bytes: of files that are not there yet.
        seconds, cpu_s: that it took to know this: the job's model is traced for it.
        parts: what is made apart, before the rest; none of a small package.
    """

    memory_bytes: int
    disk_bytes: int
    seconds: float = 0.0
    cpu_s: float = 0.0
    parts: tuple[PackagePart, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        name: of the job.
        reason: why it failed, in one line.
        manifest_sha256, basis, scheme, checkpoint_sha256: of the package, by which it is found.
        emitted, taken: of a package that was built, the graphs that a backend wrote and those that
            came from the cache.
        seconds, cpu_s: of the work on it, also that of finding it.
        predicted_bytes, peak_bytes: of anonymous memory; None where it was not built or measured.
        worker: who did it.
        is_unfit: whether it failed since this worker would have built something else.
        attempts: how often it was begun.
        remarks: lines of the cache about what it passed over.
    """

    name: str
    state: State
    reason: str = ""
    manifest_sha256: str = ""
    basis: str = ""
    scheme: str = ""
    checkpoint_sha256: str = ""
    bytes: int = 0
    emitted: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()
    seconds: float = 0.0
    cpu_s: float = 0.0
    predicted_bytes: int | None = None
    peak_bytes: int | None = None
    worker: str = ""
    is_unfit: bool = False
    attempts: int = 1
    remarks: tuple[str, ...] = ()

    @property
    def is_over(self) -> bool:
        """Whether it took more memory than was predicted."""
        return (self.peak_bytes or 0) > (self.predicted_bytes or self.peak_bytes or 0)

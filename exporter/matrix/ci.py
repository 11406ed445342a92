"""A matrix as a CI's own: the jobs that its runners start, each with one line of fourstep."""

from __future__ import annotations

import json
from typing import Any, Literal, get_args

from exporter.errors import InputError
from exporter.matrix.file import Matrix

Service = Literal["github", "gitlab"]
SERVICES: tuple[Service, ...] = get_args(Service)
MOST_JOBS: dict[Service, int] = {"github": 256, "gitlab": 500}  # of a matrix; of a child pipeline
IMAGE = "python:3.11"


def listed(matrix: Matrix, service: Service, file: str) -> str:
    """What a CI reads: JSON, which is YAML too; raises InputError for more jobs than it takes.

    Args:
        file: of the matrix, as a runner finds it.
    """
    most = MOST_JOBS[service]
    if len(matrix.names) > most:
        raise InputError(
            f"{matrix.name}: {len(matrix.names)} jobs, and {service} takes {most} at once; make "
            "matrices of fewer"
        )
    found = _github(matrix) if service == "github" else _gitlab(matrix, file)
    return json.dumps(found)


def _rows(matrix: Matrix) -> list[dict[str, str]]:
    rows = [
        {"job": job.name, "backend": job.backend, "artifact": artifact_of(job.name)}
        for job in matrix.jobs
    ]
    # One that cannot be begun is a job too: it fails, and says why, where all others are.
    refused = [
        {"job": one.name, "backend": "", "artifact": artifact_of(one.name)}
        for one in matrix.refused
    ]
    return rows + refused


def artifact_of(job: str) -> str:
    """A job's name as artifacts may be called, without ``/``."""
    return job.replace("/", "--").replace("*", "all")


def _github(matrix: Matrix) -> dict[str, Any]:
    """``strategy.matrix`` of a job, by ``fromJSON``."""
    return {"include": _rows(matrix)}


def _gitlab(matrix: Matrix, file: str) -> dict[str, Any]:
    """A child pipeline: a job for each package, each with the same steps."""
    steps: dict[str, Any] = {
        "image": IMAGE,
        "script": [
            'pip install "fourstep[all]"',
            'fourstep matrix "$MATRIX" --out packages --job "$JOB"',
        ],
        "artifacts": {"paths": ["packages/"], "when": "always"},
        "retry": {"max": 2, "when": ["runner_system_failure", "stuck_or_timeout_failure"]},
    }
    jobs = {
        row["job"]: {"extends": ".package", "variables": {"JOB": row["job"], "MATRIX": file}}
        for row in _rows(matrix)
    }
    return {".package": steps, **jobs}

"""The memory measure: peaks are seen, and a limit is one."""

from __future__ import annotations

import os
import sys

import pytest

from benchmarks.memcap import KILLED, cgroup, measure, parse_bytes

MEGABYTE = 1 << 20
TAKE = "import time; x = bytearray(b'x') * (150 << 20); time.sleep(0.2); print(len(x))"


@pytest.fixture
def limited() -> None:
    """Skips where no memory cgroup can be made."""
    try:
        with cgroup(1 << 30):
            return
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")


def test_peaks_are_seen() -> None:
    found = measure([sys.executable, "-c", TAKE])
    assert found.completed and found.output == f"{150 << 20}\n"
    assert 150 * MEGABYTE < found.peak_anonymous_bytes < 250 * MEGABYTE
    assert found.peak_rss_bytes >= found.peak_anonymous_bytes


@pytest.mark.usefixtures("limited")
def test_a_limit_kills_what_does_not_fit() -> None:
    assert measure([sys.executable, "-c", TAKE], 300 * MEGABYTE).completed
    assert measure([sys.executable, "-c", TAKE], 80 * MEGABYTE).exit_code == KILLED


@pytest.mark.usefixtures("limited")
def test_the_environment_and_the_exit_code_pass() -> None:
    code = "import os, sys; sys.exit(int(os.environ['CODE']))"
    found = measure([sys.executable, "-c", code], 1 << 30, {"CODE": "3"})
    assert found.exit_code == 3 and "CODE" not in os.environ


@pytest.mark.parametrize(("text", "expected"), [("600M", 629145600), ("1.5g", 3 << 29), ("7", 7)])
def test_sizes(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected

"""Graphs opened ahead: few at a time, none after the end, none for a request that is refused."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from exporter import backends
from exporter.drawing.loop import Request, Session, generate
from exporter.errors import InputError
from exporter.runtime.ahead import OPENED_AT_ONCE, OpenedAhead
from exporter.runtime.package import Package, open_package

NAMES = [f"graph {i}" for i in range(8)]


class Opening:
    """Opens graphs that take until they are let through; knows how many it has in flight."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.most = self._now = 0
        self.through = threading.Semaphore(0)

    def __call__(self, name: str) -> Session:
        self.begun.append(name)
        self._now += 1
        self.most = max(self.most, self._now)
        self.through.acquire()
        self._now -= 1
        if name == "damaged":
            raise InputError("damaged")
        return lambda _: {"name": np.array(name)}


@pytest.fixture
def opening() -> Iterator[Opening]:
    found = Opening()
    yield found
    found.through.release(100)


def until(condition: object) -> None:
    end = time.monotonic() + 10
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.001)


def test_nothing_is_opened_before_a_graph_is_asked_for(opening: Opening) -> None:
    ahead = OpenedAhead(opening, NAMES)
    time.sleep(0.02)
    assert opening.begun == []
    opening.through.release(100)
    assert str(ahead("graph 0")({})["name"]) == "graph 0"
    until(lambda: opening.begun == NAMES)
    assert opening.most <= OPENED_AT_ONCE
    assert ahead("graph 3") is ahead("graph 3")


def test_what_is_asked_for_out_of_turn_is_next(opening: Opening) -> None:
    opening.through.release(1)
    ahead = OpenedAhead(opening, NAMES)
    ahead("graph 7")
    assert opening.begun[0] == "graph 7"
    opening.through.release(100)
    ahead("another")
    assert opening.begun.count("another") == 1 and opening.most <= OPENED_AT_ONCE


def test_closing_waits_for_those_in_flight_alone(opening: Opening) -> None:
    ahead = OpenedAhead(opening, NAMES)
    opening.through.release(1)
    ahead("graph 0")
    until(lambda: len(opening.begun) == 1 + OPENED_AT_ONCE)
    closing = threading.Thread(target=ahead.close)
    closing.start()
    opening.through.release(OPENED_AT_ONCE)
    closing.join(10)
    assert not closing.is_alive() and len(opening.begun) == 1 + OPENED_AT_ONCE
    with pytest.raises(RuntimeError, match="this player was closed"):
        ahead("graph 1")
    ahead.close()  # a second time does nothing


def test_a_failure_is_raised_to_who_asks(opening: Opening) -> None:
    opening.through.release(100)
    ahead = OpenedAhead(opening, ["damaged", "whole"])
    with pytest.raises(InputError, match="damaged"):
        ahead("damaged")
    assert ahead("whole")({})


def test_none_is_begun_for_a_thread_that_has_ended(opening: Opening) -> None:
    opening.through.release(1)
    ahead = OpenedAhead(opening, NAMES)
    asking = threading.Thread(target=ahead, args=("graph 0",))
    asking.start()
    asking.join(10)
    begun = len(opening.begun)
    opening.through.release(100)
    time.sleep(0.05)
    assert len(opening.begun) <= begun + OPENED_AT_ONCE < len(NAMES)
    ahead("graph 5")  # whoever asks next goes on
    until(lambda: sorted(opening.begun) == sorted(NAMES))


LEFT_OPEN = """
import sys, time
from exporter.runtime.ahead import OpenedAhead
def opened(name):
    if name != "0":
        time.sleep(1)
    print(name, flush=True)
    return lambda inputs: {}
OpenedAhead(opened, [str(i) for i in range(20)])("0")
sys.exit("an early error")
"""


def test_a_process_that_ends_early_does_not_open_the_rest() -> None:
    """Also without ``close``: 19 graphs of a second each are not waited for."""
    done = subprocess.run([sys.executable, "-c", LEFT_OPEN], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.strip() == "an early error"
    assert len(done.stdout.split()) <= 1 + 2 * OPENED_AT_ONCE


def test_requests_are_checked_before_anything_is_opened(
    tiny_package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(Package, "session", lambda _, name, setup: opened.append(name))
    picture = np.zeros((48, 64, 3), np.uint8)
    wrong = Request("x", image=picture.astype(np.int64))
    with open_package(tiny_package).player(keep=True) as player:
        for request in (wrong, Request("x", image=picture, strength=0.0)):
            with pytest.raises(InputError, match="image|strength"):
                list(generate(player, [request]))
    assert opened == []


def test_a_player_that_keeps_nothing_open_can_be_closed_too(tiny_package: Path) -> None:
    with open_package(tiny_package).player(backends.SessionOptions("float32")) as player:
        pass
    assert callable(player.open("vae_decoder"))

"""Graphs that are opened while the ones before them run, and stay open until they are let go."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future
from typing import Generic, TypeVar

from exporter.drawing.loop import Session

OPENED_AT_ONCE = 2


K = TypeVar("K", bound=Hashable)  # what a graph is opened by


class OpenedAhead(Generic[K]):
    """Opens graphs in this order, each once, and any other when it is asked for.

    Nothing is opened before a graph is asked for, and never more than ``OPENED_AT_ONCE`` at a time;
    one that is asked for out of turn is next. As soon as the thread that asked last has ended, or
    ``close`` is called, no further graph is begun: whoever stops early waits for those in flight
    alone.
    """

    def __init__(self, opened: Callable[[K], Session], names: Iterable[K]) -> None:
        self._opened = opened
        self._lock = threading.Lock()
        self._left = deque(names)
        self._found: dict[K, Future[Session]] = {name: Future() for name in self._left}
        self._threads: list[threading.Thread] = []
        self._asking = threading.current_thread()
        self._closed = False

    def __call__(self, name: K) -> Session:
        """A graph, as soon as it is open; raises what opening it raised."""
        with self._lock:
            if self._closed:
                raise RuntimeError("this player was closed; ask the package for another")
            self._asking = threading.current_thread()
            if name in self._left:
                self._left.remove(name)
                self._left.appendleft(name)
            elif name not in self._found:
                self._found[name] = Future()
                self._left.appendleft(name)
            found = self._found[name]
            self._begin()
        return found.result()

    def close(self) -> None:
        """Begin no further graph, wait for those in flight, and let go of all."""
        with self._lock:
            self._closed = True
            for name in self._left:
                self._found[name].cancel()
            self._left.clear()
            threads = tuple(self._threads)
        for thread in threads:
            thread.join()
        self._found.clear()

    def _begin(self) -> None:
        """Start threads for what is left; the lock is held."""
        for _ in range(min(len(self._left), OPENED_AT_ONCE - len(self._threads))):
            thread = threading.Thread(target=self._work)
            self._threads.append(thread)
            thread.start()

    def _work(self) -> None:
        while (begun := self._next()) is not None:
            name, found = begun
            try:
                found.set_result(self._opened(name))
            except BaseException as error:
                found.set_exception(error)

    def _next(self) -> tuple[K, Future[Session]] | None:
        with self._lock:
            if self._left and self._asking.is_alive():
                name = self._left.popleft()
                return name, self._found[name]
            self._threads.remove(threading.current_thread())
            return None

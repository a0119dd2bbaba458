"""A fair limit on the number of computations at the same time. Each computation takes a turn, first come, first served.

An edit may take a hundred steps. Between two steps it lets other computations go first (`breathe`), so that a preview
in another session waits for one step and not for the whole edit.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class Stopped(Exception):
    """A computation was stopped, before or after its start."""


class Gate:
    """At most `turns` threads compute at the same time, in the order in which they asked."""

    def __init__(self, turns: int) -> None:
        self._condition = threading.Condition()
        self._free = turns
        self._waiting: deque[object] = deque()

    @contextmanager
    def turn(self, stop: threading.Event | None = None) -> Iterator[None]:
        """A context manager to compute in.

        Raises:
            Stopped: `stop` was set while waiting.
        """
        self._enter(stop)
        try:
            yield
        finally:
            self._leave()

    def breathe(self) -> None:
        """Inside a turn: let waiting computations go first."""
        with self._condition:
            if not self._waiting:
                return
        self._leave()
        self._enter(None)

    def wake(self) -> None:
        """Make all waiting computations check their `stop` events."""
        with self._condition:
            self._condition.notify_all()

    def _enter(self, stop: threading.Event | None) -> None:
        ticket = object()
        with self._condition:
            self._waiting.append(ticket)
            try:
                while self._free == 0 or self._waiting[0] is not ticket:
                    if stop is not None and stop.is_set():
                        raise Stopped
                    self._condition.wait()
                self._free -= 1
            finally:
                self._waiting.remove(ticket)
                self._condition.notify_all()

    def _leave(self) -> None:
        with self._condition:
            self._free += 1
            self._condition.notify_all()


class Stopwatch:
    """Measures computing time against a limit; time of waiting does not count."""

    def __init__(self, limit_s: float) -> None:
        self._limit, self._used, self._mark = limit_s, 0.0, time.monotonic()

    def spent(self) -> bool:
        """Whether the limit is exceeded."""
        return self._used + time.monotonic() - self._mark > self._limit

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A context manager to wait in."""
        self._used += time.monotonic() - self._mark
        try:
            yield
        finally:
            self._mark = time.monotonic()

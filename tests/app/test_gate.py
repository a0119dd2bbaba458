"""Turns: the limit holds, the order is first come, first served, and waiting computations can be stopped."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest

from autodrag.app import gate as gate_module
from autodrag.app.gate import Gate, Stopped, Stopwatch


def waiting(gate: Gate, count: int) -> None:
    """Return when `count` threads are waiting."""
    while len(gate._waiting) < count:
        time.sleep(0.001)


def test_no_more_than_its_turns_compute_at_once() -> None:
    gate, inside, most = Gate(2), 0, 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal inside, most
        for _ in range(20):
            with gate.turn():
                with lock:
                    inside += 1
                    most = max(most, inside)
                gate_held = inside
                assert gate_held <= 2
                with lock:
                    inside -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert inside == 0 and 1 <= most <= 2


def test_the_longest_waiting_is_next_and_long_work_gives_way() -> None:
    gate, order = Gate(1), []

    def short(name: str) -> None:
        with gate.turn():
            order.append(name)

    with gate.turn():
        threads = []
        for count, name in enumerate(("first", "second", "third"), start=1):
            thread = threading.Thread(target=short, args=(name,))
            thread.start()
            threads.append(thread)
            waiting(gate, count)
        assert order == []
        gate.breathe()  # all three asked before the one that gives way
        order.append("long")
    for thread in threads:
        thread.join(10)
    assert order == ["first", "second", "third", "long"]


def test_who_waits_can_be_stopped() -> None:
    gate, stop, seen = Gate(1), threading.Event(), []

    def work() -> None:
        try:
            with gate.turn(stop):
                seen.append("computed")
        except Stopped:
            seen.append("stopped")

    with gate.turn():
        thread = threading.Thread(target=work)
        thread.start()
        waiting(gate, 1)
        stop.set()
        gate.wake()
        thread.join(10)
    assert seen == ["stopped"]
    with gate.turn():
        pass


def test_a_failure_inside_gives_the_turn_back() -> None:
    gate = Gate(1)
    with pytest.raises(RuntimeError, match="broken"), gate.turn():
        raise RuntimeError("broken")
    with gate.turn():
        pass


def test_waiting_does_not_count_as_work(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(gate_module, "time", SimpleNamespace(monotonic=lambda: now[0]))  # only in this module
    clock = Stopwatch(5.0)
    now[0] = 4.0
    assert not clock.spent()
    with clock.paused():
        now[0] = 100.0
    assert not clock.spent()
    now[0] = 101.5
    assert clock.spent()

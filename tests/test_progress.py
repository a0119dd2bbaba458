"""Progress in a pipe: lines at most every few seconds, with the remaining time in words."""

from __future__ import annotations

import itertools
import sys
import time

import pytest

from autodrag.progress import ProgressDisplay, duration, track


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, which the test sets."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (45, "45 s"), (99, "99 s"), (720, "12 min"), (3599, "1 h 0 min"), (11_520, "3 h 12 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
    assert duration(100 * 3600) == "100 h 0 min"


def test_a_pipe_gets_a_line_every_few_seconds(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay("training", 7200, "step", done=3600) as display:
        for second in range(1, 13):
            clock[0] = second
            display.update(note=f"loss {second}")
    assert capsys.readouterr().err.splitlines() == [
        "training: 3605/7200 steps, 1 steps/s, 1 h 0 min left, loss 5",
        "training: 3610/7200 steps, 1 steps/s, 60 min left, loss 10".replace("60 min", "1 h 0 min"),
    ]


def test_lines_become_rare_in_long_work(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    display = ProgressDisplay("rendering", unit="image", output="stdout")
    for clock[0] in itertools.chain(range(0, 3600, 1), range(3600, 36_000, 1)):
        display.update()
    lines = capsys.readouterr().out.splitlines()
    assert 36_000 / 60 < len(lines) < 36_000 / 20
    assert lines[0] == "rendering: 6 images, 1.2 images/s"


def test_short_work_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track([1, 2, 3], "counting")) == [1, 2, 3]
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with ProgressDisplay("dragging", 20_000) as display:
        clock[0] = 1.0
        display.update(2, note="loss 0.5")
        assert display.bar is not None
        assert "2/20000 steps, " in str(display.bar) and str(display.bar).endswith(", 2 h 47 min left, loss 0.5")
    with ProgressDisplay("dragging") as display:
        display.update(2)
        assert str(display.bar).startswith("dragging: 2 steps, ")

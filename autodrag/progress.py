"""Progress of long work: a bar on a terminal, a line every few seconds in a pipe or a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, Literal, TypeVar

Item = TypeVar("Item")

LINE_S = 5.0
"""Least seconds between two lines. It grows with the elapsed time, so that a training of days has a short log."""
MAX_LINE_S = 60.0
LINE_SHARE = 0.01
"""Share of the elapsed time between two lines."""


class ProgressDisplay:
    """Shows how much of the work is done. It prints nothing for work that ends within `LINE_S` if not on a terminal.

    Use it as a context manager, or call `close`.
    """

    def __init__(
        self,
        label: str,
        total: int | None = None,
        unit: str = "step",
        *,
        done: int = 0,
        output: Literal["stdout", "stderr"] = "stderr",
    ) -> None:
        """done: units that are done before the start. output: where the lines or the bar go."""
        self.label, self.total, self.unit, self.done = label, total, unit, done
        self.stream = sys.stdout if output == "stdout" else sys.stderr
        self.first, self.started = done, time.monotonic()
        self.printed, self.printed_done = self.started, done
        self.note = ""
        self.bar = _bar(self) if self.stream.isatty() else None

    def __enter__(self) -> ProgressDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, count: int = 1, note: str = "") -> None:
        """Count further units; `note` is text for the end of the line."""
        self.done += count
        self.note = note or self.note
        if self.bar is not None:
            self.bar.set_postfix_str(self.note, refresh=False)
            self.bar.update(count)
            return
        now = time.monotonic()
        if now - self.printed >= min(MAX_LINE_S, max(LINE_S, LINE_SHARE * (now - self.started))):
            self.print_line()

    def print_line(self) -> None:
        """Print the present state as a line, unless there is a bar or the line is there."""
        if self.bar is None and self.done != self.printed_done:
            self.printed, self.printed_done = time.monotonic(), self.done
            print(self.line(), file=self.stream, flush=True)

    def line(self) -> str:
        """`training: 1200/60000 steps, 12.4 steps/s, 1 h 19 min left, loss 0.31`."""
        parts = [f"{self.label}: {self.done}{'' if self.total is None else f'/{self.total}'} {self.unit}s"]
        rate = self.rate
        if rate:
            parts.append(f"{rate:.3g} {self.unit}s/s" if rate >= 1 else f"{1 / rate:.3g} s per {self.unit}")
        left = self.seconds_left
        if left is not None and self.done < (self.total or 0):
            parts.append(f"{duration(left)} left")
        return ", ".join([*parts, self.note] if self.note else parts)

    @property
    def rate(self) -> float:
        """Units per second since the start."""
        return (self.done - self.first) / max(time.monotonic() - self.started, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds to the end; None if it is unknown."""
        rate = self.rate
        return None if self.total is None or not rate else max(0, self.total - self.done) / rate

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()


def track(items: Iterable[Item], label: str, total: int | None = None, unit: str = "step") -> Iterator[Item]:
    """The items, with their progress on standard error. `total` is needed if they have no length."""
    total = len(items) if total is None and isinstance(items, Sized) else total
    with ProgressDisplay(label, total, unit) as display:
        for item in items:
            yield item
            display.update()


def duration(seconds: float) -> str:
    """`45 s`, `12 min` or `3 h 12 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _bar(display: ProgressDisplay) -> Any:
    from tqdm import tqdm

    class Bar(tqdm):
        """tqdm with the remaining time in our words, because its own are `27:46:40` for long work."""

        @property
        def format_dict(self) -> dict[str, Any]:
            left = display.seconds_left
            return {**super().format_dict, "left": "" if left is None else f", {duration(left)} left"}

    shown = "{l_bar}{bar}| " if display.total is not None else "{desc}: "
    of_total = "/{total_fmt}" if display.total is not None else ""
    return Bar(
        desc=display.label,
        total=display.total,
        initial=display.done,
        unit=display.unit,
        file=display.stream,
        leave=False,
        bar_format=f"{shown}{{n_fmt}}{of_total} {display.unit}s, {{rate_fmt}}{{left}}{{postfix}}",
    )

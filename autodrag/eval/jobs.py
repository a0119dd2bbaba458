"""A run shared among processes: on small images a drag keeps one thread busy, and two hardly at all.

Every process is the same command with `--share K/N` more, which runs every Nth pair with its part of the cores and adds
lines to the same log. The command that started them counts the lines, and makes the tables at the end.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from tqdm import tqdm

from autodrag.errors import AutodragError

POLL_S = 0.2


def default_jobs(device: str) -> int:
    """As many processes as there are cores on a CPU, one elsewhere."""
    return _cores() if device == "cpu" else 1


def threads_each(jobs: int) -> int:
    """Threads of one of so many processes."""
    return max(1, _cores() // jobs)


def read_share(text: str | None) -> tuple[int, int] | None:
    """`K/N` as (K, N), the share of pairs K, K + N, K + 2 N, ...; None for none."""
    if text is None:
        return None
    try:
        index, count = (int(part) for part in text.split("/"))
    except ValueError:
        index, count = -1, 0
    if not 0 <= index < count:
        raise AutodragError(f"--share {text}: expected K/N with 0 <= K < N")
    return index, count


def run_shares(command: Sequence[str], jobs: int, total: int, log: Path, unit: str) -> None:
    """Runs `command` in `jobs` processes, each with its `--share`, until all have ended.

    Args:
        command: arguments of `autodrag`.
        total: how many lines they will add to `log`.

    Raises:
        AutodragError: a process failed; the others are ended, and what is in the log stays there.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(threads_each(jobs))}
    before = _count_lines(log)
    running: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []
    with contextlib.ExitStack() as files:
        try:
            for index in range(jobs):
                words = files.enter_context(tempfile.TemporaryFile())
                full = [sys.executable, "-m", "autodrag.cli", *command, "--share", f"{index}/{jobs}"]
                process = subprocess.Popen(full, env=environment, stdout=subprocess.DEVNULL, stderr=words)
                running.append((process, words))
            with tqdm(total=total, unit=unit, disable=None) as bar:
                while any(process.poll() is None for process, _ in running):
                    _check(running)
                    time.sleep(POLL_S)
                    bar.update(_count_lines(log) - before - bar.n)
            _check(running)
        finally:
            for process, _ in running:
                process.terminate()
            for process, _ in running:
                process.wait()


def _check(running: Sequence[tuple[subprocess.Popen[bytes], IO[bytes]]]) -> None:
    """Raises AutodragError with what the first process that failed said last."""
    for process, words in running:
        if process.poll():
            words.seek(0)
            lines = [line for line in words.read().decode(errors="replace").splitlines() if line.strip()]
            said = lines[-1] if lines else f"a process of the run ended with {process.returncode}; start it again"
            raise AutodragError(said.removeprefix("error: "))


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _count_lines(log: Path) -> int:
    return log.read_bytes().count(b"\n") if log.exists() else 0

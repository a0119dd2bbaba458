"""Runs that are shared among processes: the same table, whatever happens to one of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from autodrag.cli import main
from autodrag.errors import AutodragError
from autodrag.eval.jobs import default_jobs, read_share, run_shares, threads_each

NOT_THE_SAME = ("seconds",)


def evaluate(checkpoint: Path, out: Path, *options: str) -> list[str]:
    common = ["--pairs", "3", "--methods", "none,refiner", "--steps", "2", "--device", "cpu", "--points", "1,2"]
    return ["eval", "landmarks", "--checkpoint", str(checkpoint), "--out", str(out), *common, *options]


def records(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "drags.jsonl").read_text().splitlines()]
    for line in lines:
        for name in NOT_THE_SAME:
            del line[name]
    return sorted(lines, key=lambda line: (line["points"], line["pair"], line["method"]))


def test_two_processes_measure_what_one_does(
    landmark_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(evaluate(landmark_checkpoint, tmp_path / "one", "--jobs", "1")) == 0
    capsys.readouterr()
    assert main(evaluate(landmark_checkpoint, tmp_path / "two", "--jobs", "2")) == 0
    said = capsys.readouterr()
    assert said.out.startswith("| points | method |") and len(said.out.splitlines()) == 6 and not said.err
    one, two = records(tmp_path / "one"), records(tmp_path / "two")
    assert len(one) == 3 * 2 * 2
    for a, b in zip(one, two, strict=True):  # the last digits depend on how sums are divided among threads
        assert a.keys() == b.keys()
        assert [a[k] for k in ("points", "pair", "method", "seed", "steps")] == [
            b[k] for k in ("points", "pair", "method", "seed", "steps")
        ]
        assert a["distance"] == pytest.approx(b["distance"], abs=1e-2)


def test_a_shared_run_goes_on(landmark_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(evaluate(landmark_checkpoint, out, "--jobs", "1")) == 0
    whole = (out / "drags.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    (out / "drags.jsonl").write_bytes(b"".join(lines[:5]) + lines[5][:20])  # cut off in the middle of a line
    assert main(evaluate(landmark_checkpoint, out, "--jobs", "2")) == 0
    assert (out / "drags.jsonl").read_bytes().startswith(b"".join(lines[:5]))
    assert len(records(out)) == len(lines)


def test_an_interrupt_ends_all_processes_and_keeps_what_is_done(landmark_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    slow = ["--pairs", "300", "--steps", "300", "--methods", "draggan", "--points", "1"]
    command = [*evaluate(landmark_checkpoint, out, "--jobs", "2"), *slow]
    running = subprocess.Popen(
        [sys.executable, "-m", "autodrag.cli", *command], stderr=subprocess.PIPE, start_new_session=True, text=True
    )
    log = out / "drags.jsonl"
    while not (log.exists() and log.read_bytes().count(b"\n") > 4):
        assert running.poll() is None
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130 and "Traceback" not in said
    end = time.monotonic() + 60
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < end:  # the last process of the group may still be going
            os.killpg(running.pid, 0)
            time.sleep(0.05)
    pairs = [record["pair"] for record in records(out)]  # whole lines
    assert 4 < len(pairs) == len(set(pairs)) < 300, "each pair once, and not all"


def test_a_process_that_fails_ends_the_run_with_its_sentence(tmp_path: Path) -> None:
    with pytest.raises(AutodragError, match=r"checkpoint 'nowhere' does not exist"):
        run_shares(["eval", "landmarks", "--checkpoint", "nowhere"], 2, 10, tmp_path / "drags.jsonl", "drag")


def test_how_many() -> None:
    assert default_jobs("cuda") == 1 and default_jobs("cpu") >= 1
    assert threads_each(10**6) == 1 and threads_each(1) == default_jobs("cpu")
    assert read_share(None) is None and read_share("1/2") == (1, 2)
    for wrong in ("2/2", "-1/2", "1", "a/b", "0/0"):
        with pytest.raises(AutodragError, match="expected K/N"):
            read_share(wrong)


def test_a_number_of_processes_that_cannot_be(
    landmark_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(evaluate(landmark_checkpoint, tmp_path / "run", "--jobs", "0")) == 2
    assert "--jobs 0: expected at least 1" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()

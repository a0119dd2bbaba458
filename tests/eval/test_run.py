"""Shared parts of all experiments: records, rows and processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from autodrag.cli import main
from autodrag.eval.log import append
from autodrag.eval.results import read_table
from autodrag.eval.run import complete_records


def write(out: Path, method: str, points: int, pairs: Sequence[int]) -> None:
    out.mkdir(exist_ok=True)
    for pair in pairs:
        append(out, {"method": method, "points": points, "pair": pair})


def test_table_skips_groups_with_missing_pairs(tmp_path: Path) -> None:
    write(tmp_path, "none", 1, (1, 0))
    write(tmp_path, "refine", 1, (0,))  # still running
    write(tmp_path, "none", 5, (0, 1, 2))
    append(tmp_path, {"else": 1})
    found = [(r["method"], r["points"], r["pair"]) for r in complete_records(tmp_path, 2)]
    assert found == [("none", 1, 0), ("none", 1, 1), ("none", 5, 0), ("none", 5, 1)]
    assert {r["points"] for r in complete_records(tmp_path, 3)} == {5}


def test_methods_of_a_table_are_in_one_order_whatever_ended_first(tmp_path: Path) -> None:
    for method in ("both", "refine", "none", "draggan"):
        write(tmp_path, method, 1, (0,))
    assert [r["method"] for r in complete_records(tmp_path, 1)] == ["none", "draggan", "refine", "both"]


def words(checkpoint: Path, out: Path, *options: str) -> list[str]:
    common = ["--pairs", "3", "--methods", "none,refine", "--steps", "2", "--device", "cpu", "--points", "1,2"]
    return ["eval", "landmarks", "--checkpoint", str(checkpoint), "--out", str(out), *common, *options]


def records(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "drags.jsonl").read_text().splitlines()]
    for line in lines:
        del line["seconds"]
    return sorted(lines, key=lambda line: (line["points"], line["pair"], line["method"]))


def test_two_processes_resume_a_run_with_equal_results(
    landmark_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(words(landmark_checkpoint, one, "--jobs", "1", "--results", str(tmp_path / "table.json"))) == 0
    lines = (one / "drags.jsonl").read_bytes().splitlines(keepends=True)
    shutil.copytree(one, two)
    (two / "drags.jsonl").write_bytes(b"".join(lines[:5]) + lines[5][:20])  # interrupted while writing a line
    capsys.readouterr()
    assert main(words(landmark_checkpoint, two, "--jobs", "2")) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("| points | method |") and len(printed.splitlines()) == 6
    assert (two / "drags.jsonl").read_bytes().startswith(b"".join(lines[:5]))
    assert len(records(one)) == 3 * 2 * 2
    for a, b in zip(records(one), records(two), strict=True):
        assert a.keys() == b.keys() and [a[k] for k in ("pair", "method", "seed")] == [
            b[k] for k in ("pair", "method", "seed")
        ]
        assert a["distance"] == pytest.approx(b["distance"], abs=1e-2)
    assert {p.name for p in (two / "images").iterdir()} >= {"none-1-02.png", "refine-2-02.png"}
    table = read_table(tmp_path / "table.json")
    assert table.markdown == (one / "table.md").read_text() and table.rows == json.loads(
        (one / "table.json").read_text()
    )
    assert table.kind == "landmarks" and "torch" in table.machine
    assert table.command.startswith(f"autodrag eval landmarks --checkpoint {landmark_checkpoint}")


def test_interrupt_ends_all_processes_and_keeps_the_records(landmark_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    slow = ["--pairs", "300", "--steps", "300", "--methods", "draggan", "--points", "1", "--jobs", "2"]
    command = [sys.executable, "-m", "autodrag.cli", *words(landmark_checkpoint, out), *slow]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True, text=True)
    log = out / "drags.jsonl"
    while not (log.exists() and log.read_bytes().count(b"\n") > 4):
        assert running.poll() is None
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does on Ctrl-C
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130 and "Traceback" not in said
    end = time.monotonic() + 60
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < end:  # the last process of the group may still be exiting
            os.killpg(running.pid, 0)
            time.sleep(0.05)
    pairs = [record["pair"] for record in records(out)]  # all lines are complete
    assert 4 < len(pairs) == len(set(pairs)) < 300, "each pair once, and not all"


@pytest.mark.filterwarnings("ignore")  # warnings of Ray itself
def test_a_run_on_ray(landmark_checkpoint: Path, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    options = ["--pairs", "1", "--points", "1", "--engine", "ray", "--jobs", "1"]
    try:
        assert main(words(landmark_checkpoint, tmp_path / "run", *options)) == 0
    finally:
        ray.shutdown()
    assert [record["method"] for record in records(tmp_path / "run")] == ["none", "refine"]

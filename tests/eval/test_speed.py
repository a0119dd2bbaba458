"""Time measurements, with one process per row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from autodrag.cli import main
from autodrag.errors import AutodragError
from autodrag.eval import speed
from autodrag.eval.methods import METHODS
from autodrag.eval.speed import Extent, Row


def test_measured_methods_exist() -> None:
    assert set(speed.ONE_SHOT) | set(speed.STEPWISE) <= set(METHODS)


def test_a_step_and_a_synthesis(landmark_checkpoint: Path) -> None:
    extent = Extent(str(landmark_checkpoint), 32768, rounds=2, max_steps=4, threads=1)
    record = speed.measure(Row(32, "refine", "cpu", "bfloat16", False), extent)
    assert record["measured"] == 2  # one mean per round, without the warm-up round
    assert 0 < record["synthesis_s"][0] <= record["synthesis_s"][2]
    assert record["ratio"] == pytest.approx(record["work_s"][1] / record["synthesis_s"][1])
    assert record["memory_mb"] > 50


def test_predictor_with_random_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """A predictor of the paper's depth, but narrow, so that the synthesis takes a measurable part of the time."""
    from autodrag.nets.predictor import PredictorConfig
    from autodrag.nets.regularizer import RegularizerConfig

    monkeypatch.setattr(speed, "PredictorConfig", lambda: PredictorConfig(width=32, heads=2, token_rows=8))
    monkeypatch.setattr(speed, "RegularizerConfig", lambda **sizes: RegularizerConfig(width=32, heads=2, **sizes))
    extent = Extent(None, 256, rounds=2, max_steps=3, threads=1)
    generator = extent.open_generator(32)
    nets = speed.random_editor(generator)
    assert (len(nets.predictor.encoder), len(nets.predictor.decoder), nets.predictor.config.steps) == (6, 16, 5)
    assert nets.regularizer is not None
    assert nets.predictor.config.image == generator.config.image_size
    record = speed.measure(Row(32, "predict", "cpu", "float32", False), extent)
    assert record["measured"] == 2 and record["ratio"] > 1  # an edit contains two rounds of synthesis and both networks


def test_random_weights_have_the_published_sizes() -> None:
    extent = Extent(None, 4096, 1, 3, 1)
    generator, again = extent.open_generator(64), extent.open_generator(64)
    assert generator.config.resolution == 64 and generator.config.w_dim == 512
    assert torch.equal(generator.map(torch.ones(1, 512)), again.map(torch.ones(1, 512)))


def test_rows_run_in_separate_processes_and_are_stored(
    landmark_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, results = tmp_path / "run", tmp_path / "speed.json"
    options = ["--devices", "cpu", "--rounds", "1", "--max-steps", "3", "--threads", "1", "--out", str(out)]
    options += ["--checkpoint", str(landmark_checkpoint), "--methods", "refine"]
    assert main(["eval", "speed", *options]) == 0
    first = (out / "drags.jsonl").read_text()
    assert main(["eval", "speed", *options, "--results", str(results)]) == 0
    assert (out / "drags.jsonl").read_text() == first and len(first.splitlines()) == 1
    (row,) = json.loads((out / "table.json").read_text())
    assert row["px"] == 32 and row["work_s"][1] > 0 and row["memory_mb"] > 50
    assert json.loads(results.read_text())["rows"] == [row]
    assert "| 32 | cpu | float32 | refine step | " in capsys.readouterr().out


def test_error_names_the_failed_row() -> None:
    extent = Extent(None, 256, rounds=1, max_steps=3, threads=1)
    row = Row(32, "refine", "cuda:99", "float32", False)
    with pytest.raises(AutodragError, match="refine at 32 px on cuda:99 failed: device 'cuda:99' cannot be used here"):
        speed.measure_in_process(row, extent)

"""The benchmark scripts, which users run manually, still work with the current command line and API."""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from learned import save_learned, tiny_nets

from autodrag.cli import main
from autodrag.nets.landmarks import LandmarkConfig, LandmarkNet
from autodrag.nets.stylegan2 import Generator
from autodrag.release import save_tensors
from autodrag.train import predictor as training
from autodrag.train.base import parse_config
from autodrag.train.heldout import held_out_drags
from autodrag.train.predictor import PredictorTraining

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TINY = """
run: {accelerator: cpu, precision: 32-true}
net: {feature_block: 2, track_block: 2, steps: 1, width: 16, heads: 2, encoder_layers: 1, decoder_layers: 1,
      mlp_ratio: 2, token_rows: 4}
motion: {n_candidates: 6, max_points: 4}
"""


def script(name: str) -> ModuleType:
    """Import a script of benchmarks/ as a module."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def ablations() -> ModuleType:
    return script("ablations")


def test_ablations_have_different_configs(ablations: ModuleType) -> None:
    config = BENCHMARKS.parent / "configs" / "critters" / "predictor.yaml"
    args = argparse.Namespace(steps=3, lr=1e-3)
    trainings = [
        parse_config(
            PredictorTraining,
            "predictor",
            ["--config", str(config), "--training.stages", ablations.stage(args, changes), *options],
        )
        for changes, options in ablations.VARIANTS.values()
    ]
    assert all(one != other for k, one in enumerate(trainings) for other in trainings[:k])


@pytest.mark.filterwarnings("ignore")  # Lightning's warnings about workers and loggers
def test_ablations_print_a_table(
    ablations: ModuleType,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two variants, two steps each. Training runs in this process, because a new process starts slowly."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    trained: list[str] = []

    def process(command: list[str], **_: Any) -> None:
        assert command[:3] == [sys.executable, "-m", "autodrag.cli"]
        trained.append(command[command.index("--run.folder") + 1])
        assert main(command[3:]) == 0

    few: Callable[..., Any] = partial(held_out_drags, count=4)
    monkeypatch.setattr(subprocess, "run", process)
    monkeypatch.setattr(training, "held_out_drags", few)
    monkeypatch.setattr(ablations, "held_out_drags", lambda *args, count: few(*args))
    words = ["--config", str(tmp_path / "tiny.yaml"), "--checkpoint", str(tiny_checkpoint), "--steps", "2"]
    words += ["--batch", "4", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["ablations.py", *words, "--only", "as configured", "n = 2"])
    for _ in range(2):  # the second run only reads the results of the first
        ablations.main()
        *_, head, line, first, second = capsys.readouterr().out.splitlines()
        assert head.startswith("| variant | 1-points, open loop | ") and line.count("---") == head.count("|") - 1
        assert first.startswith("| as configured | ") and second.startswith("| n = 2 | ")
        assert first.count("%") == second.count("%") == 6
    assert [Path(folder).name for folder in trained] == ["as-configured", "n---2"]
    left = json.loads((tmp_path / "out" / "n---2" / "left.json").read_text())
    assert set(left) == {"open", "closed"} and all(share > 0 for shares in left.values() for share in shares.values())


@pytest.mark.parametrize(("push", "restored"), [(0.0, False), (2.0, False), (0.0, True)])
def test_spread_distinguishes_edits_with_and_without_effect(
    tiny_generator: Generator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    push: float,
    restored: bool,
) -> None:
    folder = save_learned(tmp_path / "tiny", tiny_generator, tiny_nets(tiny_generator, push=push, regularizer=False))
    sizes = LandmarkConfig(resolution=32, width=8, depth=2, names=("nose", "chin"))
    torch.manual_seed(0)
    net = LandmarkNet(sizes)
    torch.nn.init.normal_(net.heat.weight, std=0.5)  # sharper heat maps, so that points differ between images
    save_tensors(folder / "landmarks.safetensors", net.state_dict(), kind="landmarks", config=asdict(sizes))
    other = save_learned(tmp_path / "other", tiny_generator, tiny_nets(tiny_generator, push=2.0))
    options = ["--regularizer", str(other / "regularizer.safetensors")] if restored else []
    options += ["--checkpoint", str(folder), "--pairs", "50", "--points", "1,2"]
    monkeypatch.setattr(sys, "argv", ["spread.py", *options])
    script("spread").main()
    head, line, others, *edits = capsys.readouterr().out.strip().splitlines()
    assert head.startswith("| images | of no edit | Fréchet ") and line.count("---") == head.count("|") - 1
    assert others.startswith("| other images | – | ") and len(edits) == 2
    for count, row in zip((1, 2), edits, strict=True):
        name, left, *figures = [cell.strip() for cell in row.strip("|").split("|")]
        assert name == f"edits of {count}"
        nothing = [float(figure) for figure in figures] == pytest.approx([0, 1, 1, 1], abs=1e-2)
        assert (left == "100.0%" and nothing) == (push == 0 and not restored)


def test_torn_heads_are_detected_by_landmark_geometry(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = BENCHMARKS.parent / "checkpoints" / "critters"
    monkeypatch.setattr(sys, "argv", ["torn.py", "--checkpoint", str(checkpoint), "--images", "100"])
    script("torn").main()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()[2:]]
    shares = {row[0]: [float(cell.removesuffix("%")) for cell in row[1:]] for row in rows if len(row) == 3}
    assert shares["unedited"] == [5.0, 5.0]
    by_landmarks, by_confidence = shares["lower part 8 px to the side"]
    assert by_landmarks > 75 > by_confidence

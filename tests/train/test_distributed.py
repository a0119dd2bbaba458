"""Training with two processes equals training with one process with the same global batch: samples, losses, weights."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from autodrag.cli import main

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's warnings about workers and loggers

COMMON = ["--run.accelerator", "cpu", "--run.precision", "32-true", "--run.threads", "1", "--run.log_steps", "1"]
SMALL = ["net.width", "16", "net.heads", "2", "net.encoder_layers", "1", "net.decoder_layers", "1"]
PREDICTOR = [*SMALL, "net.feature_block", "2", "net.steps", "2", "net.token_rows", "4", "training.validate_steps", "4"]
PREDICTOR += ["motion.n_candidates", "6", "motion.max_points", "4", "training.batch", "4"]
STEPS = ["training.batch", "4", "training.steps", "4"]
STAGE_LIST = "[{steps: 2}, {steps: 2, moments_weight: 0.2}]"


def options(words: list[str], prefix: str = "") -> list[str]:
    """Convert names and values to command-line options of a group."""
    return [word if index % 2 else f"--{prefix}{word}" for index, word in enumerate(words)]


STAGES = {
    "regularizer": ["regularizer", *options(SMALL + STEPS)],
    "predictor": [
        "predictor",
        *options([*PREDICTOR, "training.stages", STAGE_LIST]),
    ],
    "paper": [
        "paper",
        *options([*SMALL, *STEPS], "regularizer."),
        *options([*PREDICTOR, *STEPS, "training.min_step_px", "1", "motion.min_drag_px", "10"], "predictor."),
    ],
}


def command(stage: str, folder: Path, checkpoint: Path) -> list[str]:
    own = ["--run.folder", str(folder), "--checkpoint", str(checkpoint)]
    return ["train", *STAGES[stage][:1], *own, *COMMON, *STAGES[stage][1:]]


def run(words: list[str]) -> None:
    """Run two processes. Their output is shown if they fail."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    quiet = {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(words, env={**os.environ, **quiet}, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def curves(folder: Path) -> dict[str, list[float]]:
    events = EventAccumulator(str(folder / "logs")).Reload()
    names = [name for name in events.Tags()["scalars"] if name.startswith("loss")]
    assert names
    return {name: [event.value for event in events.Scalars(name)] for name in names}


def weights(folder: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(folder / "last.ckpt", weights_only=False)["state_dict"]
    return state


@pytest.mark.parametrize(
    ("stage", "launcher"), [("regularizer", "lightning"), ("predictor", "lightning"), ("paper", "torchrun")]
)
def test_two_processes_equal_one_process(tmp_path: Path, tiny_checkpoint: Path, stage: str, launcher: str) -> None:
    assert main(command(stage, tmp_path / "one", tiny_checkpoint)) == 0
    words = [*command(stage, tmp_path / "two", tiny_checkpoint), "--run.devices", "2"]
    start = [sys.executable, "-m", "autodrag.cli"]
    if launcher == "torchrun":
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        start += ["-m", "autodrag.cli"]
    run([*start, *words])
    folders = [tmp_path / run / ("predictor" if stage == "paper" else "") for run in ("one", "two")]
    one, two = (curves(folder) for folder in folders)
    assert one.keys() == two.keys()
    for name, values in one.items():
        assert len(values) == (2 if name == "loss/moments" else 4), name  # used only in the second stage
        assert two[name] == pytest.approx(values, rel=1e-3, abs=1e-5), name
    first, second = (weights(folder) for folder in folders)
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, atol=2e-4, rtol=2e-3, msg=name)

"""A tiny checkpoint with a landmark net, and a run on it."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from autodrag.eval.run import Bench, add_options, open_bench
from autodrag.nets.landmarks import LandmarkConfig, LandmarkNet
from autodrag.release import save_tensors


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are not shared among processes, and torch's threads stay as they are."""
    monkeypatch.setattr("autodrag.eval.run.default_jobs", lambda device: 1)
    monkeypatch.setattr("autodrag.eval.run.threads_each", lambda jobs: torch.get_num_threads())


@pytest.fixture(autouse=True)
def few_usual_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty unedited images say what is usual."""
    monkeypatch.setattr("autodrag.eval.landmarks.USUAL", 20)


@pytest.fixture(scope="session")
def landmark_checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny 32 px generator with a random landmark net of three points. Read only."""
    folder = tmp_path_factory.mktemp("checkpoints") / "landmarks"
    shutil.copytree(tiny_checkpoint, folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = LandmarkNet(LandmarkConfig(resolution=32, width=8, depth=2, names=("nose", "chin", "crown")))
        torch.nn.init.normal_(net.heat.weight, std=0.5)  # sharper heat maps, so that points differ between images
    config = dataclasses.asdict(net.config)
    save_tensors(folder / "landmarks.safetensors", net.state_dict(), kind="landmarks", config=config)
    return folder


@pytest.fixture
def make_bench(landmark_checkpoint: Path, tmp_path: Path) -> Callable[..., Bench]:
    """A bench of two pairs; arguments are further options."""

    def build(*options: str, checkpoint: Path = landmark_checkpoint) -> Bench:
        parser = argparse.ArgumentParser(prog="autodrag eval landmarks")
        add_options(parser, steps=2, psi=0.7)
        given = ["--checkpoint", str(checkpoint), "--pairs", "2", "--device", "cpu", "--out", str(tmp_path / "run")]
        return open_bench(parser.parse_args([*given, *options]))

    return build

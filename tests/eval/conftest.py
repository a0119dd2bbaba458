"""A tiny checkpoint with a landmark net, and a bench for it."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from autodrag.eval.bench import Bench, add_options, open_bench
from autodrag.nets.landmarks import LandmarkConfig, LandmarkNet
from autodrag.release import save_tensors


@pytest.fixture(autouse=True)
def few_usual_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use only twenty unedited images to define the usual landmark positions."""
    monkeypatch.setattr("autodrag.eval.landmarks.USUAL", 20)


@pytest.fixture(scope="session")
def landmark_checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny 32 px generator with a random landmark net of three points. Read-only."""
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
def make_bench(landmark_checkpoint: Path) -> Callable[..., Bench]:
    """Returns a function that builds a bench with two pairs; arguments are further options."""

    def build(*options: str, checkpoint: Path = landmark_checkpoint) -> Bench:
        parser = argparse.ArgumentParser(prog="autodrag eval landmarks")
        add_options(parser, steps=2, psi=0.7, pairs=200, out="out")
        given = ["--checkpoint", str(checkpoint), "--pairs", "2", "--device", "cpu"]
        return open_bench(parser.parse_args([*given, *options]))

    return build

"""Landmark training on tiny networks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autodrag.checkpoint import load_landmarks
from autodrag.data.critters import LANDMARKS
from autodrag.errors import AutodragError
from autodrag.nets.landmarks import LandmarkConfig, Landmarks
from autodrag.train.base import RunConfig
from autodrag.train.landmarks import (
    LandmarkDataConfig,
    LandmarkOptimisation,
    LandmarkStream,
    LandmarkTraining,
    heat_spread,
    landmark_loss,
    train,
)

pytestmark = pytest.mark.filterwarnings("ignore")


def config(folder: Path, steps: int) -> LandmarkTraining:
    return LandmarkTraining(
        run=RunConfig(folder=folder, precision="32-true", accelerator="cpu", log_steps=1),
        net=LandmarkConfig(resolution=16, width=8, depth=2, margin=2, names=LANDMARKS),
        data=LandmarkDataConfig(cache=folder.parent / "critters.npy", count=8, held_out=4),
        training=LandmarkOptimisation(steps=steps, batch=4),
    )


def test_spread_and_loss_of_known_heat_maps() -> None:
    heat = torch.zeros(1, 1, 5, 5)
    heat[0, 0, 2, 1] = heat[0, 0, 2, 3] = 0.5  # variance 1 along x, 0 along y
    found = Landmarks(torch.tensor([[[3.0, 4.0]]]), torch.ones(1, 1), heat, torch.zeros(1, 2))
    assert float(heat_spread(found)) == pytest.approx(1.0)
    assert float(landmark_loss(found, torch.zeros(1, 1, 2), 0.5)) == pytest.approx(5.0 + 0.5)


def test_training_resumes_and_exports(tmp_path: Path) -> None:
    out = train(config(tmp_path / "run", 2))
    first = load_landmarks(out.parent)
    assert first is not None and first.config.names == LANDMARKS
    train(config(tmp_path / "run", 4))
    second = load_landmarks(out.parent)
    assert second is not None
    assert not torch.equal(first.heat.weight, second.heat.weight)
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=False)["step"] == 4


def test_names_that_critters_do_not_have_are_refused(tmp_path: Path) -> None:
    settings = config(tmp_path / "run", 1)
    with pytest.raises(AutodragError, match=r"net\.names holds 2 landmarks, and critters have 18"):
        train(replace(settings, net=replace(settings.net, names=("nose", "chin"))))
    assert list(tmp_path.iterdir()) == []


def test_stream_does_not_depend_on_interruptions(tmp_path: Path) -> None:
    train(config(tmp_path / "run", 1))
    cache = tmp_path / "critters.npy"
    whole = list(LandmarkStream(cache, batch=2, first=0, total=3, seed=1))
    rest = list(LandmarkStream(cache, batch=2, first=2, total=3, seed=1))
    assert torch.equal(whole[2][0], rest[0][0]) and torch.equal(whole[2][1], rest[0][1])

"""Configs of tiny editor trainings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor


@pytest.fixture
def stage_1(tiny_checkpoint: Path) -> Callable[..., Any]:
    """Returns a function that builds a stage 1 config with few steps; keyword arguments change the optimisation."""
    from autodrag.nets.regularizer import RegularizerConfig
    from autodrag.train.base import Optimisation, RunConfig
    from autodrag.train.regularizer import RegularizerTraining

    def build(folder: Path, **changes: Any) -> RegularizerTraining:
        return RegularizerTraining(
            run=RunConfig(folder=folder, precision="32-true", accelerator="cpu", log_steps=1),
            checkpoint=tiny_checkpoint,
            net=RegularizerConfig(width=16, heads=2, encoder_layers=1, decoder_layers=1, mlp_ratio=2.0),
            training=Optimisation(**({"steps": 6, "batch": 4} | changes)),
        )

    return build


@pytest.fixture
def stage_2(tiny_checkpoint: Path) -> Callable[..., Any]:
    """Returns a function that builds a predictor config with one short stage; keyword arguments change that stage."""
    from autodrag.data.motion import MotionConfig
    from autodrag.nets.predictor import PredictorConfig
    from autodrag.train.base import RunConfig
    from autodrag.train.predictor import PredictorOptimisation, PredictorTraining, Stage

    def build(folder: Path, batch: int = 4, validate_steps: int = 3, **changes: Any) -> PredictorTraining:
        net = PredictorConfig(
            feature_block=2, steps=2, width=16, heads=2, encoder_layers=1, decoder_layers=1, mlp_ratio=2.0, token_rows=4
        )
        stage = Stage(**({"steps": 6} | changes))
        return PredictorTraining(
            run=RunConfig(folder=folder, precision="32-true", accelerator="cpu", log_steps=1),
            checkpoint=tiny_checkpoint,
            net=net,
            motion=MotionConfig(n_candidates=6, max_points=4),
            training=PredictorOptimisation(batch=batch, validate_steps=validate_steps, stages=(stage,)),
        )

    return build


@pytest.fixture
def weights() -> Callable[[Path], dict[str, Tensor]]:
    """Returns a function that reads network, moving average and optimiser state of a run folder, by name."""

    def read(folder: Path) -> dict[str, Tensor]:
        state = torch.load(folder / "last.ckpt", weights_only=False)
        moments = {
            f"optimiser {number} {name}": torch.as_tensor(value)
            for number, entry in state["optimizer_states"][0]["state"].items()
            for name, value in entry.items()
        }
        return {**state["state_dict"], **moments}

    return read

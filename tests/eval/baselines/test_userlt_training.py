"""Training of UserControllableLT on a tiny generator: the published formula, resuming, and the exported file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from autodrag.checkpoint import load_generator
from autodrag.errors import AutodragError
from autodrag.eval.baselines.userlt import UserLTConfig
from autodrag.eval.baselines.userlt_training import (
    PairConfig,
    UserLTTraining,
    code_loss,
    draw_codes,
    draw_pairs,
    fit,
    grid_points,
    train,
)
from autodrag.nets.stylegan2 import Generator
from autodrag.release import read_info
from autodrag.train.base import Optimisation, RunConfig

NET = UserLTConfig(width=16, heads=2, encoder_layers=1, decoder_layers=1)


def shifted(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The flow (0.02 x, 1)."""
    height, width = first.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return np.stack([0.02 * x, np.ones_like(y)], axis=2)


def test_codes_follow_the_published_formula(tiny_generator: Generator) -> None:
    rng = torch.Generator().manual_seed(5)
    w1, w_mid = draw_codes(tiny_generator, 3, 4, PairConfig(), rng)
    rng = torch.Generator().manual_seed(5)
    z1 = torch.randn(3, 32, generator=rng)
    z2 = torch.randn(12, 32, generator=rng)
    average = tiny_generator.mapping.w_avg
    first = average + 0.3 * (tiny_generator.mapping(z1) - average)
    second = tiny_generator.mapping(z2).unflatten(0, (3, 4))  # an independent z for each of the first layers, psi 1
    assert torch.allclose(w1, first[:, None].expand_as(w1), atol=1e-5)
    assert torch.allclose(w_mid[:, :4], w1[:, :4] + 0.1 * (second - w1[:, :4]), atol=1e-5)
    assert torch.equal(w_mid[:, 4:], w1[:, 4:])


def test_grid_spans_the_image_corners() -> None:
    points = grid_points(3, (5, 9))
    assert points.tolist() == [[x, y] for y in (0.0, 2.0, 4.0) for x in (0.0, 4.0, 8.0)]
    assert grid_points(16, (64, 64)).shape == (256, 2)


def test_pairs_contain_flow_expansion_and_features_at_grid_points(tiny_generator: Generator) -> None:
    config = PairConfig(grid=4, held_out=4)
    net = fit(NET, tiny_generator, config, shifted, seed=0)
    assert (net.w_dim, net.edit_layers, net.feature_block, net.channels) == (32, 6, 3, 8)
    pairs = draw_pairs(tiny_generator, net, config, shifted, 2, torch.Generator().manual_seed(0))
    points = grid_points(4, (32, 32))
    assert torch.allclose(
        pairs.flow, torch.stack([0.02 * points[:, 0], torch.ones(16)], 1).expand(2, -1, -1), atol=1e-4
    )
    assert torch.allclose(pairs.expansion, torch.full((2, 16), 0.5 * float(np.log(1.02))), atol=1e-4)
    w1, _ = draw_codes(tiny_generator, 2, 6, config, torch.Generator().manual_seed(0))
    maps = tiny_generator.features(w1, block=3).last
    assert torch.allclose(pairs.features[:, 0], maps[:, :, 0, 0], atol=1e-5)
    assert torch.allclose(pairs.features[:, 15], maps[:, :, 31, 31], atol=1e-5)
    expected = float(pairs.flow.square().mean().sqrt()) * 256 / 32
    assert net.flow_px == pytest.approx(expected, rel=1e-4)
    assert net.expansion == pytest.approx(0.5 * np.log(1.02), rel=1e-3)


def test_loss_is_the_mean_squared_error() -> None:
    assert float(code_loss(torch.zeros(1, 2, 2), torch.tensor([[[1.0, 2.0], [0.0, 3.0]]]))) == pytest.approx(3.5)


def test_generator_without_motion_is_refused(tiny_generator: Generator) -> None:
    def still(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return np.zeros((*first.shape[:2], 2), np.float32)

    with pytest.raises(AutodragError, match=r"nothing moves between images with pairs.strength 0.1"):
        fit(NET, tiny_generator, PairConfig(grid=2, held_out=2), still, seed=0)


def config(folder: Path, checkpoint: Path, steps: int) -> UserLTTraining:
    return UserLTTraining(
        run=RunConfig(folder=folder, precision="32-true", accelerator="cpu", log_steps=1),
        checkpoint=checkpoint,
        net=NET,
        pairs=PairConfig(grid=4, flow="farneback", strength=0.5, held_out=4),
        training=Optimisation(steps=steps, batch=2),
    )


@pytest.mark.filterwarnings("ignore")
def test_training_resumes_and_exports(tmp_path: Path, tiny_checkpoint: Path) -> None:
    run = tmp_path / "run"
    whole = config(run, tiny_checkpoint, 4)
    stopped = replace(whole, run=replace(whole.run, max_minutes=1e-9))  # stops after one step, as after an interruption
    out = train(stopped)
    assert torch.load(run / "last.ckpt", weights_only=False)["step"] == 1
    train(whole)
    resumed = torch.load(run / "last.ckpt", weights_only=False)
    train(config(tmp_path / "other", tiny_checkpoint, 4))
    straight = torch.load(tmp_path / "other" / "last.ckpt", weights_only=False)
    assert resumed["step"] == straight["step"] == 4
    for name, tensor in straight["state_dict"].items():
        assert torch.allclose(resumed["state_dict"][name], tensor, atol=1e-6), name
    values, extra = read_info(out, kind="userlt")
    assert extra["generator"] == load_generator(tiny_checkpoint)[1]
    assert extra["steps"] == 4 and extra["held_out"]["mse"] > 0 and values["width"] == 16
    assert list((run / "logs").glob("events*"))


@pytest.mark.parametrize(("field", "value"), [("strength", 0.0), ("grid", 0), ("held_out", 0)])
def test_bad_pairs(field: str, value: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        PairConfig(**{field: value})  # type: ignore[arg-type]

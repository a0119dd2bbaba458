"""Predictor training on tiny networks: stages, exact resuming, export and contradictory configs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from autodrag.checkpoint import load_editor, load_generator, load_predictor
from autodrag.cli import main
from autodrag.data.motion import draw_motion
from autodrag.errors import AutodragError, CheckpointError
from autodrag.nets.predictor import DragBatch
from autodrag.nets.stylegan2 import Generator
from autodrag.release import load_tensors, read_info
from autodrag.train import predictor as training
from autodrag.train.base import half_cosine
from autodrag.train.editor import fit_predictor
from autodrag.train.heldout import held_out_drags
from autodrag.train.predictor import PredictorModule, PredictorOptimisation, Stage, build, train

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's warnings about workers and loggers
Build = Callable[..., Any]
Weights = Callable[[Path], dict[str, Tensor]]


@pytest.fixture(autouse=True)
def few_held_out_drags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "held_out_drags", partial(held_out_drags, count=8))


def module_of(config: Any) -> PredictorModule:
    """The module of a new training, without a trainer."""
    torch.manual_seed(0)
    generator, identity = load_generator(config.checkpoint)
    config = replace(config, net=fit_predictor(config.net, generator))
    net = build(config, generator.freeze(), identity)
    module = PredictorModule(config, generator, net, held_out_drags(generator, None, config.net, 8))
    module.batch_mean = lambda value: value  # type: ignore[method-assign]
    return module


def in_stages(config: Any, *stages: Stage) -> Any:
    return replace(config, training=replace(config.training, stages=stages))


STAGES = (
    Stage(steps=3, lr=1e-2, aligned=False),
    Stage(steps=3, moments_weight=0.2, travel_share=(0.5, 1.0), average_decay=0.9),
)


def test_resumed_run_equals_uninterrupted_run(tmp_path: Path, stage_2: Build, weights: Weights) -> None:
    """Interruptions within the first stage, at its end, and within the second stage."""
    train(in_stages(stage_2(tmp_path / "whole"), *STAGES))
    broken = in_stages(stage_2(tmp_path / "broken"), *STAGES)
    stopped = replace(broken, run=replace(broken.run, max_minutes=1e-9))
    for _ in range(4):  # one step each
        train(stopped)
    assert torch.load(tmp_path / "broken" / "last.ckpt", weights_only=False)["step"] == 4
    train(broken)
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert whole.keys() == resumed.keys()
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
    first, second = (
        load_tensors(tmp_path / run / "predictor.safetensors", kind="predictor") for run in ("whole", "broken")
    )
    assert first[1:] == second[1:] and all(torch.equal(first[0][key], second[0][key]) for key in first[0])


def test_stages_have_separate_schedules(tmp_path: Path, stage_2: Build) -> None:
    stages = (Stage(steps=100, lr=1e-3), Stage(steps=50, lr=4e-3))
    made = module_of(in_stages(stage_2(tmp_path), *stages)).configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]
    rates = []
    for _ in range(151):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    expected = [1e-3 * half_cosine(k, 100) for k in range(100)] + [4e-3 * half_cosine(k, 50) for k in range(51)]
    assert rates == pytest.approx(expected)


def test_steps_are_counted_over_all_stages() -> None:
    optimisation = PredictorOptimisation(stages=STAGES)
    assert optimisation.steps == 6
    assert [optimisation.stage_at(step) for step in (0, 2, 3, 5, 6)] == [
        (STAGES[0], 0), (STAGES[0], 2), (STAGES[1], 0), (STAGES[1], 2), (STAGES[1], 3)
    ]  # fmt: skip


def test_generator_is_not_trained(tmp_path: Path, stage_2: Build) -> None:
    config = stage_2(tmp_path / "run", lr=1e-2)
    before = module_of(config).state_dict()
    train(config)
    after = torch.load(tmp_path / "run" / "last.ckpt", weights_only=False)["state_dict"]
    for which in ("net", "average"):
        name = f"{which}.predictor.head.weight"
        assert not torch.equal(before[name], after[name])
    for part in ("predictor.frame.directions", "predictor.feature_scale"):
        assert torch.equal(before[f"average.{part}"], after[f"average.{part}"])
    assert not any(name.startswith(("generator", "sources")) for name in after)


def test_exported_network_gives_the_same_results(
    tmp_path: Path, stage_2: Build, tiny_generator: Generator, tiny_checkpoint: Path
) -> None:
    config = stage_2(tmp_path / "run", lr=1e-2)
    out = train(config)
    identity = load_generator(tiny_checkpoint)[1]
    loaded = load_editor(out.parent, identity)
    assert loaded is not None and loaded.regularizer is None
    module = module_of(config)
    module.load_state_dict(torch.load(tmp_path / "run" / "last.ckpt", weights_only=False)["state_dict"])
    latent = tiny_generator.map(torch.randn(2, 32, generator=torch.Generator().manual_seed(1)))
    maps = tiny_generator.features(latent, block=2).last
    points = torch.rand(2, 3, 2, generator=torch.Generator().manual_seed(2)) * 30
    drags = DragBatch(points, points.flip(1), torch.ones(2, 3, dtype=torch.bool))
    moved = loaded.edit(latent, maps, drags)
    torch.testing.assert_close(moved, module.average.edit(latent, maps, drags), atol=5e-3, rtol=5e-3)  # fp16
    assert (moved[:, -1] - latent).abs().max() > 0.01
    _, extra = read_info(out, kind="predictor")
    assert (extra["generator"], extra["steps"], extra["regularizer"]) == (identity, 6, False)
    assert set(extra["held_out"]) == {"1-points", "5-points", "11-points"}
    with pytest.raises(CheckpointError, match="was trained on generator"):
        load_predictor(out, "0" * 16)


def test_position_loss_decreases(tmp_path: Path, stage_2: Build) -> None:
    """The mean loss of the last steps is lower than that of the first steps, on new samples in each step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    changes = {"steps": 50, "lr": 1e-2, "prior_weight": 0.1, "average_decay": 0.9}
    train(stage_2(tmp_path, batch=16, validate_steps=50, **changes))
    curves = EventAccumulator(str(tmp_path / "logs")).Reload()
    values = [event.value for event in curves.Scalars("loss/position")]
    assert len(values) == 50
    assert sum(values[-10:]) < 0.95 * sum(values[:10])
    assert {"held-out/1-points", "held-out/5-points", "held-out/11-points"} <= set(curves.Tags()["scalars"])
    assert curves.Tags()["images"] == ["edits"]


def test_losses_of_an_untrained_predictor(tmp_path: Path, stage_2: Build) -> None:
    """An untrained predictor does not move points. The loss is the mean length of the drags, including anchors."""
    module = module_of(stage_2(tmp_path, moments_weight=1.0))
    config = module.config
    motion = draw_motion(module.generator, config.net, config.motion, 4, torch.Generator().manual_seed(0))
    losses = module.losses(motion, module.stage)
    assert float(losses["prior"]) == float(losses["moments"]) == 0.0
    valid = motion.drags.valid
    distance = (motion.drags.targets - motion.drags.handles).norm(dim=2) / 32
    expected = ((distance * valid).sum(dim=1) / valid.sum(dim=1)).mean()
    assert float(losses["position"]) == pytest.approx(float(expected), abs=0.03)


def test_stage_settings_for_alignment_and_motion(
    tmp_path: Path, stage_2: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []

    def remember(*args: Any) -> Any:
        drawn.append(args[2].travel_share)
        return draw_motion(*args)

    monkeypatch.setattr(training, "draw_motion", remember)
    train(in_stages(stage_2(tmp_path), *STAGES))
    assert drawn == [(0.1, 0.9)] * 3 + [(0.5, 1.0)] * 3
    module = module_of(stage_2(tmp_path))
    torch.nn.init.normal_(module.net.predictor.head.weight, std=0.1)
    motion = draw_motion(module.generator, module.config.net, module.config.motion, 4, torch.Generator().manual_seed(0))
    aligned, apart = (module.losses(motion, Stage(aligned=aligned))["prior"] for aligned in (True, False))
    assert 0 < float(aligned) < float(apart)  # the mean of the layers' changes is shorter than the changes


def test_nan_loss_stops_the_training(tmp_path: Path, stage_2: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    train(stage_2(tmp_path, steps=2))
    before = (tmp_path / "last.ckpt").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(training, "position_loss", lambda *_: torch.tensor(float("nan"), requires_grad=True))
        with pytest.raises(AutodragError, match="the loss is not finite at step 3; the state saved before is kept"):
            train(stage_2(tmp_path, steps=4))
    assert (tmp_path / "last.ckpt").read_bytes() == before
    train(stage_2(tmp_path, steps=4))
    assert torch.load(tmp_path / "last.ckpt", weights_only=False)["step"] == 4


def test_training_starts_from_a_trained_predictor(tmp_path: Path, stage_2: Build) -> None:
    first = train(stage_2(tmp_path / "first", steps=2, lr=1e-2))
    second = replace(stage_2(tmp_path / "second", steps=2), start=first)
    module, identity = module_of(second), load_generator(second.checkpoint)[1]
    expected, net = load_predictor(first, identity).state_dict(), module.net.predictor
    assert all(torch.equal(net.state_dict()[name], value) for name, value in expected.items())
    assert net.training and all(parameter.requires_grad for parameter in net.parameters())
    with pytest.raises(AutodragError, match="has a different network config"):
        train(replace(second, net=replace(second.net, decoder_layers=2)))


def test_network_sizes_match_the_generator(stage_2: Build, tmp_path: Path) -> None:
    generator, _ = load_generator(stage_2(tmp_path).checkpoint)
    net = fit_predictor(replace(stage_2(tmp_path).net, feature_block=99, track_block=99, token_rows=8), generator)
    assert (net.layers, net.w_dim, net.image, net.feature_block) == (8, 32, (32, 32), 3)
    assert (net.feature_channels, net.feature_height) == (8, 32)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--net.token_rows", "3"], "error: token_rows 3: expected 128 (rows of F) divided by a power of two"),
        (["--net.token_rows", "64"], "error: the predictor does not match the generator: token_rows 64: expected 16"),
        (["--net.edit_layers", "8"], "error: the predictor does not match the generator: edit_layers 8 of 8"),
        (["--net.feature_block", "-1"], "error: feature_block -1, track_block 5: expected 0 <= first <= second"),
        (["--net.variant", "paper"], "error: net.variant is paper; expected default"),
        (["--motion.max_points", "99"], "error: max_points 99: expected 1 to n_candidates"),
        (["--training.stages", "[{travel_share: [0.5, 2]}]"], "error: travel_share (0.5, 2.0): expected low <= high"),
        (["--run.devices", "3"], "error: batch 32 cannot be divided among 3 processes"),
        (["--start", "nowhere.safetensors"], "error: checkpoint 'nowhere.safetensors' does not exist"),
    ],
)
def test_contradictory_configs_are_refused(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    own = ["--run.folder", str(tmp_path), "--checkpoint", str(tiny_checkpoint), "--run.accelerator", "cpu"]
    small = ["--net.width", "16", "--net.heads", "2", "--net.feature_block", "2", "--net.decoder_layers", "1"]
    assert main(["train", "predictor", *own, *small, *more]) == 2
    said = capsys.readouterr().err
    assert said.startswith(message) and len(said.splitlines()) == 1
    assert not (tmp_path / "last.ckpt").exists()

"""The paper's training: both stages in one command, losses, schedules and resuming."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from autodrag.checkpoint import load_editor, load_generator
from autodrag.cli import main
from autodrag.data.motion import draw_motion
from autodrag.nets.editor import LearnedEditor
from autodrag.nets.predictor import PredictorConfig
from autodrag.nets.regularizer import Regularizer, RegularizerConfig
from autodrag.nets.stylegan2 import Generator
from autodrag.release import read_info
from autodrag.train import paper
from autodrag.train.base import Optimisation, RunConfig
from autodrag.train.editor import fit_predictor, new_predictor
from autodrag.train.heldout import held_out_drags
from autodrag.train.paper import (
    PaperModule,
    PaperOptimisation,
    PaperTraining,
    PredictorStage,
    RegularizerStage,
    drag_loss,
    matched_samples,
    step_pairs,
    train,
)
from autodrag.train.regularizer import fit

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's warnings about workers and loggers
SMALL: dict[str, Any] = {"width": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "mlp_ratio": 2.0}


@pytest.fixture(autouse=True)
def few_held_out_drags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper, "held_out_drags", partial(held_out_drags, count=8))


def config(folder: Path, checkpoint: Path, **changes: Any) -> PaperTraining:
    """A config with few steps; keyword arguments change the optimisation of stage 2."""
    motion = replace(PredictorStage().motion, n_candidates=6, max_points=4, min_drag_px=10.0, min_drag_px_many=10.0)
    net = PredictorConfig(variant="paper", feature_block=2, steps=2, token_rows=4, **SMALL)
    hp = {"steps": 4, "batch": 4, "validate_steps": 4, "min_step_px": 1.0} | changes
    return PaperTraining(
        run=RunConfig(folder=folder, precision="32-true", accelerator="cpu", log_steps=1),
        checkpoint=checkpoint,
        regularizer=RegularizerStage(
            net=RegularizerConfig(variant="paper", **SMALL), training=Optimisation(steps=3, batch=4)
        ),
        predictor=PredictorStage(net=net, motion=motion, training=PaperOptimisation(**hp)),
    )


def module_of(training: PaperTraining) -> PaperModule:
    """The module of stage 2, with a new regularizer and without a trainer."""
    torch.manual_seed(0)
    generator, _ = load_generator(training.checkpoint)
    net = fit_predictor(training.predictor.net, generator)
    training = replace(training, predictor=replace(training.predictor, net=net))
    regularizer = Regularizer(fit(training.regularizer.net, generator))
    editor = LearnedEditor(new_predictor(net, generator.freeze(), 0), regularizer)
    module = PaperModule(training, generator, editor, held_out_drags(generator, None, net, 8))
    module.batch_mean = lambda value: value  # type: ignore[method-assign]
    module.mean_weights = lambda counted: counted / counted.sum().clamp_min(1)  # type: ignore[method-assign]
    return module


def test_both_stages_are_trained_and_exported(
    tmp_path: Path, tiny_checkpoint: Path, weights: Callable[[Path], dict[str, Tensor]]
) -> None:
    """A run interrupted in both stages equals an uninterrupted run."""
    out = train(config(tmp_path / "whole", tiny_checkpoint))
    assert out == tmp_path / "whole" / "predictor" / "predictor.safetensors"
    stopped = config(tmp_path / "broken", tiny_checkpoint)
    stopped = replace(stopped, run=replace(stopped.run, max_minutes=1e-9))
    files = [train(stopped).parent.name for _ in range(5)]  # each run makes one step of one stage
    assert files == ["regularizer", "regularizer", "predictor", "predictor", "predictor"]
    train(config(tmp_path / "broken", tiny_checkpoint))
    for stage in ("regularizer", "predictor"):
        whole, resumed = weights(tmp_path / "whole" / stage), weights(tmp_path / "broken" / stage)
        assert whole.keys() == resumed.keys()
        assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []

    editor = load_editor(out.parent, load_generator(tiny_checkpoint)[1])
    assert editor is not None and editor.regularizer is not None
    assert (editor.predictor.config.variant, editor.regularizer.config.variant) == ("paper", "paper")
    _, extra = read_info(out, kind="predictor")
    assert (extra["regularizer"], extra["steps"]) == (True, 4) and extra["held_out"]


def test_l1_loss_uses_teacher_forcing(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """Eq. 12: for networks that predict the mean code, the loss is the mean distance of the codes from the mean."""
    module = module_of(config(tmp_path, tiny_checkpoint))
    for net in (module.net.predictor, module.net.regularizer):
        assert net is not None
        torch.nn.init.zeros_(net.head.weight)
        torch.nn.init.zeros_(net.head.bias)
    stage, rng = module.config.predictor, torch.Generator().manual_seed(0)
    motion = draw_motion(module.generator, stage.net, stage.motion, 4, rng)
    kept = matched_samples(motion, stage.motion.min_drag_px, (32, 32))
    assert kept.any()
    losses = module.losses(motion, rng, slice(None))
    assert module.net.regularizer is not None
    error = (motion.codes[:, 1:, :6] - module.net.regularizer.frame.mean).abs().mean(dim=(1, 2, 3))
    torch.testing.assert_close(losses["l1"], error[kept].mean())
    assert float(losses["drag"]) > 0


def test_samples_without_a_long_match_are_ignored(tmp_path: Path, tiny_checkpoint: Path) -> None:
    module = module_of(config(tmp_path, tiny_checkpoint))
    far = replace(module.config.predictor.motion, min_drag_px=400.0, min_drag_px_many=400.0)
    module.config = replace(module.config, predictor=replace(module.config.predictor, motion=far))
    rng = torch.Generator().manual_seed(0)
    motion = draw_motion(module.generator, module.config.predictor.net, far, 4, rng)
    assert motion.moving.any()  # the longest match, which is too short
    assert not matched_samples(motion, 400.0, (32, 32)).any()
    losses = module.losses(motion, rng, slice(None))
    assert float(losses["l1"]) == float(losses["drag"]) == 0.0


def test_annealing_applies_only_to_the_predictor(tmp_path: Path, tiny_checkpoint: Path) -> None:
    made = module_of(config(tmp_path, tiny_checkpoint, lr=1e-4, annealing_steps=60)).configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]
    rates = []
    for _ in range(121):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    predictor, regularizer = zip(*rates, strict=True)
    assert predictor[0] == pytest.approx(1e-4) and predictor[120] == pytest.approx(1e-4)
    assert min(predictor) == predictor[60] == pytest.approx(1e-7)
    assert set(regularizer) == {1e-5}


def test_pairs_of_consecutive_images(tmp_path: Path, tiny_checkpoint: Path, tiny_generator: Generator) -> None:
    training = config(tmp_path, tiny_checkpoint)
    net = fit_predictor(training.predictor.net, tiny_generator)
    hp, motion = training.predictor.training, training.predictor.motion
    codes = draw_motion(tiny_generator, net, motion, 4, torch.Generator().manual_seed(0)).codes

    def pairs(min_step_px: float, rows: slice = slice(None)) -> paper.StepPairs:
        wanted, rng = replace(hp, min_step_px=min_step_px), torch.Generator().manual_seed(0)
        return step_pairs(tiny_generator, net, motion, wanted, codes[rows], rng, rows)

    far, everything, half = pairs(20.0), pairs(0.0), pairs(0.0, slice(2, 4))
    assert far.maps.shape == (8, 16, 16, 16)  # 4 samples x 2 steps
    expected = tiny_generator.features(codes[1:2, 1], block=2).last[0]
    torch.testing.assert_close(far.maps[3], expected, atol=1e-5, rtol=1e-5)
    moved = (far.targets - far.handles).norm(dim=2)
    assert (moved[far.valid] >= 20 * 32 / 512).all()
    assert everything.valid.any() and (everything.valid | ~far.valid).all()
    assert torch.equal(half.handles, everything.handles[4:])  # processes draw the same random numbers


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--predictor.net.variant", "default"], "error: expected variant paper for both nets"),
        (["--predictor.motion.anchor_share", "0.5"], "error: anchor_share 0.5: expected 0, because"),
        (["--predictor.training.min_lr", "1"], "error: expected 0 < min_lr <= lr"),
        (["--run.devices", "3"], "error: batch 32 cannot be divided among 3 processes"),
    ],
)
def test_contradictory_configs_are_refused(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    own = ["--run.folder", str(tmp_path), "--checkpoint", str(tiny_checkpoint), "--run.accelerator", "cpu"]
    assert main(["train", "paper", *own, *more]) == 2
    said = capsys.readouterr().err
    assert said.startswith(message) and len(said.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_drag_loss_is_a_mean_over_patches_and_channels() -> None:
    rng = torch.Generator().manual_seed(0)
    before, after = torch.randn(1, 3, 12, 12, generator=rng), torch.randn(1, 3, 12, 12, generator=rng)
    handle, target = torch.tensor([[[4.0, 5.0]]]), torch.tensor([[[7.0, 4.0]]])
    loss = drag_loss(before, after, handle, target, torch.ones(1, 1), (12, 12))
    expected = (before[:, :, 2:9, 1:8] - after[:, :, 1:8, 4:11]).abs().mean()  # the 7 x 7 cells around each point
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)


def test_drag_loss_has_gradients_only_at_the_target() -> None:
    before, after = torch.zeros(1, 1, 12, 12, requires_grad=True), torch.ones(1, 1, 12, 12, requires_grad=True)
    points = torch.tensor([[[2.0, 2.0]]]), torch.tensor([[[8.0, 7.0]]])
    drag_loss(before, after, *points, torch.ones(1, 1), (12, 12)).backward()
    assert before.grad is None and after.grad is not None
    expected = torch.zeros(12, 12)
    expected[4:11, 5:12] = 1 / 49
    torch.testing.assert_close(after.grad[0, 0], expected, atol=1e-5, rtol=1e-5)


def test_points_with_zero_weight_are_ignored() -> None:
    before, after = torch.randn(1, 2, 8, 8), torch.randn(1, 2, 8, 8)
    points = torch.tensor([[[1.0, 1.0], [5.0, 5.0]]]), torch.tensor([[[2.0, 2.0], [3.0, 5.0]]])
    first = drag_loss(before, after, *points, torch.tensor([[1.0, 0.0]]), (8, 8))
    alone = drag_loss(before, after, points[0][:, :1], points[1][:, :1], torch.ones(1, 1), (8, 8))
    torch.testing.assert_close(first, alone)

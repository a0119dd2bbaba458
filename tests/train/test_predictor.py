"""Stage 2 on tiny nets: it learns, resumes to the bit with its regularizer, exports, and refuses what cannot be."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from autodrag.checkpoint import load_generator, load_predictor, load_regularizer
from autodrag.cli import main
from autodrag.data.motion import draw_motion
from autodrag.errors import AutodragError, CheckpointError
from autodrag.nets.predictor import DragBatch
from autodrag.nets.stylegan2 import Generator
from autodrag.release import load_tensors, read_info
from autodrag.train import predictor as training
from autodrag.train.heldout import closed_loop, held_out_drags, measure_drags
from autodrag.train.predictor import LearnedEditor, PredictorModule, build, fit, train
from autodrag.train.regularizer import train as train_regularizer

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice about workers and loggers
Build = Callable[..., Any]
Weights = Callable[[Path], dict[str, Tensor]]
PAPER = {"teacher_forcing": True, "rounds": 1, "schedule": "annealing", "drag_weight": 1.0, "position_weight": 0.0}


@pytest.fixture(autouse=True)
def few_held_out_drags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "held_out_drags", partial(held_out_drags, count=8))


@pytest.fixture
def regularizer(tmp_path: Path, stage_1: Build) -> Path:
    """A regularizer after a few steps of stage 1."""
    return train_regularizer(stage_1(tmp_path / "stage-1"))


def module_of(config: Any) -> PredictorModule:
    """The module of a training that has not begun."""
    torch.manual_seed(0)
    generator, identity = load_generator(config.checkpoint)
    config = replace(config, net=fit(config.net, generator))
    net = build(config, generator.freeze(), identity)
    return PredictorModule(config, generator, net, held_out_drags(generator, None, config.net, 8))


@pytest.mark.parametrize("settings", [{}, PAPER], ids=["default", "paper"])
def test_a_broken_run_ends_like_an_unbroken_one(
    tmp_path: Path, stage_2: Build, regularizer: Path, weights: Weights, settings: dict[str, Any]
) -> None:
    train(stage_2(tmp_path / "whole", regularizer, **settings))
    broken = stage_2(tmp_path / "broken", regularizer, **settings)
    stopped = replace(broken, run=replace(broken.run, max_minutes=1e-9))
    for _ in range(2):  # one step each
        train(stopped)
    train(broken)
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert whole.keys() == resumed.keys()
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
    for name in ("predictor", "regularizer"):
        first, second = (load_tensors(tmp_path / run / f"{name}.safetensors", kind=name) for run in ("whole", "broken"))
        assert first[1:] == second[1:] and all(torch.equal(first[0][key], second[0][key]) for key in first[0])


def test_both_networks_are_trained_and_averaged(tmp_path: Path, stage_2: Build, regularizer: Path) -> None:
    config = stage_2(tmp_path / "run", regularizer, lr=1e-2, regularizer_lr=1e-2)
    before = module_of(config).state_dict()
    train(config)
    after = torch.load(tmp_path / "run" / "last.ckpt", weights_only=False)["state_dict"]
    for part in ("predictor.head.weight", "regularizer.head.weight"):
        for which in ("net", "average"):
            assert not torch.equal(before[f"{which}.{part}"], after[f"{which}.{part}"])
    for part in ("predictor.frame.directions", "predictor.feature_scale", "regularizer.frame.mean"):
        assert torch.equal(before[f"average.{part}"], after[f"average.{part}"])
    assert not any(name.startswith(("generator", "sources")) for name in after)


def test_export_and_load_give_the_same_answers(
    tmp_path: Path, stage_2: Build, regularizer: Path, tiny_generator: Generator, tiny_checkpoint: Path
) -> None:
    config = stage_2(tmp_path / "run", regularizer, lr=1e-2)
    out = train(config)
    identity = load_generator(tiny_checkpoint)[1]
    loaded = LearnedEditor(load_predictor(out.parent, identity), load_regularizer(out.parent, identity))
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
    assert extra["generator"] == identity and extra["steps"] == 6
    assert set(extra["held_out"]) == {"1-points", "5-points", "11-points"}
    with pytest.raises(CheckpointError, match="was trained on generator"):
        load_predictor(out, "0" * 16)


def test_it_learns_to_bring_points_nearer(tmp_path: Path, stage_2: Build) -> None:
    """The mean loss of the last steps is lower than that of the first, on samples that are new every time."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    losses = {"position_weight": 5.0, "drag_weight": 0.0, "prior_weight": 0.1, "rounds": 1}
    train(stage_2(tmp_path, steps=50, batch=16, lr=1e-2, validate_steps=50, average_decay=0.9, **losses))
    curves = EventAccumulator(str(tmp_path / "logs")).Reload()
    values = [event.value for event in curves.Scalars("loss/position")]
    assert len(values) == 50
    assert sum(values[-10:]) < 0.95 * sum(values[:10])
    assert {"held-out/1-points", "held-out/5-points", "held-out/11-points"} <= set(curves.Tags()["scalars"])
    assert curves.Tags()["images"] == ["edits"]


def test_teacher_forcing_sees_the_true_codes(tmp_path: Path, stage_2: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eq. 12: with an untrained net, which predicts no motion, the loss is the mean length of the steps."""
    module = module_of(stage_2(tmp_path, **(PAPER | {"drag_weight": 0.0})))
    config = module.config
    rng = torch.Generator().manual_seed(0)
    motion = draw_motion(module.generator, config.net, config.motion, 4, rng)
    losses = module.forced(motion, rng, slice(None))
    steps = motion.codes.diff(dim=1)[:, :, :6].abs().mean(dim=(1, 2, 3))
    torch.testing.assert_close(losses["l1"], (steps * motion.free).mean())


def test_its_own_codes_are_compared_with_the_true_ones(
    tmp_path: Path, stage_2: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without teacher forcing an untrained net stays at w_0, and is as far from w_i as that is."""
    weights = {"position_weight": 1.0, "mask_weight": 1.0, "prior_weight": 1.0, "moments_weight": 1.0}
    module = module_of(stage_2(tmp_path, rounds=2, **weights))
    monkeypatch.setattr(module, "shared", lambda value: value)
    config = module.config
    motion = draw_motion(module.generator, config.net, config.motion, 4, torch.Generator().manual_seed(0))
    losses = module.unrolled(motion)
    away = (motion.codes[:, 1:] - motion.codes[:, :1])[:, :, :6].abs().mean(dim=(1, 2, 3))
    torch.testing.assert_close(losses["l1"], (away * motion.free).mean())
    assert float(losses["mask"]) < 1e-5 and float(losses["prior"]) == float(losses["moments"]) == 0.0  # nothing changed
    # Points stay where they were: the loss is the mean distance of the drags, anchors included.
    valid = motion.drags.valid
    way = (motion.drags.targets - motion.drags.handles).norm(dim=2) / 32
    expected = ((way * valid).sum(dim=1) / valid.sum(dim=1)).mean()
    assert float(losses["position"]) == pytest.approx(float(expected), abs=0.03)


@pytest.mark.parametrize("evenly", [False, True])
def test_what_a_mask_holds_counts(
    tmp_path: Path, stage_2: Build, monkeypatch: pytest.MonkeyPatch, evenly: bool
) -> None:
    """Evenly: as the mean change where nothing may move, by the root of the points; else of the whole map."""
    module = module_of(stage_2(tmp_path, rounds=1, mask_weight=1.0, mask_evenly=evenly))
    monkeypatch.setattr(module, "shared", lambda value: value)
    config = replace(module.config.motion, masks=0.7)
    motion = draw_motion(module.generator, module.config.net, config, 6, torch.Generator().manual_seed(0))
    monkeypatch.setattr(module.net, "edit", lambda *_: motion.codes[:, 1:])  # an edit that does change something
    found = module.unrolled(motion)["mask"]
    movable = motion.drags.movable
    assert movable is not None
    after = module.generator.features(motion.codes[:, -1], block=module.config.net.feature_block).last
    change = ((after - motion.maps) / module.net.predictor.feature_scale[:, None, None]).abs().mean(dim=1)
    points = motion.drags.valid.sum(dim=1).tolist()
    losses = []
    for moved, may, count in zip(change, movable, points, strict=True):
        held = moved[may == 0]
        losses.append(float(held.mean()) * count**0.5 if evenly and len(held) else float(held.sum()) / moved.numel())
    assert sum(loss > 0 for loss in losses) > 2 and max(points) > 1
    assert float(found) == pytest.approx(sum(losses) / 6, rel=1e-3)


def test_annealing_is_the_papers(tmp_path: Path, stage_2: Build) -> None:
    """From lr to 1e-7 and back with half a period of 30 epochs."""
    module = module_of(stage_2(tmp_path, **PAPER, lr=1e-4, epoch=8, batch=4))
    made = module.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]
    rates = []
    for _ in range(121):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(1e-4)
    assert min(rates) == rates[60] == pytest.approx(1e-7)  # 30 epochs of 8 motions are 60 steps of 4
    assert rates[120] == pytest.approx(1e-4)


def test_regularizer_and_predictor_have_their_own_rates(tmp_path: Path, stage_2: Build, regularizer: Path) -> None:
    groups = (
        module_of(stage_2(tmp_path, regularizer, regularizer_lr=1e-5)).configure_optimizers()["optimizer"].param_groups
    )
    assert [group["initial_lr"] for group in groups] == [5e-4, 1e-5]
    assert len(module_of(stage_2(tmp_path)).configure_optimizers()["optimizer"].param_groups) == 1


def test_a_loss_that_is_not_finite_stops_with_the_step(
    tmp_path: Path, stage_2: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(stage_2(tmp_path, steps=2))
    before = (tmp_path / "last.ckpt").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(training, "position_loss", lambda *_: torch.tensor(float("nan"), requires_grad=True))
        with pytest.raises(AutodragError, match="the loss is not finite at step 3; the state saved before is kept"):
            train(stage_2(tmp_path, steps=4, position_weight=1.0))
    assert (tmp_path / "last.ckpt").read_bytes() == before
    train(stage_2(tmp_path, steps=4))
    assert torch.load(tmp_path / "last.ckpt", weights_only=False)["step"] == 4


def test_a_training_goes_on_from_another(tmp_path: Path, stage_2: Build, regularizer: Path) -> None:
    first = train(stage_2(tmp_path / "first", regularizer, steps=2, lr=1e-2))
    second = replace(stage_2(tmp_path / "second", steps=2), start=first)
    module, identity = module_of(second), load_generator(second.checkpoint)[1]
    for part in ("predictor", "regularizer"):
        expected = {"predictor": load_predictor, "regularizer": load_regularizer}[part](first.parent, identity)
        net = getattr(module.net, part)
        assert all(torch.equal(net.state_dict()[name], value) for name, value in expected.state_dict().items())
        assert net.training and net.head.weight.requires_grad
    assert module.net.predictor.token_position.weight.requires_grad
    blind = replace(second.net, positions=False)
    with pytest.raises(AutodragError, match="has another net than the config asks for"):
        train(replace(second, net=blind))
    together = module_of(replace(second, net=replace(second.net, together=True)))
    assert together.net.predictor.config.together, "which has no weights of its own"
    third = train(replace(stage_2(tmp_path / "third", regularizer, steps=1), net=blind))
    again = module_of(replace(stage_2(tmp_path / "fourth"), start=third, net=blind))
    assert not again.net.predictor.token_position.weight.requires_grad


def test_a_training_without_a_regularizer_goes_on_without(tmp_path: Path, stage_2: Build, regularizer: Path) -> None:
    """Also where the regularizer of another training lies beside it."""
    first = train(stage_2(tmp_path / "first", steps=1))
    assert read_info(first, kind="predictor")[1]["regularizer"] is False
    shutil.copy(regularizer, first.parent)
    assert module_of(replace(stage_2(tmp_path / "second"), start=first)).net.regularizer is None


def test_a_regularizer_may_take_part_in_the_training_alone(tmp_path: Path, stage_2: Build, regularizer: Path) -> None:
    both = train(stage_2(tmp_path / "both", regularizer, lr=1e-2))
    alone = train(stage_2(tmp_path / "alone", regularizer, lr=1e-2, restore=False))
    assert both.with_name("regularizer.safetensors").exists()
    assert not alone.with_name("regularizer.safetensors").exists()
    (first, _, one), (second, _, other) = (load_tensors(file, kind="predictor") for file in (both, alone))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert (one["regularizer"], other["regularizer"]) == (True, False)
    assert one["held_out"] != other["held_out"]  # measured as they edit


def test_a_start_that_has_lost_its_regularizer_is_refused(tmp_path: Path, stage_2: Build, regularizer: Path) -> None:
    first = train(stage_2(tmp_path / "first", regularizer, steps=1))
    assert read_info(first, kind="predictor")[1]["regularizer"] is True
    first.with_name("regularizer.safetensors").unlink()
    with pytest.raises(CheckpointError, match="was trained together with a regularizer"):
        module_of(replace(stage_2(tmp_path / "second"), start=first))


def test_held_out_drags_are_always_the_same_and_no_edit_leaves_all_of_the_way(tmp_path: Path, stage_2: Build) -> None:
    module = module_of(stage_2(tmp_path))
    again = held_out_drags(module.generator, None, module.net.predictor.config, 8)
    assert torch.equal(module.held_out.latent, again.latent) and torch.equal(module.held_out.targets, again.targets)
    left, sheet = measure_drags(module.held_out, module.generator, module.net)
    assert all(share == pytest.approx(1.0, abs=0.3) for share in left.values())  # an untrained net moves nothing
    assert sheet.shape == (3, 3 * 32, 8 * 32) and 0 <= float(sheet.min()) <= float(sheet.max()) <= 1
    maps = module.generator.features(again.latent, block=module.net.predictor.config.track_block)
    moved = closed_loop(module.net, module.generator, again.latent, maps, again.points, again.targets, 2)
    torch.testing.assert_close(moved, again.latent)


def test_the_network_takes_its_sizes_from_the_generator(stage_2: Build, tmp_path: Path) -> None:
    generator, _ = load_generator(stage_2(tmp_path).checkpoint)
    net = fit(replace(stage_2(tmp_path).net, feature_block=99, track_block=99, token_rows=8), generator)
    assert (net.layers, net.w_dim, net.image, net.feature_block) == (8, 32, (32, 32), 3)
    assert (net.feature_channels, net.feature_height) == (8, 32)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--net.token_rows", "3"], "error: token_rows 3: expected 128 (rows of F) divided by a power of two"),
        (["--net.token_rows", "64"], "error: the predictor does not fit the generator: token_rows 64: expected 16"),
        (["--net.edit_layers", "8"], "error: the predictor does not fit the generator: edit_layers 8 of 8"),
        (["--net.feature_block", "-1"], "error: feature_block -1, track_block 5: expected 0 <= first <= second"),
        (["--training.teacher_forcing", "true"], "error: rounds 2 with teacher_forcing"),
        (["--motion.points", "99"], "error: points 99: expected 1 to candidates"),
        (["--motion.matcher", "loftr"], "error: matcher loftr: expected the path of its weights"),
        (["--run.devices", "3"], "error: batch 32 cannot be divided among 3 processes"),
        (["--regularizer", "nowhere.safetensors"], "error: checkpoint 'nowhere.safetensors' does not exist"),
        (
            ["--net.together", "true", "--training.teacher_forcing", "true", "--training.rounds", "1"],
            "error: net.together with teacher_forcing: expected one of the two",
        ),
        (["--regularizer", "a.safetensors", "--start", "b.safetensors"], "error: start 'b.safetensors' brings its own"),
    ],
)
def test_what_cannot_be_is_refused_at_once(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    own = ["--run.folder", str(tmp_path), "--checkpoint", str(tiny_checkpoint), "--run.accelerator", "cpu"]
    small = ["--net.width", "16", "--net.heads", "2", "--net.feature_block", "2", "--net.decoder_layers", "1"]
    assert main(["train", "predictor", *own, *small, *more]) == 2
    said = capsys.readouterr().err
    assert said.startswith(message) and len(said.splitlines()) == 1
    assert not (tmp_path / "last.ckpt").exists()


def test_a_regularizer_of_another_generator_is_refused(
    tmp_path: Path, stage_2: Build, regularizer: Path, make_generator: Callable[..., Generator]
) -> None:
    from autodrag.checkpoint import save_generator

    save_generator(tmp_path / "other", make_generator(seed=5))
    config = replace(stage_2(tmp_path / "run", regularizer), checkpoint=tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"regularizer\.safetensors' was trained on generator"):
        train(config)

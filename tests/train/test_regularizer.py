"""Stage 1 on tiny networks: learning, exact resuming, recovery after a kill, and invalid configs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from autodrag.checkpoint import load_generator, load_regularizer
from autodrag.cli import main
from autodrag.errors import AutodragError, CheckpointError
from autodrag.nets.regularizer import RegularizerConfig
from autodrag.nets.stylegan2 import Generator
from autodrag.release import load_tensors, read_info
from autodrag.train.regularizer import NoiseConfig, RegularizerModule, restoration_loss, train

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's warnings about workers and loggers
Build = Callable[..., Any]
Weights = Callable[[Path], dict[str, Tensor]]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    differing = [name for name in a if not torch.equal(a[name], b[name])]
    assert differing == []


def test_loss_is_the_mean_l1_distance() -> None:
    assert float(restoration_loss(torch.zeros(1, 2, 2), torch.tensor([[[1.0, -2.0], [0.0, 3.0]]]))) == 1.5


def test_resumed_run_equals_uninterrupted_run(tmp_path: Path, stage_1: Build, weights: Weights) -> None:
    train(stage_1(tmp_path / "whole"))
    broken = stage_1(tmp_path / "broken")
    stopped = replace(broken, run=replace(broken.run, max_minutes=1e-9))
    for _ in range(3):  # one step each
        train(stopped)
    assert torch.load(tmp_path / "broken" / "last.ckpt", weights_only=False)["step"] == 3
    out = train(broken)
    same(weights(tmp_path / "whole"), weights(tmp_path / "broken"))
    exported, _, facts = load_tensors(out, kind="regularizer")
    expected, _, others = load_tensors(tmp_path / "whole" / "regularizer.safetensors", kind="regularizer")
    same(exported, expected)
    assert facts == others


def test_training_reduces_the_error(tmp_path: Path, stage_1: Build, tiny_checkpoint: Path) -> None:
    config = stage_1(tmp_path, steps=60, batch=32, lr=5e-3, average_decay=0.9)
    _, extra = read_info(train(replace(config, noise=NoiseConfig(zeroed_share=0.5))), kind="regularizer")
    assert extra["held_out"]["restored"] < 0.96 * extra["held_out"]["noised"]
    assert (extra["steps"], extra["generator"]) == (60, load_generator(tiny_checkpoint)[1])


def test_exported_network_is_the_moving_average(tmp_path: Path, stage_1: Build, tiny_checkpoint: Path) -> None:
    config = stage_1(tmp_path, lr=1e-2)
    out = train(config)
    identity = load_generator(tiny_checkpoint)[1]
    net = load_regularizer(out, identity)
    assert net.config == replace(config.net, layers=8, w_dim=32)
    module = RegularizerModule(replace(config, net=net.config), load_generator(tiny_checkpoint)[0])
    module.load_state_dict(torch.load(tmp_path / "last.ckpt", weights_only=False)["state_dict"])
    latent = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(net(latent), module.average(latent), atol=5e-3, rtol=5e-3)  # stored in fp16
    assert (net(latent) - latent).abs().max() > 0
    with pytest.raises(CheckpointError, match="was trained on generator"):
        load_regularizer(out, "0" * 16)


def test_codes_depend_only_on_seed_and_step(tmp_path: Path, stage_1: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, list[Tensor]] = {}
    original = RegularizerModule.pair

    def remember(self: RegularizerModule, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        clean, noised = original(self, count, rng)
        drawn.setdefault(str(self.config.run.folder), []).append(noised)
        return clean, noised

    monkeypatch.setattr(RegularizerModule, "pair", remember)
    train(stage_1(tmp_path / "a", steps=3))
    torch.rand(17)  # the global random state has no effect
    train(stage_1(tmp_path / "b", steps=3, lr=1.0))
    a, b = drawn.values()
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not torch.equal(a[0], a[1])


@pytest.mark.parametrize("mixed", [False, True])
def test_plain_and_mixed_codes(tmp_path: Path, stage_1: Build, tiny_generator: Generator, mixed: bool) -> None:
    config = replace(stage_1(tmp_path), noise=NoiseConfig(mixed=mixed))
    config = replace(config, net=replace(config.net, layers=8, w_dim=32))
    clean, noised = RegularizerModule(config, tiny_generator).pair(8, torch.Generator().manual_seed(0))
    assert torch.equal(clean[:, 0], clean[:, -1]) != mixed
    assert torch.equal(clean[:, 6:], noised[:, 6:]) and not torch.equal(clean[:, :6], noised[:, :6])


def test_nan_loss_stops_the_training(tmp_path: Path, stage_1: Build, weights: Weights) -> None:
    train(stage_1(tmp_path, steps=2))
    before = (tmp_path / "last.ckpt").read_bytes()
    config = stage_1(tmp_path, steps=5)
    poisoned = replace(config, noise=NoiseConfig(sigma=float("inf")))
    with pytest.raises(AutodragError, match=r"the loss is not finite at step 3; the state saved before is kept"):
        train(poisoned)
    assert (tmp_path / "last.ckpt").read_bytes() == before
    train(config)
    assert torch.load(tmp_path / "last.ckpt", weights_only=False)["step"] == 5
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path).values())


def words(folder: Path, checkpoint: Path, *more: str) -> list[str]:
    small = ["--net.width", "16", "--net.heads", "2", "--net.encoder_layers", "1", "--net.decoder_layers", "1"]
    own = ["--run.folder", str(folder), "--checkpoint", str(checkpoint), "--run.accelerator", "cpu"]
    return ["train", "regularizer", *own, *small, "--run.precision", "32-true", "--training.batch", "4", *more]


def test_killed_run_can_be_resumed(tmp_path: Path, tiny_checkpoint: Path, weights: Weights) -> None:
    """A run that saves continuously is killed. Its saved state is complete, and the run can be resumed."""
    often = ["--run.save_minutes", "1e-9", "--run.threads", "1", "--run.log_steps", "1"]
    command = words(tmp_path / "killed", tiny_checkpoint, *often, "--training.steps", "1000000")
    process = subprocess.Popen(
        [sys.executable, "-m", "autodrag.cli", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        ended = time.monotonic() + 120
        while not (tmp_path / "killed" / "last.ckpt").exists():
            assert process.poll() is None and time.monotonic() < ended
            time.sleep(0.05)
        time.sleep(0.3)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    step = torch.load(tmp_path / "killed" / "last.ckpt", weights_only=False)["step"]
    assert step >= 1
    longer = ["--training.steps", str(step + 2)]
    assert main(words(tmp_path / "killed", tiny_checkpoint, *longer)) == 0
    assert torch.load(tmp_path / "killed" / "last.ckpt", weights_only=False)["step"] == step + 2
    assert not list((tmp_path / "killed").glob("*.partial"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--net.edit_layers", "8"], "error: the regularizer does not match the generator: edit_layers 8 of 8"),
        (["--net.heads", "3"], "error: width 16 must be a multiple of heads 3."),
        (["--training.lr", "-1"], "error: expected steps >= 1, batch >= 1 and lr > 0."),
        (["--noise.zeroed_share", "2"], "error: expected psi low <= high, zeroed_share in [0, 1]"),
        (["--run.devices", "3"], "error: batch 4 cannot be divided among 3 processes"),
        (["--checkpoint", "nope"], "error: checkpoint 'nope' does not exist"),
        (["--run.accelerator", "abacus"], "error: accelerator 'abacus' with 1 devices cannot be used"),
    ],
)
def test_invalid_configs_are_refused(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert main(words(tmp_path, tiny_checkpoint, *more)) == 2
    said = capsys.readouterr().err
    assert said.startswith(message) and len(said.splitlines()) == 1
    assert not (tmp_path / "last.ckpt").exists()


def test_default_learning_rate_is_the_published_value(tmp_path: Path, stage_1: Build) -> None:
    assert stage_1(tmp_path).training.lr == 1e-3
    assert NoiseConfig().zeroed_share == 0.25
    assert (RegularizerConfig().encoder_layers, RegularizerConfig().decoder_layers) == (6, 6)

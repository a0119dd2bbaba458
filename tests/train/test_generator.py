"""Adversarial training on tiny nets: it moves the weights, resumes to the step, and leaves whole files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autodrag.checkpoint import load_generator
from autodrag.errors import AutodragError
from autodrag.nets.stylegan2 import GeneratorConfig
from autodrag.train import generator as training
from autodrag.train.generator import AdversarialConfig, GeneratorDataConfig, GeneratorTraining, train
from autodrag.train.run import RunConfig, parse_config

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice about workers and loggers


def config(folder: Path, images: int, **changes: object) -> GeneratorTraining:
    cache = folder.parent / "pictures.npy"
    if not cache.exists():
        np.save(cache, np.random.default_rng(0).integers(0, 255, (16, 3, 16, 16), dtype=np.uint8))
    return GeneratorTraining(
        run=RunConfig(folder=folder, precision="32-true", accelerator="cpu", log_steps=1),
        generator=GeneratorConfig(resolution=16, z_dim=8, w_dim=8, mapping_layers=1, channel_base=128, channel_max=8),
        data=GeneratorDataConfig(cache=cache, count=16),
        training=replace(
            AdversarialConfig(
                images=images, batch=4, r1_interval=2, path_length_weight=1.0, path_length_interval=2, grid_images=8
            ),
            **changes,  # type: ignore[arg-type]
        ),
    )


def weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(load_generator(path)[0].state_dict())


def test_a_broken_run_ends_like_an_unbroken_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = weights(train(config(tmp_path / "whole", 24)))
    steps = []
    original = training.AdversarialModule.training_step

    def stop_at_three(self: training.AdversarialModule, batch: torch.Tensor, batch_idx: int) -> None:
        original(self, batch, batch_idx)
        steps.append(self.step)
        if self.step == 3:
            self.trainer.should_stop = True

    monkeypatch.setattr(training.AdversarialModule, "training_step", stop_at_three)
    train(config(tmp_path / "broken", 24))
    assert steps == [1, 2, 3]
    monkeypatch.setattr(training.AdversarialModule, "training_step", original)
    resumed = weights(train(config(tmp_path / "broken", 24)))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not list((tmp_path / "broken").glob("*.partial"))
    assert (tmp_path / "broken" / "grids" / "00000024.png").exists()


def test_training_changes_both_networks_and_the_average(tmp_path: Path) -> None:
    module = training.AdversarialModule(config(tmp_path / "run", 16))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    torch.manual_seed(0)
    trained = train(config(tmp_path / "run", 16))
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=False)["state_dict"]
    for part in ("generator.synthesis.b16.conv1.weight", "discriminator.out.weight", "average.synthesis.b4.const"):
        assert not torch.equal(state[part], before[part])
    assert float(state["generator.mapping.w_avg"].abs().sum()) > 0
    assert trained.exists()


def test_a_loss_that_is_not_finite_stops_with_the_step(tmp_path: Path) -> None:
    with pytest.raises(AutodragError, match="not finite at step"):
        train(config(tmp_path / "run", 400, lr=1e12))


def test_configs_from_yaml_and_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("run: {folder: runs/x}\ngenerator: {resolution: 32}\ntraining: {batch: 8}\n")
    parsed = parse_config(GeneratorTraining, "generator", ["--config", str(file), "--training.lr", "0.1"])
    assert parsed.run.folder == Path("runs/x")
    assert (parsed.generator.resolution, parsed.training.batch, parsed.training.lr) == (32, 8, 0.1)
    for wrong in (["--training.lr", "fast"], ["--training.speed", "1"], []):
        with pytest.raises(SystemExit) as ended:
            parse_config(GeneratorTraining, "generator", wrong)
        assert ended.value.code == 2
        assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["generator", "landmarks"])
def test_the_shipped_configs_are_valid(name: str) -> None:
    from autodrag.train.landmarks import LandmarkTraining

    kind: type = GeneratorTraining if name == "generator" else LandmarkTraining
    parsed: Any = parse_config(
        kind, name, ["--config", str(Path(__file__).parents[2] / f"configs/critters/{name}.yaml")]
    )
    assert parsed.data.count == 24000

"""Adversarial training on tiny networks: weight updates, exact resuming and written files."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autodrag.checkpoint import load_generator
from autodrag.errors import AutodragError
from autodrag.images import write_png
from autodrag.nets.stylegan2 import GeneratorConfig, upsample
from autodrag.train import generator as training
from autodrag.train.base import RunConfig, parse_config
from autodrag.train.generator import AdversarialConfig, GeneratorDataConfig, GeneratorTraining, train

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's warnings about workers and loggers


def config(folder: Path, images: int, **changes: object) -> GeneratorTraining:
    pictures = folder.parent / "pictures"
    if not pictures.exists():
        for index, noise in enumerate(np.random.default_rng(0).integers(0, 255, (16, 32, 32, 3), dtype=np.uint8)):
            write_png(pictures / f"{index:02d}.png", noise)
    return GeneratorTraining(
        run=RunConfig(folder=folder, precision="32-true", accelerator="cpu", log_steps=1),
        generator=GeneratorConfig(resolution=16, z_dim=8, w_dim=8, mapping_layers=1, channel_base=128, channel_max=8),
        data=GeneratorDataConfig(folder=pictures),
        training=replace(
            AdversarialConfig(
                images=images, batch=4, r1_interval=2, path_length_weight=1.0, path_length_interval=2, grid_images=8
            ),
            **changes,  # type: ignore[arg-type]
        ),
    )


def weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(load_generator(path)[0].state_dict())


def test_resumed_run_equals_uninterrupted_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_lightning_finds_nothing_to_warn_of_in_the_networks(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(config(tmp_path, 4))
    assert [str(warning.message) for warning in caught if "eval mode" in str(warning.message)] == []


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


def grown_config(folder: Path, start: Path, images: int) -> GeneratorTraining:
    base = config(folder, images, warmup_images=8, fade_images=8)
    return replace(
        base,
        generator=replace(base.generator, resolution=32, channel_max=16),
        start=start,
    )


def test_generator_is_trained_after_the_warmup_of_the_discriminator(tmp_path: Path) -> None:
    start = train(config(tmp_path / "small", 8))
    warm, _ = load_generator(train(grown_config(tmp_path / "warm", start, 8)))
    old, _ = load_generator(start)
    z = torch.randn(2, 8)
    with torch.no_grad():
        torch.testing.assert_close(warm(warm.map(z)), upsample(old(old.map(z))), atol=2e-3, rtol=2e-3)
    moved = weights(train(grown_config(tmp_path / "moved", start, 16)))
    assert not torch.equal(moved["synthesis.b4.const"], weights(start)["synthesis.b4.const"])


def test_resumed_grown_run_equals_uninterrupted_run(tmp_path: Path) -> None:
    start = train(config(tmp_path / "small", 8))
    whole = weights(train(grown_config(tmp_path / "whole", start, 24)))
    train(grown_config(tmp_path / "broken", start, 12))
    resumed = weights(train(grown_config(tmp_path / "broken", start, 24)))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_real_images_become_sharp_after_growing(tmp_path: Path) -> None:
    start = train(config(tmp_path / "small", 8))
    module = training.AdversarialModule(grown_config(tmp_path / "grown", start, 24))
    real = torch.rand(4, 3, 32, 32) * 2 - 1
    sharpness = []
    for module.step in range(6):
        sharpness.append(float((module.fade(real) - real).abs().mean()))
    assert sharpness[0] == sharpness[1] > sharpness[3] > sharpness[4] == sharpness[5] == 0


def test_start_with_different_sizes_is_refused(tmp_path: Path) -> None:
    start = train(config(tmp_path / "small", 8))
    wrong = grown_config(tmp_path / "grown", start, 24)
    with pytest.raises(AutodragError, match=r"pass --generator\.w_dim 8"):
        train(replace(wrong, generator=replace(wrong.generator, w_dim=4)))


def test_nan_loss_stops_the_training(tmp_path: Path) -> None:
    with pytest.raises(AutodragError, match="not finite at step"):
        train(config(tmp_path / "run", 400, generator_lr=1e12, discriminator_lr=1e12))


def test_the_array_of_a_folder_lies_in_the_runs_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = config(tmp_path / "run", 8)
    pictures = sorted((tmp_path / "pictures").iterdir())
    pictures[3].write_bytes(b"no picture")
    with pytest.raises(AutodragError, match="1 of 16 pictures"):
        train(settings)
    train(replace(settings, data=replace(settings.data, skip_broken=True)))
    assert "1 of 16 pictures are skipped" in capsys.readouterr().out
    assert len(np.load(tmp_path / "run" / "pictures.npy", mmap_mode="r")) == 15
    assert sorted((tmp_path / "pictures").iterdir()) == pictures


def test_nothing_is_written_into_the_folder_of_pictures(tmp_path: Path) -> None:
    settings = config(tmp_path / "run", 8)
    before = sorted((tmp_path / "pictures").iterdir())
    inside = replace(settings, run=replace(settings.run, folder=tmp_path / "pictures" / "run"))
    with pytest.raises(AutodragError, match=r"run\.folder .* lies inside data\.folder .*; choose another run\.folder"):
        train(inside)
    cache = replace(settings.data, cache=tmp_path / "run" / ".." / "pictures" / "all.npy")
    with pytest.raises(AutodragError, match=r"data\.cache .* lies inside data\.folder"):
        train(replace(settings, data=cache))
    assert sorted((tmp_path / "pictures").iterdir()) == before


def test_settings_of_the_data() -> None:
    words = ["--run.folder", "r", "--data.folder", "p", "--data.skip-broken", "--data.background", "#0a0b0c"]
    parsed = parse_config(GeneratorTraining, "generator", words)
    assert parsed.data.skip_broken and parsed.data.background_rgb == (10, 11, 12)
    assert parsed.cache == Path("r/pictures.npy")
    for wrong, sentence in {
        ("--data.background", "wite"): "data.background 'wite': expected an opaque colour",
        ("--data.background", "#00000080"): "expected an opaque colour",
        ("--data.cache", "runs/mine"): "data.cache 'runs/mine': expected a file name that ends in .npy",
    }.items():
        with pytest.raises(AutodragError) as caught:
            parse_config(GeneratorTraining, "generator", ["--run.folder", "r", *wrong])
        assert sentence in str(caught.value)


def test_configs_from_yaml_and_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("run: {folder: runs/x}\ngenerator: {resolution: 32}\ntraining: {batch: 8}\n")
    parsed = parse_config(GeneratorTraining, "generator", ["--config", str(file), "--training.generator_lr", "0.1"])
    assert parsed.run.folder == Path("runs/x")
    assert (parsed.generator.resolution, parsed.training.batch, parsed.training.generator_lr) == (32, 8, 0.1)
    for wrong in (["--training.generator_lr", "fast"], ["--training.speed", "1"], []):
        with pytest.raises(AutodragError):
            parse_config(GeneratorTraining, "generator", wrong)


@pytest.mark.parametrize("name", ["generator", "generator-64", "landmarks"])
def test_shipped_configs_are_valid(name: str) -> None:
    from autodrag.train.landmarks import LandmarkTraining

    kind: type = LandmarkTraining if name == "landmarks" else GeneratorTraining
    parsed: Any = parse_config(
        kind, "generator", ["--config", str(Path(__file__).parents[2] / f"configs/critters/{name}.yaml")]
    )
    assert parsed.data.count in (16000, 24000)

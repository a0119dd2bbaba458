"""Every file in configs/ parses into its typed config and is valid for its intended generators."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from autodrag.cli import BASELINE_TRAININGS
from autodrag.nets.editor import LearnedEditor
from autodrag.nets.predictor import DragBatch, Predictor
from autodrag.nets.regularizer import Regularizer
from autodrag.nets.stylegan2 import Generator, GeneratorConfig
from autodrag.train import regularizer
from autodrag.train.base import parse_config
from autodrag.train.editor import fit_predictor

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(path.relative_to(CONFIGS) for path in CONFIGS.rglob("*.yaml"))
KINDS = {
    "generator": "GeneratorTraining",
    "landmarks": "LandmarkTraining",
    "regularizer": "RegularizerTraining",
    "predictor": "PredictorTraining",
    "large": "PredictorTraining",
    "paper": "PaperTraining",
    "userlt": "UserLTTraining",
}
SIZES = [(256, 4), (512, 4), (1024, 4), (1024, 2)]
"""(resolution, base_width) of the generators used in the papers."""


def command(file: Path) -> str:
    """The training command of a file. Variants have a suffix, such as generator-64.yaml."""
    name = file.stem.split("-")[0]
    return "predictor" if name == "large" else name


def parse(file: Path) -> Any:
    name = command(file)
    return parse_config(
        getattr(importlib.import_module(BASELINE_TRAININGS.get(name, f"autodrag.train.{name}")), KINDS[name]),
        name,
        ["--config", str(CONFIGS / file)],
    )


@pytest.mark.parametrize("file", FILES, ids=str)
def test_config_parses_and_its_comment_names_the_command(file: Path) -> None:
    config = parse(file)
    assert config.run.folder.parts[:2] == ("runs", file.parts[0].removesuffix(".yaml"))
    assert f"autodrag train {command(file)} --config configs/{file}" in (CONFIGS / file).read_text()


@pytest.mark.parametrize("file", [file for file in FILES if command(file) == "predictor"], ids=str)
def test_first_training_stage_has_no_moments_loss(file: Path) -> None:
    """The moments loss slows down learning to move points, so only later stages use it."""
    config = parse(file)
    assert config.start is not None or config.training.stages[0].moments_weight == 0


@pytest.mark.parametrize("name", ["large", "paper"])
@pytest.mark.parametrize(("resolution", "base_width"), SIZES)
def test_config_is_valid_for_published_generators(resolution: int, base_width: int, name: str) -> None:
    """Networks are built and run on the meta device, which computes only shapes."""
    config, restorer = parse(Path(f"{name}.yaml")), None
    with torch.device("meta"):
        generator = Generator(GeneratorConfig(resolution=resolution, base_width=base_width))
        if name == "paper":
            restorer = Regularizer(regularizer.fit(config.regularizer.net, generator))
        net = fit_predictor(config.net if name == "large" else config.predictor.net, generator)
        assert (net.feature_channels, net.feature_height) == (256, 128)  # the 6th block
        latent = torch.zeros(1, generator.config.latent_layers, 512)
        maps, points = torch.zeros(1, 256, 128, 32 * base_width), torch.zeros(1, 3, 2)
        drags = DragBatch(points, points, torch.ones(1, 3, dtype=torch.bool))
        edited = LearnedEditor(Predictor(net), restorer).edit(latent, maps, drags)
        assert edited.shape == (1, net.steps, *latent.shape[1:])


def test_paper_config_has_the_values_of_the_paper() -> None:
    config = parse(Path("paper.yaml"))
    stage_1, stage_2 = config.regularizer, config.predictor
    assert (stage_1.net.encoder_layers, stage_1.net.decoder_layers, stage_1.net.variant) == (6, 6, "paper")
    assert (stage_1.noise.zeroed_share, stage_1.noise.mixed, stage_1.noise.psi) == (0.25, False, (1.0, 1.0))
    assert stage_1.training.lr == 1e-3 and stage_1.training.steps == 50 * 10_000 // stage_1.training.batch
    net, motion, training = stage_2.net, stage_2.motion, stage_2.training
    assert (net.encoder_layers, net.decoder_layers, net.steps, net.edit_layers, net.variant) == (6, 16, 5, 6, "paper")
    assert (motion.min_drag_px, motion.min_drag_px_many, training.min_step_px) == (50, 50, 30)
    assert (motion.mixed_share, motion.anchor_share, motion.psi) == (0, 0, (1.0, 1.0))
    assert motion.travel_share == pytest.approx((1 - 0.9**5,) * 2, abs=1e-3)
    assert (training.l1_weight, training.drag_weight, training.regularizer_lr, training.min_lr) == (0.1, 1, 1e-5, 1e-7)
    assert training.steps == 150 * 10_000 // training.batch
    assert training.annealing_steps == 30 * 10_000 // training.batch


def test_defaults_of_paper_training_equal_its_config_file() -> None:
    from autodrag.train.paper import PaperTraining

    config = parse(Path("paper.yaml"))
    assert PaperTraining(config.run) == config

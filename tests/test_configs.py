"""Every file in configs/ parses into its typed config, and fits the generator that it is meant for."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from autodrag.nets.predictor import DragBatch, Predictor
from autodrag.nets.regularizer import Regularizer
from autodrag.nets.stylegan2 import Generator, GeneratorConfig
from autodrag.train import predictor, regularizer
from autodrag.train.run import parse_config

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(path.relative_to(CONFIGS) for path in CONFIGS.rglob("*.yaml"))
KINDS = {
    "generator": "GeneratorTraining",
    "landmarks": "LandmarkTraining",
    "regularizer": "RegularizerTraining",
    "predictor": "PredictorTraining",
    "userlt": "UserLTTraining",
}
# Resolution, and width of the constant, of the generators that the papers use.
PUBLISHED = {
    "ffhq": (512, 4),
    "afhqcat": (512, 4),
    "shhq": (1024, 2),
    "lsun_car": (512, 4),
    "lsun_cat": (256, 4),
    "landscapes_hq": (256, 4),
    "lion": (512, 4),
    "dog": (1024, 4),
    "elephant": (512, 4),
    "horse": (256, 4),
}


def parse(file: Path) -> Any:
    name = file.stem.split("-")[0]  # a variant is called predictor-short.yaml
    kind = getattr(importlib.import_module(f"autodrag.train.{name}"), KINDS[name])
    return parse_config(kind, name, ["--config", str(CONFIGS / file)])


@pytest.mark.parametrize("file", FILES, ids=str)
def test_it_parses_and_names_its_own_folders(file: Path) -> None:
    config = parse(file)
    assert config.run.folder == Path("runs") / file.with_suffix("")
    kind = file.stem.split("-")[0]
    if kind in ("regularizer", "predictor", "userlt") and file.parent.name != "paper":
        assert config.checkpoint == Path("checkpoints") / file.parent
    if file.stem == "predictor":  # goes on from what the file beside it makes
        assert config.regularizer == Path("runs") / file.parent / "regularizer" / "regularizer.safetensors"
    assert f"autodrag train {kind} --config configs/{file}" in (CONFIGS / file).read_text()


EVERY_SIZE = ("ffhq", "shhq", "lsun_cat", "dog")


@pytest.mark.parametrize(
    ("name", "folder"), [(name, name) for name in PUBLISHED] + [(name, "paper") for name in EVERY_SIZE]
)
def test_it_fits_the_published_generator(name: str, folder: str) -> None:
    """Networks are built and run on the meta device: shapes without numbers."""
    resolution, base_width = PUBLISHED[name]
    with torch.device("meta"):
        generator = Generator(GeneratorConfig(resolution=resolution, base_width=base_width))
        first = regularizer.fit(parse(Path(folder) / "regularizer.yaml").net, generator)
        net = predictor.fit(parse(Path(folder) / "predictor.yaml").net, generator)
        latent = torch.zeros(1, generator.config.latent_layers, 512)
        assert Regularizer(first)(latent).shape == latent.shape
        assert (net.feature_channels, net.feature_height) == (256, 128)  # of the 6th block
        maps = torch.zeros(1, 256, 128, 32 * base_width)
        points = torch.zeros(1, 3, 2)
        built = Predictor(net)
        memory = built.encode(maps, DragBatch(points, points, torch.ones(1, 3, dtype=torch.bool)))
        assert built.next_code(memory, latent).shape == latent.shape
        assert built.decode(memory, latent[:, None].repeat(1, net.steps, 1, 1)).shape[1] == net.steps


def test_the_paper_preset_is_the_papers() -> None:
    config = parse(Path("paper/predictor.yaml"))
    net, motion, training = config.net, config.motion, config.training
    assert (net.encoder_layers, net.decoder_layers, net.steps, net.edit_layers, net.patch) == (6, 16, 5, 6, 7)
    assert not (net.positions or net.pairs or net.residual)
    assert (motion.toward, motion.matcher, motion.min_px, motion.min_px_many, motion.min_step_px) == (
        False,
        "sift",
        50,
        50,
        30,
    )
    assert (training.l1_weight, training.drag_weight, training.regularizer_lr) == (0.1, 1.0, 1e-5)
    assert training.teacher_forcing and training.schedule == "annealing"
    assert (training.position_weight, training.prior_weight, training.mask_weight) == (0, 0, 0)
    assert training.moments_weight == 0
    assert training.steps == 150 * training.epoch // training.batch
    stage_1 = parse(Path("paper/regularizer.yaml"))
    assert (stage_1.net.encoder_layers, stage_1.net.decoder_layers, stage_1.noise.masked) == (6, 6, 0.25)
    assert stage_1.training.lr == 1e-3 and stage_1.training.steps == 50 * 10_000 // stage_1.training.batch

"""Training of Auto DragGAN (Cai et al. 2024) as described in the paper, in two stages of one command.

Stage 1 trains a regularizer that replaces the edited layers, on mapped codes with equal layers. Stage 2 trains a
predictor of n = 5 codes jointly with the regularizer, with teacher forcing and L1 + drag loss (Eq. 12-14). Edits are
open loop: one prediction, restored by the regularizer. `configs/paper.yaml` lists the settings that the paper does not
specify.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from autodrag.checkpoint import load_generator, load_landmarks, load_regularizer
from autodrag.data.motion import Motion, MotionConfig, draw_motion
from autodrag.errors import AutodragError
from autodrag.nets.editor import LearnedEditor
from autodrag.nets.predictor import PATCH, PredictorConfig
from autodrag.nets.regularizer import RegularizerConfig
from autodrag.nets.stylegan2 import Generator
from autodrag.points import Size, sample, square
from autodrag.release import read_info
from autodrag.tracking import match_features
from autodrag.train import regularizer as stage_1
from autodrag.train.base import (
    Optimisation,
    RunConfig,
    check_batch,
    own_rows,
    parse_config,
    prepare_torch,
    run_training,
)
from autodrag.train.editor import EditorModule, export_editor, fit_predictor, new_predictor
from autodrag.train.heldout import HeldOut, held_out_drags


@dataclass(frozen=True)
class PaperOptimisation:
    """Optimisation settings of stage 2."""

    steps: int = 46_875
    """Total number of steps: 150 epochs of 10,000 motions."""
    batch: int = 32
    """Motions per step, over all processes."""
    lr: float = 1e-4
    """Initial learning rate of the predictor (AdamW)."""
    min_lr: float = 1e-7
    """Minimum learning rate of the predictor's cosine annealing."""
    annealing_steps: int = 9375
    """Half period of the predictor's cosine annealing: 30 epochs."""
    regularizer_lr: float = 1e-5
    """Constant learning rate of the regularizer (AdamW)."""
    l1_weight: float = 0.1
    """Alpha of Eq. 14."""
    drag_weight: float = 1.0
    """Beta of Eq. 14."""
    min_step_px: float = 30.0
    """Minimum displacement of a match between consecutive images to be used in Eq. 13, px at 512 px."""
    average_decay: float = 0.999
    """Decay of the moving average of the weights, which is exported."""
    validate_steps: int = 500
    """Number of steps between validations on held-out drags."""

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.annealing_steps, self.validate_steps) < 1:
            raise ValueError("expected steps, batch, annealing_steps and validate_steps >= 1.")
        if not 0 < self.min_lr <= self.lr or self.regularizer_lr <= 0:
            raise ValueError("expected 0 < min_lr <= lr and regularizer_lr > 0.")


@dataclass(frozen=True)
class RegularizerStage:
    """Stage 1: the regularizer."""

    net: RegularizerConfig = field(default_factory=lambda: RegularizerConfig(variant="paper"))
    """The network. Sizes that depend on the generator are set automatically."""
    noise: stage_1.NoiseConfig = field(default_factory=lambda: stage_1.NoiseConfig(psi=(1.0, 1.0), mixed=False))
    """The codes and their noise."""
    training: Optimisation = field(default_factory=lambda: Optimisation(steps=7812))
    """Optimisation settings: 50 epochs of 10,000 codes."""


@dataclass(frozen=True)
class PredictorStage:
    """Stage 2: the predictor, jointly with the regularizer."""

    net: PredictorConfig = field(default_factory=lambda: PredictorConfig(variant="paper"))
    """The network. Sizes that depend on the generator are set automatically."""
    motion: MotionConfig = field(
        default_factory=lambda: MotionConfig(
            psi=(1.0, 1.0),
            mixed_share=0.0,
            travel_share=(0.41, 0.41),  # 1 - 0.9^5
            min_drag_px_many=50.0,
            anchor_share=0.0,
        )
    )
    """The synthetic motion."""
    training: PaperOptimisation = field(default_factory=PaperOptimisation)
    """Losses and optimisation."""

    def __post_init__(self) -> None:
        if self.motion.anchor_share:
            raise ValueError(f"anchor_share {self.motion.anchor_share}: expected 0, because the paper has no anchors.")


@dataclass(frozen=True)
class PaperTraining:
    """Training of predictor and regularizer as described in Auto DragGAN."""

    run: RunConfig
    """Folder, precision, saving. Each stage has a subfolder and its own max_minutes."""
    checkpoint: Path = Path("checkpoints/critters")
    """Checkpoint folder of the generator."""
    regularizer: RegularizerStage = field(default_factory=RegularizerStage)
    """Stage 1."""
    predictor: PredictorStage = field(default_factory=PredictorStage)
    """Stage 2."""

    def __post_init__(self) -> None:
        if (self.predictor.net.variant, self.regularizer.net.variant) != ("paper", "paper"):
            raise AutodragError("expected variant paper for both nets; `autodrag train predictor` trains the default")


class PaperModule(EditorModule):
    """Predictor and regularizer, the moving average of their weights, and the losses of Eq. 12-14."""

    rounds = 1

    def __init__(self, config: PaperTraining, generator: Generator, net: LearnedEditor, held_out: HeldOut) -> None:
        hp = config.predictor.training
        rates = {"lr": hp.lr, "average_decay": hp.average_decay}
        super().__init__(net, generator, held_out, steps=hp.steps, validate_steps=hp.validate_steps, **rates)
        self.config, self.hp = config, hp

    def configure_optimizers(self) -> Any:
        """AdamW with cosine annealing for the predictor and a constant learning rate for the regularizer."""
        hp, regularizer = self.hp, self.net.regularizer
        assert regularizer is not None

        def annealing(step: int) -> float:
            low = hp.min_lr / hp.lr
            return low + (1 - low) * (0.5 + 0.5 * math.cos(math.pi * step / hp.annealing_steps))

        groups = [
            {"params": self.net.predictor.parameters(), "lr": hp.lr},
            {"params": regularizer.parameters(), "lr": hp.regularizer_lr},
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, [annealing, lambda step: 1.0])
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def training_step(self, step: Any, batch_idx: int) -> None:
        hp, rng = self.hp, self.step_rng(self.config.run.seed)
        rows = own_rows(hp.batch, self.trainer)
        motion = draw_motion(
            self.generator, self.net.predictor.config, self.config.predictor.motion, hp.batch, rng, rows
        )
        self.finish_step(self.losses(motion, rng, rows), {"l1": hp.l1_weight, "drag": hp.drag_weight})

    def losses(self, motion: Motion, rng: torch.Generator, rows: slice) -> dict[str, Tensor]:
        """Eq. 12 for codes predicted from true codes, and Eq. 13 for consecutive images; means over all processes."""
        config, hp = self.net.predictor.config, self.hp
        state = self.net.predictor.encode(motion.maps, motion.drags)
        codes = self.net.restore(self.net.predictor.decode(state, motion.codes[:, :-1]))
        answered = matched_samples(motion, self.config.predictor.motion.min_drag_px, config.image)
        error = (codes - motion.codes[:, 1:])[:, :, : config.edit_layers].abs().mean(dim=(1, 2, 3))
        pairs = step_pairs(self.generator, config, self.config.predictor.motion, hp, motion.codes, rng, rows)
        after = self.generator.features(codes.flatten(0, 1), block=config.feature_block).last.float()
        scale = self.net.predictor.feature_scale[:, None, None]
        valid = pairs.valid & answered.repeat_interleave(config.steps)[:, None]
        points = (pairs.handles, pairs.targets, self.mean_weights(valid))
        return {
            "l1": (error * self.mean_weights(answered)).sum(),
            "drag": drag_loss(pairs.maps / scale, after / scale, *points, config.image),
        }

    def mean_weights(self, counted: Bool[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Weights of a mean over the True entries of the whole batch, over all processes."""
        mean = self.batch_mean(counted.sum().float())  # mean per process, because DDP averages gradients
        return counted / mean.clamp_min(1 / self.trainer.world_size)


def matched_samples(motion: Motion, min_drag_px: float, image: Size) -> Bool[Tensor, " B"]:
    """True for samples with a match that moved at least `min_drag_px` (px at 512 px). Other samples are ignored."""
    moved = (motion.drags.targets - motion.drags.handles).norm(dim=2) >= min_drag_px * image[0] / 512
    return (motion.moving & moved).any(dim=1)


@dataclass(frozen=True)
class StepPairs:
    """Matches between consecutive images of sequences; rows are samples x steps."""

    maps: Float[Tensor, "M C h w"]
    """Feature maps F_i."""
    handles: Float[Tensor, "M N 2"]
    """Points of image i, px."""
    targets: Float[Tensor, "M N 2"]
    """Their positions in image i + 1, px."""
    valid: Bool[Tensor, "M N"]
    """True for mutual matches that moved far enough."""


@torch.no_grad()
def step_pairs(
    generator: Generator,
    net: PredictorConfig,
    motion: MotionConfig,
    training: PaperOptimisation,
    codes: Float[Tensor, "B T L D"],
    rng: torch.Generator,
    rows: slice = slice(None),
) -> StepPairs:
    """Match consecutive images (Eq. 13). `codes` are the samples `rows` of a batch, as in `draw_motion`."""
    before, after = codes[:, :-1].flatten(0, 1), codes[:, 1:].flatten(0, 1)
    first, last = (generator.features(w, block=net.track_block) for w in (before, after))
    maps, image = first.outputs[net.feature_block].float(), net.image
    points = torch.rand(training.batch, net.steps, motion.n_candidates, 2, generator=rng)[rows].flatten(0, 1)
    points = (points * torch.tensor([image[1], image[0]]) - 0.5).to(maps.device)
    found, mutual = match_features(first.outputs[net.tracked], last.outputs[net.tracked], points, image)
    far = (found - points).norm(dim=2) >= training.min_step_px * image[0] / 512
    return StepPairs(maps, points, found, mutual & far)


def drag_loss(
    before: Float[Tensor, "B C h w"],
    after: Float[Tensor, "B C h w"],
    handles: Float[Tensor, "B N 2"],
    targets: Float[Tensor, "B N 2"],
    weights: Float[Tensor, "B N"],
    image: Size,
) -> Float[Tensor, ""]:
    """Eq. 13: L1 distance between the patch at the handle before and the patch at the target after the edit.

    The paper sums over channels, cells and points. This function averages, so that the weight of the loss does not
    depend on their numbers. `weights` sum to 1 over the valid points.
    """
    offsets = square(PATCH // 2, image[0] / before.shape[2]).to(handles)

    def patch(maps: Tensor, points: Tensor) -> Tensor:
        values = sample(maps, (points[:, :, None] + offsets).flatten(1, 2), image)
        return values.unflatten(2, (points.shape[1], -1))  # (B, C, N, K)

    difference = (patch(before.detach(), handles) - patch(after, targets)).abs().mean(dim=(1, 3))
    return (difference * weights).sum()


def train_regularizer(config: PaperTraining) -> tuple[Path, bool]:
    """Run or resume stage 1 if it is not finished. Returns its exported file, and whether all steps were made."""
    stage, folder = config.regularizer, config.run.folder / "regularizer"
    out = folder / "regularizer.safetensors"
    if not _made_all_steps(out, stage.training.steps):
        run = dataclasses.replace(config.run, folder=folder)
        stage_1.train(stage_1.RegularizerTraining(run, config.checkpoint, stage.net, stage.noise, stage.training))
        if torch.distributed.is_initialized():  # wait until the main process has written the file
            torch.distributed.barrier()
    return out, _made_all_steps(out, stage.training.steps)


def _made_all_steps(file: Path, steps: int) -> bool:
    return file.is_file() and read_info(file, kind="regularizer")[1].get("steps", 0) >= steps


def train(config: PaperTraining) -> Path:
    """Run or resume both stages. Returns the exported file of the last stage that ran."""
    stage, hp = config.predictor, config.predictor.training
    prepare_torch(config.run)
    check_batch(hp.batch, config.run)
    generator, identity = load_generator(config.checkpoint)
    net = fit_predictor(stage.net, generator)
    config = dataclasses.replace(config, predictor=dataclasses.replace(stage, net=net))
    file, finished = train_regularizer(config)
    if not finished:  # stage 1 reached max_minutes
        return file
    prepare_torch(config.run)  # stage 2 starts from the same seed, whether stage 1 ran now or earlier
    regularizer = load_regularizer(file, identity).requires_grad_(True)
    editor = LearnedEditor(new_predictor(net, generator.freeze(), config.run.seed), regularizer).train()
    held_out = held_out_drags(generator, load_landmarks(config.checkpoint), net)
    module = PaperModule(config, generator, editor, held_out)
    run = dataclasses.replace(config.run, folder=config.run.folder / "predictor")
    trainer = run_training(module, run, batch=hp.batch, total_steps=hp.steps)
    out = run.folder / "predictor.safetensors"
    if trainer.is_global_zero:
        module.validate()
        export_editor(module, identity, out, {"training": asdict(hp), "motion": asdict(stage.motion)})
    return out


def main(argv: list[str]) -> int:
    """`autodrag train paper`."""
    print(train(parse_config(PaperTraining, "paper", argv)))
    return 0

"""Training of the predictor, in stages of one run. Its edits have no true codes: only positions count.

Every step draws synthesised motion (see `autodrag.data.motion`) and lets the predictor answer its drags twice in a row,
the second time from where the first edit has brought the points, as the closed loop of inference does. The losses:

- position: distance of the tracked points from their targets.
- prior: length of the edit in standard coordinates.
- moments: change of mean and covariance of the codes, see `autodrag.train.moments`.

`autodrag.train.paper` trains as Auto DragGAN (2024) describes it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autodrag.checkpoint import load_generator, load_landmarks, load_predictor
from autodrag.data.motion import Motion, MotionConfig, check_travel, draw_motion
from autodrag.errors import AutodragError
from autodrag.nets.editor import LearnedEditor
from autodrag.nets.predictor import PredictorConfig
from autodrag.nets.stylegan2 import Generator
from autodrag.tracking import PULL, appearance, follow
from autodrag.train.base import RunConfig, check_batch, half_cosine, own_rows, parse_config, prepare_torch, run_training
from autodrag.train.editor import EditorModule, export_editor, fit_predictor, new_predictor
from autodrag.train.heldout import HeldOut, held_out_drags
from autodrag.train.losses import position_loss
from autodrag.train.moments import Moments

EDITS = 2
"""Number of consecutive edits per step. Each edit starts from the result of the previous edit."""


@dataclass(frozen=True)
class Stage:
    """A part of a training, with its own schedule of the learning rate: warm-up, then a half cosine to zero."""

    steps: int = 20_000
    """Steps of this stage."""
    lr: float = 5e-4
    """AdamW's learning rate after warm-up."""
    position_weight: float = 5.0
    """Weight of the distance of the tracked points from their targets, as a share of the image height."""
    prior_weight: float = 6.0
    """Weight of the mean squared length of the edit in standard coordinates, divided by the number of points. It keeps
    edits as short as possible. Many points say more about an edit than one, as in a maximum a posteriori estimate."""
    moments_weight: float = 0.0
    """Weight of the change of mean and covariance of the codes in standard coordinates, for one point and for several.
    Edited images then vary as unedited ones do. It belongs in a later stage: from the first step, it slows learning."""
    aligned: bool = True
    """Train on aligned edits, see `Predictor.align`. False: each layer learns on its own, for a first stage."""
    travel_share: tuple[float, float] | None = None
    """Replaces `motion.travel_share` in this stage."""
    average_decay: float = 0.999
    """Decay of the moving average of the weights; a short stage needs a smaller one."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.lr <= 0 or not 0 <= self.average_decay < 1:
            raise ValueError("expected steps >= 1, lr > 0 and average_decay in [0, 1) in every stage.")
        if min(self.position_weight, self.prior_weight, self.moments_weight) < 0:
            raise ValueError("expected weights >= 0 in every stage.")
        if self.travel_share is not None:
            check_travel(self.travel_share)


@dataclass(frozen=True)
class PredictorOptimisation:
    """Batch, stages and validation."""

    batch: int = 32
    """Motions per step, over all processes."""
    validate_steps: int = 500
    """Number of steps between validations on held-out drags."""
    stages: tuple[Stage, ...] = (Stage(),)
    """Stages of the training, in order. Steps are counted over all stages."""

    def __post_init__(self) -> None:
        if self.batch < 1 or self.validate_steps < 1 or not self.stages:
            raise ValueError("expected batch >= 1, validate_steps >= 1 and at least one stage.")

    @property
    def steps(self) -> int:
        """Total number of steps."""
        return sum(stage.steps for stage in self.stages)

    def stage_at(self, step: int) -> tuple[Stage, int]:
        """The stage of a step (counted from 0 over all stages), and the step within that stage."""
        for stage in self.stages:
            if step < stage.steps:
                return stage, step
            step -= stage.steps
        return self.stages[-1], self.stages[-1].steps  # after the last step


@dataclass(frozen=True)
class PredictorTraining:
    """Training of a predictor: from handles and targets to edits of latent codes."""

    run: RunConfig
    """Folder, precision, saving."""
    checkpoint: Path = Path("checkpoints/critters")
    """Checkpoint folder of the generator."""
    start: Path | None = None
    """A trained predictor.safetensors to continue from with new stages; without it, the weights are random."""
    net: PredictorConfig = field(default_factory=lambda: PredictorConfig(steps=1))
    """The network. Sizes that depend on the generator are set automatically."""
    motion: MotionConfig = field(default_factory=MotionConfig)
    """The synthetic motion."""
    training: PredictorOptimisation = field(default_factory=PredictorOptimisation)
    """Losses and optimisation."""

    def __post_init__(self) -> None:
        if self.net.variant == "paper":
            raise AutodragError("net.variant is paper; expected default. Use `autodrag train paper` for that variant")


class PredictorModule(EditorModule):
    """The predictor, the moving average of its weights, and the losses."""

    def __init__(self, config: PredictorTraining, generator: Generator, net: LearnedEditor, held_out: HeldOut) -> None:
        hp, sizes = config.training, net.predictor.config
        stages, first = hp.stages, hp.stages[0]
        rates = {"lr": first.lr, "average_decay": first.average_decay}
        super().__init__(net, generator, held_out, steps=hp.steps, validate_steps=hp.validate_steps, **rates)
        self.config, self.hp = config, hp
        self.moments = (
            Moments(2, sizes.edit_layers, sizes.w_dim) if any(stage.moments_weight for stage in stages) else None
        )
        self.moments_before: tuple[int, dict[str, Tensor]] | None = None
        """Step and its state at the start of the step."""

    @property
    def stage(self) -> Stage:
        """The current stage."""
        return self.hp.stage_at(self.step)[0]

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and half-cosine decay in every stage."""

        def factor(step: int) -> float:
            stage, local = self.hp.stage_at(step)
            return stage.lr / self.lr * half_cosine(local, stage.steps)

        parameters = self.net.parameters()
        optimizer = torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay, betas=(0.9, 0.98))
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, factor)}

    def training_step(self, step: Any, batch_idx: int) -> None:
        stage, batch = self.stage, self.hp.batch
        if self.moments is not None:
            self.moments_before = self.step, {k: v.clone() for k, v in self.moments.state_dict().items()}
        self.average_decay = stage.average_decay
        config = self.config.motion
        if stage.travel_share is not None:
            config = dataclasses.replace(config, travel_share=stage.travel_share)
        rng, rows = self.step_rng(self.config.run.seed), own_rows(batch, self.trainer)
        motion = draw_motion(self.generator, self.net.predictor.config, config, batch, rng, rows)
        names = ("position", "prior", "moments")
        self.finish_step(self.losses(motion, stage), {name: getattr(stage, f"{name}_weight") for name in names})

    def discard_step(self) -> None:
        if self.moments is not None and self.moments_before is not None and self.moments_before[0] == self.step:
            self.moments.load_state_dict(self.moments_before[1])

    def losses(self, motion: Motion, stage: Stage) -> dict[str, Tensor]:
        """Losses of `EDITS` consecutive edits, averaged over the edits."""
        predictor = self.net.predictor
        config, frame, drags = predictor.config, predictor.frame, motion.drags
        image, tracked, edited = config.image, config.tracked, config.edit_layers
        look = appearance(motion.features.outputs[tracked], drags.handles, image)
        in_fp32 = partial(torch.autocast, self.device.type, enabled=False)  # edits are small compared with the codes
        with in_fp32():
            start = frame.coordinates(motion.codes[:, 0, :edited])
        n_points = drags.valid.sum(dim=1).clamp_min(1)
        point_weights = drags.valid / n_points[:, None] / len(n_points)
        totals: dict[str, Tensor] = {}

        def add(name: str, loss: Tensor) -> None:
            totals[name] = totals.get(name, torch.zeros_like(loss)) + loss / EDITS

        latent, maps, handles = motion.codes[:, 0], motion.maps, drags.handles
        for _ in range(EDITS):
            batch = dataclasses.replace(drags, handles=handles)
            codes = (self.net.edit if stage.aligned else self.net.predict)(latent, maps, batch)
            latent = codes[:, -1]
            with in_fp32():
                coordinates = frame.coordinates(latent[:, :edited].float())
                add("prior", ((coordinates - start).square().mean(dim=(1, 2)) / n_points).mean())
                if self.moments is not None and stage.moments_weight:
                    several = (motion.moving.sum(dim=1) > 1).long()
                    add("moments", self.moments(start, coordinates, several, self.batch_mean))
            features = self.generator.features(latent, block=config.track_block)
            maps = features.outputs[config.feature_block].float()
            # The tracker searches near the handles. Searching near the targets, as the closed loop does, could make
            # points seem closer to their targets than they are.
            found, _ = follow(features.outputs[tracked], look, image, near=handles, pull=PULL)
            add("position", position_loss(found, drags.targets, point_weights, image[0]))
            latent, maps, handles = latent.detach(), maps.detach(), found.detach()
        return totals


def build(config: PredictorTraining, generator: Generator, identity: str) -> LearnedEditor:
    """Create a new predictor, or load the one of `start`, for training."""
    if config.start is None:
        return LearnedEditor(new_predictor(config.net, generator, config.run.seed)).train()
    started = load_predictor(config.start, identity)
    if started.config != config.net:
        raise AutodragError(f"{str(config.start)!r} has a different network config; set `net` to the same values.")
    return LearnedEditor(started.requires_grad_(True)).train()


def train(config: PredictorTraining) -> Path:
    """Run or resume the training. Returns the path of the exported predictor.safetensors."""
    hp = config.training
    prepare_torch(config.run)
    check_batch(hp.batch, config.run)
    generator, identity = load_generator(config.checkpoint)
    config = dataclasses.replace(config, net=fit_predictor(config.net, generator))
    net = build(config, generator.freeze(), identity)
    module = PredictorModule(
        config, generator, net, held_out_drags(generator, load_landmarks(config.checkpoint), config.net)
    )
    trainer = run_training(module, config.run, batch=hp.batch, total_steps=hp.steps)
    out = config.run.folder / "predictor.safetensors"
    if trainer.is_global_zero:
        module.validate()
        export_editor(module, identity, out, {"training": asdict(hp), "motion": asdict(config.motion)})
    return out


def main(argv: list[str]) -> int:
    """`autodrag train predictor`."""
    print(train(parse_config(PredictorTraining, "predictor", argv)))
    return 0

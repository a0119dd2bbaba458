"""Stage 2 of Auto DragGAN (2024, section 3.2): the Latent Predictor, trained jointly with the regularizer.

Every step draws synthesised motion (see `autodrag.data.motion`), lets the predictor answer its drags, and compares
codes (L1) and features (drag loss, through the frozen generator). With `teacher_forcing` the predictor sees the true
codes before each step, as in the paper; without, its own, and `rounds` times it goes on from where its own edit has
brought the points, as the closed loop of inference does.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import DataLoader

from autodrag.checkpoint import load_generator, load_landmarks, load_learned, load_regularizer
from autodrag.data.latents import map_codes
from autodrag.data.motion import Motion, MotionConfig, draw_motion, step_pairs
from autodrag.errors import AutodragError
from autodrag.nets.latent_space import LatentBasis
from autodrag.nets.predictor import DragBatch, Predictor, PredictorConfig
from autodrag.nets.regularizer import Regularizer
from autodrag.nets.stylegan2 import Generator
from autodrag.release import save_tensors
from autodrag.tracking import PULL, appearance, follow
from autodrag.train.heldout import HeldOut, held_out_drags, measure_drags
from autodrag.train.losses import drag_loss, position_loss
from autodrag.train.moments import Moments
from autodrag.train.regularizer import check_batch, half_cosine, own_rows, take_step
from autodrag.train.run import RunConfig, SaveState, Steps, make_trainer, parse_config, prepare_torch, run_trainer


@dataclass(frozen=True)
class PredictorOptimisation:
    """The losses and the optimisation."""

    steps: int = 20_000
    """Steps in all."""
    batch: int = 32
    """Motions per step, over all processes."""
    lr: float = 5e-4
    """AdamW's learning rate of the predictor."""
    regularizer_lr: float = 2e-4
    """AdamW's learning rate of the regularizer. At the paper's 1e-5 it went on undoing edits."""
    schedule: Literal["half-cosine", "annealing"] = "half-cosine"
    """Over the whole run to zero; or the paper's cosine annealing to 1e-7 with a period of 30 epochs."""
    epoch: int = 10_000
    """Motions that count as an epoch, for `annealing`."""
    teacher_forcing: bool = False
    """Give the predictor the true codes before each step; otherwise its own."""
    rounds: int = 2
    """Edits in a row, each from where the one before has brought the points (1 with teacher forcing)."""
    l1_weight: float = 0.0
    """Weight of the L1 distance to the true codes (the paper's alpha, 0.1 there). Those go on toward an unrelated code,
    whose best guess is the mean: with it edits change ten times as much of the code as they need, and look average."""
    drag_weight: float = 0.0
    """Weight of the drag loss (the paper's beta, 1 there)."""
    position_weight: float = 5.0
    """Weight of the distance from where the points are found to where they should be, as a share of the image."""
    prior_weight: float = 6.0
    """Weight of the mean squared length of the edit in standard coordinates: of all edits by which points arrive the
    shortest shall be learned. Divided by the number of points, as in the maximum of a posterior: many points say
    more about where to go than one."""
    moments_weight: float = 0.2
    """Weight of how far mean and covariance of the edited codes are from those of the codes before, in standard
    coordinates, for one point and for several: what is edited shall vary as images do. Measured as a second training
    alone, with `net.together`."""
    mask_weight: float = 2.0
    """Weight of the change of features where a mask lets nothing move."""
    mask_evenly: bool = False
    """That change is the mean of what a mask holds, however little of the image that is, times the square root of the
    number of points, which all pull at it; off, it is the mean of the whole map, to which the little that lies outside
    of many points hardly counts. For a last training, with a weight of 1.2: from the start it keeps a predictor from
    learning to move points."""
    patch_radius: int = 3
    """Half width of the patches of the drag loss, in cells: 3 gives the paper's 7 x 7."""
    restore: bool = True
    """Edits of the exported predictor are restored by the regularizer. Off, it takes part in the training alone, and is
    not exported: critters' points end as near without it, and an edit takes some 5 % less:
    `benchmarks/spread.py --regularizer`."""
    average_decay: float = 0.999
    """Decay of the average of the weights that is measured and exported."""
    validate_steps: int = 500
    """Steps between two measurements on held-out drags."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or self.lr <= 0 or self.rounds < 1 or self.validate_steps < 1:
            raise ValueError("expected steps, batch, rounds and validate_steps >= 1 and lr > 0.")
        if self.teacher_forcing and self.rounds > 1:
            raise ValueError(f"rounds {self.rounds} with teacher_forcing: true prefixes have 1 round.")


@dataclass(frozen=True)
class PredictorTraining:
    """Stage 2: the predictor learns motion from handles and targets, together with the regularizer."""

    run: RunConfig
    """Folder, precision, saving."""
    checkpoint: Path = Path("checkpoints/critters")
    """The generator whose images will be dragged."""
    regularizer: Path | None = None
    """Stage 1's regularizer.safetensors; none trains without a regularizer."""
    start: Path | None = None
    """A trained predictor.safetensors, its regularizer (if it has one) beside it, to go on from with a new schedule;
    `regularizer` is then left out."""
    net: PredictorConfig = field(default_factory=PredictorConfig)
    """The network; sizes that the generator decides are the generator's, whatever is written."""
    motion: MotionConfig = field(default_factory=MotionConfig)
    """The synthesised motion."""
    training: PredictorOptimisation = field(default_factory=PredictorOptimisation)
    """The losses and the optimisation."""

    def __post_init__(self) -> None:
        if self.start is not None and self.regularizer is not None:
            raise AutodragError(f"start {str(self.start)!r} brings its own regularizer; leave out regularizer")
        if self.net.together and self.training.teacher_forcing:
            raise AutodragError("net.together with teacher_forcing: expected one of the two")


class LearnedEditor(nn.Module):
    """Predictor and regularizer, which are trained and averaged together."""

    def __init__(self, predictor: Predictor, regularizer: Regularizer | None) -> None:
        super().__init__()
        self.predictor, self.regularizer = predictor, regularizer

    def restore(self, latent: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        """The regularizer's answer; the code itself without one."""
        return latent if self.regularizer is None else self.regularizer(latent)

    def edit(self, latent: Float[Tensor, "B L D"], maps: Tensor, drags: DragBatch) -> Float[Tensor, "B T L D"]:
        """w_1 ... w_n from the editor's own codes, restored and aligned."""
        memory, code = self.predictor.encode(maps, drags), latent
        codes = []
        for _ in range(self.predictor.config.steps):
            code = self.predictor.next_code(memory, code)
            codes.append(code)
        return self.predictor.align(self.restored(torch.stack(codes, dim=1)), latent, drags)

    def restored(self, codes: Float[Tensor, "B T L D"]) -> Float[Tensor, "B T L D"]:
        """Every code of sequences, restored."""
        return self.restore(codes.flatten(0, 1)).unflatten(0, codes.shape[:2])


class PredictorModule(L.LightningModule):
    """The learned editor, its average, and the losses."""

    def __init__(self, config: PredictorTraining, generator: Generator, net: LearnedEditor, held_out: HeldOut) -> None:
        super().__init__()
        self.config, self.hp = config, config.training
        self.automatic_optimization = False
        self.sources = [generator]  # in a list: neither trained nor saved with the module
        self.held_out = held_out
        self.net = net
        self.average = copy.deepcopy(net).requires_grad_(False)
        sizes = net.predictor.config
        self.moments = Moments(2, sizes.edit_layers, sizes.w_dim) if self.hp.moments_weight else None
        self.step = 0

    @property
    def generator(self) -> Generator:
        """The frozen generator."""
        return self.sources[0]

    @property
    def finished(self) -> LearnedEditor:
        """The average as it is exported and measured: with its regularizer or without."""
        return self.average if self.hp.restore else LearnedEditor(self.average.predictor, None)

    def on_fit_start(self) -> None:
        self.generator.to(self.device)

    def configure_optimizers(self) -> Any:
        """AdamW with one rate each for predictor and regularizer."""
        groups = [{"params": self.net.predictor.parameters(), "lr": self.hp.lr}]
        if self.net.regularizer is not None:
            groups.append({"params": self.net.regularizer.parameters(), "lr": self.hp.regularizer_lr})
        optimizer = torch.optim.AdamW(groups, weight_decay=1e-2, betas=(0.9, 0.98))
        if self.hp.schedule == "half-cosine":
            return {"optimizer": optimizer, "lr_scheduler": half_cosine(optimizer, self.hp.steps)}
        period = max(1, 30 * self.hp.epoch // self.hp.batch)
        annealing = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=period, eta_min=1e-7)
        return {"optimizer": optimizer, "lr_scheduler": annealing}

    def train_dataloader(self) -> DataLoader[int]:
        """The steps that are left."""
        return DataLoader(Steps(self.step, self.hp.steps), batch_size=None)

    def training_step(self, step: Any, batch_idx: int) -> None:
        rng = torch.Generator().manual_seed(self.config.run.seed * 1_000_003 + self.step)
        predictor = self.net.predictor.config
        own = own_rows(self.hp.batch, self.trainer)
        motion = draw_motion(self.generator, predictor, self.config.motion, self.hp.batch, rng, own)
        losses = self.forced(motion, rng, own) if self.hp.teacher_forcing else self.unrolled(motion)
        weights = {"l1": self.hp.l1_weight, "drag": self.hp.drag_weight, "position": self.hp.position_weight}
        weights |= {"prior": self.hp.prior_weight, "mask": self.hp.mask_weight, "moments": self.hp.moments_weight}
        take_step(self, sum((weights[name] * loss for name, loss in losses.items()), torch.zeros([])))
        self.log_dict({f"loss/{name}": loss.detach() for name, loss in losses.items()}, sync_dist=True)
        if self.step % self.hp.validate_steps == 0:
            self.validate()

    def unrolled(self, motion: Motion) -> dict[str, Tensor]:
        """Losses of `rounds` edits in a row, each from the editor's own result, averaged over rounds."""
        config, hp = self.net.predictor.config, self.hp
        drags, maps, latent = motion.drags, motion.maps, motion.codes[:, 0]
        handles, image, edited = drags.handles, config.image, config.edit_layers
        what = appearance(motion.features.outputs[config.tracked], handles, image)
        frame = self.net.predictor.frame
        exact = partial(torch.autocast, self.device.type, enabled=False)  # edits are small beside their codes
        with exact():
            start = frame.coordinates(motion.codes[:, 0, :edited])
        known = drags.valid.sum(dim=1).clamp_min(1)
        share = drags.valid / known[:, None] / len(latent)
        totals: dict[str, Tensor] = {}

        def add(name: str, loss: Tensor) -> None:
            totals[name] = totals.get(name, torch.zeros_like(loss)) + loss / hp.rounds

        for _ in range(hp.rounds):
            codes = self.net.edit(latent, maps, dataclasses.replace(drags, handles=handles))
            true = motion.codes[:, 1:] if codes.shape[1] > 1 else motion.codes[:, -1:]
            error = (codes - true)[:, :, :edited].abs().mean(dim=(1, 2, 3))
            add("l1", (error * motion.free).mean())
            with exact():
                now = frame.coordinates(codes[:, -1, :edited].float())
                add("prior", ((now - start).square().mean(dim=(1, 2)) / known).mean())
                if self.moments is not None:
                    several = (motion.moving.sum(dim=1) > 1).long()
                    add("moments", self.moments(start, now, several, self.shared))
            latent = codes[:, -1]
            features = self.generator.features(latent, block=config.track_block)
            present = features.outputs[config.feature_block].float()
            scale = self.net.predictor.feature_scale[:, None, None]
            before, after = motion.maps / scale, present / scale
            if hp.drag_weight:
                spots = (drags.handles, drags.targets, share)
                add("drag", drag_loss(before, after, *spots, image, radius=hp.patch_radius))
            # Near where they were: near their targets, as editing looks, points could seem to have arrived.
            found, _ = follow(features.outputs[config.tracked], what, image, near=handles, pull=PULL)
            if hp.position_weight:
                add("position", position_loss(found, drags.targets, share, image[0]))
            if drags.movable is not None and hp.mask_weight:
                held = 1 - drags.movable
                change = (after - before).abs().mean(dim=1) * held
                if hp.mask_evenly:
                    change = change.sum(dim=(1, 2)) / held.sum(dim=(1, 2)).clamp_min(1) * known.sqrt()
                add("mask", change.mean())
            latent, maps, handles = latent.detach(), present.detach(), found.detach()
        return totals

    def shared(self, value: Tensor) -> Tensor:
        """The mean of a value over the processes that share a batch."""
        return self.trainer.strategy.reduce(value, reduce_op="mean")

    def forced(self, motion: Motion, rng: torch.Generator, own: slice) -> dict[str, Tensor]:
        """The paper's losses: Eq. 12 on codes predicted from true ones, Eq. 13 on neighbouring images."""
        config = self.net.predictor.config
        memory = self.net.predictor.encode(motion.maps, motion.drags)
        codes = self.net.restored(self.net.predictor.decode(memory, motion.codes[:, :-1]))
        error = (codes - motion.codes[:, 1:])[:, :, : config.edit_layers].abs().mean(dim=(1, 2, 3))
        losses = {"l1": (error * motion.free).mean()}
        if self.hp.drag_weight:
            pairs = step_pairs(self.generator, config, self.config.motion, motion.codes, self.hp.batch, rng, own)
            after = self.generator.features(codes.flatten(0, 1), block=config.feature_block).last.float()
            scale = self.net.predictor.feature_scale[:, None, None]
            # Pairs count alike whichever process holds them.
            number = self.shared(pairs.valid.sum().float())
            share = pairs.valid / number.clamp_min(1 / self.trainer.world_size)
            spots = (pairs.handles, pairs.targets, share)
            losses["drag"] = drag_loss(
                pairs.maps / scale, after / scale, *spots, config.image, radius=self.hp.patch_radius
            )
        return losses

    def validate(self) -> None:
        """Mean distance left on held-out drags, as a share of the distance before, to TensorBoard; and pictures."""
        if not self.trainer.is_global_zero:
            return
        self.generator.to(self.device)  # after the last step the module is back on the CPU
        left, sheet = measure_drags(self.held_out, self.generator, self.finished.eval())
        self.held_out_left = left
        logger = self.logger.experiment  # type: ignore[union-attr]
        for name, share in left.items():
            logger.add_scalar(f"held-out/{name}", share, self.step)
        logger.add_image("edits", sheet, self.step)
        text = "  ".join(f"{name} {share:.3f}" for name, share in left.items())
        print(f"step {self.step}  held-out distance left: {text}", flush=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["step"] = self.step

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.step = int(checkpoint["step"])


def fit(net: PredictorConfig, generator: Generator) -> PredictorConfig:
    """The config with the generator's sizes; AutodragError where they do not go together."""
    g = generator.config
    block = min(net.feature_block, len(g.block_resolutions) - 1)
    try:
        return dataclasses.replace(
            net,
            layers=g.latent_layers,
            w_dim=g.w_dim,
            image_height=g.image_size[0],
            image_width=g.image_size[1],
            feature_block=block,
            track_block=max(block, min(net.track_block, len(g.block_resolutions) - 1)),
            feature_channels=g.channels(g.block_resolutions[block]),
            feature_height=g.block_resolutions[block],
        )
    except ValueError as problem:
        raise AutodragError(f"the predictor does not fit the generator: {str(problem).rstrip('.')}") from None


@torch.no_grad()
def build(config: PredictorTraining, generator: Generator, identity: str) -> LearnedEditor:
    """A new predictor with the generator's basis and feature scale, and stage 1's regularizer; or those of `start`."""
    if config.start is not None:
        known, trained = load_learned(config.start, identity)
        if dataclasses.replace(known.config, together=config.net.together) != config.net:  # which has no weights
            raise AutodragError(f"{str(config.start)!r} has another net than the config asks for; make them the same.")
        predictor = Predictor(config.net)  # a new one, which knows what of it is not trained
        predictor.load_state_dict(known.state_dict())
        return LearnedEditor(predictor, None if trained is None else trained.requires_grad_(True)).train()
    regularizer = None if config.regularizer is None else load_regularizer(config.regularizer, identity)
    predictor = Predictor(config.net)
    predictor.frame.take(LatentBasis.of(generator))
    rng = torch.Generator().manual_seed(config.run.seed)
    latent = map_codes(generator, 64, torch.ones(64), rng)[:, None].expand(-1, config.net.layers, -1)
    maps = torch.cat([generator.features(part, block=config.net.feature_block).last for part in latent.split(8)])
    predictor.feature_scale.copy_(maps.square().mean(dim=(0, 2, 3)).sqrt().clamp_min(1e-3))
    return LearnedEditor(predictor, None if regularizer is None else regularizer.requires_grad_(True).train())


def train(config: PredictorTraining) -> Path:
    """Runs or resumes stage 2; returns the exported predictor.safetensors, beside its regularizer if it has one."""
    prepare_torch(config.run)
    check_batch(config.training.batch, config.run)
    generator, identity = load_generator(config.checkpoint)
    config = dataclasses.replace(config, net=fit(config.net, generator))
    net = build(config, generator.freeze(), identity)
    held_out = held_out_drags(generator, load_landmarks(config.checkpoint), config.net)
    module = PredictorModule(config, generator, net, held_out)
    state = SaveState(config.run)
    trainer = make_trainer(config.run, [state], batch=config.training.batch, total_steps=config.training.steps)
    run_trainer(trainer, module, state)
    out = config.run.folder / "predictor.safetensors"
    if trainer.is_global_zero:
        module.validate()
        export(module, identity, out)
    return out


def export(module: PredictorModule, identity: str, out: Path) -> None:
    """Writes the averages as release files, fp16, with the fingerprint of their generator."""
    facts = {"generator": identity, "steps": module.step, "held_out": module.held_out_left}
    extra = {**facts, "training": asdict(module.hp), "motion": {**asdict(module.config.motion), "weights": None}}
    net = module.finished
    joint = {"regularizer": net.regularizer is not None}  # tells a predictor without one from one that has lost it
    for kind, part, more in (("regularizer", net.regularizer, {}), ("predictor", net.predictor, joint)):
        if part is not None:
            save_tensors(
                out.with_name(f"{kind}.safetensors"),
                part.state_dict(),
                kind=kind,
                config=asdict(part.config),
                extra=extra | more,
                dtype=torch.float16,
            )


def main(argv: list[str]) -> int:
    """`autodrag train predictor`."""
    print(train(parse_config(PredictorTraining, "predictor", argv)))
    return 0

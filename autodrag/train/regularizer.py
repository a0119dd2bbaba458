"""Stage 1 of Auto DragGAN (2024, section 3.1): the Latent Regularizer learns to restore noised W+ codes.

Codes are drawn on the fly, and a step's codes depend on (seed, step) alone: processes that share a batch draw the same
numbers and each takes its rows.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from autodrag.checkpoint import load_generator
from autodrag.data.latents import mixed_codes, noised_codes
from autodrag.errors import AutodragError
from autodrag.nets.latent_space import LatentBasis
from autodrag.nets.regularizer import Regularizer, RegularizerConfig
from autodrag.nets.stylegan2 import Generator
from autodrag.release import save_tensors
from autodrag.train.run import RunConfig, SaveState, Steps, make_trainer, parse_config, prepare_torch, run_trainer

NetT = TypeVar("NetT", bound=nn.Module)


@dataclass(frozen=True)
class NoiseConfig:
    """The codes and what is done to them."""

    psi: tuple[float, float] = (0.5, 1.0)
    """Truncation of the codes, drawn between the two."""
    masked: float = 0.25
    """Probability that a vector of the first layers is set to zero (the mean code)."""
    sigma: float = 0.5
    """Largest standard deviation of the noise, in standard deviations of the mapped codes; the paper names none."""

    def __post_init__(self) -> None:
        if not 0 <= self.psi[0] <= self.psi[1] or not 0 <= self.masked <= 1 or self.sigma < 0:
            raise ValueError("expected psi low <= high, masked in [0, 1] and sigma >= 0.")


@dataclass(frozen=True)
class Optimisation:
    """The optimisation of one network that is averaged."""

    steps: int = 50_000
    """Steps in all."""
    batch: int = 64
    """Samples per step, over all processes."""
    lr: float = 1e-3
    """AdamW's learning rate after warm-up (the paper's); it decays to zero as a half cosine."""
    average_decay: float = 0.999
    """Decay of the average of the weights that is exported."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or self.lr <= 0:
            raise ValueError("expected steps >= 1, batch >= 1 and lr > 0.")


@dataclass(frozen=True)
class RegularizerTraining:
    """Stage 1: the regularizer learns to restore noised codes."""

    run: RunConfig
    """Folder, precision, saving."""
    checkpoint: Path = Path("checkpoints/critters")
    """The generator whose codes are learned."""
    net: RegularizerConfig = field(default_factory=RegularizerConfig)
    """The network; `layers` and `w_dim` are the generator's, whatever is written."""
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    """The codes and their noise."""
    training: Optimisation = field(default_factory=Optimisation)
    """The optimisation."""


class AveragedModule(L.LightningModule, Generic[NetT]):
    """A network, its average, and the generator that samples come from; what a step learns is the subclass's."""

    def __init__(self, net: NetT, generator: Generator, training: Optimisation) -> None:
        super().__init__()
        self.hp = training
        self.automatic_optimization = False
        self.sources = [generator]  # in a list: neither trained nor saved with the module
        self.net = net
        self.average = copy.deepcopy(net).requires_grad_(False)
        self.step = 0

    def configure_optimizers(self) -> Any:
        """AdamW with a warm-up of 2 % of the steps and a half-cosine decay."""
        optimizer = torch.optim.AdamW(self.net.parameters(), lr=self.hp.lr, weight_decay=1e-2)
        return {"optimizer": optimizer, "lr_scheduler": half_cosine(optimizer, self.hp.steps)}

    def train_dataloader(self) -> DataLoader[int]:
        """The steps that are left."""
        return DataLoader(Steps(self.step, self.hp.steps), batch_size=None)

    def on_fit_start(self) -> None:
        self.sources[0].to(self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["step"] = self.step

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.step = int(checkpoint["step"])


class RegularizerModule(AveragedModule[Regularizer]):
    """The regularizer, and the loss of Eq. 6."""

    def __init__(self, config: RegularizerTraining, generator: Generator) -> None:
        net = Regularizer(config.net)
        net.frame.take(LatentBasis.of(generator))
        super().__init__(net, generator, config.training)
        self.config = config

    def pair(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Clean codes and noised ones, (B, L, D) each."""
        clean = mixed_codes(self.sources[0], count, psi=self.config.noise.psi, rng=rng)
        noise = self.config.noise
        noised = noised_codes(
            clean,
            self.net.frame,
            edit_layers=self.config.net.edit_layers,
            masked=noise.masked,
            sigma=noise.sigma,
            rng=rng,
        )
        return clean, noised

    def training_step(self, step: Any, batch_idx: int) -> None:
        rng = torch.Generator().manual_seed(self.config.run.seed * 1_000_003 + self.step)
        own = own_rows(self.hp.batch, self.trainer)
        clean, noised = (codes[own] for codes in self.pair(self.hp.batch, rng))
        loss = restoration_loss(self.net(noised), clean)
        take_step(self, loss)
        self.log("loss", loss.detach(), sync_dist=True)

    @torch.no_grad()
    def measure(self, count: int = 1024) -> dict[str, float]:
        """Mean L1 error on fresh codes: as they were noised, and as the average net restores them."""
        self.sources[0].to(self.average.frame.mean.device)
        clean, noised = self.pair(count, torch.Generator().manual_seed(2**31 + self.config.run.seed))
        restored = self.average.eval()(noised)
        errors = {"noised": restoration_loss(noised, clean), "restored": restoration_loss(restored, clean)}
        return {name: round(float(error), 5) for name, error in errors.items()}


def restoration_loss(restored: Float[Tensor, "B L D"], clean: Float[Tensor, "B L D"]) -> Float[Tensor, ""]:
    """Eq. 6: mean L1 distance of codes."""
    return (restored - clean).abs().mean()


def half_cosine(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """A warm-up over 2 % of the steps, then a half cosine down to zero."""
    warm = max(1, steps // 50)

    def factor(step: int) -> float:
        return min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * min(1.0, step / steps)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def own_rows(batch: int, trainer: L.Trainer) -> slice:
    """The rows of a batch that this process works on."""
    share = batch // trainer.world_size
    return slice(trainer.global_rank * share, (trainer.global_rank + 1) * share)


def check_batch(batch: int, run: RunConfig) -> None:
    """Refuses a batch that its processes cannot share evenly."""
    processes = run.devices * run.nodes
    if batch % processes:
        raise AutodragError(f"batch {batch} cannot be divided among {processes} processes; choose a multiple of it.")


def take_step(module: Any, loss: Tensor) -> None:
    """Backward, clipped step, schedule and average of a module with `net`, `average`, `hp` and `step`.

    Raises AutodragError where the loss is not finite, before anything is changed.
    """
    if not torch.isfinite(loss):
        raise AutodragError(
            f"the loss is not finite at step {module.step + 1}; the state saved before is kept. Resume with a lower lr."
        )
    optimizer, schedule = module.optimizers(), module.lr_schedulers()
    optimizer.zero_grad()
    module.manual_backward(loss)
    torch.nn.utils.clip_grad_norm_(module.net.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    module.step += 1
    average = get_ema_multi_avg_fn(min(module.hp.average_decay, module.step / (module.step + 10)))
    average(list(module.average.parameters()), list(module.net.parameters()), module.step)


def train(config: RegularizerTraining) -> Path:
    """Runs or resumes stage 1; returns the exported regularizer.safetensors, its error in the metadata."""
    prepare_torch(config.run)
    check_batch(config.training.batch, config.run)
    generator, identity = load_generator(config.checkpoint)
    net = fit(config.net, generator)
    module = RegularizerModule(dataclasses.replace(config, net=net), generator.freeze())
    state = SaveState(config.run)
    trainer = make_trainer(config.run, [state], batch=config.training.batch, total_steps=config.training.steps)
    run_trainer(trainer, module, state)
    error = module.measure()
    out = config.run.folder / "regularizer.safetensors"
    extra = {"generator": identity, "steps": module.step, "held_out": error, "training": asdict(config.training)}
    if trainer.is_global_zero:
        save_tensors(
            out, module.average.state_dict(), kind="regularizer", config=asdict(net), extra=extra, dtype=torch.float16
        )
        print(error)
    return out


def fit(net: RegularizerConfig, generator: Generator) -> RegularizerConfig:
    """The config with the generator's sizes; AutodragError where they do not go together."""
    try:
        return dataclasses.replace(net, layers=generator.config.latent_layers, w_dim=generator.config.w_dim)
    except ValueError as problem:
        raise AutodragError(f"the regularizer does not fit the generator: {str(problem).rstrip('.')}") from None


def main(argv: list[str]) -> int:
    """`autodrag train regularizer`."""
    print(train(parse_config(RegularizerTraining, "regularizer", argv)))
    return 0

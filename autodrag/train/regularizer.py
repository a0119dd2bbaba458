"""Stage 1 of Auto DragGAN (2024, section 3.1): the Latent Regularizer learns to restore noised W+ codes.

Codes are drawn on the fly and depend only on (seed, step). Processes that share a batch draw the same random numbers,
and each process uses its own rows.
"""

from __future__ import annotations

import dataclasses
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from autodrag.checkpoint import load_generator
from autodrag.data.latents import map_codes, mixed_codes, noised_codes, uniform
from autodrag.errors import AutodragError
from autodrag.nets.latent_space import LatentBasis
from autodrag.nets.regularizer import Regularizer, RegularizerConfig
from autodrag.nets.stylegan2 import Generator
from autodrag.release import save_tensors
from autodrag.train.base import (
    AveragedModule,
    Optimisation,
    RunConfig,
    check_batch,
    own_rows,
    parse_config,
    prepare_torch,
    run_training,
)


@dataclass(frozen=True)
class NoiseConfig:
    """The codes and their noise."""

    psi: tuple[float, float] = (0.5, 1.0)
    """Range of the truncation of the codes."""
    mixed: bool = True
    """Use codes whose layers differ. False: all layers are equal, as in the paper; the network can then copy the first
    layers from the clean layers."""
    zeroed_share: float = 0.25
    """Probability that a vector of the first layers is set to zero (the mean code)."""
    sigma: float = 0.5
    """Maximum standard deviation of the noise, in standard deviations of the mapped codes. Not given in the paper."""

    def __post_init__(self) -> None:
        if not 0 <= self.psi[0] <= self.psi[1] or not 0 <= self.zeroed_share <= 1 or self.sigma < 0:
            raise ValueError("expected psi low <= high, zeroed_share in [0, 1] and sigma >= 0.")


@dataclass(frozen=True)
class RegularizerTraining:
    """Training of a regularizer: from noised latent codes to plausible ones."""

    run: RunConfig
    """Folder, precision, saving."""
    checkpoint: Path = Path("checkpoints/critters")
    """Checkpoint folder of the generator."""
    net: RegularizerConfig = field(default_factory=RegularizerConfig)
    """The network. `layers` and `w_dim` are set to the generator's values."""
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    """The codes and their noise."""
    training: Optimisation = field(default_factory=Optimisation)
    """Optimisation settings."""


class RegularizerModule(AveragedModule[Regularizer]):
    """The regularizer, the moving average of its weights, and the loss of Eq. 6."""

    def __init__(self, config: RegularizerTraining, generator: Generator) -> None:
        net = Regularizer(config.net)
        net.frame.take(LatentBasis.of(generator))
        hp = config.training
        super().__init__(net, steps=hp.steps, lr=hp.lr, average_decay=hp.average_decay, generator=generator)
        self.config = config

    def pair(self, count: int, rng: torch.Generator) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B L D"]]:
        """Draw clean codes and their noised versions."""
        generator, noise = self.generator, self.config.noise
        if noise.mixed:
            clean = mixed_codes(generator, count, psi=noise.psi, rng=rng)
        else:
            w = map_codes(generator, count, uniform((count,), *noise.psi, rng), rng)
            clean = w[:, None].repeat(1, generator.config.latent_layers, 1)
        noised = noised_codes(
            clean,
            self.net.frame,
            edit_layers=self.config.net.edit_layers,
            zeroed_share=noise.zeroed_share,
            sigma=noise.sigma,
            rng=rng,
        )
        return clean, noised

    def training_step(self, step: Any, batch_idx: int) -> None:
        batch = self.config.training.batch
        rows = own_rows(batch, self.trainer)
        clean, noised = (codes[rows] for codes in self.pair(batch, self.step_rng(self.config.run.seed)))
        loss = restoration_loss(self.net(noised), clean)
        self.take_step(loss)
        self.log("loss", loss.detach(), sync_dist=True)

    @torch.no_grad()
    def measure(self, count: int = 1024) -> dict[str, float]:
        """Mean L1 errors on new codes: of the noised codes, and after restoring them with the moving average."""
        self.generator.to(self.average.frame.mean.device)
        clean, noised = self.pair(count, torch.Generator().manual_seed(2**31 + self.config.run.seed))
        restored = self.average.eval()(noised)
        errors = {"noised": restoration_loss(noised, clean), "restored": restoration_loss(restored, clean)}
        return {name: round(float(error), 5) for name, error in errors.items()}


def restoration_loss(restored: Float[Tensor, "B L D"], clean: Float[Tensor, "B L D"]) -> Float[Tensor, ""]:
    """Eq. 6: mean L1 distance between codes."""
    return (restored - clean).abs().mean()


def fit(net: RegularizerConfig, generator: Generator) -> RegularizerConfig:
    """Set the generator's sizes in the config. Raises AutodragError if the config does not allow these sizes."""
    try:
        return dataclasses.replace(net, layers=generator.config.latent_layers, w_dim=generator.config.w_dim)
    except ValueError as problem:
        raise AutodragError(f"the regularizer does not match the generator: {str(problem).rstrip('.')}") from None


def train(config: RegularizerTraining) -> Path:
    """Run or resume the training. Returns the path of the exported regularizer.safetensors (errors in the metadata)."""
    hp = config.training
    prepare_torch(config.run)
    check_batch(hp.batch, config.run)
    generator, identity = load_generator(config.checkpoint)
    net = fit(config.net, generator)
    module = RegularizerModule(dataclasses.replace(config, net=net), generator.freeze())
    trainer = run_training(module, config.run, batch=hp.batch, total_steps=hp.steps)
    error = module.measure()
    out = config.run.folder / "regularizer.safetensors"
    extra = {"generator": identity, "steps": module.step, "held_out": error, "training": asdict(hp)}
    if trainer.is_global_zero:
        save_tensors(
            out, module.average.state_dict(), kind="regularizer", config=asdict(net), extra=extra, dtype=torch.float16
        )
        print(error)
    return out


def main(argv: list[str]) -> int:
    """`autodrag train regularizer`."""
    print(train(parse_config(RegularizerTraining, "regularizer", argv)))
    return 0

"""Shared parts of editor training: creating a predictor, validation on held-out drags, and export."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autodrag.data.latents import map_codes
from autodrag.errors import AutodragError
from autodrag.nets.editor import LearnedEditor
from autodrag.nets.latent_space import LatentBasis
from autodrag.nets.predictor import Predictor, PredictorConfig
from autodrag.nets.stylegan2 import Generator
from autodrag.release import save_tensors
from autodrag.train.base import AveragedModule
from autodrag.train.heldout import HeldOut, measure_drags


def fit_predictor(config: PredictorConfig, generator: Generator) -> PredictorConfig:
    """Set the generator's sizes in the config. Raises AutodragError if the config does not allow these sizes."""
    g = generator.config
    block = min(config.feature_block, len(g.block_resolutions) - 1)
    try:
        return dataclasses.replace(
            config,
            layers=g.latent_layers,
            w_dim=g.w_dim,
            image_height=g.image_size[0],
            image_width=g.image_size[1],
            feature_block=block,
            track_block=max(block, min(config.track_block, len(g.block_resolutions) - 1)),
            feature_channels=g.channels(g.block_resolutions[block]),
            feature_height=g.block_resolutions[block],
        )
    except ValueError as problem:
        raise AutodragError(f"the predictor does not match the generator: {str(problem).rstrip('.')}") from None


@torch.no_grad()
def new_predictor(config: PredictorConfig, generator: Generator, seed: int) -> Predictor:
    """Create an untrained predictor with the generator's latent basis and feature scale."""
    predictor = Predictor(config)
    predictor.frame.take(LatentBasis.of(generator))
    rng = torch.Generator().manual_seed(seed)
    latent = map_codes(generator, 64, torch.ones(64), rng)[:, None].expand(-1, config.layers, -1)
    maps = torch.cat([generator.features(part, block=config.feature_block).last for part in latent.split(8)])
    predictor.feature_scale.copy_(maps.square().mean(dim=(0, 2, 3)).sqrt().clamp_min(1e-3))
    return predictor


class EditorModule(AveragedModule[LearnedEditor]):
    """A learned editor in training. It is evaluated on held-out drags every `validate_steps` steps."""

    rounds = 3
    """Number of rounds of the closed loop on held-out drags."""

    def __init__(
        self,
        net: LearnedEditor,
        generator: Generator,
        held_out: HeldOut,
        *,
        steps: int,
        lr: float,
        average_decay: float,
        validate_steps: int,
    ) -> None:
        super().__init__(net, steps=steps, lr=lr, average_decay=average_decay, generator=generator)
        self.held_out, self.validate_steps = held_out, validate_steps
        self.shares: dict[str, float] = {}
        """Result of the last validation: fractions of the distance that remain."""

    def batch_mean(self, value: Tensor) -> Tensor:
        """Mean of a value over the processes that share a batch."""
        return self.trainer.strategy.reduce(value, reduce_op="mean")

    def finish_step(self, losses: dict[str, Tensor], weights: dict[str, float]) -> None:
        """Optimise the weighted sum of losses, log the losses, and validate every `validate_steps` steps."""
        self.take_step(sum((weights[name] * loss for name, loss in losses.items()), torch.zeros([])))
        self.log_dict({f"loss/{name}": loss.detach() for name, loss in losses.items()}, sync_dist=True)
        if self.step % self.validate_steps == 0:
            self.validate()

    def validate(self) -> None:
        """Evaluate the moving average on held-out drags. Writes the results and a sheet of edits to TensorBoard."""
        if not self.trainer.is_global_zero:
            return
        self.generator.to(self.device)  # Lightning moves the module to the CPU after the last step
        self.shares, sheet = measure_drags(self.held_out, self.generator, self.average.eval(), self.rounds)
        logger = self.logger.experiment  # type: ignore[union-attr]
        for name, share in self.shares.items():
            logger.add_scalar(f"held-out/{name}", share, self.step)
        logger.add_image("edits", sheet, self.step)
        text = "  ".join(f"{name} {share:.3f}" for name, share in self.shares.items())
        print(f"step {self.step}  held-out distance left: {text}", flush=True)


def export_editor(module: EditorModule, identity: str, out: Path, facts: dict[str, Any]) -> None:
    """Write the moving averages of predictor and regularizer as release files (fp16).

    Args:
        identity: fingerprint of the generator.
        out: the predictor's file. The regularizer is written to the same folder.
        facts: further JSON values for the metadata.
    """
    net = module.average
    extra = {"generator": identity, "steps": module.step, "held_out": module.shares, **facts}
    needs = {"regularizer": net.regularizer is not None}  # lets the loader detect a missing regularizer file
    for kind, part, more in (("regularizer", net.regularizer, {}), ("predictor", net.predictor, needs)):
        if part is not None:
            save_tensors(
                out.with_name(f"{kind}.safetensors"),
                part.state_dict(),
                kind=kind,
                config=asdict(part.config),
                extra=extra | more,
                dtype=torch.float16,
            )

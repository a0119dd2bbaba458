"""Training of the baseline UserControllableLT (Endo 2022, arXiv 2208.12408) on any generator.

A sample is a pair of similar images. The optical flow between them replaces a user's drags, and the code of the second
image is the ground truth:

    w1    = mapping(z1) at psi 0.3
    w2    = untruncated mapping, an independent z for each layer
    w_mid = w1 + 0.1 (w2 - w1) in the first six layers, w1 in the others
    loss  = mean squared error of the first six layers of w_mid, from w1 and the flow on a 16 x 16 grid, alpha = 1

The published training uses a network for optical flow and expansion, batch size 1, Ranger with learning rate 1e-3, and
60,100 steps. Here OpenCV computes the flow, the expansion is derived from the flow, and AdamW's learning rate decays to
zero. Motions are divided by their root mean square over the first pairs; the original uses constants for its data sets.
The pairs of a step depend only on (seed, step).
"""

from __future__ import annotations

import dataclasses
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from autodrag.checkpoint import load_generator
from autodrag.data.latents import map_codes
from autodrag.errors import AutodragError
from autodrag.eval.baselines.userlt import UserLT, UserLTConfig, map_block
from autodrag.eval.flow import Flow, dis_flow, farneback_flow, log_expansion
from autodrag.images import to_uint8
from autodrag.nets.stylegan2 import Generator
from autodrag.points import Size, sample
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

BATCH = 32
"""Number of pairs measured at a time."""


@dataclass(frozen=True)
class PairConfig:
    """The pairs of images, and the motions between them."""

    psi: float = 0.3
    """Truncation of the first code."""
    strength: float = 0.1
    """Distance between the codes of a pair, as a fraction of the distance to a random code."""
    grid: int = 16
    """Number of rows and columns of the grid of motions."""
    flow: Literal["dis", "farneback"] = "dis"
    """Optical flow of OpenCV: dense inverse search, or Farnebäck's method."""
    held_out: int = 256
    """Number of held-out pairs for measuring the error. At most 64 pairs are used to measure the units of motion."""

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1 or self.grid < 1 or self.psi < 0 or self.held_out < 1:
            raise ValueError("expected strength in (0, 1], grid >= 1, psi >= 0 and held_out >= 1.")


@dataclass(frozen=True)
class UserLTTraining:
    """Training of the baseline UserControllableLT on a generator."""

    run: RunConfig
    """Folder, precision, saving."""
    checkpoint: Path = Path("checkpoints/critters")
    """Checkpoint folder of the generator."""
    net: UserLTConfig = field(default_factory=UserLTConfig)
    """The network. Sizes that depend on the generator, and the units of motion, are set automatically."""
    pairs: PairConfig = field(default_factory=PairConfig)
    """The pairs and the flow between them."""
    training: Optimisation = field(default_factory=lambda: Optimisation(steps=60_100, batch=1))
    """Optimisation settings."""


@dataclass(frozen=True)
class Pairs:
    """The samples of a step."""

    before: Float[Tensor, "B E D"]
    """First layers of w1."""
    after: Float[Tensor, "B E D"]
    """First layers of w_mid."""
    flow: Float[Tensor, "B N 2"]
    """Flow at the grid points, px."""
    expansion: Float[Tensor, "B N"]
    """Log-expansion at the grid points."""
    features: Float[Tensor, "B N C"]
    """Features of the first image at the grid points."""


def grid_points(count: int, image: Size) -> Float[Tensor, "N 2"]:
    """A grid of count x count points (px) between the corner pixels of an image (H, W), row by row."""
    rows, columns = (torch.linspace(0, side - 1, count) for side in image)
    return torch.cartesian_prod(rows, columns).flip(1)


def draw_codes(
    generator: Generator, count: int, layers: int, config: PairConfig, rng: torch.Generator
) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B L D"]]:
    """Draw w1 and w_mid, which differ in the first `layers` layers."""
    w1 = map_codes(generator, count, torch.full((count,), config.psi), rng)
    w1 = w1[:, None].repeat(1, generator.config.latent_layers, 1)
    w2 = map_codes(generator, count * layers, torch.ones(count * layers), rng).unflatten(0, (count, layers))
    w_mid = w1.clone()
    w_mid[:, :layers] += config.strength * (w2 - w1[:, :layers])
    return w1, w_mid


@torch.no_grad()
def draw_pairs(
    generator: Generator, net: UserLTConfig, config: PairConfig, flow: Flow, count: int, rng: torch.Generator
) -> Pairs:
    """Draw pairs of codes, with the motions between their images and the features of the first images."""
    image, layers = generator.config.image_size, net.edit_layers
    w1, w_mid = draw_codes(generator, count, layers, config, rng)
    features = generator.features(w1, block=net.feature_block)
    pictures = zip(to_uint8(generator.image(w1, features)), to_uint8(generator(w_mid)), strict=True)
    flows = [flow(first, second) for first, second in pictures]
    motions = np.stack([np.concatenate([f, log_expansion(f)[..., None]], axis=2) for f in flows])  # (B, H, W, 3)
    points = grid_points(config.grid, image).to(w1).expand(count, -1, -1)
    maps = torch.from_numpy(motions).permute(0, 3, 1, 2).to(w1)
    found = sample(maps, points, image).transpose(1, 2)  # (B, N, 3)
    read = sample(features.last, points, image).transpose(1, 2)  # (B, N, C)
    return Pairs(w1[:, :layers], w_mid[:, :layers], found[..., :2], found[..., 2], read)


def fit(net: UserLTConfig, generator: Generator, config: PairConfig, flow: Flow, seed: int) -> UserLTConfig:
    """Set the generator's sizes in the config, and the root mean square motions of its pairs as units."""
    block = map_block(generator.config)
    sizes = {
        "w_dim": generator.config.w_dim,
        "edit_layers": min(net.edit_layers, generator.config.latent_layers),
        "feature_block": block,
        "channels": generator.config.channels(generator.config.block_resolutions[block]),
    }
    fitted = dataclasses.replace(net, **sizes)
    count = min(2 * BATCH, config.held_out)
    pairs = draw_pairs(generator, fitted, config, flow, count, torch.Generator().manual_seed(2**30 + seed))
    flow_px, expansion = (float(values.square().mean().sqrt()) for values in (pairs.flow, pairs.expansion))
    if not (flow_px > 0 and expansion > 0):
        raise AutodragError(f"nothing moves between images with pairs.strength {config.strength:g}; increase it")
    return dataclasses.replace(fitted, flow_px=flow_px * 256 / generator.config.image_size[0], expansion=expansion)


def code_loss(found: Float[Tensor, "B E D"], truth: Float[Tensor, "B E D"]) -> Float[Tensor, ""]:
    """Mean squared error of latent vectors."""
    return (found - truth).square().mean()


class UserLTModule(AveragedModule[UserLT]):
    """The network, the moving average of its weights, and the loss."""

    def __init__(self, config: UserLTTraining, generator: Generator, flow: Flow) -> None:
        hp = config.training
        super().__init__(
            UserLT(config.net), steps=hp.steps, lr=hp.lr, average_decay=hp.average_decay, generator=generator
        )
        self.config, self.flow = config, flow

    def predict(self, net: UserLT, pairs: Pairs) -> Float[Tensor, "B E D"]:
        """Predict the second codes."""
        image = self.generator.config.image_size
        return net(pairs.before, net.motions(pairs.flow, pairs.expansion, image), pairs.features)

    def training_step(self, step: Any, batch_idx: int) -> None:
        config, rng = self.config, self.step_rng(self.config.run.seed)
        pairs = draw_pairs(self.generator, config.net, config.pairs, self.flow, config.training.batch, rng)
        rows = own_rows(config.training.batch, self.trainer)
        pairs = Pairs(*(getattr(pairs, part.name)[rows] for part in dataclasses.fields(Pairs)))
        loss = code_loss(self.predict(self.net, pairs), pairs.after)
        idle = code_loss(pairs.before, pairs.after)
        self.take_step(loss)
        self.log("loss", loss.detach())
        self.log("of_no_edit", loss.detach() / idle)

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Mean squared errors on held-out pairs: of the moving average, and of the unchanged code."""
        self.generator.to(next(self.average.parameters()).device)
        rng = torch.Generator().manual_seed(2**31 + self.config.run.seed)
        edited, idle, total = 0.0, 0.0, self.config.pairs.held_out
        for start in range(0, total, BATCH):
            count = min(BATCH, total - start)
            pairs = draw_pairs(self.generator, self.config.net, self.config.pairs, self.flow, count, rng)
            edited += count / total * float(code_loss(self.predict(self.average.eval(), pairs), pairs.after))
            idle += count / total * float(code_loss(pairs.before, pairs.after))
        return {"mse": edited, "mse_of_no_edit": idle}


def train(config: UserLTTraining) -> Path:
    """Run or resume the training. Returns the path of the exported userlt.safetensors (errors in the metadata)."""
    prepare_torch(config.run)
    check_batch(config.training.batch, config.run)
    generator, identity = load_generator(config.checkpoint)
    flow = dis_flow if config.pairs.flow == "dis" else farneback_flow
    net = fit(config.net, generator.freeze(), config.pairs, flow, config.run.seed)
    module = UserLTModule(dataclasses.replace(config, net=net), generator, flow)
    trainer = run_training(module, config.run, batch=config.training.batch, total_steps=config.training.steps)
    error = module.measure()
    out = config.run.folder / "userlt.safetensors"
    facts = {**asdict(config.training), "pairs": asdict(config.pairs)}
    extra = {"generator": identity, "steps": module.step, "held_out": error, "training": facts}
    if trainer.is_global_zero:
        save_tensors(
            out, module.average.state_dict(), kind="userlt", config=asdict(net), extra=extra, dtype=torch.float16
        )
        print(error)
    return out


def main(argv: list[str]) -> int:
    """`autodrag train userlt`."""
    print(train(parse_config(UserLTTraining, "userlt", argv)))
    return 0

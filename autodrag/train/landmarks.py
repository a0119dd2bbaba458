"""Training of the landmark net on rendered critters, whose landmarks are known exactly.

The images are augmented (affine transform, colour, blur, noise), so that the network also works on generated images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import kornia.augmentation as K
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from autodrag.data.critters import LANDMARKS, mirror_landmarks, render, sample_factors
from autodrag.data.image_array import critters_array, landmarks_path
from autodrag.errors import AutodragError
from autodrag.nets.landmarks import LandmarkConfig, LandmarkNet, Landmarks
from autodrag.release import save_tensors
from autodrag.train.base import (
    AveragedModule,
    RunConfig,
    data_progress,
    parse_config,
    prepare_torch,
    run_training,
)


@dataclass(frozen=True)
class LandmarkDataConfig:
    """The renders for training and evaluation."""

    cache: Path = Path("runs/data/critters.npy")
    """File of the array of renders, shared with generator training; created if it is missing."""
    count: int = 15000
    """Number of critters to render."""
    seed: int = 1
    """Seed of the rendered critters."""
    held_out: int = 512
    """Number of held-out critters for measuring the error."""


@dataclass(frozen=True)
class LandmarkOptimisation:
    """Optimisation settings."""

    steps: int = 4000
    """Total number of steps."""
    batch: int = 64
    """Images per step."""
    lr: float = 2e-3
    """Learning rate of AdamW after warm-up; it decays to zero as a half cosine."""
    spread_weight: float = 0.05
    """Weight of the variance of the heat maps (in cells squared), which keeps every map compact."""
    average_decay: float = 0.995
    """Decay of the moving average of the weights, which is exported."""


@dataclass(frozen=True)
class LandmarkTraining:
    """Training of the landmark net on rendered critters."""

    run: RunConfig
    """Folder, precision, saving."""
    net: LandmarkConfig = field(default_factory=lambda: LandmarkConfig(names=LANDMARKS))
    """The network."""
    data: LandmarkDataConfig = field(default_factory=LandmarkDataConfig)
    """The renders."""
    training: LandmarkOptimisation = field(default_factory=LandmarkOptimisation)
    """Optimisation settings."""


def heat_spread(found: Landmarks) -> Float[Tensor, ""]:
    """Mean variance of the heat maps around their means, in cells squared."""
    axis = torch.arange(found.heat.shape[2], device=found.heat.device, dtype=found.heat.dtype)

    def variance(p: Tensor) -> Tensor:
        mean = (p * axis).sum(dim=2, keepdim=True)
        return (p * (axis - mean).square()).sum(dim=2)

    return (variance(found.heat.sum(dim=2)) + variance(found.heat.sum(dim=3))).mean()


def landmark_loss(found: Landmarks, truth: Float[Tensor, "B N 2"], spread_weight: float) -> Float[Tensor, ""]:
    """Mean distance to the true points in px, plus `spread_weight` times the heat-map variance (as in DSNT)."""
    return (found.points - truth).norm(dim=2).mean() + spread_weight * heat_spread(found)


class LandmarkStream(IterableDataset[tuple[Tensor, Tensor]]):
    """Augmented batches `first` ... `total` - 1 of renders and landmarks. Batch k depends only on (seed, k).

    Yields images (B, 3, H, W) in [-1, 1] and points (B, N, 2) in px.
    """

    def __init__(self, cache: Path, *, batch: int, first: int, total: int, seed: int) -> None:
        self.images = np.load(cache, mmap_mode="r")
        self.points = np.load(landmarks_path(cache), mmap_mode="r")
        self.batch, self.first, self.total, self.seed = batch, first, total, seed
        same = dict(same_on_batch=False)
        self.place = K.AugmentationSequential(
            K.RandomAffine(
                degrees=12,
                translate=(0.08, 0.08),
                scale=(0.85, 1.15),
                padding_mode="reflection",
                p=0.8,
                **same,
            ),
            data_keys=["input", "keypoints"],
        )
        self.look = K.AugmentationSequential(
            K.ColorJiggle(0.2, 0.3, 0.3, 0.05, p=0.7, **same),
            K.RandomGaussianBlur((5, 5), (0.3, 1.2), p=0.4, **same),
            data_keys=["input"],
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for k in range(self.first, self.total):
            rng = np.random.default_rng((self.seed, k))
            rows = np.sort(rng.choice(len(self.images), self.batch, replace=False))
            images = torch.from_numpy(self.images[rows]).float() / 255
            points = torch.from_numpy(self.points[rows])
            mirrored = torch.from_numpy(rng.random(self.batch) < 0.5)
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
            points = torch.where(mirrored[:, None, None], mirror_landmarks(points, size=images.shape[3]), points)
            with torch.random.fork_rng(devices=[]):  # kornia draws from torch's global generator
                torch.manual_seed(int(rng.integers(2**62)))
                images, points = self.place(images, points)
                images = self.look(images)
                images = images + torch.randn_like(images) * torch.rand(self.batch, 1, 1, 1) * 0.04
            yield images * 2 - 1, points


class LandmarkModule(AveragedModule[LandmarkNet]):
    """The network, the moving average of its weights, and the loss."""

    weight_decay = 1e-3
    max_gradient_norm = None

    def __init__(self, config: LandmarkTraining) -> None:
        hp = config.training
        super().__init__(LandmarkNet(config.net), steps=hp.steps, lr=hp.lr, average_decay=hp.average_decay)
        self.config = config

    def train_dataloader(self) -> DataLoader[Any]:
        """Stream of augmented renders, starting at the current step."""
        hp, data = self.config.training, self.config.data
        stream = LandmarkStream(data.cache, batch=hp.batch, first=self.step, total=hp.steps, seed=self.config.run.seed)
        return DataLoader(stream, batch_size=None)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        images, truth = batch
        loss = landmark_loss(self.net(images), truth, self.config.training.spread_weight)
        self.take_step(loss)
        self.log("loss", loss.detach())


@torch.no_grad()
def measure(net: LandmarkNet, *, count: int, seed: int) -> dict[str, Any]:
    """Errors in px on `count` new renders: mean, median and 95th percentile of visible landmarks, mean per landmark."""
    net = net.eval()
    errors, seen = [], []
    rows = [LANDMARKS.index(name) for name in net.config.names]  # older nets have fewer landmarks
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, count, 64):
        truth = render(sample_factors(min(64, count - start), generator), size=net.config.resolution)
        found = net(truth.images)
        errors.append((found.points - truth.landmarks[:, rows]).norm(dim=2))
        seen.append(truth.visible[:, rows])
    error, visible = torch.cat(errors), torch.cat(seen)
    each = {name: round(float(error[visible[:, i], i].mean()), 3) for i, name in enumerate(net.config.names)}
    visible_error = error[visible]
    return {
        "resolution": net.config.resolution,
        "pictures": count,
        "mean_px": round(float(visible_error.mean()), 3),
        "median_px": round(float(visible_error.median()), 3),
        "p95_px": round(float(visible_error.quantile(0.95)), 3),
        "hidden_mean_px": round(float(error[~visible].mean()), 3),
        "mean_px_per_landmark": each,
    }


def train(config: LandmarkTraining) -> Path:
    """Run or resume the training. Returns the path of the exported landmarks.safetensors (errors in the metadata)."""
    prepare_torch(config.run)
    data, hp = config.data, config.training
    if len(config.net.names) != len(LANDMARKS):
        raise AutodragError(
            f"net.names holds {len(config.net.names)} landmarks, and critters have {len(LANDMARKS)}; "
            "leave net.names out of the config."
        )
    size = config.net.resolution
    critters_array(data.cache, count=data.count, size=size, seed=data.seed, progress=data_progress())
    module = LandmarkModule(config)
    run_training(module, config.run, batch=hp.batch, total_steps=hp.steps)
    # Seeds of the training renders start at data.seed * 1,000,003; the held-out seed does not overlap them.
    error = measure(module.average, count=data.held_out, seed=2_500_000_000 + data.seed)
    out = config.run.folder / "landmarks.safetensors"
    extra = {"steps": module.step, "held_out": error}
    save_tensors(
        out,
        module.average.state_dict(),
        kind="landmarks",
        config=asdict(config.net),
        extra=extra,
        dtype=torch.float16,
    )
    print(error)
    return out


def main(argv: list[str]) -> int:
    """`autodrag train landmarks`."""
    print(train(parse_config(LandmarkTraining, "landmarks", argv)))
    return 0

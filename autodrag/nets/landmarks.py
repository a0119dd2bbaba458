"""Landmark detector: predicts (x, y) of named points, as dlib does for faces.

A small U-Net predicts one heat map per landmark. The coordinate is the expectation over the softmax of the map (DSNT,
Nibali et al. 2018; "soft-argmax"), which is differentiable and has sub-cell precision. Heat maps extend beyond the
image by a margin, so that landmarks outside the image can be located too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from kornia.geometry.subpix import spatial_expectation2d, spatial_softmax2d
from torch import Tensor, nn

from autodrag.points import rescale


@dataclass(frozen=True)
class LandmarkConfig:
    """Sizes of a landmark net."""

    resolution: int = 64
    """Side of the square input in pixels."""
    width: int = 24
    """Number of channels at full resolution; doubled at the first two downsampling steps."""
    depth: int = 4
    """Number of downsampling steps (by 2) from the input to the coarsest map."""
    margin: int = 4
    """Number of heat-map cells beyond the image on each side; a cell is two pixels."""
    names: tuple[str, ...] = ()
    """Names of the landmarks, in the order of the output."""

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError("names is empty: expected one name per landmark.")
        if self.resolution % 2**self.depth or self.resolution < 2 ** (self.depth + 1):
            raise ValueError(f"resolution {self.resolution} cannot be halved {self.depth} times.")

    def channels(self, level: int) -> int:
        """Number of channels after `level` downsampling steps."""
        return self.width * 2 ** min(level, 2)


@dataclass(frozen=True)
class Landmarks:
    """Detected landmarks."""

    points: Float[Tensor, "B N 2"]
    """(x, y) px of the input image; may lie outside the image."""
    confidence: Float[Tensor, "B N"]
    """Sum of the heat map within two cells of the point, in [0, 1]."""
    heat: Float[Tensor, "B N h w"]
    """Normalised heat maps; each sums to one."""
    features: Float[Tensor, "B C"]
    """Spatial mean of the coarsest map: an image descriptor, for distances between sets of images."""


class _Stage(nn.Module):
    """Two 3x3 convolutions with group norm."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm0 = nn.GroupNorm(8, outputs)
        self.conv1 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.norm1 = nn.GroupNorm(8, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm0(self.conv0(x)))
        return F.silu(self.norm1(self.conv1(x)))


class LandmarkNet(nn.Module):
    """Detects landmarks in images (B, 3, H, W) in [-1, 1] of the configured resolution."""

    def __init__(self, config: LandmarkConfig) -> None:
        super().__init__()
        self.config = config
        channels = [config.channels(level) for level in range(config.depth + 1)]
        self.down = nn.ModuleList(
            _Stage(3 if level == 0 else channels[level - 1], channels[level]) for level in range(config.depth + 1)
        )
        self.up = nn.ModuleList(
            _Stage(channels[level + 1] + channels[level], channels[level]) for level in range(1, config.depth)
        )
        self.heat = nn.Conv2d(channels[1], len(config.names), 3, padding=1 + config.margin)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Landmarks:
        side = self.config.resolution
        if images.shape[2:] != (side, side):
            raise ValueError(f"images of {tuple(images.shape[2:])} px: this landmark net expects ({side}, {side}).")
        maps = []
        x = images
        for level, stage in enumerate(self.down):
            x = stage(x if level == 0 else F.avg_pool2d(x, 2))
            maps.append(x)
        features = x.float().mean(dim=(2, 3))
        for level in range(self.config.depth - 1, 0, -1):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = self.up[level - 1](torch.cat([x, maps[level]], dim=1))
        heat = spatial_softmax2d(self.heat(x).float())  # (B, N, h, w)
        points = spatial_expectation2d(heat, normalized_coordinates=False)  # (B, N, 2) in cells, as (x, y)
        axis = torch.arange(heat.shape[2], device=heat.device, dtype=heat.dtype)
        grid = torch.cartesian_prod(axis, axis).flip(1)  # (h * w, 2) as (x, y), row by row
        near = torch.cdist(points.detach(), grid.expand(len(points), -1, -1)) <= 2.0
        return Landmarks(
            points=rescale(points - self.config.margin, (side // 2, side // 2), (side, side)),
            confidence=(heat.flatten(2) * near).sum(dim=2),
            heat=heat,
            features=features,
        )

"""Random masks around drags, for training."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from autodrag.points import Size


def random_masks(
    handles: Float[Tensor, "B N 2"],
    targets: Float[Tensor, "B N 2"],
    moving: Bool[Tensor, "B N"],
    masked: Bool[Tensor, " B"],
    numbers: Float[Tensor, "B 5"],
    image: Size,
    size: Size,
) -> Float[Tensor, "B h w"]:
    """Movable regions that contain all drags with a margin; 1 everywhere for samples without a mask.

    The region is an ellipse, brush strokes along the drags, or a half-plane, with equal probability.

    Args:
        handles, targets: px.
        moving: True for points that the region must contain.
        masked: True for samples with a mask.
        numbers: random numbers in [0, 1) that determine kind and size of the region.
        image: (height, width) of the image, px.
        size: (h, w) of the masks, in cells.
    """
    height, width = size
    extent = torch.tensor([image[1], image[0]], device=handles.device, dtype=handles.dtype)
    y = (torch.arange(height, device=handles.device) + 0.5) * image[0] / height - 0.5
    x = (torch.arange(width, device=handles.device) + 0.5) * image[1] / width - 0.5
    cells = torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], dim=2)  # (h, w, 2)
    points = torch.cat([handles, targets], dim=1)
    counted = torch.cat([moving, moving], dim=1)[..., None]

    low = torch.where(counted, points, torch.inf).amin(dim=1)
    high = torch.where(counted, points, -torch.inf).amax(dim=1)
    centre = (low + high) / 2 + (numbers[:, :2] - 0.5) * 0.1 * extent
    radii = (high - low) / 2 * 1.5 + (0.08 + 0.25 * numbers[:, 2:4]) * extent
    ellipse = ((cells - centre[:, None, None]) / radii[:, None, None]).square().sum(dim=3) <= 1

    displacement = (targets - handles)[:, :, None, None]
    offset = cells - handles[:, :, None, None]  # (B, N, h, w, 2)
    along = ((offset * displacement).sum(dim=4) / displacement.square().sum(dim=4).clamp_min(1e-6)).clamp(0, 1)
    radius = (0.05 + 0.2 * numbers[:, 2]) * image[0]
    near = (offset - along[..., None] * displacement).norm(dim=4) <= radius[:, None, None, None]
    stroke = (near & moving[:, :, None, None]).any(dim=1)

    angle = numbers[:, 0] * 2 * math.pi
    normal = torch.stack([angle.cos(), angle.sin()], dim=1)
    furthest = torch.where(counted[..., 0], (points * normal[:, None]).sum(dim=2), -torch.inf).amax(dim=1)
    limit = furthest + (0.04 + 0.3 * numbers[:, 1]) * image[0]
    side = (cells * normal[:, None, None]).sum(dim=3) <= limit[:, None, None]

    kind = (numbers[:, 4] * 3).long()[:, None, None]
    region = torch.where(kind == 0, ellipse, torch.where(kind == 1, stroke, side))
    everywhere = ~masked | ~moving.any(dim=1)
    return (region | everywhere[:, None, None]).to(handles.dtype)

"""Coordinate convention, rescaling of points between grids, and sampling of maps at points.

Convention: a point is (x, y) in pixels of the output image, y down, integers at pixel centres. The centre of the
top-left pixel is (0, 0) and its top-left corner is (-0.5, -0.5). An image of width W spans x from -0.5 to W - 0.5.
Rescaling between grids maps corners to corners (`align_corners=False` in torch):

    p_to = (p_from + 0.5) * size_to / size_from - 0.5

For example, pixel 0 of a 64-pixel row maps to 0.5 in a 128-pixel row. Sampling outside a map returns its border value.
No other module rescales points or calls `grid_sample`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from autodrag.constant import constant

Size = tuple[int, int]
"""(height, width) in pixels."""


def rescale(points: Float[Tensor, "*N 2"], source: Size, target: Size) -> Float[Tensor, "*N 2"]:
    """Convert points from pixels of a grid of size `source` (H, W) to pixels of a grid of size `target` (H, W)."""
    return (points + 0.5) * _ratio(source, target, points.device, points.dtype) - 0.5


def last_pixel(image: Size, like: Tensor) -> Float[Tensor, " 2"]:
    """(x, y) of the bottom-right pixel of an image of size (H, W), with the device and dtype of `like`."""
    return _last_pixel(image, like.device, like.dtype)


@constant
def _ratio(source: Size, target: Size, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.tensor([target[1] / source[1], target[0] / source[0]], device=device, dtype=dtype)


@constant
def _last_pixel(image: Size, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.tensor([image[1] - 1, image[0] - 1], device=device, dtype=dtype)


@constant
def _factor(image: Size, device: torch.device, dtype: torch.dtype) -> Tensor:
    return 2.0 / torch.tensor([image[1], image[0]], device=device, dtype=dtype)


def to_unit(points: Float[Tensor, "*N 2"], image: Size) -> Float[Tensor, "*N 2"]:
    """Convert points of an image of size (H, W) to normalised coordinates: the image's corners are at -1 and 1."""
    return (points + 0.5) * _factor(image, points.device, points.dtype) - 1.0


def sample(maps: Float[Tensor, "B C H W"], points: Float[Tensor, "B N 2"], image: Size) -> Float[Tensor, "B C N"]:
    """Sample `maps` bilinearly at `points`, given in pixels of an image of size `image` (H, W).

    At pixel centres this equals resizing the maps to the image size (bilinear) and indexing the result, but no tensor
    of the image size is allocated. Between pixel centres, see `sample_resized`.
    """
    grid = to_unit(points, image).to(maps.dtype)[:, None]  # (B, 1, N, 2)
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False)[:, :, 0]


def sample_resized(
    maps: Float[Tensor, "B C H W"], points: Float[Tensor, "B N 2"], image: Size
) -> Float[Tensor, "B C N"]:
    """Sample the bilinearly resized maps bilinearly at `points` (px), exactly, without resizing the maps.

    The published DragGAN interpolates between the pixels of a resized map, so values are interpolated twice. Here the
    four neighbouring image pixels are sampled from the small map and blended.
    """
    limit = last_pixel(image, points)
    inside = points.clamp_min(0).minimum(limit)
    low = inside.floor()
    high = (low + 1).minimum(limit)
    share = (inside - low)[:, None]  # (B, 1, N, 2)
    corners = torch.stack(
        [
            low,
            torch.stack([high[..., 0], low[..., 1]], -1),
            torch.stack([low[..., 0], high[..., 1]], -1),
            high,
        ],
        1,
    )
    values = sample(maps, corners.flatten(1, 2), image).unflatten(2, (4, -1))  # (B, C, 4, N)
    top = values[:, :, 0].lerp(values[:, :, 1], share[..., 0])
    bottom = values[:, :, 2].lerp(values[:, :, 3], share[..., 0])
    return top.lerp(bottom, share[..., 1])


def resize_mask(mask: Bool[Tensor, "H W"], size: Size) -> Float[Tensor, "h w"]:
    """Resize a mask to coverage values in [0, 1]: area averaging when it shrinks, bilinear when it grows."""
    values = mask[None, None].float()
    shrinks = size[0] < mask.shape[0] or size[1] < mask.shape[1]
    if shrinks:
        return F.interpolate(values, size=size, mode="area")[0, 0]
    return F.interpolate(values, size=size, mode="bilinear", align_corners=False)[0, 0]


def side_by_side(maps: Sequence[Tensor]) -> Float[Tensor, "B D H W"]:
    """Concatenate maps (B, C, h, w) along channels, after bilinear resizing to the size of the last (largest) map."""
    if len(maps) == 1:
        return maps[0]
    size = maps[-1].shape[2:]
    return torch.cat([F.interpolate(m, size=size, mode="bilinear", align_corners=False) for m in maps], dim=1)


@constant
def disk(radius: float, step: float = 1.0) -> Float[Tensor, "K 2"]:
    """Offsets (x, y) on a grid of spacing `step` at distances below `radius`; always contains (0, 0)."""
    count = int(radius / step) + 1
    axis = torch.arange(-count, count + 1, dtype=torch.float32) * step
    offsets = torch.cartesian_prod(axis, axis).flip(1)
    inside = offsets.norm(dim=1) < radius
    inside |= (offsets == 0).all(dim=1)
    return offsets[inside]


@constant
def square(radius: int, step: float = 1.0) -> Float[Tensor, "K 2"]:
    """Offsets (x, y) of a square window of (2 * radius + 1)^2 positions with spacing `step`, row by row."""
    axis = torch.arange(-radius, radius + 1, dtype=torch.float32) * step
    return torch.cartesian_prod(axis, axis).flip(1)

"""The coordinate rule, and the only place that rescales points between grids or samples a map at points.

Convention: a point is (x, y) in pixels of the output image, y down, integers at pixel centres. The centre of the
top-left pixel is (0, 0), its top-left corner (-0.5, -0.5); an image of width W spans x from -0.5 to W - 0.5. Between
grids of different size corners stay on corners (what torch calls align_corners=False):

    p_to = (p_from + 0.5) * size_to / size_from - 0.5

so that pixel 0 of a 64-pixel row lies at 0.5 of a 128-pixel row. Sampling outside a map gives its border value.
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
    """Points of a grid of size `source` (H, W) in the pixels of a grid of size `target` (H, W)."""
    return (points + 0.5) * _ratio(source, target, points.device, points.dtype) - 0.5


def last_pixel(image: Size, like: Tensor) -> Float[Tensor, " 2"]:
    """(x, y) of the last pixel of an image of size (H, W), on the device and in the type of `like`."""
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
    """Points of an image of size (H, W) as places in [-1, 1], where its corners are at -1 and 1."""
    return (points + 0.5) * _factor(image, points.device, points.dtype) - 1.0


def sample(maps: Float[Tensor, "B C H W"], points: Float[Tensor, "B N 2"], image: Size) -> Float[Tensor, "B C N"]:
    """Bilinear values of `maps` at `points` given in pixels of an image of size `image` (H, W).

    The same as resizing the maps to the image (bilinear, corners on corners) and reading them there, up to the second
    interpolation that reading between pixels would add; nothing of the size of the image is made.
    """
    grid = to_unit(points, image).to(maps.dtype)[:, None]  # (B, 1, N, 2)
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False)[:, :, 0]


def sample_resized(
    maps: Float[Tensor, "B C H W"], points: Float[Tensor, "B N 2"], image: Size
) -> Float[Tensor, "B C N"]:
    """Bilinear values at `points` (px) of the maps resized to the image (bilinear), exactly, without resizing them.

    The published DragGAN reads between the pixels of a resized map: an interpolation of an interpolation. The four
    neighbouring pixels are read from the small map and blended.
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
    """Share of each cell of a grid of `size` that a mask covers, in [0, 1]: area average down, bilinear up."""
    values = mask[None, None].float()
    shrinks = size[0] < mask.shape[0] or size[1] < mask.shape[1]
    if shrinks:
        return F.interpolate(values, size=size, mode="area")[0, 0]
    return F.interpolate(values, size=size, mode="bilinear", align_corners=False)[0, 0]


def side_by_side(maps: Sequence[Tensor]) -> Float[Tensor, "B D H W"]:
    """Maps (B, C, h, w) as one: bilinearly enlarged to the last and largest, their channels one after another."""
    if len(maps) == 1:
        return maps[0]
    size = maps[-1].shape[2:]
    return torch.cat([F.interpolate(m, size=size, mode="bilinear", align_corners=False) for m in maps], dim=1)


@constant
def disk(radius: float, step: float = 1.0) -> Float[Tensor, "K 2"]:
    """Offsets (x, y) on a grid of spacing `step` less than `radius` from the centre; the centre at least."""
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

"""The tracker: finds points of one generated image in another image of the same generator.

`look` standardises the feature maps of an image, `Look.at` reads the appearance of points from them, and `follow` finds
an appearance in other feature maps. Training matches its pairs and computes its position loss with it; the closed loop
and the refiner follow their points with it. It combines several synthesis blocks (hypercolumns, Hariharan et al. 2015):
coarse blocks identify the part, fine blocks give the exact position. `benchmarks/tracking.py` measures the error
against a landmark net.

Positions are (x, y) px of the output image, integers at pixel centres, y down.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from autodrag.constant import constant
from autodrag.points import Size, last_pixel, rescale, sample

P = ParamSpec("P")
T = TypeVar("T")

SHARPNESS = 16.0
"""The soft position weights cells by softmax(-SHARPNESS * cost)."""
WINDOW = 3
"""Half width, in cells of the finest map, of the window around the best cell over which the soft position is taken."""
PULL = 0.5
"""Default penalty on the distance from the expected position, see `follow`."""
MIN_CONFIDENCE = 0.2
"""Matches below this confidence are rejected."""

Maps = Sequence[Tensor]
"""Outputs of some synthesis blocks, coarse to fine, each (B, C, h, w)."""


def _in_fp32(function: Callable[P, T]) -> Callable[P, T]:
    """Decorator: disable autocast, because cosines in bf16 are too coarse for sub-pixel positions."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            return function(*args, **kwargs)

    return call


@dataclass(frozen=True)
class Appearance:
    """Appearance of points: per block, the unit feature vector with channels standardised over the first image."""

    features: tuple[Float[Tensor, "B N _"], ...]
    """Unit vectors."""
    offset: tuple[Float[Tensor, "B _ 1 1"], ...]
    """-mean / standard deviation of each channel over the first image."""
    factor: tuple[Float[Tensor, "B _ 1 1"], ...]
    """1 / standard deviation of each channel over the first image."""
    scale: Float[Tensor, "B N"]
    """Cost of an unrelated position: the mean cosine distance from a point to all cells of its own image."""

    def take(self, order: Int[Tensor, "B N"]) -> Appearance:
        """The same appearance with the points reordered."""
        features = tuple(torch.take_along_dim(f, order[..., None], 1) for f in self.features)
        return Appearance(features, self.offset, self.factor, torch.take_along_dim(self.scale, order, 1))


@dataclass(frozen=True)
class Look:
    """Standardised feature maps of an image, computed once by `look` and read at points by `at`."""

    units: tuple[Float[Tensor, "B _ _ _"], ...]
    """Per block, the unit feature vector of every cell, with channels standardised over the image."""
    offset: tuple[Float[Tensor, "B _ 1 1"], ...]
    """As in `Appearance`."""
    factor: tuple[Float[Tensor, "B _ 1 1"], ...]
    """As in `Appearance`."""
    typical: tuple[Float[Tensor, "B _ 1"], ...]
    """Mean of the unit vectors over all cells."""

    @_in_fp32
    def at(self, points: Float[Tensor, "B N 2"], image: Size) -> Appearance:
        """Appearance at `points` (px of an image of size (H, W))."""
        features: list[Tensor] = []
        scale = points.new_zeros(points.shape[:2])
        for unit, typical in zip(self.units, self.typical, strict=True):
            feature = F.normalize(sample(unit, points, image), dim=1).transpose(1, 2)
            scale = scale + 1 - (feature @ typical)[..., 0]
            features.append(feature)
        return Appearance(tuple(features), self.offset, self.factor, scale.clamp_min(1e-6))


@_in_fp32
def look(maps: Maps) -> Look:
    """Standardise the block outputs of an image."""
    units: list[Tensor] = []
    offsets: list[Tensor] = []
    factors: list[Tensor] = []
    for one in maps:
        one = one.float()
        mean = one.mean(dim=(2, 3), keepdim=True)
        deviation = (one - mean).square().mean(dim=(2, 3), keepdim=True).sqrt().clamp_min(1e-4)
        offsets.append(-mean / deviation)
        factors.append(1 / deviation)
        units.append(_unit(one, offsets[-1], factors[-1]))
    typical = tuple(unit.mean(dim=(2, 3))[:, :, None] for unit in units)
    return Look(tuple(units), tuple(offsets), tuple(factors), typical)


def appearance(maps: Maps, points: Float[Tensor, "B N 2"], image: Size) -> Appearance:
    """Appearance at `points` (px of an image of size (H, W)), read from its block outputs."""
    return look(maps).at(points, image)


@_in_fp32
def follow(
    maps: Maps,
    reference: Appearance,
    image: Size,
    *,
    near: Float[Tensor, "B N 2"] | None = None,
    pull: float = 0.0,
) -> tuple[Float[Tensor, "B N 2"], Float[Tensor, "B N"]]:
    """Find `reference` in `maps`. Returns positions (px, differentiable in the maps) and confidences in [0, 1].

    Coarse to fine: all maps except the finest give the best cell of the whole image. The position is then the mean of
    the finest map's cells around it, weighted by the cost of all maps. The finest map is sampled only in this window.

    Args:
        near: expected positions, px; None: no expectation.
        pull: additional cost per image height of distance from `near`; the cost of an unrelated position is 1.
    """
    wide = len(maps) - 1 or 1
    height, width = maps[wide - 1].shape[2:]
    cost = _wide_cost(maps, reference)
    with torch.no_grad():
        search = cost.detach() / reference.scale[:, :, None, None]
        columns, rows, cells = _cells(height, width, image, cost.device)  # px
        if near is not None and pull:
            x, y = (columns - near[..., :1]).square(), (rows - near[..., 1:]).square()
            search = search.add((x[..., None, :] + y[..., None]).sqrt(), alpha=pull / image[0])
        best = cells[search.flatten(2).argmin(dim=2)]  # (B, N, 2)
        window, first, last = _window(image[0] / maps[-1].shape[2], len(maps) > wide, image, cost.device)
        places = best.maximum(first).minimum(last)[:, :, None] + window  # (B, N, K, 2)
    costs = sample(cost.flatten(0, 1)[:, None], places.flatten(0, 1), image).view(places.shape[:3])
    if len(maps) > wide:
        values = sample(maps[-1].float(), places.flatten(1, 2), image)[..., None]  # (B, C, N * K, 1)
        unit = _unit(values, reference.offset[-1], reference.factor[-1])[..., 0].unflatten(2, places.shape[1:3])
        costs = costs + 1 - torch.einsum("bcnk,bnc->bnk", unit, reference.features[-1])
    costs = costs / reference.scale[:, :, None]
    weights = (-SHARPNESS * costs).softmax(dim=2)
    found = (weights[..., None] * places).sum(dim=2)
    return found, (1 - costs.detach().amin(dim=2)).clamp(0, 1)


@torch.no_grad()
def match_features(
    first: Maps, second: Maps, points: Float[Tensor, "B N 2"], image: Size
) -> tuple[Float[Tensor, "B N 2"], Bool[Tensor, "B N"]]:
    """Positions of `points` (px of the first image) in the second image, and which matches are mutual.

    A match is mutual when tracking back by all maps except the finest ends within one cell of the start.
    """
    found, confidence = follow(second, appearance(first, points, image), image)
    wide = len(first) - 1 or 1
    back, _ = follow(first[:wide], appearance(second[:wide], found, image), image)
    cell = image[0] / first[wide - 1].shape[2]
    return found, ((back - points).norm(dim=2) <= cell) & (confidence > MIN_CONFIDENCE)


@torch.no_grad()
@_in_fp32
def ambiguity(maps: Maps, points: Float[Tensor, "B N 2"], image: Size) -> Float[Tensor, "B N"]:
    """How far from a point, px, lie the places of its own image that look like it; large without texture.

    The root of the mean squared distance, weighted by the softmax of the cost of `follow` in the coarser maps.
    """
    reference = look(maps).at(points, image)
    cost = _wide_cost(maps, reference) / reference.scale[:, :, None, None]
    weights = (-SHARPNESS * cost.flatten(2)).softmax(dim=2)
    _, _, cells = _cells(cost.shape[2], cost.shape[3], image, cost.device)
    return (weights * (cells - points[:, :, None]).square().sum(dim=3)).sum(dim=2).sqrt()


def _wide_cost(maps: Maps, reference: Appearance) -> Float[Tensor, "B N h w"]:
    """Cost of all cells by all maps except the finest, at the size of the finest of these."""
    wide = len(maps) - 1 or 1
    size = maps[wide - 1].shape[2:]
    cost = reference.scale.new_zeros([])
    for k in range(wide):
        part = 1 - _cosines(maps[k].float(), reference.offset[k], reference.factor[k], reference.features[k])
        if part.shape[2:] != size:
            part = F.interpolate(part, size=size, mode="bilinear", align_corners=False)
        cost = cost + part
    return cost


def _unit(maps: Float[Tensor, "B C h w"], offset: Tensor, factor: Tensor) -> Float[Tensor, "B C h w"]:
    """Standardise channels and normalise the feature vector of every cell."""
    return F.normalize(torch.addcmul(offset, maps, factor), dim=1, eps=1e-6)


def _cosines(
    maps: Float[Tensor, "B C h w"], offset: Tensor, factor: Tensor, features: Float[Tensor, "B N C"]
) -> Float[Tensor, "B N h w"]:
    """Cosines between unit vectors and all cells. Equal to products with `_unit`, in fewer passes over the map."""
    scaled = torch.addcmul(offset, maps, factor)
    length = torch.linalg.vector_norm(scaled, dim=1, keepdim=True).clamp_min(1e-6)
    return (features @ scaled.flatten(2)).unflatten(2, scaled.shape[2:]) / length


@constant
def _window(cell: float, between: bool, image: Size, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Offsets (K, 2) in px of a window of cells of `cell` px, and the first and last centres, (2,) each.

    `between`: the window is centred on a corner between four cells instead of a cell. A window centred between the
    first and last centre lies inside the image of size (H, W).
    """
    ticks = torch.arange(-WINDOW - 1, WINDOW + 1) + 0.5 if between else torch.arange(-WINDOW, WINDOW + 1)
    y, x = torch.meshgrid(ticks * cell, ticks * cell, indexing="ij")
    window = torch.stack([x, y], dim=2).flatten(0, 1).float().to(device)
    room = window.amax(dim=0) + (cell - 1) / 2  # from the centre of the first cell
    return window, room, (last_pixel(image, window) - room).maximum(room)


@constant
def _cells(height: int, width: int, image: Size, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Cell centres of a map in px of the image: x of the columns (w,), y of the rows (h,), and all (h * w, 2)."""
    y, x = torch.meshgrid(
        torch.arange(height, device=device, dtype=torch.float32),
        torch.arange(width, device=device, dtype=torch.float32),
        indexing="ij",
    )
    cells = rescale(torch.stack([x, y], dim=2), (height, width), image)
    return cells[0, :, 0].contiguous(), cells[:, 0, 1].contiguous(), cells.flatten(0, 1)

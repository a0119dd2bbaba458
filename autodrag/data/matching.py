"""Where is the thing that lay here? Points matched between two images of one generator.

`follow` finds features of one image in another: by it training pairs are matched, training losses see where a handle
went, and a closed loop finds its points. It reads several blocks at once (hypercolumns, Hariharan et al. 2015): coarse
ones know what a place is, fine ones where exactly. Maps are read only by matrix products, at their own sizes.

On critters moved halfway toward another head, landmarks found by blocks 2 to 4 together are 1.9 px away from where an
independent landmark net sees them, those by block 3 alone 2.1; all the way, 4.2 and 5.1: `benchmarks/tracking.py`.
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
"""Of the soft position: softmax(-SHARPNESS * cost)."""
WINDOW = 3
"""Half width, in cells of the finest map, of the window around the best cell whose mean is the position."""
PULL = 0.5
"""Weight of nearness where a point is looked for again, see `follow`."""
SURE = 0.2
"""Least confidence of a match."""

Maps = Sequence[Tensor]
"""Outputs of some synthesis blocks, coarse to fine, each (B, C, h, w)."""


def _precisely(function: Callable[P, T]) -> Callable[P, T]:
    """Out of autocast: a cosine in bf16 has three digits, and positions are made of the small ones."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            return function(*args, **kwargs)

    return call


@dataclass(frozen=True)
class Appearance:
    """What points look like: at each block the direction of the feature, its channels standardised over the image."""

    features: tuple[Float[Tensor, "B N _"], ...]
    """Unit vectors."""
    offset: tuple[Float[Tensor, "B _ 1 1"], ...]
    """Of the channels: -mean / standard deviation over the first image."""
    factor: tuple[Float[Tensor, "B _ 1 1"], ...]
    """Of the channels: 1 / standard deviation over the first image."""
    scale: Float[Tensor, "B N"]
    """What an unrelated place scores: a point's mean distance to all places of its own image."""

    def take(self, order: Int[Tensor, "B N"]) -> Appearance:
        """The same with its points in another order."""
        features = tuple(torch.take_along_dim(f, order[..., None], 1) for f in self.features)
        return Appearance(features, self.offset, self.factor, torch.take_along_dim(self.scale, order, 1))


@dataclass(frozen=True)
class Look:
    """What an image looks like before anybody asks for a point of it; see `look`."""

    units: tuple[Float[Tensor, "B _ _ _"], ...]
    """Per block the direction of every cell's feature, its channels standardised over the image."""
    offset: tuple[Float[Tensor, "B _ 1 1"], ...]
    """As in `Appearance`."""
    factor: tuple[Float[Tensor, "B _ 1 1"], ...]
    typical: tuple[Float[Tensor, "B _ 1"], ...]
    """Mean direction."""

    @_precisely
    def at(self, points: Float[Tensor, "B N 2"], image: Size) -> Appearance:
        """What lies at `points` (px of an image of size (H, W))."""
        features: list[Tensor] = []
        scale = points.new_zeros(points.shape[:2])
        for unit, typical in zip(self.units, self.typical, strict=True):
            feature = F.normalize(sample(unit, points, image), dim=1).transpose(1, 2)
            scale = scale + 1 - (feature @ typical)[..., 0]
            features.append(feature)
        return Appearance(tuple(features), self.offset, self.factor, scale.clamp_min(1e-6))


@_precisely
def look(maps: Maps) -> Look:
    """What an image looks like, by its blocks' outputs."""
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
    """What lies at `points` (px of an image of size (H, W)), by its blocks' outputs."""
    return look(maps).at(points, image)


@_precisely
def follow(
    maps: Maps,
    what: Appearance,
    image: Size,
    *,
    near: Float[Tensor, "B N 2"] | None = None,
    pull: float = 0.0,
) -> tuple[Float[Tensor, "B N 2"], Float[Tensor, "B N"]]:
    """Where `what` is in the image of `maps`: positions in px, differentiable in the maps, and confidences in [0, 1].

    From coarse to fine: the best cell of the whole image by all maps but the finest, then the mean of the finest's
    cells around it, weighted by how well all maps fit there. The finest is read around points only.
    near, pull: a cell costs `pull` for each image height that it lies away from `near` (px); an unrelated place
    costs 1.
    """
    wide = len(maps) - 1 or 1
    height, width = maps[wide - 1].shape[2:]
    cost = what.scale.new_zeros([])
    for k in range(wide):
        part = 1 - _cosines(maps[k].float(), what.offset[k], what.factor[k], what.features[k])
        if part.shape[2:] != (height, width):
            part = F.interpolate(part, size=(height, width), mode="bilinear", align_corners=False)
        cost = cost + part  # (B, N, h, w)
    with torch.no_grad():
        search = cost.detach() / what.scale[:, :, None, None]
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
        unit = _unit(values, what.offset[-1], what.factor[-1])[..., 0].unflatten(2, places.shape[1:3])
        costs = costs + 1 - torch.einsum("bcnk,bnc->bnk", unit, what.features[-1])
    costs = costs / what.scale[:, :, None]
    weights = (-SHARPNESS * costs).softmax(dim=2)
    found = (weights[..., None] * places).sum(dim=2)
    return found, (1 - costs.detach().amin(dim=2)).clamp(0, 1)


@torch.no_grad()
def match_features(
    first: Maps, second: Maps, points: Float[Tensor, "B N 2"], image: Size
) -> tuple[Float[Tensor, "B N 2"], Bool[Tensor, "B N"]]:
    """Where `points` of the first image are in the second, and which matches are mutual.

    Mutual: what is found in the second image is found back within a cell of where it came from, by all maps but the
    finest.
    """
    found, sure = follow(second, appearance(first, points, image), image)
    wide = len(first) - 1 or 1
    back, _ = follow(first[:wide], appearance(second[:wide], found, image), image)
    cell = image[0] / first[wide - 1].shape[2]
    return found, ((back - points).norm(dim=2) <= cell) & (sure > SURE)


def _unit(maps: Float[Tensor, "B C h w"], offset: Tensor, factor: Tensor) -> Float[Tensor, "B C h w"]:
    """Standardised channels, and then the direction of every cell's feature."""
    return F.normalize(torch.addcmul(offset, maps, factor), dim=1, eps=1e-6)


def _cosines(
    maps: Float[Tensor, "B C h w"], offset: Tensor, factor: Tensor, features: Float[Tensor, "B N C"]
) -> Float[Tensor, "B N h w"]:
    """Of unit vectors and the features of every cell, as `_unit` would give them, in two passes over the map."""
    scaled = torch.addcmul(offset, maps, factor)
    length = torch.linalg.vector_norm(scaled, dim=1, keepdim=True).clamp_min(1e-6)
    return (features @ scaled.flatten(2)).unflatten(2, scaled.shape[2:]) / length


@constant
def _window(cell: float, between: bool, image: Size, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Offsets (K, 2) of the cells (of `cell` px) around the centre of one, or around a corner between four.

    Also the first and the last place, (2,) each, around which they lie in the image of size (H, W).
    """
    reach = torch.arange(-WINDOW - 1, WINDOW + 1) + 0.5 if between else torch.arange(-WINDOW, WINDOW + 1)
    y, x = torch.meshgrid(reach * cell, reach * cell, indexing="ij")
    window = torch.stack([x, y], dim=2).flatten(0, 1).float().to(device)
    room = window.amax(dim=0) + (cell - 1) / 2  # from the centre of the first cell
    return window, room, (last_pixel(image, window) - room).maximum(room)


@constant
def _cells(height: int, width: int, image: Size, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Centres of the cells of a map in px of the image: of its columns (w,), its rows (h,), and all, (h * w, 2)."""
    y, x = torch.meshgrid(
        torch.arange(height, device=device, dtype=torch.float32),
        torch.arange(width, device=device, dtype=torch.float32),
        indexing="ij",
    )
    cells = rescale(torch.stack([x, y], dim=2), (height, width), image)
    return cells[0, :, 0].contiguous(), cells[:, 0, 1].contiguous(), cells.flatten(0, 1)

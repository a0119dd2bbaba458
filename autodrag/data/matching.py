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

from autodrag.points import Size, rescale, sample

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
    mean: tuple[Float[Tensor, "B _ 1 1"], ...]
    """Of the channels over the first image."""
    deviation: tuple[Float[Tensor, "B _ 1 1"], ...]
    """Of the channels over the first image."""
    scale: Float[Tensor, "B N"]
    """What an unrelated place scores: a point's mean distance to all places of its own image."""

    def take(self, order: Int[Tensor, "B N"]) -> Appearance:
        """The same with its points in another order."""
        features = tuple(torch.take_along_dim(f, order[..., None], 1) for f in self.features)
        return Appearance(features, self.mean, self.deviation, torch.take_along_dim(self.scale, order, 1))


@dataclass(frozen=True)
class Look:
    """What an image looks like before anybody asks for a point of it; see `look`."""

    units: tuple[Float[Tensor, "B _ _ _"], ...]
    """Per block the direction of every cell's feature, its channels standardised over the image."""
    mean: tuple[Float[Tensor, "B _ 1 1"], ...]
    deviation: tuple[Float[Tensor, "B _ 1 1"], ...]
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
        return Appearance(tuple(features), self.mean, self.deviation, scale.clamp_min(1e-6))


@_precisely
def look(maps: Maps) -> Look:
    """What an image looks like, by its blocks' outputs."""
    units: list[Tensor] = []
    means: list[Tensor] = []
    deviations: list[Tensor] = []
    for one in maps:
        one = one.float()
        mean = one.mean(dim=(2, 3), keepdim=True)
        deviation = (one - mean).square().mean(dim=(2, 3), keepdim=True).sqrt().clamp_min(1e-4)
        units.append(_unit(one, mean, deviation))
        means.append(mean)
        deviations.append(deviation)
    typical = tuple(unit.mean(dim=(2, 3))[:, :, None] for unit in units)
    return Look(tuple(units), tuple(means), tuple(deviations), typical)


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
        part = 1 - _cosines(maps[k].float(), what.mean[k], what.deviation[k], what.features[k])
        if part.shape[2:] != (height, width):
            part = F.interpolate(part, size=(height, width), mode="bilinear", align_corners=False)
        cost = cost + part  # (B, N, h, w)
    with torch.no_grad():
        search = cost.detach() / what.scale[:, :, None, None]
        cells = _cells(height, width, image, cost)  # (h, w, 2), px
        if near is not None and pull:
            x, y = ((cells[..., k] - near[..., k, None, None]).square() for k in (0, 1))
            search = search + (pull / image[0]) * (x + y).sqrt()
        best = cells.flatten(0, 1)[search.flatten(2).argmin(dim=2)]  # (B, N, 2)
        cell = image[0] / maps[-1].shape[2]
        window = _window(cell, between=len(maps) > wide).to(best)  # (K, 2)
        room = window.amax(dim=0) + (cell - 1) / 2  # from the centre of the first cell
        limit = best.new_tensor([image[1], image[0]]) - 1 - room
        places = best.maximum(room).minimum(limit.maximum(room))[:, :, None] + window  # (B, N, K, 2)
    costs = sample(cost.flatten(0, 1)[:, None], places.flatten(0, 1), image).view(places.shape[:3])
    if len(maps) > wide:
        values = sample(maps[-1].float(), places.flatten(1, 2), image)[..., None]  # (B, C, N * K, 1)
        unit = _unit(values, what.mean[-1], what.deviation[-1])[..., 0].unflatten(2, places.shape[1:3])
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


def _unit(maps: Float[Tensor, "B C h w"], mean: Tensor, deviation: Tensor) -> Float[Tensor, "B C h w"]:
    """Standardised channels, and then the direction of every cell's feature."""
    return F.normalize(_standardised(maps, mean, deviation), dim=1, eps=1e-6)


def _standardised(maps: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """(maps - mean) / deviation in one pass."""
    return torch.addcmul(-mean / deviation, maps, 1 / deviation)


def _cosines(
    maps: Float[Tensor, "B C h w"], mean: Tensor, deviation: Tensor, features: Float[Tensor, "B N C"]
) -> Float[Tensor, "B N h w"]:
    """Of unit vectors and the features of every cell, as `_unit` would give them, in two passes over the map."""
    scaled = _standardised(maps, mean, deviation)
    length = torch.linalg.vector_norm(scaled, dim=1, keepdim=True).clamp_min(1e-6)
    return (features @ scaled.flatten(2)).unflatten(2, scaled.shape[2:]) / length


def _window(cell: float, *, between: bool) -> Float[Tensor, "K 2"]:
    """Offsets of the cells (of `cell` px) around the centre of one, or around a corner between four."""
    reach = torch.arange(-WINDOW - 1, WINDOW + 1) + 0.5 if between else torch.arange(-WINDOW, WINDOW + 1)
    y, x = torch.meshgrid(reach * cell, reach * cell, indexing="ij")
    return torch.stack([x, y], dim=2).flatten(0, 1).float()


def _cells(height: int, width: int, image: Size, like: Tensor) -> Float[Tensor, "h w 2"]:
    """Centres of the cells of a map, px of the image."""
    y, x = torch.meshgrid(
        torch.arange(height, device=like.device, dtype=torch.float32),
        torch.arange(width, device=like.device, dtype=torch.float32),
        indexing="ij",
    )
    return rescale(torch.stack([x, y], dim=2), (height, width), image)

"""Where is the thing that lay here? Points matched between two images of one generator.

`follow` finds features of one map in another: by it training pairs are matched, training losses see where a handle
went, and a closed loop finds its points. It reads maps only by matrix products, never resizing one to the image.
SIFT and kornia's learned matchers do the same between pictures.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from autodrag.points import Size, rescale, sample, square

SHARPNESS = 8.0
"""Of the soft position: softmax(-SHARPNESS * d / scale), as in the refiner's tracker."""
WINDOW = 2
"""Half width, in cells, of the window around the best cell whose mean is the position."""
PATCH = 1
"""Half width, in cells, of the patch that is compared."""


@dataclass(frozen=True)
class Appearance:
    """What points look like in a map: patches of (2 PATCH + 1)^2 features."""

    features: Float[Tensor, "B K N C"]
    """Features at the K offsets of a patch around each point."""
    scale: Float[Tensor, "B N"]
    """Median distance from a point's feature to all of its own map: what an unrelated place scores."""


def appearance(maps: Float[Tensor, "B C h w"], points: Float[Tensor, "B N 2"], image: Size) -> Appearance:
    """Patches around `points` (px of an image of size (H, W)) in `maps`."""
    maps = maps.float()
    offsets = square(PATCH, image[0] / maps.shape[2]).to(points)  # (K, 2)
    around = points[:, None] + offsets[:, None]  # (B, K, N, 2)
    features = sample(maps, around.flatten(1, 2), image).unflatten(2, around.shape[1:3]).permute(0, 2, 3, 1)
    centre = features[:, len(offsets) // 2]
    scale = _distances(maps, centre).flatten(2).median(dim=2).values
    return Appearance(features, scale.clamp_min(1e-6))


def follow(
    maps: Float[Tensor, "B C h w"],
    what: Appearance,
    image: Size,
    *,
    near: Float[Tensor, "B N 2"] | None = None,
    pull: float = 0.0,
) -> tuple[Float[Tensor, "B N 2"], Float[Tensor, "B N"]]:
    """Where `what` is in `maps`: positions in px, differentiable in the maps, and confidences in [0, 1].

    The best cell of the whole map, then the mean of the 5 x 5 cells around it, weighted as the refiner's tracker does.
    near, pull: a cell costs `pull` for each image height that it lies away from `near` (px); an unrelated place
    costs 1.
    """
    maps = maps.float()
    batch, _, height, width = maps.shape
    count = what.features.shape[2]
    reach = 2 * PATCH + 1
    cost = _distances(maps, what.features.flatten(1, 2)).unflatten(1, (reach * reach, count))  # (B, K, N, h, w)
    padded = F.pad(cost.flatten(0, 1), (PATCH, PATCH, PATCH, PATCH), mode="replicate").unflatten(0, (batch, -1))
    shifted = [
        padded[:, reach * dy + dx, :, dy : dy + height, dx : dx + width] for dy in range(reach) for dx in range(reach)
    ]
    mean = torch.stack(shifted).mean(dim=0) / what.scale[:, :, None, None]  # (B, N, h, w)
    cells = _cells(height, width, image, maps)  # (h, w, 2), px
    with torch.no_grad():
        search = mean.detach()
        if near is not None and pull:
            away = (cells - near[:, :, None, None]).norm(dim=4) / image[0]
            search = search + pull * away
        best = search.flatten(2).argmin(dim=2)  # (B, N)
        row = (best // width).clamp(WINDOW, height - 1 - WINDOW)
        column = (best % width).clamp(WINDOW, width - 1 - WINDOW)
        axis = torch.arange(-WINDOW, WINDOW + 1, device=maps.device)
        rows, columns = (row[:, :, None] + axis)[..., None], (column[:, :, None] + axis)[..., None, :]
        index = (rows * width + columns).flatten(2)  # (B, N, 25)
    costs = mean.flatten(2).gather(2, index)
    weights = (-SHARPNESS * costs).softmax(dim=2)
    found = (weights[..., None] * cells.flatten(0, 1)[index]).sum(dim=2)
    return found, (1 - costs.detach().amin(dim=2)).clamp(0, 1)


@torch.no_grad()
def match_features(
    first: Float[Tensor, "B C h w"], second: Float[Tensor, "B C h w"], points: Float[Tensor, "B N 2"], image: Size
) -> tuple[Float[Tensor, "B N 2"], Bool[Tensor, "B N"]]:
    """Where `points` of the first map are in the second, and which matches are mutual.

    Mutual: what is found in the second map is found back within one cell of where it came from.
    """
    found, sure = follow(second, appearance(first, points, image), image)
    back, _ = follow(first, appearance(second, found, image), image)
    cell = image[0] / first.shape[2]
    return found, ((back - points).norm(dim=2) <= cell) & (sure > 0.2)


def _distances(maps: Float[Tensor, "B C h w"], features: Float[Tensor, "B N C"]) -> Float[Tensor, "B N h w"]:
    """L2 distances of features to all cells, by one matrix product."""
    flat = maps.flatten(2)
    product = features @ flat
    squares = flat.square().sum(dim=1)[:, None] + features.square().sum(dim=2)[:, :, None]
    return (squares - 2 * product).clamp_min(1e-6).sqrt().unflatten(2, maps.shape[2:])


def _cells(height: int, width: int, image: Size, like: Tensor) -> Float[Tensor, "h w 2"]:
    """Centres of the cells of a map, px of the image."""
    y, x = torch.meshgrid(
        torch.arange(height, device=like.device, dtype=torch.float32),
        torch.arange(width, device=like.device, dtype=torch.float32),
        indexing="ij",
    )
    return rescale(torch.stack([x, y], dim=2), (height, width), image)

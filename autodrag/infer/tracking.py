"""Point tracking in generator features: where is the thing that lay under a handle before the edit?

DragGAN (Pan et al. 2023, section 3.3) searches a window around the last position for the feature nearest to that of
the initial handle. The same search with a confidence lets a lost point be reported instead of being followed blindly.
Features are read only at the positions that are needed; no map is ever resized to the image.

Table 1 of the paper compares this search with RAFT, which follows pixels instead, and Figure 6 with no tracking at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from autodrag.eval.flow import Flow
from autodrag.points import Size, last_pixel, sample, square

Norm = Literal["l1", "l2"]
Tracker = Literal["nearest", "raft", "none"]


@dataclass(frozen=True)
class References:
    """What every handle looked like before the edit; kept over several edits, or taken anew for each."""

    features: Float[Tensor, "N C K"]
    """Features at the initial handle, at K offsets around it."""
    offsets: Float[Tensor, "K 2"]
    """Those offsets, px."""
    scale: Float[Tensor, " N"]
    """Median distance from a handle's feature to those of the whole initial map: what an unrelated place scores."""
    maps: Float[Tensor, "1 C h w"]
    """The initial feature map."""
    handles: Float[Tensor, "N 2"]
    """The handles, px."""


def feature_distance(a: Tensor, b: Tensor, norm: Norm, dim: int) -> Tensor:
    """L1 or L2 distance over the channels `dim`."""
    difference = a - b
    return difference.abs().sum(dim=dim) if norm == "l1" else difference.square().sum(dim=dim).sqrt()


def take_references(
    maps: Float[Tensor, "1 C h w"],
    handles: Float[Tensor, "N 2"],
    image: Size,
    *,
    offsets: Float[Tensor, "K 2"],
    norm: Norm,
) -> References:
    """References of `handles` (px) in the feature map of the unedited image of size `image` (H, W)."""
    maps = maps.detach()
    around = handles[:, None] + offsets.to(handles)  # (N, K, 2)
    features = sample(maps, around.flatten(0, 1)[None], image)[0]  # (C, N * K)
    features = features.unflatten(1, around.shape[:2]).transpose(0, 1)  # (N, C, K)
    center = sample(maps, handles[None], image)[0].t()  # (N, C)
    everywhere = maps[0].flatten(1)  # (C, h * w)
    scale = torch.stack([feature_distance(everywhere, f[:, None], norm, 0).median() for f in center])
    return References(features, offsets.to(handles), scale.clamp_min(1e-12), maps, handles)


def track(
    maps: Float[Tensor, "1 C h w"],
    references: References,
    points: Float[Tensor, "N 2"],
    image: Size,
    *,
    radius: int,
    norm: Norm,
) -> tuple[Float[Tensor, "N 2"], Float[Tensor, " N"]]:
    """Nearest neighbour of each reference within `radius` px of the rounded last position, at whole pixels.

    Returns positions (px) and confidences: 1 - distance / (distance of an unrelated place), clipped to [0, 1].
    The window is clipped at the border of the image.
    """
    limit = last_pixel(image, points)
    window = square(radius).to(points)  # (P, 2)
    candidates = (points.round()[:, None] + window).clamp_min(0).minimum(limit)  # (N, P, 2)
    best, index = _distances(maps, references, candidates, image, norm).min(dim=1)
    found = candidates[torch.arange(len(points), device=points.device), index]
    return found, (1 - best / references.scale).clamp(0, 1)


def likeness(
    maps: Float[Tensor, "1 C h w"], references: References, points: Float[Tensor, "N 2"], image: Size, norm: Norm
) -> Float[Tensor, " N"]:
    """The confidence of `track` at given points: how much what lies there looks like the references, in [0, 1]."""
    distances = _distances(maps, references, points[:, None], image, norm)[:, 0]
    return (1 - distances / references.scale).clamp(0, 1)


def follow_flow(
    flow: Flow,
    before: UInt8[np.ndarray, "H W 3"],
    after: UInt8[np.ndarray, "H W 3"],
    handles: Float[Tensor, "N 2"],
) -> Float[Tensor, "N 2"]:
    """Where an optical flow (px) from the image before the drag to the present one takes the handles, in the image.

    Always from the first image, so that no errors add up from step to step.
    """
    size = (before.shape[0], before.shape[1])
    motion = torch.from_numpy(np.ascontiguousarray(flow(before, after))).permute(2, 0, 1)[None].to(handles)
    limit = last_pixel(size, handles)
    return (handles + sample(motion, handles[None], size)[0].t()).clamp_min(0).minimum(limit)


def _distances(maps: Tensor, references: References, candidates: Tensor, image: Size, norm: Norm) -> Tensor:
    """Feature distance of every candidate (N, P, 2) from its reference, (N, P)."""
    around = candidates[:, :, None] + references.offsets  # (N, P, K, 2)
    features = sample(maps, around.flatten(0, 2)[None], image)[0].unflatten(1, around.shape[:3])  # (C, N, P, K)
    wanted = references.features.permute(1, 0, 2)[:, :, None]  # (C, N, 1, K)
    return feature_distance(features, wanted, norm, 0).mean(dim=2)  # (N, P)

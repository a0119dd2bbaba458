"""Distances left by a drag as a landmark net sees them, which knows nothing of the tracker."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from autodrag.images import to_tensor
from autodrag.nets.landmarks import LandmarkNet, Landmarks
from autodrag.points import rescale

NEAR = 0.05
"""A handle this close to a landmark is measured by it; a share of the image's height."""


def detect_landmarks(net: LandmarkNet, image: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "K 2"]:
    """Landmarks (x, y) in px of `image`, which is resized where the net was made for another size."""
    device = next(net.parameters()).device
    points = find_landmarks(net, to_tensor(image).to(device)).points[0]
    found: np.ndarray = points.double().cpu().numpy()
    return found


@torch.no_grad()
def find_landmarks(net: LandmarkNet, images: Float[Tensor, "B 3 H W"]) -> Landmarks:
    """What the net sees in `images` ([-1, 1]), points in their px; they are resized where it takes another size."""
    size, side = (images.shape[2], images.shape[3]), net.config.resolution
    if size == (side, side):
        return net(images)
    resized = F.interpolate(images, (side, side), mode="bilinear", align_corners=False, antialias=True)
    found = net(resized)
    return replace(found, points=rescale(found.points, (side, side), size))


def measure_drag(
    net: LandmarkNet | None,
    before: UInt8[np.ndarray, "H W 3"],
    after: UInt8[np.ndarray, "H W 3"],
    handles: Float[np.ndarray, "N 2"],
    targets: Float[np.ndarray, "N 2"],
) -> tuple[float | None, ...] | None:
    """`landmark_distances` from the two images of a drag; None without a net."""
    if net is None:
        return None
    old, new = detect_landmarks(net, before), detect_landmarks(net, after)
    return landmark_distances(old, new, handles, targets, NEAR * before.shape[0])


def landmark_distances(
    before: Float[np.ndarray, "K 2"],
    after: Float[np.ndarray, "K 2"],
    handles: Float[np.ndarray, "N 2"],
    targets: Float[np.ndarray, "N 2"],
    near: float,
) -> tuple[float | None, ...]:
    """How far each handle's nearest landmark ended from where the drag should have taken it, px.

    A handle rarely lies on its landmark exactly, so the offset between them is carried to the target. None
    where no landmark lies within `near` px of the handle.
    """
    distances: list[float | None] = []
    for handle, target in zip(handles, targets, strict=True):
        offsets = before - handle
        nearest = int(np.hypot(*offsets.T).argmin())
        if np.hypot(*offsets[nearest]) > near:
            distances.append(None)
        else:
            distances.append(float(np.hypot(*(after[nearest] - target - offsets[nearest]))))
    return tuple(distances)

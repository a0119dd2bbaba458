"""Remaining distances after a drag, measured by a landmark net, independently of the tracker."""

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
"""Maximum distance of a handle from its landmark, as a fraction of the image height."""


def detect_landmarks(net: LandmarkNet, image: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "K 2"]:
    """Landmarks (x, y) in px of `image`. The image is resized if the net has another resolution."""
    device = next(net.parameters()).device
    points = find_landmarks(net, to_tensor(image).to(device)).points[0]
    found: np.ndarray = points.double().cpu().numpy()
    return found


@torch.no_grad()
def find_landmarks(net: LandmarkNet, images: Float[Tensor, "B 3 H W"]) -> Landmarks:
    """Detect landmarks in `images` ([-1, 1]), in px of these images. They are resized if the net has another size."""
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
    """`landmark_distances` between the images before and after a drag; None without a net."""
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
    """Distance of each handle's nearest landmark from its expected position after the drag, px.

    A handle rarely lies exactly on its landmark, so the offset between them is added to the target. The distance is
    None if no landmark lies within `near` px of the handle.
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

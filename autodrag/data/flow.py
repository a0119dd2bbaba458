"""Optical flow between two images, by OpenCV.

A flow is (H, W, 2) px, (dx, dy): the content at p of the first image is at p + flow[p] in the second.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import Float, UInt8

Flow = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Two HWC uint8 RGB images to the flow between them."""

_DIS_PX = 256


def dis_flow(first: UInt8[np.ndarray, "H W 3"], second: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W 2"]:
    """Dense inverse search (Kroeger et al. 2016), OpenCV's medium preset, on grey values.

    Images under 256 px are enlarged to 256 px first (bicubic): the method starts at a quarter of the resolution.
    The flow is scaled back. Both are our choice; the papers do not name their flow.
    """
    height, width = first.shape[:2]
    factor = max(1, -(-_DIS_PX // min(height, width)))
    size = (width * factor, height * factor)
    grey = [cv2.resize(_grey(image), size, interpolation=cv2.INTER_CUBIC) for image in (first, second)]
    method = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    large = method.calc(grey[0], grey[1], None)  # type: ignore[call-overload]
    return np.asarray(cv2.resize(large, (width, height), interpolation=cv2.INTER_AREA) / factor, dtype=np.float32)


def farneback_flow(first: UInt8[np.ndarray, "H W 3"], second: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W 2"]:
    """Polynomial expansion (Farnebäck 2003) on grey values, 3 levels, a window of 15 px."""
    start = np.zeros((*first.shape[:2], 2), np.float32)
    return cv2.calcOpticalFlowFarneback(_grey(first), _grey(second), start, 0.5, 3, 15, 3, 5, 1.2, 0)


def log_expansion(flow: Float[np.ndarray, "H W 2"]) -> Float[np.ndarray, "H W"]:
    """Growth of the surroundings of each pixel: the logarithm of the square root of |det(1 + grad flow)|.

    It is 0 for a shift or a rotation and log s for a growth by s, clipped to log 1/4 ... log 4.
    """
    dy, dx = np.gradient(flow, axis=(0, 1))  # (H, W, 2) each: derivatives of (u, v)
    area = (1 + dx[..., 0]) * (1 + dy[..., 1]) - dx[..., 1] * dy[..., 0]
    growth: np.ndarray = (0.5 * np.log(np.clip(np.abs(area), 1 / 16, 16))).astype(np.float32)
    return growth


def _grey(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)

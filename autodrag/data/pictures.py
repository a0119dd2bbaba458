"""Matching pictures instead of features: OpenCV's SIFT, and kornia's LoFTR where its weights are at hand.

Auto DragGAN (2024) uses an off-the-shelf matcher on the two images; a generator's own features give more pairs on
small or smooth images, and are the default.
"""

from __future__ import annotations

import functools
import pickle
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from autodrag.errors import AutodragError
from autodrag.images import to_uint8

RATIO = 0.8
"""Lowe's ratio: a match is kept when the second best is at least this much worse."""


def match_pictures(
    before: Float[Tensor, "B 3 H W"],
    after: Float[Tensor, "B 3 H W"],
    points: Float[Tensor, "B N 2"],
    *,
    matcher: Literal["sift", "loftr"],
    weights: Path | None = None,
) -> tuple[Float[Tensor, "B N 2"], Float[Tensor, "B N 2"], Bool[Tensor, "B N"]]:
    """At most N pairs for each of B picture pairs in [-1, 1]: points before, points after, and which are pairs at all.

    `points` say how many, and fill the rows that stay without a match.
    """
    first, second = points.clone(), points.clone()
    matched = torch.zeros(points.shape[:2], dtype=torch.bool, device=points.device)
    for k in range(len(points)):
        pair = before[k : k + 1].clamp(-1, 1), after[k : k + 1].clamp(-1, 1)
        a, b = match_sift(*pair) if matcher == "sift" else match_loftr(*pair, weights)
        count = min(len(a), points.shape[1])
        spread = np.linspace(0, max(len(a) - 1, 0), count).round().astype(int)
        first[k, :count] = torch.from_numpy(a[spread]).to(points)
        second[k, :count] = torch.from_numpy(b[spread]).to(points)
        matched[k, :count] = True
    return first, second, matched


def match_sift(before: Float[Tensor, "1 3 H W"], after: Float[Tensor, "1 3 H W"]) -> tuple[np.ndarray, np.ndarray]:
    """Mutual nearest SIFT descriptors that pass Lowe's ratio test: (M, 2) points before and after, px."""
    none = np.zeros((0, 2), dtype=np.float32)
    # Without the precise upscale every key point lies a quarter of a pixel too far right and down.
    sift = cv2.SIFT.create(contrastThreshold=0.01, enable_precise_upscale=True)
    found = [sift.detectAndCompute(cv2.cvtColor(to_uint8(p)[0], cv2.COLOR_RGB2GRAY), None) for p in (before, after)]
    (keys_a, a), (keys_b, b) = found
    if a is None or b is None or len(b) < 2:
        return none, none
    forward = cv2.BFMatcher().knnMatch(a, b, k=2)
    back = {m.queryIdx: m.trainIdx for m in cv2.BFMatcher().match(b, a)}
    kept = [m for m, n in forward if m.distance < RATIO * n.distance and back[m.trainIdx] == m.queryIdx]
    if not kept:
        return none, none
    # A key point of OpenCV has the centre of the first pixel at (0, 0), as ours.
    return (
        np.array([keys_a[m.queryIdx].pt for m in kept], dtype=np.float32),
        np.array([keys_b[m.trainIdx].pt for m in kept], dtype=np.float32),
    )


def match_loftr(
    before: Float[Tensor, "1 3 H W"], after: Float[Tensor, "1 3 H W"], weights: Path | None
) -> tuple[np.ndarray, np.ndarray]:
    """Matches of LoFTR (Sun et al. 2021) with confidence above 0.5: (M, 2) points before and after, px."""
    net = _loftr(str(weights), before.device)
    gray = [0.5 + 0.5 * p.mean(dim=1, keepdim=True) for p in (before, after)]
    with torch.no_grad():
        found = net({"image0": gray[0], "image1": gray[1]})
    sure = found["confidence"] > 0.5
    return found["keypoints0"][sure].cpu().numpy(), found["keypoints1"][sure].cpu().numpy()


@functools.lru_cache(maxsize=1)
def _loftr(weights: str, device: torch.device) -> Any:
    from kornia.feature import LoFTR

    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
        net = LoFTR(pretrained=None)
        net.load_state_dict(state.get("state_dict", state))
    except (OSError, EOFError, RuntimeError, AttributeError, pickle.UnpicklingError) as problem:
        reason = str(problem).splitlines()[0]
        raise AutodragError(
            f"matcher weights {weights!r} cannot be used ({reason}); expected kornia's LoFTR file"
        ) from None
    return net.to(device).eval()

"""Distances measured with a landmark net, including the offset of the handle."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from autodrag.infer.measure import detect_landmarks, landmark_distances
from autodrag.nets.landmarks import LandmarkConfig, LandmarkNet


def test_remaining_distance() -> None:
    before = np.array([[10.0, 10.0], [40.0, 40.0]])
    after = np.array([[20.0, 13.0], [40.0, 40.0]])
    handles = np.array([[11.0, 10.0], [25.0, 25.0]])
    targets = np.array([[21.0, 17.0], [30.0, 30.0]])
    # The first handle lies 1 px right of its landmark, so the landmark should end at (20, 17).
    left = landmark_distances(before, after, handles, targets, near=3.0)
    assert left == pytest.approx((4.0, None))


def test_distances_are_in_px_of_the_image() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = LandmarkNet(LandmarkConfig(resolution=32, width=8, depth=2, names=("a", "b"))).eval()
    small = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    large = small.repeat(2, axis=0).repeat(2, axis=1)
    found, enlarged = detect_landmarks(net, small), detect_landmarks(net, large)
    assert found.shape == (2, 2)
    assert enlarged == pytest.approx((found + 0.5) * 2 - 0.5, abs=1.0)

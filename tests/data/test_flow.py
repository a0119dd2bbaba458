"""Flow of known motions."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from autodrag.data.flow import Flow, dis_flow, farneback_flow, log_expansion


def texture(size: int = 64) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 255, (size + 16, size + 16, 3)).astype(np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 2.0)


@pytest.mark.parametrize("flow", [dis_flow, farneback_flow])
@pytest.mark.parametrize("shift", [(3, 0), (-2, 1)])
def test_a_shift_is_found(flow: Flow, shift: tuple[int, int]) -> None:
    big = texture()
    dx, dy = shift
    found = flow(big[8:72, 8:72], big[8 - dy : 72 - dy, 8 - dx : 72 - dx])
    assert found.shape == (64, 64, 2) and found.dtype == np.float32
    assert np.median(found[16:48, 16:48], axis=(0, 1)) == pytest.approx([dx, dy], abs=0.35)


def test_expansion_of_known_flows() -> None:
    y, x = np.mgrid[:12, :10].astype(np.float32)
    grow = np.stack([0.1 * x, 0.1 * y], axis=2)
    assert log_expansion(grow) == pytest.approx(np.full((12, 10), np.log(1.1)), abs=1e-5)
    assert log_expansion(np.ones((5, 5, 2), np.float32)) == pytest.approx(np.zeros((5, 5)))
    c, s = np.cos(0.3), np.sin(0.3)
    turn = np.stack([c * x - s * y - x, s * x + c * y - y], axis=2)
    assert log_expansion(turn) == pytest.approx(np.zeros((12, 10)), abs=1e-5)
